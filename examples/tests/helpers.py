"""What tests of the examples share and import."""

import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parent.parent
ROOT = EXAMPLES.parent
TIMEOUT = 20


def program(name: str) -> str:
    """Find a program. A developer may do without it, what lets changes in may not."""
    path = shutil.which(name)
    if path is None and os.environ.get("CI") != "true":
        pytest.skip(f"{name} is not installed.")
    assert path, f"{name} is not installed."
    return path


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


@contextmanager
def running(
    command: list[str], until: str, folder: Path = ROOT
) -> Generator[subprocess.Popen[str]]:
    """Run a program for a minute at most. It is ready once it has said some words."""
    with subprocess.Popen(
        command,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        end = threading.Timer(3 * TIMEOUT, process.kill)
        end.start()
        try:
            assert process.stdout is not None
            said: list[str] = []
            while not said or until not in said[-1]:
                said.append(process.stdout.readline())
                assert said[-1], f"It has ended, and said: {''.join(said)}"
            threading.Thread(target=process.stdout.read, daemon=True).start()
            yield process
            process.terminate()
            process.wait(TIMEOUT)
        finally:
            end.cancel()
            process.kill()


class Late:
    """Runs tasks in a pool, once the client has its response."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self.pool, self.answered = pool, threading.Event()
        self.futures: list[Future[Any]] = []

    def submit(self, task: Callable[..., Any], *args: Any) -> Future[Any]:
        def wait() -> Any:
            assert self.answered.wait(TIMEOUT)
            return task(*args)

        self.futures.append(self.pool.submit(wait))
        return self.futures[-1]

    def result(self) -> Any:
        self.answered.set()
        return self.futures.pop(0).result(TIMEOUT)


def in_thread(func: Callable[[], Any]) -> Any:
    """Call a function in another thread, and return or raise what it did."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(func).result(TIMEOUT)
