"""Small apps and programs, drawn at random, that compare carry_context with Flask's own.

A program is an app, a few equal requests to it, and what its views and its tasks do.
``copy_current_request_context`` says what a task may rely on: where it ends well, so
does ``carry_context``. The same program without its tasks says what the view may see.
Where the two differ on purpose, ``EXCEPTIONS`` says so, with a program that shows it.
"""

import asyncio
import contextvars
import json
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from typing import Any, Literal, NamedTuple, cast, get_args

import pytest
from flask import (
    Flask,
    Request,
    copy_current_request_context,
    flash,
    g,
    jsonify,
    request,
    session,
)
from flask.sessions import SessionInterface, SessionMixin
from helpers import TIMEOUT
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

from ctxcarry import carry_context

EXAMPLES = 60  # Programs for each test.
FLASK_1 = version("flask").startswith("1.")

DATABASE: contextvars.ContextVar[Any] = contextvars.ContextVar("DATABASE", default=None)
DIRTY: contextvars.ContextVar[bool] = contextvars.ContextVar("DIRTY", default=False)
TENANT: contextvars.ContextVar[str] = contextvars.ContextVar("TENANT", default="none")

# ---------------------------------------------------------------------------
# What is drawn
# ---------------------------------------------------------------------------

Source = Literal["connection", "pool", "handle", "registry", "own class", "list"]
Place = Literal["g", "flag in g", "variable"]
Teardown = Literal["pop", "if in g", "unguarded"]
Commits = Literal["step", "flag in g", "unguarded flag in g", "flag in a variable"]
SessionKind = Literal["cookie", "notes in a dict", "notes in a set", "shell"]
Body = Literal["none", "json", "form"]
Read = Literal["nothing", "data", "parsed", "stream"]
When = Literal["while the view waits", "after the response", "in the next request"]
How = Literal["call", "asyncio.run", "coroutine"]
Steps = tuple[str, ...]

OF_DATABASE = ("open", "write", "commit", "rollback", "close", "look")
OF_FLAG = ("mark", "unmark")
OF_G = ("note", "forget", "tenant", "send")
OF_SESSION = ("sign", "leave", "cart", "flash")
OF_REQUEST = ("label", "route", "data", "parsed")


class Task(NamedTuple):
    """One task of a view: when and how it is called, and what it does."""

    steps: Steps
    when: When = "while the view waits"
    how: How = "call"


class Program(NamedTuple):
    """An app, and what a client, the view and its tasks do with it."""

    source: Source = "connection"
    place: Place = "g"
    teardown: Teardown = "pop"
    ends_request: bool = False  # Whether it is registered with teardown_request.
    commits: Commits = "step"
    session: SessionKind = "cookie"
    attributes: bool = False  # Whether the request class has a __getattr__.
    body: Body = "none"
    reads: Read = "nothing"
    testing: bool = False
    requests: int = 1
    hook: Steps = ()
    before: Steps = ()  # Steps of the view, before it wraps its tasks.
    between: Steps = ()  # After it has wrapped them, before it waits for any.
    after: Steps = ()
    tasks: tuple[Task, ...] = ()

    def __repr__(self) -> str:
        """Show what is not as it is by default."""
        defaults = self._field_defaults
        given = self._asdict().items()
        fields = [f"{n}={v!r}" for n, v in given if v != defaults[n]]
        return f"Program({', '.join(fields)})"

    @property
    def until_wrapped(self) -> Steps:
        """The steps before the tasks are wrapped."""
        return self.hook + self.before

    @property
    def by_tasks(self) -> Steps:
        """The steps of all tasks."""
        return tuple(step for task in self.tasks for step in task.steps)


# ---------------------------------------------------------------------------
# Where an app has its connections from
# ---------------------------------------------------------------------------


class Boom(Exception):
    """What a task raises on purpose."""


class Server:
    """What the connections of an app are connected to."""

    def __init__(self) -> None:
        self.connections: list[Connection] = []
        self.stored: list[str] = []

    def connect(self) -> "Connection":
        connection = sqlite3.connect(
            ":memory:", check_same_thread=False, factory=Connection
        )
        connection.server = self
        connection.execute("create table rows (row)")
        connection.holder = threading.get_ident()
        self.connections.append(connection)
        return connection

    def left_open(self) -> int:
        return sum(connection.holder is not None for connection in self.connections)

    def stop(self) -> None:
        for connection in self.connections:
            sqlite3.Connection.close(connection)


