"""Each example does what it says, as its users would see it."""

import contextlib
import importlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
from selenium.common import WebDriverException
from selenium.webdriver import Chrome
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.wait import WebDriverWait
from werkzeug.serving import make_server

HERE = Path(__file__).parent
TIMEOUT = 30


@pytest.fixture
def example(request: pytest.FixtureRequest) -> Any:
    """The module that the test names, imported anew."""
    sys.modules.pop(request.param, None)
    return importlib.import_module(request.param)


def of(name: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("example", [name], indirect=True)


@of("from_flask_executor")
def test_a_task_is_started_and_its_result_fetched_by_key(
    example: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    end = threading.Event()

    def sleep(_: float) -> None:
        assert end.wait(TIMEOUT)

    monkeypatch.setattr(time, "sleep", sleep)
    client = example.app.test_client()
    assert client.get("/get-task-result?key=a").status_code == 404
    assert client.get("/start-task/-1?key=a").status_code == 400
    started = client.get("/start-task/1?key=a")
    assert (started.status_code, started.get_json()) == (202, {"started": "a"})
    assert client.get("/start-task/1?key=a").status_code == 409
    assert client.get("/get-task-result?key=a").get_json() == {"state": "running"}
    end.set()
    example.executor.shutdown()
    result = {"state": "done", "result": "127.0.0.1 waited for 1 s"}
    assert client.get("/get-task-result?key=a").get_json() == result
    assert "/start-task/1?key=a ended: 127.0.0.1 waited for 1 s" in caplog.messages


@of("from_flask_executor")
def test_a_task_that_fails_says_so(
    example: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: float) -> None:
        raise LookupError("no more time")

    monkeypatch.setattr(time, "sleep", fail)
    client = example.app.test_client()
    client.get("/start-task/1")
    example.executor.shutdown()
    failed = {"state": "failed", "error": "no more time"}
    assert client.get("/get-task-result").get_json() == failed


@of("from_flask_executor")
def test_map_carries_too(example: Any) -> None:
    squares = [f"/squares/3: {square}" for square in (0, 1, 4)]
    response = example.app.test_client().get("/squares/3")
    assert response.get_json() == {"squares": squares}


@of("from_flask_threads")
@pytest.mark.parametrize("path", ["/user/thread", "/user/executor"])
def test_the_user_id_is_read_in_a_task(example: Any, path: str) -> None:
    response = example.app.test_client().get(path, headers={"user-id": "17"})
    assert response.get_json() == {"user_id": "17", "path": path}


@of("from_a_closure")
@pytest.mark.parametrize("source", ["g", "contextvars"])
def test_the_tasks_see_what_the_hook_has_set(example: Any, source: str) -> None:
    client = example.app.test_client()
    carried = client.get(f"/?source={source}").get_json()
    assert len(carried["view"]) == 32
    assert carried["pool"] == carried["thread"] == carried["view"]
    bare = client.get(f"/?source={source}&copy=false").get_json()
    assert bare["pool"] != bare["view"] != bare["thread"]
    assert client.get("/?source=h").status_code == 400


@of("from_a_bare_thread")
def test_the_task_goes_on_after_the_response_and_closes_its_connection(
    example: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    answered = threading.Event()

    def sleep(_: float) -> None:
        assert answered.wait(TIMEOUT)

    monkeypatch.setattr(time, "sleep", sleep)
    response = example.app.test_client().get("/execute_task?user=ada")
    task = next(t for t in threading.enumerate() if t.name == "task")
    assert caplog.messages == ["closed the connection of MainThread"]
    answered.set()
    task.join(TIMEOUT)
    assert caplog.messages[1:] == [
        f"/execute_task for ada: {response.get_json()['started']}",
        "closed the connection of task",
    ]


@of("async_tasks")
@pytest.mark.parametrize(
    ("path", "items"),
    [
        ("/gather", ["tea", "milk"]),
        ("/elsewhere", ["tea"]),
        ("/executor", ["tea"]),
    ],
)
def test_coroutines_are_carried(example: Any, path: str, items: list[str]) -> None:
    response = example.app.test_client().get(f"{path}?tenant=zoo")
    prices = [f"{item} for zoo at {path}" for item in items]
    assert response.get_json() == {"prices": prices}


@contextlib.contextmanager
def celery_worker(environ: dict[str, str]) -> Generator[None]:
    command = [sys.executable, "-m", "celery", "--app", "celery_app:celery", "worker"]
    command += ["--pool", "threads", "--concurrency", "2", "--loglevel", "warning"]
    with subprocess.Popen(command, cwd=HERE, env=environ) as worker:
        try:
            yield
            worker.send_signal(signal.SIGTERM)
            assert worker.wait(TIMEOUT) == 0
        finally:
            worker.kill()


def test_the_same_task_runs_here_and_in_a_celery_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CELERY_FOLDER", str(tmp_path))
    monkeypatch.delenv("CELERY_BROKER_URL", raising=False)
    sys.modules.pop("celery_app", None)
    example = importlib.import_module("celery_app")
    client = example.app.test_client()
    headers = {"Tenant": "zoo", "Request-Id": "r1"}
    prices = [f"{item} for zoo, asked by r1" for item in ("tea", "milk")]
    assert client.get("/here", headers=headers).get_json() == {"prices": prices}
    started = client.get("/start", headers=headers)
    assert started.status_code == 202
    with celery_worker(dict(os.environ)):
        id = started.get_json()["id"]
        assert example.celery.AsyncResult(id).get(timeout=TIMEOUT) == prices
    assert client.get(f"/result/{id}").get_json() == {"prices": prices}


def test_compare_finds_that_every_promise_is_kept() -> None:
    command = [sys.executable, str(HERE / "compare.py"), "--json", "--rounds", "1"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, timeout=120)
    found = json.loads(done.stdout)
    kept = {text: row["ctxcarry"] for text, row in found["promises"].items()}
    assert all(kept[text] == ("not promised" not in text) for text in kept)
    assert len(kept) == 24
    assert len(found["costs"]) == 9


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)


# The page, in a real browser


@pytest.fixture
def progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[Any]:
    """The page's module, and its address on a real server."""
    monkeypatch.setattr(sys, "path", [str(HERE / "progress"), *sys.path])
    sys.modules.pop("app", None)
    module: Any = importlib.import_module("app")
    module.served = served = module.create_app(
        f"sqlite:///{tmp_path / 'progress.sqlite'}"
    )
    server = make_server("127.0.0.1", 0, served, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    module.address = f"http://127.0.0.1:{server.server_port}"
    yield module
    module.executor.shutdown()
    server.shutdown()
    thread.join(TIMEOUT)
    server.server_close()
    with served.app_context():
        module.db.engine.dispose()


@pytest.fixture
def browse(tmp_path: Path) -> Generator[Callable[..., Any]]:
    """Open headless Chromium windows, each a visitor of its own."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("Chromium and its driver are not installed.")
    windows: list[Any] = []

    def browse(width: int, *, dark: bool = False) -> Any:
        options = Options()
        options.binary_location = str(chromium)
        for switch in [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-background-networking",
            "--no-first-run",
            f"--user-data-dir={tmp_path / str(len(windows))}",
        ]:
            options.add_argument(switch)
        window: Any = Chrome(options=options, service=Service(str(driver)))
        windows.append(window)
        screen = {"width": width, "height": 900, "deviceScaleFactor": 1}
        screen["mobile"] = False
        window.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        window.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        return window

    yield browse
    for window in windows:
        window.quit()


def start_report(window: Any, address: str, items: int) -> None:
    window.get(address)
    field = window.find_element("name", "items")
    field.clear()
    field.send_keys(f"{items}\n")
    wait_for(window, "Cancel what has not begun")


def wait_for(window: Any, text: str) -> None:
    wait_until(window, lambda: text in window.find_element("tag name", "main").text)


def wait_until(window: Any, holds: Callable[[], bool]) -> None:
    # While the window navigates, what is read can go, in more than one way.
    wait = WebDriverWait(window, TIMEOUT, 0.05, [WebDriverException])
    wait.until(lambda _: holds())


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_a_visitor_sees_the_bar_reach_the_end(
    progress: Any, browse: Callable[..., Any], width: int, dark: bool
) -> None:
    window = browse(width, dark=dark)
    start_report(window, progress.address, 8)
    wait_for(window, "8 of 8: 7 done, 1 failed, 0 cancelled.")
    bar = window.find_element("id", "bar")
    assert bar.get_property("value") == bar.get_property("max") == 8
    rows = window.find_elements("css selector", "#rows tr")
    assert len(rows) == 8
    assert rows[0].text.startswith("1 done 3 € for ")
    assert rows[6].text == "7 failed There is no price for item 7."
    assert not window.find_element("id", "cancel").is_enabled()
    scroll_width = window.execute_script("return document.body.scrollWidth")
    assert scroll_width <= width
    if picture := os.environ.get("PROGRESS_PICTURES"):
        name = f"{width}-dark.png" if dark else f"{width}.png"
        window.save_screenshot(str(Path(picture, name)))


def test_visitors_neither_see_nor_cancel_each_others_reports(
    progress: Any, browse: Callable[..., Any]
) -> None:
    one, other = browse(1280), browse(1280)
    start_report(one, progress.address, 3)
    start_report(other, progress.address, 4)
    wait_for(one, "3 of 3: 3 done")
    wait_for(other, "4 of 4: 4 done")
    visitors = {
        window.find_elements("css selector", "#rows td")[2].text
        for window in (one, other)
    }
    assert len(visitors) == 2
    other.get(one.current_url)
    assert "Not Found" in other.page_source
    stranger = progress.served.test_client()
    assert stranger.post("/reports/1/cancel").status_code == 404
    assert stranger.get("/reports/1/state").status_code == 404
    other.get(progress.address)
    assert "Report 1" not in other.page_source and "Report 2" in other.page_source


def test_what_has_not_begun_is_cancelled(
    progress: Any, browse: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    cancelled = threading.Event()

    def compute(number: int) -> str:
        assert cancelled.wait(TIMEOUT)
        return "computed"

    monkeypatch.setattr(progress, "compute", compute)
    window = browse(1280)
    start_report(window, progress.address, 20)
    window.find_element("id", "cancel").click()
    wait_until(window, lambda: not window.find_element("id", "cancel").is_enabled())
    cancelled.set()
    wait_for(window, "20 of 20: 4 done, 0 failed, 16 cancelled.")


def test_each_log_line_of_a_task_has_the_id_of_its_request(
    progress: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.handler.addFilter(progress.RequestIdFilter())
    caplog.set_level(logging.INFO, "progress")
    client = progress.served.test_client()
    client.post("/reports", data={"items": 2}, headers={"Request-Id": "r17"})
    progress.executor.shutdown()
    lines = [(vars(log)["request_id"], log.message) for log in caplog.records]
    assert sorted(lines) == [("r17", "item 1 is done"), ("r17", "item 2 is done")]


@pytest.mark.parametrize("items", ["0", "101", "many", ""])
def test_a_report_of_too_few_or_too_many_items_is_refused(
    progress: Any, items: str
) -> None:
    client = progress.served.test_client()
    assert client.post("/reports", data={"items": items}).status_code == 400
