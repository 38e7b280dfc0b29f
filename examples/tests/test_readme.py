"""What the README says is what happens: its snippets, its commands and its claims."""

import asyncio
import contextvars
import importlib
import io
import queue
import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import flask
import pytest
from documents import README, section, snippets, write_shop
from flask import (
    Flask,
    copy_current_request_context,
    current_app,
    g,
    has_request_context,
    request,
    session,
)
from helpers import ROOT, TIMEOUT, Late

from ctxcarry import carry_context

MAIN, ACCESSOR, TASKS, EXECUTOR, JOB = snippets(README)
UNREAD = (
    "carry_context() carries the request body only if the view has read and kept it"
)


@pytest.fixture
def names() -> dict[str, Any]:
    """What the first snippet of the README defines."""
    names: dict[str, Any] = {"__name__": "readme"}
    exec(MAIN, names)
    return names


def test_its_first_two_shell_commands_are_the_main_job_and_the_tests() -> None:
    main, tests = snippets(README, "sh")
    setup = "python3 -m venv .venv && .venv/bin/pip install -q "
    assert main.startswith(f"{setup}. && ")
    assert tests == f'{setup}".[test]" && .venv/bin/python -m pytest\n'


def test_the_main_job_finds_everything_carried() -> None:
    command = shlex.split(snippets(README, "sh")[0].rpartition(" && ")[2])
    assert command[0] == ".venv/bin/python"
    done = subprocess.run(
        [sys.executable, *command[1:]],
        cwd=ROOT,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        timeout=TIMEOUT,
    )
    assert "With carry_context" in done.stdout


def test_the_first_example_answers(names: dict[str, Any]) -> None:
    answer = names["app"].test_client().get("/report").text.strip()
    assert f"| `@carry_context` | `{answer}` |" in README


def test_the_first_example_fails_with_the_built_in(
    caplog: pytest.LogCaptureFixture,
) -> None:
    names: dict[str, Any] = {"__name__": "readme"}
    names["copy_current_request_context"] = copy_current_request_context
    text = MAIN.replace("@carry_context", "@copy_current_request_context")
    exec(text, names)
    assert names["app"].test_client().get("/report").status_code == 500
    (record,) = caplog.records
    assert record.exc_info
    assert "500, `AttributeError: tenant`" in README
    assert repr(record.exc_info[1]) == "AttributeError('tenant')"


# Why not copy_current_request_context?

Way = Callable[[Callable[..., Any]], Callable[..., Any]]
BUILT_IN = cast(Way, copy_current_request_context)
CARRY = cast(Way, carry_context)


def result_or_error(future: Future[Any]) -> Any:
    """Return what a task returned, or the name of its error."""
    error = future.exception(TIMEOUT)
    return type(error).__name__ if error else future.result()


def see_g_and_variables(app: Flask, pool: Executor, carry: Way) -> Any:
    variable = contextvars.ContextVar("variable", default="gone")

    @app.route("/")
    def view() -> list[str]:
        g.tenant = "acme"
        variable.set("there")
        task = carry(lambda: [g.get("tenant", "empty"), variable.get()])
        seen: list[str] = pool.submit(task).result(TIMEOUT)
        return seen

    return app.test_client().get("/").get_json()


def call_at_once(app: Flask, pool: Executor, carry: Way) -> Any:
    """Run two calls of one function, of which the first one to start ends first."""
    started = [threading.Event(), threading.Event()]
    may_end = [threading.Event(), threading.Event()]

    @app.route("/")
    def view() -> list[Any]:
        def task(number: int) -> str:
            started[number].set()
            may_end[number].wait(TIMEOUT)
            return request.path

        carried = carry(task)
        futures: list[Future[Any]] = []
        for number in 0, 1:
            futures.append(pool.submit(carried, number))
            started[number].wait(TIMEOUT)
        answers: list[Any] = []
        for number in 0, 1:
            may_end[number].set()
            answers.append(result_or_error(futures[number]))
        return answers

    return app.test_client().get("/").get_json()


def write_to_the_session(app: Flask, pool: Executor, carry: Way) -> Any:
    @app.route("/")
    def view() -> list[Any]:
        def task() -> None:
            session["user"] = "ada"
            request.tenant = "acme"  # type: ignore[attr-defined]

        pool.submit(carry(task)).result(TIMEOUT)
        return [session.get("user"), hasattr(request, "tenant")]

    return app.test_client().get("/").get_json()


