"""The tables of examples/extensions.md: small apps, real threads, real packages."""

import asyncio
import contextlib
import contextvars
import copy
import importlib
import json
import queue
import re
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import dishka
import peewee
import pyinstrument
import pytest
import sentry_sdk
import wireup
import wireup.integration.flask
from asgiref.sync import sync_to_async
from cachelib import FileSystemCache
from dishka.integrations.flask import setup_dishka
from flask import (
    Flask,
    Request,
    copy_current_request_context,
    g,
    got_request_exception,
    request,
    session,
)
from helpers import EXAMPLES, TIMEOUT, Late
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from sentry_sdk.integrations.flask import FlaskIntegration
from sqlalchemy import create_engine, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import scoped_session, sessionmaker
from structlog.contextvars import bind_contextvars, get_contextvars

from ctxcarry import carry_context

GUIDE = (EXAMPLES / "extensions.md").read_text("utf-8")
InTask = Callable[..., Any]

with_and_without = pytest.mark.parametrize(
    "recipe", [False, True], ids=["without-the-recipe", "with-the-recipe"]
)


@pytest.fixture
def in_task() -> Iterator[InTask]:
    """Carries a function, calls it in a thread, and returns or raises what it does.

    It is the same thread for all tasks of a test.
    """
    with ThreadPoolExecutor(1) as one_thread:

        def run(func: Callable[..., Any], *args: Any) -> Any:
            return one_thread.submit(carry_context(func), *args).result(TIMEOUT)

        yield run


@pytest.fixture(autouse=True)
def warned(app: Flask, caplog: pytest.LogCaptureFixture) -> Iterator[set[str]]:
    """The warnings of testing mode that a test expects.

    Each is a name of g that a task has missed, or "session" if a task has changed that.
    A test that expects none sees that its extension causes no false alarm.
    """
    app.testing = True
    app.config["SQLALCHEMY_RECORD_QUERIES"] = True
    expected: set[str] = set()
    yield expected
    records = caplog.get_records("call")
    messages = [each.getMessage() for each in records if each.name == app.name]
    pattern = r"(?:asked for g\.|changed the )(\w+)"
    found = [re.search(pattern, message) for message in messages]
    assert {match and match[1] for match in found} == expected, messages


def load(name: str) -> Any:
    """Import an extension that has no types."""
    return importlib.import_module(name)


def run_snippet(heading: str, **names: Any) -> dict[str, Any]:
    """Run the Python code under a heading of the guide, and return what it defines."""
    _, _, section = GUIDE.partition(f"# {heading}\n")
    code = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert code
    exec(code[1], names)
    return names


def make_user(app: Flask, db: Any, *mixins: type) -> Any:
    """Make a SQLAlchemy model of users, and store the first one, whose name is ada."""
    columns = {
        "id": db.Column(db.Integer, primary_key=True),
        "name": db.Column(db.String, nullable=False),
    }
    User: Any = type("User", (db.Model, *mixins), columns)
    with app.app_context():
        db.create_all()
        db.session.add(User(name="ada"))
        db.session.commit()
    return User


# Databases


@pytest.mark.parametrize("fails", [False, True])
def test_flask_sqlalchemy_gives_the_task_a_session_and_removes_it(
    app: Flask, pool: ThreadPoolExecutor, db: Any, fails: bool
) -> None:
    User = make_user(app, db)

    @app.route("/")
    def view() -> dict[str, int]:
        viewed = db.session()

        @carry_context
        def add(id: int) -> None:
            assert db.session() is not viewed
            db.session.add(User(id=id, name="grace"))
            if fails:
                db.session.add(User(id=id))
            db.session.commit()

        tasks = [pool.submit(add, id) for id in (2, 3, 4)]
        errors = [type(task.exception(TIMEOUT)) for task in tasks]
        assert errors == [IntegrityError if fails else type(None)] * 3
        checked_out = db.engine.pool.checkedout()
        return {"checked out": checked_out, "rows": db.session.query(User).count()}

    expected = {"checked out": 0, "rows": 1 if fails else 4}
    assert app.test_client().get("/").get_json() == expected


def test_flask_sqlalchemy_shows_a_task_what_is_committed(
    app: Flask, in_task: InTask, db: Any
) -> None:
    User = make_user(app, db)

    def name(id: int) -> str | None:
        user = db.session.get(User, id)
        return None if user is None else str(user.name)

    with app.test_request_context():
        user = User(name="grace")
        db.session.add(user)
        db.session.flush()
        assert in_task(name, user.id) is None
        db.session.commit()
        assert in_task(name, user.id) == "grace"


