"""The promises: each is an app and a view, and what the task or the client saw."""

import asyncio
import contextlib
import contextvars
import decimal
import functools
import gc
import importlib
import inspect
import io
import json
import logging
import sqlite3
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable, Generator
from pathlib import Path
from threading import Event
from typing import Any, NamedTuple
from unittest import mock

from flask import (
    Flask,
    Request,
    after_this_request,
    appcontext_popped,
    appcontext_pushed,
    current_app,
    flash,
    g,
    has_request_context,
    request,
    session,
    url_for,
)
from ways import TIMEOUT, Way
from werkzeug.datastructures import Headers

VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("VARIABLE")
NOT_PROMISED = "Not promised"

Check = Callable[[Flask, Way], bool]


class Promise(NamedTuple):
    section: str
    check: Check
    needs: tuple[str, ...]


PROMISES: dict[str, Promise] = {}


def section(title: str) -> Callable[..., Callable[[Check], Check]]:
    def promise(text: str, *needs: str) -> Callable[[Check], Check]:
        def register(check: Check) -> Check:
            PROMISES[text] = Promise(title, check, needs)
            return check

        return register

    return promise


def new_app() -> Flask:
    app = Flask("app")
    app.secret_key = "for this example only"
    return app


def holds(check: Check, way: type[Way]) -> bool:
    app = new_app()
    carrying = way(app)
    try:
        return check(app, carrying)
    except Exception:  # Whatever breaks the promise.
        return False
    finally:
        carrying.pool.shutdown()


def ask(app: Flask, view: Callable[[], Any], **sent: Any) -> Any:
    """Send one request, for ada, and return what the view returns."""
    answers: list[Any] = []

    def answer(name: str) -> str:
        g.user = "ada"
        session.update(user="ada", cart=["milk"])
        flash("Welcome!")
        VARIABLE.set("acme")
        answers.append(view())
        return ""

    app.add_url_rule("/<name>", "answer", answer, methods=["GET", "POST"])
    arguments: dict[str, Any] = {"method": "POST", "data": b"body"} | sent
    app.test_client().open("/view", **arguments)
    return answers[0]


def empty(_: object = None) -> None:
    pass


def in_task() -> bool:
    return threading.current_thread() is not threading.main_thread()


promise = section("What the task has")


def task_sees(read: Callable[[], Any], expected: Any) -> Check:
    return lambda app, way: bool(ask(app, lambda: way.run(read)) == expected)


def look() -> list[str]:
    return [request.path, session["user"], g.user, VARIABLE.get(), current_app.name]


ALL = ["/view", "ada", "ada", "acme", "app"]
promise("The task has request and session")(
    task_sees(lambda: [request.path, session["user"]], ["/view", "ada"])
)
promise("The task has g")(task_sees(lambda: g.user, "ada"))
promise("The task has context variables")(task_sees(VARIABLE.get, "acme"))
promise("The task has current_app")(task_sees(lambda: current_app.name, "app"))


@promise("Request, session, g and context variables in a raw thread")
def _(app: Flask, way: Way) -> bool:
    seen: list[str] = []

    def work() -> None:
        with contextlib.suppress(Exception):
            seen[:] = look()

    def view() -> None:
        thread = way.thread(work)
        thread.start()
        thread.join(TIMEOUT)

    ask(app, view)
    return seen == ALL


@promise("Request, session, g and context variables after the response")
def _(app: Flask, way: Way) -> bool:
    answered = threading.Event()

    def work() -> list[str]:
        answered.wait(TIMEOUT)
        return look()

    future = ask(app, lambda: way.submit(work))
    answered.set()
    return bool(future.result(TIMEOUT) == ALL)


def urls() -> list[str]:
    return [
        url_for("answer", name="here"),
        url_for(".answer", name="here", _anchor="top"),
        url_for("answer", name="reset", _external=True, _scheme="https"),
    ]


@promise("url_for builds what it builds in the view, with _external and _scheme")
def _(app: Flask, way: Way) -> bool:
    return bool(ask(app, lambda: way.run(urls) == urls()))


@promise("The URL is matched once")
def _(app: Flask, way: Way) -> bool:
    @app.url_value_preprocessor
    def pull(endpoint: str | None, values: dict[str, Any] | None) -> None:
        (values or {})["name"] = "pulled"

    return bool(
        ask(app, lambda: way.run(lambda: request.view_args)) == {"name": "pulled"}
    )