class Connection(sqlite3.Connection):
    """A real connection, which stores rows of its own and refuses other threads."""

    server: Server
    holder: int | None = None  # The thread that has it; none, if it is given back.

    def check_thread(self) -> None:
        if self.holder != threading.get_ident():
            raise sqlite3.ProgrammingError("not this thread's connection")

    def add(self, row: str) -> None:
        self.check_thread()
        self.execute("insert into rows values (?)", [row])

    def pending(self) -> list[str]:
        self.check_thread()
        return [row for (row,) in self.execute("select row from rows")]

    def commit(self) -> None:
        self.server.stored += self.pending()
        self.execute("delete from rows")
        super().commit()

    def rollback(self) -> None:
        self.check_thread()
        super().rollback()

    def close(self) -> None:
        self.rollback()
        self.holder = None


class Connections:
    """Opens a connection, as Flask's tutorial does."""

    def __init__(self, server: Server) -> None:
        self.server = server

    def open(self) -> Any:
        return self.server.connect()

    def database(self, opened: Any) -> Any:
        """Return what has add(), commit() and so on."""
        return opened

    def release(self, opened: Any) -> None:
        opened.close()


class Pool(Connections):
    """Hands out the connection that came back last, as psycopg2's pool does."""

    def __init__(self, server: Server) -> None:
        super().__init__(server)
        self.idle: list[Connection] = []

    def open(self) -> Connection:
        if self.idle:
            connection = self.idle.pop()
            connection.holder = threading.get_ident()
            return connection
        if len(self.server.connections) == 2:  # The view's and its task's.
            raise sqlite3.OperationalError("connection pool exhausted")
        return self.server.connect()

    def release(self, opened: Connection) -> None:
        opened.close()
        self.idle.append(opened)


class OfThread(Connections):
    """One object for all threads, with a connection for each."""

    def __init__(self, server: Server) -> None:
        super().__init__(server)
        self.threads: dict[int, Connection] = {}

    @property
    def current(self) -> Connection:
        if threading.get_ident() not in self.threads:
            raise sqlite3.InterfaceError("not connected")
        return self.threads[threading.get_ident()]

    def connect(self) -> None:
        self.threads[threading.get_ident()] = self.server.connect()

    def database(self, opened: Any) -> "OfThread":
        return self

    def add(self, row: str) -> None:
        self.current.add(row)

    def pending(self) -> list[str]:
        return self.current.pending()

    def commit(self) -> None:
        self.current.commit()

    def rollback(self) -> None:
        self.current.rollback()

    def close(self) -> None:
        self.current.close()
        del self.threads[threading.get_ident()]


class Handle(OfThread):
    """Connects when it is told to, and not twice, as peewee's Database does."""

    def open(self) -> "Handle":
        if threading.get_ident() in self.threads:
            raise sqlite3.OperationalError("connection already opened")
        self.connect()
        return self

    def release(self, opened: Any) -> None:
        self.close()

    def __enter__(self) -> "Handle":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Registry(OfThread):
    """Connects when it is first used, as SQLAlchemy's scoped_session does."""

    def open(self) -> "Registry":
        return self

    @property
    def current(self) -> Connection:
        if threading.get_ident() not in self.threads:
            self.connect()
        return self.threads[threading.get_ident()]

    def release(self, opened: Any) -> None:
        self.remove()

    def remove(self) -> None:
        if threading.get_ident() in self.threads:
            self.close()


class Database:
    """An app's own class around a connection, without ``with``."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.add, self.pending = connection.add, connection.pending

    def commit(self) -> None:
        self.connection.commit()

    def rollback(self) -> None:
        self.connection.rollback()

    def close(self) -> None:
        self.connection.close()


class OwnClass(Connections):
    """Opens a database of the app's own class."""

    def open(self) -> Database:
        return Database(self.server.connect())


