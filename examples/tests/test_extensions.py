"""The README's table of extensions, row by row: small apps, real threads, real packages."""

import contextlib
import contextvars
import importlib
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import peewee
import pytest
import sentry_sdk
from cachelib import FileSystemCache
from flask import Flask, appcontext_pushed, g, request, session
from helpers import TIMEOUT, Late
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from sentry_sdk.envelope import Envelope
from sentry_sdk.integrations.flask import FlaskIntegration
from sentry_sdk.transport import Transport
from sqlalchemy import create_engine, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import scoped_session, sessionmaker
from sqlalchemy.orm.exc import DetachedInstanceError
from structlog.contextvars import bind_contextvars, get_contextvars

from ctxcarry import carry_context


def load(name: str) -> Any:
    """Import an extension that has no types."""
    return importlib.import_module(name)


# Databases and users


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


def test_flask_login_loads_the_user_again_in_the_tasks_own_session(
    app: Flask, late: Late, db: Any
) -> None:
    flask_login = load("flask_login")
    login = flask_login.LoginManager(app)

    class User(db.Model, flask_login.UserMixin):  # type: ignore[misc,name-defined]
        id = db.Column(db.Integer, primary_key=True)
        name = db.Column(db.String, nullable=False)

    def load_user(id: str) -> Any:
        return db.session.get(User, int(id))

    login.user_loader(load_user)
    with app.app_context():
        db.create_all()
        db.session.add(User(name="ada"))
        db.session.commit()

    @app.route("/login")
    def log_in() -> str:
        flask_login.login_user(db.session.get(User, 1))
        return ""

    @app.route("/")
    def view() -> str:
        name: str = flask_login.current_user.name
        db.session.commit()

        @carry_context
        def rename() -> str:
            before: str = flask_login.current_user.name
            flask_login.current_user.name = "grace"
            db.session.commit()
            return before

        late.submit(rename)
        return name

    client = app.test_client()
    client.get("/login")
    assert client.get("/").text == "ada"
    assert late.result() == "ada"
    assert client.get("/").text == "grace"


@pytest.mark.parametrize("how", ["session", "token", "basic", "nobody"])
@pytest.mark.parametrize("recipe", [False, True])
def test_flask_security_needs_its_user_merged_but_after_a_log_in_by_session(
    app: Flask, late: Late, db: Any, how: str, recipe: bool
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

    def merge_user(sender: Flask) -> None:
        if isinstance(g.get("_login_user"), User):
            g._login_user = db.session.merge(g._login_user)

    if recipe:
        appcontext_pushed.connect(merge_user, app)

    def view() -> str:
        email: str = getattr(security.current_user, "email", "nobody")
        db.session.commit()

        @carry_context
        def rename() -> str:
            if email == "nobody":
                return str(security.current_user.is_authenticated)
            before: str = security.current_user.email
            security.current_user.email = "grace@example.com"
            db.session.commit()
            return before

        late.submit(rename)
        return email

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
    email = client.get("/nobody" if how == "nobody" else "/", **send).text
    if how == "nobody":
        assert (email, late.result()) == ("nobody", "False")
    elif recipe or how == "session":
        assert email == late.result() == "ada@example.com"
        with app.app_context():
            assert db.session.scalar(db.select(User.email)) == "grace@example.com"
    else:
        with pytest.raises(DetachedInstanceError):
            late.result()


@pytest.mark.parametrize("commit_first", [False, True])
def test_a_merged_object_is_loaded_anew_if_the_view_has_committed(
    app: Flask, late: Late, db: Any, commit_first: bool
) -> None:
    class Account(db.Model):  # type: ignore[misc]
        id = db.Column(db.Integer, primary_key=True)
        balance = db.Column(db.Integer, nullable=False)

    with app.app_context():
        db.create_all()
        db.session.add(Account(balance=1))
        db.session.commit()

    @app.route("/")
    def view() -> str:
        g.account = db.session.get(Account, 1)
        if commit_first:
            db.session.commit()

        @carry_context
        def merge() -> None:
            g.account = db.session.merge(g.account)
            db.session.commit()

        late.submit(merge)
        return ""

    app.test_client().get("/")
    with app.app_context():
        db.session.get(Account, 1).balance = 100
        db.session.commit()
    late.result()
    with app.app_context():
        balance = db.session.get(Account, 1).balance
    assert balance == (100 if commit_first else 1)


@pytest.mark.parametrize("again", [False, True])
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
        with pytest.raises(DetachedInstanceError):
            late.result()


def test_flask_httpauth_knows_the_user_in_a_task(app: Flask, late: Late) -> None:
    auth = load("flask_httpauth").HTTPBasicAuth()

    def verify(name: str, password: str) -> str | None:
        return name if password == "a password" else None

    auth.verify_password(verify)

    def view() -> str:
        late.submit(carry_context(auth.current_user))
        return str(auth.current_user())

    app.add_url_rule("/", view_func=auth.login_required(view))
    client = app.test_client()
    assert client.get("/", auth=("ada", "a guess")).status_code == 401
    assert client.get("/", auth=("ada", "a password")).text == "ada"
    assert late.result() == "ada"


@pytest.mark.parametrize("where", ["here", "in a thread"])
@pytest.mark.parametrize("by_context", [False, True])
def test_scoped_session_is_removed_under_a_view_that_calls_the_task_itself(
    app: Flask, pool: ThreadPoolExecutor, where: str, by_context: bool
) -> None:
    current: Any = g
    scope: Any = (lambda: id(current._get_current_object())) if by_context else None
    engine = create_engine("sqlite://")
    registry = scoped_session(sessionmaker(engine), scopefunc=scope)

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


# Tracing and logging


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