class OwnRequest(Request):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.extra = {"tenant": "acme"}
        super().__init__(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name in self.extra:
            return self.extra[name]
        raise AttributeError(name)


@promise("The app's own request class, with __getattr__, and a hook's headers")
def _(app: Flask, way: Way) -> bool:
    app.request_class = OwnRequest

    @app.before_request
    def put() -> None:
        request.headers = Headers({"Tenant": "zoo"})

    def work() -> list[str]:
        own: Any = request
        return [own.tenant, request.headers["Tenant"]]

    return bool(ask(app, lambda: way.run(work)) == ["acme", "zoo"])


promise = section("How it can be called")


@promise("map runs one wrapper on four threads at once")
def _(app: Flask, way: Way) -> bool:
    barrier = threading.Barrier(4, timeout=1)

    def work(number: int) -> int:
        barrier.wait()
        return number if has_request_context() else -1

    def view() -> bool:  # Often, as a lucky order of pops hides that it cannot.
        return all(way.map(work, range(4)) == [0, 1, 2, 3] for _ in range(20))

    return bool(ask(app, view))


@promise("Calls at once do not see each other's writes")
def _(app: Flask, way: Way) -> bool:
    barrier = threading.Barrier(4, timeout=1)

    def work(number: int) -> bool:
        barrier.wait()
        g.own = session["own"] = number
        VARIABLE.set(str(number))
        barrier.wait()
        return g.own == session["own"] == number and VARIABLE.get() == str(number)

    return all(ask(app, lambda: way.map(work, range(4))))


@promise("A coroutine function stays one, and has them too")
def _(app: Flask, way: Way) -> bool:
    async def work() -> list[str]:
        await asyncio.sleep(0)
        return look()

    def view() -> Any:
        wrapped = way.wrap(work)
        return wrapped if inspect.iscoroutinefunction(wrapped) else None

    async def main(wrapped: Any) -> list[str]:
        return list(await wrapped())

    return asyncio.run(main(ask(app, view))) == ALL


@promise("Builtins, classes and partials can be carried")
def _(app: Flask, way: Way) -> bool:
    tasks: list[Any] = [str.strip, str, functools.partial(str.replace, "eve", "eve")]
    expected = ["ada", " ada ", " ada "]
    return bool(
        ask(app, lambda: [way.run(task, " ada ") for task in tasks]) == expected
    )


IMPORTED = """\
import promises
from flask import request

def task():
    return request.path

result = promises.at_import.pop()(task)
"""
at_import: list[Callable[[Callable[[], str]], Any]] = []


def import_and(func: Callable[[Callable[[], str]], Any]) -> Any:
    """Import a module whose top level calls this with a function of its own."""
    at_import.append(func)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "imported.py").write_text(IMPORTED)
        sys.modules.pop("imported", None)
        with mock.patch.object(sys, "path", [folder, *sys.path]):
            return importlib.import_module("imported").result


@promise("It works in an app that is served while its module is imported")
def _(app: Flask, way: Way) -> bool:
    served = import_and(lambda task: ask(app, lambda: way.run(task)))
    return bool(served == "/view")


@promise("It works with a tracer that reads the app as a context is made")
def _(app: Flask, way: Way) -> bool:
    context_class: Any = type(app.test_request_context())
    construct = context_class.__init__

    def traced(self: Any, app: Any, *args: Any, **kwargs: Any) -> None:
        assert app.name and app.config
        construct(self, app, *args, **kwargs)

    with mock.patch.object(context_class, "__init__", traced):
        return bool(ask(app, lambda: way.run(lambda: current_app.name)) == "app")


promise = section("What stays the view's")


def leaves_alone(write: Callable[[], Any], read: Callable[[], Any]) -> Check:
    def check(app: Flask, way: Way) -> bool:
        def view() -> bool:
            before = read()
            way.run(write)
            return bool(read() == before)

        return bool(ask(app, view))

    return check


def write_view_args() -> None:
    assert request.view_args is not None
    request.view_args["name"] = "written"


def write_lists() -> None:
    flash("Bought.")
    session["cart"].append("tea")


promise("The view's g is not written to")(
    leaves_alone(lambda: vars(g).update(user="eve"), lambda: g.user)
)
promise("The view's session is not written to")(
    leaves_alone(lambda: session.update(user="eve"), lambda: session["user"])
)
promise('Nor is it by flash() and session["cart"].append()')(
    leaves_alone(write_lists, lambda: json.dumps(dict(session)))
)
promise("The view's request is not written to")(
    leaves_alone(write_view_args, lambda: dict(request.view_args or {}))
)


@promise("The view's decimal precision is not changed")
def _(app: Flask, way: Way) -> bool:
    def change() -> None:
        decimal.getcontext().prec = 3

    with decimal.localcontext():
        return leaves_alone(change, lambda: decimal.getcontext().prec)(app, way)


