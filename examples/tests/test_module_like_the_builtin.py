"""Compare carry_context with Flask's own way, on apps and programs drawn at random.

It finds what nobody has thought of: the cases in test_ctxcarry.py were chosen by hand.

A program is an app, a few equal requests to it, and what its view and its tasks do.
Where a task ends well under ``copy_current_request_context``, it ends well here. And
the view sees what it sees when the same program has no tasks. ``EXCEPTIONS`` lists the
differences that the contract allows, each with a program that shows it.
"""

import asyncio
import contextlib
import copy
import itertools
import sqlite3
import sys
import threading
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context, ContextVar
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import flask
import pytest
from flask import Flask, Request, copy_current_request_context, g, request, session
from flask.sessions import SessionInterface, SessionMixin
from helpers import TIMEOUT
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

from ctxcarry import carry_context

OPENED: ContextVar[Any] = ContextVar("OPENED", default=None)
DIRTY: ContextVar[bool] = ContextVar("DIRTY", default=False)
TENANT: ContextVar[str] = ContextVar("TENANT", default="none")

# Programs

Source = Literal["connection", "pool", "handle", "registry", "cursor", "own class"]
# What a class has whose objects cannot be shared. A model of SQLAlchemy has a mapper.
KnownBy = Literal[
    "close", "disconnect", "commit", "commit_transaction", "abandon", "__mapper__"
]
Place = Literal["g", "variable"]
Inside = Literal["", "a list", "a dict of dicts", "a memo", "a tuple of sets"]
Teardown = Literal["pop", "if in g", "unguarded"]
Commits = Literal["step", "flag in g", "flag in a variable"]
SessionKind = Literal["cookie", "notes in a dict", "notes in a set", "live"]
Body = Literal["none", "json", "form"]
Read = Literal["nothing", "data", "parsed", "stream"]
When = Literal["while the view waits", "after the response", "in the next request"]
How = Literal["call", "asyncio.run", "coroutine", "forgotten"]
Steps = tuple[str, ...]


class Task(NamedTuple):
    """One task of a view: what it does, when and how it is called."""

    steps: Steps
    when: When = "while the view waits"
    how: How = "call"


class Program(NamedTuple):
    """An app, and what a client, the view and its tasks do with it."""

    source: Source = "connection"
    known_by: KnownBy = "close"  # The own class.
    place: Place = "g"
    inside: Inside = ""
    teardown: Teardown = "pop"
    ends_request: bool = False  # True: it is registered with teardown_request.
    commits: Commits = "step"
    session: SessionKind = "cookie"
    has_getattr: bool = False  # The request class.
    body: Body = "none"
    reads: Read = "nothing"
    testing: bool = False
    by_exec: bool = False  # The code that wraps a task is a string.
    stirred: bool = False  # What is carried changes while a task is wrapped.
    requests: int = 1
    others: int = 0  # Ordinary requests after each of these.
    hook: Steps = ()
    before: Steps = ()  # What the view does before it wraps its tasks,
    between: Steps = ()  # before it waits for them,
    after: Steps = ()  # and then.
    tasks: tuple[Task, ...] = ()

    def __repr__(self) -> str:
        """Show what is not the default."""
        given = zip(self._fields, self, strict=True)
        shown = [f"{n}={v!r}" for n, v in given if v != self._field_defaults[n]]
        return f"Program({', '.join(shown)})"

    def view_takes(self, *steps: str) -> bool:
        """Say whether the view takes one of these steps before it wraps its tasks."""
        return not set(steps).isdisjoint(self.hook + self.before)

    def tasks_take(self, *steps: str) -> bool:
        """Say whether a task takes one of these steps."""
        return any(step in task.steps for task in self.tasks for step in steps)

    def tasks_read_body(self) -> bool:
        """Say whether a task reads a body that is there."""
        return self.body != "none" and self.tasks_take("data", "parsed")


# Databases