def test_flask_sqlalchemy_lists_the_tasks_own_queries(
    app: Flask, in_task: InTask, db: Any
) -> None:
    get_recorded_queries = load("flask_sqlalchemy.record_queries").get_recorded_queries

    def run(query: str) -> list[str]:
        db.session.execute(text(query))
        return [recorded.statement for recorded in get_recorded_queries()]

    with app.test_request_context():
        run("select 1")
        assert in_task(run, "select 2") == ["select 2"]
        assert run("select 3") == ["select 1", "select 3"]


@pytest.fixture
def lite_db(app: Flask, tmp_path: Path) -> Iterator[Any]:
    url = f"sqlite:///{tmp_path / 'shop.sqlite'}"
    app.config["SQLALCHEMY_ENGINES"] = {"default": url}
    db = load("flask_sqlalchemy_lite").SQLAlchemy(app)
    yield db
    with app.app_context():
        db.engine.dispose()


def test_flask_sqlalchemy_lite_gives_the_task_a_session_and_closes_it(
    app: Flask, in_task: InTask, lite_db: Any
) -> None:
    def find_session() -> Any:
        lite_db.session.execute(text("select 1"))
        return lite_db.session

    with app.test_request_context():
        viewed = find_session()
        assert in_task(find_session) is not viewed
        assert lite_db.session is viewed and viewed.in_transaction()
        assert lite_db.engine.pool.checkedout() == 1


@with_and_without
def test_flask_sqlalchemy_lite_needs_a_thread_where_a_loop_is_running(
    app: Flask, lite_db: Any, recipe: bool
) -> None:
    async def work() -> str:
        return str(lite_db.session.scalar(text("select 1")))

    async def view() -> str:
        if recipe:
            return await asyncio.to_thread(carry_context(asyncio.run), work())
        with pytest.raises(RuntimeError, match="You cannot use AsyncToSync"):
            await carry_context(work)()
        return "refused"

    app.add_url_rule("/", view_func=view)
    assert app.test_client().get("/").text == ("1" if recipe else "refused")


@pytest.mark.parametrize("where", ["here", "in a thread"])
@pytest.mark.parametrize("scope", ["thread", "context"])
def test_scoped_session_of_the_view_is_removed_by_a_task_in_its_scope(
    app: Flask, in_task: InTask, tmp_path: Path, where: str, scope: str
) -> None:
    engine = create_engine(f"sqlite:///{tmp_path / 'shop.sqlite'}")
    pool: Any = engine.pool
    registry = scoped_session(sessionmaker(engine))
    if scope == "context":
        registry = scoped_session(
            sessionmaker(engine), scopefunc=lambda: id(g._get_current_object())
        )

    def find_session() -> Any:
        if "db" not in g:
            g.db = registry
        g.db.execute(text("select 1"))
        return g.db()

    @app.teardown_appcontext
    def remove(error: BaseException | None) -> None:
        if "db" in g:
            g.pop("db")
            registry.remove()

    with app.test_request_context():
        viewed = find_session()
        if where == "here":
            found = carry_context(find_session)()
        else:
            found = in_task(find_session)
        is_separate = scope == "context" or where == "in a thread"
        assert (found is not viewed) is is_separate
        assert (registry() is viewed) is is_separate
        # The session of the task has given its connection back.
        assert pool.checkedout() == (1 if is_separate else 0)
    engine.dispose()


@pytest.mark.parametrize("where", ["here", "in a thread"])
def test_peewee_opens_and_closes_a_connection_for_each_task_in_another_thread(
    app: Flask, in_task: InTask, tmp_path: Path, warned: set[str], where: str
) -> None:
    database: Any = peewee.SqliteDatabase(str(tmp_path / "shop"), autoconnect=False)

    def get_db() -> Any:
        if "db" not in g:
            database.connect()
            g.db = database
        return g.db

    @app.teardown_appcontext
    def close(error: BaseException | None) -> None:
        if "db" in g:
            g.pop("db").close()

    def select() -> tuple[int]:
        row: tuple[int] = get_db().execute_sql("select 1").fetchone()
        return row

    with app.test_request_context():
        get_db()
        if where == "here":
            warned.add("db")
            with pytest.raises(peewee.OperationalError, match="already opened"):
                carry_context(select)()
        # The second one finds the connection of the first one closed.
        assert [in_task(select), in_task(select)] == [(1,), (1,)]
        assert not database.is_closed()


