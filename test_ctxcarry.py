"""The tests of ctxcarry, under the headings of its contract.

At the end, a state machine compares any order of steps with a model.
"""

import ast
import asyncio
import collections
import contextlib
import contextvars
import copy
import decimal
import enum
import functools
import gc
import http.client
import importlib
import importlib.metadata
import inspect
import io
import logging
import operator
import pickle
import re
import runpy
import sqlite3
import sys
import threading
import types
import weakref
from collections.abc import Callable, Coroutine, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast
from unittest import mock

import flask
import pytest
from asgiref.sync import sync_to_async
from flask import Flask, Request, current_app, g, request, session, url_for
from flask.sessions import SecureCookieSession, SessionInterface, SessionMixin
from greenlet import GreenletExit
from hypothesis import settings, stateful
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, precondition, rule
from werkzeug.datastructures import EnvironHeaders, FileStorage, Headers
from werkzeug.local import LocalProxy
from werkzeug.routing import BaseConverter
from werkzeug.test import Client

import ctxcarry
from ctxcarry import carry_context

TENANT: contextvars.ContextVar[str] = contextvars.ContextVar("TENANT", default="none")
TIMEOUT = 20
FLASK = tuple(int(part) for part in importlib.metadata.version("flask").split(".")[:2])


class Teardown(NamedTuple):
    """What a teardown function of the request or of the app found and was given."""

    kind: str
    found: dict[str, Any]
    error: BaseException | None


Tearing = list[Teardown]


@pytest.fixture
def app() -> Flask:
    """Return an app that can sign its session cookie."""
    TENANT.set("none")
    app = Flask("shop")
    app.secret_key = "secret"
    return app


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    """Return a pool of four threads."""
    with ThreadPoolExecutor(4) as pool:
        yield pool


@pytest.fixture
def tearing(app: Flask) -> Tearing:
    """Return the list to which the app's teardown functions add what they find."""
    seen: Tearing = []

    @app.teardown_request
    def end_request(error: BaseException | None) -> None:
        seen.append(Teardown("request", dict(vars(g)), error))

    @app.teardown_appcontext
    def end_app_context(error: BaseException | None) -> None:
        seen.append(Teardown("app", dict(vars(g)), error))

    return seen


class Thing:
    """An object whose life can be watched by a weak reference."""


class Connection:
    """Can be closed, so it stays with the view."""

    closed = 0

    def close(self) -> None:
        self.closed += 1


def run(app: Flask, view: Callable[..., Any], path: str = "/", **sent: Any) -> Any:
    """Send one request to the view, at /<name> or at /, and return its JSON."""
    has_name = path[1:2].isalpha()
    rule = "/<name>" if has_name else "/"
    app.add_url_rule(rule, "view", view, methods=["GET", "POST"])
    response = app.test_client(use_cookies=False).open(path, **sent)
    assert response.status_code == 200
    return response.get_json()


def in_thread(func: Callable[[], Any]) -> Any:
    """Call the function in a new thread, and return or raise what it did."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(func).result(TIMEOUT)


def innermost(error: Any) -> Any:
    """Return the one error in the groups that Flask 3.2 raises, or the error."""
    while hasattr(error, "exceptions"):
        (error,) = error.exceptions
    return error


def error_of(func: Callable[[], Any]) -> Any:
    """Call the function, and return what it raised."""
    try:
        func()
    except BaseException as error:
        return innermost(error)
    return None


def unproxied(each: Any) -> Any:
    """Return the object behind a proxy, or the object itself."""
    if issubclass(type(each), LocalProxy):
        return each._get_current_object()
    return each


def active(kind: str) -> Any:
    """Return the active context of the "app" or of the "request"."""
    names: Any = vars(flask.globals)
    if FLASK >= (3, 2):
        return unproxied(names["app_ctx"])
    return unproxied(names[f"{kind}_ctx"])


def state() -> dict[Any, Any]:
    """Return the context variables of this thread, Flask's own among them."""
    return dict(contextvars.copy_context().items())


def refuse(*_: object) -> Any:
    """Fail, as some objects do when they are asked for something."""
    raise LookupError("refused")


def assign(name: str, value: object) -> object:
    """Set a name in g, and return the value."""
    setattr(g, name, value)
    return value


def clean_error_of(func: Callable[[], Any]) -> Any:
    """Call the function, which leaves nothing behind, and return what it raised."""
    before = state()
    error = error_of(func)
    assert state() == before
    return error