@promise(
    "The view's language is not changed by Flask-Babel's force_locale", "flask-babel"
)
def _(app: Flask, way: Way) -> bool:
    babel = importlib.import_module("flask_babel")
    babel.Babel(app)
    forced, seen = threading.Event(), threading.Event()

    def work() -> str:
        with babel.force_locale("de"):
            forced.set()
            seen.wait(TIMEOUT)
            return str(babel.get_locale())

    def view() -> list[str]:
        locales = [str(babel.get_locale())]
        future = way.submit(work)
        forced.wait(TIMEOUT)
        locales.append(str(babel.get_locale()))
        seen.set()
        return [*locales, future.result(TIMEOUT)]

    return bool(ask(app, view) == ["en", "en", "de"])


@promise("What the view changes later is not seen")
def _(app: Flask, way: Way) -> bool:
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


@promise("The view's uploads stay open")
def _(app: Flask, way: Way) -> bool:
    def view() -> bytes:
        upload = request.files["file"]
        way.run(empty)
        content: bytes = upload.read()
        return content

    sent = {"file": (io.BytesIO(b"content"), "file.txt")}
    return bool(ask(app, view, data=sent) == b"content")


@promise("The view reads its body as a stream after the task has tried to read it")
def _(app: Flask, way: Way) -> bool:
    def view() -> bytes:
        way.submit(lambda: request.get_data()).exception(TIMEOUT)
        return request.stream.read()

    return bool(ask(app, view) == b"body")


@promise("A task's signals and app teardown never meet the view's request")
def _(app: Flask, way: Way) -> bool:
    def mark(*_: object, **__: object) -> None:
        if in_task() and has_request_context():
            request.environ["met"] = True

    app.teardown_appcontext(mark)
    pushed = appcontext_pushed.connected_to(mark, app)
    with pushed, appcontext_popped.connected_to(mark, app):
        return bool(ask(app, lambda: way.run(empty) or "met" not in request.environ))


@promise("The response varies by cookie where only the task reads the session")
def _(app: Flask, way: Way) -> bool:
    @app.route("/page")
    def page() -> str:
        user: str = way.run(lambda: session.get("user", "anyone"))
        return user

    response = app.test_client().get("/page")
    return response.text == "anyone" and "Cookie" in response.vary


promise = section("Who opens, and who closes")


def get_db() -> sqlite3.Connection:
    """Return the connection, as in Flask's tutorial."""
    if "db" not in g:
        g.db = sqlite3.connect(":memory:", check_same_thread=False)
    db: sqlite3.Connection = g.db
    return db


def close_db(app: Flask) -> None:
    @app.teardown_appcontext
    def close(error: BaseException | None) -> None:
        if "db" in g:
            g.pop("db").close()


def is_open(db: sqlite3.Connection) -> bool:
    with contextlib.suppress(sqlite3.ProgrammingError):
        return bool(db.execute("select 1"))
    return False


@promise("The get_db() of Flask's tutorial opens the task a connection of its own")
def _(app: Flask, way: Way) -> bool:
    return bool(ask(app, lambda: get_db() is not way.run(get_db)))


@promise("The view's connection stays open")
def _(app: Flask, way: Way) -> bool:
    close_db(app)
    return bool(ask(app, lambda: [db := get_db(), way.run(get_db), is_open(db)])[2])


@promise("The task's connection is closed when it ends")
def _(app: Flask, way: Way) -> bool:
    close_db(app)
    return bool(ask(app, lambda: not is_open(way.run(get_db))))


@promise("A pool gets back the view's connection that it hands to the task")
def _(app: Flask, way: Way) -> bool:
    """The task takes it after the response, so it is the very same object."""
    pool, answered = [sqlite3.connect(":memory:", check_same_thread=False)], Event()

    @app.teardown_appcontext
    def give_back(error: BaseException | None) -> None:
        if "db" in g:
            pool.append(g.pop("db"))

    def take() -> None:
        if "db" not in g:
            g.db = pool.pop()

    def late() -> None:
        answered.wait(TIMEOUT)
        take()

    def view() -> Any:
        take()
        return way.submit(late)

    future = ask(app, view)
    answered.set()
    future.result(TIMEOUT)
    return len(pool) == 1


@promise("A task of an app with a flag in g commits, as its view does")
def _(app: Flask, way: Way) -> bool:
    commits: list[bool] = []

    @app.teardown_appcontext
    def commit(error: BaseException | None) -> None:
        if g.get("dirty"):
            commits.append(in_task())

    def write() -> None:
        g.dirty = True

    def view() -> None:
        write()
        way.run(write)

    ask(app, view)
    return sorted(commits) == [False, True]


