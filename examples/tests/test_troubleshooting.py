"""The answers of troubleshooting.md: each test shows the symptom, and then the cure.

The docstring of a test is the heading that it belongs to.
"""

import asyncio
import contextlib
import importlib
import io
import math
import multiprocessing
import pickle
import re
import sqlite3
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextvars import ContextVar
from pathlib import Path
from typing import Any, cast

import flask
import pytest
from flask import (
    Flask,
    Response,
    after_this_request,
    flash,
    g,
    get_flashed_messages,
    has_request_context,
    request,
    session,
    stream_with_context,
)
from helpers import EXAMPLES, TIMEOUT, Late
from sqlalchemy.orm.exc import DetachedInstanceError
from werkzeug.datastructures import FileStorage
from werkzeug.test import encode_multipart

from ctxcarry import carry_context

GUIDE = (EXAMPLES / "troubleshooting.md").read_text("utf-8")
OUTSIDE = "Working outside of request context"
UNREAD = (
    "carry_context() carries the request body only if the view has read and kept it"
)
BARE = """
from flask import request

def work():
    return request.path
"""
WRAPPED = BARE.replace(
    "def", "from ctxcarry import carry_context\n\n@carry_context\ndef"
)


def snippet(beginning: str) -> str:
    """Return the Python snippet of the guide that begins so."""
    snippets = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)
    (found,) = [text for text in snippets if text.startswith(beginning)]
    return str(found)


def notes_of(error: BaseException | None) -> list[str]:
    """Return the notes of an error, which Python has from 3.11 on."""
    return getattr(error, "__notes__", [])


def write_module(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str
) -> None:
    """Write a module that can be imported until the test ends."""
    (folder / f"{name}.py").write_text(text)
    cast(Any, monkeypatch).syspath_prepend(folder)
    monkeypatch.setitem(sys.modules, name, cast(Any, None))
    del sys.modules[name]


def test_each_answer_is_run() -> None:
    headings = re.findall(r"^### (.*)", GUIDE, re.MULTILINE)
    tests = [value for name, value in globals().items() if name.startswith("test_")]
    said = {test.__doc__ for test in tests if test.__doc__}
    assert said == set(headings)


# Contexts


def test_a_function_carried_without_a_request_has_none(app: Flask) -> None:
    """`Working outside of request context`, in a carried function"""

    def work() -> str:
        return request.path

    with app.app_context():
        alone = carry_context(work)
    with pytest.raises(RuntimeError, match=OUTSIDE):
        alone()
    with app.test_request_context("/orders"):
        cured = carry_context(work)
    assert cured() == "/orders"


def test_carrying_submit_does_not_carry_the_task(
    app: Flask, pool: ThreadPoolExecutor
) -> None:
    """`Working outside of request context`, in a carried function"""

    def work() -> str:
        return request.path

    with app.test_request_context("/orders"):
        wrong = carry_context(pool.submit)(work)
        cured = pool.submit(carry_context(work))
    with pytest.raises(RuntimeError, match=OUTSIDE):
        wrong.result(TIMEOUT)
    assert cured.result(TIMEOUT) == "/orders"


def test_a_generator_behind_a_decorator_runs_outside(app: Flask) -> None:
    """`Working outside of request context`, in a carried function"""

    def decorated(func: Callable[[], Iterator[str]]) -> Callable[[], Iterator[str]]:
        return lambda: func()

    @decorated
    def rows() -> Iterator[str]:
        yield request.path

    with app.test_request_context("/orders"):
        hidden, cured = carry_context(rows), carry_context(lambda: list(rows()))
    with pytest.raises(RuntimeError, match=OUTSIDE):
        list(hidden())
    assert cured() == ["/orders"]


def test_carrying_at_the_top_level_of_a_module_finds_no_context(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, app: Flask
) -> None:
    """`There is no active Flask context to carry`"""

    write_module(tmp_path, monkeypatch, "early_tasks", WRAPPED)
    with pytest.raises(RuntimeError, match="There is no active Flask context to carry"):
        importlib.import_module("early_tasks")
    write_module(tmp_path, monkeypatch, "bare_tasks", BARE)
    bare: Any = importlib.import_module("bare_tasks")
    with app.test_request_context("/orders"):
        assert carry_context(bare.work)() == "/orders"