@with_and_without
def test_pony_ends_the_session_of_the_task_in_its_thread(
    app: Flask, in_task: InTask, tmp_path: Path, recipe: bool
) -> None:
    orm = load("pony.orm")
    database = orm.Database()

    class Item(database.Entity):  # type: ignore[misc,name-defined]
        name = orm.Required(str)

    database.bind("sqlite", str(tmp_path / "shop.sqlite"), create_db=True)
    database.generate_mapping(create_tables=True)
    load("pony.flask").Pony(app)

    def store(name: str) -> int:
        task_request: Any = request
        if recipe:
            task_request.pony_session = None
        with orm.db_session:
            Item(name=name)
        with orm.db_session:
            return int(Item.select().count())

    @app.route("/")
    def view() -> str:
        assert in_task(store, "tea") == 1
        if recipe:
            return str(in_task(store, "milk"))
        # A teardown function has ended in the thread what had begun in the view's.
        with pytest.raises(AssertionError):
            in_task(store, "milk")
        return "failed"

    assert app.test_client().get("/").text == ("2" if recipe else "failed")
    database.disconnect()


@with_and_without
def test_an_orm_object_in_g_is_loaded_by_an_accessor_and_stored_by_the_task(
    app: Flask, in_task: InTask, db: Any, warned: set[str], recipe: bool
) -> None:
    Account = make_user(app, db)
    snippet = run_snippet("An ORM object in `g`", db=db, Account=Account)
    get_account = snippet["get_account"]

    def rename() -> Any:
        account = get_account() if recipe else g.account
        account.name = "grace"
        db.session.commit()
        return account

    with app.test_request_context():
        session["account_id"] = 1
        viewed = get_account()
        if recipe:
            assert in_task(rename) is not viewed
        else:
            warned.add("account")
            with pytest.raises(AttributeError, match=r"g\.account stays with the view"):
                in_task(rename)
        db.session.expire_all()
        assert viewed.name == ("grace" if recipe else "ada")


# Users


@pytest.mark.parametrize("how", ["session", "remember cookie", "request loader"])
def test_flask_login_loads_the_user_again_in_the_session_of_the_task(
    app: Flask, late: Late, db: Any, how: str
) -> None:
    flask_login = load("flask_login")
    User = make_user(app, db, flask_login.UserMixin)
    login = flask_login.LoginManager(app)

    def load_user(id: str) -> Any:
        return db.session.get(User, int(id))

    def load_by_token(request: Request) -> Any:
        return db.session.get(User, 1) if "Token" in request.headers else None

    login.user_loader(load_user)
    login.request_loader(load_by_token)

    @app.route("/login")
    def log_in() -> str:
        flask_login.login_user(db.session.get(User, 1), remember=True)
        return ""

    @app.route("/")
    def view() -> str:
        viewed = flask_login.current_user._get_current_object()

        @carry_context
        def rename() -> bool:
            own = flask_login.current_user._get_current_object() is not viewed
            flask_login.current_user.name = "grace"
            db.session.commit()
            return own

        late.submit(rename)
        return str(viewed.name)

    client = app.test_client()
    if how != "request loader":
        client.get("/login")
    if how == "remember cookie":
        client.delete_cookie("session")
    headers = {"Token": "t1"} if how == "request loader" else {}
    assert client.get("/", headers=headers).text == "ada"
    assert late.result()
    with app.app_context():
        assert db.session.get(User, 1).name == "grace"


@pytest.mark.parametrize("how", ["session", "token", "basic"])
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
        token = users.create_user(**log_in).get_auth_token()
        db.session.commit()

    def view() -> str:
        @carry_context
        def rename(id: int) -> bool:
            is_found: bool = security.current_user.is_authenticated
            user = security.current_user if is_found else db.session.get(User, id)
            user.email = "grace@example.com"
            db.session.commit()
            return is_found

        late.submit(rename, security.current_user.id)
        return ""

    required = security.auth_required("session", "token", "basic")
    app.add_url_rule("/", view_func=required(view))
    client = app.test_client()
    send: dict[str, Any] = {
        "session": {},
        "token": {"headers": {"Authentication-Token": token}},
        "basic": {"auth": tuple(log_in.values())},
    }
    if how == "session":
        client.post("/login", data=log_in)
    assert client.get("/", **send[how]).status_code == 200
    assert late.result() is (how != "basic")
    with app.app_context():
        assert db.session.scalar(db.select(User.email)) == "grace@example.com"


