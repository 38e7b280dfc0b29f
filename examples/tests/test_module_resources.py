"""Real pools and ORM sessions, for which test_ctxcarry.py has stand-ins.

No connection stays open, and none is used by two threads. The guide to extensions has the
handles of other libraries.
"""

import operator
import sqlite3
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple

import fakeredis
import pytest
import redis
from flask import Flask, g
from helpers import Late
from sqlalchemy import create_engine, select
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    mapped_column,
    scoped_session,
    sessionmaker,
)
from sqlalchemy.pool import QueuePool

from ctxcarry import carry_context

REQUESTS = 6
WHEN = pytest.mark.parametrize(
    "waits", [True, False], ids=["view-waits", "after-response"]
)


class Pool(NamedTuple):
    """A pool of two connections, and what can be done with one."""

    take: Callable[[], Any]
    give: Callable[[Any], object]
    add: Callable[[Any], int]  # Counts by one more, and returns the count.


def redis_pool(folder: Path) -> Iterator[Pool]:
    """A pool that hands out the connection again that came back last."""

    def add(connection: Any) -> int:
        connection.send_command("INCR", "n")
        return int(connection.read_response())

    pool: Any = redis.ConnectionPool(
        connection_class=fakeredis.FakeRedisConnection,
        server=fakeredis.FakeServer(),
        max_connections=2,
    )
    yield Pool(pool.get_connection, pool.release, add)
    pool.disconnect()


def sqlalchemy_pool(folder: Path) -> Iterator[Pool]:
    """A pool that makes a new object for each connection that it hands out."""

    def connect() -> Any:
        return sqlite3.connect(folder / "shop.sqlite", check_same_thread=False)

    def add(connection: Any) -> int:
        cursor = connection.cursor()
        cursor.execute("create table if not exists item (id integer)")
        cursor.execute("insert into item values (1)")
        connection.commit()
        return int(cursor.execute("select count(*) from item").fetchone()[0])

    pool = QueuePool(connect, pool_size=2, max_overflow=0, timeout=0.1)
    yield Pool(pool.connect, operator.methodcaller("close"), add)
    pool.dispose()


@pytest.fixture(params=[redis_pool, sqlalchemy_pool])
def connections(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Pool]:
    yield from request.param(tmp_path)


KEPT: ContextVar[Any] = ContextVar("KEPT", default=None)


@WHEN
@pytest.mark.parametrize("place", ["g", "variable"])
def test_a_real_pool_never_runs_dry(
    app: Flask, late: Late, connections: Pool, place: str, waits: bool
) -> None:
    def get_db() -> Any:
        db = g.get("db") if place == "g" else KEPT.get()
        if db is None:
            db = connections.take()
            if place == "g":
                g.db = db
            else:
                KEPT.set(db)
        return db

    @app.teardown_appcontext
    def give_back(error: BaseException | None) -> None:
        db = g.pop("db", None) or KEPT.get()
        KEPT.set(None)
        if db is not None:
            connections.give(db)

    @app.route("/")
    def view() -> list[int]:
        viewed = get_db()

        @carry_context
        def add() -> int:
            assert not waits or get_db() is not viewed
            return connections.add(get_db())

        late.submit(add)
        return [late.result()] if waits else []

    for number in range(REQUESTS):
        late.answered.clear()
        response = app.test_client().get("/")
        counts = response.get_json() if waits else [late.result()]
        assert counts == [number + 1]
    left = [connections.take(), connections.take()]
    assert left[0] is not left[1]
    for each in left:
        connections.give(each)


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "user"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


@pytest.fixture
def sessions(tmp_path: Path) -> Iterator[scoped_session[Any]]:
    """A registry of sessions, and a user with the id 1."""
    engine = create_engine(f"sqlite:///{tmp_path / 'shop.sqlite'}")
    Base.metadata.create_all(engine)
    registry = scoped_session(sessionmaker(engine))
    registry.add(User(id=1, name="ada"))
    registry.commit()
    registry.remove()
    yield registry
    registry.remove()
    engine.dispose()


@WHEN
def test_an_orm_object_in_a_memo_in_g_is_loaded_again_in_the_task(
    app: Flask, late: Late, sessions: scoped_session[Any], waits: bool
) -> None:
    def get_me() -> Any:
        if "memo" not in g:
            g.memo = {("users", 1): [sessions.get(User, 1)]}
        return g.memo["users", 1][0]

    @app.teardown_appcontext
    def remove(error: BaseException | None) -> None:
        sessions.remove()

    @app.route("/")
    def view() -> list[str]:
        get_me()
        sessions.commit()

        @carry_context
        def rename() -> str:
            before: str = get_me().name
            get_me().name = "grace"
            sessions.commit()
            return before

        late.submit(rename)
        return [late.result()] if waits else []

    seen = app.test_client().get("/").get_json()
    assert seen == ["ada"] if waits else late.result() == "ada"
    assert sessions.scalar(select(User.name)) == "grace"
