"""The tables of examples/extensions.md: small apps, real threads, real packages."""

import asyncio
import contextlib
import contextvars
import copy
import importlib
import json
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import dishka
import fakeredis
import peewee
import pyinstrument
import pytest
import sentry_sdk
import wireup
import wireup.integration.flask
from asgiref.sync import sync_to_async
from cachelib import FileSystemCache
from dishka.integrations.flask import setup_dishka
from flask import Flask, Request, Response, g, got_request_exception, request, session
from helpers import EXAMPLES, TIMEOUT, Late
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from sentry_sdk.envelope import Envelope
from sentry_sdk.integrations.flask import FlaskIntegration
from sentry_sdk.transport import Transport
from sqlalchemy import create_engine, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import scoped_session, sessionmaker
from structlog.contextvars import bind_contextvars, get_contextvars

from ctxcarry import carry_context

GUIDE = (EXAMPLES / "extensions.md").read_text()


def load(name: str) -> Any:
    """Import an extension that has no types."""
    return importlib.import_module(name)


def run_snippet(heading: str, **names: Any) -> dict[str, Any]:
    """Run the Python code under a heading of the guide, and return what it defines."""
    _, _, section = GUIDE.partition(f"# {heading}\n")
    code = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert code
    exec(code[1], names)  # noqa: S102
    return names


class Connection:
    """Stands for a resource that a dependency injection container opens and closes."""

    def __init__(self) -> None:
        self.closed = 0

    def count(self, table: str) -> int:
        return len(table)


def open_connection(opened: list[Connection]) -> Generator[Connection]:
    """Open a connection, and close it when the container closes."""
    connection = Connection()
    opened.append(connection)
    yield connection
    connection.closed += 1


# Databases


@pytest.mark.parametrize("fails", [False, True])
def test_flask_sqlalchemy_gives_the_task_a_session_and_removes_it(
    app: Flask, pool: ThreadPoolExecutor, db: Any, fails: bool
) -> None:
    with app.app_context():
        db.session.execute(text("create table item (id integer primary key)"))
        db.session.commit()
    insert = text("insert into item values (:id)")

    @app.route("/")
    def view() -> dict[str, Any]:
        viewed = db.session()

        @carry_context
        def add(id: int) -> bool:
            db.session.execute(insert, {"id": id})
            if fails:
                db.session.execute(insert, {"id": id})
            db.session.commit()
            return db.session() is not viewed

        futures = [pool.submit(add, id) for id in range(4)]
        errors = [type(future.exception(TIMEOUT)) for future in futures]
        assert errors == [IntegrityError if fails else type(None)] * 4
        checked_out = db.engine.pool.checkedout()
        rows = db.session.scalar(text("select count(*) from item"))
        return {"checked out by tasks": checked_out, "rows": rows}

    expected = {"checked out by tasks": 0, "rows": 0 if fails else 4}
    assert app.test_client().get("/").get_json() == expected
    with app.app_context():
        assert db.engine.pool.checkedout() == 0


def test_flask_sqlalchemy_shows_a_task_what_is_committed_by_its_id(
    app: Flask, pool: ThreadPoolExecutor, db: Any
) -> None:
    class Item(db.Model):  # type: ignore[misc]
        id = db.Column(db.Integer, primary_key=True)
        name = db.Column(db.String, nullable=False)

    with app.app_context():
        db.create_all()

    @app.route("/")
    def view() -> list[str]:
        @carry_context
        def find(id: int) -> str:
            item = db.session.get(Item, id)
            return item.name if item else "nothing"

        item = Item(name="tea")
        db.session.add(item)
        db.session.flush()
        before = pool.submit(find, item.id).result(TIMEOUT)
        db.session.commit()
        return [before, pool.submit(find, item.id).result(TIMEOUT)]

    assert app.test_client().get("/").get_json() == ["nothing", "tea"]


def test_flask_sqlalchemy_lite_gives_the_task_a_session_and_closes_it(
    app: Flask, pool: ThreadPoolExecutor, late: Late, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path / 'shop.sqlite'}"
    app.config["SQLALCHEMY_ENGINES"] = {"default": url}
    db = load("flask_sqlalchemy_lite").SQLAlchemy(app)
    with app.app_context():
        db.session.execute(text("create table item (id integer primary key)"))
        db.session.commit()

    @app.route("/")
    def view() -> dict[str, Any]:
        viewed = db.session
        viewed.execute(text("select 1"))

        @carry_context
        def add(id: int) -> bool:
            db.session.execute(text("insert into item values (:id)"), {"id": id})
            db.session.commit()
            db.session.execute(text("select 1"))
            return db.session is not viewed

        own = pool.submit(add, 1).result(TIMEOUT)
        late.submit(add, 2)
        kept = viewed.in_transaction() and db.session is viewed
        return {"own": own, "kept": kept, "checked out": db.engine.pool.checkedout()}

    seen = app.test_client().get("/").get_json()
    assert seen == {"own": True, "kept": True, "checked out": 1}
    assert late.result()
    with app.app_context():
        assert db.session.scalar(text("select count(*) from item")) == 2
        db.session.close()
        assert db.engine.pool.checkedout() == 0
        db.engine.dispose()


@pytest.mark.parametrize("where", ["here", "in a thread"])
@pytest.mark.parametrize("by_context", [False, True])
def test_scoped_session_is_removed_under_a_view_that_calls_the_task_itself(
    app: Flask, pool: ThreadPoolExecutor, where: str, by_context: bool
) -> None:
    engine = create_engine("sqlite://")
    registry = scoped_session(sessionmaker(engine))
    if by_context:
        registry = scoped_session(
            sessionmaker(engine), scopefunc=lambda: id(g._get_current_object())
        )

    @app.teardown_appcontext
    def remove(error: BaseException | None) -> None:
        registry.remove()

    @app.route("/")
    def view() -> list[bool]:
        viewed = registry()
        task = carry_context(lambda: registry() is not viewed)
        own = task() if where == "here" else pool.submit(task).result(TIMEOUT)
        return [own, registry() is viewed]

    separate = by_context or where == "in a thread"
    assert app.test_client().get("/").get_json() == [separate, separate]
    engine.dispose()