@with_and_without
def test_flask_jwt_extended_knows_the_claims_and_loads_an_orm_user_again(
    app: Flask, in_task: InTask, db: Any, warned: set[str], recipe: bool
) -> None:
    jwt = load("flask_jwt_extended")
    User = make_user(app, db)

    def find(header: dict[str, Any], claims: dict[str, Any]) -> Any:
        return db.session.get(User, int(claims["sub"]))

    def claims() -> list[Any]:
        return [jwt.get_jwt_identity(), jwt.get_jwt()["shop"]]

    def user() -> str:
        if recipe:
            jwt.verify_jwt_in_request()
        return str(jwt.current_user.name)

    jwt.JWTManager(app).user_lookup_loader(find)
    with app.app_context():
        token = jwt.create_access_token("1", additional_claims={"shop": "acme"})
    with app.test_request_context(headers={"Authorization": f"Bearer {token}"}):
        jwt.verify_jwt_in_request()
        assert jwt.current_user.name == "ada"
        assert in_task(claims) == ["1", "acme"]
        if recipe:
            assert in_task(user) == "ada"
        else:
            warned.add("_jwt_extended_jwt_user")
            with pytest.raises(RuntimeError, match="must provide a `@jwt.user_lookup"):
                in_task(user)


@pytest.mark.parametrize("is_orm_object", [False, True])
def test_flask_httpauth_knows_the_user_in_a_task_unless_it_is_an_orm_object(
    app: Flask, in_task: InTask, db: Any, warned: set[str], is_orm_object: bool
) -> None:
    auth = load("flask_httpauth").HTTPBasicAuth()
    User = make_user(app, db)

    def verify(name: str, password: str) -> Any:
        return User(name=name) if is_orm_object else name

    def find() -> Any:
        return in_task(auth.current_user)

    auth.verify_password(verify)
    if is_orm_object:
        warned.add("flask_httpauth_user")
    with app.test_request_context(auth=("ada", "a password")):
        found = auth.login_required(find)()
        assert found == (None if is_orm_object else "ada")


@with_and_without
def test_flask_dance_asks_in_the_name_of_the_user_with_a_session_of_the_task(
    app: Flask, late: Late, monkeypatch: pytest.MonkeyPatch, recipe: bool
) -> None:
    contrib, adapters = load("flask_dance.contrib.github"), load("requests.adapters")

    def answer(self: Any, request: Any, **options: Any) -> Any:
        """Stands for GitHub, where the token of each user is their name."""
        assert request.url == "https://api.github.com/user"
        response = adapters.Response()
        token = request.headers["Authorization"].removeprefix("Bearer ")
        response._content = json.dumps({"login": token}).encode()
        return response

    monkeypatch.setattr(adapters.HTTPAdapter, "send", answer)
    blueprint = contrib.make_github_blueprint("id", "secret")
    app.register_blueprint(blueprint)
    snippet = run_snippet("A session of Flask-Dance", blueprint=blueprint)

    def share_a_session() -> str:
        g.flask_dance_github = blueprint.session
        return str(contrib.github.access_token)

    @app.route("/<user>")
    def view(user: str) -> str:
        session["github_oauth_token"] = {"access_token": user, "token_type": "bearer"}
        assert contrib.github.authorized
        if user == "eve":  # The task of ada's request runs during eve's.
            return str(late.result())
        late.submit(carry_context(snippet["get_login"] if recipe else share_a_session))
        return ""

    app.test_client().get("/ada")
    assert app.test_client().get("/eve").text == ("ada" if recipe else "eve")


# Sessions, forms and languages


def test_flask_session_is_carried_and_its_store_left_alone(
    app: Flask, late: Late, warned: set[str], tmp_path: Path
) -> None:
    read: list[str] = []

    class Store(FileSystemCache):
        def get(self, key: str) -> Any:
            read.append(key.partition(":")[0])
            return super().get(key)

    app.config["SESSION_TYPE"] = "cachelib"
    app.config["SESSION_CACHELIB"] = Store(str(tmp_path))
    load("flask_session").Session(app)
    warned.add("session")

    @app.route("/login")
    def log_in() -> str:
        session.update(user="ada", cart=["tea"])
        return ""

    def look() -> list[Any]:
        return [vars(session)["sid"], session["user"], [*session["cart"]]]

    def change() -> list[Any]:
        seen = look()
        session["user"] = "eve"
        session["cart"].append("milk")
        return seen

    @app.route("/")
    def view() -> list[Any]:
        late.submit(carry_context(change))
        return look()

    client = app.test_client()
    client.get("/login")
    read.clear()
    seen = client.get("/").get_json()
    assert seen[1:] == ["ada", ["tea"]]
    assert late.result() == seen
    assert read.count("session") == 1
    assert client.get("/").get_json() == seen


