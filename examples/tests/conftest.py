"""The fixtures that the tests of the examples share."""

import os
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from helpers import ROOT, Late

# A server or any other process that a test starts imports this checkout, not the copy that
# somebody has installed.
os.environ["PYTHONPATH"] = str(ROOT)


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


class Connection(sqlite3.Connection):
    """A connection that says whether it is closed, in whatever thread that is asked."""

    closed = False

    def close(self) -> None:
        self.closed = True
        super().close()


@pytest.fixture
def connections(monkeypatch: pytest.MonkeyPatch) -> list[Connection]:
    """The connections to SQLite that are opened in the test, in their order."""
    opened: list[Connection] = []
    connect = sqlite3.connect

    def connect_and_note(database: str) -> Connection:
        opened.append(connect(database, factory=Connection))
        return opened[-1]

    monkeypatch.setattr(sqlite3, "connect", connect_and_note)
    return opened


@pytest.fixture
def db(app: Flask, tmp_path: Path) -> Iterator[Any]:
    from flask_sqlalchemy import SQLAlchemy  # The matrix is without it.

    app.config["SQLALCHEMY_DATABASE_URI"] = f"sqlite:///{tmp_path / 'shop.sqlite'}"
    db: Any = SQLAlchemy(app)
    yield db
    with app.app_context():
        db.engine.dispose()
