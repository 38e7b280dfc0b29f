"""The answers of troubleshooting.md: each test shows the symptom, and then the cure.

The docstring of a test is the heading that it belongs to. Where a test has `cured`, it
runs twice: without the cure, and with it.
"""

import asyncio
import contextlib
import functools
import importlib
import io
import math
import multiprocessing
import pickle
import re
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import AbstractContextManager
from contextvars import ContextVar
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import flask
import pytest
from documents import snippets
from flask import Flask, Response, g, request, session
from helpers import EXAMPLES, TIMEOUT, Late, in_thread
from werkzeug.datastructures import FileStorage
from werkzeug.test import encode_multipart

from ctxcarry import carry_context

GUIDE = (EXAMPLES / "troubleshooting.md").read_text("utf-8")
OUTSIDE = "Working outside of request context"
NO_CONTEXT = "There is no active Flask context to carry"
UNREAD = (
    "carry_context() carries the request body only if the view has read and kept it"
)


@pytest.fixture(params=[False, True], ids=["symptom", "cured"])
def cured(request: pytest.FixtureRequest) -> bool:
    """Run the test without the cure, and with it."""
    return bool(request.param)


def fails(said: str, unless: bool = False) -> AbstractContextManager[Any]:
    """Expect an error that says this, unless the test is about the cure."""
    if unless:
        return contextlib.nullcontext()
    return pytest.raises(Exception, match=re.escape(said))


def path() -> str:
    """Return the path of the request, as a task that needs one."""
    return request.path


async def async_path() -> str:
    await asyncio.sleep(0)
    return request.path


def test_each_answer_is_run() -> None:
    headings = re.findall(r"^### (.*)", GUIDE, re.MULTILINE)
    tests = [value for name, value in globals().items() if name.startswith("test_")]
    said = {test.__doc__ for test in tests if test.__doc__}
    assert said == set(headings)


# Contexts


def test_a_task_carried_under_an_app_context_has_no_request(app: Flask) -> None:
    """`Working outside of request context`, in a carried function"""
    with app.app_context():
        alone = carry_context(path)
    with fails(OUTSIDE):
        alone()
    with app.test_request_context("/orders"):
        assert carry_context(path)() == "/orders"


def test_carrying_submit_does_not_carry_the_task(
    app: Flask, pool: ThreadPoolExecutor
) -> None:
    """`Working outside of request context`, in a carried function"""
    with app.test_request_context("/orders"):
        wrong = carry_context(pool.submit)(path)
        cured = pool.submit(carry_context(path))
    with fails(OUTSIDE):
        wrong.result(TIMEOUT)
    assert cured.result(TIMEOUT) == "/orders"


def rows() -> Iterator[str]:
    yield request.path


def test_a_generator_that_a_task_returns_runs_outside(app: Flask) -> None:
    """`Working outside of request context`, in a carried function"""
    with app.test_request_context("/orders"):
        hidden = carry_context(lambda: rows())
        cured = carry_context(lambda: list(rows()))
    with fails(OUTSIDE):
        list(hidden())
    assert cured() == ["/orders"]


def test_outside_a_view_there_is_no_context(app: Flask) -> None:
    """`There is no active Flask context to carry`"""
    with fails(NO_CONTEXT):
        carry_context(path)
    with app.test_request_context("/orders"):
        assert carry_context(path)() == "/orders"


def test_a_streamed_response_has_no_context(app: Flask, cured: bool) -> None:
    """`There is no active Flask context to carry`"""

    def stream() -> Iterator[str]:
        yield in_thread(carry_context(path))

    @app.route("/orders")
    def view() -> Response:
        return Response(flask.stream_with_context(stream()) if cured else stream())

    with fails(NO_CONTEXT, unless=cured):
        assert app.test_client().get("/orders").text == "/orders"


def test_a_view_that_imports_a_module_is_refused(
    app: Flask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cured: bool
) -> None:
    """`carry_context() was called while a request was importing the module`"""
    code = "from ctxcarry import carry_context\n\n\n@carry_context\ndef task(): pass\n"
    (tmp_path / "wrapped_tasks.py").write_text(code)
    cast(Any, monkeypatch).syspath_prepend(tmp_path)
    app.testing = True

    @app.route("/orders")
    def view() -> str:
        task = path if cured else importlib.import_module("wrapped_tasks").task
        return str(carry_context(task)())

    said = "carry_context() was called while a request was importing the module"
    with fails(f"{said} 'wrapped_tasks'", unless=cured):
        assert app.test_client().get("/orders").text == "/orders"