@pytest.mark.parametrize("where", ["task", "handler", "built-in"])
def test_flask_socketio_keeps_what_the_handler_or_the_built_in_writes_to_its_session(
    app: Flask, warned: set[str], where: str
) -> None:
    flask_socketio = load("flask_socketio")
    socketio = flask_socketio.SocketIO(app, async_mode="threading")
    carry = copy_current_request_context if where == "built-in" else carry_context

    def order(item: str) -> None:
        def work() -> None:
            if where != "handler":
                session["item"] = item
            flask_socketio.emit("ordered", item)

        if where == "handler":
            session["item"] = item
        socketio.start_background_task(carry(work)).join(TIMEOUT)

    socketio.on_event("order", order)
    socketio.on_event("look", lambda: session.get("item", "nothing"))
    client = socketio.test_client(app)
    client.emit("order", "tea")
    (received,) = client.get_received()
    assert (received["name"], received["args"]) == ("ordered", ["tea"])
    if where == "task":
        warned.add("session")
    stored = client.emit("look", callback=True)
    assert stored == ("nothing" if where == "task" else "tea")


@with_and_without
def test_flask_wtf_tokens_come_from_the_view_and_forms_validate_in_both(
    app: Flask, in_task: InTask, warned: set[str], recipe: bool
) -> None:
    csrf, wtf, wtforms = load("flask_wtf.csrf"), load("flask_wtf"), load("wtforms")

    class Order(wtf.FlaskForm):  # type: ignore[misc,name-defined]
        item = wtforms.StringField(validators=[wtforms.validators.DataRequired()])

    def validate() -> list[Any]:
        form: Any = Order()
        return [form.validate_on_submit(), form.item.data]

    @app.route("/token")
    def token() -> Any:
        if recipe:
            csrf.generate_csrf()
        return in_task(csrf.generate_csrf)

    @app.route("/order", methods=["POST"])
    def order() -> list[Any]:
        return [validate(), in_task(validate)]

    client = app.test_client()
    data = {"item": "tea", "csrf_token": client.get("/token").text}
    seen = client.post("/order", data=data).get_json()
    assert seen == [[recipe, "tea"], [recipe, "tea"]]
    if not recipe:  # The token of the task is in no session that was sent.
        warned.add("session")


def test_flask_babel_forces_a_locale_for_the_task_alone(
    app: Flask, in_task: InTask
) -> None:
    babel = load("flask_babel")

    def best_match() -> str | None:
        return request.accept_languages.best_match(["en", "fr"])

    babel.Babel(app, locale_selector=best_match)
    view_looked, task_forced = threading.Event(), threading.Event()

    def number() -> str:
        return str(babel.format_decimal(1234.5))

    def force() -> str:
        with babel.force_locale("de"):
            task_forced.set()
            assert view_looked.wait(TIMEOUT)
            return number()

    french, german = "1\u202f234,5", "1.234,5"
    with app.test_request_context(headers={"Accept-Language": "fr"}):
        assert number() == in_task(number) == french
        with ThreadPoolExecutor(1) as pool:
            task = pool.submit(carry_context(force))
            assert task_forced.wait(TIMEOUT)
            assert number() == french
            view_looked.set()
            assert task.result(TIMEOUT) == german
        with babel.force_locale("de"):
            assert [number(), in_task(number)] == [german, french]


# Dependency injection


class Connection:
    """Stands for what a container opens and closes."""

    def __init__(self) -> None:
        self.closed = 0

    def count(self, table: str) -> int:
        return len(table)


class Container(NamedTuple):
    """How an app gets a connection from the container of a library."""

    in_the_view: Callable[[], Connection]
    in_a_task: Callable[[], object]


Make = Callable[[Flask, list[Connection]], Container]


def connector(opened: list[Connection]) -> Callable[[], Iterator[Connection]]:
    """Make a factory of connections that are closed with their container."""

    def connect() -> Iterator[Connection]:
        connection = Connection()
        opened.append(connection)
        yield connection
        connection.closed += 1

    return connect


def find_path(request: Request) -> str:
    return request.path


def dishka_container(app: Flask, opened: list[Connection]) -> Container:
    provider = dishka.Provider(scope=dishka.Scope.REQUEST)
    provider.provide(connector(opened))
    provider.provide(find_path)
    provider.from_context(provides=Request, scope=dishka.Scope.REQUEST)
    container = dishka.make_container(provider)
    setup_dishka(container, app)
    names = run_snippet(
        "Dependency injection", container=container, Connection=Connection
    )

    def task() -> None:
        assert names["task"]() == len("orders")
        with container({Request: request}) as g.dishka_container:
            assert g.dishka_container.get(str) == "/"

    return Container(lambda: g.dishka_container.get(Connection), task)


def svcs_container(app: Flask, opened: list[Connection]) -> Container:
    svcs: Any = load("svcs")
    svcs.flask.init_app(app)
    svcs.flask.register_factory(app, Connection, connector(opened))

    def get() -> Connection:
        connection: Connection = svcs.flask.get(Connection)
        return connection

    return Container(get, get)