def test_carrying_while_a_view_imports_the_module_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, app: Flask
) -> None:
    """`carry_context() was called while a request imports the module`"""

    write_module(tmp_path, monkeypatch, "late_tasks", WRAPPED)
    write_module(tmp_path, monkeypatch, "plain_tasks", BARE)

    @app.route("/<module>")
    def view(module: str) -> str:
        try:
            tasks: Any = importlib.import_module(module)
        except RuntimeError as error:
            return str(error)
        return str(carry_context(tasks.work)())

    client = app.test_client()
    said = "carry_context() was called while a request imports the module 'late_tasks'"
    assert client.get("/late_tasks").text.startswith(said)
    assert client.get("/plain_tasks").text == "/plain_tasks"


def test_a_result_in_place_of_a_function_is_refused(
    app: Flask, pool: ThreadPoolExecutor
) -> None:
    """`carry_context() takes a function, not 'NoneType'`"""

    def work(number: int) -> None:
        numbers.append(number)

    numbers: list[int] = []
    with app.test_request_context():
        with pytest.raises(TypeError, match="takes a function, not 'NoneType'"):
            carry_context(cast(Any, work(17)))
        pool.submit(carry_context(work), 18).result(TIMEOUT)
    assert numbers == [17, 18]


def test_a_generator_function_is_refused(app: Flask) -> None:
    """`carry_context() cannot carry the generator function`"""

    def rows() -> Iterator[str]:
        yield request.path

    with app.test_request_context("/orders"):
        said = re.escape("carry_context() cannot carry the generator function")
        with pytest.raises(TypeError, match=said):
            carry_context(rows)
        cured = carry_context(lambda: list(rows()))
    assert cured() == ["/orders"]


def test_a_function_carried_by_create_app_never_has_the_request(app: Flask) -> None:
    """A task never has the request"""

    def work() -> list[Any]:
        return [has_request_context(), g.get("tenant", "nobody")]

    with app.app_context():  # As create_app() does, to import tasks.
        early = carry_context(work)

    @app.route("/")
    def view() -> list[Any]:
        g.tenant = "acme"
        return [early(), carry_context(work)()]

    seen = app.test_client().get("/").get_json()
    assert seen == [[False, "nobody"], [True, "acme"]]


@pytest.mark.parametrize("cured", [False, True])
def test_a_method_that_the_view_looks_up_is_the_views(
    app: Flask, pool: ThreadPoolExecutor, cured: bool
) -> None:
    """A task works on the view's own request or session"""

    @app.route("/")
    def view() -> list[str]:
        session["user"] = "ada"
        clear: Any = (lambda: session.clear()) if cured else session.clear
        pool.submit(carry_context(clear)).result(TIMEOUT)
        return [*session]

    expected = ["user"] if cured else []
    assert app.test_client().get("/").get_json() == expected


@pytest.mark.parametrize("cured", [False, True])
def test_every_task_acts_for_the_same_user(
    app: Flask, pool: ThreadPoolExecutor, cured: bool
) -> None:
    """Every task acts for the same user"""

    kept: list[Callable[[], str]] = []

    def work() -> str:
        return request.args["user"]

    @app.route("/")
    def view() -> str:
        if not kept:
            kept.append(work if cured else carry_context(work))
        task = carry_context(kept[0]) if cured else kept[0]
        return pool.submit(task).result(TIMEOUT)

    client = app.test_client()
    users = [client.get("/", query_string={"user": u}).text for u in ("ada", "eve")]
    assert users == (["ada", "eve"] if cured else ["ada", "ada"])


def test_current_user_is_anonymous_or_the_session_is_empty(
    app: Flask, pool: ThreadPoolExecutor
) -> None:
    """`current_user` is anonymous, or the session is empty"""

    @app.route("/login")
    def log_in() -> list[str]:
        def user() -> str:
            return str(session.get("user", "anonymous"))

        early = carry_context(user)
        session["user"] = "ada"
        tasks = early, carry_context(user)
        return [pool.submit(task).result(TIMEOUT) for task in tasks]

    assert app.test_client().get("/login").get_json() == ["anonymous", "ada"]


def test_a_value_in_threading_local_is_missing(
    app: Flask, pool: ThreadPoolExecutor
) -> None:
    """A value in `threading.local` is missing"""

    local = threading.local()
    variable: ContextVar[str] = ContextVar("tenant", default="nobody")

    @app.route("/")
    def view() -> list[str]:
        local.tenant = "acme"
        variable.set("acme")

        def tenants() -> list[str]:
            return [getattr(local, "tenant", "nobody"), variable.get()]

        return pool.submit(carry_context(tenants)).result(TIMEOUT)

    assert app.test_client().get("/").get_json() == ["nobody", "acme"]