class Connection(sqlite3.Connection):
    """A real connection, which refuses other threads than the one that holds it."""

    stored: list[str]
    holder: int | None = None  # A thread, or none when it is closed or in a pool.

    @property
    def connection(self) -> "Connection":
        """Return what databases of all kinds have."""
        return self

    def execute(self, *sql: Any) -> sqlite3.Cursor:
        if self.holder != threading.get_ident():
            raise sqlite3.ProgrammingError("this thread does not hold the connection")
        return super().execute(*sql)

    def pending(self) -> list[str]:
        """Return the rows of the transaction."""
        return [row for (row,) in self.execute("select row from rows")]

    def commit(self) -> None:
        self.stored += self.pending()
        self.execute("delete from rows")
        super().commit()

    def close(self) -> None:
        """Close it, or give it back, in any thread, but once."""
        if self.holder is None:
            raise sqlite3.ProgrammingError("the connection is closed")
        self.rollback()
        self.holder = None


class Connections:
    """Opens a connection each time, as Flask's tutorial does."""

    known_by: KnownBy  # What the own class has.

    def __init__(self) -> None:
        self.all: list[Connection] = []
        self.stored: list[str] = []

    def open(self) -> Any:
        connection = sqlite3.connect(
            ":memory:", check_same_thread=False, factory=Connection
        )
        connection.stored, connection.holder = self.stored, threading.get_ident()
        connection.execute("create table rows (row)")
        self.all.append(connection)
        return connection

    def release(self, opened: Any) -> None:
        opened.close()

    def close_all(self) -> int:
        """Close all, and count those that nobody has given back."""
        for connection in self.all:
            sqlite3.Connection.close(connection)
        return sum(connection.holder is not None for connection in self.all)


class Pool(Connections):
    """Hands out the connection that came back last, as psycopg2's pool does."""

    def __init__(self) -> None:
        super().__init__()
        self.idle: list[Connection] = []

    def open(self) -> Any:
        if self.idle:
            connection = self.idle.pop()
            connection.holder = threading.get_ident()
            return connection
        if len(self.all) == 2:  # The view's and a task's.
            raise sqlite3.OperationalError("connection pool exhausted")
        return super().open()

    def release(self, opened: Any) -> None:
        opened.close()
        self.idle.append(opened)


class Handle(Connections):
    """One object for all threads that connects once in each, as peewee's does."""

    def __init__(self) -> None:
        super().__init__()
        self.threads: dict[int, Connection] = {}

    @property
    def connection(self) -> Connection:
        return self.threads[threading.get_ident()]

    def open(self) -> Any:
        if threading.get_ident() in self.threads:
            raise sqlite3.OperationalError("connection already opened")
        self.threads[threading.get_ident()] = super().open()
        return self

    def commit(self) -> None:
        self.connection.commit()

    def close(self) -> None:
        self.threads.pop(threading.get_ident()).close()


class Registry(Handle):
    """Connects when a thread first uses it, as SQLAlchemy's scoped_session does."""

    @property
    def connection(self) -> Connection:
        if threading.get_ident() not in self.threads:
            super().open()
        return self.threads[threading.get_ident()]

    def open(self) -> Any:
        return self

    def close(self) -> None:
        if threading.get_ident() in self.threads:
            super().close()


class Cursors(Connections):
    """Opens a cursor over a connection of its own."""

    def open(self) -> Any:
        return super().open().cursor()

    def release(self, opened: Any) -> None:
        opened.connection.close()


class OwnClass(Cursors):
    """Opens an object of the app's own class, or of a model, which has a connection."""

    def open(self) -> Any:
        cls: Any = type("Own", (), {self.known_by: Connection.close})
        opened = cls()
        opened.connection = Connections.open(self)
        return opened


SOURCES: dict[Source, type[Connections]] = {
    "connection": Connections,
    "pool": Pool,
    "handle": Handle,
    "registry": Registry,
    "cursor": Cursors,
    "own class": OwnClass,
}
# How a value is put into a container, and how it is taken out.
INSIDE: dict[Inside, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "": (lambda value: value, lambda kept: kept),
    "a list": (lambda value: ["main", value], lambda kept: kept[1]),
    "a dict of dicts": (lambda value: {1: {2: value}}, lambda kept: kept[1][2]),
    "a memo": (
        lambda value: {("users", ()): [value]},
        lambda kept: kept["users", ()][0],
    ),
    "a tuple of sets": (lambda value: ({value},), lambda kept: next(iter(kept[0]))),
}

