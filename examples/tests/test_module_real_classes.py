"""What stays with the view, of real classes: test_ctxcarry.py has made-up ones.

The rule goes by the names of methods, so it is a guess. These tables say what it comes to.
"""

import asyncio
import collections
import contextlib
import dataclasses
import enum
import http.client
import importlib
import io
import logging
import smtplib
import socket
import sqlite3
import tempfile
import threading
import types
import zipfile
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import flask
import httpx
import pydantic
import pytest
import redis
import sentry_sdk
import sqlalchemy
import structlog
import svcs
from flask import Flask, g
from helpers import in_thread
from opentelemetry.sdk.trace import TracerProvider
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    mapped_column,
    scoped_session,
    sessionmaker,
)
from werkzeug.datastructures import FileStorage, MultiDict
from werkzeug.local import LocalProxy

from ctxcarry import carry_context

# These have no types.
celery: Any = importlib.import_module("celery")
flask_login: Any = importlib.import_module("flask_login")
flask_sqlalchemy: Any = importlib.import_module("flask_sqlalchemy")
peewee: Any = importlib.import_module("peewee")
requests: Any = importlib.import_module("requests")
wtforms: Any = importlib.import_module("wtforms")
wrapt: Any = importlib.import_module("wrapt")

Table = dict[str, Callable[[], object]]  # How to make an object, by what it is.
OPENED = contextlib.ExitStack()
ENGINE = sqlalchemy.create_engine("sqlite://")


@pytest.fixture(autouse=True, scope="module")
def close_what_was_opened() -> Iterator[None]:
    OPENED.callback(ENGINE.dispose)
    with OPENED:
        yield


def opened(resource: Any) -> Any:
    """Have a resource closed after the tests."""
    OPENED.callback(resource.close)
    return resource


def connection() -> sqlite3.Connection:
    made: sqlite3.Connection = opened(sqlite3.connect(":memory:"))
    return made


def temporary_folder() -> tempfile.TemporaryDirectory[str]:
    made = tempfile.TemporaryDirectory()
    OPENED.callback(made.cleanup)
    return made


def generate() -> Generator[int]:
    yield 1


async def generate_async() -> AsyncGenerator[int]:
    yield 1


async def wait() -> None:
    """Do nothing."""


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "user"
    id: Mapped[int] = mapped_column(primary_key=True)


def row() -> Any:
    Base.metadata.create_all(ENGINE)
    session: Session = opened(Session(ENGINE))
    session.add(User())
    return session.execute(sqlalchemy.select(User)).first()


class Item(peewee.Model):  # type: ignore[misc]
    close = peewee.IntegerField(default=1)


class Prices(NamedTuple):
    open: float
    close: float


class Connections(NamedTuple):
    main: sqlite3.Connection


class Action(enum.Enum):
    commit = 1
    close = 2


@dataclasses.dataclass
class Shop:
    open: int = 9
    close: int = 18


class ShopModel(pydantic.BaseModel):
    open: int = 9
    close: int = 18


class ShopForm(wtforms.Form):  # type: ignore[misc]
    close = wtforms.IntegerField()


class Service:
    """Holds a connection, and does not say so."""

    def __init__(self) -> None:
        self.db = connection()


class Ticket:
    """Can be closed, which an app says of more than resources."""

    def close(self) -> None:
        self.is_open = False


class Release:
    def commit(self) -> str:
        return "09121d4"