class Lists(Connections):
    """Opens a list of connections."""

    def open(self) -> list[Connection]:
        return [self.server.connect()]

    def database(self, opened: list[Connection]) -> Connection:
        return opened[0]

    def release(self, opened: list[Connection]) -> None:
        for connection in opened:
            connection.close()


SOURCES: dict[Source, type[Connections]] = {
    "connection": Connections,
    "pool": Pool,
    "handle": Handle,
    "registry": Registry,
    "own class": OwnClass,
    "list": Lists,
}

# ---------------------------------------------------------------------------
# Sessions and requests
# ---------------------------------------------------------------------------


class NotingSession(dict[str, Any], SessionMixin):
    """Notes what has changed beside its items, so that only that is saved."""

    def __init__(self, items: dict[str, Any], notes: Any) -> None:
        super().__init__(items)
        self.notes = notes

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        self.note(key, value)

    def __delitem__(self, key: str) -> None:
        super().__delitem__(key)
        self.note(key, None)

    def note(self, key: str, value: Any) -> None:
        if isinstance(self.notes, set):
            cast("set[str]", self.notes).add(key)
        else:
            self.notes[key] = value

    def save(self, store: dict[str, Any]) -> None:
        if isinstance(self.notes, set):
            self.notes = {key: self[key] for key in cast("set[str]", self.notes)}
        store.update(self.notes)


class Items(dict[str, Any]):
    """What a ShellSession stands for."""


class ShellSession(SessionMixin):
    """Stands for another session, as Beaker's does."""

    def __init__(self, items: dict[str, Any]) -> None:
        self.__dict__["items_"] = Items(items)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["items_"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.__dict__["items_"], name, value)

    def __getitem__(self, key: str) -> Any:
        return self.__dict__["items_"][key]

    def __setitem__(self, key: str, value: Any) -> None:
        self.__dict__["items_"][key] = value

    def __delitem__(self, key: str) -> None:
        del self.__dict__["items_"][key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.__dict__["items_"])

    def __len__(self) -> int:
        return len(self.__dict__["items_"])

    def save(self, store: dict[str, Any]) -> None:
        store.clear()
        store.update(self)


class Stored(SessionInterface):
    """Keeps the one client's session on the server, as JSON."""

    def __init__(self, kind: SessionKind) -> None:
        self.kind = kind
        self.store = "{}"

    def open_session(self, app: Flask, request: Request) -> Any:
        items: dict[str, Any] = json.loads(self.store)
        if self.kind == "shell":
            return ShellSession(items)
        return NotingSession(items, {} if self.kind == "notes in a dict" else set())

    def save_session(self, app: Flask, session: Any, response: Any) -> None:
        store: dict[str, Any] = json.loads(self.store)
        session.save(store)
        self.store = json.dumps(store)