# Sessions and requests


class NotingSession(dict[str, Any], SessionMixin):
    """Notes in a dict or a set what has changed, so that only that is saved."""

    def __init__(self, items: dict[str, Any], notes: Any) -> None:
        super().__init__(items)
        self.notes = notes

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        self.notes.update({key: value})  # A set takes the key.

    def save(self, store: dict[str, Any]) -> None:
        store.update({key: self[key] for key in self.notes})


class Stored(SessionInterface):
    """Keeps the session of the one client in the process, and what is in it, if live."""

    def __init__(self, kind: SessionKind) -> None:
        self.kind, self.store = kind, dict[str, Any]()

    def open_session(self, app: Flask, request: Request) -> Any:
        items = self.store if self.kind == "live" else copy.deepcopy(self.store)
        return NotingSession(items, set() if self.kind == "notes in a set" else {})

    def save_session(self, app: Flask, session: Any, response: Any) -> None:
        session.save(self.store)


class GetattrRequest(Request):
    """Has attributes that are in a dict of its own."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.extra = {"shop": "tea"}

    def __getattr__(self, name: str) -> str:
        if name in self.extra:
            return self.extra[name]
        raise AttributeError(name)


# Steps

READS: dict[Read, Callable[[], Any]] = {
    "nothing": lambda: None,
    "data": lambda: request.get_data(as_text=True),
    "parsed": lambda: request.get_json() if request.is_json else request.form.to_dict(),
    "stream": lambda: request.stream.read().decode(),
}
OF_DATABASE: dict[str, Callable[[Connection, str], Any]] = {
    "open": lambda db, who: None,
    "write": lambda db, who: db.execute("insert into rows values (?)", [who]).close(),
    "commit": lambda db, who: db.commit(),
    "rollback": lambda db, who: db.rollback(),
    "look": lambda db, who: db.pending(),
}
OF_REQUEST: dict[str, Callable[[str], Any]] = {
    "label": lambda who: setattr(request, "label", who),
    "route": lambda who: (request.view_args or {}).update(item=who),
    "data": lambda who: READS["data"](),
    "parsed": lambda who: READS["parsed"](),
}
OF_SESSION: dict[str, Callable[[str], Any]] = {
    "sign": lambda who: session.__setitem__("by", who),
    "leave": lambda who: session.pop("by", None),
    "cart": lambda who: session.setdefault("cart", []).append(who),
    "stock": lambda who: session.setdefault("stock", {"tea": 3}),
    "flash": flask.flash,
}
OF_G: dict[str, Callable[[str], Any]] = {
    "mark": lambda who: setattr(g, "dirty", True),
    "unmark": lambda who: g.pop("dirty", None),
    "mark in a variable": lambda who: DIRTY.set(True),
    "note": lambda who: setattr(g, "note", who),
    "forget": lambda who: g.pop("note", None),
    "tenant": TENANT.set,
    "send": lambda who: g.setdefault("outbox", []).append(who),
    # As Flask-SQLAlchemy does, if it records queries.
    "query": lambda who: g.setdefault("_sqlalchemy_queries", []).append(who),
    "set": lambda who: setattr(g, "seen", {"tea"}),
    "dict": lambda who: setattr(g, "prices", {"tea": 3}),
    # So many objects that the garbage collector runs.
    "rows": lambda who: len([[number] for number in range(3000)]),
}

# Running a program

Wrap = Callable[[Callable[..., Any]], Callable[..., Any]]
Call = Callable[[], Any]


class Shop:
    """One program with its app, its databases and its worker thread."""

    def __init__(self, program: Program, wrap: Wrap) -> None:
        self.program, self.wrap = program, wrap
        self.source = SOURCES[program.source]()
        self.source.known_by = program.known_by
        self.put_inside, self.take_out = INSIDE[program.inside]
        self.worker = ThreadPoolExecutor(1)
        self.responses: list[Any] = []
        self.tasks: list[Any] = []  # What each of them has seen, or its error.
        self.sent: list[str] = []
        self.calls: dict[When, list[Call]] = {}
        self.interface = Stored(program.session)
        self.app = app = Flask("drawn", static_folder=None)
        app.secret_key = "secret"
        app.config["PROPAGATE_EXCEPTIONS"] = False
        app.testing = program.testing
        app.logger.disabled = True  # It is the logger of all apps of this name.
        if program.session != "cookie":
            app.session_interface = self.interface
        if program.has_getattr:
            app.request_class = GetattrRequest
        app.before_request(self.hook)
        app.add_url_rule("/<item>", view_func=self.view, methods=["POST"])
        if program.ends_request:
            app.teardown_request(self.teardown)
        else:
            app.teardown_appcontext(self.teardown)

    def run(self) -> None:
        self.worker.submit(int).result(TIMEOUT)  # The thread starts outside of views.
        client = self.app.test_client()
        with self.worker:
            for item in [*["tea"] * self.program.requests, "last"]:
                self.post(client, item)
                self.finish("after the response")
                for _ in range(self.program.others):
                    self.post(client, "other")
        self.left_open = self.source.close_all()

    def is_well(self) -> bool:
        """Say whether views and tasks did what they should, and cleaned up."""
        views = all(response[0] == 200 for response in self.responses)
        tasks = all(
            type(seen) is list or seen == "LookupError()" for seen in self.tasks
        )
        return views and tasks and self.left_open == 0

    def of_view(self) -> Any:
        """Return what clients and views have seen, and what views have stored."""
        rows = [row for row in self.source.stored + self.sent if row == "view"]
        return self.responses, self.interface.store, rows

    def post(self, client: Any, item: str) -> None:
        sent = {"json": {"json": {"item": item}}, "form": {"data": {"item": item}}}
        try:
            response = client.post(f"/{item}", **sent.get(self.program.body, {}))
        except Exception as error:  # Of a teardown function.
            self.responses.append([repr(error)])
            return
        page = response.get_json(silent=True)
        cookie = "Set-Cookie" in response.headers
        self.responses.append([response.status_code, page, cookie])

    def hook(self) -> None:
        self.take(self.program.hook, "view")

    def view(self, item: str) -> Any:
        program = self.program
        at_start = describe_context()
        if item == "other":
            return flask.jsonify(self.take(("write", *["rows"] * 10, "look"), "view"))
        if item == "last":
            self.finish("in the next request")
            return flask.jsonify([at_start, describe_context()])
        seen = [READS[program.reads](), self.take(program.before, "view")]
        calls = [self.wrapped(task) for task in program.tasks]
        seen.append(self.take(program.between, "view"))
        self.finish("in the next request")
        for task, call in zip(program.tasks, calls, strict=True):
            self.calls.setdefault(task.when, []).append(call)
        self.finish("while the view waits")
        seen.append(self.take(program.after, "view"))
        return flask.jsonify([at_start, seen, describe_context()])

    def wrapped(self, task: Task) -> Call:
        """Wrap a task, and return what a thread calls."""

        def work() -> list[Any]:
            return self.take(task.steps, "task")

        async def work_async() -> list[Any]:
            await asyncio.sleep(0)
            return work()

        if task.how == "asyncio.run":
            runner = self.carry(asyncio.run)
            return lambda: runner(work_async())
        # The built-in runs a coroutine function to its end, as it runs a function.
        if task.how == "call" or self.wrap is copy_current_request_context:
            return self.carry(work)
        if task.how == "forgotten":
            return self.forgotten(work)
        carried = self.carry(work_async)
        return lambda: asyncio.run(carried())

    def forgotten(self, work: Call) -> Call:
        """Wrap a task that then waits for ever, on a loop that is closed.

        Nothing keeps it, as the references of asyncio are weak. CPython's garbage
        collector ends it one day, in any thread.
        """

        async def work_and_wait(seen: asyncio.Future[Any]) -> None:
            try:
                seen.set_result(work())
            except Exception as error:
                seen.set_exception(error)
            await seen.get_loop().create_future()

        carried = self.carry(work_and_wait)

        def start() -> Any:
            with contextlib.closing(asyncio.new_event_loop()) as loop:
                seen = loop.create_future()
                loop.create_task(carried(seen))
                return loop.run_until_complete(seen)

        return start

    def carry(self, func: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a function in the way of this program."""
        with stirred() if self.program.stirred else contextlib.nullcontext():
            if not self.program.by_exec:
                return self.wrap(func)
            names: dict[str, Callable[..., Any]] = {"wrap": self.wrap, "func": func}
            exec("carried = wrap(func)", names)
            return names["carried"]

    def finish(self, when: When) -> None:
        """Call these tasks in the worker thread, and note how each has ended."""
        for call in self.calls.pop(when, []):
            try:
                self.tasks.append(self.worker.submit(call).result(TIMEOUT))
            except Exception as error:
                self.tasks.append(repr(error))

    # What views and tasks do

    def get_db(self) -> Any:
        """Return this context's database, as get_db() of Flask's tutorial does."""
        if self.program.place == "variable":
            if OPENED.get() is None:
                OPENED.set(self.put_inside(self.source.open()))
            return self.take_out(OPENED.get())
        if "db" not in g:
            g.db = self.put_inside(self.source.open())
        return self.take_out(g.db)

    def release(self, opened: Any) -> None:
        """Release what was opened, and kept in g or in the context variable."""
        if self.program.place == "variable":
            opened = OPENED.get()
            OPENED.set(None)
        if opened is not None:
            self.source.release(self.take_out(opened))

    def take(self, steps: Steps, who: str) -> list[Any]:
        """Take these steps, and return what they have seen."""
        seen: list[Any] = []
        for step in steps:
            if step in OF_DATABASE:
                seen.append(OF_DATABASE[step](self.get_db().connection, who))
            elif step in OF_REQUEST:
                seen.append(OF_REQUEST[step](who))
            elif step == "close":
                self.release(g.pop("db", None))
            elif step == "raise":
                raise LookupError
            else:
                (OF_G | OF_SESSION)[step](who)
        return seen

    def teardown(self, error: BaseException | None) -> None:
        if "outbox" in g:
            self.sent += g.outbox
        flag = "dirty" in g if self.program.commits == "flag in g" else DIRTY.get()
        if error is None and self.program.commits != "step" and flag:
            self.get_db().connection.commit()
        DIRTY.set(False)
        if self.program.teardown == "pop" or self.program.place == "variable":
            self.release(g.pop("db", None))
        elif self.program.teardown == "unguarded" or "db" in g:
            self.release(g.db)