class Thing:
    closed = 0


@promise("What the view keeps in g is the task's to use, not to close")
def _(app: Flask, way: Way) -> bool:
    @app.teardown_appcontext
    def close(error: BaseException | None) -> None:
        if "thing" in g:
            g.pop("thing").closed += 1

    def view() -> bool:
        g.thing = Thing()
        seen = way.run(lambda: g.thing)
        return seen is g.thing and g.thing.closed == 0

    return bool(ask(app, view))


def torn_down(app: Flask, name: str) -> list[Any]:
    """List what a task's teardown functions find in g by this name."""
    found: list[Any] = []

    @app.teardown_appcontext
    def find(error: BaseException | None) -> None:
        if in_task():
            found.append(g.get(name))

    return found


@promise("What a receiver takes out of g, and the task puts back, is the task's")
def _(app: Flask, way: Way) -> bool:
    found, registry = torn_down(app, "registry"), Thing()

    def take(_: object) -> None:
        if in_task():
            g.pop("registry", None)

    def put() -> None:
        g.registry = registry

    def view() -> None:
        put()
        way.run(put)

    with appcontext_pushed.connected_to(take, app):
        ask(app, view)
    return found == [registry]


@promise("What a class for g begins with is there for teardown functions")
def _(app: Flask, way: Way) -> bool:
    found, globals_class = torn_down(app, "start"), app.app_ctx_globals_class

    def with_default() -> Any:
        made = globals_class()
        made.start = "now"
        return made

    vars(app)["app_ctx_globals_class"] = with_default
    ask(app, lambda: way.run(empty))
    return found == ["now"]


def get_name(user: Any) -> str:
    return str(user.name)


@contextlib.contextmanager
def database(app: Flask) -> Generator[tuple[Any, Any]]:
    """Yield Flask-SQLAlchemy-Lite's extension, and a class of which there is ada."""
    alchemy: Any = importlib.import_module("sqlalchemy")
    base = importlib.import_module("sqlalchemy.orm").declarative_base()
    columns: dict[str, Any] = {
        "__tablename__": "user",
        "name": alchemy.Column(alchemy.String, primary_key=True),
        "is_active": True,  # For Flask-Login, as the next.
        "get_id": get_name,
    }
    user_class: Any = type("User", (base,), columns)
    with tempfile.TemporaryDirectory() as folder:
        app.config["SQLALCHEMY_ENGINES"] = {"default": f"sqlite:///{folder}/db.sqlite"}
        db = importlib.import_module("flask_sqlalchemy_lite").SQLAlchemy(app)
        with app.app_context():
            base.metadata.create_all(db.engine)
            db.session.add(user_class(name="ada"))
            db.session.commit()
        yield db, user_class
        with app.app_context():
            db.engine.dispose()


LITE = "flask-sqlalchemy-lite"


@promise("A task's commit is not the view's, with Flask-SQLAlchemy-Lite", LITE)
def _(app: Flask, way: Way) -> bool:
    with database(app) as (db, user_class):

        def view() -> bool:
            db.session.add(user_class(name="eve"))
            db.session.flush()
            way.run(lambda: db.session.commit())
            db.session.rollback()
            return db.session.get(user_class, "eve") is None

        return bool(ask(app, view))


@promise("Flask-Login's current_user is read after the response", LITE, "flask-login")
def _(app: Flask, way: Way) -> bool:
    login = importlib.import_module("flask_login")
    answered = threading.Event()
    with database(app) as (db, user_class):
        manager = login.LoginManager(app)

        def load(name: str) -> Any:
            return db.session.get(user_class, name)

        manager.user_loader(load)

        def work() -> str:
            answered.wait(TIMEOUT)
            return str(login.current_user.name)

        def view() -> Any:
            login.login_user(db.session.get(user_class, "ada"))
            db.session.commit()
            return way.submit(work)

        future = ask(app, view)
        answered.set()
        return bool(future.result(TIMEOUT) == "ada")


promise = section("Errors and misuse")


@promise("Teardown functions get the task's exception")
def _(app: Flask, way: Way) -> bool:
    errors: list[BaseException | None] = []

    @app.teardown_appcontext
    def tear_down(error: BaseException | None) -> None:
        errors.append(error)

    def fail() -> None:
        raise LookupError

    def view() -> bool:
        error = way.submit(fail).exception(TIMEOUT)
        return error is not None and errors == [error]

    return bool(ask(app, view))