def read_an_upload_after_a_task(app: Flask, pool: Executor, carry: Way) -> Any:
    @app.route("/", methods=["POST"])
    def view() -> list[str]:
        file = request.files["file"]
        pool.submit(carry(lambda: None)).result(TIMEOUT)
        try:
            return [file.read().decode()]
        except ValueError as error:
            return [str(error)]

    data = {"file": (io.BytesIO(b"tea"), "list.txt")}
    return app.test_client().post("/", data=data).get_json()


def await_in_an_async_view(app: Flask, pool: Executor, carry: Way) -> Any:
    async def path() -> str:
        await asyncio.sleep(0)
        return request.path

    @app.route("/")
    async def view() -> list[Any]:
        try:
            carried: Any = carry(path)
            return [await asyncio.gather(carried(), carried())]
        except RuntimeError as error:
            return [type(error).__name__]

    return app.test_client().get("/").get_json()


class Row(NamedTuple):
    """A row of the table: how it is tried, and what comes of either way."""

    try_it: Callable[[Flask, Executor, Way], Any]
    built_in: Any
    carried: Any


ROWS = {
    "`g` and context variables": Row(
        see_g_and_variables, ["empty", "gone"], ["acme", "there"]
    ),
    "one function, many calls: `executor.map`": Row(
        call_at_once, ["ValueError", "ValueError"], ["/", "/"]
    ),
    "what the task writes to `session` or `request`": Row(
        write_to_the_session, ["ada", True], [None, False]
    ),
    "uploaded files": Row(
        read_an_upload_after_a_task, ["I/O operation on closed file."], ["tea"]
    ),
    "`await` in an async view": Row(
        await_in_an_async_view, ["RuntimeError"], [["/", "/"]]
    ),
}


@pytest.mark.parametrize("name", ROWS)
def test_a_row_that_decides_is_what_both_ways_do(
    name: str, pool: ThreadPoolExecutor
) -> None:
    row = ROWS[name]
    for carry, expected in [(BUILT_IN, row.built_in), (CARRY, row.carried)]:
        app = Flask("shop")
        app.secret_key = "for this test only"
        assert row.try_it(app, pool, carry) == expected


def test_each_row_that_decides_is_tried() -> None:
    text = section(README, "## Why not `copy_current_request_context`?")
    table = re.findall(r"^\| (.+?) \|", text, re.MULTILINE)
    assert table[1:] == [*ROWS] or table == [*ROWS]


def test_the_built_in_writes_to_the_session_and_reads_an_unread_body(
    app: Flask, pool: ThreadPoolExecutor
) -> None:
    @app.route("/", methods=["POST"])
    def view() -> list[Any]:
        def task() -> Any:
            session["user"] = "ada"
            return request.get_json()

        body = pool.submit(copy_current_request_context(task)).result(TIMEOUT)
        return [body, session.get("user")]

    assert app.test_client().post("/", json=["tea"]).get_json() == [["tea"], "ada"]


# Know before you use it


def test_a_teardown_function_finds_what_the_task_has_set_alone(app: Flask) -> None:
    found: list[list[str]] = []

    @app.teardown_request
    def look(error: BaseException | None) -> None:
        found.append(sorted(g))

    @app.route("/")
    def view() -> str:
        g.start = 17
        carry_context(lambda: setattr(g, "total", 18))()
        return ""

    app.test_client().get("/")
    assert found == [["total"], ["start"]]


# Using it