def describe_context() -> Any:
    """Return what a view can see, the body aside."""
    in_g = {name: str(g.get(name)) for name in g if name != "db"}
    labels = [getattr(request, name, None) for name in ("label", "shop")]
    return ["db" in g, in_g, labels, request.view_args, {**session}, TENANT.get()]


# The methods that add a value to a container, and remove it.
CHANGES: dict[Any, tuple[str, str]] = {
    dict: ("setdefault", "pop"),
    list: ("append", "remove"),
    set: ("add", "remove"),
}


@contextlib.contextmanager
def stirred() -> Generator[None, None, None]:
    """Change what is in g and in the session at each bytecode, as other threads may."""
    values = [*(g.get(name) for name in g), *session.values()]
    containers = [value for value in values if type(value) in CHANGES]
    steps = itertools.cycle([1, 2, 0])

    def stir() -> int:
        """Add a value to each container in steps 1 and 2, and remove both in step 0."""
        step = next(steps)
        for container in containers:
            add, remove = CHANGES[type(container)]
            for value in [step] if step else [1, 2]:
                getattr(container, add if step else remove)(value)
        return step

    def trace(frame: Any, event: str, arg: object) -> Any:
        frame.f_trace_opcodes = True
        stir()
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)
        while stir():
            pass


def run(program: Program, wrap: Wrap = carry_context) -> Shop:
    """Run a program in a context that no other has touched, and return its end."""
    shop = Shop(program, wrap)
    Context().run(shop.run)
    return shop