@promise("The caller gets the task's exception, also if teardown then fails")
def _(app: Flask, way: Way) -> bool:
    @app.teardown_appcontext
    def tear_down(error: BaseException | None) -> None:
        if in_task():
            raise AttributeError

    def fail() -> None:
        raise LookupError

    error = ask(app, lambda: way.submit(fail).exception(TIMEOUT))
    return type(error) is LookupError


def refuses(
    error: type[Exception], says: str, call: Callable[..., Any], *args: Any
) -> bool:
    try:
        call(*args)
    except error as raised:
        return says in str(raised)
    return False


@promise("A result in place of a function is refused")
def _(app: Flask, way: Way) -> bool:
    return bool(ask(app, lambda: refuses(TypeError, "", way.wrap, 3)))


@promise("A coroutine that would run outside of the task is refused")
def _(app: Flask, way: Way) -> bool:
    async def work() -> None:
        pass

    coroutine = work()
    refused = ask(app, lambda: refuses(TypeError, "", way.run, lambda: coroutine))
    coroutine.close()
    return bool(refused)


@promise("Carrying one request into a module that is imported is refused")
def _(app: Flask, way: Way) -> bool:
    def carry(_: object) -> None:
        way.wrap(empty)

    return bool(ask(app, lambda: refuses(RuntimeError, "", import_and, carry)))


@promise("While the app is tested, a change of the session that is lost is logged")
def _(app: Flask, way: Way) -> bool:
    logged: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            logged.append(record.getMessage())

    def sign_in() -> None:
        session["user"] = "eve"

    app.testing = True
    app.logger.handlers = [Handler()]
    logging.disable(logging.NOTSET)  # The comparison has disabled it.
    try:
        ask(app, lambda: way.run(sign_in))
    finally:
        logging.disable()
    return any("session" in message for message in logged)


@promise("Of two apps, neither tears down a request of the other")
def _(app: Flask, way: Way) -> bool:
    other, torn = new_app(), list[object]()
    other.teardown_request(torn.append)

    def view() -> None:
        with other.app_context(), contextlib.suppress(RuntimeError):
            way.run(empty)

    ask(app, view)
    return not torn


promise = section("Memory")


@promise("Memory goes without the garbage collector")
def _(app: Flask, way: Way) -> bool:
    alive: list[weakref.ref[Thing]] = []

    def work() -> None:
        g.own = Thing()
        alive.append(weakref.ref(g.own))

    def view() -> None:
        thread = threading.Thread(target=way.wrap(work))
        thread.start()
        thread.join(TIMEOUT)

    gc.disable()
    try:
        ask(app, view)
        return [ref() for ref in alive] == [None]
    finally:
        gc.enable()


@promise("A task that waits keeps nothing of what the view adds later")
def _(app: Flask, way: Way) -> bool:
    def view() -> Any:
        waiting = way.wrap(empty)
        vars(g)["later"] = vars(request)["later"] = later = Thing()
        return waiting, weakref.ref(later)

    _waiting, later = ask(app, view)
    gc.collect()
    return later() is None


@promise("A task that carries itself on keeps none that are over")
def _(app: Flask, way: Way) -> bool:
    alive: list[weakref.ref[Thing]] = []
    following: list[Callable[[], None]] = []

    def work() -> None:
        g.own = Thing()
        alive.append(weakref.ref(g.own))
        following.append(way.wrap(work))

    following.append(ask(app, lambda: way.wrap(work)))
    for _ in range(8):
        contextvars.Context().run(following.pop())
    gc.collect()
    return sum(ref() is not None for ref in alive) <= 1  # The next has the last one's.


promise = section(NOT_PROMISED)


def writes(write: Callable[[], Any], read: Callable[[], Any]) -> Check:
    return lambda app, way: ask(app, lambda: [way.run(write), read()])[1] == "eve"


promise("The task can write to the view's g")(
    writes(lambda: vars(g).update(user="eve"), lambda: g.user)
)
promise("The task can write to the view's session")(
    writes(lambda: session.update(user="eve"), lambda: session["user"])
)
promise("The task can read a body that the view has not read")(
    task_sees(lambda: request.get_data(), b"body")
)


@promise("The task can work on the view's connection, in its transaction")
def _(app: Flask, way: Way) -> bool:
    return bool(ask(app, lambda: get_db() is way.run(get_db)))


@promise("after_this_request() in a task changes the view's response")
def _(app: Flask, way: Way) -> bool:
    responses: list[object] = []

    def receive(response: Any) -> Any:
        responses.append(response)
        return response

    ask(app, lambda: way.run(lambda: after_this_request(receive)) and None)
    return bool(responses)


@promise("An executor that wraps by itself")
def _(app: Flask, way: Way) -> bool:
    return type(way).submit is not Way.submit