def test_a_pools_initializer_sets_what_tasks_do_not_see(app: Flask) -> None:
    """A pool's initializer sets a context variable, and tasks do not see it"""

    local = threading.local()
    variable: ContextVar[str] = ContextVar("worker", default="unset")

    def initialize() -> None:
        variable.set("set")
        local.worker = "set"

    def look() -> list[str]:
        return [variable.get(), local.worker]

    with ThreadPoolExecutor(1, initializer=initialize) as workers:

        @app.route("/")
        def view() -> list[str]:
            return workers.submit(carry_context(look)).result(TIMEOUT)

        assert app.test_client().get("/").get_json() == ["unset", "set"]


# g and teardown functions


def test_a_teardown_function_misses_what_was_carried(
    app: Flask, pool: ThreadPoolExecutor
) -> None:
    """`AttributeError: start`, in a teardown function"""

    @app.before_request
    def start() -> None:
        g.start = 17

    @app.teardown_request
    def took(error: BaseException | None) -> None:
        started.append(g.get("start") if cured else g.start)

    @app.route("/")
    def view() -> list[str]:
        error = pool.submit(carry_context(lambda: "done")).exception(TIMEOUT)
        return [repr(error), *notes_of(error)]

    started: list[int | None] = []
    cured = False
    error, *notes = app.test_client().get("/").get_json()
    assert error == "AttributeError('start')"
    assert sys.version_info < (3, 11) or "Use g.get('start') there." in notes[0]
    cured = True
    assert app.test_client().get("/").get_json() == ["None"]
    assert started == [17, None, 17]


def test_a_connection_in_g_is_missing_in_a_task(
    app: Flask, pool: ThreadPoolExecutor
) -> None:
    """`AttributeError: db`, in a task"""

    names = {**vars(flask), "sqlite3": sqlite3, "DATABASE": ":memory:"}
    exec(snippet("def get_db"), names)  # noqa: S102
    get_db: Any = names["get_db"]

    @app.route("/")
    def view() -> list[Any]:
        viewed = get_db()

        def uses_own() -> list[Any]:
            own = get_db()
            (number,) = own.execute("select 17").fetchone()
            is_one = get_db() is own and own is not viewed
            own.close()
            return [number, is_one]

        error = pool.submit(carry_context(lambda: g.db)).exception(TIMEOUT)
        passed = pool.submit(carry_context(viewed.execute), "select 17")
        refused = str(passed.exception(TIMEOUT))
        own = pool.submit(carry_context(uses_own)).result(TIMEOUT)
        viewed.close()
        return [repr(error), notes_of(error), refused, own]

    error, notes, refused, own = app.test_client().get("/").get_json()
    assert error == "AttributeError('db')"
    assert sys.version_info < (3, 11) or "g.db stays with the view" in notes[0]
    assert "SQLite objects created in a thread" in refused
    assert own == [17, True]


def test_g_get_finds_no_connection_in_a_task(
    app: Flask, pool: ThreadPoolExecutor
) -> None:
    """`g.get("db")` is `None` in a task"""

    @app.route("/")
    def view() -> list[bool]:
        with contextlib.closing(sqlite3.connect(":memory:")) as g.db:
            task = carry_context(lambda: [g.get("db") is None, "db" in g])
            return pool.submit(task).result(TIMEOUT)

    assert app.test_client().get("/").get_json() == [True, False]


@pytest.mark.parametrize("cured", [False, True])
def test_a_flag_in_g_says_of_the_views_connection_that_it_is_set_up(
    app: Flask, pool: ThreadPoolExecutor, cured: bool
) -> None:
    """A connection that a task opens is not set up"""

    def get_db() -> sqlite3.Connection:
        if "db" not in g:
            g.db = sqlite3.connect(":memory:")
            if cured:
                g.db.execute("pragma foreign_keys = on")
        if not cured and "is_set_up" not in g:
            g.db.execute("pragma foreign_keys = on")
            g.is_set_up = True
        db: sqlite3.Connection = g.db
        return db

    @app.teardown_appcontext
    def close(error: BaseException | None) -> None:
        if "db" in g:
            g.db.close()

    def look() -> bool:
        (value,) = get_db().execute("pragma foreign_keys").fetchone()
        return bool(value)

    @app.route("/")
    def view() -> list[bool]:
        return [look(), pool.submit(carry_context(look)).result(TIMEOUT)]

    assert app.test_client().get("/").get_json() == [True, cured]