class AttributesRequest(Request):
    """A request whose attributes may come from a dict of its own."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.extra = {"shop": "tea"}

    def __getattr__(self, name: str) -> str:
        if name not in self.extra:
            raise AttributeError(name)
        return self.extra[name]


# ---------------------------------------------------------------------------
# Running a program
# ---------------------------------------------------------------------------


Wrap = Callable[[Callable[..., Any]], Callable[..., Any]]


class Ended(NamedTuple):
    """What there is to see once a program has ended."""

    responses: list[Any]
    session: str
    tasks: list[Any]  # What each has seen, or its error.
    stored: list[str]
    sent: list[str]
    left_open: int

    def is_well(self) -> bool:
        """Say whether all views and tasks did what they should, and cleaned up."""
        views = all(response[0] == 200 for response in self.responses)
        tasks = all(seen == "Boom()" or isinstance(seen, list) for seen in self.tasks)
        return views and tasks and self.left_open == 0

    def of_view(self) -> Any:
        """Return what the view, its response and the next request have seen."""
        rows = [row for row in self.stored + self.sent if row == "view"]
        return self.responses, self.session, rows


class Shop:
    """One app with its client, its database and its worker thread, for one program."""

    def __init__(self, program: Program, wrap: Wrap) -> None:
        self.program, self.wrap = program, wrap
        self.server = Server()
        self.source = SOURCES[program.source](self.server)
        self.worker = ThreadPoolExecutor(1)
        self.responses: list[Any] = []
        self.tasks: list[Any] = []
        self.sent: list[str] = []
        self.late: list[Callable[[], Any]] = []
        self.postponed: list[Callable[[], Any]] = []
        self.app = self.make_app()

    def make_app(self) -> Flask:
        app = Flask("shop", static_folder=None)
        app.secret_key = "secret"
        app.config["PROPAGATE_EXCEPTIONS"] = False
        app.testing = self.program.testing
        app.logger.disabled = True
        if self.program.session != "cookie":
            app.session_interface = Stored(self.program.session)
        if self.program.attributes:
            app.request_class = AttributesRequest
        app.before_request(self.hook)
        app.route("/<item>", methods=["POST"])(self.view)
        if self.program.ends_request:
            app.teardown_request(self.teardown)
        else:
            app.teardown_appcontext(self.teardown)
        return app

    def run(self) -> Ended:
        self.worker.submit(int).result(TIMEOUT)  # It is no thread of a view's.
        client = self.app.test_client()
        try:
            for _ in range(self.program.requests):
                self.send(client, "tea")
                for call in self.late:
                    self.finish(call)
            self.send(client, "last")
        finally:
            self.worker.shutdown()
            left_open = self.server.left_open()
            self.server.stop()
        interface = self.app.session_interface
        store = interface.store if isinstance(interface, Stored) else ""
        return Ended(
            self.responses, store, self.tasks, self.server.stored, self.sent, left_open
        )

    def send(self, client: Any, item: str) -> None:
        bodies: dict[Body, dict[str, Any]] = {
            "none": {},
            "json": {"json": {"item": item}},
            "form": {"data": {"item": item}},
        }
        try:
            response = client.post(f"/{item}", **bodies[self.program.body])
        except Exception as error:  # Of a teardown function.
            self.responses.append((type(error).__name__, str(error)))
        else:
            sets_cookie = "Set-Cookie" in response.headers
            self.responses.append(
                (response.status_code, response.get_json(silent=True), sets_cookie)
            )

    # What runs in a request, and in a task

    def hook(self) -> None:
        self.take(self.program.hook, "view")

    def view(self, item: str) -> Any:
        program = self.program
        at_start = self.visible()
        seen: list[Any] = []
        postponed, waited = self.postponed, list[Callable[[], Any]]()
        self.late, self.postponed = [], []
        if item != "last":
            read(program.reads)
            seen += self.take(program.before, "view")
            queues = dict(zip(get_args(When), (waited, self.late, self.postponed)))
            for task in program.tasks:
                queues[task.when].append(self.wrapped(task))
            seen += self.take(program.between, "view")
        for call in postponed + waited:
            self.finish(call)
        if item != "last":
            seen += self.take(program.after, "view")
        return jsonify(seen=seen, at_start=at_start, at_end=self.visible())

    def visible(self) -> Any:
        """Return all that a view can see without reading the body."""
        names = {name: str(g.get(name)) for name in g if name != "db"}
        note = getattr(request, "label", None), getattr(request, "shop", None)
        return names, "db" in g, note, request.view_args, dict(session), TENANT.get()

    def wrapped(self, task: Task) -> Callable[[], Any]:
        def work() -> list[Any]:
            return self.take(task.steps, "task")

        async def work_async() -> list[Any]:
            await asyncio.sleep(0)
            return work()

        if task.how == "call":
            return self.wrap(work)
        if task.how == "coroutine" and self.wrap is carry_context:
            carried = self.wrap(work_async)
            return lambda: asyncio.run(carried())
        runner = self.wrap(asyncio.run)
        return lambda: runner(work_async())

    def finish(self, call: Callable[[], Any]) -> None:
        """Call a task in the worker thread, and note how it ended."""
        try:
            self.tasks.append(self.worker.submit(call).result(TIMEOUT))
        except Exception as error:
            self.tasks.append(repr(error))

    def teardown(self, error: BaseException | None) -> None:
        if "outbox" in g:
            self.sent += g.outbox
        opened = DATABASE.get() if self.program.place == "variable" else self.from_g()
        DATABASE.set(None)
        if opened is not None:
            if self.is_dirty() and error is None:
                self.source.database(opened).commit()
            self.source.release(opened)
        DIRTY.set(False)

    def from_g(self) -> Any:
        """Return what is open, as the teardown functions of three apps would."""
        if self.program.teardown == "pop":
            return g.pop("db", None)
        if self.program.teardown == "if in g":
            return g.db if "db" in g else None
        return g.db

    def is_dirty(self) -> bool:
        if self.program.commits == "flag in a variable":
            return DIRTY.get()
        if self.program.commits == "unguarded flag in g":
            return bool(g.dirty)
        return self.program.commits == "flag in g" and "dirty" in g

    def database(self) -> Any:
        """Return this context's database, as get_db() of Flask's tutorial does."""
        if self.program.place == "variable":
            if DATABASE.get() is None:
                DATABASE.set(self.source.open())
            return self.source.database(DATABASE.get())
        if "db" not in g:
            opened = self.source.open()
            g.db = True if self.program.place == "flag in g" else opened
        return self.source.database(g.db)

    def close(self) -> None:
        """Release the database before the end."""
        opened = g.pop("db", None) or DATABASE.get()
        DATABASE.set(None)
        if opened is not None:
            self.source.release(opened)

    def take(self, steps: Steps, who: str) -> list[Any]:
        """Take the steps, and return what they have seen."""
        seen: list[Any] = []
        for step in steps:
            if step in OF_DATABASE:
                seen += self.take_database_step(step, who)
            elif step in OF_SESSION:
                take_session_step(step, who)
            else:
                seen += take_step(step, who)
        return seen

    def take_database_step(self, step: str, who: str) -> list[Any]:
        if step == "close":
            self.close()
            return []
        database = self.database()
        if step == "write":
            database.add(who)
        elif step == "commit":
            database.commit()
        elif step == "rollback":
            database.rollback()
        elif step == "look":
            return database.pending()
        return []


def take_session_step(step: str, who: str) -> None:
    if step == "sign":
        session["by"] = who
    elif step == "leave" and "by" in session:
        del session["by"]
    elif step == "cart":
        if "cart" not in session:
            session["cart"] = []
        session["cart"].append(who)
    elif step == "flash":
        flash(who)


def take_step(step: str, who: str) -> list[Any]:
    if step == "mark":
        g.dirty = True
        DIRTY.set(True)
    elif step == "unmark":
        g.pop("dirty", None)
        DIRTY.set(False)
    elif step == "note":
        g.note = who
    elif step == "forget" and "note" in g:
        del g.note
    elif step == "tenant":
        TENANT.set(who)
    elif step == "send":
        if "outbox" not in g:
            g.outbox = []
        g.outbox.append(who)
    elif step == "label":
        cast("Any", request).label = who
    elif step == "route":
        cast("Any", request).view_args["item"] = who
    elif step == "raise":
        raise Boom
    elif step in get_args(Read):
        return [read(step)]
    return []


def read(how: str) -> Any:
    """Read the body of the request."""
    if how == "data":
        return request.get_data(as_text=True)
    if how == "parsed":
        return request.get_json() if request.is_json else request.form.to_dict()
    return request.stream.read().decode() if how == "stream" else None


def run(program: Program, wrap: Wrap = carry_context) -> Ended:
    """Run a program in a thread's context that nothing else has touched."""
    return contextvars.Context().run(lambda: Shop(program, wrap).run())