# What must hold


def check_ends_as_well(program: Program) -> None:
    """Check rules 1 and 3: what ends well under the built-in ends so here."""
    built_in = run(program, copy_current_request_context)
    assume(built_in.is_well())
    carried = run(program)
    assert carried.tasks == built_in.tasks
    assert carried.left_open == 0
    assert sorted(carried.source.stored) == sorted(built_in.source.stored)
    assert sorted(carried.sent) == sorted(built_in.sent)


def check_view_notices_nothing(program: Program) -> None:
    """Check rule 2: the view and the next request are as without tasks."""
    carried = run(program)
    assume(carried.left_open == 0)  # Else the other check says whose fault it is.
    assert carried.of_view() == run(program._replace(tasks=())).of_view()


Check = Callable[[Program], None]


@dataclass(frozen=True)
class Allowed:
    """A difference that the contract allows."""

    name: str
    sentence: str  # Of the contract, with its section.
    is_meant: Callable[[Program], bool]
    example: Program
    checks: tuple[Check, ...] = (check_ends_as_well,)


EXCEPTIONS: list[Allowed] = [
    Allowed(
        "a body that the view has not read",
        "9: separated or refused on purpose: reading a body that the view has not read",
        lambda p: p.reads == "nothing" and p.tasks_read_body(),
        Program(body="json", tasks=(Task(("data",)),)),
    ),
    Allowed(
        "a body that the view has consumed",
        "5: That goes for what the view has consumed without keeping it",
        lambda p: p.reads == "stream" and p.tasks_read_body(),
        Program(body="json", reads="stream", tasks=(Task(("data",)),)),
    ),
    Allowed(
        "a flag in a context variable",
        "9: a flag in a context variable on which a teardown function commits",
        lambda p: (
            p.commits == "flag in a variable" and p.view_takes("mark in a variable")
        ),
        Program(
            commits="flag in a variable",
            before=("mark in a variable",),
            tasks=(Task(("write",)),),
        ),
    ),
    Allowed(
        "a list in g that is sent",
        "9: a list or dict in g that is filled and counted or sent",
        lambda p: p.view_takes("send") and p.tasks_take("send"),
        Program(
            before=("send",),
            tasks=(Task(("send",)), Task(("send",), "after the response")),
        ),
        (check_ends_as_well, check_view_notices_nothing),
    ),
]


