"""The guides: their snippets run, and their links lead somewhere, those of the README too."""

import asyncio
import concurrent.futures
import contextlib
import importlib
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from documents import (
    RECIPES,
    anchors,
    documents,
    links,
    section,
    snippets,
    write_shop,
)
from flask import (
    Flask,
    copy_current_request_context,
    g,
    has_request_context,
    request,
    session,
)
from flask_executor import Executor  # type: ignore[import-untyped]
from helpers import EXAMPLES, ROOT, TIMEOUT, Late

from ctxcarry import carry_context

SCREEN = 50
LOGGED_TASKS = """
import threading
from concurrent.futures import ThreadPoolExecutor

from ctxcarry import carry_context

executor = ThreadPoolExecutor(1)


def succeed():
    app.logger.info("in a task")
    logging.getLogger("library").info("in a library")


def fail():
    raise LookupError("no price")


@app.route("/")
def view():
    executor.submit(carry_context(succeed)).result()
    executor.submit(carry_context(logged(fail))).exception()
    thread = threading.Thread(target=carry_context(fail))
    thread.start()
    thread.join()
    raise ZeroDivisionError


app.logger.info("outside")
server = make_server("127.0.0.1", 0, app)
threading.Thread(target=server.serve_forever).start()
address = f"http://127.0.0.1:{server.server_port}/"
browser = urllib.request.build_opener(urllib.request.ProxyHandler({}))
browser.addheaders = [("X-Request-Id", "r17")]
try:
    browser.open(address)
except urllib.error.HTTPError as error:
    error.close()
server.shutdown()
"""


# Links


@pytest.mark.parametrize("name", documents())
def test_each_link_of_a_document_leads_somewhere(name: str) -> None:
    path = ROOT / name
    broken: list[str] = []
    for link in links(path.read_text("utf-8")):
        if re.match(r"https?://", link):
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        found = target.exists() and target.is_relative_to(ROOT)
        if anchor and found:
            found = anchor in anchors(target.read_text("utf-8"))
        if not found:
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("name", documents())
def test_a_guide_that_is_longer_than_a_screen_has_a_table_of_contents(
    name: str,
) -> None:
    path = ROOT / name
    text = path.read_text("utf-8")
    if name in ("README.md", "examples/compare/README.md"):
        return  # The first has links at its top, and the other is two tables.
    if len(text.splitlines()) <= SCREEN:
        return
    headings = re.findall(r"^#{2,3} .*", text, re.MULTILINE)
    assert len(headings) > 2
    before, _, _ = text.partition("\n## ")
    linked = {link.removeprefix("#") for link in links(before)}
    top = {heading for heading in headings if heading.startswith("## ")}
    assert anchors("\n".join(top)) <= linked


def test_each_example_is_in_the_table_of_examples() -> None:
    listed = set(links(section(RECIPES, "## Examples")))
    files = {path.name for path in EXAMPLES.glob("*.py")} - {"make_celery.py"}
    folders = {path.name for path in EXAMPLES.iterdir() if path.is_dir()}
    folders -= {"tests", "instance", "__pycache__"}
    assert files <= listed
    assert folders <= {link.partition("/")[0] for link in listed}


# A request id in every log line