# ---------------------------------------------------------------------------
# What must hold, and the exceptions
# ---------------------------------------------------------------------------


def check_ends_as_well(program: Program) -> None:
    """Check rules 1 and 3: what ends well under the built-in ends so under this."""
    built_in = run(program, copy_current_request_context)
    assume(built_in.is_well())
    carried = run(program)
    assert carried.tasks == built_in.tasks
    assert carried.left_open == 0
    assert sorted(carried.stored) == sorted(built_in.stored)
    assert sorted(carried.sent) == sorted(built_in.sent)


def check_view_notices_nothing(program: Program) -> None:
    """Check rule 2: the view sees what it sees where it has no tasks."""
    carried = run(program)
    assume(carried.left_open == 0)  # The built-in says whether the task is to blame.
    assert carried.of_view() == run(program._replace(tasks=())).of_view()


Check = Callable[[Program], None]


class ExceptionToRules(NamedTuple):
    """A difference that the contract allows, with a program that shows it."""

    name: str
    check: Check
    allows: Callable[[Program], bool]
    sentence: str  # Of the contract.
    example: Program


EXCEPTIONS = [
    ExceptionToRules(
        "body that the view has not read",
        check_ends_as_well,
        lambda program: (
            program.body != "none"
            and program.reads == "nothing"
            and not {"data", "parsed"}.isdisjoint(program.by_tasks)
        ),
        "Separated or refused on purpose: reading a body that the view has not read.",
        Program(body="json", tasks=(Task(("data",)),)),
    ),
    ExceptionToRules(
        "body that the view has consumed without keeping it",
        check_ends_as_well,
        lambda program: (
            program.body != "none"
            and program.reads == "stream"
            and not {"data", "parsed"}.isdisjoint(program.by_tasks)
        ),
        "In the task, reading it raises. That goes for what the view has consumed"
        " without keeping it (request.stream, cache=False).",
        Program(body="json", reads="stream", tasks=(Task(("data",)),)),
    ),
    ExceptionToRules(
        "flag in a context variable",
        check_ends_as_well,
        lambda program: (
            program.commits == "flag in a variable"
            and "mark" in program.until_wrapped
            and "write" in program.by_tasks
        ),
        "Separated or refused on purpose: a flag in a context variable on which a"
        " teardown function commits.",
        Program(
            commits="flag in a variable", before=("mark",), tasks=(Task(("write",)),)
        ),
    ),
    ExceptionToRules(
        "flag in g that says that the connection is set up",
        check_ends_as_well,
        lambda program: (
            program.place == "flag in g"
            and not set(OF_DATABASE).isdisjoint(program.until_wrapped)
        ),
        "Separated or refused on purpose: code that relies on an empty g (a flag in g"
        ' that says "this connection is set up").',
        Program(
            source="handle",
            place="flag in g",
            before=("open",),
            tasks=(Task(("write", "commit")),),
        ),
    ),
    ExceptionToRules(
        "list in g that a teardown function sends, in the task",
        check_ends_as_well,
        lambda program: "send" in program.until_wrapped and "send" in program.by_tasks,
        "Separated or refused on purpose: a list in g that a teardown function sends.",
        Program(before=("send",), tasks=(Task(("send",), "after the response"),)),
    ),
    ExceptionToRules(
        "list in g that a teardown function sends, in the view",
        check_view_notices_nothing,
        lambda program: "send" in program.until_wrapped and "send" in program.by_tasks,
        "A mutable value is shared: replace it, do not change it.",
        Program(before=("send",), tasks=(Task(("send",)),)),
    ),
]
if FLASK_1:
    EXCEPTIONS.append(
        ExceptionToRules(
            "the same object in g, on Flask 1.x",
            check_ends_as_well,
            lambda program: (
                "flag in g" in program.commits
                and "mark" in program.until_wrapped
                and "mark" in program.by_tasks
            ),
            "(Unnoticed, where the value is the same object: on Flask 1.x.)",
            Program(
                commits="flag in g",
                before=("mark",),
                tasks=(Task(("write", "mark")),),
            ),
        )
    )