@pytest.mark.parametrize("cured", [False, True])
def test_a_teardown_function_does_not_send_the_views_list_for_a_task(
    app: Flask, late: Late, cured: bool
) -> None:
    """What a task appends to a list in `g` is not sent"""

    sent: list[str] = []

    @app.before_request
    def start() -> None:
        g.events = []

    @app.teardown_appcontext
    def send(error: BaseException | None) -> None:
        sent.extend(g.pop("events", []))

    def work() -> None:
        if cured:
            g.events = list[str]()
        g.events.append("task")

    @app.route("/")
    def view() -> str:
        g.events.append("view")
        late.submit(carry_context(work))
        return ""

    app.test_client().get("/")
    late.result()
    assert sent == (["view", "task"] if cured else ["view"])


@pytest.mark.parametrize("cured", [False, True])
def test_a_teardown_function_that_starts_a_task_keeps_starting_tasks(
    app: Flask, cured: bool
) -> None:
    """Tasks keep starting new tasks"""

    audits: list[str] = []
    enough = 5

    def audit() -> None:
        audits.append(request.path)

    def after(response: Response) -> Response:
        carry_context(audit)()
        return response

    def teardown(error: BaseException | None) -> None:
        if len(audits) < enough:
            carry_context(audit)()

    if cured:
        app.after_request(after)
    else:
        app.teardown_request(teardown)
    app.test_client().get("/")
    assert len(audits) == (1 if cured else enough)


@pytest.mark.parametrize("cured", [False, True])
def test_a_failed_task_is_counted_as_a_failed_request(
    app: Flask, pool: ThreadPoolExecutor, cured: bool
) -> None:
    """Metrics count a failed task as a failed request"""

    failures: list[str] = []

    @app.before_request
    def start() -> None:
        g.start = 17

    @app.teardown_request
    def count(error: BaseException | None) -> None:
        if error and (not cured or "start" in g):
            failures.append(type(error).__name__)

    def fail() -> None:
        raise LookupError

    @app.route("/task")
    def view_with_a_task() -> str:
        assert pool.submit(carry_context(fail)).exception(TIMEOUT)
        return ""

    @app.route("/view")
    def failing_view() -> str:
        raise ZeroDivisionError

    client = app.test_client()
    assert client.get("/task").status_code == 200
    assert client.get("/view").status_code == 500
    uncured = ["LookupError", "ZeroDivisionError"]
    assert failures == (uncured[1:] if cured else uncured)


@pytest.mark.parametrize("cured", [False, True])
def test_a_teardown_function_that_reads_the_body_fails_the_task(
    app: Flask, pool: ThreadPoolExecutor, cured: bool
) -> None:
    """A task succeeds, and then its teardown function reads the body and fails"""

    @app.before_request
    def read() -> None:
        if cured:
            request.get_json()

    @app.teardown_request
    def audit(error: BaseException | None) -> None:
        audited.append(request.get_json())

    @app.route("/", methods=["POST"])
    def view() -> str:
        error = pool.submit(carry_context(lambda: "done")).exception(TIMEOUT)
        return str(error)

    audited: list[Any] = []
    said = app.test_client().post("/", json=["tea"]).text
    assert said.startswith("None" if cured else UNREAD)
    assert audited == [["tea"]] * (2 if cured else 1)


# Databases


@pytest.mark.parametrize(
    ("database", "commits", "outcome"),
    [
        ("shop.sqlite", False, "database is locked"),
        (":memory:", True, "no such table: orders"),
        ("shop.sqlite", True, "2 orders"),
    ],
)
def test_a_task_sees_only_what_is_committed_to_a_file(
    app: Flask,
    pool: ThreadPoolExecutor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    database: str,
    commits: bool,
    outcome: str,
) -> None:
    """`database is locked`, or `no such table`"""

    def get_db() -> sqlite3.Connection:
        if "db" not in g:
            g.db = sqlite3.connect(database, timeout=0)
        db: sqlite3.Connection = g.db
        return db

    @app.teardown_appcontext
    def close(_: object) -> None:
        if "db" in g:
            g.db.close()

    @app.route("/")
    def view() -> str:
        @carry_context
        def add(item: str) -> str:
            get_db().execute("insert into orders values (?)", [item])
            (count,) = get_db().execute("select count(*) from orders").fetchone()
            return f"{count} orders"

        get_db().execute("create table orders (item)")
        get_db().execute("insert into orders values ('tea')")
        if commits:
            get_db().commit()
        try:
            return pool.submit(add, "milk").result(TIMEOUT)
        except sqlite3.OperationalError as error:
            return str(error)

    monkeypatch.chdir(tmp_path)
    assert app.test_client().get("/").text == outcome


