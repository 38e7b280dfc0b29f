"""What tests of the examples share and import: where things are, and two ways to wait."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

EXAMPLES = Path(__file__).parent.parent
ROOT = EXAMPLES.parent
TIMEOUT = 20


class Late:
    """Runs tasks in a pool, once the client has its response."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self.pool, self.answered = pool, threading.Event()
        self.futures: list[Future[Any]] = []

    def submit(self, task: Callable[..., Any], *args: Any) -> None:
        def wait() -> Any:
            assert self.answered.wait(TIMEOUT)
            return task(*args)

        self.futures.append(self.pool.submit(wait))

    def result(self) -> Any:
        self.answered.set()
        return self.futures.pop(0).result(TIMEOUT)