def test_a_result_in_place_of_a_function_is_refused(app: Flask) -> None:
    """`carry_context() takes a function, not 'NoneType'`, `not 'coroutine'` or `not 'int'`"""
    coroutine = async_path()
    results: dict[str, Any] = {"NoneType": None, "coroutine": coroutine, "int": 17}
    with app.test_request_context("/orders"):
        for name, result in results.items():
            with fails(f"carry_context() takes a function, not {name!r}"):
                carry_context(result)
        assert carry_context(path)() == "/orders"
    coroutine.close()


def test_a_generator_function_is_refused(app: Flask) -> None:
    """`carry_context() cannot carry the generator function`"""
    with app.test_request_context("/orders"):
        with fails("carry_context() cannot carry the generator function"):
            carry_context(rows)
        assert carry_context(lambda: list(rows()))() == ["/orders"]


def test_a_method_that_the_view_looks_up_is_the_views(app: Flask, cured: bool) -> None:
    """A task works on the view's own request or session"""
    with app.test_request_context():
        session["user"] = "ada"
        clear: Any = (lambda: session.clear()) if cured else session.clear
        in_thread(carry_context(clear))
        assert ("user" in session) is cured


def test_every_task_acts_for_the_same_user(app: Flask, cured: bool) -> None:
    """Every task acts for the same user"""
    kept: list[Callable[[], str]] = []
    seen: list[str] = []
    for user in "/ada", "/eve":
        with app.test_request_context(user):
            if not kept:
                kept.append(path if cured else carry_context(path))
            seen.append(carry_context(path)() if cured else kept[0]())
    assert seen == ["/ada", "/eve" if cured else "/ada"]


def test_a_task_carried_before_the_log_in_has_no_user(app: Flask) -> None:
    """`current_user` is anonymous, or the session is empty"""

    def user() -> Any:
        return session.get("user", "anonymous")

    with app.test_request_context():
        early = carry_context(user)
        session["user"] = "ada"
        assert [early(), carry_context(user)()] == ["anonymous", "ada"]


def test_what_belongs_to_a_thread_is_not_carried(app: Flask) -> None:
    """A value in `threading.local`, or from a pool's initializer, is missing"""
    local = threading.local()
    variable: ContextVar[str] = ContextVar("variable")

    def initialize() -> None:
        local.value = "the worker's"
        variable.set("the worker's")

    workers = ThreadPoolExecutor(1, initializer=initialize)
    with workers, app.test_request_context():
        local.value = g.value = "the view's"
        variable.set("the view's")
        task = carry_context(lambda: [local.value, variable.get(), g.value])
        seen = workers.submit(task).result(TIMEOUT)
        assert seen == ["the worker's", "the view's", "the view's"]


# g and teardown functions


@pytest.fixture
def get_db() -> Callable[[], sqlite3.Connection]:
    """The accessor of the guide."""
    names: dict[str, Any] = {"g": g, "sqlite3": sqlite3, "DATABASE": ":memory:"}
    exec(snippets(GUIDE)[0], names)
    found: Callable[[], sqlite3.Connection] = names["get_db"]
    return found


@pytest.fixture
def closing(app: Flask) -> None:
    """Close the connection in g at the end of each request and of each task."""

    @app.teardown_appcontext
    def close(_: object) -> None:
        if "db" in g:
            g.db.close()


@pytest.mark.usefixtures("closing")
def test_a_connection_in_g_is_missing(
    app: Flask, get_db: Callable[[], sqlite3.Connection], cured: bool
) -> None:
    """`g.db stays with the view`"""

    def select() -> Any:
        return (get_db() if cured else g.db).execute("select 17").fetchone()

    with app.test_request_context():
        viewed = get_db()
        with fails("g.db stays with the view", unless=cured):
            assert in_thread(carry_context(select)) == (17,)
        with fails("SQLite objects created in a thread"):
            in_thread(carry_context(lambda: viewed.execute("select 17")))


@pytest.fixture
def account(app: Flask, db: Any) -> Any:
    """The class of a model of SQLAlchemy, with one row in the database."""

    class Account(db.Model):  # type: ignore[misc]
        id = db.Column(db.Integer, primary_key=True)
        name = db.Column(db.String, nullable=False)

    with app.app_context():
        db.create_all()
        db.session.add(Account(name="ada"))
        db.session.commit()
    return Account