@pytest.mark.parametrize("cure", ["nothing", "id", "accessor"])
def test_an_orm_object_of_the_view_is_detached(
    app: Flask, db: Any, late: Late, cure: str
) -> None:
    """`DetachedInstanceError: Instance … is not bound to a Session`"""

    class Account(db.Model):  # type: ignore[misc]
        id = db.Column(db.Integer, primary_key=True)
        name = db.Column(db.String, nullable=False)

    with app.app_context():
        db.create_all()
        db.session.add(Account(name="acme"))
        db.session.commit()
    names = {**vars(flask), "db": db, "Account": Account}
    exec(snippet("def get_account"), names)  # noqa: S102
    get_account: Any = names["get_account"]

    @app.route("/")
    def view() -> str:
        session["account_id"] = 1
        account = get_account()
        id: int = account.id

        @carry_context
        def name() -> str:
            if cure == "accessor":
                used = get_account()
            else:
                used = db.session.get(Account, id) if cure == "id" else account
            return str(used.name)

        @carry_context
        def from_g() -> Any:
            return g.account

        late.submit(name)
        late.submit(from_g)
        db.session.commit()
        return ""

    app.test_client().get("/")
    if cure == "nothing":
        with pytest.raises(DetachedInstanceError, match="is not bound to a Session"):
            late.result()
    else:
        assert late.result() == "acme"
    with pytest.raises(AttributeError, match="account"):
        late.result()


def test_a_connection_on_the_request_is_the_views(
    app: Flask, pool: ThreadPoolExecutor
) -> None:
    """A connection on `request` is shared with the view"""

    @app.before_request
    def connect() -> None:
        connection = sqlite3.connect(":memory:", check_same_thread=False)
        request.db = g.db = connection  # type: ignore[attr-defined]

    @app.route("/")
    def view() -> list[bool]:
        viewed = g.db

        def look() -> list[bool]:
            return [vars(request)["db"] is viewed, "db" in g]

        seen = pool.submit(carry_context(look)).result(TIMEOUT)
        viewed.close()
        return seen

    assert app.test_client().get("/").get_json() == [True, False]


# The request body and uploads


@pytest.mark.parametrize(
    "read",
    [
        pytest.param(lambda: None, id="not-read"),
        pytest.param(lambda: request.stream.read(), id="as-a-stream"),
        pytest.param(lambda: request.get_data(cache=False), id="not-kept"),
    ],
)
def test_a_body_that_the_request_does_not_keep_cannot_be_read(
    app: Flask, pool: ThreadPoolExecutor, read: Callable[[], object]
) -> None:
    """`carry_context() carries the request body only if the view has read and kept it`"""

    @app.route("/", methods=["POST"])
    def view() -> str:
        read()
        task = carry_context(lambda: request.get_data())
        return str(pool.submit(task).exception(TIMEOUT))

    @app.route("/cured", methods=["POST"])
    def cured() -> bytes:
        request.get_data()
        return pool.submit(carry_context(lambda: request.get_data())).result(TIMEOUT)

    client = app.test_client()
    assert client.post("/", data=b"tea").text.startswith(UNREAD)
    assert client.post("/cured", data=b"tea").data == b"tea"


def upload(app: Flask, content: bytes) -> Any:
    """Send a file, and return what the view answers."""
    files = {"file": FileStorage(io.BytesIO(content), "list.txt")}
    boundary, body = encode_multipart(files)
    content_type = f"multipart/form-data; boundary={boundary}"
    client = app.test_client()
    return client.post("/", data=body, content_type=content_type).get_json()


@pytest.mark.parametrize(
    ("size", "said"),
    [
        pytest.param(17, "I/O operation on closed file", id="small"),
        pytest.param(1_000_000, "read of closed file", id="large"),
    ],
)
def test_an_upload_is_closed_after_the_response(
    app: Flask, late: Late, tmp_path: Path, size: int, said: str
) -> None:
    """`read of closed file`, or `I/O operation on closed file`"""

    @app.route("/", methods=["POST"])
    def view() -> list[str]:
        file = request.files["file"]

        @carry_context
        def read() -> bytes:
            content: bytes = request.files["file"].read()
            return content

        late.submit(read)
        path = tmp_path / "list.txt"
        file.save(path)
        late.submit(carry_context(path.read_bytes))
        return []

    upload(app, b"t" * size)
    with pytest.raises(ValueError, match=said):
        late.result()
    assert late.result() == b"t" * size


