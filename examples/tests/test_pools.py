"""Real pools, handles, sessions and job stores: as under Flask's own, nothing stays open."""

import contextlib
import operator
import os
import pwd
import shutil
import sqlite3
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple

import peewee
import pytest
from flask import Flask, g, session
from flask.sessions import SessionInterface, SessionMixin
from helpers import TIMEOUT, Late
from sqlalchemy import create_engine, select, text
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    mapped_column,
    scoped_session,
    sessionmaker,
)
from sqlalchemy.pool import QueuePool

from ctxcarry import carry_context

REQUESTS = 6


class Pool(NamedTuple):
    """A pool of two connections, and a cursor of a third one."""

    take: Callable[[], Any]
    give: Callable[[Any], object]
    own: Any


def load(name: str) -> Any:
    """Import a package that has no types, or skip the test."""
    return pytest.importorskip(name, reason=f"{name} is not installed")


def postgres_binary(name: str) -> str | None:
    """Find a program of PostgreSQL, which Debian keeps out of the PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return str(found[-1]) if found else shutil.which(name)


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    """Start a PostgreSQL server that listens on a socket in a folder of its own."""
    initdb, server = postgres_binary("initdb"), postgres_binary("postgres")
    if not initdb or not server:
        pytest.skip("PostgreSQL's initdb and postgres are not installed")
    run: dict[str, Any] = {"stdout": subprocess.DEVNULL}
    # Not pytest's folder, which another user may not enter, and whose path may be too
    # long for a socket.
    with tempfile.TemporaryDirectory(prefix="pg", dir="/tmp") as folder:
        if os.geteuid() == 0:  # PostgreSQL does not run as root.
            try:
                user = pwd.getpwnam("postgres")
            except KeyError:
                pytest.skip("PostgreSQL does not run as root, and has no user here")
            run |= {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
            os.chown(folder, user.pw_uid, user.pw_gid)
        data = f"{folder}/data"
        arguments = ["-D", data, "-U", "shop", "-A", "trust", "--no-sync"]
        subprocess.run([initdb, *arguments], check=True, cwd=folder, **run)
        command = [server, "-D", data, "-k", folder, "-h", "", "-F"]
        with subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, cwd=folder, **run
        ) as process:
            assert process.stderr
            for line in process.stderr:
                if "ready to accept connections" in line:
                    break
            else:
                raise AssertionError("PostgreSQL has not started.")
            yield f"host={folder} user=shop dbname=postgres"
            process.terminate()
            process.communicate(timeout=TIMEOUT)


@pytest.fixture
def psycopg2_pool(postgres: str) -> Iterator[Pool]:
    pool = load("psycopg2.pool").ThreadedConnectionPool(1, 2, postgres)
    with contextlib.closing(load("psycopg2").connect(postgres)) as own:
        own.autocommit = True
        yield Pool(pool.getconn, pool.putconn, own.cursor())
    pool.closeall()


@pytest.fixture
def psycopg_pool(postgres: str) -> Iterator[Pool]:
    pool = load("psycopg_pool").ConnectionPool(
        postgres, min_size=1, max_size=2, timeout=1, open=True
    )
    own = load("psycopg").connect(postgres, autocommit=True)
    with pool, own:
        yield Pool(pool.getconn, pool.putconn, own.cursor())


@pytest.fixture
def sqlalchemy_pool(tmp_path: Path) -> Iterator[Pool]:

    def connect() -> Any:
        return sqlite3.connect(tmp_path / "shop.sqlite", check_same_thread=False)

    pool = QueuePool(connect, pool_size=2, max_overflow=0, timeout=0.1, use_lifo=True)
    with contextlib.closing(connect()) as own:
        own.isolation_level = None
        yield Pool(pool.connect, operator.methodcaller("close"), own.cursor())
    pool.dispose()


KEPT: ContextVar[Any] = ContextVar("KEPT", default=None)


@pytest.mark.parametrize("waits", [True, False], ids=["view-waits", "after-response"])
@pytest.mark.parametrize("place", ["g", "variable"])
@pytest.mark.parametrize("name", ["psycopg2_pool", "psycopg_pool", "sqlalchemy_pool"])
def test_a_real_pool_never_runs_dry(
    app: Flask, name: str, place: str, waits: bool, request: pytest.FixtureRequest
) -> None:
    pool: Pool = request.getfixturevalue(name)
    client = app.test_client()
    table = f"{name}_{place}_{waits}"  # A test that fails may keep its own locked.
    pool.own.execute(f"create table {table} (id integer)")

    def get_db() -> Any:
        db = g.get("db") if place == "g" else KEPT.get()
        if db is None:
            db = pool.take()
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
            pool.give(db)

    @app.route("/")
    def view() -> str:
        get_db().cursor().execute("select 1")

        @carry_context
        def add() -> None:
            get_db().cursor().execute(f"insert into {table} values (1)")
            get_db().commit()

        if waits:
            worker.submit(add).result(TIMEOUT)
        else:
            late.submit(add)
        return ""

    with ThreadPoolExecutor(1) as worker:
        for _ in range(REQUESTS):
            late = Late(worker)
            assert client.get("/").status_code == 200
            if not waits:
                late.result()
    pool.own.execute(f"select count(*) from {table}")
    assert pool.own.fetchone()[0] == REQUESTS
    for connection in [pool.take(), pool.take()]:  # None of the two is missing.
        pool.give(connection)


def test_peewees_one_database_is_opened_and_closed_for_each_task(
    app: Flask, tmp_path: Path
) -> None:
    database: Any = peewee.SqliteDatabase(str(tmp_path / "shop"))
    database.execute_sql("create table item (id integer)")
    database.close()

    def get_db() -> Any:
        if "db" not in g:
            database.connect()
            g.db = database
        return g.db

    @app.teardown_appcontext
    def close_db(error: BaseException | None) -> None:
        db = g.pop("db", None)
        if db is not None:
            db.close()

    @app.route("/")
    def view() -> list[bool]:
        get_db().execute_sql("select 1")
        add = carry_context(lambda: get_db().execute_sql("insert into item values (1)"))
        for _ in range(3):
            worker.submit(add).result(TIMEOUT)
        return [worker.submit(database.is_closed).result(), get_db().is_closed()]

    with ThreadPoolExecutor(1) as worker:
        for _ in range(REQUESTS):
            assert app.test_client().get("/").get_json() == [True, False]
    with database:
        rows = database.execute_sql("select count(*) from item").fetchone()
    assert rows == (3 * REQUESTS,)


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "user"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    # A mapped class may have attributes of these names.
    close: Mapped[str | None]
    commit: Mapped[str | None]


@pytest.fixture
def sessions(tmp_path: Path) -> Iterator[Any]:
    """A registry of sessions, and a user with the id 1."""
    engine = create_engine(f"sqlite:///{tmp_path / 'shop.sqlite'}")
    Base.metadata.create_all(engine)
    registry = scoped_session(sessionmaker(engine))
    with Session(engine) as own:
        own.add(User(name="ada"))
        own.commit()
    yield registry
    engine.dispose()


@pytest.mark.parametrize("handle", ["registry", "session"])
def test_a_scoped_session_in_g_is_removed_in_each_threads_task(
    app: Flask, sessions: Any, handle: str
) -> None:
    def get_db() -> Any:
        if "session" not in g:
            g.session = sessions if handle == "registry" else sessions()
        return g.session

    @app.teardown_appcontext
    def remove(error: BaseException | None) -> None:
        if g.pop("session", None) is not None:
            sessions.remove()

    @app.route("/")
    def view() -> list[bool]:
        viewed = get_db()
        viewed.execute(text("select 1"))
        task = carry_context(lambda: get_db().execute(text("select 1")).scalar())
        for _ in range(2):
            assert worker.submit(task).result(TIMEOUT) == 1
        left = worker.submit(sessions.registry.has).result(TIMEOUT)
        return [left, get_db() is viewed and sessions.registry.has()]

    with ThreadPoolExecutor(1) as worker:
        assert app.test_client().get("/").get_json() == [False, True]
    assert not sessions.registry.has()


@pytest.mark.parametrize("waits", [True, False], ids=["view-waits", "after-response"])
@pytest.mark.parametrize("place", ["object", "list"])
def test_an_orm_object_in_g_is_loaded_again_in_the_task(
    app: Flask, late: Late, sessions: Any, waits: bool, place: str
) -> None:
    def get_me() -> Any:
        if "me" not in g:
            user = sessions.get(User, 1)
            g.me = user if place == "object" else [user]
        return g.me if place == "object" else g.me[0]

    @app.teardown_appcontext
    def remove(error: BaseException | None) -> None:
        sessions.remove()

    @app.route("/")
    def view() -> str:
        name: str = get_me().name
        sessions.commit()  # What is read next is loaded again.

        @carry_context
        def rename() -> str:
            before: str = get_me().name
            get_me().name = "grace"
            sessions.commit()
            return before

        if waits:
            late.answered.set()
        late.submit(rename)
        return str(late.result()) if waits else name

    assert app.test_client().get("/").text == "ada"
    if not waits:
        assert late.result() == "ada"
    assert sessions.scalar(select(User.name)) == "grace"
    sessions.remove()


@pytest.mark.parametrize("waits", [True, False], ids=["view-waits", "after-response"])
def test_flask_login_loads_the_user_of_a_request_again(
    app: Flask, late: Late, sessions: Any, waits: bool
) -> None:
    flask_login = load("flask_login")
    login = flask_login.LoginManager(app)
    loaded: list[int] = []

    @app.teardown_appcontext
    def remove(error: BaseException | None) -> None:
        sessions.remove()

    @login.request_loader  # type: ignore[untyped-decorator]
    def load_user(sent: Any) -> Any:
        loaded.append(1)
        return sessions.get(User, int(sent.headers["Token"]))

    @app.route("/")
    def view() -> str:
        name: str = flask_login.current_user.name
        sessions.commit()

        @carry_context
        def rename() -> str:
            before: str = flask_login.current_user.name
            flask_login.current_user.name = "grace"
            sessions.commit()
            return before

        if waits:
            late.answered.set()
        late.submit(rename)
        return str(late.result()) if waits else name

    assert app.test_client().get("/", headers={"Token": "1"}).text == "ada"
    if not waits:
        assert late.result() == "ada"
    assert sessions.scalar(select(User.name)) == "grace"
    assert len(loaded) == 2
    sessions.remove()


def test_dependency_injectors_resource_of_a_context_is_the_tasks_own(
    app: Flask, pool: ThreadPoolExecutor, tmp_path: Path
) -> None:
    providers = load("dependency_injector.providers")
    provider = providers.ContextLocalSingleton(
        sqlite3.connect, tmp_path / "shop.sqlite", check_same_thread=False
    )
    closed: list[Any] = []

    @app.teardown_appcontext
    def close(error: BaseException | None) -> None:
        db = provider()
        closed.append(db)
        db.close()
        provider.reset()

    @app.route("/")
    def view() -> list[bool]:
        viewed = provider()
        own = pool.submit(carry_context(lambda: provider() is not viewed)).result()
        return [own, viewed.execute("select 1").fetchone() == (1,)]

    assert app.test_client().get("/").get_json() == [True, True]
    assert len(closed) == len({*closed}) == 2


class Stored(SessionInterface):
    """Opens a session by a function, and saves it by another one."""

    def __init__(self, open: Callable[[Any], Any], save: Callable[[Any], object]):
        self.open, self.save = open, save

    def open_session(self, app: Flask, request: Any) -> Any:
        return self.open(request)

    def save_session(self, app: Flask, session: Any, response: Any) -> None:
        self.save(session)


@pytest.mark.parametrize("late_task", [False, True])
def test_beakers_session_of_the_view_is_not_the_tasks(
    app: Flask, late: Late, tmp_path: Path, late_task: bool
) -> None:
    middleware = load("beaker.middleware").SessionMiddleware
    options = {"session.type": "file", "session.data_dir": str(tmp_path)}
    own: Any = app
    own.wsgi_app = middleware(own.wsgi_app, options)
    app.session_interface = Stored(
        lambda sent: sent.environ["beaker.session"], lambda session: session.save()
    )

    @app.route("/<user>")
    def view(user: str) -> list[Any]:
        seen = [session.get("user"), session.get("cart")]
        session["user"], session["cart"] = user, ["tea"]

        @carry_context
        def work() -> list[Any]:
            before = [session["user"], [*session["cart"]]]
            session["user"] = "eve"
            session["cart"].append("milk")
            return before

        late.submit(work)
        if not late_task:
            assert late.result() == [user, ["tea"]]
        return [*seen, session["user"], session["cart"]]

    client = app.test_client()
    assert client.get("/ada").get_json() == [None, None, "ada", ["tea"]]
    if late_task:
        assert late.result() == ["ada", ["tea"]]
    assert client.get("/bob").get_json() == ["ada", ["tea"], "bob", ["tea"]]


def test_munch_as_a_session_is_copied(app: Flask, pool: ThreadPoolExecutor) -> None:
    base = load("munch").Munch
    own: Any = type("Own", (base, SessionMixin), {"accessed": True})
    app.session_interface = Stored(lambda _: own(user="ada", cart=["tea"]), id)

    def work() -> str:
        before: str = session["user"]
        session["user"] = "eve"
        return before

    @app.route("/")
    def view() -> list[str]:
        return [pool.submit(carry_context(work)).result(TIMEOUT), session["user"]]

    assert app.test_client().get("/").get_json() == ["ada", "ada"]


def a_job() -> None:
    """What a queue may keep by its name."""


def test_rq_runs_no_bare_function(app: Flask) -> None:
    rq, fakeredis = load("rq"), load("fakeredis")
    redis = fakeredis.FakeStrictRedis()
    queue = rq.Queue(connection=redis)
    with app.test_request_context():
        carried = carry_context(a_job)
    job = queue.enqueue(carried)
    rq.SimpleWorker([queue], connection=redis).work(
        burst=True, logging_level="CRITICAL"
    )
    assert "carry_context" in str(job.latest_result().exc_string)


def test_apschedulers_sql_store_refuses_at_once(app: Flask, tmp_path: Path) -> None:
    scheduler = load("apscheduler.schedulers.background").BackgroundScheduler()
    stores = load("apscheduler.jobstores.sqlalchemy")
    url = f"sqlite:///{tmp_path / 'jobs.sqlite'}"
    scheduler.add_jobstore(stores.SQLAlchemyJobStore(url=url))
    with app.test_request_context():
        carried = carry_context(a_job)
    scheduler.start(paused=True)
    try:
        with pytest.raises(ValueError, match="reference|nested"):
            scheduler.add_job(carried)
        scheduler.add_job(a_job, trigger="interval", days=1)  # A bare one is taken.
    finally:
        scheduler.shutdown()
