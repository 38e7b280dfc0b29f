"""The README's answers by symptom: each test shows the symptom, and then the cure."""

import asyncio
import contextlib
import io
import multiprocessing
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from flask import (
    Flask,
    Response,
    after_this_request,
    appcontext_pushed,
    copy_current_request_context,
    flash,
    g,
    get_flashed_messages,
    request,
    session,
    stream_with_context,
)
from flask_executor import Executor  # type: ignore[import-untyped]
from helpers import EXAMPLES, TIMEOUT, Late
from sqlalchemy.orm.exc import DetachedInstanceError

from ctxcarry import carry_context

OUTSIDE = "Working outside of request context"


def test_attribute_error_on_g_in_a_teardown_function(
    app: Flask, pool: ThreadPoolExecutor
) -> None:
    @app.before_request
    def start() -> None:
        g.start = 17

    @app.teardown_request
    def took(error: BaseException | None) -> None:
        if not cured or "start" in g:
            started.append(g.start)

    @app.route("/")
    def view() -> str:
        task = carry_context(lambda: "done")
        return repr(pool.submit(task).exception(TIMEOUT))

    started: list[int] = []
    cured = False
    assert app.test_client().get("/").text == "AttributeError('start')"
    cured = True
    assert app.test_client().get("/").text == "None"
    assert started == [17, 17]


def test_attribute_error_on_g_db_in_a_task(
    app: Flask, pool: ThreadPoolExecutor
) -> None:
    class Client:
        def __enter__(self) -> None: ...
        def __exit__(self, *_: object) -> None: ...
        def close(self) -> None: ...

    @app.route("/")
    def view() -> list[bool]:
        g.client = Client()
        error = pool.submit(carry_context(lambda: g.client)).exception(TIMEOUT)
        assert isinstance(error, AttributeError)
        notes = "".join(getattr(error, "__notes__", []))
        viewed = g.client

        @carry_context
        def is_given(client: Client) -> bool:
            return client is viewed

        @carry_context
        def has_own() -> bool:
            return g.setdefault("client", Client()) is not viewed

        given = pool.submit(is_given, viewed).result(TIMEOUT)
        said = sys.version_info < (3, 11) or "pass it as an argument" in notes
        return [said, given, pool.submit(has_own).result(TIMEOUT)]

    assert app.test_client().get("/").get_json() == [True, True, True]


@pytest.mark.parametrize(
    ("database", "commits", "outcome"),
    [
        ("shop.sqlite", False, "database is locked"),
        (":memory:", True, "no such table: orders"),
        ("shop.sqlite", True, "2 orders"),
    ],
)
def test_database_is_locked_or_no_such_table(
    app: Flask,
    pool: ThreadPoolExecutor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    database: str,
    commits: bool,
    outcome: str,
) -> None:
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


@pytest.mark.parametrize("cure", [None, "receiver", "id"])
def test_detached_instance_error(
    app: Flask, db: Any, late: Late, cure: str | None
) -> None:
    class Account(db.Model):  # type: ignore[misc]
        id = db.Column(db.Integer, primary_key=True)
        name = db.Column(db.String, nullable=False)

    with app.app_context():
        db.create_all()
        db.session.add(Account(name="acme"))
        db.session.commit()

    def merge_account(sender: Flask) -> None:
        if g.get("account"):
            g.account = db.session.merge(g.account)

    if cure == "receiver":
        appcontext_pushed.connect(merge_account, app)

    @app.route("/")
    def view() -> str:
        g.account = db.session.get(Account, 1)
        db.session.commit()
        id: int = g.account.id

        @carry_context
        def name() -> str:
            account = db.session.get(Account, id) if cure == "id" else g.account
            return str(account.name)

        late.submit(name)
        db.session.commit()
        return ""

    app.test_client().get("/")
    if cure:
        assert late.result() == "acme"
    else:
        with pytest.raises(DetachedInstanceError, match="is not bound to a Session"):
            late.result()