def test_tasks_share_the_position_of_an_upload(
    app: Flask, pool: ThreadPoolExecutor
) -> None:
    """A file is empty the second time, or tasks get parts of it"""

    @app.route("/", methods=["POST"])
    def view() -> list[list[str]]:
        file = request.files["file"]

        def read(size: int) -> str:
            return str(request.files["file"].read(size), "utf-8")

        task = carry_context(read)
        parts = [pool.submit(task, size).result(TIMEOUT) for size in (3, -1, -1)]
        file.seek(0)
        content = file.read()
        decode = carry_context(content.decode)
        return [parts, [pool.submit(decode).result(TIMEOUT) for _ in range(2)]]

    assert upload(app, b"tea and milk") == [
        ["tea", " and milk", ""],
        ["tea and milk"] * 2,
    ]


# Results


def test_what_a_task_does_to_its_session_and_response_is_lost(
    app: Flask, pool: ThreadPoolExecutor, caplog: pytest.LogCaptureFixture
) -> None:
    """`session`, `flash()` or `after_this_request()` in a task does nothing"""

    def work(name: str) -> str:
        def add_header(response: Response) -> Response:
            response.headers["Total"] = "17"
            return response

        session["user"] = name
        flash("Saved.")
        after_this_request(add_header)
        return name

    work.__qualname__ = "work"  # As it is at the top level of a module.

    @app.route("/<by>")
    def view(by: str) -> str:
        name = pool.submit(carry_context(work), by).result(TIMEOUT)
        return work(name) if by == "view" else name

    @app.route("/look")
    def look() -> list[Any]:
        return [session.get("user"), get_flashed_messages()]

    client = app.test_client()
    response = client.get("/task")
    assert "Total" not in response.headers and "Set-Cookie" not in response.headers
    assert client.get("/look").get_json() == [None, []]
    assert client.get("/view").headers["Total"] == "17"
    assert client.get("/look").get_json() == ["view", ["Saved."]]
    assert caplog.messages == []
    app.testing = True
    client.get("/task")
    (logged,) = re.findall(r"```\n(work .*?)\n```", GUIDE, re.DOTALL)
    assert caplog.messages == [logged.replace("\n", " ")]


@pytest.mark.parametrize("cured", [False, True])
def test_flash_messages_that_a_task_shows_are_shown_again(
    app: Flask, pool: ThreadPoolExecutor, cured: bool
) -> None:
    """Flash messages are shown twice"""

    @app.route("/")
    def view() -> str:
        flash("Saved.")
        return ""

    @app.route("/page")
    def page() -> list[Any]:
        if cured:
            messages: list[Any] = get_flashed_messages()
            return pool.submit(carry_context(lambda: messages)).result(TIMEOUT)
        get_messages: Any = get_flashed_messages
        shown: list[Any] = pool.submit(carry_context(get_messages)).result(TIMEOUT)
        return shown

    client = app.test_client()
    client.get("/")
    shown = [client.get("/page").get_json() for _ in range(2)]
    assert shown == [["Saved."], [] if cured else ["Saved."]]


def test_a_list_in_the_body_is_shared_with_the_view(
    app: Flask, pool: ThreadPoolExecutor
) -> None:
    """The view's list changes"""

    @app.route("/", methods=["POST"])
    def view() -> list[Any]:
        session["items"] = [*request.get_json()]

        @carry_context
        def build() -> list[str]:
            session["items"].append("milk")
            return [*request.get_json(), "milk"]

        @carry_context
        def change() -> list[str]:
            items: list[str] = request.get_json()
            items.append("milk")
            return items

        results: list[Any] = []
        for task in build, change:
            results += [pool.submit(task).result(TIMEOUT), [*request.get_json()]]
        return [*results, session["items"]]

    both = ["tea", "milk"]
    seen = app.test_client().post("/", json=["tea"]).get_json()
    assert seen == [both, ["tea"], both, both, ["tea"]]