# ---------------------------------------------------------------------------
# The tests
# ---------------------------------------------------------------------------


def programs(
    *steps: str, of_tasks: Steps = (), **fields: st.SearchStrategy[Any]
) -> st.SearchStrategy[Program]:
    """Draw programs of these steps, in which these fields vary."""

    def is_complete(program: Program) -> Program:
        # An app whose teardown function does not ask sets what it reads in a hook.
        hook = program.hook
        if program.teardown == "unguarded" and program.place != "variable":
            hook += ("open",)
        if program.commits == "unguarded flag in g":
            hook += ("mark",)
        return program._replace(hook=hook)

    def draw_steps(*more: str) -> st.SearchStrategy[Steps]:
        return st.lists(st.sampled_from(steps + more), max_size=4).map(tuple)

    tasks = st.builds(
        Task,
        steps=draw_steps("raise", *of_tasks),
        when=st.sampled_from(get_args(When)),
        how=st.sampled_from(get_args(How)),
    )
    return st.builds(
        Program,
        requests=st.integers(1, 3),
        hook=draw_steps(),
        before=draw_steps(),
        between=draw_steps(),
        after=draw_steps(),
        tasks=st.lists(tasks, min_size=1, max_size=2).map(tuple),
        **fields,
    ).map(is_complete)