def run(code: str, folder: Path) -> list[str]:
    """Run a program where no test runner handles its log, and return what it logged."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=True,
        stderr=subprocess.PIPE,
        text=True,
        timeout=TIMEOUT,
    )
    return done.stderr.splitlines()


def test_each_log_line_of_a_request_and_of_its_tasks_has_the_id(tmp_path: Path) -> None:
    imports = "import urllib.error, urllib.request\nfrom werkzeug.serving import make_server\n"
    recipe = snippets(section(RECIPES, "## A request id in every log line"))
    lines = run("\n".join([imports, *recipe, LOGGED_TASKS]), tmp_path)
    logged = [line for line in lines if re.match(r"\S+ \S+: ", line)]
    beginnings = [
        "- __main__: outside",
        "r17 __main__: in a task",
        "r17 library: in a library",
        "r17 __main__: fail failed",
        "r17 __main__: Exception on / [GET]",
        "r17 werkzeug: 127.0.0.1",
    ]
    ours = [line for line in logged if re.match(r"\S+ (__main__|library|werkz)", line)]
    assert len(ours) == len(beginnings)
    for line, beginning in zip(ours, beginnings, strict=True):
        assert line.startswith(beginning)
    # The traceback of the thread, which Python prints, and no logger.
    assert [line for line in lines if line.startswith("Exception in thread")] != []
    assert lines.count("LookupError: no price") == 2


def test_each_line_that_structlog_writes_in_a_task_has_the_id(
    app: Flask, late: Late
) -> None:
    structlog: Any = importlib.import_module("structlog")
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


# Testing


def test_the_tests_of_the_recipes_pass(tmp_path: Path) -> None:
    write_shop(tmp_path)
    code = "\n\n".join(snippets(section(RECIPES, "## Testing")))
    (tmp_path / "test_shop.py").write_text(code)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}."},
        check=False,
        stdout=subprocess.PIPE,
        text=True,
        timeout=TIMEOUT,
    )
    assert "3 passed" in done.stdout, done.stdout


def test_the_inline_executor_keeps_an_error_in_the_future() -> None:
    recipe = snippets(section(RECIPES, "### With an inline executor"))[0]
    (inline,) = re.findall(r"^class .*?(?=^@)", recipe, re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {"Executor": concurrent.futures.Executor, "Future": Future}
    exec(inline, names)  # noqa: S102
    executor: concurrent.futures.Executor = names["InlineExecutor"]()
    assert isinstance(executor.submit(int, "seventeen").exception(), ValueError)
    assert list(executor.map(int, ["17", "18"])) == [17, 18]


# The recipes with a view or a job


@pytest.fixture
def run_recipe(app: Flask, pool: ThreadPoolExecutor) -> Callable[..., dict[str, Any]]:
    """A function that runs the snippets of a recipe, with an app and a pool."""

    def run(recipe: str, **given: Any) -> dict[str, Any]:
        names: dict[str, Any] = {
            "app": app,
            "asyncio": asyncio,
            "carry_context": carry_context,
            "executor": pool,
            "g": g,
            "request": request,
            **given,
        }
        for snippet in snippets(recipe):
            exec(snippet, names)  # noqa: S102
        return names

    return run


def test_slow_calls_run_in_parallel(
    app: Flask, run_recipe: Callable[..., dict[str, Any]]
) -> None:
    together = threading.Barrier(3)

    def fetch_price(item: str) -> str:
        together.wait(TIMEOUT)
        return f"{item} at {request.path}"

    run_recipe(section(RECIPES, "## Slow calls in parallel"), fetch_price=fetch_price)
    answer = app.test_client().get("/prices?item=a&item=b&item=c").get_json()
    assert answer == {item: f"{item} at /prices" for item in "abc"}


def test_a_long_task_stops_when_it_is_told_to(
    app: Flask, pool: ThreadPoolExecutor, run_recipe: Callable[..., dict[str, Any]]
) -> None:
    names = run_recipe(section(RECIPES, "## Stopping a long task"))
    client = app.test_client()
    client.get("/start/a")
    assert client.get("/stop/a").get_json() == {"stopped": "a"}
    assert names["stops"] == {}
    pool.shutdown()  # Waits for the task, which would take 1,000 seconds.
    stopped = threading.Event()
    stopped.set()
    with app.test_request_context("/start/b"):
        assert carry_context(names["count"])(stopped) == "/start/b stopped at 0"


def test_each_step_of_a_loop_has_a_context_of_its_own(
    app: Flask, run_recipe: Callable[..., dict[str, Any]]
) -> None:
    ended: list[str] = []
    seen: queue.Queue[list[str]] = queue.Queue()

    @app.teardown_appcontext
    def close(error: BaseException | None) -> None:
        if "db" in g:
            ended.append(g.pop("db"))

    def poll_supplier() -> None:
        seen.put([*ended])
        g.db = "a connection"

    loop = section(RECIPES, "## A loop that runs for ever")
    assert "stop.wait(60)" in loop
    names = run_recipe(loop.replace("60", "0"), poll_supplier=poll_supplier)
    steps = [seen.get(timeout=TIMEOUT) for _ in range(2)]
    names["stop"].set()
    assert steps == [[], ["a connection"]]


def test_a_job_starts_itself_again_without_a_request(
    app: Flask, run_recipe: Callable[..., dict[str, Any]]
) -> None:
    runs: queue.Queue[bool] = queue.Queue()
    enough = threading.Event()

    def start_no_more(seconds: int) -> None:
        enough.set()

    def fetch_prices() -> None:
        runs.put(has_request_context())
        if runs.qsize() < 3:
            raise LookupError("It is tried again.")
        names["start_timer"] = start_no_more

    names = run_recipe(
        section(RECIPES, "## A job that starts itself again"), fetch_prices=fetch_prices
    )
    timers = [each for each in threading.enumerate() if each.name.startswith("Thread")]
    waiting = [each for each in timers if isinstance(each, threading.Timer)]
    for timer in waiting:
        assert timer.daemon and timer.interval == 3600
        timer.cancel()
        timer.join(TIMEOUT)
    assert len(waiting) == 1
    failures: queue.Queue[Any] = queue.Queue()
    hook, threading.excepthook = threading.excepthook, failures.put
    try:
        with app.app_context():
            names["start_timer"](0)
        assert enough.wait(TIMEOUT)
        for _ in range(2):
            assert failures.get(timeout=TIMEOUT).exc_type is LookupError
    finally:
        threading.excepthook = hook
    assert [runs.get() for _ in range(3)] == [False] * 3


# Moving


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


def test_moving_from_the_built_in_is_helped_by_a_warning_in_testing_mode(
    app: Flask, caplog: pytest.LogCaptureFixture
) -> None:
    app.testing = True

    def remember() -> None:
        session["user"] = "ada"

    with app.test_request_context():
        carry_context(remember)()
    assert "remember changed the session in a task" in caplog.text


def test_a_coroutine_function_moved_from_the_built_in_runs_by_asyncio_run(
    app: Flask,
    pool: ThreadPoolExecutor,
    run_recipe: Callable[..., dict[str, Any]],
) -> None:
    names = run_recipe(
        section(RECIPES, "## Moving from `copy_current_request_context`")
    )
    client = app.test_client()
    assert client.get("/price/tea").get_json() == {"price": "tea at /price/tea"}
    with app.test_request_context("/before"):
        before: Any = copy_current_request_context(names["price"])
        future: Future[str] = pool.submit(before, "tea")
        assert future.result(TIMEOUT) == "tea at /before"


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


@pytest.mark.parametrize(
    ("package", "names"),
    [
        ("flask_executor", ["Executor.job", "Executor.submit_stored"]),
        ("flask_executor", ["Executor.add_default_done_callback"]),
        ("flaskthreads", ["AppContextThread", "ThreadPoolWithAppContextExecutor"]),
    ],
)
def test_what_the_moves_replace_is_what_the_packages_have(
    package: str, names: list[str]
) -> None:
    for name in names:
        found: Any = importlib.import_module(package)
        for part in name.split("."):
            found = getattr(found, part)
        assert name.rpartition(".")[2] in RECIPES


def test_flask_threads_gives_a_task_the_g_of_the_view(app: Flask) -> None:
    threads: Any = importlib.import_module("flaskthreads")

    def carried_thread(target: Callable[[], None]) -> threading.Thread:
        return threading.Thread(target=carry_context(target))

    ways = [threads.AppContextThread, carried_thread]

    @app.route("/<int:way>")
    def view(way: int) -> list[Any]:
        g.tenant = "acme"
        seen: list[Any] = []

        def work() -> None:
            seen.append([g.tenant, has_request_context()])
            g.total = 17

        thread = ways[way](target=work)
        thread.start()
        thread.join(TIMEOUT)
        return [*seen, g.get("total")]

    client = app.test_client()
    assert client.get("/0").get_json() == [["acme", False], 17]
    assert client.get("/1").get_json() == [["acme", True], None]


# Servers and processes


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
        pytest.param((*GUNICORN, "--preload", "--workers", "2"), id="gunicorn-preload"),
        pytest.param((*GUNICORN, "--worker-class", "gevent"), id="gunicorn-gevent"),
        pytest.param(
            ("waitress", "--listen", "127.0.0.1:{port}", "from_flask_threads:app"),
            id="waitress",
        ),
    ],
)
def test_the_servers_of_the_guide_run_tasks(command: tuple[str, ...]) -> None:
    browser = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    browser.addheaders = [("user-id", "17")]
    with server(*command) as address:
        for path in "/user/thread", "/user/executor":
            with browser.open(address + path, timeout=TIMEOUT) as response:
                assert b'"user_id":"17"' in response.read()


def test_a_worker_of_a_queue_opens_an_app_context_and_carries_that(
    app: Flask, pool: ThreadPoolExecutor, run_recipe: Callable[..., dict[str, Any]]
) -> None:
    def part() -> str:
        return f"confirmed for {g.tenant}"

    def confirm(order_id: int) -> str:
        return pool.submit(carry_context(part)).result(TIMEOUT)

    names = run_recipe(section(RECIPES, "## Processes and Celery"), confirm=confirm)
    assert names["confirm_in_worker"](17, "acme") == "confirmed for acme"


def test_the_command_of_the_progress_page_is_that_of_its_header() -> None:
    (command,) = snippets(section(RECIPES, "## The progress page"), "sh")
    app = (EXAMPLES / "progress" / "app.py").read_text("utf-8")
    assert command in app
    behind = ".venv/bin/gunicorn --config examples/progress/gunicorn_conf.py"
    assert behind in RECIPES
    assert behind in (EXAMPLES / "progress" / "gunicorn_conf.py").read_text("utf-8")