def test_a_template_shows_a_guest(
    app: Flask, db: Any, account: Any, caplog: pytest.LogCaptureFixture, cured: bool
) -> None:
    """`g.get("db")` is `None`, or a template shows a guest"""
    template = "Hello {% if g.user %}{{ g.user.name }}{% else %}guest{% endif %}"
    app.testing = True

    def greet() -> list[Any]:
        if cured and "user" not in g:
            g.user = db.session.get(account, 1)
        return [flask.render_template_string(template), g.get("user") is None]

    with app.test_request_context():
        g.user = db.session.get(account, 1)
        seen = in_thread(carry_context(greet))
    assert seen == (["Hello ada", False] if cured else ["Hello guest", True])
    assert ("g.user stays with the view" in caplog.text) is not cured


def test_a_template_hides_why_a_name_is_missing(
    app: Flask, db: Any, account: Any, cured: bool
) -> None:
    """`'flask.ctx._AppCtxGlobals object' has no attribute 'user'`"""

    def greet() -> str:
        if cured and "user" not in g:
            g.user = db.session.get(account, 1)
        return flask.render_template_string("Hello {{ g.user.name }}")

    with app.test_request_context():
        g.user = db.session.get(account, 1)
        said = "'flask.ctx._AppCtxGlobals object' has no attribute 'user'"
        with fails(said, unless=cured):
            assert in_thread(carry_context(greet)) == "Hello ada"


def test_a_teardown_function_misses_a_name(app: Flask, cured: bool) -> None:
    """`g.start was carried from the view by carry_context(), and is gone`"""
    started: list[int | None] = []

    @app.teardown_request
    def took(_: object) -> None:
        started.append(g.get("start") if cured else g.start)

    with app.test_request_context():
        g.start = 17
        said = "g.start was carried from the view by carry_context(), and is gone"
        with fails(said, unless=cured):
            in_thread(carry_context(path))
    assert started == ([None, 17] if cured else [17])


@pytest.mark.usefixtures("closing")
def test_a_flag_in_g_is_about_another_connection(app: Flask, cured: bool) -> None:
    """A connection that a task opens is not set up"""
    set_up = "pragma foreign_keys = on"

    def get_db() -> sqlite3.Connection:
        if "db" not in g:
            g.db = sqlite3.connect(":memory:")
            if cured:
                g.db.execute(set_up)
        if not cured and "is_set_up" not in g:
            g.is_set_up = True
            g.db.execute(set_up)
        db: sqlite3.Connection = g.db
        return db

    def look() -> Any:
        return get_db().execute("pragma foreign_keys").fetchone()

    with app.test_request_context():
        seen = [look(), in_thread(carry_context(look))]
    assert seen == [(1,), (1 if cured else 0,)]


def test_what_tasks_change_in_the_view(
    app: Flask, pool: ThreadPoolExecutor, cured: bool
) -> None:
    """A list in `g` is counted too often, is not sent, or changes in the view"""
    sent: list[int] = []

    @app.teardown_appcontext
    def send(_: object) -> None:
        sent.extend(g.pop("events", []))

    def work(number: int) -> None:
        items: list[str] = request.get_json()
        if cured:
            g.events = list[int]()
            g.memo = dict[str, int]()
            items = [*items]
        g.events.append(number)
        g.memo["last"] = number  # As a decorator that fills a cache does.
        items.append("milk")
        session["items"].append("milk")

    async def gather() -> None:
        async def async_work(number: int) -> None:
            work(number)

        carried = carry_context(async_work)
        await asyncio.gather(carried(3), carried(4))

    with app.test_request_context(json=["tea"]):
        g.events = list[int]()
        g.memo = dict[str, int]()
        session["items"] = [*request.get_json()]
        list(cast(Any, pool.map(carry_context(work), [1, 2])))
        asyncio.run(gather())
        shared = [g.events, g.memo, request.get_json()]
        assert [len(each) for each in shared] == ([0, 0, 1] if cured else [4, 1, 5])
        assert session["items"] == ["tea"]
        assert sorted(sent) == ([1, 2, 3, 4] if cured else [])


