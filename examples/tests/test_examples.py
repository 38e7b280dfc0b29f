"""Each example does what it says, as its users would see it."""

import contextlib
import importlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from helpers import EXAMPLES

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
    with subprocess.Popen(command, cwd=EXAMPLES, env=environ) as worker:
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


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
