"""Each example does what it says, as its users would see it."""

import importlib
import logging
import sys
import threading
import time
from typing import Any

import pytest

TIMEOUT = 30


@pytest.fixture
def example(request: pytest.FixtureRequest) -> Any:
    """The module that the test names, imported anew."""
    sys.modules.pop(request.param, None)
    return importlib.import_module(request.param)


def of(name: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("example", [name], indirect=True)


@of("quickstart")
def test_the_tasks_of_the_quickstart_know_the_request(example: Any) -> None:
    client = example.app.test_client()
    response = client.get("/prices?item=tea&item=milk", headers={"Tenant": "zoo"})
    prices = [f"{item} for zoo, asked at /prices" for item in ("tea", "milk")]
    assert response.get_json() == prices


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
    assert "/start-task/1 ended: 127.0.0.1 waited for 1 s" in caplog.messages


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


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