def test_a_task_fails_and_nobody_sees_it(
    app: Flask, late: Late, caplog: pytest.LogCaptureFixture
) -> None:
    """A task fails, and nobody sees it"""

    logged = threading.Event()

    def fail() -> None:
        raise LookupError("no price")

    def log_failure(future: Future[None]) -> None:
        if error := future.exception():
            app.logger.error("%s failed", request.path, exc_info=error)
        logged.set()

    @app.route("/<how>")
    def view(how: str) -> str:
        late.submit(carry_context(fail))
        if how == "cured":
            late.futures[-1].add_done_callback(carry_context(log_failure))
        return ""

    client = app.test_client()
    assert client.get("/unseen").status_code == client.get("/cured").status_code == 200
    unseen, _ = late.futures
    late.answered.set()
    assert logged.wait(TIMEOUT) and unseen.exception(TIMEOUT)
    assert caplog.messages == ["/cured failed"]
    assert "LookupError: no price" in caplog.text


def test_a_pool_whose_tasks_wait_for_its_own_tasks_deadlocks(app: Flask) -> None:
    """The pool deadlocks"""

    with ThreadPoolExecutor(1) as pool, ThreadPoolExecutor(1) as second:

        @app.route("/")
        def view() -> list[Any]:
            @carry_context
            def outer(inner_pool: ThreadPoolExecutor) -> str:
                inner = inner_pool.submit(carry_context(lambda: request.path))
                # As long as this task has the only thread, it cannot begin.
                return "waits for itself" if inner.cancel() else inner.result(TIMEOUT)

            free = threading.Event()
            held = second.submit(free.wait, TIMEOUT)
            stuck = pool.submit(outer, pool).result(TIMEOUT)
            free.set()
            held.result(TIMEOUT)
            path = carry_context(lambda: request.path)
            cured = carry_context(lambda: second.submit(path).result(TIMEOUT))
            return [stuck, pool.submit(cured).result(TIMEOUT)]

        assert app.test_client().get("/").get_json() == ["waits for itself", "/"]


# Coroutines and generators


def test_a_plain_function_that_returns_a_coroutine_fails(
    app: Flask, pool: ThreadPoolExecutor
) -> None:
    """`The function in carry_context() returned a coroutine`"""

    async def work() -> str:
        return request.path

    with app.test_request_context("/orders"):
        func: Any = lambda: work()
        hidden = carry_context(func)
        cured: Any = carry_context(work)
        in_a_thread = pool.submit(carry_context(asyncio.run), work())
    said = re.escape("The function in carry_context() returned a coroutine")
    with pytest.raises(TypeError, match=said):
        hidden()
    assert asyncio.run(cured()) == "/orders"
    assert in_a_thread.result(TIMEOUT) == "/orders"


def test_a_coroutine_function_in_a_pool_is_not_awaited(
    app: Flask, pool: ThreadPoolExecutor
) -> None:
    """`coroutine … was never awaited`, and the task does nothing"""

    done: list[str] = []

    async def work() -> str:
        done.append(request.path)
        return request.path

    with app.test_request_context("/orders"):
        coroutine: Any = pool.submit(carry_context(work)).result(TIMEOUT)
        assert asyncio.iscoroutine(coroutine) and done == []
        with pytest.warns(RuntimeWarning, match="was never awaited"):
            del coroutine
        cured = pool.submit(carry_context(asyncio.run), work())
        assert cured.result(TIMEOUT) == "/orders"


def test_an_async_teardown_function_needs_a_thread_of_its_own(
    app: Flask,
) -> None:
    """`You cannot use AsyncToSync in the same thread as an async event loop`"""

    closed: list[str] = []

    @app.teardown_appcontext
    async def close(error: BaseException | None) -> None:
        closed.append(threading.current_thread().name)

    async def work() -> str:
        await asyncio.sleep(0)
        return request.path

    @app.route("/")
    async def view() -> list[str]:
        with pytest.raises(RuntimeError) as caught:
            await carry_context(work)()
        path = await asyncio.to_thread(carry_context(asyncio.run), work())
        return [str(caught.value), path]

    error, path = app.test_client().get("/").get_json()
    assert error.startswith("You cannot use AsyncToSync in the same thread as an async")
    assert path == "/" and len(closed) == 2


def test_a_task_of_a_views_event_loop_ends_with_the_view(
    app: Flask, late: Late
) -> None:
    """`asyncio.create_task` in an async view: the task is cancelled"""

    ended: list[str] = []
    held: list[Any] = []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    async def path() -> str:
        await asyncio.sleep(0)
        return request.path

    @app.route("/")
    async def view() -> str:
        held.append(asyncio.create_task(carry_context(work)()))
        await asyncio.sleep(0)
        late.submit(carry_context(asyncio.run), path())
        return ""

    app.test_client().get("/")
    assert ended == ["cancelled"]
    assert late.result() == "/"