def test_a_teardown_function_starts_a_task(app: Flask, cured: bool) -> None:
    """Tasks keep starting new tasks"""
    audits: list[str] = []

    def start_audit(given: Any) -> Any:
        if len(audits) < 5:
            carry_context(lambda: audits.append(request.path))()
        return given

    register = app.after_request if cured else app.teardown_request
    cast(Any, register)(start_audit)
    app.test_client().get("/")
    assert len(audits) == (1 if cured else 5)


def test_a_failed_task_is_counted(app: Flask, cured: bool) -> None:
    """Metrics count a failed task as a failed request"""
    failures: list[BaseException] = []

    @app.teardown_request
    def count(error: BaseException | None) -> None:
        if error and (not cured or "start" in g):
            failures.append(error)

    def fail() -> None:
        raise LookupError("no price")

    with fails("no price"), app.test_request_context():
        g.start = 17
        with fails("no price"):
            in_thread(carry_context(fail))
        fail()
    assert len(failures) == (1 if cured else 2)


def test_a_job_runs_teardown_functions_of_the_app(app: Flask) -> None:
    """A job without a request runs no `teardown_request` function"""
    ran: list[str] = []

    @app.teardown_request
    def end_request(_: object) -> None:
        ran.append("teardown_request")

    @app.teardown_appcontext
    def end(_: object) -> None:
        ran.append("teardown_appcontext")

    with app.app_context():
        job = carry_context(int)
    ran.clear()
    job()
    assert ran == ["teardown_appcontext"]
    app.test_client().get("/")
    assert ran[1:] == ["teardown_request", "teardown_appcontext"]


# Databases


def here(func: Callable[[], Any]) -> Any:
    """Call a function in the view's own thread."""
    return func()


@pytest.mark.usefixtures("closing")
@pytest.mark.parametrize("call", [in_thread, here])
def test_a_task_sees_what_is_committed(
    app: Flask, tmp_path: Path, call: Callable[[Callable[[], Any]], Any], cured: bool
) -> None:
    """`database is locked`, `no such table`, or rows are missing"""

    def execute(statement: str) -> Any:
        if "db" not in g:
            g.db = sqlite3.connect(tmp_path / "shop.sqlite", timeout=0)
        return g.db.execute(statement).fetchone()

    def count() -> Any:
        return execute("select count(*) from orders")

    def insert() -> None:
        execute("insert into orders values (17)")

    with app.test_request_context():
        execute("create table orders (id)")
        insert()
        if cured:
            g.db.commit()
        assert count() == (1,)
        assert call(carry_context(count)) == ((1,) if cured else (0,))
        with fails("database is locked", unless=cured):
            call(carry_context(insert))


@pytest.mark.usefixtures("closing")
def test_each_connection_to_memory_is_a_database(
    app: Flask, get_db: Callable[[], sqlite3.Connection]
) -> None:
    """`database is locked`, `no such table`, or rows are missing"""
    with app.test_request_context():
        get_db().execute("create table orders (id)").connection.commit()
        task = carry_context(lambda: get_db().execute("select * from orders"))
        with fails("no such table: orders"):
            in_thread(task)


def test_an_orm_object_is_detached(
    app: Flask, db: Any, account: Any, cured: bool
) -> None:
    """`DetachedInstanceError: Instance … is not bound to a Session`"""
    with app.test_request_context():
        user = db.session.get(account, 1)
        id: int = user.id
        db.session.commit()

        def name() -> Any:
            return (db.session.get(account, id) if cured else user).name

        task = carry_context(name)
    with fails("is not bound to a Session", unless=cured):
        assert in_thread(task) == "ada"


@pytest.mark.usefixtures("closing")
def test_a_hidden_connection_is_shared(
    app: Flask, get_db: Callable[[], sqlite3.Connection], cured: bool
) -> None:
    """A connection on `request` or inside an object is shared with the view"""
    with app.test_request_context():
        viewed = get_db()
        cast(Any, request).db = viewed
        g.service = SimpleNamespace(db=viewed)

        def look() -> list[bool]:
            if cured:
                g.service = SimpleNamespace(db=get_db())
            return [cast(Any, request).db is viewed, g.service.db is viewed]

        assert in_thread(carry_context(look)) == [True, not cured]


# The request body and uploads


def run_with_json() -> Any:
    """Call a function as webargs does: with arguments from the body."""

    def task(item: str) -> str:
        return item

    return task(**request.get_json())


