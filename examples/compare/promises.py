"""The rows of the first table. Each is an app, a view, and what the task or client saw."""

import asyncio
import contextlib
import contextvars
import http.client
import importlib
import inspect
import io
import sqlite3
import tempfile
import threading
from collections.abc import Callable, Generator
from typing import Any, NamedTuple

from flask import Flask, flash, g, has_request_context, request, session, url_for
from flask_sqlalchemy_lite import SQLAlchemy
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from ways import TIMEOUT, Way

flask_login: Any = importlib.import_module("flask_login")  # It has no types.

HAS = "What the task has"
CALLS = "How it can be called"
STAYS = "What stays with the view"
ONLY_OTHERS = "What only other ways can do"

Check = Callable[[Flask, Way], bool]
Get = Callable[[], Any]


class Promise(NamedTuple):
    section: str
    check: Check


PROMISES: dict[str, Promise] = {}


def promise(section: str, text: str) -> Callable[[Check], Check]:
    def register(check: Check) -> Check:
        PROMISES[text] = Promise(section, check)
        return check

    return register


def new_app() -> Flask:
    app = Flask("app")
    app.secret_key = "for this example only"
    return app


def is_kept(promise: Promise, way_class: type[Way]) -> bool:
    app = new_app()
    way = way_class(app)
    try:
        # In a context of its own, as some ways and tasks leave variables behind.
        return contextvars.Context().run(promise.check, app, way)
    except Exception:  # Whatever breaks the promise.
        return False
    finally:
        way.pool.shutdown()


VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("VARIABLE")


def ask(app: Flask, view: Get, **sent: Any) -> Any:
    """Send one request, for ada, and return what the view returns."""
    answers: list[Any] = []

    def answer(name: str) -> str:
        g.user = "ada"
        session.update(user="ada", cart=["milk"])
        VARIABLE.set("acme")
        answers.append(view())
        return ""

    app.add_url_rule("/<name>", "answer", answer, methods=["GET", "POST"])
    arguments: dict[str, Any] = {"method": "POST", "data": b"body"} | sent
    app.test_client().open("/view", **arguments)
    return answers[0]


def empty() -> None:
    pass


@promise(HAS, "`request` and `session`")
def has_request_and_session(app: Flask, way: Way) -> bool:
    seen = ask(app, lambda: way.run(lambda: [request.path, session["user"]]))
    return bool(seen == ["/view", "ada"])


@promise(HAS, "`g`")
def has_g(app: Flask, way: Way) -> bool:
    return bool(ask(app, lambda: way.run(lambda: g.user)) == "ada")


@promise(HAS, "Context variables")
def has_context_variables(app: Flask, way: Way) -> bool:
    return bool(ask(app, lambda: way.run(VARIABLE.get)) == "acme")


def look() -> list[str]:
    return [request.path, session["user"], g.user, VARIABLE.get()]


ALL = ["/view", "ada", "ada", "acme"]


def run_after_the_response(
    app: Flask, way: Way, read: Get, prepare: Callable[[], object] = empty
) -> Any:
    """Return what a task reads when the client has the response."""
    answered = threading.Event()

    def work() -> Any:
        answered.wait(TIMEOUT)
        return read()

    def view() -> Any:
        prepare()
        return way.submit(work)

    try:
        future = ask(app, view)
    finally:
        answered.set()
    return future.result(TIMEOUT)


@promise(HAS, "All of these, after the response has been sent")
def has_all_after_the_response(app: Flask, way: Way) -> bool:
    return bool(run_after_the_response(app, way, look) == ALL)


@promise(HAS, "`url_for()` builds the same URLs as in the view")
def builds_urls(app: Flask, way: Way) -> bool:
    def urls() -> list[str]:
        return [
            url_for(".answer", name="here"),
            url_for("answer", name="there", _external=True, _scheme="https"),
        ]

    return bool(ask(app, lambda: way.run(urls) == urls()))


@promise(CALLS, "In a thread that you start yourself")
def runs_in_a_thread(app: Flask, way: Way) -> bool:
    done = threading.Event()

    def view() -> None:
        thread = way.thread(done.set)
        thread.start()
        thread.join(TIMEOUT)

    ask(app, view)
    return done.is_set()


@promise(CALLS, "Many times at once, with `executor.map()`")
def runs_many_times_at_once(app: Flask, way: Way) -> bool:
    barrier = threading.Barrier(4, timeout=1)

    def work(number: int) -> int:
        g.number = number
        barrier.wait()
        return int(g.number) if has_request_context() else -1

    def view() -> bool:  # Repeated, as a lucky order hides that it cannot.
        return all(way.map(work, range(4)) == [0, 1, 2, 3] for _ in range(20))

    return bool(ask(app, view))


@promise(CALLS, "With `await`, on another event loop")
def runs_on_an_event_loop(app: Flask, way: Way) -> bool:
    async def work() -> list[str]:
        await asyncio.sleep(0)
        return look()

    wrapped = ask(app, lambda: way.wrap(work))
    return inspect.iscoroutinefunction(wrapped) and asyncio.run(wrapped()) == ALL


@promise(
    STAYS, "What the task writes to `request`, `session` and `g` stays in the task"
)
def keeps_writes_in_the_task(app: Flask, way: Way) -> bool:
    def write() -> None:
        assert request.view_args is not None
        request.view_args["name"] = g.user = "eve"
        session["cart"].append("tea")
        flash("Bought.")

    def read() -> list[Any]:
        return [dict(request.view_args or {}), g.user, str(session)]

    def view() -> bool:
        before = read()
        way.run(write)
        return read() == before

    return bool(ask(app, view))