@contextlib.contextmanager
def frequent_switches() -> Generator[None]:
    """Let Python switch between threads as often as it can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(interval)


on_cpython = pytest.mark.skipif(
    sys.implementation.name != "cpython",
    reason="PyPy counts no references, and closes no forgotten coroutine.",
)


@contextlib.contextmanager
def without_gc() -> Generator[None]:
    """Switch the garbage collector off, where objects go without it."""
    if sys.implementation.name != "cpython":
        pytest.skip("Only CPython counts references.")
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


# 1. Public API


def test_the_module_has_one_public_function_without_options() -> None:
    assert ctxcarry.__all__ == ["carry_context"]
    assert list(inspect.signature(carry_context).parameters) == ["func"]
    assert importlib.metadata.version("ctxcarry") == ctxcarry.__version__


async def look() -> list[str]:
    """Write in one step, and return what is there in the next one."""
    g.user += "!"
    TENANT.set(TENANT.get() + "!")
    await asyncio.sleep(0)
    return [request.path, g.user, TENANT.get()]


def read(end: str, *, times: int = 1) -> str:
    """Return the path of the request with something at its end."""
    return request.path + end * times


class Reader:
    """Reads the path of the request when it is called."""

    def method(self, end: str) -> str:
        return read(end)

    def __call__(self, end: str) -> str:
        return read(end)


@pytest.mark.parametrize(
    "func",
    [read, look, Reader, Reader.method, Reader().method, len, str.upper],
    ids=["plain", "async", "class", "function", "method", "builtin", "of-a-builtin"],
)
def test_the_result_looks_like_the_function(app: Flask, func: Any) -> None:
    with app.app_context():
        carried: Any = carry_context(func)
    assert carried.__qualname__ == f"carry_context.<locals>.{func.__qualname__}"
    assert carried.__name__ == func.__name__
    assert carried.__doc__ == func.__doc__
    assert carried.__wrapped__ is func
    if func is not str.upper:  # It has no module.
        assert carried.__module__ == func.__module__
        assert inspect.signature(carried) == inspect.signature(func)


HI: dict[str, Any] = {"return_value": "hi"}


@pytest.mark.parametrize(
    ("func", "argument", "expected"),
    [
        pytest.param(read, "!", "/x!", id="function"),
        pytest.param(Reader().method, "!", "/x!", id="bound-method"),
        pytest.param(Reader(), "!", "/x!", id="callable-object"),
        pytest.param(str, session, "<SecureCookieSession {}>", id="class"),
        pytest.param(partial(read, times=2), "!", "/x!!", id="partial"),
        pytest.param(operator.attrgetter("path"), request, "/x", id="attrgetter"),
        pytest.param(len, session, 0, id="builtin"),
        pytest.param(str.strip, " a ", "a", id="method-of-a-builtin"),
        pytest.param((1).__add__, 2, 3, id="method-without-a-module"),
        pytest.param(mock.Mock(**HI), "!", "hi", id="mock"),
        pytest.param(mock.Mock(spec=read, **HI), "!", "hi", id="mock-of-a-function"),
        pytest.param(mock.MagicMock(spec=Reader, **HI), "!", "hi", id="magic-mock"),
        pytest.param(mock.create_autospec(len, **HI), "!", "hi", id="autospec"),
        pytest.param(partial(mock.Mock(**HI)), "!", "hi", id="partial-of-a-mock"),
    ],
)
def test_every_kind_of_callable_can_be_carried(
    app: Flask, func: Callable[[object], Any], argument: object, expected: object
) -> None:
    with app.test_request_context("/x"):
        carried = carry_context(func)
        assert in_thread(lambda: carried(argument)) == expected
    assert callable(vars(carried)["__wrapped__"])


def test_a_parameter_can_have_any_name(app: Flask) -> None:
    async def keep(*args: int, **kwargs: int) -> list[Any]:
        return [args, kwargs]

    given = {"func": 1, "call": 2, "args": 3, "kwargs": 4, "snapshot": 5}
    with app.app_context():
        carried: Any = carry_context(dict)
        carried_async = carry_context(keep)
    assert carried(**given) == given
    assert asyncio.run(carried_async(0, **given)) == [(0,), given]


# 2. What the snapshot holds, as of the call of carry_context


def test_the_task_sees_what_the_view_sees(app: Flask) -> None:
    def look() -> dict[str, Any]:
        return {
            "path": request.path,
            "query": request.args.to_dict(),
            "header": request.headers["X-Id"],
            "cookie": request.cookies["id"],
            "json": request.get_json(),
            "user": vars(unproxied(request))["user"],
            "view_args": request.view_args,
            "endpoint": request.endpoint,
            "rule": str(request.url_rule),
            "session": dict(session),
            "g": pickle.loads(pickle.dumps(vars(g))),
            "tenant": TENANT.get(),
            "app": current_app.name,
            "url": url_for("see", number=8),
        }

    @app.route("/see/<int:number>", methods=["POST"])
    def see(number: int) -> dict[str, Any]:
        vars(unproxied(request))["user"] = "ada"
        session["theme"] = "dark"
        g.language = "en"
        TENANT.set("acme")
        return {"view": look(), "task": in_thread(carry_context(look))}

    headers = {"X-Id": "17", "Cookie": "id=18"}
    client = app.test_client(use_cookies=False)
    response = client.post("/see/7?user=ada", json={"a": [1]}, headers=headers)
    seen = response.get_json()
    assert seen["task"] == seen["view"]
    assert seen["task"]["g"] == {"language": "en"}


def write(value: str) -> None:
    """Set a value in every place that a task sees, in a request for /<name>."""
    assert request.view_args is not None
    g.value = value
    session["value"] = value
    vars(unproxied(request))["value"] = value
    request.view_args["name"] = value
    request.environ["value"] = value
    request.environ["HTTP_VALUE"] = value
    TENANT.set(value)


def values() -> list[str]:
    """Return the values that write() has set, in its order."""
    assert request.view_args is not None
    return [
        g.value,
        session["value"],
        vars(unproxied(request))["value"],
        request.view_args["name"],
        request.environ["value"],
        request.headers["Value"],
        TENANT.get(),
    ]


def test_a_task_sees_nothing_that_view_and_server_change_later(app: Flask) -> None:
    answered = threading.Event()
    seen: Future[list[Any]] = Future()

    def later() -> None:
        assert answered.wait(TIMEOUT)
        assert request.environ["werkzeug.request"] is None
        sent = [request.path, request.args["q"], request.cookies["c"]]
        seen.set_result([*values(), *sent, *vars(g), *session])

    @app.route("/<name>")
    def view(name: str) -> str:
        write("view's")
        threading.Timer(0, carry_context(later)).start()
        write("view's, later")
        g.added = session["added"] = "later"
        return ""

    def server(environ: Any, start_response: Any) -> list[bytes]:
        content = list(app.wsgi_app(environ, start_response))
        environ.clear()
        return content

    client = Client(server, use_cookies=False)
    client.get("/x?q=1", headers={"Cookie": "c=2"})
    answered.set()
    assert seen.result(TIMEOUT) == [*["view's"] * 7, "/x", "1", "2", "value", "value"]


def test_headers_that_a_hook_has_put_in_place_are_carried(app: Flask) -> None:
    def work() -> str:
        request.environ["HTTP_ID"] = "task's"
        return request.headers["Id"]

    others: list[Headers] = [Headers([("Id", "a")]), EnvironHeaders({"HTTP_ID": "a"})]
    for headers in others:
        with app.test_request_context(headers={"Id": "client's"}):
            vars(unproxied(request))["headers"] = headers
            assert in_thread(carry_context(work)) == "a"


class Store(SessionInterface):
    """Keeps the items of one session, and saves those that the session has changed."""

    def __init__(self, session_class: Callable[[dict[str, Any]], Any]) -> None:
        self.session_class = session_class
        self.items: dict[str, Any] = {"user": "ada", "cart": ["tea"]}

    def open_session(self, app: Flask, request: Request) -> Any:
        return self.session_class(copy.deepcopy(self.items))

    def save_session(self, app: Flask, session: Any, response: flask.Response) -> None:
        for name in session.changes():
            self.items[name] = session[name]


class NotingSession(SecureCookieSession):
    """Notes beside its items which were set, under a lock, which cannot be pickled."""

    def __init__(self, items: dict[str, Any]) -> None:
        super().__init__(items)
        self.lock = threading.Lock()
        self.noted: set[str] = set()
        self.notes: list[str] = []

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __setitem__(self, name: str, value: Any) -> None:
        with self.lock:
            super().__setitem__(name, value)
        self.noted.add(name)
        self.notes.append(name)

    def changes(self) -> list[str]:
        return [*self.noted, *self.notes]


class Once(SecureCookieSession):
    """Forgets what has been read."""

    def __iter__(self) -> Iterator[str]:
        return super().__iter__()

    def __getitem__(self, name: str) -> Any:
        return self.pop(name)


class StandingSession(collections.UserDict[str, Any], SessionMixin):
    """Is no dict, but has one in an attribute."""

    if FLASK < (3, 1):  # From then on, Flask itself sets it.
        accessed: Any = property(lambda _: True)

    def changes(self) -> list[str]:
        return [*self]


@pytest.mark.parametrize("cls", [NotingSession, StandingSession])
def test_a_session_class_of_the_app_saves_nothing_of_a_task(
    app: Flask, cls: Any
) -> None:
    def work() -> list[Any]:
        seen = [session["user"], *session["cart"]]
        session["user"] = session["new"] = "eve"
        session["cart"].append("milk")
        return [*seen, type(unproxied(session)), session["user"], *session["cart"]]

    def view() -> dict[str, Any]:
        task = ["ada", "tea", cls, "eve", "tea", "milk"]
        assert in_thread(carry_context(work)) == task
        return {"user": session["user"], "cart": session["cart"]}

    store = Store(cls)
    app.session_interface = store
    assert run(app, view) == store.items == {"user": "ada", "cart": ["tea"]}


def test_to_carry_a_session_reads_none_of_its_items(app: Flask) -> None:
    app.session_interface = Store(Once)
    with app.test_request_context():
        assert in_thread(carry_context(lambda: session["user"])) == "ada"
        assert session["user"] == "ada"
        assert "user" not in session


def test_containers_in_the_session_are_the_tasks_own(app: Flask) -> None:
    def containers(*names: str) -> dict[str, Any]:
        return {
            "list": [*names],
            "dict": {"tea": [{name: "sold" for name in names}]},
            "set": {*names},
            "tuple": (([*names],),),
        }

    def fill(name: str) -> list[Any]:
        flask.flash(name)
        holders: list[Any] = [session, vars(unproxied(session))["own"]]
        for holder in holders:
            holder["list"].append(name)
            holder["dict"]["tea"][0][name] = "sold"
            holder["set"].add(name)
            holder["tuple"][0][0].append(name)
        return [{key: holder[key] for key in containers()} for holder in holders]

    def work() -> list[Any]:
        assert session["other"] is app  # Which is no container.
        return [*fill("task"), flask.get_flashed_messages()]

    with app.test_request_context():
        session.update(containers(), other=app)
        vars(unproxied(session))["own"] = containers()
        fill("view")
        carried = carry_context(work)
        fill("later")
        seen = [containers("view", "task"), containers("view", "task")]
        assert in_thread(carried) == [*seen, ["view", "task"]]
        assert in_thread(carried) == [*seen, ["view", "task"]]
        assert fill("last") == [containers("view", "later", "last")] * 2


def test_containers_in_the_session_are_copied_as_deep_as_json_goes(app: Flask) -> None:
    def bottom() -> list[Any]:
        deep: list[Any] = session["deep"]
        for _ in range(300):
            deep = deep[0]
        return deep

    deep: list[Any] = ["view's"]
    for _ in range(300):
        deep = [deep]
    with app.test_request_context():
        session["deep"] = deep
        in_thread(carry_context(lambda: bottom().append("task's")))
        assert bottom() == ["view's"]


def test_a_task_makes_the_view_read_the_session_and_saves_nothing(app: Flask) -> None:
    def work() -> object:
        user = session["user"]
        session["user"] = "eve"
        return user

    @app.route("/carried")
    def view() -> list[object]:
        carried = carry_context(work)
        return [in_thread(carried), carried()]

    client = app.test_client()
    with client.session_transaction() as saved:
        saved["user"] = "ada"
    response = client.get("/carried")
    assert response.get_json() == ["ada", "ada"]
    assert response.headers["Vary"] == "Cookie"
    assert "Set-Cookie" not in response.headers
    assert "Vary" not in client.get("/missing").headers


def test_the_active_app_is_carried_and_a_request_of_that_app_alone(app: Flask) -> None:
    def look() -> list[Any]:
        in_request = flask.has_request_context()
        return [current_app.name, dict(vars(g)), TENANT.get(), in_request]

    other = Flask("other")
    with other.app_context(), app.test_request_context():
        assert in_thread(carry_context(look)) == ["shop", {}, "none", True]
    with app.test_request_context(), other.app_context():
        g.job = "nightly"
        token = TENANT.set("acme")
        carried = carry_context(look)
        TENANT.reset(token)
    assert in_thread(carried) == ["other", {"job": "nightly"}, "acme", False]


def test_no_context_of_flask_is_among_the_context_variables(app: Flask) -> None:
    context_class: Any = type(app.app_context())

    class OwnContext(context_class):  # type: ignore[misc]
        """A context class of the app."""

    variable: contextvars.ContextVar[Any] = contextvars.ContextVar("variable")
    with app.test_request_context():
        TENANT.set("acme")
        variable.set(OwnContext(app))
        of_the_view = [variable.get(), active("app"), active("request")]
        variables = in_thread(carry_context(state))
    assert variables[TENANT] == "acme"
    for value in variables.values():
        assert all(value is not context for context in of_the_view)


def test_a_decimal_context_is_copied_for_each_call(app: Flask) -> None:
    def work() -> int:
        precision = decimal.getcontext().prec
        decimal.getcontext().prec = 3
        return precision

    with decimal.localcontext() as context, app.test_request_context():
        context.prec = 20
        carried = carry_context(work)
        context.prec = 22
        assert [carried(), in_thread(carried), carried()] == [20, 20, 20]
        assert decimal.getcontext().prec == 22


@contextlib.contextmanager
def changed_all_the_time(shared: Any) -> Generator[None]:
    """Let another thread change a dict or a set, as often as Python lets it."""
    is_over = threading.Event()

    def change() -> None:
        while not is_over.is_set():
            for number in range(20):
                shared.update({number: "added"})
            shared.clear()

    thread = threading.Thread(target=change)
    with frequent_switches():
        thread.start()
        try:
            yield
        finally:
            is_over.set()
            thread.join(TIMEOUT)


@pytest.mark.parametrize("kind", [dict, set, collections.OrderedDict])
def test_other_threads_may_change_what_is_carried(app: Flask, kind: Any) -> None:
    shared = kind()
    with app.test_request_context(), changed_all_the_time(shared):
        g.shared = shared
        g.holder = [shared]
        for _ in range(3_000):
            carry_context(int)
        session["shared"] = shared
        vars(unproxied(session))["shared"] = shared
        for _ in range(1_000):
            carry_context(int)


# 3. Each call


class DelegatingRequest(Request):
    """Asks another object for its attributes, so that copy.copy() recurses."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.inner = types.SimpleNamespace(asked="")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