# What is drawn

ENDING: tuple[How, ...] = ("call", "asyncio.run", "coroutine")


def programs(
    steps: Iterable[str], *fields: str, hows: tuple[How, ...] = ENDING, **fixed: Any
) -> st.SearchStrategy[Program]:
    """Draw programs of these steps, in which these fields vary."""

    def draw(*steps: str) -> st.SearchStrategy[Steps]:
        return st.lists(st.sampled_from(steps), max_size=4).map(tuple)

    when, how = st.sampled_from(get_args(When)), st.sampled_from(hows)
    tasks = st.builds(Task, draw(*steps, "raise"), when=when, how=how)
    varied: dict[str, st.SearchStrategy[Any]] = {
        "requests": st.integers(1, 2),
        "tasks": st.lists(tasks, min_size=1, max_size=2).map(tuple),
    }
    for name in ("hook", "before", "between", "after"):
        varied[name] = draw(*steps)
    for name in fields:
        values = get_args(Program.__annotations__[name]) or (False, True)
        varied[name] = st.sampled_from(values)
    return st.fixed_dictionaries(varied).map(lambda v: make_program(**{**v, **fixed}))


def make_program(**fields: Any) -> Program:
    """Make a program that does what its app relies on."""
    program = Program(**fields)
    if program.teardown == "unguarded" and program.place != "variable":
        program = program._replace(hook=("open", *program.hook))
    return program


def of_database(*fields: str, **fixed: Any) -> st.SearchStrategy[Program]:
    """Draw programs that use a database, and give it back in several ways."""
    return programs(FOR_DATABASE, "teardown", "ends_request", *fields, **fixed)