@pytest.mark.parametrize("where", ["here", "in a thread"])
def test_peewee_is_closed_under_a_view_that_calls_the_task_itself(
    app: Flask, pool: ThreadPoolExecutor, tmp_path: Path, where: str
) -> None:
    database: Any = peewee.SqliteDatabase(str(tmp_path / "shop"), autoconnect=False)

    @app.before_request
    def connect() -> None:
        database.connect()

    @app.teardown_appcontext
    def close(error: BaseException | None) -> None:
        if not database.is_closed():
            database.close()

    @app.route("/")
    def view() -> dict[str, Any]:
        @carry_context
        def select() -> list[bool]:
            had_one = not database.connect(reuse_if_open=True)
            return [had_one, database.execute_sql("select 1").fetchone() == (1,)]

        task = select() if where == "here" else pool.submit(select).result(TIMEOUT)
        # Nothing of the task's stays open in its thread.
        closed = pool.submit(database.is_closed).result(TIMEOUT)
        return {"task": task, "closed": [database.is_closed(), closed]}

    here = where == "here"
    expected = {"task": [here, True], "closed": [here, True]}
    assert app.test_client().get("/").get_json() == expected


@pytest.mark.parametrize("where", ["on the loop", "in a thread"])
def test_flask_sqlalchemy_lite_needs_a_thread_where_a_loop_is_running(
    app: Flask, where: str
) -> None:
    app.config["SQLALCHEMY_ENGINES"] = {"default": "sqlite://"}
    db = load("flask_sqlalchemy_lite").SQLAlchemy(app)

    async def work() -> int:
        return int(db.session.scalar(text("select 1")))

    async def view() -> str:
        if where == "on the loop":
            with pytest.raises(RuntimeError, match="You cannot use AsyncToSync"):
                await carry_context(work)()
            return ""
        return str(await asyncio.to_thread(carry_context(asyncio.run), work()))

    app.add_url_rule("/", view_func=view)
    assert app.test_client().get("/").text == ("1" if where == "in a thread" else "")
    with app.app_context():
        db.engine.dispose()


def test_scoped_session_in_g_stays_with_the_view_and_is_removed_by_the_task(
    app: Flask, pool: ThreadPoolExecutor
) -> None:
    engine = create_engine("sqlite://")
    registry = scoped_session(sessionmaker(engine))

    def get_registry() -> scoped_session[Any]:
        if "db" not in g:
            g.db = registry
        return registry

    @app.teardown_appcontext
    def remove(error: BaseException | None) -> None:
        if "db" in g:
            g.pop("db").remove()

    @app.route("/")
    def view() -> list[bool]:
        viewed = get_registry()()
        own = pool.submit(carry_context(lambda: get_registry()() is not viewed))
        seen = [own.result(TIMEOUT), get_registry()() is viewed]
        # All threads of the pool are asked: none of them has kept a session.
        all_here = threading.Barrier(4)

        def has_session() -> bool:
            all_here.wait(TIMEOUT)
            return registry.registry.has()

        kept = [pool.submit(has_session) for _ in range(4)]
        return [*seen, any(future.result(TIMEOUT) for future in kept)]

    assert app.test_client().get("/").get_json() == [True, True, False]
    engine.dispose()


def test_peewee_opens_and_closes_a_connection_for_each_task_if_g_holds_the_database(
    app: Flask, tmp_path: Path
) -> None:
    database: Any = peewee.SqliteDatabase(str(tmp_path / "shop"), autoconnect=False)
    one_thread = ThreadPoolExecutor(1)

    def get_db() -> Any:
        if "db" not in g:
            database.connect()
            g.db = database
        return g.db

    @app.teardown_appcontext
    def close(error: BaseException | None) -> None:
        if "db" in g:
            g.pop("db").close()

    @app.route("/")
    def view() -> list[Any]:
        get_db()

        @carry_context
        def select() -> bool:
            return bool(get_db().execute_sql("select 1").fetchone() == (1,))

        tasks = [one_thread.submit(select).result(TIMEOUT) for _ in range(2)]
        closed = one_thread.submit(database.is_closed).result(TIMEOUT)
        return [*tasks, closed, database.is_closed()]

    with one_thread:
        assert app.test_client().get("/").get_json() == [True, True, True, False]


@pytest.mark.parametrize(
    "recipe",
    [
        pytest.param(False, id="without-the-recipe"),
        pytest.param(True, id="with-the-recipe"),
    ],
)
def test_pony_ends_the_session_of_the_task_in_its_thread(
    app: Flask, tmp_path: Path, recipe: bool
) -> None:
    orm, extension = load("pony.orm"), load("pony.flask")
    database = orm.Database()
    one_thread = ThreadPoolExecutor(1)

    class Item(database.Entity):  # type: ignore[misc,name-defined]
        name = orm.Required(str)

    database.bind("sqlite", str(tmp_path / "shop.sqlite"), create_db=True)
    database.generate_mapping(create_tables=True)
    extension.Pony(app)

    @app.route("/")
    def view() -> list[str]:
        @carry_context
        def store(name: str) -> int:
            task_request: Any = request
            if recipe:
                task_request.pony_session = None
            with orm.db_session:
                Item(name=name)
                if name == "milk":
                    raise LookupError(name)
            with orm.db_session:
                return int(Item.select().count())

        tasks = [one_thread.submit(store, name) for name in ("tea", "milk", "rice")]
        return [repr(task.exception(TIMEOUT) or task.result()) for task in tasks]

    with one_thread:
        seen = app.test_client().get("/").get_json()
    if recipe:
        assert seen == ["1", "LookupError('milk')", "2"]
    else:
        # A teardown function has ended in the thread what had begun in the view's.
        assert seen == ["1", "AssertionError()", "AssertionError()"]
    database.disconnect()


@pytest.mark.filterwarnings("ignore::DeprecationWarning:ldap3")
@pytest.mark.filterwarnings("ignore:(tag|type)Map is deprecated:DeprecationWarning")
def test_flask_ldap3_login_binds_a_connection_for_the_task_and_unbinds_it(
    app: Flask, pool: ThreadPoolExecutor, tmp_path: Path
) -> None:
    raw = {"cn": ["ada"], "objectClass": ["person"]}
    entries = [{"dn": "cn=ada,dc=shop", "raw": raw}]
    (tmp_path / "people.json").write_text(json.dumps({"entries": entries}))
    app.config["LDAP_MOCK_DATA"] = str(tmp_path / "people.json")
    app.config["LDAP_ADD_SERVER"] = False
    manager = load("flask_ldap3_login").LDAP3LoginManager(app)
    opened: list[Any] = []

    @app.route("/")
    def view() -> list[Any]:
        viewed = manager.connection

        @carry_context
        def find() -> str:
            opened.append(manager.connection)
            manager.connection.search("dc=shop", "(cn=ada)", attributes=["cn"])
            return str(manager.connection.entries[0].cn)

        found = pool.submit(find).result(TIMEOUT)
        return [found, opened[0] is viewed, opened[0].bound, viewed.bound]

    assert app.test_client().get("/").get_json() == ["ada", False, False, True]