@pytest.mark.parametrize("request_class", [Request, DelegatingRequest])
def test_calls_write_nothing_back_and_do_not_meet(
    app: Flask, pool: ThreadPoolExecutor, request_class: type[Request]
) -> None:
    barrier = threading.Barrier(4, timeout=TIMEOUT)

    def work(name: str) -> list[list[str]]:
        assert type(unproxied(request)) is request_class
        before = values()
        barrier.wait()
        write(name)
        barrier.wait()
        return [before, values()]

    def view(name: str) -> dict[str, Any]:
        write("view's")
        tasks = list(pool.map(carry_context(work), "abcd"))
        carry_context(write)("in the view's thread")
        return {"tasks": tasks, "view": values()}

    app.request_class = request_class
    assert run(app, view, "/x") == {
        "tasks": [[["view's"] * 7, [name] * 7] for name in "abcd"],
        "view": ["view's"] * 7,
    }


class Mute(AttributeError):
    """Answers no question about itself."""

    name: Any = property(refuse)
    obj: Any = property(refuse)


@pytest.mark.parametrize(
    "error_class", [None, KeyError, Mute, SystemExit, GreenletExit]
)
def test_a_task_leaves_nothing_behind_in_its_thread(
    app: Flask, tearing: Tearing, error_class: type[BaseException] | None
) -> None:
    error = error_class() if error_class else None

    def work() -> None:
        TENANT.set("eve")
        if error:
            raise error

    with app.test_request_context("/x"):
        carried = carry_context(work)
        assert in_thread(lambda: clean_error_of(carried)) is error
        try:
            raise LookupError("of the caller")
        except LookupError:
            assert clean_error_of(carried) is error
        assert [end.error for end in tearing] == [error] * 4


def test_a_receiver_that_raises_leaves_nothing(app: Flask, tearing: Tearing) -> None:
    error = SystemExit("receiver")
    alive: weakref.WeakSet[Thing] = weakref.WeakSet()

    def receive(_: Flask, **__: Any) -> None:
        g.own = Thing()
        alive.add(g.own)
        raise error

    with app.test_request_context():
        g.data = "view's"
        carried = carry_context(int)
        with flask.appcontext_pushed.connected_to(receive, app):
            assert in_thread(lambda: clean_error_of(carried)) is error
        assert (tearing[-1].kind, tearing[-1].error) == ("app", error)
        assert [*tearing[-1].found] == ["own"]
        tearing.clear()
        error.__traceback__ = None
        gc.collect()
        assert not alive


def test_contexts_are_popped_whatever_a_thread_does_to_g(app: Flask) -> None:
    names = [f"name{number}" for number in range(2_000)]
    threads: list[threading.Thread] = []

    def clear(own: Any, started: threading.Event) -> None:
        started.set()
        for name in reversed(names):  # It meets the end of the task halfway.
            own.pop(name, None)

    def work() -> None:
        started = threading.Event()
        threads.append(threading.Thread(target=clear, args=[unproxied(g), started]))
        threads[-1].start()
        assert started.wait(TIMEOUT)

    with app.test_request_context(), frequent_switches():
        vars(g).update(dict.fromkeys(names, "view's"))
        carried = carry_context(work)
        for _ in range(30):
            assert clean_error_of(carried) is None
            threads.pop().join(TIMEOUT)


def test_a_task_builds_the_urls_of_the_view_and_routes_nothing_again() -> None:
    routed: list[str] = []

    class Item(BaseConverter):
        def to_python(self, value: str) -> str:
            routed.append("converter")
            return value

    class Shop(Flask):
        def create_url_adapter(self, request: Request | None) -> Any:
            if request is not None:
                routed.append("adapter")
            return super().create_url_adapter(request)

    def pull_language(_: str | None, values: dict[str, Any] | None) -> None:
        routed.append("preprocessor")
        g.language = values.pop("language") if values else "en"

    def see() -> list[Any]:
        return [
            url_for("shop.item", language="de", item="tea"),
            url_for("shop.item", language="de", item="tea", _anchor="a b"),
            url_for("shop.item", language="de", item="tea", _external=True),
            url_for("index", _external=True, _scheme="https"),
            url_for(".item" if request.blueprint else "index", language="x", item="y"),
            *[request.host, request.endpoint, request.view_args, g.language],
        ]

    def view(_: object = None, item: str = "") -> dict[str, Any]:
        return {"view": see(), "task": in_thread(carry_context(see))}

    app = Shop("shop")
    app.url_map.converters["item"] = Item
    app.url_value_preprocessor(pull_language)
    blueprint = flask.Blueprint("shop", __name__, url_prefix="/shop")
    blueprint.add_url_rule("/<language>/<item:item>", "item", view)
    app.register_blueprint(blueprint)
    app.add_url_rule("/", "index")
    app.register_error_handler(404, view)
    client = app.test_client()
    for path in ["/shop/en/tea", "/missing"]:
        response = client.get(path, base_url="http://a.example:8080/root")
        seen = response.get_json()
        assert seen["task"] == seen["view"]
        assert seen["task"][3] == "https://a.example:8080/root/"
    assert routed == ["adapter", "converter", "preprocessor", "adapter", "preprocessor"]


class Meeting(NamedTuple):
    """What a receiver of a signal or a teardown function met."""

    moment: str
    user: str | None
    has_request: bool
    error: object


def test_signals_and_teardown_functions_never_meet_the_view(app: Flask) -> None:
    error = LookupError("task's")
    met: list[Meeting] = []

    def meet(moment: str, given: Any = None, exc: Any = None, **_: object) -> None:
        user = g.get("user") if flask.has_app_context() else None
        raised = exc if isinstance(given, Flask) else given
        met.append(Meeting(moment, user, flask.has_request_context(), raised))

    def work() -> None:
        g.user = "task's"
        raise error

    merged = FLASK >= (3, 2)
    expected = [
        Meeting("appcontext_pushed", None, merged, None),
        Meeting("teardown_request", "task's", True, error),
        Meeting("request_tearing_down", "task's", True, error),
        Meeting("teardown_appcontext", "task's", merged, error),
        Meeting("appcontext_tearing_down", "task's", merged, error),
        Meeting("appcontext_popped", None, False, None),
    ]
    # Flask's signals hold their receivers weakly, so this dict keeps them.
    receivers = {each.moment: partial(meet, each.moment) for each in expected}
    with app.test_request_context(), contextlib.ExitStack() as stack:
        carried = carry_context(work)
        g.user = "view's, later"
        for name, receiver in receivers.items():
            if name.startswith("teardown"):
                getattr(app, name)(receiver)
            else:
                stack.enter_context(getattr(flask, name).connected_to(receiver, app))
        assert error_of(lambda: in_thread(carried)) is error
        assert met == expected


@pytest.mark.parametrize("at", ["teardown_request", "teardown_appcontext"])
@pytest.mark.parametrize("error_class", [None, LookupError, SystemExit])
def test_a_teardown_function_that_fails_does_not_hide_the_tasks_error(
    app: Flask, caplog: pytest.LogCaptureFixture, at: str, error_class: Any
) -> None:
    task_error = error_class("task") if error_class else None
    teardown_error = OSError("teardown")

    def work() -> None:
        g.in_task = True
        if task_error:
            raise task_error

    def fail_in_task(_: BaseException | None) -> None:
        if "in_task" in g:
            raise teardown_error

    getattr(app, at)(fail_in_task)
    with app.test_request_context():
        raised = clean_error_of(carry_context(work))
    if task_error is None:
        assert raised is teardown_error
        assert not caplog.records
    else:
        assert raised is task_error
        assert raised.__context__ is None
        (record,) = caplog.records
        assert record.name == app.logger.name
        assert record.exc_info
        assert innermost(record.exc_info[1]) is teardown_error