def upload(app: Flask) -> Any:
    data = {"file": (io.BytesIO(b"tea and milk"), "list.txt")}
    return app.test_client().post("/", data=data).get_json()


def test_io_operation_on_closed_file_after_the_response(
    app: Flask, late: Late, tmp_path: Path
) -> None:
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

    upload(app)
    with pytest.raises(ValueError, match="I/O operation on closed file"):
        late.result()
    assert late.result() == b"tea and milk"


def test_a_file_is_empty_the_second_time_or_tasks_get_parts_of_it(
    app: Flask, pool: ThreadPoolExecutor
) -> None:
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

    assert upload(app) == [["tea", " and milk", ""], ["tea and milk"] * 2]


def test_the_views_list_changes(app: Flask, pool: ThreadPoolExecutor) -> None:
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


def test_session_flash_or_after_this_request_in_a_task_does_nothing(
    app: Flask, pool: ThreadPoolExecutor
) -> None:
    def say(name: str) -> str:
        def add_header(response: Response) -> Response:
            response.headers["Total"] = "17"
            return response

        session["user"] = name
        flash("Saved.")
        after_this_request(add_header)
        return name

    @app.route("/<by>")
    def view(by: str) -> str:
        name = pool.submit(carry_context(say), by).result(TIMEOUT)
        return say(name) if by == "view" else name

    @app.route("/look")
    def look() -> list[Any]:
        return [session.get("user"), get_flashed_messages()]

    client = app.test_client()
    response = client.get("/task")
    assert "Total" not in response.headers and "Set-Cookie" not in response.headers
    assert client.get("/look").get_json() == [None, []]
    assert client.get("/view").headers["Total"] == "17"
    assert client.get("/look").get_json() == ["view", ["Saved."]]


@pytest.mark.parametrize("cured", [False, True])
def test_every_task_acts_for_the_same_user(
    app: Flask, pool: ThreadPoolExecutor, cured: bool
) -> None:
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
    @app.route("/login")
    def log_in() -> list[str]:
        def user() -> str:
            return str(session.get("user", "anonymous"))

        early = carry_context(user)
        session["user"] = "ada"
        tasks = early, carry_context(user)
        return [pool.submit(task).result(TIMEOUT) for task in tasks]

    assert app.test_client().get("/login").get_json() == ["anonymous", "ada"]


def test_working_outside_of_request_context_in_a_carried_function(app: Flask) -> None:
    def work() -> str:
        return request.path

    with app.app_context():
        alone = carry_context(work)
    with pytest.raises(RuntimeError, match=OUTSIDE):
        alone()
    with app.test_request_context("/orders"):
        cured = carry_context(work)
    assert cured() == "/orders"


def test_working_outside_of_request_context_where_submit_was_carried(
    app: Flask, pool: ThreadPoolExecutor
) -> None:
    def work() -> str:
        return request.path

    with app.test_request_context("/orders"):
        wrong = carry_context(pool.submit)(work)
        cured = pool.submit(carry_context(work))
    with pytest.raises(RuntimeError, match=OUTSIDE):
        wrong.result(TIMEOUT)
    assert cured.result(TIMEOUT) == "/orders"


def test_a_generator_behind_a_decorator_runs_outside(app: Flask) -> None:
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


@pytest.mark.parametrize("cured", [False, True])
def test_there_is_no_active_flask_context_in_a_streamed_response(
    app: Flask, pool: ThreadPoolExecutor, cured: bool
) -> None:
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


@pytest.mark.parametrize("cured", [False, True])
def test_one_request_begins_tasks_without_end(app: Flask, cured: bool) -> None:
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


def test_a_task_fails_and_nobody_sees_it(
    app: Flask, late: Late, caplog: pytest.LogCaptureFixture
) -> None:
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


def test_a_pool_stands_still(app: Flask) -> None:
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