@pytest.mark.parametrize("how", ["hook", "accessor"])
def test_an_orm_object_in_g_is_loaded_by_an_accessor_and_stored_by_the_task(
    app: Flask, late: Late, pool: ThreadPoolExecutor, db: Any, how: str
) -> None:
    class Account(db.Model):  # type: ignore[misc]
        id = db.Column(db.Integer, primary_key=True)
        name = db.Column(db.String, nullable=False)

    get_account: Callable[[], Any] = run_snippet(
        "An ORM object in `g`", db=db, Account=Account
    )["get_account"]
    with app.app_context():
        db.create_all()
        db.session.add(Account(name="acme"))
        db.session.commit()

    @app.before_request
    def load_account() -> None:
        session["account_id"] = 1
        g.account = db.session.get(Account, 1)

    @app.route("/")
    def view() -> list[Any]:
        viewed = get_account()
        db.session.commit()

        @carry_context
        def rename(name: str) -> bool:
            account = g.account if how == "hook" else get_account()
            account.name = name
            db.session.commit()
            return account is not viewed

        late.submit(rename, "late")
        if how == "hook":
            return []
        own = pool.submit(rename, "now").result(TIMEOUT)
        return [own, viewed.name, viewed in db.session]

    seen = app.test_client().get("/").get_json()
    if how == "hook":
        with pytest.raises(AttributeError, match="account"):
            late.result()
    else:
        assert seen == [True, "now", True]
        assert late.result()
        with app.app_context():
            assert db.session.get(Account, 1).name == "late"


# Users


@pytest.mark.parametrize("how", ["session", "remember cookie", "request loader"])
def test_flask_login_loads_the_user_again_in_the_session_of_the_task(
    app: Flask, late: Late, db: Any, how: str
) -> None:
    flask_login = load("flask_login")
    login = flask_login.LoginManager(app)

    class User(db.Model, flask_login.UserMixin):  # type: ignore[misc,name-defined]
        id = db.Column(db.Integer, primary_key=True)
        name = db.Column(db.String, nullable=False)

    def load_user(id: str) -> Any:
        return db.session.get(User, int(id))

    def load_by_token(request: Request) -> Any:
        return db.session.get(User, 1) if "Token" in request.headers else None

    login.user_loader(load_user)
    login.request_loader(load_by_token)
    with app.app_context():
        db.create_all()
        db.session.add(User(name="ada"))
        db.session.commit()

    @app.route("/login")
    def log_in() -> str:
        flask_login.login_user(db.session.get(User, 1), remember=True)
        return ""

    @app.route("/")
    def view() -> str:
        name: str = flask_login.current_user.name
        viewed = flask_login.current_user._get_current_object()
        db.session.commit()

        @carry_context
        def rename() -> list[Any]:
            before = flask_login.current_user.name
            own = flask_login.current_user._get_current_object() is not viewed
            flask_login.current_user.name = "grace"
            db.session.commit()
            return [before, own]

        late.submit(rename)
        return name

    client = app.test_client()
    headers = {"Token": "t1"} if how == "request loader" else {}
    if how != "request loader":
        client.get("/login")
    if how == "remember cookie":
        client.delete_cookie("session")
    assert client.get("/", headers=headers).text == "ada"
    assert late.result() == ["ada", True]
    with app.app_context():
        assert db.session.get(User, 1).name == "grace"


@pytest.mark.parametrize("how", ["session", "token", "basic", "nobody"])
def test_flask_security_loads_the_user_again_except_after_basic_authentication(
    app: Flask, late: Late, db: Any, how: str
) -> None:
    security, models = load("flask_security"), load("flask_security.models.fsqla_v3")
    app.config["SECURITY_PASSWORD_SALT"] = "salt"
    app.config["SECURITY_PASSWORD_HASH"] = "plaintext"
    app.config["SECURITY_PASSWORD_SCHEMES"] = ["plaintext"]
    app.config["WTF_CSRF_ENABLED"] = False
    models.FsModels.set_db_info(db)

    class Role(db.Model, models.FsRoleMixin):  # type: ignore[misc,name-defined]
        pass

    class User(db.Model, models.FsUserMixin):  # type: ignore[misc,name-defined]
        pass

    users = security.SQLAlchemyUserDatastore(db, User, Role)
    security.Security(app, users)
    log_in = {"email": "ada@example.com", "password": "a password"}
    with app.app_context():
        db.create_all()
        ada = users.create_user(**log_in)
        db.session.commit()
        token = ada.get_auth_token()

    def view() -> str:
        id: int | None = getattr(security.current_user, "id", None)
        db.session.commit()

        @carry_context
        def rename(id: int | None) -> bool:
            found: bool = security.current_user.is_authenticated
            user = security.current_user if found else id and db.session.get(User, id)
            if user:
                user.email = "grace@example.com"
                db.session.commit()
            return found

        late.submit(rename, id)
        return str(id)

    app.add_url_rule("/nobody", view_func=view)
    required = security.auth_required("session", "token", "basic")
    app.add_url_rule("/", "known", required(view))
    client = app.test_client()
    send: dict[str, Any] = {}
    if how == "session":
        assert client.post("/login", data=log_in).status_code == 302
    elif how == "token":
        send["headers"] = {"Authentication-Token": token}
    elif how == "basic":
        send["auth"] = tuple(log_in.values())
    id = client.get("/nobody" if how == "nobody" else "/", **send).text
    assert id == ("None" if how == "nobody" else "1")
    assert late.result() is (how in ("session", "token"))
    with app.app_context():
        email = db.session.scalar(db.select(User.email))
    assert email == ("ada" if how == "nobody" else "grace") + "@example.com"