# Data, and what threads may share.
CARRIED: Table = {
    "a path": Path,
    "a lock": threading.Lock,
    "a ThreadPoolExecutor": ThreadPoolExecutor,
    "a future": Future,
    "a logger": lambda: logging.getLogger("shop"),
    "a StringIO": io.StringIO,
    "a BytesIO": io.BytesIO,
    "a named tuple with a field close": lambda: Prices(1, 2),
    "an enum with a member close": lambda: Action.close,
    "a dataclass with a field close": Shop,
    "an object with an attribute close": lambda: types.SimpleNamespace(close=print),
    "a class with a method close": lambda: Ticket,
    "an upload": FileStorage,
    "a MultiDict": lambda: MultiDict({"a": "b"}),
    "a config": lambda: Flask("shop").config,
    "a proxy that opens a connection": lambda: LocalProxy(connection),
    "a user of Flask-Login": flask_login.AnonymousUserMixin,
    "a form with a field close": ShopForm,
    "a pydantic object with a field close": ShopModel,
    "a scope of Sentry": sentry_sdk.Scope,
    "a span of OpenTelemetry": lambda: TracerProvider().get_tracer("a").start_span("a"),
    "a logger of structlog": structlog.get_logger,
    "a bound logger of structlog": lambda: structlog.get_logger().bind(user="ada"),
    "Flask-SQLAlchemy": flask_sqlalchemy.SQLAlchemy,
    "an engine": lambda: ENGINE,
    "a sessionmaker": lambda: sessionmaker(ENGINE),
    "a model's class": lambda: User,
    "a statement": lambda: sqlalchemy.select(User),
    "a row of peewee with a column close": Item,
    "a request of httpx": lambda: httpx.Request("GET", "http://shop.test"),
}
# Two threads must not share these, and they do. Keep them where get_db() makes them.
SHARED: Table = {
    "a temporary folder": temporary_folder,
    "an object that holds a connection": Service,
    "a deque of connections": lambda: collections.deque([connection()]),
    "a row with an ORM object": row,
    "a query of SQLAlchemy": lambda: opened(Session(ENGINE)).query(User),
}
# Two threads must not share these.
STAYS: Table = {
    "a sqlite3 connection": connection,
    "a sqlite3 cursor": lambda: connection().cursor(),
    "a tracer's proxy of a connection": lambda: wrapt.ObjectProxy(connection()),
    "a named tuple of connections": lambda: Connections(connection()),
    "an open file": lambda: opened(io.FileIO(__file__)),
    "a zip file": lambda: opened(zipfile.ZipFile(io.BytesIO(), "w")),
    "a socket": lambda: opened(socket.socket()),
    "an HTTP connection": lambda: http.client.HTTPConnection("shop.test"),
    "an SMTP client": smtplib.SMTP,
    "a generator": generate,
    "an async generator": generate_async,
    "a coroutine": lambda: opened(wait()),
    "an event loop": lambda: opened(asyncio.new_event_loop()),
    "an exit stack": contextlib.ExitStack,
    "a connection of SQLAlchemy": lambda: opened(ENGINE.connect()),
    "a transaction of SQLAlchemy": lambda: opened(ENGINE.connect()).begin(),
    "a result of SQLAlchemy": lambda: opened(ENGINE.connect()).execute(
        sqlalchemy.text("select 1")
    ),
    "an ORM session": lambda: opened(Session(ENGINE)),
    "a scoped session": lambda: scoped_session(sessionmaker(ENGINE)),
    "an ORM object": User,
    "a memo with an ORM object": lambda: {("users", ()): [User()]},
    "a dict of dicts with a connection": lambda: {"main": {"db": connection()}},
    "a database of peewee": lambda: peewee.SqliteDatabase(":memory:"),
    "a transaction of peewee": lambda: peewee.SqliteDatabase(":memory:").transaction(),
    "a session of requests": requests.Session,
    "a client of httpx": lambda: opened(httpx.Client()),
    "an async client of httpx": httpx.AsyncClient,
    "a client of redis": redis.Redis,
    "a connection of redis": redis.Connection,
    "a container of svcs": lambda: opened(svcs.Container(svcs.Registry())),
}
# Data, or what threads may share. They stay, and the task gets an error that says so.
KEPT: Table = {
    "an app's object with close()": Ticket,
    "an app's object with commit()": Release,
    "a response of Flask": flask.Response,
    "a request of Flask": lambda: flask.Request({}),
    "a response of requests": requests.Response,
    "a response of httpx": lambda: httpx.Response(200),
    "a log handler": logging.NullHandler,
    "a pool of redis": redis.ConnectionPool,
    "an app of Celery": lambda: celery.Celery("shop"),
}


def has_task(app: Flask, value: object) -> bool:
    """Say whether a task has a value of the view's g."""
    with app.app_context():
        g.value = value
        return bool(in_thread(carry_context(lambda: g.get("value", app) is value)))


@pytest.mark.parametrize("name", CARRIED | SHARED)
def test_the_task_gets(app: Flask, name: str) -> None:
    assert has_task(app, (CARRIED | SHARED)[name]())


@pytest.mark.parametrize("name", STAYS | KEPT)
def test_the_view_keeps(app: Flask, name: str) -> None:
    assert not has_task(app, (STAYS | KEPT)[name]())
