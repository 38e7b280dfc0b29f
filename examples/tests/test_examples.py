"""Each small example does what it says, as its users would see it."""

import importlib
import io
import logging
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from helpers import TIMEOUT


@pytest.fixture
def example(request: pytest.FixtureRequest) -> Any:
    """The module that the test names, imported anew."""
    sys.modules.pop(request.param, None)
    return importlib.import_module(request.param)


def of(name: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("example", [name], indirect=True)


@pytest.fixture
def end(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """What a task waits for in place of the seconds that it sleeps."""
    end = threading.Event()

    def sleep(_: float) -> None:
        assert end.wait(TIMEOUT)

    monkeypatch.setattr(time, "sleep", sleep)
    return end


@pytest.fixture(autouse=True)
def warnings_alone(caplog: pytest.LogCaptureFixture) -> None:
    """Log warnings, whatever level an earlier test has left behind."""
    caplog.set_level(logging.WARNING)


@of("quickstart")
def test_the_tasks_of_the_quickstart_know_the_request(example: Any) -> None:
    client = example.app.test_client()
    response = client.get("/prices?item=tea&item=milk", headers={"Tenant": "zoo"})
    prices = [f"{item} for zoo, asked at /prices" for item in ("tea", "milk")]
    assert response.get_json() == prices


@of("from_flask_executor")
def test_a_task_is_started_and_its_result_fetched_by_key(
    example: Any, end: threading.Event
) -> None:
    client = example.app.test_client()
    see = client.get("/start-task").get_json()["see"]
    assert client.get(see).get_json() == {"state": "running"}
    end.set()
    example.executor.shutdown()
    result = {"state": "done", "result": "/start-task was asked by 127.0.0.1"}
    assert client.get(see).get_json() == result
    assert client.get(see).status_code == 404


@of("from_flask_executor")
def test_a_task_that_fails_says_so(
    example: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    started = threading.Event()

    def fail(_: float) -> None:
        assert started.wait(TIMEOUT)
        raise LookupError("no more time")

    monkeypatch.setattr(time, "sleep", fail)
    client = example.app.test_client()
    see = client.get("/start-task").get_json()["see"]
    started.set()
    example.executor.shutdown()
    assert caplog.messages == ["/start-task failed"]
    failed = {"state": "failed", "error": "no more time"}
    assert client.get(see).get_json() == failed


@of("from_flask_threads")
@pytest.mark.parametrize("path", ["/user/thread", "/user/executor"])
def test_the_user_id_is_read_in_a_task(example: Any, path: str) -> None:
    response = example.app.test_client().get(path, headers={"user-id": "17"})
    assert response.get_json() == {"user_id": "17", "path": path}


@of("from_a_closure")
def test_the_tasks_see_what_the_hook_has_set(example: Any) -> None:
    shown = example.app.test_client().get("/?tenant=zoo").get_json()
    assert shown["in the pool"] == shown["in the view"]
    assert shown["in the pool"][0].startswith("tea for zoo: ")


@of("from_a_bare_thread")
def test_the_task_goes_on_after_the_response_and_closes_its_connection(
    example: Any,
    end: threading.Event,
    connections: list[Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    example.app.test_client().get("/execute_task?user=ada")
    task = next(t for t in threading.enumerate() if t.name == "task")
    assert caplog.messages == []
    end.set()
    task.join(TIMEOUT)
    assert caplog.messages == ["/execute_task is done for 'ada'"]
    of_the_view, of_the_task = connections
    assert of_the_view.closed
    assert of_the_task.closed


@of("uploads")
def test_a_task_has_the_file_that_the_view_has_saved(
    example: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    client = example.app.test_client()
    accepted = client.post("/files", data={"file": (io.BytesIO(b"tea"), "tea.txt")})
    assert accepted.get_json() == {"state": "accepted"}
    assert client.post("/files").status_code == 400
    example.executor.shutdown()
    assert caplog.messages == ["/files: 3 bytes"]
    assert [*tmp_path.iterdir()] == []


@of("uploads")
def test_a_task_has_the_body_that_the_view_has_read(
    example: Any, caplog: pytest.LogCaptureFixture
) -> None:
    client = example.app.test_client()
    assert client.post("/events", json=["tea"]).get_json() == {"state": "accepted"}
    assert client.post("/events", data="{", content_type="text/json").status_code == 415
    example.executor.shutdown()
    assert caplog.messages == ["/events: ['tea']"]


@of("uploads")
def test_an_upload_has_a_limit(example: Any) -> None:
    environ = {"CONTENT_LENGTH": "10000001"}
    form = {"file": (io.BytesIO(b"tea"), "tea.txt")}
    client = example.app.test_client()
    response = client.post("/files", data=form, environ_overrides=environ)
    assert response.status_code == 413


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