@pytest.mark.parametrize(
    "again",
    [
        pytest.param(False, id="without-the-recipe"),
        pytest.param(True, id="with-the-recipe"),
    ],
)
def test_flask_jwt_extended_knows_the_claims_and_loads_an_orm_user_again(
    app: Flask, late: Late, db: Any, again: bool
) -> None:
    jwt = load("flask_jwt_extended")
    manager = jwt.JWTManager(app)

    class User(db.Model):  # type: ignore[misc]
        name = db.Column(db.String, primary_key=True)

    def find(header: dict[str, Any], claims: dict[str, Any]) -> Any:
        return db.session.get(User, claims["sub"])

    manager.user_lookup_loader(find)
    with app.app_context():
        db.create_all()
        db.session.add(User(name="ada"))
        db.session.commit()
        token = jwt.create_access_token("ada", additional_claims={"shop": "acme"})

    def view() -> str:
        db.session.commit()

        @carry_context
        def claims() -> list[Any]:
            return [jwt.get_jwt_identity(), jwt.get_jwt()["shop"]]

        @carry_context
        def user() -> str:
            if again:
                jwt.verify_jwt_in_request()
            name: str = jwt.current_user.name
            return name

        late.submit(claims)
        late.submit(user)
        return ""

    app.add_url_rule("/", view_func=jwt.jwt_required()(view))
    client = app.test_client()
    assert client.get("/").status_code == 401
    client.get("/", headers={"Authorization": f"Bearer {token}"})
    assert late.result() == ["ada", "acme"]
    if again:
        assert late.result() == "ada"
    else:
        with pytest.raises(RuntimeError, match="must provide a `@jwt.user_lookup_load"):
            late.result()


@pytest.mark.parametrize("is_orm_object", [False, True])
def test_flask_httpauth_knows_the_user_in_a_task_unless_it_is_an_orm_object(
    app: Flask, late: Late, db: Any, is_orm_object: bool
) -> None:
    auth = load("flask_httpauth").HTTPBasicAuth()

    class User(db.Model):  # type: ignore[misc]
        name = db.Column(db.String, primary_key=True)

        def __str__(self) -> str:
            return str(self.name)

    def verify(name: str, password: str) -> Any:
        if password != "a password":
            return None
        return User(name=name) if is_orm_object else name

    auth.verify_password(verify)

    def view() -> str:
        late.submit(carry_context(auth.current_user))
        return str(auth.current_user())

    app.add_url_rule("/", view_func=auth.login_required(view))
    client = app.test_client()
    assert client.get("/", auth=("ada", "a guess")).status_code == 401
    assert client.get("/", auth=("ada", "a password")).text == "ada"
    assert late.result() == (None if is_orm_object else "ada")


@pytest.mark.parametrize("recipe", ["nothing", "blueprint.session", "a session"])
def test_flask_dance_asks_in_the_name_of_the_user_with_a_session_of_the_task(
    app: Flask, pool: ThreadPoolExecutor, recipe: str
) -> None:
    contrib, adapters = load("flask_dance.contrib.github"), load("requests.adapters")
    requests = load("requests")

    class GitHub(adapters.HTTPAdapter):  # type: ignore[misc,name-defined]
        def send(self, request: Any, **options: Any) -> Any:
            assert request.url == "https://api.github.com/user"
            response = requests.Response()
            _, _, token = request.headers["Authorization"].partition(" ")
            response._content = json.dumps({"login": token}).encode()
            return response

    blueprint = contrib.make_github_blueprint("id", "secret")
    app.register_blueprint(blueprint)
    answered, inside = threading.Event(), threading.Event()
    tasks: list[Future[str]] = []
    names = run_snippet("A session of Flask-Dance", blueprint=blueprint)
    session_class = names["OAuth2Session"]

    def mounted(**options: Any) -> Any:
        made = session_class(**options)
        made.mount("https://", GitHub())
        return made

    names["OAuth2Session"] = mounted

    @app.route("/login/<name>")
    def log_in(name: str) -> str:
        session["github_oauth_token"] = {"access_token": name, "token_type": "bearer"}
        return ""

    def without() -> str:
        if recipe == "blueprint.session":
            g.flask_dance_github = blueprint.session
        return str(contrib.github.authorized and contrib.github.access_token)

    @app.route("/")
    def view() -> str:
        task = carry_context(names["get_login"] if recipe == "a session" else without)

        def late() -> str:
            assert inside.wait(TIMEOUT)
            return str(task())

        tasks.append(pool.submit(late))
        return str(contrib.github.authorized and contrib.github.access_token)

    @app.route("/wait")
    def wait() -> str:
        assert contrib.github.authorized
        inside.set()
        assert answered.wait(TIMEOUT)
        return str(contrib.github.access_token)

    ada, eve = app.test_client(), app.test_client()
    ada.get("/login/ada")
    eve.get("/login/eve")
    assert ada.get("/").text == "ada"
    waiting = pool.submit(eve.get, "/wait")
    error = tasks[0].exception(TIMEOUT)
    answered.set()
    assert waiting.result(TIMEOUT).text == "eve"
    if recipe == "nothing":
        assert isinstance(error, AttributeError)
    else:
        assert error is None
        # The session of the blueprint is the one of eve's request, which runs now.
        assert tasks[0].result() == ("ada" if recipe == "a session" else "eve")


# Sessions, forms and languages


def test_flask_session_is_carried_and_its_store_left_alone(
    app: Flask, pool: ThreadPoolExecutor, late: Late, tmp_path: Path
) -> None:
    read: list[str] = []

    class Store(FileSystemCache):
        def get(self, key: str) -> Any:
            read.append(key.partition(":")[0])
            return super().get(key)

    app.config["SESSION_TYPE"] = "cachelib"
    app.config["SESSION_CACHELIB"] = Store(str(tmp_path))
    load("flask_session").Session(app)

    @app.route("/login")
    def log_in() -> str:
        session.update(user="ada", cart=["tea"])
        return ""

    @app.route("/")
    def view() -> list[Any]:
        @carry_context
        def work() -> list[Any]:
            found = [vars(session)["sid"], session["user"], [*session["cart"]]]
            session["user"] = "eve"
            session["cart"].append("milk")
            return found

        late.submit(work)
        found = pool.submit(work).result(TIMEOUT)
        viewed = [vars(session)["sid"], session["user"], session["cart"]]
        assert found == viewed
        return viewed

    client = app.test_client()
    client.get("/login")
    read.clear()
    seen = client.get("/").get_json()
    assert seen[1:] == ["ada", ["tea"]]
    assert late.result() == seen
    assert read.count("session") == 1
    assert client.get("/").get_json() == seen
    late.result()