@pytest.mark.parametrize("by", [pytest.param("collector", marks=on_cpython), "hand"])
def test_a_forgotten_coroutine_does_not_meet_the_request_in_which_it_ends(
    app: Flask, tearing: Tearing, by: str
) -> None:
    seen: list[str] = []

    async def work() -> None:
        g.own = "task's"
        try:
            await step("waits")
        finally:
            # The collector may close this coroutine by itself, before the call's.
            seen.append(request.path if by == "hand" else "")

    with app.test_request_context("/first"):
        coroutines: list[Any] = [carry_context(work)()]
        # For the collector, this one is now younger than the ones inside of it.
        getattr(gc, "freeze", gc.collect)()  # PyPy has no such function.
        coroutines[0].send(None)
        gc.collect()
        getattr(gc, "unfreeze", gc.collect)()
    tearing.clear()
    with app.test_request_context("/second"):
        g.db = Connection()
        before = state()
        if by == "hand":
            coroutines.pop().close()
        coroutines.append(coroutines)  # From now on only this cycle keeps it.
        del coroutines
        gc.collect()
        assert state() == before
        assert [end.found for end in tearing] == [{"own": "task's"}] * 2
        assert vars(g) == {"db": g.db}
    assert seen == ["/first" if by == "hand" else ""]


CHANGE_SESSION: dict[str, Callable[[], object]] = {
    "set": lambda: session.update(user="eve"),
    "deep": lambda: session["cart"].append("milk"),
    "flash": lambda: flask.flash("saved"),
}
ASK: dict[str, Callable[[], object]] = {
    "attribute": lambda: error_of(lambda: g.user),
    "hasattr": lambda: hasattr(g, "user"),
    "get": lambda: g.get("user"),
    "in": lambda: "user" in g,
    "template": lambda: flask.render_template_string("{% if g.user %}{% endif %}"),
}
QUIET: dict[str, Callable[[], object]] = {
    "read-session": lambda: [*session.items()],
    "pop": lambda: g.pop("user", None),
    "carried": lambda: [g.theme, g.get("theme"), "theme" in g],
    "unknown": lambda: [g.get("other"), "other" in g, error_of(lambda: g.other)],
    "accessor": lambda: "user" in g or assign("user", "task's"),
    "setdefault": lambda: g.setdefault("user", "task's"),
    "extension": lambda: g.get("_flask_babel"),
}
LOGGED: dict[str, str] = {
    **dict.fromkeys(CHANGE_SESSION, "greet changed the session.*set it in the view"),
    **dict.fromkeys(ASK, r"greet asked for g\.user.*stays.*in the task"),
}


@pytest.mark.parametrize("mode", ["debug", "testing", "production"])
@pytest.mark.parametrize("act", [*CHANGE_SESSION, *ASK, *QUIET])
def test_what_goes_wrong_in_silence_is_logged_in_debug_and_testing_mode(
    app: Flask, caplog: pytest.LogCaptureFixture, act: str, mode: str
) -> None:
    def greet(_: str) -> None:
        (CHANGE_SESSION | ASK | QUIET)[act]()

    @app.teardown_appcontext
    def end(_: object) -> None:
        g.get("user")  # It asks for what the task may have set.

    setattr(app, mode, True)
    with app.test_request_context():
        session.update(user="ada", cart=["tea"])
        g.user = made("__mapper__")
        g._flask_babel = "de"
        g.theme = "dark"
        in_thread(partial(carry_context(greet), "a secret"))
    messages = [(each.name, each.levelname) for each in caplog.records]
    if mode == "production" or act in QUIET:
        assert not messages
    else:
        assert messages == [(app.logger.name, "WARNING")]
        assert re.search(f"(?s){LOGGED[act]}", caplog.messages[0])
        assert "a secret" not in caplog.messages[0]


def test_the_log_names_the_class_of_what_has_no_name(
    app: Flask, caplog: pytest.LogCaptureFixture
) -> None:
    app.testing = True
    with app.test_request_context():
        in_thread(carry_context(partial(operator.setitem, session, "user", "a secret")))
    (message,) = caplog.messages
    assert message.startswith("partial changed the session")
    assert "a secret" not in message


class Incomparable:
    """Cannot be compared."""

    __eq__ = refuse


class Broken(logging.Filter):
    """Fails with each record."""

    def filter(self, record: logging.LogRecord) -> bool:
        raise LookupError(record)


def test_what_is_logged_raises_nothing(app: Flask) -> None:
    error = KeyError("task's")

    def work() -> bool:
        session.pop("odd")
        return "user" in g

    def fail() -> None:
        raise error

    @app.teardown_request
    def end(error: BaseException | None) -> None:
        if error is not None:
            raise OSError("teardown's")

    app.testing = True
    app.logger.addFilter(broken := Broken())
    try:
        with app.test_request_context():
            g.user = made("__mapper__")
            for odd in ["comparable", [Incomparable()]]:
                session["odd"] = odd
                assert in_thread(carry_context(work)) is False
            assert clean_error_of(carry_context(fail)) is error
    finally:
        app.logger.removeFilter(broken)


# 4. What stays with the view


def made(*names: str, value: object = print) -> Any:
    """Return an object of a class that has methods, or values, of these names."""
    return type("Made", (), dict.fromkeys(names, value))()


def seen_by_task_and_view(app: Flask, value: object) -> list[bool]:
    """Say whether g and a context variable have the value, in the task and the view."""
    variable: contextvars.ContextVar[object] = contextvars.ContextVar("variable")

    def look() -> list[bool]:
        return [g.get("value", look) is value, variable.get(look) is value]

    with app.test_request_context():
        g.value = value
        token = variable.set(value)
        seen = [*in_thread(carry_context(look)), *look()]
        variable.reset(token)
    return seen


NUMBERS: list[Any] = [*range(99)]


class Query(NamedTuple):
    """Has a field with the name of a method that closes."""

    name: str
    close: object = None


class Event(enum.Enum):
    """Has a member with the name of a method that closes."""

    close = 1


class Basket(list[str]):
    """Is a container that can be closed itself."""

    close = print


class OwnBuffer(io.BytesIO):
    """May be more than memory."""


def one_that_holds_itself(value: object) -> list[Any]:
    values = [value]
    values.append(values)
    return values


class Account:
    """Answers no question but by its class."""

    def __init__(self) -> None:
        self.close = print

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"It was asked for {name}.")


class Silent(type):
    """Makes classes that cannot be asked for what they can do, and not be hashed."""

    __hash__: Any = None

    def __getattribute__(cls, name: str) -> Any:
        if name in ["__mapper__", "close", "commit"]:
            raise LookupError(name)
        return super().__getattribute__(name)


class Unasked(metaclass=Silent):
    """Is of a class that cannot be asked."""


DEAD = weakref.proxy(Thing())
DATABASE = sqlite3.connect(":memory:", check_same_thread=False)


@pytest.mark.parametrize(
    "resource",
    [
        pytest.param(made("close"), id="close"),
        pytest.param(made("aclose"), id="aclose"),
        pytest.param(made("disconnect"), id="disconnect"),
        pytest.param(made("commit"), id="commit"),
        pytest.param(made("commit_transaction"), id="commit_transaction"),
        pytest.param(made("abandon"), id="abandon"),
        pytest.param(made("__mapper__"), id="__mapper__"),
        pytest.param(DATABASE, id="connection"),
        pytest.param(DATABASE.cursor(), id="cursor"),
        pytest.param(http.client.HTTPConnection("localhost"), id="client"),
        pytest.param((number for number in NUMBERS), id="generator"),
        pytest.param(OwnBuffer(), id="own-buffer"),
        pytest.param(mock.Mock(spec=Connection), id="named-by-__class__"),
        pytest.param({"name": "x", "db": Connection()}, id="dict"),
        pytest.param(
            collections.OrderedDict([("db", Connection())]), id="dict-subclass"
        ),
        pytest.param(("x", Connection()), id="tuple"),
        pytest.param(Query("x", Connection()), id="named-tuple"),
        pytest.param({"x", Connection()}, id="set"),
        pytest.param(Basket(), id="container-with-close"),
        pytest.param([*NUMBERS, Connection()], id="hundredth-of-a-list"),
        pytest.param({"main": {"db": Connection()}}, id="second-level"),
        pytest.param({("users", ()): [made("__mapper__")]}, id="memo"),
        pytest.param([[[[[[(Connection(),)]]]]]], id="seventh-level"),
        pytest.param(one_that_holds_itself(Connection()), id="holds-itself"),
        pytest.param([DEAD, Unasked(), Connection()], id="beside-what-cannot-be-asked"),
    ],
)
def test_what_can_be_closed_stays_with_the_view(app: Flask, resource: object) -> None:
    assert seen_by_task_and_view(app, resource) == [False, False, True, True]


