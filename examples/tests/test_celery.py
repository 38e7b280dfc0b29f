"""The same task in a thread, in a Celery worker, and in another one if that is killed."""

import contextlib
import importlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import celery_app
import pytest
from helpers import EXAMPLES, free_port, program

TIMEOUT = 60
ZOO = {"Tenant": "zoo", "Request-Id": "r1"}
PRICES = [f"{item} for zoo, asked by r1" for item in ("tea", "milk")]

# Workers whose task stops in its middle, until the test says that one was killed.
HELD = """
import os
import celery_app as example
from redis import Redis

price = example.price
broker = Redis.from_url(os.environ["CELERY_BROKER_URL"])

def held(item):
    broker.xread({"killed": 0}, block=60_000)
    return price(item)

example.price = held
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
def redis_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A Redis server of this test, and of no other."""
    port = str(free_port())
    command = [program("redis-server"), "--bind", "127.0.0.1", "--port", port]
    command += ["--save", "", "--dir", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            assert any("Ready to accept" in line for line in server.stdout)
            url = f"redis://127.0.0.1:{port}"
            monkeypatch.setenv("CELERY_BROKER_URL", url)
            yield url
        finally:
            server.kill()


class Worker:
    """A Celery worker in a process of its own."""

    def __init__(self, process: subprocess.Popen[str], name: str) -> None:
        self.process, self.lines = process, list[str]()
        assert process.stdout is not None
        for line in process.stdout:
            self.lines.append(line)
            if f"{name}@" in line and "ready" in line:
                break
        else:
            pytest.fail("".join(self.lines))
        self.reader = threading.Thread(target=self.lines.extend, args=[process.stdout])
        self.reader.start()

    def said(self) -> str:
        """What it has said until it ended, from the task on."""
        self.reader.join(TIMEOUT)
        return "".join(line for line in self.lines if "Task" in line)


@contextlib.contextmanager
def worker(
    module: str, name: str = "one", folder: Path = EXAMPLES
) -> Generator[Worker]:
    command = [sys.executable, "-m", "celery", "--app", module, "worker"]
    command += ["--pool", "threads", "--concurrency", "1", "--loglevel", "info"]
    path = os.pathsep.join([str(folder), str(EXAMPLES)])
    with subprocess.Popen(
        [*command, "--hostname", f"{name}@here"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            yield Worker(process, name)
            process.send_signal(signal.SIGTERM)
            process.wait(TIMEOUT)
        finally:
            process.kill()


def connect() -> Any:
    """Return a client of an app that has the broker of this test."""
    return celery_app.create_app().test_client()


def result(see: str) -> Any:
    """Return the result that is shown at an address."""
    results: Any = importlib.import_module("celery.result")
    return results.AsyncResult(see.rpartition("/")[2])


def test_the_import_alone_makes_no_folder(folder: Path) -> None:
    command = [sys.executable, "-c", "import celery_app"]
    subprocess.run(command, cwd=EXAMPLES, check=True)
    assert not folder.exists()
    connect()
    assert folder.exists()


@pytest.mark.parametrize("broker", ["folder", "redis_url"])
def test_the_same_task_runs_here_and_in_a_worker(
    broker: str, request: pytest.FixtureRequest
) -> None:
    request.getfixturevalue(broker)
    client = connect()
    assert client.get("/here", headers=ZOO).get_json() == {"prices": PRICES}
    started = client.get("/start", headers=ZOO)
    assert started.status_code == 202
    see = started.get_json()["see"]
    assert client.get(see).get_json() == {"state": "PENDING"}
    with worker("make_celery"):
        result(see).get(TIMEOUT)
    assert client.get(see).get_json() == {"prices": PRICES}


def test_the_task_of_a_killed_worker_is_finished_by_another(
    redis_url: str, tmp_path: Path
) -> None:
    (tmp_path / "held.py").write_text(HELD)
    killed: list[str] = []
    with worker("held", "one", tmp_path) as one, worker("held", "two", tmp_path) as two:
        workers = {"one@here": one, "two@here": two}

        def kill_its_worker(message: dict[str, Any]) -> None:
            if message["status"] == "STARTED" and not killed:
                killed.append(message["result"]["hostname"])
                workers[killed[0]].process.kill()
                workers[killed[0]].process.wait()
                redis = importlib.import_module("redis").Redis.from_url(redis_url)
                redis.xadd("killed", {"worker": killed[0]})

        client = connect()
        see = client.get("/start", headers=ZOO).get_json()["see"]
        assert result(see).get(TIMEOUT, on_message=kill_its_worker) == PRICES
        assert client.get(see).get_json() == {"prices": PRICES}
    (died,) = killed
    finished = workers.keys() - killed
    print(f"{died}, killed:\n{workers[died].said()}")
    for name in finished:
        print(f"{name}:\n{workers[name].said()}")
        assert "succeeded" in workers[name].said()
    assert "succeeded" not in workers[died].said()