@pytest.mark.parametrize("first_in_the_view", [False, True])
def test_flask_wtf_tokens_come_from_the_view_and_forms_validate_in_both(
    app: Flask, late: Late, first_in_the_view: bool
) -> None:
    csrf, wtf, wtforms = load("flask_wtf.csrf"), load("flask_wtf"), load("wtforms")
    answers = ThreadPoolExecutor(1)

    class Order(wtf.FlaskForm):  # type: ignore[misc,name-defined]
        item = wtforms.StringField(validators=[wtforms.validators.DataRequired()])

    @app.route("/token")
    def token() -> Any:
        if first_in_the_view:
            csrf.generate_csrf()
        with answers:
            return answers.submit(carry_context(csrf.generate_csrf)).result(TIMEOUT)

    @app.route("/order", methods=["POST"])
    def order() -> list[Any]:
        def validate() -> list[Any]:
            form: Any = Order()
            return [form.validate_on_submit(), form.item.data]

        valid = validate()
        late.submit(carry_context(validate))
        return valid

    client = app.test_client()
    data = {"item": "tea", "csrf_token": client.get("/token").text}
    # What the task put into the session was not sent, so its token fits none.
    valid = client.post("/order", data=data).get_json()
    assert valid == [first_in_the_view, "tea"]
    assert late.result() == valid


def test_flask_babel_forces_a_locale_for_the_task_alone(
    app: Flask, pool: ThreadPoolExecutor
) -> None:
    babel = load("flask_babel")
    babel.Babel(
        app,
        locale_selector=lambda: request.accept_languages.best_match(["en", "fr"]),
    )
    forced, looked = threading.Event(), threading.Event()

    @app.route("/")
    def view() -> dict[str, list[str]]:
        def number() -> str:
            return str(babel.format_decimal(1234.5))

        first = number()

        @carry_context
        def work() -> list[str]:
            before = number()
            with babel.force_locale("de"):
                forced.set()
                assert looked.wait(TIMEOUT)
                return [before, number()]

        task = pool.submit(work)
        assert forced.wait(TIMEOUT)
        seen = [first, number()]
        looked.set()
        return {"view": seen, "task": task.result(TIMEOUT)}

    seen = app.test_client().get("/", headers={"Accept-Language": "fr"}).get_json()
    french = "1\u202f234,5"
    assert seen == {"view": [french, french], "task": [french, "1.234,5"]}


# Dependency injection


@pytest.mark.parametrize(
    "recipe",
    [
        pytest.param(False, id="without-the-recipe"),
        pytest.param(True, id="with-the-recipe"),
    ],
)
def test_flask_injector_shares_the_objects_of_a_request_unless_the_task_prepares_a_scope(
    app: Flask, pool: ThreadPoolExecutor, recipe: bool
) -> None:
    flask_injector = load("flask_injector")
    RequestScope = flask_injector.RequestScope

    @app.route("/")
    def view() -> list[bool]:
        viewed = injector.get(Connection)

        @carry_context
        def task() -> list[bool]:
            if recipe:
                injector.get(RequestScope).prepare()
            own = injector.get(Connection)
            return [own is not viewed, own is injector.get(Connection)]

        seen = pool.submit(task).result(TIMEOUT)
        return [*seen, viewed is injector.get(Connection)]

    def configure(binder: Any) -> None:
        binder.bind(Connection, to=Connection, scope=flask_injector.request)

    injector = flask_injector.FlaskInjector(app, modules=[configure]).injector
    assert app.test_client().get("/").get_json() == [recipe, True, True]


def test_dishka_opens_a_container_in_the_task_and_closes_it(
    app: Flask, pool: ThreadPoolExecutor
) -> None:
    opened: list[Connection] = []
    provider = dishka.Provider(scope=dishka.Scope.REQUEST)

    def connect() -> Generator[Connection]:
        yield from open_connection(opened)

    def find_path(request: Request) -> str:
        return request.path

    provider.provide(connect)
    provider.provide(find_path)
    provider.from_context(provides=Request, scope=dishka.Scope.REQUEST)
    container = dishka.make_container(provider)
    names = run_snippet(
        "Dependency injection",
        container=container,
        Connection=Connection,
    )

    @app.route("/")
    def view() -> list[Any]:
        viewed = g.dishka_container.get(Connection)

        @carry_context
        def without() -> Any:
            return g.dishka_container

        @carry_context
        def with_the_request() -> str:
            with container({Request: request}) as g.dishka_container:
                return str(g.dishka_container.get(str))

        assert isinstance(pool.submit(without).exception(TIMEOUT), AttributeError)
        assert pool.submit(with_the_request).result(TIMEOUT) == "/"
        count = pool.submit(carry_context(names["task"])).result(TIMEOUT)
        return [count, opened[0] is viewed, [each.closed for each in opened]]

    setup_dishka(container, app)
    assert app.test_client().get("/").get_json() == [6, True, [0, 1]]
    assert [each.closed for each in opened] == [1, 1]
    container.close()


def test_wireup_opens_a_container_in_the_task_and_closes_it(
    app: Flask, pool: ThreadPoolExecutor
) -> None:
    opened: list[Connection] = []

    @wireup.injectable(lifetime="scoped")
    def connect() -> Generator[Connection]:
        yield from open_connection(opened)

    @app.route("/")
    def view() -> list[Any]:
        viewed = g.wireup_container.get(Connection)

        @carry_context
        def without() -> Any:
            return g.wireup_container

        @carry_context
        def task() -> bool:
            with container.enter_scope() as g.wireup_container:
                found = wireup.integration.flask.get_request_container().get(Connection)
                return found is viewed

        assert isinstance(pool.submit(without).exception(TIMEOUT), AttributeError)
        shared = pool.submit(task).result(TIMEOUT)
        return [shared, opened[0] is viewed, [each.closed for each in opened]]

    container = wireup.create_sync_container(injectables=[connect])
    wireup.integration.flask.setup(container, app)
    assert app.test_client().get("/").get_json() == [False, True, [0, 1]]
    assert [each.closed for each in opened] == [1, 1]


def test_svcs_gives_the_task_a_container_and_closes_it(
    app: Flask, pool: ThreadPoolExecutor
) -> None:
    opened: list[Connection] = []

    def connect() -> Generator[Connection]:
        yield from open_connection(opened)

    svcs: Any = load("svcs")
    svcs.flask.init_app(app)
    svcs.flask.register_factory(app, Connection, connect)

    @app.route("/")
    def view() -> list[Any]:
        viewed = svcs.flask.get(Connection)

        @carry_context
        def task() -> bool:
            return svcs.flask.get(Connection) is viewed

        shared = pool.submit(task).result(TIMEOUT)
        return [shared, opened[0] is viewed, [each.closed for each in opened]]

    assert app.test_client().get("/").get_json() == [False, True, [0, 1]]
    assert [each.closed for each in opened] == [1, 1]


# Errors, traces and metrics