@promise(STAYS, "The task does not see what the view changes later")
def keeps_later_changes_in_the_view(app: Flask, way: Way) -> bool:
    changed = threading.Event()

    def work() -> list[str]:
        changed.wait(TIMEOUT)
        return [g.user, session["user"]]

    def view() -> Any:
        future = way.submit(work)
        g.user = session["user"] = "eve"
        changed.set()
        return future.result(TIMEOUT)

    return bool(ask(app, view) == ["ada", "ada"])


@promise(STAYS, "Uploaded files stay open in the view when the task ends")
def keeps_uploads_open(app: Flask, way: Way) -> bool:
    def view() -> bytes:
        upload = request.files["file"]
        way.run(empty)
        content: bytes = upload.read()
        return content

    sent = {"file": (io.BytesIO(b"content"), "file.txt")}
    return bool(ask(app, view, data=sent) == b"content")


def from_g(name: str, make: Get) -> Any:
    """Get a value from g, or make it, as get_db() in Flask's tutorial does."""
    if name not in g:
        setattr(g, name, make())
    return g.get(name)


def get_db() -> sqlite3.Connection:
    db: sqlite3.Connection = from_g(
        "db", lambda: sqlite3.connect(":memory:", check_same_thread=False)
    )
    return db


def is_open(db: sqlite3.Connection) -> bool:
    with contextlib.suppress(sqlite3.ProgrammingError):
        return bool(db.execute("select 1"))
    return False


@promise(STAYS, "`get_db()` from Flask's tutorial opens the task's own connection")
def opens_a_connection(app: Flask, way: Way) -> bool:
    return bool(ask(app, lambda: get_db() is not way.run(get_db)))


@promise(STAYS, "When the task ends, its connection is closed, and the view's is not")
def closes_its_own_connection(app: Flask, way: Way) -> bool:
    @app.teardown_appcontext
    def close_db(error: BaseException | None) -> None:
        if "db" in g:
            g.pop("db").close()

    def view() -> list[bool]:
        views, tasks = get_db(), way.run(get_db)
        return [is_open(views), is_open(tasks)]

    return bool(ask(app, view) == [True, False])


@promise(STAYS, "A cursor or an HTTP connection in `g` is not shared with the task")
def does_not_share_what_can_only_be_closed(app: Flask, way: Way) -> bool:
    def get_both() -> list[Any]:
        return [
            from_g("cursor", lambda: get_db().cursor()),
            from_g("http", lambda: http.client.HTTPConnection("localhost")),
        ]

    def view() -> bool:
        return all(ours is not its for ours, its in zip(get_both(), way.run(get_both)))

    return bool(ask(app, view))


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "user"

    name: Mapped[str] = mapped_column(primary_key=True)
    is_active = True  # For Flask-Login, as the next.

    def get_id(self) -> str:
        return self.name


@contextlib.contextmanager
def database(app: Flask) -> Generator[SQLAlchemy]:
    """Yield Flask-SQLAlchemy-Lite's extension, with a database that has ada."""
    with tempfile.TemporaryDirectory() as folder:
        app.config["SQLALCHEMY_ENGINES"] = {"default": f"sqlite:///{folder}/db.sqlite"}
        db = SQLAlchemy(app)
        with app.app_context():
            Base.metadata.create_all(db.engine)
            db.session.add(User(name="ada"))
            db.session.commit()
        yield db
        with app.app_context():
            db.engine.dispose()


@promise(STAYS, "With Flask-SQLAlchemy-Lite, a task does not commit the view's changes")
def keeps_the_transaction(app: Flask, way: Way) -> bool:
    with database(app) as db:

        def view() -> bool:
            db.session.add(User(name="eve"))
            db.session.flush()
            way.run(lambda: db.session.commit())
            db.session.rollback()
            return db.session.get(User, "eve") is None

        return bool(ask(app, view))


@promise(STAYS, "Flask-Login's `current_user` can be read after the response")
def loads_the_user(app: Flask, way: Way) -> bool:
    with database(app) as db:
        manager = flask_login.LoginManager(app)

        def load(name: str) -> User | None:
            return db.session.get(User, name)

        manager.user_loader(load)

        def log_in() -> None:
            flask_login.login_user(load("ada"))
            db.session.commit()

        def read() -> str:
            return str(flask_login.current_user.name)

        return bool(run_after_the_response(app, way, read, log_in) == "ada")


@promise(ONLY_OTHERS, "Write to the view's session")
def writes_to_the_session(app: Flask, way: Way) -> bool:
    def view() -> str:
        way.run(lambda: session.update(user="eve"))
        return str(session["user"])

    return bool(ask(app, view) == "eve")


@promise(ONLY_OTHERS, "Write to the view's `g`")
def writes_to_g(app: Flask, way: Way) -> bool:
    def view() -> str:
        way.run(lambda: setattr(g, "user", "eve"))
        return str(g.user)

    return bool(ask(app, view) == "eve")


@promise(ONLY_OTHERS, "Read a body that the view has not read")
def reads_the_body(app: Flask, way: Way) -> bool:
    return bool(ask(app, lambda: way.run(lambda: request.get_data())) == b"body")


@promise(ONLY_OTHERS, "Work in the view's transaction")
def shares_the_connection(app: Flask, way: Way) -> bool:
    return bool(ask(app, lambda: get_db() is way.run(get_db)))


@promise(ONLY_OTHERS, "Wrap each function automatically, in an executor")
def has_an_executor(app: Flask, way: Way) -> bool:
    return type(way).submit is not Way.submit


@promise(ONLY_OTHERS, "Store futures in the executor, and find them by a key")
def stores_futures(app: Flask, way: Way) -> bool:
    def view() -> bool:
        executor: Any = getattr(way, "executor", None)
        executor.submit_stored("task", lambda: request.path)
        return bool(executor.futures.pop("task").result(TIMEOUT) == "/view")

    return bool(ask(app, view))
