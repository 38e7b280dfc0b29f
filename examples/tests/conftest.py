"""The fixtures that the tests of the examples share."""

import os
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


@pytest.fixture
def db(app: Flask, tmp_path: Path) -> Iterator[Any]:
    from flask_sqlalchemy import SQLAlchemy  # The matrix is without it.

    app.config["SQLALCHEMY_DATABASE_URI"] = f"sqlite:///{tmp_path / 'shop.sqlite'}"
    db: Any = SQLAlchemy(app)
    yield db
    with app.app_context():
        db.engine.dispose()