def one_of(values: Any) -> st.SearchStrategy[Any]:
    return st.sampled_from(get_args(values))


ENDINGS: dict[str, st.SearchStrategy[Any]] = {
    "teardown": one_of(Teardown),
    "ends_request": st.booleans(),
}


def of_source(source: Source, *places: Place) -> st.SearchStrategy[Program]:
    """Draw programs of an app that has its connections from there."""
    return programs(
        *OF_DATABASE,
        source=st.just(source),
        place=st.sampled_from(places or ("g",)),
        **ENDINGS,
    )


def of_session(kind: SessionKind) -> st.SearchStrategy[Program]:
    """Draw programs of an app that has such a session."""
    return programs(*OF_SESSION, session=st.just(kind), testing=st.booleans())


KINDS: dict[str, st.SearchStrategy[Program]] = {
    "connection": of_source("connection"),
    "pool": of_source("pool"),
    "handle": of_source("handle", "g", "flag in g"),
    "registry": of_source("registry"),
    "own class": of_source("own class"),
    "list of connections": of_source("list"),
    "context variable": programs(
        *OF_DATABASE, source=one_of(Source), place=st.just("variable"), **ENDINGS
    ),
    "flag": programs(
        *OF_DATABASE,
        *OF_FLAG,
        commits=one_of(Commits),
        source=one_of(Source),
        **ENDINGS,
    ),
    "cookie": of_session("cookie"),
    "session that notes in a dict": of_session("notes in a dict"),
    "session that notes in a set": of_session("notes in a set"),
    "session that is a shell": of_session("shell"),
    "g and context variables": programs(*OF_G),
    "request": programs(
        *OF_REQUEST,
        attributes=st.booleans(),
        body=one_of(Body),
        reads=one_of(Read),
    ),
    "everything": programs(
        *OF_DATABASE,
        *OF_FLAG,
        *OF_G,
        *OF_SESSION,
        *OF_REQUEST,
        source=one_of(Source),
        place=st.sampled_from(["g", "variable"]),
        commits=one_of(Commits),
        session=one_of(SessionKind),
        testing=st.booleans(),
        attributes=st.booleans(),
        body=one_of(Body),
        reads=one_of(Read),
        **ENDINGS,
    ),
}
quickly = settings(
    max_examples=EXAMPLES,
    deadline=None,
    phases=[Phase.reuse, Phase.generate, Phase.shrink],
    suppress_health_check=[HealthCheck.too_slow],
)


def is_allowed(program: Program, check: Check) -> bool:
    """Say whether the contract allows this program to fail in this check."""
    return any(e.check is check and e.allows(program) for e in EXCEPTIONS)


@pytest.mark.parametrize("kind", KINDS)
@quickly
@given(data=st.data())
def test_a_task_ends_as_well_as_under_the_builtin(
    kind: str, data: st.DataObject
) -> None:
    program = data.draw(KINDS[kind])
    assume(not is_allowed(program, check_ends_as_well))
    check_ends_as_well(program)


@pytest.mark.parametrize("kind", KINDS)
@quickly
@given(data=st.data())
def test_the_view_does_not_notice_its_tasks(kind: str, data: st.DataObject) -> None:
    program = data.draw(KINDS[kind])
    assume(not is_allowed(program, check_view_notices_nothing))
    check_view_notices_nothing(program)


@pytest.mark.parametrize("exception", [pytest.param(e, id=e.name) for e in EXCEPTIONS])
def test_each_exception_is_needed(exception: ExceptionToRules) -> None:
    check = quickly(given(st.just(exception.example))(exception.check))
    assert exception.allows(exception.example)
    with pytest.raises(AssertionError):
        check()