def test_an_error_in_a_task_goes_to_its_caller_and_not_to_the_signal_of_requests(
    app: Flask, pool: ThreadPoolExecutor
) -> None:
    received: list[Any] = []

    def receive(sender: Flask, exception: Exception) -> None:
        received.append(exception)

    @app.route("/")
    def view() -> str:
        @carry_context
        def fail() -> None:
            raise LookupError("tea")

        return repr(pool.submit(fail).exception(TIMEOUT))

    with got_request_exception.connected_to(receive, app):
        assert app.test_client().get("/").text == "LookupError('tea')"
    assert received == []


class KeptEvents(Transport):
    def __init__(self) -> None:
        super().__init__()
        self.events: list[Any] = []

    def capture_envelope(self, envelope: Envelope) -> None:
        self.events.append(envelope.get_event())


@pytest.mark.parametrize("separate", [False, True])
def test_sentry_mixes_the_tags_of_tasks_unless_each_has_an_isolation_scope(
    app: Flask, pool: ThreadPoolExecutor, separate: bool
) -> None:
    kept = KeptEvents()
    sentry_sdk.init(
        "http://key@127.0.0.1/1",
        transport=kept,
        default_integrations=False,
        integrations=[FlaskIntegration()],
    )
    both = threading.Barrier(2)

    @app.route("/")
    def view() -> str:
        sentry_sdk.set_tag("request", "r1")

        @carry_context
        def work(item: str) -> None:
            with sentry_sdk.isolation_scope() if separate else contextlib.nullcontext():
                sentry_sdk.set_tag("item", item)
                both.wait(TIMEOUT)
                sentry_sdk.capture_message(item)

        list(pool.map(work, ["tea", "milk"]))
        sentry_sdk.capture_message("the view")
        return ""

    try:
        app.test_client().get("/")
    finally:
        sentry_sdk.get_global_scope().set_client(None)
    tags = {event["message"]: event["tags"] for event in kept.events}
    assert {event["transaction"] for event in kept.events} == {"view"}
    assert {tag["request"] for tag in tags.values()} == {"r1"}
    items = {message: tag.get("item") for message, tag in tags.items()}
    if separate:
        assert items == {"tea": "tea", "milk": "milk", "the view": None}
    else:
        assert len(items) == 3 and len(set(items.values())) == 1


def test_structlog_binds_for_the_task_what_the_view_had_bound(
    app: Flask, pool: ThreadPoolExecutor
) -> None:
    @app.route("/")
    def view() -> dict[str, Any]:
        bind_contextvars(request_id="r1")

        @carry_context
        def work() -> dict[str, Any]:
            bind_contextvars(task="t1")
            return get_contextvars()

        return {"task": pool.submit(work).result(TIMEOUT), "view": get_contextvars()}

    seen = contextvars.Context().run(app.test_client().get, "/").get_json()
    assert seen["task"] == {"request_id": "r1", "task": "t1"}
    assert seen["view"] == {"request_id": "r1"}


def test_opentelemetry_makes_the_tasks_span_a_child_of_the_requests(
    app: Flask, pool: ThreadPoolExecutor, caplog: pytest.LogCaptureFixture
) -> None:
    instrumentation = load("opentelemetry.instrumentation.flask")
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    instrumentation.FlaskInstrumentor().instrument_app(app, tracer_provider=provider)
    answered = threading.Event()
    tasks: list[Future[None]] = []

    @app.route("/")
    def view() -> str:
        @carry_context
        def work(late: bool) -> None:
            assert not late or answered.wait(TIMEOUT)
            with provider.get_tracer("shop").start_as_current_span("task"):
                pass

        tasks[:] = [pool.submit(work, late) for late in (False, True)]
        tasks[0].result(TIMEOUT)
        return ""

    app.test_client().get("/")
    answered.set()
    tasks[1].result(TIMEOUT)
    early, viewed, late = exporter.get_finished_spans()
    assert (early.name, viewed.name, late.name) == ("task", "GET /", "task")
    assert viewed.context is not None and early.parent is not None
    assert early.parent.span_id == viewed.context.span_id
    assert late.parent == early.parent
    assert not [log for log in caplog.records if log.levelname != "DEBUG"]


def start_bugsnag(app: Flask) -> list[Any]:
    """Return a list that takes what Bugsnag would send for the app."""
    bugsnag, delivery = load("bugsnag"), load("bugsnag.delivery")
    kept: list[Any] = []

    class Kept(delivery.Delivery):  # type: ignore[misc,name-defined]
        def deliver(self, config: Any, payload: Any, options: Any = None) -> None:
            kept.extend(json.loads(payload)["events"])

    bugsnag.configure(
        api_key="0" * 32,
        delivery=Kept(),
        asynchronous=False,
        auto_capture_sessions=False,
        auto_notify=False,
    )
    load("bugsnag.flask").handle_exceptions(app)
    return kept


@pytest.mark.parametrize("separate", [False, True])
def test_bugsnag_mixes_the_data_of_tasks_unless_each_has_a_copy(
    app: Flask, pool: ThreadPoolExecutor, separate: bool
) -> None:
    kept = start_bugsnag(app)
    bugsnag, configuration = load("bugsnag"), load("bugsnag.configuration")
    RequestConfiguration = configuration.RequestConfiguration
    both = threading.Barrier(2)

    @app.route("/")
    def view() -> str:
        bugsnag.configure_request(context="the view")

        @carry_context
        def work(item: str) -> None:
            if separate:
                RequestConfiguration.set_instance(
                    copy.deepcopy(RequestConfiguration.get_instance())
                )
            bugsnag.configure_request(context=item)
            both.wait(TIMEOUT)
            bugsnag.notify(LookupError(item))

        list(pool.map(work, ["tea", "milk"]))
        bugsnag.notify(LookupError("the view"))
        return ""

    contextvars.Context().run(app.test_client().get, "/")
    found = {each["exceptions"][0]["message"]: each["context"] for each in kept}
    if separate:
        assert found == {"tea": "tea", "milk": "milk", "the view": "the view"}
    else:
        assert len(found) == 3 and len(set(found.values())) == 1


@pytest.mark.parametrize("read", [False, True])
def test_bugsnag_reports_the_request_of_a_task_if_the_view_has_read_its_body(
    app: Flask, pool: ThreadPoolExecutor, read: bool
) -> None:
    bugsnag, kept = load("bugsnag"), start_bugsnag(app)

    @app.route("/", methods=["POST"])
    def view() -> str:
        if read:
            request.get_data()
        pool.submit(carry_context(bugsnag.notify), LookupError("tea")).result(TIMEOUT)
        return ""

    contextvars.Context().run(app.test_client().post, "/", json={"item": "tea"})
    (event,) = kept
    data = event["metaData"].get("request", {}).get("data")
    assert data == ({"item": "tea"} if read else None)