def test_the_ways_to_hand_a_task_over_work(app: Flask) -> None:
    lines: queue.Queue[str] = queue.Queue()
    given = (
        "`executor.submit(carry_context(task), 17)`, `Thread(target=carry_context(task))`, "
        "`Timer(60, carry_context(task))`"
    )
    assert given in README.replace("\n", " ")
    with ThreadPoolExecutor(1) as executor:

        @app.route("/orders")
        def view() -> str:
            def task(number: int = 0) -> None:
                lines.put(f"{request.path} {number}")

            executor.submit(carry_context(task), 17)
            threading.Thread(target=carry_context(task)).start()
            threading.Timer(0, carry_context(task)).start()
            return ""

        app.test_client().get("/orders")
        seen = sorted(lines.get(timeout=TIMEOUT) for _ in range(3))
    assert seen == ["/orders 0", "/orders 0", "/orders 17"]


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The package `shop` of the README, imported."""
    write_shop(tmp_path)
    cast(Any, monkeypatch).syspath_prepend(tmp_path)
    yield importlib.import_module("shop")
    for name in [name for name in sys.modules if name.partition(".")[0] == "shop"]:
        del sys.modules[name]


def test_a_task_of_a_module_has_the_context_of_the_view_that_calls_it(
    shop: Any, caplog: pytest.LogCaptureFixture
) -> None:
    app = shop.create_app()
    assert app.test_client().post("/orders/17/pay").get_json() == {"paid": 17}
    tasks: Any = importlib.import_module("shop.tasks")
    with app.test_request_context():
        g.tenant = "zoo"
        future: Future[None] = tasks.send_receipt(18)
        assert future.result(TIMEOUT) is None
    tasks.executor.shutdown()
    paid = ["Order 17 of acme is paid.", "Order 18 of zoo is paid."]
    assert sorted(caplog.messages) == paid


def test_a_task_of_a_module_that_fails_is_logged(
    shop: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def pay(order: int) -> None:
        raise LookupError(order)

    tasks: Any = importlib.import_module("shop.tasks")
    with shop.create_app().test_request_context():
        future: Future[None] = tasks.background(pay)(17)
        assert isinstance(future.exception(TIMEOUT), LookupError)
    tasks.executor.shutdown()
    (record,) = caplog.records
    assert (record.getMessage(), record.levelname) == ("pay failed", "ERROR")


def test_an_executor_that_wraps_automatically_carries_every_call(
    names: dict[str, Any],
) -> None:
    exec(EXECUTOR, names)
    app: Flask = names["app"]
    with names["ContextExecutor"](2) as executor:

        @app.route("/ways")
        async def ways() -> list[str]:
            def path(_: object = None) -> str:
                return request.path

            loop = asyncio.get_running_loop()
            in_loop = await loop.run_in_executor(executor, path)
            return [executor.submit(path).result(), *executor.map(path, [1]), in_loop]

        assert app.test_client().get("/ways").get_json() == ["/ways"] * 3


def test_a_job_without_a_request_has_the_app_and_may_start_itself_again(
    names: dict[str, Any],
) -> None:
    runs: queue.Queue[list[Any]] = queue.Queue()

    def refresh_prices(left: int = 1) -> None:
        if left:
            again = carry_context(partial(refresh_prices, left - 1))
            threading.Timer(0, again).start()
        runs.put([current_app.name, has_request_context()])

    names["refresh_prices"] = refresh_prices
    exec(JOB, names)
    assert [runs.get(timeout=TIMEOUT) for _ in range(2)] == [["readme", False]] * 2


# The one rule


def test_an_accessor_loads_an_orm_object_in_the_task(
    app: Flask, db: Any, late: Late
) -> None:
    class Account(db.Model):  # type: ignore[misc]
        id = db.Column(db.Integer, primary_key=True)
        name = db.Column(db.String, nullable=False)

    with app.app_context():
        db.create_all()
        db.session.add(Account(name="acme"))
        db.session.commit()
    names = {**vars(flask), "db": db, "Account": Account}
    exec(ACCESSOR, names)
    get_account: Any = names["get_account"]

    @app.route("/")
    def view() -> str:
        session["account_id"] = 1

        def rename() -> bool:
            get_account().name = "zoo"
            db.session.commit()
            return get_account() is g.account

        late.submit(carry_context(rename))
        return str(get_account().name)

    assert app.test_client().get("/").text == "acme"
    assert late.result() is True
    with app.app_context():
        assert db.session.get(Account, 1).name == "zoo"
        db.session.remove()


# What a task has


def test_the_response_of_a_view_that_carries_varies_by_cookie(app: Flask) -> None:
    @app.route("/")
    def view() -> str:
        carry_context(lambda: None)()
        return ""

    assert app.test_client().get("/").headers["Vary"] == "Cookie"


@pytest.mark.parametrize(
    ("read", "expected"),
    [
        pytest.param(lambda: request.get_json(), ["tea"], id="get_json"),
        pytest.param(lambda: request.get_data(), ["tea"], id="get_data"),
        pytest.param(lambda: None, UNREAD, id="nothing"),
    ],
)
def test_a_task_reads_after_the_response_what_the_view_has_read(
    app: Flask, late: Late, read: Callable[[], object], expected: Any
) -> None:
    def read_again() -> Any:
        return request.get_json()

    @app.route("/", methods=["POST"])
    def view() -> str:
        read()
        late.submit(carry_context(read_again))
        return ""

    app.test_client().post("/", json=["tea"])
    if expected is UNREAD:
        with pytest.raises(RuntimeError, match=re.escape(UNREAD)):
            late.result()
    else:
        assert late.result() == expected


def test_a_coroutine_function_runs_in_a_thread_by_asyncio_run(
    app: Flask, pool: ThreadPoolExecutor
) -> None:
    async def work() -> str:
        await asyncio.sleep(0)
        return request.path

    with app.test_request_context("/orders"):
        future = pool.submit(carry_context(asyncio.run), work())
    assert future.result(TIMEOUT) == "/orders"