FOR_DATABASE = *OF_DATABASE, "close"
KINDS = {
    **{source: of_database("known_by", source=source) for source in SOURCES},
    "context variable": of_database("source", place="variable"),
    "connection in containers": of_database("place", "inside"),
    "models in containers": of_database(
        "place", "inside", source="own class", known_by="__mapper__"
    ),
    "forgotten coroutines": programs(
        ["note", "rows"], "place", "ends_request", hows=("forgotten",), others=2
    ),
    "commit on a flag": programs(
        ["write", "mark"], commits="flag in g", hook=("mark",)
    ),
    "g and context variables": programs(
        ["note", "forget", "tenant", "send"], "by_exec"
    ),
    "recorded queries": programs(["query", "note"]),
    "changed by other threads": programs(
        ["set", "dict", "stock", "flash"], session="live", stirred=True
    ),
    **{
        f"session: {kind}": programs(OF_SESSION, "testing", session=kind)
        for kind in get_args(SessionKind)
    },
    "request": programs(OF_REQUEST, "has_getattr", "body", "reads"),
    "everything": programs(
        [*FOR_DATABASE, *OF_G, *OF_SESSION, *OF_REQUEST],
        *("source", "known_by", "place", "inside", "teardown", "ends_request"),
        *("commits", "session", "has_getattr", "body", "reads", "testing", "by_exec"),
    ),
}
some = settings(
    max_examples=40,
    deadline=None,
    phases=[Phase.reuse, Phase.generate, Phase.shrink],
    suppress_health_check=[HealthCheck.too_slow],
)


def is_allowed_to_differ(program: Program, check: Check) -> bool:
    """Say whether an exception is about this program."""
    return any(check in each.checks and each.is_meant(program) for each in EXCEPTIONS)


@pytest.mark.parametrize("check", [check_ends_as_well, check_view_notices_nothing])
@pytest.mark.parametrize("kind", KINDS)
@some
@given(data=st.data())
def test_a_task_is_as_under_the_builtin_and_no_view_notices_it(
    kind: str, check: Check, data: st.DataObject
) -> None:
    program = data.draw(KINDS[kind])
    assume(not is_allowed_to_differ(program, check))
    check(program)


@pytest.mark.parametrize("allowed", [pytest.param(a, id=a.name) for a in EXCEPTIONS])
def test_each_exception_is_needed(allowed: Allowed) -> None:
    assert allowed.is_meant(allowed.example)
    for check in allowed.checks:
        with pytest.raises(AssertionError):
            some(given(st.just(allowed.example))(check))()


BOTH_OPEN = Program(before=("open",), tasks=(Task(("write",)),))
FOUND = {
    # In 1.1.0
    "pool": BOTH_OPEN._replace(
        source="pool", tasks=(Task(("open",), "after the response"),)
    ),
    "flag": Program(
        commits="flag in g", hook=("mark",), tasks=(Task(("write", "mark")),)
    ),
    "handle": BOTH_OPEN._replace(source="handle"),
    "registry": BOTH_OPEN._replace(source="registry"),
    "variable": BOTH_OPEN._replace(place="variable"),
    "notes in a dict": Program(session="notes in a dict", tasks=(Task(("sign",)),)),
    "notes in a set": Program(session="notes in a set", tasks=(Task(("sign",)),)),
    # In 1.2.0
    "cursor": BOTH_OPEN._replace(source="cursor"),
    "own class": BOTH_OPEN._replace(source="own class"),
    "cursor in a variable": BOTH_OPEN._replace(source="cursor", place="variable"),
    "connection in two dicts": BOTH_OPEN._replace(inside="a dict of dicts"),
    "models in a memo": BOTH_OPEN._replace(
        source="own class", known_by="__mapper__", inside="a memo"
    ),
    "forgotten": Program(others=2, tasks=(Task(("rows",), how="forgotten"),)),
    "recorded queries": Program(before=("query",), tasks=(Task(("query",)),)),
    "changed": Program(stirred=True, before=("dict",), tasks=(Task(()),)),
}


@pytest.mark.parametrize("name", FOUND)
def test_what_was_found_in_a_release_stays_mended(name: str) -> None:
    for check in (check_ends_as_well, check_view_notices_nothing):
        if not is_allowed_to_differ(FOUND[name], check):
            some(given(st.just(FOUND[name]))(check))()