woken: list[str] = []
PROXY: Any = LocalProxy(lambda: woken.append("woken"))


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(None, id="none"),
        pytest.param({"a": {"b": ["c"]}}, id="dict"),
        pytest.param(FileStorage(io.BytesIO()), id="upload"),
        pytest.param(io.BytesIO(), id="bytes-io"),
        pytest.param([io.StringIO()], id="list-of-string-io"),
        pytest.param(threading.Lock(), id="lock"),
        pytest.param(Path(), id="path"),
        pytest.param(ThreadPoolExecutor(), id="executor"),
        pytest.param(logging.getLogger(), id="logger"),
        pytest.param(made("close", "commit", value=1), id="values-of-these-names"),
        pytest.param(Query("x"), id="field-of-a-named-tuple"),
        pytest.param(Event.close, id="member-of-an-enum"),
        pytest.param(Account(), id="attribute-of-an-object"),
        pytest.param([Connection], id="classes"),
        pytest.param(PROXY, id="proxy"),
        pytest.param([{"user": PROXY}], id="proxy-in-containers"),
        pytest.param(DEAD, id="dead-weak-proxy"),
        pytest.param([Unasked()], id="class-that-cannot-be-asked"),
        pytest.param([*NUMBERS, 99, Connection()], id="hundred-and-first"),
        pytest.param([[*NUMBERS, Connection()]], id="hundred-and-first-below"),
        pytest.param({Connection(): 1}, id="key-of-a-dict"),
        pytest.param(one_that_holds_itself("x"), id="holds-itself"),
    ],
)
def test_data_is_carried_as_the_same_object(app: Flask, value: object) -> None:
    woken.clear()  # pytest asks for the names of what it passes on.
    assert seen_by_task_and_view(app, value) == [True, True, True, True]
    assert not woken


def test_three_names_of_extensions_stay_with_the_view(app: Flask) -> None:
    with app.test_request_context():
        g._flask_babel = None
        g._sqlalchemy_queries = ["select 1"]
        g.fs_authn_via = "session"
        g._login_user = "ada"
        assert in_thread(carry_context(lambda: [*vars(g)])) == ["_login_user"]


def test_the_get_db_of_flasks_tutorial_opens_one_for_each_task(
    app: Flask, pool: ThreadPoolExecutor
) -> None:
    @app.teardown_appcontext
    def close_db(_: BaseException | None) -> None:
        db = g.pop("db", None)
        if db is not None:
            db.close()

    def get_db(_: int = 0) -> Connection:
        if "db" not in g:
            g.db = Connection()
        db: Connection = g.db
        return db

    with app.test_request_context():
        of_view = get_db()
        of_tasks = list(pool.map(carry_context(get_db), range(3)))
        assert get_db() is of_view
        assert len({of_view, *of_tasks}) == 4
        assert [db.closed for db in of_tasks] == [1, 1, 1]
        assert of_view.closed == 0


def remove_and_set_default(name: str, value: object) -> None:
    g.pop(name, None)
    g.setdefault(name, value)
    assert g.setdefault(name, "other") is value


@pytest.mark.parametrize("change", [assign, remove_and_set_default])
@pytest.mark.parametrize(
    "value",
    [True, None, "text", Connection(), [Connection()]],
    ids=["flag", "none", "str", "connection", "list"],
)
def test_teardown_functions_find_what_the_task_has_set_and_nothing_carried(
    app: Flask, tearing: Tearing, value: object, change: Callable[..., object]
) -> None:
    def work() -> None:
        assert [g.carried, g.removed] == ["view's", "view's"]
        del g.removed
        change("value", value)  # It is the very object of the view.

    with app.test_request_context():
        g.value = value
        g.carried = g.removed = "view's"
        before = dict(vars(g))
        in_thread(carry_context(work))
        assert [end.found for end in tearing] == [{"value": value}] * 2
        assert vars(g) == before


def test_g_answers_in_a_task_as_it_does_in_the_view(app: Flask) -> None:
    def ask() -> list[Any]:
        return [
            g.get("missing"),
            g.get("missing", "default"),
            g.get("theme", "default"),
            g.setdefault("unset"),
            g.setdefault("size", 1),
            g.setdefault("theme", "default"),
            g.pop("size"),
            g.pop("missing", "default"),
            repr(error_of(lambda: g.pop("missing"))),
            repr(error_of(lambda: g.missing)),
            ["unset" in g, "size" in g],
            sorted(g),
            copy.copy(vars(g)),
        ]

    with app.test_request_context():
        g.theme = "dark"
        assert in_thread(carry_context(ask)) == ask()


def test_a_receiver_can_change_what_is_carried(app: Flask, tearing: Tearing) -> None:
    def receive(_: Flask, **__: Any) -> None:
        g.pop("removed")
        g.account = f"merged {g.account}"
        g.added = "receiver's"

    with app.test_request_context():
        g.removed = "view's"
        g.account = "account"
        g.carried = "view's"
        carried = carry_context(lambda: dict(vars(g)))
        with flask.appcontext_pushed.connected_to(receive, app):
            seen = in_thread(carried)
        of_receiver = {"account": "merged account", "added": "receiver's"}
        assert seen == {"carried": "view's", **of_receiver}
        assert [end.found for end in tearing] == [of_receiver, of_receiver]


def test_teardown_functions_find_the_defaults_of_the_apps_own_g(app: Flask) -> None:
    base: Any = app.app_ctx_globals_class
    found: list[object] = []
    tasks: list[Callable[[], object]] = [
        lambda: g.theme,
        lambda: assign("theme", "task's"),
        lambda: g.pop("theme"),
        lambda: found.append(g.db.closed),
    ]

    class Globals(base):  # type: ignore[misc]
        def __init__(self) -> None:
            self.theme = "default"
            self.db = Connection()  # That of the view stays there.

    @app.teardown_appcontext
    def end(_: object) -> None:
        found.append(g.get("theme"))

    app.app_ctx_globals_class = Globals
    with app.test_request_context():
        g.theme = "view's"
        for task in tasks:
            in_thread(carry_context(task))
    assert found == ["default", "task's", None, 0, "default", "view's"]


@pytest.mark.parametrize("globals_class", [types.SimpleNamespace, threading.local])
def test_a_g_of_an_unusual_class_is_carried_or_an_error(
    app: Flask, globals_class: Any
) -> None:
    def work() -> object:
        try:
            return carried()
        except (AttributeError, TypeError):
            return "view's"

    app.app_ctx_globals_class = globals_class
    with app.test_request_context():
        g.mark = "view's"
        carried = carry_context(lambda: g.mark)
        assert in_thread(work) == "view's"


def test_a_task_that_misses_what_stayed_with_the_view_is_told_why(app: Flask) -> None:
    def miss(name: str) -> str:
        return str(error_of(lambda: getattr(g, name)))

    with app.test_request_context():
        g.db = Connection()
        carried = carry_context(miss)
        message = in_thread(partial(carried, "db"))
        assert re.search(r"g\.db stays.*carry_context\(\).*in the task", message)
        assert in_thread(partial(carried, "other")) == "other"


def test_whoever_misses_what_was_carried_and_is_gone_is_told_why(app: Flask) -> None:
    errors: list[Any] = []
    is_over = threading.Event()
    threads: list[threading.Thread] = []

    def miss(_: object = None) -> None:
        errors.append(error_of(lambda: g.start))

    def outlive(own: Any) -> None:
        assert is_over.wait(TIMEOUT)
        errors.append(error_of(lambda: own.start))

    def work() -> None:
        threads.append(threading.Thread(target=outlive, args=[unproxied(g)]))
        threads[0].start()
        del g.start
        miss()

    app.teardown_request(miss)
    app.teardown_appcontext(miss)
    with app.test_request_context():
        g.start = 1
        in_thread(carry_context(work))
        is_over.set()
        threads[0].join(TIMEOUT)
        assert len(errors) == 4
        for error in errors:
            assert isinstance(error, AttributeError)
            assert re.search(r"carry_context\(\).*g\.get\('start'\)", str(error))


# 5. The request body and uploads

A = {"a": "1"}
JSON: dict[str, Any] = {"data": b'{"a": "1"}', "content_type": "application/json"}
FORM: dict[str, Any] = {"data": A}
UPLOAD: dict[str, Any] = {"data": {**A, "file": (io.BytesIO(b"text"), "a.txt")}}
CHUNKED: dict[str, Any] = {
    "input_stream": io.BytesIO(b"a"),
    "headers": {"Transfer-Encoding": "chunked"},
}
NO_BOUNDARY: dict[str, Any] = {
    "data": b'--a\r\n\r\n"x"',
    "content_type": "multipart/form-data",
}

# The ways to read a body, by the names that the cases below have.
READ: dict[str, Callable[[], Any]] = {
    "nothing": lambda: None,
    "get_data": lambda: request.get_data(),
    "data": lambda: request.data,
    "json": lambda: request.get_json(force=True, silent=True),
    "form": lambda: dict(request.form),
    "values": lambda: dict(request.values),
    "files": lambda: [*request.files],
    "stream": lambda: request.stream.read(),
    "one-byte": lambda: request.stream.read(1),
    "text": lambda: io.TextIOWrapper(request.stream).read(),
    "wsgi-input": lambda: request.environ["wsgi.input"].read(),
    "data-uncached": lambda: request.get_data(cache=False),
    "json-uncached": lambda: request.get_json(cache=False),
}
READ_BODY = ["get_data", "data", "json", "stream", "text", "wsgi-input"]
UNREAD: dict[str, Any] = dict.fromkeys(READ_BODY, RuntimeError)
UNREAD_FORM = {**UNREAD, **dict.fromkeys(["form", "values", "files"], RuntimeError)}
PARSED = {"form": A, "values": A, "data": b"", "stream": b""}


def results(ways: Iterable[str]) -> list[Any]:
    """Return what is read in these ways. An error is one that says what to do."""
    read: list[Any] = []
    for way in ways:
        try:
            read.append(READ[way]())
        except RuntimeError as error:
            assert re.search("carry_context.*in the view", str(error))
            read.append(RuntimeError)
    return read