def wireup_container(app: Flask, opened: list[Connection]) -> Container:
    connect = wireup.injectable(lifetime="scoped")(connector(opened))
    container = wireup.create_sync_container(injectables=[connect])
    wireup.integration.flask.setup(container, app)

    def get() -> Connection:
        return wireup.integration.flask.get_request_container().get(Connection)

    def task() -> Connection:
        with container.enter_scope() as g.wireup_container:
            return get()

    return Container(get, task)


@pytest.mark.parametrize("make", [dishka_container, svcs_container, wireup_container])
def test_a_task_has_its_own_container_which_is_closed_when_the_task_ends(
    app: Flask, in_task: InTask, make: Make
) -> None:
    opened: list[Connection] = []
    container = make(app, opened)

    @app.route("/")
    def view() -> list[Any]:
        viewed = container.in_the_view()
        in_task(container.in_a_task)
        return [opened[0] is viewed, [each.closed for each in opened]]

    assert app.test_client().get("/").get_json() == [True, [0, 1]]
    assert [each.closed for each in opened] == [1, 1]


@pytest.mark.parametrize("make", [dishka_container, wireup_container])
def test_a_container_in_g_stays_with_the_view(
    app: Flask, in_task: InTask, warned: set[str], make: Make
) -> None:
    container = make(app, [])
    warned.add(make.__name__)  # It is the library's name in g, too.

    @app.route("/")
    def view() -> str:
        with pytest.raises(AttributeError, match="stays with the view"):
            in_task(container.in_the_view)
        return ""

    app.test_client().get("/")


@with_and_without
def test_flask_injector_shares_the_objects_of_a_request_unless_the_task_prepares_a_scope(
    app: Flask, in_task: InTask, recipe: bool
) -> None:
    flask_injector = load("flask_injector")
    RequestScope = flask_injector.RequestScope

    def find_in_task() -> Any:
        if recipe:
            injector.get(RequestScope).prepare()
        return injector.get(Connection)

    @app.route("/")
    def view() -> list[bool]:
        viewed = injector.get(Connection)
        own = in_task(find_in_task) is not viewed
        return [own, injector.get(Connection) is viewed]

    def configure(binder: Any) -> None:
        binder.bind(Connection, to=Connection, scope=flask_injector.request)

    injector = flask_injector.FlaskInjector(app, modules=[configure]).injector
    assert app.test_client().get("/").get_json() == [recipe, True]


# Errors, traces and metrics


def test_an_error_in_a_task_goes_to_its_caller_and_not_to_the_signal_of_requests(
    app: Flask, in_task: InTask
) -> None:
    received: list[Any] = []

    def receive(sender: Flask, exception: Exception) -> None:
        received.append(exception)

    got_request_exception.connect(receive, app)
    with app.test_request_context(), pytest.raises(ZeroDivisionError):
        in_task(divmod, 1, 0)
    assert received == []


class Report(NamedTuple):
    """What an error tracker would send for one error."""

    tag: str
    request: Any


class Tracker(NamedTuple):
    reports: list[Report]
    report: Callable[[Exception], object]
    tag: Callable[[str], object] = id
    separate: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext


def sentry_tracker(app: Flask) -> Tracker:
    reports: list[Report] = []

    def keep(event: Any, hint: Any) -> None:
        reports.append(Report(event["tags"]["item"], None))

    def tag(item: str) -> None:
        sentry_sdk.set_tag("item", item)

    sentry_sdk.init(
        "http://key@127.0.0.1/1",
        before_send=keep,  # It returns None, so nothing is sent.
        auto_session_tracking=False,
        default_integrations=False,
        integrations=[FlaskIntegration()],
        send_client_reports=False,
    )
    separate = sentry_sdk.isolation_scope
    return Tracker(reports, sentry_sdk.capture_exception, tag, separate)


def bugsnag_tracker(app: Flask) -> Tracker:
    bugsnag, delivery = load("bugsnag"), load("bugsnag.delivery")
    RequestConfiguration = load("bugsnag.configuration").RequestConfiguration
    reports: list[Report] = []

    class Kept(delivery.Delivery):  # type: ignore[misc,name-defined]
        def deliver(self, config: Any, payload: Any, options: Any = None) -> None:
            (event,) = json.loads(payload)["events"]
            reports.append(Report(event["context"], event["metaData"].get("request")))

    def tag(item: str) -> None:
        bugsnag.configure_request(context=item)

    @contextlib.contextmanager
    def separate() -> Generator[None]:
        RequestConfiguration.set_instance(
            copy.deepcopy(RequestConfiguration.get_instance())
        )
        yield

    bugsnag.configure(
        api_key="0" * 32,
        asynchronous=False,
        auto_capture_sessions=False,
        auto_notify=False,
        delivery=Kept(),
    )
    load("bugsnag.flask").handle_exceptions(app)
    return Tracker(reports, bugsnag.notify, tag, separate)