@pytest.fixture
def rollbar_reports(app: Flask) -> Generator[list[Any]]:
    """What Rollbar would send for the app."""
    kept: list[Any] = []

    def keep(payload: dict[str, Any], **extra: Any) -> bool:
        kept.append(payload["data"])
        return False  # Nothing is sent.

    rollbar, extension = load("rollbar"), load("rollbar.contrib.flask")
    extension.init(app, "token", handler="blocking", allow_logging_basic_config=False)
    rollbar.events.add_payload_handler(keep)
    yield kept
    rollbar.events.reset()


# Rollbar imports WebOb, which imports cgi.
@pytest.mark.filterwarnings("ignore:'cgi' is deprecated:DeprecationWarning")
@pytest.mark.parametrize("read", [False, True])
def test_rollbar_reports_the_request_of_a_task_if_the_view_has_read_its_body(
    app: Flask, pool: ThreadPoolExecutor, rollbar_reports: list[Any], read: bool
) -> None:
    rollbar = load("rollbar")

    @app.route("/", methods=["POST"])
    def view() -> str:
        if read:
            request.get_data()

        @carry_context
        def work() -> None:
            try:
                raise LookupError("tea")
            except LookupError:
                rollbar.report_exc_info(request=request)

        pool.submit(work).result(TIMEOUT)
        return ""

    app.test_client().post("/", data={"item": "tea"})
    (report,) = rollbar_reports
    assert report["body"]["trace"]["exception"]["message"] == "tea"
    form = report.get("request", {}).get("POST")
    assert form == ({"item": "tea"} if read else None)


# New Relic changes the modules that are imported after it, so it has a process.
NEW_RELIC = """
import threading
from concurrent.futures import ThreadPoolExecutor

import newrelic.agent

newrelic.agent.initialize()
newrelic.agent.register_application(timeout=20)

from flask import Flask, request

from ctxcarry import carry_context

app = Flask("shop")
answered = threading.Event()
tasks = []


@app.route("/")
def view():
    assert newrelic.agent.current_transaction()

    def without():
        assert answered.wait(20)
        print(newrelic.agent.current_transaction())

    def work():
        with newrelic.agent.BackgroundTask(newrelic.agent.application(), "report"):
            print(newrelic.agent.current_transaction().name, "at", request.path)

    tasks.append(pool.submit(carry_context(without)))
    tasks.append(pool.submit(carry_context(work)))
    return ""


with ThreadPoolExecutor(1) as pool:
    app.test_client().get("/")
    answered.set()
    for task in tasks:
        task.result(20)
"""