@pytest.mark.parametrize("terminated", [False, True], ids=["plain", "terminated"])
@pytest.mark.parametrize(
    ("sent", "in_view", "in_task"),
    [
        pytest.param(JSON, "json", {"json": A, "data": JSON["data"]}, id="json"),
        pytest.param(JSON, "get_data", {"json": A}, id="data-of-json"),
        pytest.param(FORM, "get_data", {"form": A}, id="data-of-a-form"),
        pytest.param(FORM, "form", PARSED, id="form"),
        pytest.param(UPLOAD, "files", {**PARSED, "files": ["file"]}, id="upload"),
        pytest.param(JSON, "nothing", UNREAD, id="unread-json"),
        pytest.param(CHUNKED, "nothing", UNREAD, id="unread-chunks"),
        pytest.param(FORM, "nothing", UNREAD_FORM, id="unread-form"),
        pytest.param(UPLOAD, "nothing", UNREAD_FORM, id="unread-upload"),
        pytest.param(NO_BOUNDARY, "form", UNREAD, id="form-without-a-boundary"),
        pytest.param(JSON, "one-byte", UNREAD, id="consumed-in-part"),
        pytest.param(JSON, "data-uncached", UNREAD, id="consumed-by-get_data"),
        pytest.param(JSON, "json-uncached", UNREAD, id="consumed-by-get_json"),
    ],
)
def test_a_task_reads_after_the_response_what_the_view_has_read_and_kept(
    app: Flask,
    pool: ThreadPoolExecutor,
    sent: dict[str, Any],
    in_view: str,
    in_task: dict[str, Any],
    terminated: bool,
) -> None:
    answered = threading.Event()
    tasks: list[Future[list[Any]]] = []

    def late() -> list[Any]:
        assert answered.wait(TIMEOUT)
        return results(in_task)

    def view() -> dict[str, Any]:
        READ[in_view]()
        tasks.append(pool.submit(carry_context(late)))
        return {}

    sent = {"method": "POST", **copy.deepcopy(sent)}
    run(app, view, environ_overrides={"wsgi.input_terminated": terminated}, **sent)
    answered.set()
    assert tasks[0].result(TIMEOUT) == [*in_task.values()]


@pytest.mark.parametrize("in_task", ["data", "stream"])
@pytest.mark.parametrize("in_view", ["nothing", "form"])
def test_the_view_reads_the_body_after_the_task_has_tried_to(
    app: Flask, in_view: str, in_task: str
) -> None:
    with app.test_request_context(method="POST", **JSON):
        READ[in_view]()
        assert in_thread(carry_context(partial(results, [in_task]))) == [RuntimeError]
        assert request.get_data() == JSON["data"]


@pytest.mark.parametrize(
    ("method", "protocol", "length", "terminated", "has_body"),
    [
        pytest.param("GET", "HTTP/1.1", "", True, False, id="get"),
        pytest.param("GET", "HTTP/1.1", "3", False, True, id="get-with-a-length"),
        pytest.param("POST", "HTTP/1.1", "", True, False, id="post"),
        pytest.param("POST", "HTTP/1.1", "0", False, False, id="post-of-length-0"),
        pytest.param("POST", "HTTP/2", "", True, True, id="http-2-post"),
        pytest.param("PUT", "HTTP/3", "", True, True, id="http-3-put"),
        pytest.param("PATCH", "HTTP/2", "", True, True, id="http-2-patch"),
        pytest.param("DELETE", "HTTP/2", "", True, False, id="http-2-delete"),
        pytest.param("POST", "HTTP/2", "0", True, False, id="http-2-length-0"),
        pytest.param("POST", "HTTP/2", "", False, False, id="http-2-not-terminated"),
    ],
)
def test_a_request_without_a_body_has_none_in_the_task(
    app: Flask,
    method: str,
    protocol: str,
    length: str,
    terminated: bool,
    has_body: bool,
) -> None:
    def carry_on() -> list[Any]:
        return carry_context(results)(["stream"])

    body = io.BytesIO(b"of the next request")
    environ = {
        "CONTENT_LENGTH": length,
        "SERVER_PROTOCOL": protocol,
        "wsgi.input": body,
        "wsgi.input_terminated": terminated,
    }
    ways = ["stream", "data", "json", "wsgi-input"]
    with app.test_request_context(method=method, environ_overrides=environ):
        seen = in_thread(partial(carry_context(results), [*ways, "form", "files"]))
        in_task_of_a_task = in_thread(carry_context(carry_on))
    if has_body:
        assert seen[: len(ways)] == [RuntimeError] * len(ways)
    else:
        assert seen == [b"", b"", None, b"", {}, []]
    assert in_task_of_a_task == seen[:1]
    assert body.tell() == 0


def test_the_uploads_of_the_view_stay_open(app: Flask) -> None:
    def work() -> str | None:
        with request:
            return request.files["file"].filename

    with app.test_request_context(method="POST", **copy.deepcopy(UPLOAD)):
        upload = request.files["file"]
        assert in_thread(carry_context(work)) == "a.txt"
        assert upload.read() == b"text"


# 6. Coroutine functions


class AsyncTask:
    """Has coroutine functions as its methods."""

    async def __call__(self) -> list[str]:
        return await look()

    method = __call__


class Compiled:
    """Is called as a coroutine function that Cython has compiled."""

    __code__ = look.__code__

    def __call__(self) -> Coroutine[Any, Any, list[str]]:
        return look()


@pytest.mark.parametrize(
    "func",
    [
        pytest.param(look, id="function"),
        pytest.param(partial(look), id="partial"),
        pytest.param(AsyncTask(), id="callable-object"),
        pytest.param(AsyncTask().method, id="bound-method"),
        pytest.param(partial(AsyncTask()), id="partial-of-an-object"),
        pytest.param(mock.AsyncMock(side_effect=look), id="async-mock"),
        pytest.param(Compiled(), id="compiled"),
    ],
)
def test_a_coroutine_function_stays_one_and_runs_on_any_loop(
    app: Flask, pool: ThreadPoolExecutor, func: Callable[[], Coroutine[Any, Any, Any]]
) -> None:
    async def both() -> list[Any]:
        return list(await asyncio.gather(carried(), carried()))

    loop = asyncio.new_event_loop()
    with app.test_request_context("/x"):
        g.user = "ada"
        carried = carry_context(func)
        in_a_pool = pool.submit(carry_context(asyncio.run), func())
        assert in_a_pool.result(TIMEOUT) == ["/x", "ada!", "none!"]
        running = pool.submit(loop.run_until_complete, carried())
        assert running.result(TIMEOUT) == ["/x", "ada!", "none!"]
    loop.close()
    assert inspect.iscoroutinefunction(carried)
    assert asyncio.run(both()) == [["/x", "ada!", "none!"]] * 2


def test_cancelling_reaches_teardown_functions(app: Flask, tearing: Tearing) -> None:
    seen: list[str] = []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            seen.append(request.path)
            await asyncio.sleep(0)
            seen.append(request.path)

    async def main() -> None:
        task = asyncio.ensure_future(carried())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()

    with app.test_request_context("/x"):
        carried = carry_context(work)
    tearing.clear()
    asyncio.run(main())
    assert seen == ["/x", "/x"]
    assert [type(end.error) for end in tearing] == [asyncio.CancelledError] * 2


@pytest.mark.parametrize("error_class", [LookupError, SystemExit, StopAsyncIteration])
def test_the_awaiting_code_catches_the_same_exception(
    app: Flask, tearing: Tearing, error_class: type[BaseException]
) -> None:
    error = error_class()

    async def work() -> None:
        await asyncio.sleep(0)
        raise error

    async def main() -> None:
        with pytest.raises(error_class) as raised:
            await carried()
        assert raised.value is error

    with app.test_request_context():
        carried = carry_context(work)
    tearing.clear()
    asyncio.run(main())
    assert [end.error for end in tearing] == [error, error]


@types.coroutine
def step(value: str) -> Generator[str, str, str]:
    """Give a value to the loop, and return what it sends."""
    return (yield value)


async def steps() -> str:
    """Return what the loop has sent in two steps."""
    return await step(request.path) + await step("second")


def test_a_coroutine_can_be_driven_by_hand(app: Flask, tearing: Tearing) -> None:
    with app.test_request_context("/x"):
        coroutine = carry_context(steps)()
        closed = carry_context(steps)()
    before = state()
    assert coroutine.send(None) == "/x"
    assert state() == before
    assert coroutine.send("a") == "second"
    stop = error_of(lambda: coroutine.send("b"))
    assert isinstance(stop, StopIteration)
    assert stop.value == "ab"
    closed.send(None)
    tearing.clear()
    closed.close()
    assert [type(end.error) for end in tearing] == [GeneratorExit] * 2


@functools.wraps(look)
def decorated() -> Any:
    """Call the function as most decorators do, which are not async."""
    return look()


@pytest.mark.parametrize("func", [decorated, lambda: look()], ids=["wraps", "lambda"])
def test_a_plain_function_that_returns_a_coroutine_is_refused_in_the_call(
    app: Flask, tearing: Tearing, func: Callable[[], Any]
) -> None:
    with app.test_request_context():
        error = error_of(lambda: in_thread(carry_context(func)))
        assert isinstance(error, TypeError)
        assert "carry_context(look)" in str(error)
        assert [end.error for end in tearing] == [error, error]