def rollbar_tracker(app: Flask) -> Tracker:
    rollbar = load("rollbar")
    reports: list[Report] = []

    def keep(payload: dict[str, Any], **extra: Any) -> bool:
        reports.append(Report("", payload["data"].get("request")))
        return False  # Nothing is sent.

    def report(error: Exception) -> None:
        try:
            raise error
        except LookupError:
            rollbar.report_exc_info(request=request)

    start = load("rollbar.contrib.flask").init
    start(app, "token", handler="blocking", allow_logging_basic_config=False)
    rollbar.events.reset()
    rollbar.events.add_payload_handler(keep)
    return Tracker(reports, report)


@pytest.fixture
def tracker(app: Flask, request: pytest.FixtureRequest) -> Iterator[Tracker]:
    yield request.param(app)
    sentry_sdk.get_global_scope().set_client(None)


@pytest.mark.parametrize("tracker", [sentry_tracker, bugsnag_tracker], indirect=True)
@with_and_without
def test_the_tags_of_tasks_mix_in_an_error_tracker_unless_each_has_its_own(
    app: Flask, pool: ThreadPoolExecutor, tracker: Tracker, recipe: bool
) -> None:
    both = threading.Barrier(2)

    @app.route("/")
    def view() -> str:
        tracker.tag("view")

        @carry_context
        def work(item: str) -> None:
            with tracker.separate() if recipe else contextlib.nullcontext():
                tracker.tag(item)
                both.wait(TIMEOUT)
                tracker.report(LookupError())

        list(pool.map(work, ["tea", "milk"]))
        tracker.report(LookupError())
        return ""

    contextvars.Context().run(app.test_client().get, "/")
    tags = [report.tag for report in tracker.reports]
    if recipe:
        assert sorted(tags) == ["milk", "tea", "view"]
    else:
        assert len(tags) == 3 and len(set(tags)) == 1


# Rollbar imports WebOb, which imports cgi.
@pytest.mark.filterwarnings("ignore:'cgi' is deprecated:DeprecationWarning")
@pytest.mark.parametrize("tracker", [bugsnag_tracker, rollbar_tracker], indirect=True)
@with_and_without
def test_an_error_tracker_reports_the_request_if_the_view_has_read_its_body(
    app: Flask, in_task: InTask, tracker: Tracker, recipe: bool
) -> None:
    @app.route("/", methods=["POST"])
    def view() -> str:
        if recipe:
            request.get_data()
        in_task(tracker.report, LookupError())
        return ""

    send = app.test_client().post
    contextvars.Context().run(send, "/", data={"item": "tea"})
    (report,) = tracker.reports
    assert bool(report.request) is recipe


def test_structlog_binds_for_the_task_what_the_view_had_bound(
    app: Flask, in_task: InTask
) -> None:
    def bind() -> dict[str, Any]:
        bind_contextvars(task="t1")
        return get_contextvars()

    @app.route("/")
    def view() -> list[Any]:
        bind_contextvars(request_id="r1")
        return [in_task(bind), get_contextvars()]

    seen = contextvars.Context().run(app.test_client().get, "/").get_json()
    assert seen == [{"request_id": "r1", "task": "t1"}, {"request_id": "r1"}]


def test_opentelemetry_makes_the_tasks_span_a_child_of_the_requests(
    app: Flask, late: Late, caplog: pytest.LogCaptureFixture
) -> None:
    instrumentation = load("opentelemetry.instrumentation.flask")
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    instrumentation.FlaskInstrumentor().instrument_app(app, tracer_provider=provider)

    @app.route("/")
    def view() -> str:
        @carry_context
        def work() -> None:
            with provider.get_tracer("shop").start_as_current_span("task"):
                pass

        late.submit(work)
        return ""

    app.test_client().get("/")
    late.result()
    viewed, task = exporter.get_finished_spans()
    assert (viewed.name, task.name) == ("GET /", "task")
    assert viewed.context is not None and task.parent is not None
    assert task.parent.span_id == viewed.context.span_id
    assert not [log for log in caplog.records if log.levelname != "DEBUG"]