@pytest.mark.parametrize("cured", [False, True])
def test_a_streamed_response_has_no_context(
    app: Flask, pool: ThreadPoolExecutor, cured: bool
) -> None:
    """A streamed response: `There is no active Flask context`"""

    @app.route("/orders")
    def view() -> Response:
        def rows() -> Iterator[str]:
            yield pool.submit(carry_context(lambda: request.path)).result(TIMEOUT)

        return Response(stream_with_context(rows()) if cured else rows())

    if cured:
        assert app.test_client().get("/orders").text == "/orders"
    else:
        with pytest.raises(RuntimeError, match="no active Flask context"):
            app.test_client().get("/orders")


# Processes and queues


def job() -> None:
    """Do nothing, as something that a queue can find by its name."""


@pytest.fixture
def carried_job(app: Flask) -> Callable[[], None]:
    with app.test_request_context("/orders"):
        return carry_context(job)


def test_pickle_refuses_what_is_carried(carried_job: Callable[[], None]) -> None:
    """`Can't pickle local object 'carry_context.<locals>.work'`"""

    said = r"Can't (pickle|get) local object .*carry_context\.<locals>\.job"
    with pytest.raises((AttributeError, pickle.PicklingError), match=said):
        pickle.dumps(carried_job)
    assert pickle.loads(pickle.dumps(job)) is job


def test_a_process_pool_refuses_what_is_carried(carried_job: Any) -> None:
    """`Can't pickle local object 'carry_context.<locals>.work'`"""

    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as processes:
        error = processes.submit(carried_job).exception(TIMEOUT)
        assert "carry_context.<locals>.job" in str(error)
        assert processes.submit(math.sqrt, 289).result(TIMEOUT) == 17


def test_a_job_store_of_apscheduler_refuses_what_is_carried(
    carried_job: Any, tmp_path: Path
) -> None:
    """APScheduler: `This Job cannot be serialized`"""

    stores: Any = importlib.import_module("apscheduler.jobstores.sqlalchemy")
    schedulers: Any = importlib.import_module("apscheduler.schedulers.background")
    store = stores.SQLAlchemyJobStore(f"sqlite:///{tmp_path / 'jobs.sqlite'}")
    scheduler = schedulers.BackgroundScheduler(jobstores={"default": store})
    scheduler.start(paused=True)
    try:
        with pytest.raises(ValueError, match="This Job cannot be serialized"):
            scheduler.add_job(carried_job, "interval", hours=1)
        scheduler.add_job(job, "interval", hours=1)
        assert [each.func for each in scheduler.get_jobs()] == [job]
    finally:
        scheduler.shutdown()
        store.engine.dispose()


def test_the_worker_of_rq_does_not_run_the_bare_function(carried_job: Any) -> None:
    """RQ: `Invalid attribute name: work`"""

    rq: Any = importlib.import_module("rq.job")
    connection = object()  # Nothing is sent: a worker looks the name up as here.
    with pytest.raises(ValueError, match="Invalid attribute name: job"):
        rq.Job.create(carried_job, connection=connection).func  # noqa: B018
    assert rq.Job.create(job, connection=connection).func is job


# Python 3.12 warns of every fork beside a thread.
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_process_works_on_a_copy_of_everything(
    app: Flask,
) -> None:
    """`multiprocessing` with fork refuses nothing, and the result is lost"""

    fork: Any = multiprocessing.get_context("fork")
    ours, theirs = fork.Pipe()

    def run(target: Callable[..., None], *args: Any) -> Any:
        process = fork.Process(target=target, args=args)
        process.start()
        process.join(TIMEOUT)
        assert process.exitcode == 0
        return ours.recv()

    @app.route("/")
    def view() -> list[Any]:
        g.prices, g.tenant = list[int](), "acme"

        def append() -> None:
            g.prices.append(17)
            theirs.send(g.prices)

        def compute(tenant: str) -> None:
            with app.app_context():
                g.tenant = tenant
                theirs.send(f"17 for {g.tenant}")

        of_the_child = run(carry_context(append))
        return [of_the_child, g.prices, run(compute, g.tenant)]

    assert app.test_client().get("/").get_json() == [[17], [], "17 for acme"]
    ours.close()
    theirs.close()