def test_other_awaitables_and_generators_are_returned_as_they_are(app: Flask) -> None:
    async def main() -> None:
        started: Any = steps()
        task = asyncio.ensure_future(asyncio.sleep(0))
        results = [started, task, asyncio.get_running_loop().create_future()]
        results += [PROXY, (number for number in "12")]
        with app.test_request_context():
            started.send(None)
            for result in results:
                assert carry_context([result].pop)() is result
        started.close()
        await task

    asyncio.run(main())


# 7. Errors, at once and clear


def test_without_a_context_there_is_nothing_to_carry() -> None:
    error = error_of(lambda: carry_context(print))
    assert isinstance(error, RuntimeError)
    assert re.search(r"inside the view.*with app\.app_context\(\):", str(error))


MODULE = """
from __future__ import annotations
from ctxcarry import carry_context

def work():
    pass

"""
SERVED = """
from flask import Flask, request, stream_with_context
from ctxcarry import carry_context

app = Flask(__name__)

@app.route("/")
def view():
    return carry_context(lambda: request.path)()

@app.route("/stream")
def stream():
    def generate():
        yield carry_context(lambda: request.path)()
    return app.response_class(stream_with_context(generate()))

client = app.test_client()
answers = [client.get(path).get_data(as_text=True) for path in ["/", "/stream"]]
"""
Import = Callable[[str], types.ModuleType]


@pytest.fixture
def lazy_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Import]:
    """Return a function that imports a module of the given text."""
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])

    def lazy_import(text: str) -> types.ModuleType:
        sys.modules.pop("lazy_jobs", None)
        (tmp_path / "lazy_jobs.py").write_text(text)
        importlib.invalidate_caches()
        return importlib.import_module("lazy_jobs")

    yield lazy_import
    sys.modules.pop("lazy_jobs", None)


@pytest.mark.parametrize(
    "job",
    [
        pytest.param("carry_context(work)", id="call"),
        pytest.param("@carry_context\ndef job(): pass", id="decorator"),
        pytest.param("carry_context(print)", id="builtin"),
        pytest.param("[*map(carry_context, [print])]", id="map"),
        pytest.param("class Jobs:\n    job = carry_context(print)", id="class-body"),
        pytest.param("(lambda: carry_context(print))()", id="helper"),
    ],
)
def test_a_module_that_a_request_imports_cannot_carry_that_request(
    app: Flask, lazy_import: Import, job: str
) -> None:
    def view() -> dict[str, str]:
        error = error_of(lambda: lazy_import(MODULE + job))
        assert isinstance(error, RuntimeError)
        return {"error": str(error)}

    assert re.search("'lazy_jobs'.*inside the view", run(app, view)["error"])


def test_a_module_that_an_async_view_or_a_task_imports_is_refused_too(
    app: Flask, lazy_import: Import
) -> None:
    def import_it() -> str:
        error = error_of(lambda: lazy_import(f"{MODULE}carry_context(work)"))
        assert isinstance(error, RuntimeError)
        return str(error)

    async def import_async() -> str:
        return import_it()

    @app.route("/")
    async def direct() -> list[str]:
        return [import_it()]

    @app.route("/helpers")
    async def helpers() -> list[str]:
        gathered = await asyncio.gather(import_async())
        return [await asyncio.to_thread(import_it), *gathered]

    def ask(path: str) -> list[str]:
        refused: list[str] = app.test_client().get(path).get_json()
        return refused

    refused = [*ask("/"), *ask("/helpers")]
    # Here the view runs on a loop of this thread, which no pool has started.
    refused += asyncio.run(sync_to_async(ask)("/"))
    with app.test_request_context():
        # In this thread, as a pool calls what runs in it, too.
        refused.append(carry_context(import_it)())
        refused.append(flask.copy_current_request_context(import_it)())
    assert len(refused) == 6
    assert all("'lazy_jobs'" in each for each in refused)


JOB = "job = carry_context(work)"
APP = "from flask import Flask\n\napp = Flask(__name__)\n"
FACTORY = """
from flask import Flask

def create_app():
    global job
    with Flask(__name__).test_request_context():
        job = carry_context(work)

create_app()
"""


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(f"{APP}with app.app_context(): {JOB}", id="app"),
        pytest.param(f"{APP}with app.test_request_context(): {JOB}", id="request"),
        pytest.param(FACTORY, id="factory"),
    ],
)
def test_a_module_can_carry_a_job_for_its_start(lazy_import: Import, text: str) -> None:
    jobs: list[Callable[[], None]] = []

    def import_it() -> None:
        jobs.append(lazy_import(MODULE + text).job)

    import_it()
    thread = threading.Thread(target=import_it)  # As a reloader or a server may do.
    thread.start()
    thread.join(TIMEOUT)
    assert [in_thread(job) for job in jobs] == [None, None]


def test_a_module_can_carry_an_app_context(app: Flask, lazy_import: Import) -> None:
    def view() -> dict[str, None]:
        with Flask("other").app_context():
            return {"job": in_thread(lazy_import(MODULE + JOB).job)}

    with app.app_context():
        assert in_thread(lazy_import(MODULE + JOB).job) is None
    assert run(app, view) == {"job": None}


def test_code_that_a_view_executes_can_carry_the_request(
    app: Flask, tmp_path: Path
) -> None:
    code = "from ctxcarry import carry_context\nresult = carry_context(int)()"
    path = tmp_path / "code.py"
    path.write_text(code)

    def view() -> dict[str, Any]:
        names: dict[str, Any] = {"carry_context": carry_context}
        exec(code, names)
        return {
            "exec": names["result"],
            "eval": eval("carry_context(int)()", names),
            "runpy": runpy.run_path(str(path), run_name="code")["result"],
        }

    assert run(app, view) == {"exec": 0, "eval": 0, "runpy": 0}


def test_an_app_can_serve_during_its_import(app: Flask, lazy_import: Import) -> None:
    def view() -> dict[str, list[str]]:
        return {"answers": lazy_import(SERVED).answers}

    assert lazy_import(SERVED).answers == ["/", "/stream"]
    assert run(app, view) == {"answers": ["/", "/stream"]}


class Generators:
    """Is called as a generator function."""

    def __call__(self) -> Iterator[int]:
        yield 1


async def async_generator() -> Any:
    """Give one number."""
    yield 1


CLASS_METHOD = cast(Any, classmethod(in_thread))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        pytest.param(3, r"int.*carry_context\(task\)", id="int"),
        pytest.param(CLASS_METHOD, "classmethod.*the function", id="classmethod"),
        pytest.param(threading.Thread(), "Thread.*the function", id="Thread"),
        pytest.param(Generators(), "generator function", id="generators"),
        pytest.param(partial(Generators()), "generator function", id="partial"),
        pytest.param(async_generator, "generator function", id="async-generator"),
    ],
)
def test_what_is_no_function_or_a_generator_function_is_refused(
    app: Flask, given: Any, message: str
) -> None:
    with app.app_context():
        error = error_of(lambda: carry_context(given))
    assert isinstance(error, TypeError)
    assert re.search(message, str(error))


@pytest.mark.parametrize("func", [look, Reader, Reader.method, len])
def test_the_result_cannot_be_pickled(app: Flask, func: Callable[..., Any]) -> None:
    with app.app_context():
        carried = carry_context(func)
    error = error_of(lambda: pickle.dumps(carried))
    assert isinstance(error, (pickle.PicklingError, AttributeError))
    assert "carry_context" in str(error)


# 8. Where it runs

UNDOCUMENTED = {
    "_get_current_object",  # Werkzeug documents it.
    "_initializing",  # Of a module's spec, read with a default.
    "_flask_babel",  # What Flask-Babel and Flask-SQLAlchemy keep in g.
    "_sqlalchemy_queries",
}


def test_only_documented_names_are_used() -> None:
    text = Path(ctxcarry.__file__).read_text()
    used: set[str] = set()
    defined: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            defined.add(node.name)
        elif isinstance(node, ast.Name):
            is_new = isinstance(node.ctx, ast.Store)
            (defined if is_new else used).add(node.id)
        elif isinstance(node, ast.Attribute):
            is_new = isinstance(node.ctx, ast.Store)
            (defined if is_new else used).add(node.attr)
        elif isinstance(node, ast.Constant):
            used.add(str(node.value))  # It may be the name of an attribute.
    private = {name for name in used if re.fullmatch(r"_[a-z]\w*", name)}
    assert private - defined == UNDOCUMENTED
    assert "type: ignore" not in text


def test_a_context_class_of_the_app_is_made_with_the_real_app() -> None:
    base: Any = type(Flask("x").test_request_context())

    class Context(base):  # type: ignore[misc]
        def __init__(self, app: Any, *args: Any, **kwargs: Any) -> None:
            self.seen = [app.name, app.config["KEY"], app.logger]
            base.__init__(self, app, *args, **kwargs)

    class Shop(Flask):
        def request_context(self, environ: Any) -> Any:
            if FLASK >= (3, 2):
                make: Any = Context.from_environ
                return make(self, environ)
            return Context(self, environ)

    app = Shop("shop")
    app.config["KEY"] = "value"
    with app.test_request_context():
        context = in_thread(carry_context(lambda: active("request")))
    assert isinstance(context, Context)
    assert context.app is app
    assert context.seen == ["shop", "value", app.logger]