def test_you_cannot_use_async_to_sync_in_the_same_thread_as_an_async_event_loop(
    app: Flask,
) -> None:
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


# Python 3.12 warns of every fork beside a thread.
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_multiprocessing_with_fork_pickles_nothing_and_so_refuses_nothing(
    app: Flask,
) -> None:
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


# Logs, servers and moves


def test_each_line_that_structlog_writes_in_a_task_has_the_id_of_the_request(
    app: Flask, late: Late
) -> None:
    import structlog

    logs = structlog.testing.LogCapture()
    processors: list[Any] = [structlog.contextvars.merge_contextvars, logs]
    log: Any = structlog.wrap_logger(structlog.PrintLogger(), processors=processors)

    @app.before_request
    def identify() -> None:
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request.headers["Request-Id"])

    @app.route("/")
    def view() -> str:
        late.submit(carry_context(log.info), "done")
        return ""

    client = app.test_client()
    for id in "r1", "r2":
        client.get("/", headers={"Request-Id": id})
    late.result()
    late.result()
    assert {entry["request_id"] for entry in logs.entries} == {"r1", "r2"}


@contextlib.contextmanager
def server(*command: str) -> Generator[str]:
    """Run a server's command on a free port, and end it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    line = [sys.executable, "-m", *(part.format(port=port) for part in command)]
    with subprocess.Popen(line, cwd=EXAMPLES, stderr=subprocess.PIPE, text=True) as run:
        assert run.stderr is not None
        try:
            for text in run.stderr:
                if re.search("Booting worker|Serving on|Running on", text):
                    break
            threading.Thread(target=run.stderr.read, daemon=True).start()
            yield f"http://127.0.0.1:{port}"
        finally:
            run.send_signal(signal.SIGTERM)
            run.wait(TIMEOUT)


GUNICORN = ("gunicorn", "--bind", "127.0.0.1:{port}", "from_flask_threads:app")


@pytest.mark.parametrize(
    "command",
    [
        (*GUNICORN, "--preload", "--workers", "2"),
        (*GUNICORN, "--worker-class", "gevent"),
        ("waitress", "--listen", "127.0.0.1:{port}", "from_flask_threads:app"),
    ],
    ids=["gunicorn --preload", "gunicorn with gevent", "waitress"],
)
def test_the_servers_of_the_readme_run_tasks(command: tuple[str, ...]) -> None:
    browser = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    browser.addheaders = [("user-id", "17")]
    with server(*command) as address:
        for path in "/user/thread", "/user/executor":
            with browser.open(address + path, timeout=TIMEOUT) as response:
                assert b'"user_id":"17"' in response.read()


@pytest.mark.parametrize("carry", [copy_current_request_context, carry_context])
def test_moving_from_the_built_in_brings_g_and_separates_the_session(
    app: Flask, pool: ThreadPoolExecutor, carry: Any
) -> None:
    @app.route("/")
    def view() -> list[Any]:
        g.tenant = "acme"

        def work() -> str | None:
            session["user"] = "ada"
            tenant: str | None = g.get("tenant")
            return tenant

        return [pool.submit(carry(work)).result(TIMEOUT), session.get("user")]

    moved = carry is carry_context
    expected = ["acme", None] if moved else [None, "ada"]
    assert app.test_client().get("/").get_json() == expected


@pytest.mark.parametrize("wrapped", [False, True])
def test_moving_from_flask_executor_begins_within_flask_executor(
    app: Flask, wrapped: bool
) -> None:
    executor: Any = Executor(app)

    @app.route("/")
    def view() -> list[Any]:
        g.tenant = "acme"

        def work() -> str:
            session["user"] = "ada"
            return f"{request.path} of {g.tenant}"

        task = carry_context(work) if wrapped else work
        return [executor.submit(task).result(TIMEOUT), session.get("user")]

    expected = ["/ of acme", None if wrapped else "ada"]
    assert app.test_client().get("/").get_json() == expected
    executor.shutdown()