@with_and_without
def test_prometheus_flask_exporter_counts_a_failed_task_unless_it_is_not_tracked(
    app: Flask, in_task: InTask, recipe: bool
) -> None:
    exporter, client = load("prometheus_flask_exporter"), load("prometheus_client")
    exporter.PrometheusMetrics(app, registry=client.CollectorRegistry())

    def fail() -> None:
        task_request: Any = request
        if recipe:
            task_request.prom_do_not_track = True
        raise LookupError

    @app.route("/")
    def view() -> str:
        with pytest.raises(LookupError):
            in_task(fail)
        return ""

    app.test_client().get("/")
    metrics = app.test_client().get("/metrics").text
    counted = re.findall(
        r'^flask_http_request_total{.*status="(\d+)"} 1', metrics, re.MULTILINE
    )
    assert sorted(counted) == (["200"] if recipe else ["200", "500"])


def test_pyinstrument_profiles_a_task_without_its_support_for_async(
    app: Flask, in_task: InTask
) -> None:
    def refused() -> None:
        with pyinstrument.Profiler():
            pass

    def work() -> Any:
        with pyinstrument.Profiler(async_mode="disabled") as profiler:
            pass
        return profiler.last_session

    with app.test_request_context(), pyinstrument.Profiler():
        with pytest.raises(RuntimeError, match="There is already a profiler running"):
            in_task(refused)
        assert in_task(work)


# Async code, queues and schedulers


def test_asgiref_runs_sync_code_of_a_task_under_wsgi_to_asgi_in_another_thread(
    app: Flask, late: Late
) -> None:
    testing, wsgi = load("asgiref.testing"), load("asgiref.wsgi")

    def work() -> str:
        return request.path

    def sensitive() -> str:
        return asyncio.run(sync_to_async(work)())

    def insensitive() -> str:
        return asyncio.run(sync_to_async(work, thread_sensitive=False)())

    def in_a_thread() -> str:
        return asyncio.run(asyncio.to_thread(work))

    @app.route("/")
    def view() -> str:
        for task in (sensitive, insensitive, in_a_thread):
            late.submit(carry_context(task))
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
        assert (await client.receive_output(TIMEOUT))["body"] == b"answered"
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
    stores = load("apscheduler.jobstores.sqlalchemy")
    scheduler = load("apscheduler.schedulers.background").BackgroundScheduler()
    url = f"sqlite:///{tmp_path / 'jobs.sqlite'}"
    scheduler.add_jobstore(stores.SQLAlchemyJobStore(url), "stored")
    scheduler.start()
    paths: queue.Queue[str] = queue.Queue()
    try:
        with app.test_request_context("/orders"):
            scheduler.add_job(carry_context(lambda: paths.put(request.path)))
            with pytest.raises(ValueError, match="could not be determined"):
                scheduler.add_job(carry_context(price), args=["tea"], jobstore="stored")
        assert paths.get(timeout=TIMEOUT) == "/orders"
        tomorrow = {"trigger": "interval", "days": 1}
        job = scheduler.add_job(price, args=["tea"], jobstore="stored", **tomorrow)
        assert job.func_ref == f"{__name__}:price"
    finally:
        scheduler.shutdown()


def test_rq_finds_the_function_of_a_module_in_its_worker_and_no_carried_one(
    app: Flask,
) -> None:
    job = load("rq.job").Job
    connection = object()  # Nothing is stored.
    with app.test_request_context():
        carried = job.create(carry_context(price), ["tea"], connection=connection)
    with pytest.raises(ValueError, match="Invalid attribute name: price"):
        carried.perform()
    bare = job.create(price, ["tea"], connection=connection)
    assert bare.perform() == "tea: 4"


# The guide


ROWS = [
    re.split(r" *\| *", line)[1:3]
    for line in GUIDE.splitlines()
    if line.startswith("| ") and not line.startswith("| extension")
]
TESTED = [row for row in ROWS if not row[0].endswith("*")]


def without_layout(code: str) -> str:
    """Return code as it is whatever its lines are broken into."""
    return re.sub(r"\s|,(?=\s*\))", "", code)


@pytest.mark.parametrize(("extension", "text"), TESTED, ids=[row[0] for row in TESTED])
def test_each_row_of_the_guide_has_a_test_that_runs_its_code(
    extension: str, text: str
) -> None:
    source = Path(__file__).read_text("utf-8")
    name = re.sub(r"\W+", "_", extension.lower()).strip("_")
    assert re.search(rf"^def (test_)?{name}_", source, re.MULTILINE)
    source += "".join(re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL))
    for code in re.findall(r"`([^`]*\w[(=][^`]*|[^`]* = [^`]*)`", text):
        statement = code.removeprefix("with ").removesuffix(":").removesuffix("()")
        assert without_layout(statement) in without_layout(source)