@pytest.mark.parametrize("fails", [False, True], ids=["succeeds", "fails"])
@pytest.mark.parametrize("is_async", [False, True], ids=["plain", "async"])
def test_memory_goes_without_the_garbage_collector(
    app: Flask, pool: ThreadPoolExecutor, fails: bool, is_async: bool
) -> None:
    alive: list[weakref.ref[Any]] = []

    def work() -> None:
        g.own = Thing()
        for each in [g.own, request, g, session]:
            alive.append(weakref.ref(unproxied(each)))
        if fails:
            g.error = LookupError()
            raise g.error

    async def work_async() -> None:
        cast(Any, asyncio.current_task()).cancel()
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            await asyncio.sleep(0)  # The body may catch what is thrown in and go on.
            work()

    async def main(coroutine: Coroutine[Any, Any, None]) -> None:
        # Inside, since asyncio.run() makes a cycle of an error that leaves it.
        with pytest.raises(LookupError) if fails else contextlib.nullcontext():
            await coroutine

    def view() -> dict[str, Any]:
        g.thing = Thing()
        alive.append(weakref.ref(g.thing))
        if is_async:
            coroutine = carry_context(work_async)()
            pool.submit(asyncio.run, main(coroutine)).result(TIMEOUT)
        else:
            error = pool.submit(carry_context(work)).exception(TIMEOUT)
            assert isinstance(error, LookupError) == fails
        return {}

    with without_gc():
        run(app, view)
        assert pool.submit(int).result() == 0  # The worker has let go of the task.
        assert [ref() for ref in alive] == [None] * 5


def test_a_task_that_carries_itself_on_keeps_no_earlier_generation(app: Flask) -> None:
    alive: weakref.WeakSet[Any] = weakref.WeakSet()
    counts: list[int] = []
    wrappers: list[Callable[[], None]] = []

    def tick() -> None:
        g.thing = Thing()
        session["thing"] = Thing()
        alive.update([g.thing, session["thing"], unproxied(request)])
        alive.update([active("app"), active("request")])
        counts.append(len(alive))
        wrappers.append(carry_context(tick))

    with without_gc():
        with app.test_request_context():
            wrappers.append(carry_context(tick))
        for _ in range(30):
            in_thread(wrappers.pop())
        assert counts[10:] == [counts[10]] * 20
        wrappers.clear()
        assert not alive


def test_a_wrapper_that_waits_keeps_the_snapshot_and_nothing_else(app: Flask) -> None:
    def refs(*objects: Any) -> list[weakref.ref[Any]]:
        return [weakref.ref(unproxied(each)) for each in objects]

    app.add_url_rule("/", "view", methods=["POST"])  # An error would hold its frames.
    with without_gc():
        with app.test_request_context("/", data=b"x", method="POST"):
            assert request.get_data() == b"x"
            request.environ["werkzeug.request"] = None  # A cycle, in Flask 3.2.
            g.thing = Thing()
            g.db = Connection()
            carried = carry_context(lambda: g.thing)
            g.later = Thing()
            kept = weakref.ref(g.thing)
            gone = refs(request, g, session, active("app"), active("request"))
            gone += refs(request.stream, request.environ["wsgi.input"], g.later, g.db)
        assert [ref() for ref in gone] == [None] * len(gone)
        assert carried() is kept()
        del carried
        assert kept() is None


def test_a_copied_file_works(app: Flask, lazy_import: Import) -> None:
    text = Path(ctxcarry.__file__).read_text()
    header, *_ = text.splitlines()
    assert f"ctxcarry {ctxcarry.__version__}" in header
    assert "SPDX-License-Identifier: MIT-0" in header
    carry_by_copy = lazy_import(text).carry_context
    with app.test_request_context("/x"):
        assert in_thread(carry_by_copy(lambda: request.path)) == "/x"


def test_one_wrapper_runs_in_many_greenlets(app: Flask) -> None:
    gevent = importlib.import_module("gevent")

    def work(name: str) -> list[str]:
        write(name)
        gevent.sleep(0)
        return values()

    app.add_url_rule("/<name>", "view")
    with app.test_request_context("/x"):
        carried = carry_context(work)
        greenlets = [gevent.spawn(carried, name) for name in "abc"]
        gevent.joinall(greenlets, timeout=TIMEOUT, raise_error=True)
    assert [each.value for each in greenlets] == [[name] * 7 for name in "abc"]


# 9. What is separated or refused on purpose


def test_a_task_does_not_see_the_context_variables_of_its_thread(app: Flask) -> None:
    def thread() -> str:
        TENANT.set("the thread's")
        return carried()

    with app.app_context():
        TENANT.set("acme")
        carried = carry_context(TENANT.get)
    assert in_thread(thread) == "acme"


# Any order of writing, wrapping, calling and ending, against a model of plain values

NEW_VALUES = st.text("0123", max_size=3)


class Wrapper(NamedTuple):
    """The carried functions of a task, and the value that they find at first."""

    work: Callable[[str, Callable[[], object]], Coroutine[Any, Any, list[Any]]]
    wrap_again: Callable[[str], "Wrapper"]
    value: str


def add(value: str) -> None:
    """Add to the value in every place, if there is something to add."""
    if value:
        write(g.value + value)
        session["cart"].append(value)


def see() -> list[Any]:
    """Return what is in every place."""
    return [*values(), "".join(session["cart"])]


class Carrying(RuleBasedStateMachine):
    """Writes, wraps, calls and ends in any order. The model is a text."""

    wrappers: Bundle[Wrapper] = Bundle("wrappers")

    def __init__(self) -> None:
        super().__init__()
        self.app = Flask("shop")
        self.app.secret_key = "secret"
        self.app.add_url_rule("/<name>", "view")
        self.app.teardown_request(self.tear_down)
        self.app.teardown_appcontext(self.tear_down)
        self.endings: list[str] = []
        self.view: Any = None
        self.model = ""

    def tear_down(self, _: BaseException | None) -> None:
        self.endings.append(g.get("value", "nothing"))

    def carry(self, model: str) -> Wrapper:
        """Wrap the functions of a task in the active context, as in the model."""

        async def work(value: str, meet: Callable[[], object]) -> list[Any]:
            before = see()
            meet()
            await asyncio.sleep(0)
            add(value)
            meet()
            await asyncio.sleep(0)
            return [before, see()]

        def wrap_again(value: str) -> Wrapper:
            add(value)
            return self.carry(model + value)

        return Wrapper(carry_context(work), carry_context(wrap_again), model)

    @precondition(lambda self: not self.view)
    @rule()
    def begin_request(self) -> None:
        self.view = self.app.test_request_context("/x")
        self.view.push()
        self.model = ""
        write("")
        session["cart"] = []

    @precondition(lambda self: self.view)
    @rule(value=NEW_VALUES)
    def change_in_the_view(self, value: str) -> None:
        add(value)
        self.model += value

    @precondition(lambda self: self.view)
    @rule(target=wrappers)
    def wrap(self) -> Wrapper:
        return self.carry(self.model)

    @rule(target=wrappers, wrapper=wrappers, value=NEW_VALUES)
    def wrap_in_a_task(self, wrapper: Wrapper, value: str) -> Wrapper:
        made: Wrapper = in_thread(lambda: wrapper.wrap_again(value))
        return made

    @rule(wrapper=wrappers, new=st.lists(NEW_VALUES, min_size=1, max_size=3))
    def call_in_threads(self, wrapper: Wrapper, new: list[str]) -> None:
        barrier = threading.Barrier(len(new), timeout=TIMEOUT)

        def in_a_thread(value: str) -> list[Any]:
            before = state()
            seen = asyncio.run(wrapper.work(value, barrier.wait))
            assert state() == before
            return seen

        self.endings.clear()
        with ThreadPoolExecutor(3) as pool:
            self.check(wrapper, new, list(pool.map(in_a_thread, new)))

    @rule(wrapper=wrappers, new=st.lists(NEW_VALUES, max_size=3))
    def call_on_a_loop(self, wrapper: Wrapper, new: list[str]) -> None:
        async def main() -> list[list[Any]]:
            return await asyncio.gather(*[wrapper.work(value, int) for value in new])

        self.endings.clear()
        self.check(wrapper, new, in_thread(lambda: asyncio.run(main())))

    def check(self, wrapper: Wrapper, new: list[str], seen: list[list[Any]]) -> None:
        """Compare what the calls and their teardown functions saw with the model."""
        endings: list[str] = []
        for value, (before, after) in zip(new, seen):
            assert before == [wrapper.value] * 8
            assert after == [wrapper.value + value] * 8
            endings += [wrapper.value + value if value else "nothing"] * 2
        assert sorted(self.endings) == sorted(endings)

    @precondition(lambda self: self.view)
    @rule()
    def end_request(self) -> None:
        self.endings.clear()
        self.view.pop(None)
        self.view = None
        assert self.endings == [self.model] * 2

    @stateful.invariant()
    def nothing_is_written_back(self) -> None:
        if self.view:
            assert see() == [self.model] * 8
        else:
            assert not flask.has_app_context()

    def teardown(self) -> None:
        if self.view:
            self.view.pop(None)


TestCarrying = cast(Any, Carrying).TestCase
TestCarrying.settings = settings(
    deadline=None, max_examples=200, stateful_step_count=20
)