@pytest.mark.parametrize(
    "task", [lambda: request.get_data(), run_with_json], ids=["itself", "by-a-library"]
)
@pytest.mark.parametrize(
    ("read", "cured"),
    [
        pytest.param(lambda: None, False, id="not-read"),
        pytest.param(lambda: request.stream.read(), False, id="as-a-stream"),
        pytest.param(lambda: request.get_data(cache=False), False, id="not-kept"),
        pytest.param(lambda: request.get_data(), True, id="read"),
    ],
)
def test_a_body_is_not_kept(
    app: Flask, task: Callable[[], Any], read: Callable[[], object], cured: bool
) -> None:
    """`carry_context() carries the request body only if the view has read and kept it`"""
    with app.test_request_context(method="POST", json={"item": "tea"}):
        read()
        with fails(UNREAD, unless=cured):
            assert "tea" in str(in_thread(carry_context(task)))


def test_a_teardown_function_reads_the_body(app: Flask, cured: bool) -> None:
    """`carry_context() carries the request body only if the view has read and kept it`"""
    audited: list[str] = []

    @app.teardown_request
    def audit(_: object) -> None:
        audited.append(request.form["item"])

    with app.test_request_context(method="POST", data={"item": "tea"}):
        if cured:
            request.get_data()
        with fails(UNREAD, unless=cured):
            in_thread(carry_context(path))
    assert audited == ["tea"] * (2 if cured else 1)


def upload(app: Flask, content: bytes) -> AbstractContextManager[Any]:
    """Open a request that has sent a file."""
    files = {"file": FileStorage(io.BytesIO(content), "list.txt")}
    boundary, body = encode_multipart(files)
    content_type = f"multipart/form-data; boundary={boundary}"
    return app.test_request_context(method="POST", data=body, content_type=content_type)


def read_upload(size: int = -1) -> bytes:
    content: bytes = request.files["file"].read(size)
    return content


@pytest.mark.parametrize(
    ("size", "said"),
    [(17, "I/O operation on closed file"), (1_000_000, "read of closed file")],
    ids=["small", "large"],
)
def test_an_upload_is_closed(app: Flask, tmp_path: Path, size: int, said: str) -> None:
    """`read of closed file`, `I/O operation on closed file`, or a file is empty the second time"""
    saved = tmp_path / "list.txt"
    with upload(app, b"t" * size):
        request.files["file"].save(saved)
        task, cured = carry_context(read_upload), carry_context(saved.read_bytes)
    with fails(said):
        in_thread(task)
    assert in_thread(cured) == b"t" * size


def test_tasks_share_the_position_of_an_upload(app: Flask) -> None:
    """`read of closed file`, `I/O operation on closed file`, or a file is empty the second time"""
    with upload(app, b"tea and milk"):
        request.files["file"].seek(0)
        task = carry_context(read_upload)
        assert [task(3), task(), task()] == [b"tea", b" and milk", b""]
        request.files["file"].seek(0)
        content = read_upload()
        cured = carry_context(content.decode)
        assert [cured(), cured()] == ["tea and milk"] * 2


# Results


def remember(name: str) -> str:
    @flask.after_this_request
    def add_header(response: Response) -> Response:
        response.headers["Name"] = name
        return response

    session["name"] = name
    flask.flash("Saved.")
    return name


remember.__qualname__ = "work"  # The name in the guide.


def test_a_change_of_the_session_is_lost(
    app: Flask, caplog: pytest.LogCaptureFixture, cured: bool
) -> None:
    """`session`, `flash()` or `after_this_request()` in a task does nothing"""
    app.testing = True
    (warning,) = re.findall(r"```\n(work .*?)\n```", GUIDE, re.DOTALL)

    @app.route("/")
    def view() -> str:
        if cured:
            return remember(in_thread(carry_context(lambda: "ada")))
        task = carry_context(remember)
        return str(in_thread(lambda: task("ada")))

    @app.route("/next")
    def next_view() -> list[Any]:
        return [session.get("name"), flask.get_flashed_messages()]

    client = app.test_client()
    assert client.get("/").headers.get("Name") == ("ada" if cured else None)
    seen = client.get("/next").get_json()
    expected: list[Any] = ["ada", ["Saved."]] if cured else [None, []]
    assert seen == expected
    assert caplog.messages == ([] if cured else [warning.replace("\n", " ")])


