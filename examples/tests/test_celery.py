"""The same task in this process and in a worker, and in another one if that is killed."""

import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import celery_app
import pytest
from helpers import EXAMPLES, TIMEOUT, free_port, program, running

ZOO = {"Tenant": "zoo", "Request-Id": "r1"}
PRICES = [f"{item} for zoo, asked by r1" for item in ("tea", "milk")]

# Workers of which the first stops in the middle of its task, until it is killed.
HELD = """
import threading
from pathlib import Path

import celery_app as example

held = Path(__file__).with_name("held")
price = example.price

def hold_once(item):
    if not held.exists():
        held.touch()
        print("held", flush=True)
        threading.Event().wait()
    return price(item)

example.price = hold_once
seconds = {"visibility_timeout": 3, "unacked_restore_interval": 1}
options = {"unacked_restore_throttle": 1, **seconds}
flask_app = example.create_app({"broker_transport_options": options})
celery_app = flask_app.extensions["celery"]
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The embedded broker, in a folder of this test."""
    monkeypatch.delenv("CELERY_BROKER_URL", raising=False)
    monkeypatch.setenv("CELERY_FOLDER", str(tmp_path / "celery"))
    return tmp_path / "celery"


@pytest.fixture
def redis_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A Redis server of this test, and of no other."""
    port = str(free_port())
    command = [program("redis-server"), "--bind", "127.0.0.1", "--port", port]
    command += ["--save", "", "--dir", str(tmp_path)]
    with running(command, "Ready to accept"):
        monkeypatch.setenv("CELERY_BROKER_URL", f"redis://127.0.0.1:{port}")
        yield


def result(see: str) -> Any:
    """Return the result that is shown at an address."""
    results: Any = importlib.import_module("celery.result")
    return results.AsyncResult(see.rpartition("/")[2])


def test_the_import_alone_makes_no_folder(folder: Path) -> None:
    command = [sys.executable, "-c", "import celery_app"]
    subprocess.run(command, cwd=EXAMPLES, check=True)
    assert not folder.exists()
    celery_app.create_app()
    assert folder.exists()


@pytest.mark.usefixtures("folder")
def test_the_same_task_runs_here_and_in_a_worker_that_acknowledges_it_at_its_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker: Any = importlib.import_module("celery.contrib.testing.worker")
    state: Any = importlib.import_module("celery.worker.state")
    signals: Any = importlib.import_module("celery.signals")
    price, acknowledged = celery_app.price, list[bool]()

    def price_and_note(item: str) -> str:
        acknowledged.extend(task.acknowledged for task in state.active_requests)
        return price(item)

    def leave_logging_alone(**_: Any) -> None:
        """Keep the worker from setting the root logger's level for later tests."""

    signals.setup_logging.connect(leave_logging_alone)
    monkeypatch.setattr(celery_app, "price", price_and_note)
    app = celery_app.create_app()
    client = app.test_client()
    assert client.get("/here", headers=ZOO).get_json() == {"prices": PRICES}
    started = client.get("/start", headers=ZOO)
    assert started.status_code == 202
    see = started.get_json()["see"]
    assert client.get(see).get_json() == {"state": "PENDING"}
    celery = app.extensions["celery"]
    with worker.start_worker(celery, perform_ping_check=False):
        result(see).get(TIMEOUT)
    assert client.get(see).get_json() == {"prices": PRICES}
    assert acknowledged == [False, False]


@pytest.mark.usefixtures("redis_server")
def test_the_task_of_a_killed_worker_is_finished_by_another(tmp_path: Path) -> None:
    (tmp_path / "held.py").write_text(HELD)
    command = [sys.executable, "-m", "celery", "--workdir", str(EXAMPLES)]
    command += ["--app", "held", "worker", "--pool", "threads"]
    client = celery_app.create_app().test_client()
    see = client.get("/start", headers=ZOO).get_json()["see"]
    with running(command, "held", tmp_path) as first:
        first.kill()
    with running([*command, "--loglevel", "info"], "ready", tmp_path):
        assert result(see).get(TIMEOUT) == PRICES
    assert client.get(see).get_json() == {"prices": PRICES}


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    "id",
    [
        pytest.param("1", id="number"),
        pytest.param("a" * 300, id="longer than a file name"),
        pytest.param("%00", id="null byte"),
    ],
)
def test_a_result_that_cannot_be_is_not_found(id: str) -> None:
    client = celery_app.create_app().test_client()
    assert client.get(f"/result/{id}").status_code == 404