def test_new_relic_records_a_task_after_the_response_as_a_background_task(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("NEW_RELIC_DEVELOPER_MODE", "true")  # Without its service.
    monkeypatch.setenv("NEW_RELIC_LICENSE_KEY", "0" * 40)
    monkeypatch.setenv("NEW_RELIC_APP_NAME", "shop")
    monkeypatch.setenv("NEW_RELIC_LOG", str(tmp_path / "log"))
    done = subprocess.run(
        [sys.executable, "-c", NEW_RELIC],
        check=True,
        cwd=EXAMPLES.parent,
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    assert done.stdout == "None\nreport at /\n"


class XRay(NamedTuple):
    recorder: Any
    receive: Callable[[], Any]


@pytest.fixture
def x_ray(app: Flask, monkeypatch: pytest.MonkeyPatch) -> Generator[XRay]:
    """X-Ray for the app, and what its daemon receives."""
    recorder = load("aws_xray_sdk.core").xray_recorder
    rendering = load("flask.templating")
    monkeypatch.setattr(rendering, "_render", rendering._render)  # It is replaced.
    daemon = socket.socket(type=socket.SOCK_DGRAM)
    daemon.settimeout(TIMEOUT)
    daemon.bind(("127.0.0.1", 0))
    # Nothing else closes the socket of an emitter, which warns.
    recorder.emitter._socket.close()
    recorder.emitter = load("aws_xray_sdk.core.emitters.udp_emitter").UDPEmitter()
    recorder.configure(
        service="shop",
        sampling=False,
        daemon_address=f"127.0.0.1:{daemon.getsockname()[1]}",
        context_missing="IGNORE_ERROR",
    )
    load("aws_xray_sdk.ext.flask.middleware").XRayMiddleware(app, recorder)

    def receive() -> Any:
        _, _, segment = daemon.recv(65536).decode().partition("\n")
        return json.loads(segment)

    with daemon:
        yield XRay(recorder, receive)
    recorder.clear_trace_entities()
    recorder.emitter._socket.close()


def test_aws_x_ray_has_a_segment_in_the_task_if_the_task_starts_one(
    app: Flask, late: Late, x_ray: XRay
) -> None:
    def build_report() -> str:
        x_ray.recorder.current_segment().put_annotation("path", request.path)
        return "built"

    names = run_snippet(
        "A segment of X-Ray",
        carry_context=carry_context,
        build_report=build_report,
        executor=late,
    )

    @app.route("/")
    def view() -> str:
        late.submit(carry_context(x_ray.recorder.get_trace_entity))
        names["start_report"]()
        return ""

    app.test_client().get("/")
    of_the_view = x_ray.receive()
    assert late.result() is None
    assert late.result() == "built"
    of_the_task = x_ray.receive()
    assert (of_the_view["name"], of_the_task["name"]) == ("shop", "report")
    assert of_the_task["trace_id"] == of_the_view["trace_id"]
    assert of_the_task["parent_id"] == of_the_view["id"]
    assert of_the_task["annotations"] == {"path": "/"}


def test_aws_x_ray_ends_the_segment_of_the_view_with_a_task_that_shares_it(
    app: Flask, pool: ThreadPoolExecutor, x_ray: XRay
) -> None:
    @app.route("/")
    def view() -> list[bool]:
        segment = x_ray.recorder.current_segment()
        share = carry_context(x_ray.recorder.set_trace_entity)
        before = segment.in_progress
        pool.submit(share, segment).result(TIMEOUT)
        after = segment.in_progress
        x_ray.recorder.clear_trace_entities()
        x_ray.recorder.begin_segment("for the functions that run after the view")
        return [before, after]

    assert app.test_client().get("/").get_json() == [True, False]


@pytest.mark.parametrize("recipe", [False, True])
def test_prometheus_flask_exporter_counts_a_failed_task_unless_it_is_not_tracked(
    app: Flask, pool: ThreadPoolExecutor, recipe: bool
) -> None:
    exporter, client = load("prometheus_flask_exporter"), load("prometheus_client")
    exporter.PrometheusMetrics(app, registry=client.CollectorRegistry())

    @app.route("/")
    def view() -> str:
        @carry_context
        def work() -> None:
            task_request: Any = request
            if recipe:
                task_request.prom_do_not_track = True
            raise LookupError("tea")

        error = pool.submit(work).exception(TIMEOUT)
        return type(error).__name__

    assert app.test_client().get("/").text == "LookupError"
    metrics = app.test_client().get("/metrics").text
    counted = re.findall(
        r'^flask_http_request_total{.*status="(\d+)"} 1', metrics, re.MULTILINE
    )
    assert sorted(counted) == (["200"] if recipe else ["200", "500"])


def test_pyinstrument_profiles_a_task_without_its_support_for_async(
    app: Flask, pool: ThreadPoolExecutor
) -> None:
    @app.before_request
    def start() -> None:
        g.profiler = pyinstrument.Profiler()
        g.profiler.start()

    @app.after_request
    def stop(response: Response) -> Response:
        g.profiler.stop()
        return response

    @app.route("/")
    def view() -> list[Any]:
        @carry_context
        def refused() -> None:
            with pyinstrument.Profiler():
                pass

        @carry_context
        def work() -> bool:
            with pyinstrument.Profiler(async_mode="disabled") as profiler:
                pass
            return profiler.last_session is not None

        error = pool.submit(refused).exception(TIMEOUT)
        return [str(error), pool.submit(work).result(TIMEOUT)]

    message, profiled = app.test_client().get("/").get_json()
    assert "There is already a profiler running" in message
    assert profiled


# Async code, queues and schedulers


def test_asgiref_runs_sync_code_of_a_task_under_wsgi_to_asgi_in_another_thread(
    app: Flask, late: Late
) -> None:
    testing, wsgi = load("asgiref.testing"), load("asgiref.wsgi")

    def work() -> str:
        return request.path

    async def sensitive() -> str:
        return await sync_to_async(work)()

    async def insensitive() -> str:
        return await sync_to_async(work, thread_sensitive=False)()

    async def in_a_thread() -> str:
        return await asyncio.to_thread(work)

    @app.route("/")
    def view() -> str:
        for task in (sensitive, insensitive, in_a_thread):
            run = carry_context(asyncio.run)

            def start(run: Any = run, task: Any = task) -> str:
                return str(run(task()))

            late.submit(start)
        return "answered"

    async def serve() -> None:
        scope: dict[str, Any] = {
            "type": "http",
            "http_version": "1.1",
            "method": "GET",
            "path": "/",
            "query_string": b"",
            "headers": [],
        }
        client = testing.ApplicationCommunicator(wsgi.WsgiToAsgi(app), scope)
        await client.send_input({"type": "http.request", "body": b""})
        assert (await client.receive_output(TIMEOUT))["type"] == "http.response.start"
        body = await client.receive_output(TIMEOUT)
        assert body["type"] == "http.response.body" and body["body"] == b"answered"
        await client.wait()
        with pytest.raises(RuntimeError, match="would deadlock"):
            await asyncio.to_thread(late.result)
        assert await asyncio.to_thread(late.result) == "/"
        assert await asyncio.to_thread(late.result) == "/"

    asyncio.run(serve())


def price(item: str) -> str:
    """A function of a module, which queues and job stores find by its name."""
    return f"{item}: 4"


def test_apscheduler_keeps_a_carried_function_in_memory_and_refuses_to_store_it(
    app: Flask, tmp_path: Path
) -> None:
    schedulers = load("apscheduler.schedulers.background")
    stores = load("apscheduler.jobstores.sqlalchemy")
    scheduler = schedulers.BackgroundScheduler(timezone="UTC")
    url = f"sqlite:///{tmp_path / 'jobs.sqlite'}"
    scheduler.add_jobstore(stores.SQLAlchemyJobStore(url), "stored")
    scheduler.start()
    ran = threading.Event()
    seen: list[str] = []

    def work() -> None:
        seen.append(request.path)
        ran.set()

    @app.route("/")
    def view() -> str:
        scheduler.add_job(carry_context(work))
        assert ran.wait(TIMEOUT)
        with pytest.raises(ValueError, match="could not be determined"):
            scheduler.add_job(carry_context(price), args=["tea"], jobstore="stored")
        tomorrow = {"trigger": "interval", "days": 1}
        job = scheduler.add_job(price, args=["tea"], jobstore="stored", **tomorrow)
        return str(job.func_ref)

    try:
        assert app.test_client().get("/").text == f"{__name__}:price"
    finally:
        scheduler.shutdown()
    assert seen == ["/"]


def test_rq_fails_the_job_of_a_carried_function_and_runs_that_of_a_module(
    app: Flask,
) -> None:
    connection, rq = fakeredis.FakeStrictRedis(), load("rq")
    queue = rq.Queue(connection=connection)

    @app.route("/")
    def view() -> list[str]:
        jobs = [queue.enqueue(carry_context(price), "tea"), queue.enqueue(price, "tea")]
        return [job.id for job in jobs]

    ids = app.test_client().get("/").get_json()
    worker = rq.SimpleWorker([queue], connection=connection)
    worker.work(burst=True, logging_level="CRITICAL")
    carried, bare = (rq.job.Job.fetch(id, connection=connection) for id in ids)
    assert carried.is_failed and carried.return_value() is None
    assert bare.return_value() == "tea: 4"


# The guide


ROWS = [
    re.split(r" *\| *", line)[1:3]
    for line in GUIDE.splitlines()
    if line.startswith("| ") and not line.startswith("| extension")
]


def without_layout(code: str) -> str:
    """Return code as it is whatever its lines are broken into."""
    return re.sub(r"\s|,(?=\s*\))", "", code)


@pytest.mark.parametrize(("extension", "text"), ROWS, ids=[row[0] for row in ROWS])
def test_each_row_of_the_guide_has_a_test_that_runs_its_code(
    extension: str, text: str
) -> None:
    source = Path(__file__).read_text()
    name = re.sub(r"\W+", "_", extension.lower()).strip("_")
    assert re.search(rf"^def test_{name}_", source, re.MULTILINE)
    source += "".join(re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL))
    for code in re.findall(r"`([^`]*\w[(=][^`]*|[^`]* = [^`]*)`", text):
        statement = code.removeprefix("with ").removesuffix(":").removesuffix("()")
        assert without_layout(statement) in without_layout(source)