def test_flash_messages_are_shown_again(app: Flask, cured: bool) -> None:
    """Flash messages are shown twice"""
    with app.test_request_context():
        flask.flash("Saved.")
        if cured:
            messages: Any = flask.get_flashed_messages()
            shown = in_thread(carry_context(lambda: messages))
        else:
            shown = in_thread(carry_context(lambda: flask.get_flashed_messages()))
        assert shown == ["Saved."]
        assert ("_flashes" in session) is not cured  # For the next page.


def test_a_future_hides_an_error(
    app: Flask, caplog: pytest.LogCaptureFixture, cured: bool
) -> None:
    """A task fails, and nobody sees it"""

    def fail() -> None:
        raise LookupError("no price")

    def log_failure(future: Future[None]) -> None:
        if error := future.exception():
            app.logger.error("%s failed", request.path, exc_info=error)

    with ThreadPoolExecutor(1) as pool, app.test_request_context("/orders"):
        future = pool.submit(carry_context(fail))
        if cured:
            future.add_done_callback(carry_context(log_failure))
    assert caplog.messages == (["/orders failed"] if cured else [])


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_hides_a_refusal(app: Flask, cured: bool) -> None:
    """A task fails, and nobody sees it"""
    paths: list[str] = []

    def work() -> None:
        paths.append(request.path)

    @app.route("/orders")
    def view() -> str:
        target = carry_context(work) if cured else lambda: carry_context(work)()
        thread = threading.Thread(target=target)
        thread.start()
        thread.join(TIMEOUT)
        return "Started."

    assert app.test_client().get("/orders").text == "Started."
    assert paths == (["/orders"] if cured else [])


def test_a_pool_whose_tasks_wait_for_its_own_tasks_deadlocks(app: Flask) -> None:
    """The pool deadlocks"""
    with ThreadPoolExecutor(1) as pool, ThreadPoolExecutor(1) as second:

        def wait_for(inner_pool: ThreadPoolExecutor) -> str:
            inner = inner_pool.submit(carry_context(path))
            if inner_pool is pool and inner.cancel():  # It has not begun.
                return "It would wait for itself."
            return inner.result(TIMEOUT)

        with app.test_request_context("/orders"):
            outer = carry_context(wait_for)
            stuck = pool.submit(outer, pool).result(TIMEOUT)
            assert stuck == "It would wait for itself."
            assert pool.submit(outer, second).result(TIMEOUT) == "/orders"


# Coroutines


@functools.wraps(async_path)
def decorated_path() -> Any:
    return async_path()


@pytest.mark.parametrize("work", [lambda: async_path(), decorated_path])
def test_a_returned_coroutine_is_refused(app: Flask, work: Any) -> None:
    """`was never awaited`, `returned a coroutine`, or `There is no current event loop in thread`"""
    with app.test_request_context("/orders"):
        with fails("The function in carry_context() returned a coroutine"):
            in_thread(carry_context(work))
        cured: Any = carry_context(async_path)
    assert asyncio.run(cured()) == "/orders"


def test_a_coroutine_function_in_a_pool_is_not_awaited(app: Flask) -> None:
    """`was never awaited`, `returned a coroutine`, or `There is no current event loop in thread`"""
    with app.test_request_context("/orders"):
        coroutine = in_thread(carry_context(cast(Any, async_path)))
        with pytest.warns(RuntimeWarning, match="was never awaited"):
            del coroutine


def test_a_thread_has_no_event_loop(
    app: Flask, pool: ThreadPoolExecutor, cured: bool
) -> None:
    """`was never awaited`, `returned a coroutine`, or `There is no current event loop in thread`"""

    def run_in_current_loop() -> str:
        return asyncio.get_event_loop().run_until_complete(async_path())

    names: dict[str, Any] = {**globals(), "executor": pool, "work": async_path}
    with app.test_request_context("/orders"):
        if cured:
            recipe = snippets(GUIDE)[1]
            assert eval(recipe, names).result(TIMEOUT) == "/orders"
            return
        with fails("There is no current event loop in thread"):
            in_thread(carry_context(run_in_current_loop))


