"""What the tests of extensions and of surprises begin with: an app, and two ways to wait."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

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


@pytest.fixture
def app() -> Flask:
    app = Flask("shop")
    app.secret_key = "a secret that is long enough to sign tokens with"
    return app


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool


@pytest.fixture
def late(pool: ThreadPoolExecutor) -> Iterator[Late]:
    late = Late(pool)
    yield late
    late.answered.set()


@pytest.fixture
def db(app: Flask, tmp_path: Path) -> Iterator[Any]:
    from flask_sqlalchemy import SQLAlchemy  # The matrix is without it.

    app.config["SQLALCHEMY_DATABASE_URI"] = f"sqlite:///{tmp_path / 'shop.sqlite'}"
    db: Any = SQLAlchemy(app)
    yield db
    with app.app_context():
        db.engine.dispose()