def test_an_async_teardown_function_is_refused(app: Flask, cured: bool) -> None:
    """`You cannot use AsyncToSync in the same thread as an async event loop`"""

    @app.teardown_appcontext
    async def close(_: object) -> None:
        await asyncio.sleep(0)

    @app.route("/orders")
    async def view() -> str:
        if cured:
            return await asyncio.to_thread(carry_context(asyncio.run), async_path())
        with fails(
            "You cannot use AsyncToSync in the same thread as an async event loop"
        ):
            await carry_context(async_path)()
        return "refused"

    answer = app.test_client().get("/orders").text
    assert answer == ("/orders" if cured else "refused")


def test_a_task_of_a_views_event_loop_ends_with_the_view(
    app: Flask, late: Late
) -> None:
    """`asyncio.create_task` in an async view: the task is cancelled"""
    tasks: list[asyncio.Task[Any]] = []

    async def wait_for_ever() -> None:
        await asyncio.Event().wait()

    @app.route("/orders")
    async def view() -> str:
        tasks.append(asyncio.create_task(carry_context(wait_for_ever)()))
        late.submit(carry_context(asyncio.run), async_path())
        return ""

    app.test_client().get("/orders")
    assert tasks[0].cancelled()
    assert late.result() == "/orders"


def test_a_task_of_an_anyio_view_cannot_run_anyio(app: Flask, cured: bool) -> None:
    """`Already running asyncio in this thread`, from `anyio.run`"""
    anyio: Any = importlib.import_module("anyio")

    def run() -> Any:
        return asyncio.run(async_path()) if cured else anyio.run(async_path)

    async def start() -> str:
        return str(await anyio.to_thread.run_sync(carry_context(run)))

    with app.test_request_context("/orders"):
        expected = fails("Already running asyncio in this thread", unless=cured)
        with expected:
            assert anyio.run(start) == "/orders"


# Processes and queues


def job() -> None:
    """Do nothing, as something that a queue can find by its name."""


@pytest.fixture
def carried_job(app: Flask) -> Callable[[], None]:
    with app.test_request_context("/orders"):
        return carry_context(job)


def test_pickle_and_a_process_pool_refuse_what_is_carried(carried_job: Any) -> None:
    """`Can't pickle local object 'carry_context.<locals>.work'`"""
    said = r"Can't (pickle|get) local object .*carry_context\.<locals>\.job"
    with pytest.raises((AttributeError, pickle.PicklingError), match=said):
        pickle.dumps(carried_job)
    assert pickle.loads(pickle.dumps(job)) is job
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as processes:
        error = processes.submit(carried_job).exception(TIMEOUT)
        assert re.search(said, str(error))
        assert processes.submit(math.sqrt, 289).result(TIMEOUT) == 17


def test_a_job_store_of_apscheduler_refuses(carried_job: Any, tmp_path: Path) -> None:
    """`This Job cannot be serialized`, or `Invalid attribute name`"""
    stores: Any = importlib.import_module("apscheduler.jobstores.sqlalchemy")
    schedulers: Any = importlib.import_module("apscheduler.schedulers.background")
    store = stores.SQLAlchemyJobStore(f"sqlite:///{tmp_path / 'jobs.sqlite'}")
    scheduler = schedulers.BackgroundScheduler(jobstores={"default": store})
    scheduler.start(paused=True)
    try:
        with fails("This Job cannot be serialized"):
            scheduler.add_job(carried_job, "interval", hours=1)
        scheduler.add_job(job, "interval", hours=1)
        assert [each.func for each in scheduler.get_jobs()] == [job]
    finally:
        scheduler.shutdown()
        store.engine.dispose()


def test_the_worker_of_rq_does_not_run_the_bare_function(carried_job: Any) -> None:
    """`This Job cannot be serialized`, or `Invalid attribute name`"""
    rq: Any = importlib.import_module("rq.job")
    connection = object()  # Nothing is sent: a worker looks the name up as here.
    with fails("Invalid attribute name: job"):
        rq.Job.create(carried_job, connection=connection).func  # noqa: B018
    assert rq.Job.create(job, connection=connection).func is job


# Python 3.12 warns of every fork beside a thread.
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_process_has_a_copy(app: Flask) -> None:
    """`multiprocessing` with fork raises no error, and the result is lost"""
    fork: Any = multiprocessing.get_context("fork")
    with app.test_request_context():
        g.prices = list[int]()
        process = fork.Process(target=carry_context(lambda: g.prices.append(17)))
        process.start()
        process.join(TIMEOUT)
        assert process.exitcode == 0
        assert g.prices == []
