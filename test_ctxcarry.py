"""The promises of ctxcarry, in the order of its contract, section by section."""

import ast
import asyncio
import contextlib
import contextvars
import copy
import decimal
import functools
import gc
import http.client
import importlib
import importlib.metadata
import inspect
import io
import itertools
import multiprocessing
import operator
import os
import pickle
import queue
import re
import runpy
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import tracemalloc
import types
import unittest.mock
import weakref
from collections import OrderedDict
from collections.abc import (
    AsyncIterator,
    Callable,
    Coroutine,
    Generator,
    Iterator,
    MutableMapping,
)
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import flask
import pytest
from flask import Flask, Request, current_app, g, request, session, url_for
from flask.sessions import SecureCookieSession, SessionInterface, SessionMixin
from greenlet import GreenletExit
from hypothesis import settings, stateful
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, precondition, rule
from werkzeug.datastructures import EnvironHeaders, FileStorage, Headers
from werkzeug.local import LocalProxy
from werkzeug.routing import BaseConverter, MapAdapter
from werkzeug.serving import WSGIRequestHandler, make_server
from werkzeug.test import Client

import ctxcarry
from ctxcarry import carry_context

TENANT: contextvars.ContextVar[str] = contextvars.ContextVar("TENANT", default="none")
HERE = Path(__file__).parent
TIMEOUT = 20
FLASK = tuple(int(part) for part in importlib.metadata.version("flask").split(".")[:2])
# PyPy's attribute errors do not.
NAMES_ITS_OBJECT = sys.implementation.name == "cpython"
SIGNALS = ["appcontext_pushed", "request_tearing_down"] + [
    "appcontext_tearing_down",
    "appcontext_popped",
]

Tearing = list[tuple[str, dict[str, Any], BaseException | None]]


@pytest.fixture
def app() -> Flask:
    TENANT.set("none")
    app = Flask("shop")
    app.secret_key = "secret"
    return app


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool


@pytest.fixture
def tearing(app: Flask) -> Tearing:
    """What teardown functions found in g, and were given, in their order."""
    seen: Tearing = []

    @app.teardown_request
    def end_request(error: BaseException | None) -> None:
        seen.append(("request", dict(vars(g)), error))

    @app.teardown_appcontext
    def end_app_context(error: BaseException | None) -> None:
        seen.append(("app", dict(vars(g)), error))

    return seen


@pytest.fixture
def closing(app: Flask) -> None:
    """Closes the database as Flask's tutorial does."""

    @app.teardown_appcontext
    def close_db(_: BaseException | None) -> None:
        db = g.pop("db", None)
        if db is not None:
            db.close()


class Thing:
    """Something whose life can be watched."""


class Registry:
    """Data, though it can be closed, as it is no context manager."""

    closed = 0

    def close(self) -> None:
        self.closed += 1


class Connection(Registry):
    """An open resource, as its class says."""

    def __enter__(self) -> None:
        """Begin."""

    def __exit__(self, *_: object) -> None:
        self.close()


def run(app: Flask, view: Callable[..., Any], path: str = "/", **sent: Any) -> Any:
    """Send one request to the view, at /<name> or at /, and return its JSON."""
    rule = "/<name>" if path[1:2].isalpha() else "/"
    app.add_url_rule(rule, "view", view, methods=["GET", "POST"])
    response = app.test_client(use_cookies=False).open(path, **sent)
    assert response.status_code == 200
    return response.get_json()


def in_thread(func: Callable[[], Any]) -> Any:
    """Call func in a raw thread, and return or raise what it did."""
    future: Future[Any] = Future()

    def work() -> None:
        try:
            future.set_result(func())
        except BaseException as error:
            future.set_exception(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(TIMEOUT)
    return future.result(0)


def innermost(error: Any) -> Any:
    """Return the one error in a group of groups, as of Flask 3.2, or the error."""
    while hasattr(error, "exceptions"):
        (error,) = error.exceptions
    return error


def error_of(func: Callable[[], Any]) -> Any:
    """Call func, and return what it raised."""
    try:
        func()
    except BaseException as error:
        return innermost(error)
    return None


def unproxied(each: Any) -> Any:
    """Return what is behind a proxy, or the object itself."""
    return each._get_current_object() if issubclass(type(each), LocalProxy) else each


def active(kind: str) -> Any:
    """Return the active context of the app or of the request."""
    names: Any = vars(flask.globals)
    if FLASK < (2, 2):
        return names[f"_{kind}_ctx_stack"].top
    return unproxied(names.get(f"{kind}_ctx", names["app_ctx"]))


def state() -> tuple[Any, ...]:
    """Return all that a task could leave behind in a thread."""
    variables = dict(contextvars.copy_context().items())
    return variables, flask.has_app_context(), flask.has_request_context()


@contextlib.contextmanager
def receiving(app: Flask, receive: Callable[..., None]) -> Generator[None]:
    """Call receive with the name of each signal of a context, and what it sends."""
    receivers = {name: partial(receive, name) for name in SIGNALS}  # Held weakly.
    with contextlib.ExitStack() as stack:
        for name, receiver in receivers.items():
            stack.enter_context(getattr(flask, name).connected_to(receiver, app))
        yield


def awake() -> Any:
    raise AssertionError("The proxy was woken.")


@contextlib.contextmanager
def without_gc() -> Generator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


# 1. The face


def test_the_module_has_one_public_function_without_options() -> None:
    assert ctxcarry.__all__ == ["carry_context"]
    assert list(inspect.signature(carry_context).parameters) == ["func"]
    assert importlib.metadata.version("ctxcarry") == ctxcarry.__version__


def test_the_result_looks_like_the_function(app: Flask) -> None:
    def work(item: int, *, times: int = 2) -> int:
        """Multiply."""
        return item * times

    async def work_async(item: int, *, times: int = 2) -> int:
        """Multiply later."""
        return item * times

    with app.app_context():
        carried, carried_async = carry_context(work), carry_context(work_async)
    assert carried(3, times=4) == asyncio.run(carried_async(3, times=4)) == 12
    assert (carried.__name__, carried.__doc__) == ("work", "Multiply.")
    assert carried_async.__name__ == "work_async"
    assert carried_async.__doc__ == "Multiply later."
    for result in carried, carried_async:
        assert inspect.signature(result) == inspect.signature(work)


def read(end: str) -> str:
    return request.path + end


class Reader:
    """What a class, its methods and its instances see of the request."""

    def __init__(self, end: str = "") -> None:
        self.seen = flask.has_request_context() and read(end)

    def __eq__(self, other: object) -> bool:
        return self.seen == other

    def method(self, end: str) -> str:
        return read(end)

    __call__ = method


def test_every_kind_of_callable_can_be_carried(app: Flask) -> None:
    names = ["func", "self", "snapshot", "context", "callable", "args", "kwargs"]
    bare: Any = type("Bare", (), {"__module__": None, "__call__": Reader().method})
    code = {"__code__": read.__code__, "__call__": Reader().method, "__slots__": ()}
    compiled: Any = type("Compiled", (), code)
    end: Callable[[str], str] = lambda end: read(end)
    kinds: list[tuple[Callable[..., Any], list[Any], object]] = [
        *[(func, ["!"], "/x!") for func in (read, end, Reader, Reader())],
        *[(func, ["!"], "/x!") for func in (Reader().method, partial(read))],
        (repr, [request], "<Request 'http://localhost/x' [GET]>"),
        (operator.attrgetter("path"), [request], "/x"),
        # These have no name or no module.
        (str.strip, [" a "], "a"),
        ((1).__add__, [2], 3),
        (weakref.ref(Reader), [], Reader),
        *[(func(), ["!"], "/x!") for func in (bare, compiled)],
    ]
    with app.test_request_context("/x"):
        for func, arguments, result in kinds:
            assert in_thread(partial(carry_context(func), *arguments)) == result
        assert carry_context(dict)(**dict.fromkeys(names)) == dict.fromkeys(names)


def test_a_copied_file_says_what_it_is_and_which_version() -> None:
    with Path(ctxcarry.__file__).open() as file:
        header = "".join(itertools.islice(file, 3))
    assert f"ctxcarry {ctxcarry.__version__}" in header
    assert "SPDX-License-Identifier: MIT-0" in header


# 2. What the snapshot holds


def test_the_task_sees_what_the_view_sees(app: Flask) -> None:
    @app.before_request
    def identify() -> None:
        vars(request)["user"] = request.args["user"]

    @app.route("/see/<int:number>", methods=["POST"])
    def see(number: int) -> dict[str, Any]:
        session["theme"], g.db = "dark", "connection"
        TENANT.set("acme")

        def look() -> dict[str, Any]:
            own: Any = request
            return {
                "path": request.path,
                "query": request.args.to_dict(),
                "header": request.headers["X-Id"],
                "cookie": request.cookies["id"],
                "json": request.get_json(),
                "user": own.user,
                "view_args": request.view_args,
                "endpoint": request.endpoint,
                "rule": str(request.url_rule),
                "session": dict(session),
                "g": dict(vars(g)),
                "tenant": TENANT.get(),
                "app": current_app.name,
                "url": url_for("see", number=8),
            }

        return {"view": look(), "task": in_thread(carry_context(look))}

    headers = {"X-Id": "17", "Cookie": "id=18"}
    client = app.test_client(use_cookies=False)
    seen = client.post("/see/7?user=ada", json={"a": [1]}, headers=headers).get_json()
    assert seen["task"] == seen["view"]
    assert seen["task"]["g"] == {"db": "connection"}


def test_with_an_app_context_alone_all_but_request_and_session_is_carried(
    app: Flask,
) -> None:
    with app.app_context():
        g.job = "nightly"
        token = TENANT.set("acme")
        carried = carry_context(lambda: (unproxied(current_app), g.job, *state()[1:]))
        tenant = carry_context(TENANT.get)
        TENANT.reset(token)
    assert in_thread(carried) == (app, "nightly", True, False)
    assert in_thread(tenant) == "acme"


def test_the_task_sees_nothing_that_the_view_changes_afterwards(app: Flask) -> None:
    def look() -> tuple[Any, ...]:
        who, mark = request.environ["who"], vars(request)["mark"]
        seen = who, mark, request.headers["Id"], request.view_args
        return *seen, dict(session), dict(vars(g)), TENANT.get()

    def change(value: str) -> None:
        assert request.view_args is not None
        request.environ.update(who=value, HTTP_ID=value)
        vars(request)["mark"] = request.view_args["name"] = value
        session["a"] = g.a = value
        TENANT.set(value)

    def view(name: str) -> dict[str, Any]:
        change("old")
        carried = carry_context(look)
        change("new")
        g.b = session["b"] = "new"
        return {"seen": in_thread(carried)}

    a = {"a": "old"}
    assert run(app, view, "/x") == {
        "seen": ["old", "old", "old", {"name": "old"}, a, a, "old"]
    }


def test_a_timer_may_fire_after_the_server_has_cleared_its_environ(app: Flask) -> None:
    answered = threading.Event()
    seen: Future[list[str | None]] = Future()

    @app.route("/<name>")
    def view(name: str) -> str:
        session["user"], g.db = "ada", "connection"

        @carry_context
        def later() -> None:
            assert answered.wait(TIMEOUT)
            sent = [request.headers["X-Id"], request.args["q"], request.cookies["c"]]
            carried = [request.path, session["user"], g.db]
            seen.set_result([*carried, *sent, request.environ["werkzeug.request"]])

        threading.Timer(0, later).start()
        return ""

    def server(environ: Any, start_response: Any) -> list[bytes]:
        content = list(app.wsgi_app(environ, start_response))
        environ.clear()
        return content

    headers = {"X-Id": "2", "Cookie": "c=3"}
    Client(server, use_cookies=False).get("/x?q=1", headers=headers)
    answered.set()
    assert seen.result(TIMEOUT) == ["/x", "ada", "connection", *"213", None]


def test_a_host_that_a_hook_set_is_carried(app: Flask) -> None:
    def look() -> str:
        host = request.host
        url_for("view")  # Flask sets the host of the request that it binds to.
        return host

    def view() -> dict[str, Any]:
        carried = carry_context(look)
        return {"seen": [in_thread(carried), in_thread(carried)]}

    app.before_request(lambda: vars(request).update(host="public.example"))
    assert run(app, view) == {"seen": ["public.example"] * 2}


class ServerSession(SecureCookieSession):
    sid: str


class Store(SessionInterface):
    opened = 0
    session: Any = None

    def open_session(self, app: Flask, request: Request) -> Any:
        self.opened += 1
        if self.session is None:
            self.session = ServerSession({"user": "ada"})
            self.session.sid = "sid-1"
        return self.session

    def save_session(self, app: Flask, session: Any, response: flask.Response) -> None:
        """Leave it to the test."""


def test_a_session_class_keeps_its_own_state_and_its_store_is_asked_once(
    app: Flask, pool: ThreadPoolExecutor
) -> None:
    app.session_interface = store = Store()

    def look(number: int) -> tuple[str, str, str]:
        session["number"] = number
        own = unproxied(session)
        return own.__class__.__name__, own.sid, own["user"]

    def view() -> dict[str, Any]:
        return {"seen": list(pool.map(carry_context(look), range(3)))}

    assert run(app, view) == {"seen": [["ServerSession", "sid-1", "ada"]] * 3}
    assert (store.session.sid, dict(store.session)) == ("sid-1", {"user": "ada"})
    assert store.opened == 1


def test_an_app_without_a_secret_key_has_its_null_session_carried() -> None:
    with Flask("open").test_request_context():
        with pytest.raises(RuntimeError, match="secret"):
            in_thread(carry_context(lambda: session.update(a=1)))
        assert in_thread(carry_context(lambda: session.get("user"))) is None


class Slots(Request):
    __slots__ = ("__own", "empty")

    def set(self, value: object) -> None:
        self.__own = value

    def get(self) -> object:
        return self.__own


class Delegating(Slots):
    """Recurses under copy.copy, which asks a copy that has no attributes yet."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.inner: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        return self.inner[name]

    def __reduce__(self) -> str:
        raise TypeError("A request is not pickled.")


class Copying(Delegating):
    """Has values that a copy would share, were it not for its ``__copy__``."""

    def set(self, value: object) -> None:
        self.inner["own"] = value

    def get(self) -> object:
        return self.inner["own"]

    def __copy__(self) -> "Copying":
        copied = self.__class__.__new__(self.__class__)
        vars(copied).update(vars(self), inner=self.inner.copy())
        return copied


def stored_as(name: str) -> Any:
    """A property that keeps its value in another attribute."""
    return property(
        operator.attrgetter(name), lambda self, value: setattr(self, name, value)
    )


class Properties(Request):
    """Keeps what Flask and Werkzeug set in attributes of its own."""

    view_args = stored_as("own_view_args")
    headers = stored_as("own_headers")

    def set(self, value: object) -> None:
        self.value = value

    def get(self) -> object:
        return self.value


@pytest.mark.parametrize("request_class", [Slots, Delegating, Copying, Properties])
def test_a_request_class_of_the_app_keeps_working(
    app: Flask, pool: ThreadPoolExecutor, request_class: type[Request]
) -> None:
    app.request_class = request_class

    def view(name: str) -> dict[str, Any]:
        own: Any = unproxied(request)
        own.set("view's")
        seen = list(pool.map(carry_context(work), range(2)))
        return {"task": seen, "view": [own.get(), own.view_args]}

    def work(number: int) -> list[Any]:
        own: Any = unproxied(request)
        seen = [own.get(), dict(own.view_args), own.headers["X-Id"], number]
        own.set("task's")
        own.view_args["name"] = own.environ["HTTP_X_ID"] = "task's"
        return [own.__class__.__name__, *seen, own.headers["X-Id"]]

    viewed = ["view's", {"name": "x"}]
    task = [[request_class.__name__, *viewed, "7", n, "task's"] for n in range(2)]
    seen = run(app, view, "/x", headers={"X-Id": "7"})
    assert seen == {"task": task, "view": viewed}


def test_headers_that_a_hook_put_in_place_are_carried(app: Flask) -> None:
    class Lower(EnvironHeaders):
        def __getitem__(self, key: Any, *_: Any) -> Any:
            return super().__getitem__(key).lower()

    def work() -> list[str]:
        seen = request.headers["Id"]
        request.environ["HTTP_ID"] = "Task's"
        return [seen, request.headers["Id"]]

    headers: list[Callable[[], Headers]] = [
        lambda: Headers([("Id", "hook's")]),
        lambda: Lower(request.environ),
        lambda: EnvironHeaders({"HTTP_ID": "other's"}),
    ]
    tasks = [["hook's"] * 2, ["x", "task's"], ["other's"] * 2]
    for make, task in zip(headers, tasks):
        with app.test_request_context(headers={"Id": "X"}):
            vars(request)["headers"] = make()
            carried = carry_context(work)
            assert [in_thread(carried), carried()] == [task, task]
            assert request.headers["Id"] == task[0]


def test_lists_and_dicts_in_the_session_are_the_tasks_own(
    app: Flask, pool: ThreadPoolExecutor
) -> None:
    @app.route("/")
    def view() -> dict[str, Any]:
        session["cart"], session["prices"] = ["tea"], {"tea": [{"net": 3}]}
        flask.flash("view's")
        carried = carry_context(work)
        session["cart"].append("view's")
        session["prices"]["tea"][0]["net"] = 4
        return {"seen": [*pool.map(carried, range(2)), carried(2)]}

    def work(_: int) -> list[Any]:
        seen = copy.deepcopy([session["cart"], session["prices"]])
        session["cart"].append("task's")
        session["prices"]["tea"][0]["net"] = 5
        flask.flash("task's")
        return [*seen, flask.get_flashed_messages()]

    client = app.test_client()
    seen = client.get("/").get_json()["seen"]
    assert seen == [[["tea"], {"tea": [{"net": 3}]}, ["view's", "task's"]]] * 3
    with client.session_transaction() as saved:
        assert saved["cart"] == ["tea", "view's"]
        assert saved["prices"] == {"tea": [{"net": 4}]}
        assert saved["_flashes"] == [("message", "view's")]


def test_a_session_is_copied_to_any_depth_and_with_its_cycles(app: Flask) -> None:
    def bottom(deep: Any) -> Any:
        while deep[0].__class__ is list:
            deep = deep[0]
        return deep

    def work() -> list[Any]:
        own = session["cycle"]
        bottom(session["deep"])[0] = own["new"] = "task's"
        return [own["list"][0] is own, session["again"] is own, own]

    deep: list[Any] = ["deepest"]
    for _ in range(10_000):
        deep = [deep]
    cycle: dict[str, Any] = {"list": []}
    cycle["list"].append(cycle)
    with app.test_request_context():
        session.update(deep=deep, cycle=cycle, again=cycle)
        same, again, own = in_thread(carry_context(work))
    assert (same, again, own is cycle, "new" in cycle) == (True, True, False, False)
    assert bottom(deep) == ["deepest"]


def test_everything_else_in_the_session_is_shared_and_left_alone(app: Flask) -> None:
    own: Any = dict.fromkeys(["copy", "__copy__", "__deepcopy__"], awake)
    cart: Any = type("Cart", (list,), own)()
    prices: Any = type("Prices", (dict,), own)()
    inner = prices["a"] = ["shared"]
    cart.append(inner)
    values = {"cart": cart, "prices": prices, "tuple": (inner,)}
    # To set an item may be to write it to the session store, or be forbidden.
    own = dict.fromkeys(["items", "update", "__setitem__"], awake)
    app.session_interface = store = Store()
    store.session = type("Own", (ServerSession,), own)({**values, "list": [values]})
    with app.test_request_context():
        seen = in_thread(carry_context(lambda: [dict(session), session["list"][0]]))
    for copied in seen:
        assert all(copied[name] is value for name, value in values.items())
    assert cart[0] is prices["a"] is inner == ["shared"]


class Ordered(OrderedDict[str, Any], SessionMixin):
    """Is a dict that keeps more than its items, and so says how it is copied."""


class Bare(dict[str, Any]):
    __slots__ = ("accessed",)


class Pickled(dict[str, Any], SessionMixin):
    def __new__(cls, **values: Any) -> Any:
        assert values
        return super().__new__(cls)

    def __getnewargs_ex__(self) -> tuple[tuple[()], dict[str, Any]]:
        return (), dict(self)


class Tied(dict[str, Any], SessionMixin):
    """Has an attribute that a copy must not share."""

    def __init__(self, **values: Any) -> None:
        super().__init__(values)
        self.tie(None)

    def tie(self, _: object) -> None:
        vars(self)["items"] = super().items


class Tying(Tied):
    __setstate__ = Tied.tie


class Untying(Tied):
    def __getstate__(self) -> dict[str, Any]:
        return {}


class Encrypted(dict[str, Any], SessionMixin):
    def __init__(self, **values: str) -> None:
        for key, value in values.items():
            self[key] = value

    def __setitem__(self, key: str, value: str) -> None:
        super().__setitem__(key, f"encrypted {value}")

    def __getitem__(self, key: str) -> Any:
        return super().__getitem__(key).split("encrypted ")[1]

    def __iter__(self) -> Iterator[str]:
        return iter([*super().__iter__()])

    def items(self) -> Any:
        return [(key, self[key]) for key in self]


class Mapping(MutableMapping[str, Any]):
    """Is no dict."""

    __slots__ = ()
    own: dict[str, Any]

    def __init__(self, **values: Any) -> None:
        self.own = values

    def __getitem__(self, key: str) -> Any:
        return self.own[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self.own[key] = value

    def __delitem__(self, key: str) -> None:
        del self.own[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.own)

    def __len__(self) -> int:
        return len(self.own)


class Slotted(Mapping):
    __slots__ = ("accessed", "own")


@pytest.mark.parametrize(
    "session_class", [Ordered, Bare, Pickled, Tying, Untying, Encrypted, Slotted]
)
def test_a_session_of_any_kind_works_in_a_task(app: Flask, session_class: Any) -> None:
    app.session_interface = store = Store()
    store.session = session_class(user="ada", cart="tea")

    def work() -> list[tuple[str, str]]:
        session["cart"] += " and milk"
        return [*session.items()]

    with app.test_request_context():
        items = in_thread(carry_context(work))
    assert items == [("user", "ada"), ("cart", "tea and milk")]


class MappingSession(Mapping, SessionMixin):
    """May have no `accessed` that can be set, and answers any attribute."""

    def __getattr__(self, name: str) -> Any:
        return self.own.get(name)


@pytest.mark.parametrize("settable", [False, True])
def test_a_session_that_is_no_dict_is_copied_too(app: Flask, settable: bool) -> None:
    own: Any = type("Session", (MappingSession,), {})
    if not settable and FLASK < (3, 1):
        own.accessed = property(lambda _: True)
    app.session_interface = store = Store()
    store.session = own(user=["ada"])

    def work() -> Any:
        session["user"].append("eve")
        session["new"] = "eve"
        return unproxied(session).user

    def view() -> dict[str, Any]:
        return {"seen": [in_thread(carry_context(work)), session["user"]]}

    assert run(app, view) == {"seen": [["ada", "eve"], ["ada"]]}
    assert store.session.own == {"user": ["ada"]}


def test_carrying_the_session_counts_as_reading_it(app: Flask) -> None:
    @app.route("/<any(carried, plain):how>")
    def view(how: str) -> str:
        if how == "plain":
            return "for all"
        return str(in_thread(carry_context(lambda: session.get("user"))))

    client = app.test_client()
    with client.session_transaction() as saved:
        saved["user"] = "ada"
    assert client.get("/carried").headers["Vary"] == "Cookie"
    assert "Vary" not in client.get("/plain").headers


@pytest.mark.skipif(FLASK >= (3, 2), reason="Flask 3.2 opens it at any access")
def test_a_session_that_is_not_open_yet_is_refused(app: Flask) -> None:
    refused: list[str] = []

    class Interface(Store):
        def open_session(self, app: Flask, request: Request) -> Any:
            refused.append(str(error_of(lambda: carry_context(int))))
            return super().open_session(app, request)

    app.session_interface = Interface()
    assert run(app, dict) == {}
    assert re.match("carry_context.*open session.*inside the view", refused[0])


@pytest.mark.skipif(FLASK >= (3, 2), reason="Flask 3.2 has one context for both")
def test_the_context_of_another_app_in_a_request_is_refused(app: Flask) -> None:
    other = Flask("other")
    refused = pytest.raises(RuntimeError, match="'other'.*'shop'.*Wrap.*outside")
    with app.test_request_context(), other.app_context(), refused:
        carry_context(int)
    with other.app_context(), app.test_request_context():
        assert in_thread(carry_context(lambda: current_app.name)) == "shop"


def test_the_variables_hold_no_context_of_flask(app: Flask) -> None:
    own: Any = type("Context", (type(app.app_context()),), {})
    variable: contextvars.ContextVar[Any] = contextvars.ContextVar("variable")

    with app.test_request_context():
        variable.set(own(app))
        view = [variable.get(), active("app"), active("request")]
        TENANT.set("acme")
        values = in_thread(carry_context(lambda: [*state()[0].values()]))
    assert "acme" in values
    assert not [type(value) for value in values if any(value is each for each in view)]


def test_a_decimal_context_is_copied_for_each_call(app: Flask) -> None:
    own: contextvars.ContextVar[decimal.Context] = contextvars.ContextVar("own")

    def work() -> list[int]:
        seen = [decimal.getcontext().prec, own.get().prec]
        decimal.getcontext().prec = own.get().prec = 3
        return seen

    with decimal.localcontext() as viewed, app.test_request_context():
        viewed.prec = 20
        own.set(decimal.Context(21))
        carried = carry_context(work)
        viewed.prec = own.get().prec = 22
        assert [carried(), in_thread(carried), carried()] == [[20, 21]] * 3
        assert [decimal.getcontext().prec, own.get().prec] == [22, 22]


def test_a_session_that_loads_itself_when_it_is_read_is_loaded_once(app: Flask) -> None:
    loads: list[str] = []

    class Lazy(dict[str, Any], SessionMixin):
        def __contains__(self, key: object) -> bool:
            if not self:
                loads.append("load")
                self["user"] = "ada"
            return super().__contains__(key)

    def view() -> dict[str, Any]:
        carried = carry_context(lambda: "user" in session)
        return {"seen": [carried(), in_thread(carried)]}

    app.session_interface = store = Store()
    store.session = Lazy()
    assert run(app, view) == {"seen": [True, True]}
    assert loads == ["load"]


# 3. Each call


def test_calls_start_from_the_snapshot_and_do_not_see_each_others_writes(
    app: Flask, pool: ThreadPoolExecutor
) -> None:
    barrier = threading.Barrier(4, timeout=TIMEOUT)

    def view(name: str) -> dict[str, Any]:
        assert request.view_args is not None
        g.n = session["n"] = request.view_args["n"] = request.environ["n"] = -1
        request.environ["HTTP_N"] = "-1"
        TENANT.set("-1")

        def look() -> list[Any]:
            assert request.view_args is not None
            seen = [g.n, session["n"], request.view_args["n"], request.environ["n"]]
            return [*seen, int(request.headers["N"]), int(TENANT.get())]

        @carry_context
        def write(number: int, wait: Callable[[], Any] = int) -> list[Any]:
            assert request.view_args is not None
            seen = look()
            wait()
            g.n = session["n"] = request.view_args["n"] = request.environ["n"] = number
            request.environ["HTTP_N"] = str(number)
            TENANT.set(str(number))
            wait()
            return [seen, look()]

        seen = [*pool.map(write, range(4), [barrier.wait] * 4), write(4)]
        return {"seen": [*seen, in_thread(partial(write, 5))]}

    assert run(app, view, "/x")["seen"] == [[[-1] * 6, [n] * 6] for n in range(6)]


def test_nothing_is_written_back(app: Flask) -> None:
    @app.route("/<name>")
    def view(name: str) -> dict[str, Any]:
        g.user, environ = "ada", request.environ
        TENANT.set("acme")

        @carry_context
        def write() -> None:
            assert request.view_args is not None
            request.view_args["name"] = vars(request)["mark"] = "eve"
            session["user"] = g.user = g.new = request.environ["who"] = "eve"
            request.environ["HTTP_ID"] = "eve"
            TENANT.set("eve")

        write()
        in_thread(write)
        assert environ is request.environ
        seen = request.view_args, session["user"], dict(vars(g)), TENANT.get()
        written = ["mark" in vars(request), "who" in environ, "Id" in request.headers]
        return {"seen": seen, "written": written}

    client = app.test_client()
    with client.session_transaction() as saved:
        saved["user"] = "ada"
    response = client.get("/ada")
    assert response.get_json() == {
        "seen": [{"name": "ada"}, "ada", {"user": "ada"}, "acme"],
        "written": [False] * 3,
    }
    assert "Set-Cookie" not in response.headers


def test_the_url_is_neither_converted_nor_matched_nor_preprocessed_again(
    app: Flask, pool: ThreadPoolExecutor
) -> None:
    converted: list[str] = []
    preprocessed: list[str | None] = []

    class Item(BaseConverter):
        def to_python(self, value: str) -> str:
            converted.append(value)
            return value

    app.url_map.converters["item"] = Item

    @app.url_value_preprocessor
    def pull_language(endpoint: str | None, values: dict[str, Any] | None) -> None:
        preprocessed.append(endpoint)
        g.language = values and values.pop("language")

    @app.route("/<language>/<item:item>")
    def view(item: str) -> dict[str, Any]:
        @carry_context
        def look(_: int) -> tuple[Any, ...]:
            return request.view_args, request.endpoint, g.language

        return {"seen": list(pool.map(look, range(3)))}

    seen = app.test_client().get("/en/tea").get_json()["seen"]
    assert seen == [[{"item": "tea"}, "view", "en"]] * 3
    assert (converted, preprocessed) == (["tea"], ["view"])


def test_an_exception_that_the_caller_is_handling_is_not_the_tasks(
    app: Flask, tearing: Tearing
) -> None:
    with app.test_request_context():
        try:
            raise LookupError("of the caller")
        except LookupError:
            carry_context(int)()
        assert [error for _, _, error in tearing] == [None, None]


@pytest.mark.parametrize("fails", [False, True])
def test_a_context_preserved_for_a_debugger_or_a_test_is_left_alone(
    app: Flask, tearing: Tearing, fails: bool
) -> None:
    app.debug = fails
    carried: list[Callable[[], str]] = []

    @app.route("/")
    def view() -> str:
        g.db = "view's"
        carried.append(carry_context(lambda: f"{request.path} {g.pop('db')}"))
        if fails:
            raise LookupError
        return ""

    with app.test_client() as client:
        with contextlib.suppress(LookupError):
            client.get("/")
        before = [end for end in tearing if end[1]]
        assert in_thread(carried[0]) == "/ view's"
        assert [end for end in tearing if end[1]] == before


def test_a_task_can_carry_its_own_context_on(app: Flask) -> None:
    def outer() -> list[str]:
        g.steps = [*g.steps, "outer"]
        return carry_context(inner)()

    def inner() -> list[str]:
        return [*g.steps, "inner", request.path]

    with app.test_request_context():
        g.steps = ["view"]
        seen = in_thread(carry_context(outer))
        assert (seen, g.steps) == (["view", "outer", "inner", "/"], ["view"])


def test_signals_and_teardown_functions_get_the_tasks_error_and_meet_no_view(
    app: Flask,
) -> None:
    error = LookupError("task")
    met: dict[str, list[object]] = {}

    def meet(
        moment: str, given: object = None, exc: object = None, **_: object
    ) -> None:
        met[moment] = [(exc or given) is error]
        if flask.has_app_context():
            met[moment].append(g.get("own"))
        if flask.has_request_context():
            met[moment] += [request.path, session["user"]]

    def work() -> None:
        session["user"] = g.own = "task's"
        raise error

    with app.test_request_context():
        session["user"] = "view's"
        carried = carry_context(work)
        g.own = "view's, later"
        app.teardown_request(partial(meet, "teardown_request"))
        app.teardown_appcontext(partial(meet, "teardown_appcontext"))
        with receiving(app, meet):
            for call in carried, partial(in_thread, carried):
                met.clear()
                assert error_of(call) is error
                seen = [*met.items()]
                in_app = full = [True, "task's", "/", "task's"]
                pushed = [False, None, "/", "view's"]
                if FLASK < (3, 2):
                    in_app, pushed = full[:2], pushed[:2]
                assert seen == [
                    ("appcontext_pushed", pushed),
                    ("teardown_request", full),
                    ("request_tearing_down", full),
                    ("teardown_appcontext", in_app),
                    ("appcontext_tearing_down", in_app),
                    ("appcontext_popped", [False]),
                ]


@pytest.mark.parametrize("error", [LookupError("receiver"), SystemExit(3)])
@pytest.mark.parametrize("request_is_active", [False, True])
def test_a_receiver_of_the_push_that_raises_leaves_nothing_behind(
    app: Flask, tearing: Tearing, request_is_active: bool, error: BaseException
) -> None:
    alive: list[weakref.ref[Thing]] = []

    def receive(_: Flask, **__: Any) -> None:
        g.own = Thing()
        alive.append(weakref.ref(g.own))
        raise error

    def thread() -> None:
        before = state()
        assert error_of(carried) is error
        assert state() == before

    with app.test_request_context() if request_is_active else app.app_context():
        g.data = "view's"
        carried = carry_context(int)
        tearing.clear()
        with flask.appcontext_pushed.connected_to(receive, app):
            in_thread(thread)
        at, found, given = tearing[-1]
        assert (at, [*found], given) == ("app", ["own"], error)
        tearing.clear()
        del found
        error.__traceback__ = None
        assert alive[0]() is None


def test_a_task_builds_the_urls_of_the_view(app: Flask) -> None:
    blueprint = flask.Blueprint("shop", __name__, url_prefix="/shop")

    def urls() -> list[str]:
        return [
            url_for("shop.item", id=1),
            url_for("shop.item", id=2, _anchor="a b"),
            url_for("shop.item", id=3, _external=True),
            url_for("shop.item", id=4, _external=True, _scheme="https"),
            url_for(".item" if request.blueprint else "shop.item", id=5, q="x"),
        ]

    def view(id: int = 0) -> dict[str, Any]:
        return {"view": urls(), "task": in_thread(carry_context(urls))}

    blueprint.add_url_rule("/<int:id>", "item", view)
    app.register_blueprint(blueprint)
    app.register_error_handler(404, lambda _: {**view(), "status": 404})
    client = app.test_client()
    for path in "/shop/1", "/missing":
        seen = client.get(path, base_url="http://a.example:8080/root").get_json()
        assert seen["task"] == seen["view"]
        assert seen["task"][3] == "https://a.example:8080/root/shop/4"


@pytest.mark.skipif(FLASK < (3, 1), reason="Flask 3.1 has trusted hosts")
def test_a_request_to_a_host_that_is_not_trusted_is_carried(app: Flask) -> None:
    app.config["TRUSTED_HOSTS"] = ["a.example"]
    app.register_error_handler(
        400, lambda _: {"task": in_thread(carry_context(lambda: request.path))}
    )
    response = app.test_client().get("/x", base_url="http://b.example")
    assert response.get_json() == {"task": "/x"}


class Adapter(MapAdapter):
    """Is not copied in the way of Flask's own."""

    def __copy__(self) -> "Adapter":
        copied = Adapter.__new__(Adapter)
        vars(copied).update(vars(self))
        return copied


def test_the_url_adapter_is_a_copy_of_the_views_and_never_bound_again() -> None:
    bound: list[object] = []

    class Shop(Flask):
        def create_url_adapter(self, request: Any) -> Any:
            adapter: Any = super().create_url_adapter(request)
            if request is not None:
                bound.append(request)
                if request.args.get("own"):
                    adapter.__class__ = Adapter
            return adapter

    def view() -> dict[str, Any]:
        adapter = active("request").url_adapter
        adapter.script_name = "/view/"

        @carry_context
        def work() -> list[Any]:
            own = active("request").url_adapter
            seen = [url_for("view"), url_for("view"), type(own).__name__]
            own.script_name = "/task/"
            return [own is adapter, *seen, url_for("view")]

        adapter.script_name = "/later/"
        return {"seen": [in_thread(work), work()], "view": url_for("view")}

    for path, name in ("/", "MapAdapter"), ("/?own=1", "Adapter"):
        bound.clear()
        task = [False, "/view/", "/view/", name, "/task/"]
        expected = {"seen": [task, task], "view": "/later/"}
        assert run(Shop("shop"), view, path) == expected
        assert len(bound) == 1


@pytest.mark.parametrize("at", ["teardown_request", "teardown_appcontext"])
@pytest.mark.parametrize("task_error", [None, LookupError("task"), SystemExit(3)])
def test_a_teardown_function_that_fails_does_not_hide_the_tasks_error(
    app: Flask,
    caplog: pytest.LogCaptureFixture,
    at: str,
    task_error: BaseException | None,
) -> None:
    ended: list[BaseException | None] = []

    def work() -> None:
        g.armed = True
        if task_error:
            raise task_error

    def read_unguarded(_: BaseException | None) -> None:
        assert "armed" not in g or g.start

    def thread() -> Any:
        before = state()
        error = error_of(carried)
        assert state() == before
        return error

    app.teardown_appcontext(ended.append)
    getattr(app, at)(read_unguarded)
    with app.test_request_context():
        carried = carry_context(work)
        raised = in_thread(thread)
        assert ended or at == "teardown_appcontext"
    if task_error is None:
        assert isinstance(raised, AttributeError) and not caplog.records
    else:
        assert raised is task_error and raised.__context__ is None
        (record,) = caplog.records
        assert record.exc_info and record.name == app.logger.name
        assert isinstance(innermost(record.exc_info[1]), AttributeError)


def test_what_is_no_exception_goes_to_the_caller_from_a_teardown_function(
    app: Flask, caplog: pytest.LogCaptureFixture
) -> None:
    exits, error = SystemExit(3), LookupError("task")

    @app.teardown_appcontext
    def leave(_: BaseException | None) -> None:
        if "armed" in g:
            raise exits

    def fail() -> None:
        g.armed = True
        raise error

    with app.test_request_context():
        raised = error_of(lambda: in_thread(carry_context(fail)))
    assert raised is exits and not caplog.records
    while raised.__context__ is not None:
        raised = raised.__context__
    assert raised is error


def test_a_context_class_of_the_app_is_made_with_the_real_app() -> None:
    base: Any = type(Flask("x").test_request_context())
    tenants: dict[Flask, str] = {}

    class Context(base):  # type: ignore[misc]
        def __init__(self, app: Any, *args: Any, **kwargs: Any) -> None:
            self.seen = [app.name, app.config["KEY"], app.debug, tenants[app]]
            base.__init__(self, app, *args, **kwargs)

    class Shop(Flask):
        def request_context(self, environ: Any) -> Any:
            make: Any = Context.from_environ if FLASK >= (3, 2) else Context
            return make(self, environ)

    app = Shop("shop")
    app.config["KEY"], tenants[app] = "value", "acme"
    app.add_url_rule("/<name>", "view")
    with app.test_request_context("/x"):
        active("request").url_adapter.script_name = "/root/"
        carried = carry_context(lambda: [active("request"), url_for("view", name="y")])
    context, url = in_thread(carried)
    assert (context.app, context.seen) == (app, ["shop", "value", False, "acme"])
    assert url == "/root/y"


def test_what_traces_the_making_of_contexts_meets_the_real_app(
    app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    base: Any = type(app.test_request_context())
    init, seen = base.__init__, list[object]()

    def traced(self: Any, app: Any, *args: Any, **kwargs: Any) -> None:
        seen.append([app.name, app.config["KEY"], app.logger])
        init(self, app, *args, **kwargs)

    app.config["KEY"] = "value"
    monkeypatch.setattr(base, "__init__", traced)
    with app.test_request_context():
        in_thread(carry_context(int))
    assert seen == [["shop", "value", app.logger]] * 2


# 4. Who owns what in g


class AsyncClosable:
    async def __aexit__(self, *_: object) -> None:
        """End."""

    async def aclose(self) -> None:
        """Close."""


class Account(Registry):
    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"It was asked for {name}.")


def named(name: type[object], *bases: type) -> Any:
    """Make an object that answers this, or raises it, when asked for its class."""

    def get(_: object) -> type[object]:
        if issubclass(name, BaseException):
            raise name
        return name

    return type("Named", bases, {"__class__": property(get)})()


def test_open_resources_stay_with_the_view(app: Flask) -> None:
    woken: list[str] = []
    proxy = LocalProxy(lambda: woken.append("woken"))
    cycle: dict[str, Any] = {"client": Connection()}
    cycle["self"] = cycle
    manager = type("Manager", (), {"__exit__": print})
    resources: dict[str, Any] = {
        "db": sqlite3.connect(":memory:"),
        "file": io.BytesIO(),
        "client": Connection(),
        "async_client": AsyncClosable(),
        # Wraps as instrumentations do: it cannot be closed, or so it seems.
        "traced": named(type(Connection()), manager),
        "hidden": named(object, Connection),
        "mock": unittest.mock.Mock(spec=Connection),
        "sessions": {"default": Connection(), "name": "x"},
        "cycle": cycle,
    }
    data: dict[str, Any] = {
        "user": "ada",
        "account": Account(),
        "upload": FileStorage(io.BytesIO()),
        "lock": threading.Lock(),
        "path": Path(),
        "class": Connection,
        "proxy": proxy,
        "plain_mock": unittest.mock.Mock(),
        "unnamed": named(ReferenceError),
        "broken": named(LookupError),
        "unhashable": type("Meta", (type,), {"__eq__": operator.is_})(
            "Class", (), {}
        )(),
        "gone": weakref.proxy(Thing()),
        "list": [1],
        "empty": {},
        "dict": {"a": {"b": 1}, "proxy": proxy},
        "own_dict": type("Own", (dict,), {"values": awake})(),
        "none": None,
    }
    with app.test_request_context(), contextlib.closing(resources["db"]):
        vars(g).update({**data, **resources})
        seen = in_thread(carry_context(lambda: dict(vars(g))))
        assert seen.keys() == data.keys() and not woken
        assert all(seen[name] is data[name] for name in data)
        assert vars(g).keys() == data.keys() | resources.keys()


def test_the_get_db_of_flasks_tutorial_opens_one_for_each_task(
    app: Flask, pool: ThreadPoolExecutor, closing: None
) -> None:
    def get_db(_: object = None) -> Connection:
        if "db" not in g:
            g.db = Connection()
        db: Connection = g.db
        return db

    with app.test_request_context():
        tasks = [*pool.map(carry_context(get_db), range(3))]
        own, again = get_db(), carry_context(get_db)()
        assert len({own, again, *tasks}) == 5
        assert [db.closed for db in [*tasks, again, own]] == [1, 1, 1, 1, 0]


def test_asking_g_for_what_stayed_with_the_view_says_so(app: Flask) -> None:
    def notes(func: Callable[[], Any]) -> list[str]:
        error = error_of(lambda: in_thread(carry_context(func)))
        assert isinstance(error, AttributeError)
        return [note[:24] for note in getattr(error, "__notes__", [])]

    get_db = operator.attrgetter("db")
    with app.test_request_context():
        g.db, g.data = Connection(), Thing
        expected: list[str] = []
        if sys.version_info >= (3, 11) and NAMES_ITS_OBJECT:
            expected = ["g.db stays with the view"]
        assert notes(lambda: g.db) == expected
        assert notes(carry_context(lambda: g.db)) == expected
        for other in [lambda: g.missing, lambda: get_db(Thing()), lambda: g.data.db]:
            assert notes(other) == []


@pytest.mark.parametrize("name", ["db", "other"])
def test_what_stayed_with_the_view_and_is_passed_is_borrowed(
    app: Flask, tearing: Tearing, name: str
) -> None:
    def work(passed: object) -> None:
        setattr(g, name, passed)
        g.own = "task's"

    with app.test_request_context():
        g.db, g.sessions = Connection(), {"default": Connection(), "name": "x"}
        carried = carry_context(work)
        tearing.clear()
        for passed in g.db, g.sessions, g.sessions["default"]:
            in_thread(partial(carried, passed))
        in_thread(partial(carried, g.sessions["name"]))
        found = [values for _, values, _ in tearing]
    assert found[:6] == [{"own": "task's"}] * 6
    assert found[6:] == [{"own": "task's", name: "x"}] * 2


@pytest.mark.parametrize("logged_in", [False, True])
def test_what_extensions_make_again_is_not_carried(app: Flask, logged_in: bool) -> None:
    babel = {"locale": "de"}
    with app.test_request_context():
        g._login_user, g._flask_babel, g._other = "ada", babel, 1
        if logged_in:
            session["_user_id"] = "1"
        names = in_thread(carry_context(lambda: [*vars(g)]))
        g._login_user = None  # Else whatever a task sets to None would be the view's.
        with_none = in_thread(carry_context(lambda: [*vars(g)]))
    assert names == (["_other"] if logged_in else ["_login_user", "_other"])
    assert with_none == ["_login_user", "_other"]
    with app.app_context():
        g._login_user = "ada"
        assert in_thread(carry_context(lambda: g._login_user)) == "ada"


def test_what_a_fresh_g_begins_with_is_there_for_teardown_functions(
    app: Flask,
) -> None:
    base: Any = app.app_ctx_globals_class
    found: list[tuple[object, object]] = []

    class Globals(base):  # type: ignore[misc]
        def __init__(self) -> None:
            self.registry, self.count = ["default"], 0

    def read(_: object) -> None:
        found.append((g.registry, g.count))

    def work(change: str) -> None:
        assert (g.registry, g.count) == (["view's"], 1)
        if change == "set":
            g.registry, g.count = ["task's"], 2
        elif change == "pop":
            g.pop("registry")

    app.app_ctx_globals_class = Globals
    app.teardown_appcontext(read)
    with app.test_request_context():
        g.registry, g.count = ["view's"], 1
        carried = carry_context(work)
        for change in "nothing", "set", "pop":
            in_thread(partial(carried, change))
        assert found == [(["default"], 0), (["task's"], 2), (["default"], 0)]


def test_a_receiver_of_the_push_may_change_what_is_carried(
    app: Flask, tearing: Tearing
) -> None:
    registry, other = ["registry"], ["other"]

    def receive(_: Flask, **__: Any) -> None:
        assert [g.pop("registry"), g.pop("nothing")] == [registry, None]
        g.other, g.account, g.db = ["receiver's"], f"merged {g.account}", None

    def work() -> list[Any]:
        seen = [g.get("registry"), g.other, g.account, g.kept]
        g.registry, g.other, g.nothing = registry, other, None
        return seen

    with app.test_request_context():
        g.registry, g.other, g.account, g.kept = registry, other, "account", "kept"
        g.nothing = None
        carried = carry_context(work)
        tearing.clear()
        with flask.appcontext_pushed.connected_to(receive, app):
            seen = in_thread(carried)
    assert seen == [None, ["receiver's"], "merged account", "kept"]
    found: dict[str, Any] = {"registry": registry, "other": other}
    found |= {"account": "merged account", "db": None, "nothing": None}
    assert [values for _, values, _ in tearing[:2]] == [found, found]


class Equal(Registry):
    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]


@pytest.mark.parametrize("fails", [False, True])
def test_at_a_tasks_end_what_was_carried_is_not_in_g_and_what_it_added_is(
    app: Flask, tearing: Tearing, fails: bool
) -> None:
    equal, nothing = Equal(), None

    def work() -> None:
        assert g.equal is not equal
        del g.removed
        g.replaced, g.added, g.equal, g.nothing = "new", None, equal, nothing
        if fails:
            raise LookupError

    with app.test_request_context():
        g.db, g.nothing, g.removed, g.replaced = "db", nothing, "removed", "old"
        g.equal = Equal()
        error = error_of(lambda: in_thread(carry_context(work)))
        assert isinstance(error, LookupError) == fails
    ((_, first, _), (_, second, _)) = tearing[:2]
    assert first == second == {"replaced": "new", "added": None, "equal": equal}
    assert first["equal"] is second["equal"] is equal


def test_a_g_without_attributes_is_let_be(app: Flask) -> None:
    class Slots:
        __slots__ = ("user",)

    slots: Any = Slots
    app.app_ctx_globals_class = slots
    with app.test_request_context("/x"):
        g.user = "ada"
        assert in_thread(carry_context(lambda: request.path)) == "/x"


# 5. The request body and uploads

JSON = {"data": b'{"a": "1"}', "content_type": "application/json"}
FORM = {"data": {"a": "1"}}
UPLOAD = {"data": {"a": "1", "file": (io.BytesIO(b"content"), "a.txt")}}
CHUNKED: dict[str, Any] = {"input_stream": io.BytesIO(b"a")}
CHUNKED["headers"] = {"Transfer-Encoding": "chunked"}

Post = Callable[..., Any]
Read = Callable[[], Any]


@pytest.fixture
def post(app: Flask, pool: ThreadPoolExecutor) -> Post:
    """Post to a view that reads, and starts a task that reads after the response."""
    answered = threading.Event()
    tasks: list[Future[Any]] = []

    def post(before: Read, task: Read, after: Read = lambda: b"", **sent: Any) -> Any:
        @app.route("/", methods=["GET", "POST"])
        def view() -> Any:
            before()
            carried = carry_context(task)

            def late() -> Any:
                assert answered.wait(TIMEOUT)
                return carried()

            tasks.append(pool.submit(late))
            return after()

        arguments: Any = {"method": "POST", **copy.deepcopy(sent)}
        response = app.test_client().open("/", **arguments)
        answered.set()
        return response.data, tasks[0].exception(TIMEOUT) or tasks[0].result(0)

    return post


@pytest.mark.parametrize(
    ("before", "body", "task", "expected"),
    [
        (lambda: request.get_json(), JSON, lambda: request.get_json(), {"a": "1"}),
        (lambda: request.get_json(), JSON, lambda: request.data, b'{"a": "1"}'),
        (lambda: request.get_data(), JSON, lambda: request.get_json(), {"a": "1"}),
        (lambda: request.data, JSON, lambda: request.get_json(), {"a": "1"}),
        (lambda: request.get_data(), FORM, lambda: request.form["a"], "1"),
        (lambda: request.form, FORM, lambda: request.form["a"], "1"),
        (lambda: request.form, FORM, lambda: request.values["a"], "1"),
        (lambda: request.form, FORM, lambda: request.data, b""),
        (lambda: request.form, FORM, lambda: request.get_data(), b""),
        (lambda: request.form, FORM, lambda: request.stream.read(), b""),
        (lambda: request.files, UPLOAD, lambda: request.form["a"], "1"),
        (lambda: request.files, UPLOAD, lambda: request.data, b""),
        (lambda: request.files, UPLOAD, lambda: [*request.files], ["file"]),
    ],
)
def test_what_the_view_has_read_can_be_read_after_the_response(
    post: Post, before: Read, body: dict[str, Any], task: Read, expected: Any
) -> None:
    assert post(before, task, **body) == (b"", expected)


ANY = [
    lambda: request.get_data(),
    lambda: request.data,
    lambda: request.get_json(force=True, silent=True),
    lambda: request.stream.read(),
    lambda: request.stream.read(1),
    lambda: next(request.stream),
    lambda: request.stream.readline(),
    lambda: io.TextIOWrapper(request.stream).read(),
    lambda: request.environ["wsgi.input"].read(),
]
PARSED = [lambda: request.form, lambda: request.values, lambda: request.files]


@pytest.mark.parametrize("terminated", [False, True])
@pytest.mark.parametrize(
    ("content", "task"),
    [(content, task) for content in (JSON, CHUNKED) for task in ANY]
    + [(content, task) for content in (FORM, UPLOAD) for task in ANY + PARSED],
)
def test_what_the_view_has_not_read_stays_the_servers(
    post: Post, content: dict[str, Any], terminated: bool, task: Read
) -> None:
    overrides: dict[str, Any] = {"wsgi.input_terminated": terminated}
    if content is CHUNKED:
        overrides["CONTENT_LENGTH"] = ""
    _, error = post(lambda: None, task, environ_overrides=overrides, **content)
    assert isinstance(error, RuntimeError)
    assert "carry_context" in str(error) and "in the view first" in str(error)


@pytest.mark.parametrize(
    "touch", [lambda: None, lambda: request.form, lambda: request.stream]
)
@pytest.mark.parametrize(
    "after", [lambda: request.get_data(), lambda: request.stream.read()]
)
def test_the_view_reads_after_the_task_has_tried_to(
    app: Flask, touch: Read, after: Read
) -> None:
    with app.test_request_context(method="POST", **JSON):
        touch()
        reads: list[Read] = [lambda: request.data, lambda: request.stream.read()]
        for read in reads:
            error = error_of(partial(in_thread, carry_context(read)))
            assert isinstance(error, RuntimeError)
        assert after() == JSON["data"]


@pytest.mark.parametrize("terminated", [False, True])
@pytest.mark.parametrize(
    "sent",
    [
        {"method": "GET"},
        {"content_length": 0},
        *({"environ_overrides": {"CONTENT_LENGTH": n}} for n in ("00", "-1", "many")),
        {"content_length": 0, "content_type": "application/x-www-form-urlencoded"},
    ],
)
def test_a_request_without_a_body_has_none_in_the_task(
    post: Post, sent: dict[str, Any], terminated: bool
) -> None:
    class Socket(io.BytesIO):
        """A keep-alive connection: reading it would wait for the next request."""

        def read(self, size: int | None = -1, /) -> bytes:
            raise AssertionError("The task read from the server.")

    def read() -> list[Any]:
        parsed = [dict(request.form), dict(request.files), dict(request.values)]
        json = request.get_json(force=True, silent=True)
        body = [request.stream.read(), request.environ["wsgi.input"].read()]
        return [*parsed, json, request.data, *body]

    environ = {"wsgi.input": Socket(), "wsgi.input_terminated": terminated}
    environ |= sent.get("environ_overrides", {})
    _, seen = post(lambda: None, read, **{**sent, "environ_overrides": environ})
    assert seen == [{}, {}, {}, None, b"", b"", b""]


def test_a_length_may_have_spaces_or_be_no_text(app: Flask) -> None:
    for length in " 17 ", 17:
        environ = {"CONTENT_LENGTH": length}
        with app.test_request_context("/x", environ_overrides=environ):
            carried = carry_context(lambda: [request.path, request.stream.read()])
            error = error_of(partial(in_thread, carried))
        assert isinstance(error, RuntimeError) and "carry_context" in str(error)


def test_a_body_that_was_read_in_part_stays_the_servers(post: Post) -> None:
    def rest() -> bytes:
        return request.stream.read()

    data, error = post(lambda: request.stream.read(3), rest, rest, **JSON)
    assert data == JSON["data"][3:] and isinstance(error, RuntimeError)
    assert "had not read" not in str(error) and "all of it in the view" in str(error)


def test_a_task_that_closes_its_empty_body_closes_no_other_tasks(app: Flask) -> None:
    def read() -> bytes:
        with request.stream as stream:
            return stream.read()

    with app.test_request_context():
        carried = carry_context(read)
        assert carried() == carried() == b""


def test_the_uploads_of_the_view_stay_open(app: Flask) -> None:
    def work() -> str | None:
        with request:
            return request.files["file"].filename

    with app.test_request_context(method="POST", **copy.deepcopy(UPLOAD)):
        files = request.files
        carried = carry_context(work)
        assert in_thread(carried) == carried() == "a.txt"
        assert files["file"].read() == b"content"


# 6. Coroutine functions


async def look() -> tuple[Any, ...]:
    await asyncio.sleep(0)
    return request.path, g.user, TENANT.get()


class Async:
    async def __call__(self) -> tuple[Any, ...]:
        return await look()

    async def method(self) -> tuple[Any, ...]:
        return await look()


class Bound(Async):
    """Looks like a function to whoever asks for its __get__ alone."""

    def __get__(self, instance: object, owner: object = None) -> "Bound":
        return self


class LikeFunction:
    __code__ = (lambda: None).__code__

    def __call__(self) -> Coroutine[Any, Any, Any]:
        return look()


# Python 3.12 can mark what returns a coroutine.
mark: Any = getattr(inspect, "markcoroutinefunction", None)
MARKED = [mark(lambda: look()), mark(LikeFunction)()] if mark else []


@pytest.mark.parametrize(
    "func",
    [look, partial(look), Async(), Async().method, partial(Async()), Bound(), *MARKED],
)
def test_a_coroutine_function_stays_one_and_runs_on_any_loop(
    app: Flask, pool: ThreadPoolExecutor, func: Callable[[], Coroutine[Any, Any, Any]]
) -> None:
    loop = asyncio.new_event_loop()
    elsewhere = pool.submit(loop.run_forever)
    with app.test_request_context("/x"), contextlib.ExitStack() as stack:
        stack.callback(elsewhere.result, TIMEOUT)
        stack.callback(loop.call_soon_threadsafe, loop.stop)
        g.user = "ada"
        carried = carry_context(func)
        future = asyncio.run_coroutine_threadsafe(carried(), loop)
        assert future.result(TIMEOUT) == ("/x", "ada", "none")
        ran = pool.submit(carry_context(asyncio.run), func())
        assert ran.result(TIMEOUT) == ("/x", "ada", "none")
    loop.close()
    assert inspect.iscoroutinefunction(carried)
    assert asyncio.run(carried()) == ("/x", "ada", "none")


def test_a_class_whose_objects_are_async_is_called_like_any_class(app: Flask) -> None:
    with app.app_context():
        carried = carry_context(Async)
    assert not inspect.iscoroutinefunction(carried)
    assert isinstance(carried(), Async)


def test_gathered_calls_run_each_step_in_a_context_of_their_own(app: Flask) -> None:
    async def work(number: int) -> list[tuple[Any, ...]]:
        seen: list[tuple[Any, ...]] = []
        for _ in range(3):
            await asyncio.sleep(0)
            g.n, session["n"] = g.n + number, session["n"] + number
            TENANT.set(TENANT.get() + str(number))
            seen.append((g.n, session["n"], TENANT.get()))
        return seen

    async def main() -> tuple[Any, ...]:
        seen = await asyncio.gather(*map(carry_context(work), (1, 2)))
        return *seen, TENANT.get(), g.n

    with app.test_request_context():
        session["n"] = g.n = 0
        assert asyncio.run(main()) == (
            [(1, 1, "none1"), (2, 2, "none11"), (3, 3, "none111")],
            [(2, 2, "none2"), (4, 4, "none22"), (6, 6, "none222")],
            *("none", 0),
        )


def test_cancelling_reaches_the_body_and_the_teardown_functions(
    app: Flask, tearing: Tearing
) -> None:
    seen: list[str] = []

    async def work(started: asyncio.Event) -> None:
        try:
            started.set()
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0)
            seen.append(request.path)
            raise

    async def main() -> None:
        started = asyncio.Event()
        task = asyncio.ensure_future(carried(started))
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled()

    with app.test_request_context("/x"):
        carried = carry_context(work)
    tearing.clear()
    asyncio.run(main())
    assert seen == ["/x"]
    assert [type(error) for _, _, error in tearing] == [asyncio.CancelledError] * 2


@pytest.mark.parametrize(
    "error", [LookupError("x"), SystemExit(3), StopAsyncIteration()]
)
def test_the_awaiting_code_catches_the_same_exception(
    app: Flask, tearing: Tearing, error: BaseException
) -> None:
    async def work() -> None:
        await asyncio.sleep(0)
        raise error

    async def main() -> None:
        with pytest.raises(type(error)) as raised:
            await carried()
        assert raised.value is error

    with app.test_request_context():
        carried = carry_context(work)
    tearing.clear()
    asyncio.run(main())
    assert [error for _, _, error in tearing] == [error, error]


@types.coroutine
def step(value: str) -> Generator[str, str, str]:
    return (yield value)


async def steps() -> str:
    return await step(request.path) + await step("second")


def test_whatever_drives_the_coroutine_is_as_good_as_asyncio(
    app: Flask, tearing: Tearing
) -> None:
    with app.test_request_context("/x"):
        coroutine, closed = carry_context(steps)(), carry_context(steps)()
    tearing.clear()
    before = state()
    assert coroutine.send(None) == "/x"
    assert state() == before
    assert coroutine.send("a") == "second"
    with pytest.raises(StopIteration) as stop:
        coroutine.send("b")
    assert stop.value.value == "ab"
    closed.send(None)
    closed.close()
    assert [type(error) for _, _, error in tearing[2:]] == [GeneratorExit] * 2


def undecorated(func: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator that is not async, as most are."""
    return functools.wraps(func)(lambda *args: func(*args))


@pytest.mark.parametrize("func", [undecorated(look), lambda: look()])
def test_a_function_that_returns_a_coroutine_is_refused_in_the_call(
    app: Flask, tearing: Tearing, func: Callable[[], Any]
) -> None:
    with app.test_request_context():
        error = error_of(lambda: in_thread(carry_context(func)))
        assert isinstance(error, TypeError)
        assert "Await carry_context(look)()" in str(error)
        assert [given for _, _, given in tearing] == [error, error]


def test_other_results_that_can_be_awaited_are_returned_as_they_are(app: Flask) -> None:
    async def main() -> None:
        started: Any = steps()
        later = asyncio.get_running_loop().create_future()
        task = asyncio.ensure_future(asyncio.sleep(0))
        results: list[Any] = [started, later, task, Future(), LocalProxy(awake)]
        results += [(number for number in "12"), Async().__call__]
        with app.test_request_context():
            started.send(None)
            for result in results:
                assert carry_context([result].pop)() is result
        started.close()
        await task

    asyncio.run(main())


# 7. Errors, at once and clear


def test_without_a_context_there_is_nothing_to_carry() -> None:
    with pytest.raises(RuntimeError, match="no active Flask context.*inside the view"):
        carry_context(print)


MODULE = """
from __future__ import annotations  # A flag of the code, as is the kind of a function.
import functools
from ctxcarry import carry_context

def work():
    pass

class Work:
    def method(self): pass
    def __call__(self): pass

job = {}
"""
PUSHED = """
import flask, ctxcarry
with flask.Flask('x').test_request_context():
    ctxcarry.carry_context(print)
"""
SERVED = """
import threading
from flask import Flask, request, stream_with_context
from ctxcarry import carry_context

app = Flask(__name__)

@app.route("/stream")
def stream():
    def generate():
        yield carry_context(lambda: request.path)()
    return app.response_class(stream_with_context(generate()))

@app.route("/")
def view():
    seen = []
    thread = threading.Thread(target=carry_context(lambda: seen.append(request.path)))
    thread.start()
    thread.join()
    return seen[0]

answers = []

def ask():
    answers.append(app.test_client().get("/").data)

ask()
answers.append(app.test_client().get("/stream").data)
thread = threading.Thread(target=ask)
thread.start()
thread.join()
"""

Import = Callable[[str], types.ModuleType]


@pytest.fixture
def lazy_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Import]:
    """Import a module of the given text."""
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])

    def lazy_import(text: str) -> types.ModuleType:
        sys.modules.pop("lazy_jobs", None)
        (tmp_path / "lazy_jobs.py").write_text(text)
        importlib.invalidate_caches()
        return importlib.import_module("lazy_jobs")

    yield lazy_import
    sys.modules.pop("lazy_jobs", None)


@pytest.mark.parametrize(
    "given",
    [
        "carry_context(work)",
        "carry_context(functools.partial(Work()))",
        "carry_context(Work().method)",
        "carry_context(print)",
        "[*map(carry_context, [print])]",
        "functools.reduce(lambda func, carry: carry(func), [carry_context], print)",
        "type('Jobs', (), {'job': carry_context(print)})",
        "functools.cached_property(lambda _: carry_context(print)).func(None)",
    ],
)
def test_a_module_that_a_request_imports_cannot_carry_that_request(
    app: Flask, lazy_import: Import, given: str
) -> None:
    def view() -> dict[str, str]:
        return {"error": str(error_of(lambda: lazy_import(MODULE.format(given))))}

    refused = "import.*'lazy_jobs'.*inside the view"
    assert re.search(refused, run(app, view)["error"])
    assert re.search(refused, str(error_of(lambda: lazy_import(PUSHED))))


def test_a_module_may_carry_an_app_context_at_import_and_be_carried_later(
    app: Flask, lazy_import: Import
) -> None:
    with app.app_context():
        job = "carry_context(lambda: __import__('flask').current_app.name)"
        module = lazy_import(MODULE.format(job))
    assert in_thread(module.job) == "shop"
    with app.test_request_context():
        assert in_thread(carry_context(module.work)) is None


def test_an_app_may_serve_while_its_module_is_being_imported(
    app: Flask, lazy_import: Import
) -> None:
    def view() -> dict[str, str]:
        return {"answers": str(lazy_import(SERVED).answers)}

    answers = [b"/", b"/stream", b"/"]
    assert lazy_import(SERVED).answers == answers
    assert run(app, view) == {"answers": str(answers)}


def test_what_cannot_be_called_is_told_what_it_is(app: Flask) -> None:
    no_functions: list[Any] = [3, classmethod(in_thread), threading.Thread()]
    for given in no_functions:
        refused = f"not {type(given).__name__!r}.*not its result"
        with app.app_context(), pytest.raises(TypeError, match=refused):
            carry_context(given)


class Generators:
    def method(self) -> Iterator[int]:
        yield 1

    __call__ = method


async def async_generator() -> AsyncIterator[int]:
    yield 1


def test_a_generator_function_is_refused(app: Flask) -> None:
    functions: list[Any] = [Generators().method, Generators(), async_generator]
    refused = "generator function.*Wrap the function"
    for func in functions + [*map(partial, functions)]:
        with app.app_context(), pytest.raises(TypeError, match=refused):
            carry_context(func)


def test_the_result_cannot_be_pickled_nor_sent_to_a_process_pool(app: Flask) -> None:
    functions: list[Any] = [look, Reader, Reader.method, len, partial(look)]
    with app.app_context():
        carried = [*map(carry_context, functions)]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as processes:
        errors = [processes.submit(carried[2]).exception(TIMEOUT)]
    errors += [error_of(partial(pickle.dumps, each)) for each in carried]
    for error in errors:
        assert isinstance(error, (pickle.PicklingError, AttributeError))


# 8. Where it runs


def test_only_documented_names_are_used() -> None:
    text = Path(ctxcarry.__file__).read_text()
    nodes = [*ast.walk(ast.parse(text))]
    used = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    own = {
        node.name for node in nodes if isinstance(node, (ast.ClassDef, ast.FunctionDef))
    }
    for node in nodes:
        if isinstance(node, ast.Name):
            (own if isinstance(node.ctx, ast.Store) else used).add(node.id)
        elif isinstance(node, ast.Constant) and str(node.value).isidentifier():
            used.add(str(node.value))
    stacks = {"_app_ctx_stack", "_request_ctx_stack"}  # Up to Flask 2.1.
    of_extensions = {"_flask_babel", "_login_user", "_user_id"}
    others = {"_get_current_object", "_initializing"}
    private = {name for name in used if re.match("_[^_]", name)}
    assert private - own == stacks | of_extensions | others
    assert "type: ignore" not in text


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("is_async", [False, True])
def test_memory_goes_without_the_garbage_collector(
    app: Flask, pool: ThreadPoolExecutor, fails: bool, is_async: bool
) -> None:
    alive: list[weakref.ref[Any]] = []

    def work() -> None:
        g.own = Thing()
        for each in g.own, *map(unproxied, (request, g, session)):
            alive.append(weakref.ref(each))
        if fails:
            raise LookupError

    async def work_async() -> None:
        try:
            await asyncio.wait_for(asyncio.Event().wait(), 0)
        except asyncio.TimeoutError:
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
            pool.submit(asyncio.run, main(carry_context(work_async)())).result()
        else:
            error = pool.submit(carry_context(work)).exception()
            assert isinstance(error, LookupError) == fails
        return {}

    with without_gc():
        run(app, view)
        assert pool.submit(int).result() == 0  # The worker has let go of the task.
        assert [ref() for ref in alive] == [None] * 5


def test_an_exception_thrown_into_a_coroutine_is_in_no_cycle(app: Flask) -> None:
    class Thrown(Exception):
        pass

    def throw() -> weakref.ref[Thrown]:
        coroutine = carried()
        coroutine.send(None)
        try:
            coroutine.throw(Thrown())
        except Thrown as thrown:
            return weakref.ref(thrown)
        raise AssertionError

    with app.test_request_context():
        carried = carry_context(steps)
    with without_gc():
        assert throw()() is None


def test_a_task_that_carries_itself_on_keeps_no_earlier_generation(
    app: Flask,
) -> None:
    alive: weakref.WeakSet[Any] = weakref.WeakSet()
    most: list[int] = []
    wrappers: list[Callable[[], None]] = []

    def tick() -> None:
        g.thing, session["thing"] = Thing(), Thing()
        vars(request)["thing"] = Thing()
        alive.update([g.thing, session["thing"], vars(request)["thing"]])
        alive.update([active("app"), active("request"), unproxied(request)])
        most.append(len(alive))
        wrappers.append(carry_context(tick))

    with without_gc():
        with app.test_request_context():
            wrappers.append(carry_context(tick))
        for _ in range(50):
            in_thread(wrappers.pop())
        assert most[10:] == most[10:11] * 40
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
            g.thing, g.db = Thing(), Connection()
            kept = refs(g.thing, g.db)
            carried = carry_context(lambda: g.thing)
            g.later = Thing()
            gone = refs(request, g, session, active("app"), active("request"), g.later)
            gone += refs(request.stream, request.environ["wsgi.input"])
        assert [ref() for ref in gone] == [None] * len(gone)
        assert carried() is kept[0]() and kept[1]() is not None
        del carried
        assert [ref() for ref in kept] == [None, None]


class KeepAlive(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"

    def log(self, type: str, message: str, *args: Any) -> None:
        """Leave the test's output to the test."""


@contextlib.contextmanager
def serving(app: Flask) -> Generator[int]:
    """Serve the app from threads, and give the port."""
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=KeepAlive)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join(TIMEOUT)
        server.server_close()


def test_a_task_that_fails_through_a_future_is_in_no_cycle(app: Flask) -> None:
    async def fail() -> None:
        await asyncio.sleep(0)
        raise LookupError

    async def work() -> None:
        await asyncio.ensure_future(fail())

    async def main(coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(coroutine)
        await asyncio.wait([task])
        assert isinstance(task.exception(), LookupError)

    def go() -> weakref.ref[Thing]:
        with app.app_context():
            g.thing = Thing()
            alive = weakref.ref(g.thing)
            carried = carry_context(work)
        loop.run_until_complete(main(carried()))
        return alive

    loop = asyncio.new_event_loop()
    with without_gc():
        alive = go()
        loop.run_until_complete(asyncio.sleep(0))  # The loop lets go of the last step.
        assert alive() is None
    loop.close()


def test_memory_does_not_grow_with_the_number_of_tasks(app: Flask) -> None:
    alive: weakref.WeakSet[Any] = weakref.WeakSet()

    @app.route("/<int:tasks>")
    def view(tasks: int) -> str:
        def work(_: int) -> None:
            session["own"] = g.own = copy.copy(request)
            alive.add(g.own)

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(carry_context(work), range(tasks)))
        return str(len(alive))

    def growth(port: int, tasks: int) -> int:
        others = {*threading.enumerate()}
        before, _ = tracemalloc.get_traced_memory()
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)
        with contextlib.closing(connection):
            for _ in range(20):
                connection.request("GET", f"/{tasks // 20}")
                assert connection.getresponse().read() == b"0"
        for thread in {*threading.enumerate()} - others:
            thread.join(TIMEOUT)  # Werkzeug's may still have a buffer of 10 MB.
        return tracemalloc.get_traced_memory()[0] - before

    with without_gc(), contextlib.ExitStack() as stack:
        tracemalloc.start()
        stack.callback(tracemalloc.stop)
        port = stack.enter_context(serving(app))
        growth(port, 10_000)  # Fills caches and free lists.
        more = growth(port, 10_000) - growth(port, 1_000)
    smallest = sys.getsizeof(object())
    assert more < 9_000 * smallest, "An object stays of each task."


def test_names_of_old_flasks_that_an_app_puts_back_change_nothing(
    app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "_app_ctx_stack", "_request_ctx_stack":
        if FLASK >= (2, 2):  # As Apache Superset does, for what looks for them.
            monkeypatch.setitem(vars(flask.globals), name, object())
    names = runpy.run_path(ctxcarry.__file__)
    with app.test_request_context("/x"):
        assert in_thread(names["carry_context"](lambda: request.path)) == "/x"


def test_a_vendored_copy_works_and_does_not_import_asyncio(tmp_path: Path) -> None:
    package, flask_only = tmp_path / "shop", tmp_path / "flask_only"
    package.mkdir()
    (package / "__init__.py").touch()
    shutil.copy(ctxcarry.__file__, package / "_carry.py")
    served = SERVED.replace("ctxcarry", "shop._carry")
    (package / "app.py").write_text(
        "import importlib.util, sys, flask\n"
        f"before = 'asyncio' in sys.modules\n{served}\n"
        "async def work(): pass\n"
        "with app.app_context():\n"
        "    carry_context(work)\n"
        "assert before == ('asyncio' in sys.modules)\n"
        "assert importlib.util.find_spec('ctxcarry') is None\n"
        "assert answers == [b'/', b'/stream', b'/']\n"
    )
    # Without site-packages, where this project is installed, but with Flask's own.
    flask_only.mkdir()
    for path in Path(flask.__file__).parent.parent.iterdir():
        if not path.name.startswith(("ctxcarry", "__")) and path.suffix != ".pth":
            (flask_only / path.name).symlink_to(path)
    environ = {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(flask_only)])}
    command = [sys.executable, "-S", "-m", "shop.app"]
    subprocess.run(command, check=True, cwd=tmp_path, env=environ)


def test_gevent_spawns_one_wrapper_many_times(app: Flask) -> None:
    gevent = importlib.import_module("gevent")

    def work(number: int) -> list[Any]:
        g.seen = session["seen"] = number
        TENANT.set(str(number))
        gevent.sleep(0)
        return [request.path, g.seen, session["seen"], TENANT.get()]

    with app.test_request_context():
        g.seen = session["seen"] = 0
        carried = carry_context(work)
        greenlets = [gevent.spawn(carried, number) for number in range(3)]
        gevent.joinall(greenlets, timeout=TIMEOUT, raise_error=True)
        assert [each.value for each in greenlets] == [
            ["/", n, n, str(n)] for n in range(3)
        ]
        assert g.seen == session["seen"] == 0


# What goes wrong around a task


@pytest.mark.parametrize(
    "kind", [KeyError, SystemExit, KeyboardInterrupt, GreenletExit]
)
@pytest.mark.parametrize("fails", [False, True])
def test_a_task_leaves_nothing_behind_in_the_thread_whatever_it_raises(
    app: Flask, tearing: Tearing, kind: type[BaseException], fails: bool
) -> None:
    error = kind() if fails else None

    def work() -> None:
        TENANT.set("eve")
        if error:
            raise error

    with ThreadPoolExecutor(1) as worker, app.test_request_context("/x"):
        carried, here, before = carry_context(work), state(), worker.submit(state)
        assert worker.submit(carried).exception(TIMEOUT) is error
        assert error_of(carried) is error
        assert [error for _, _, error in tearing] == [error] * 4
        assert worker.submit(state).result(TIMEOUT) == before.result()
        assert state() == here
        assert worker.submit(carry_context(lambda: request.path)).result() == "/x"


def test_tasks_refused_or_cancelled_before_they_start_hold_nothing_open(
    app: Flask, closing: None
) -> None:
    release, connection = threading.Event(), Connection()

    def view() -> dict[str, Any]:
        g.db = connection
        future = worker.submit(carry_context(lambda: g.db))
        with pytest.raises(RuntimeError, match="shutdown"):
            closed.submit(carry_context(lambda: g.db))
        return {"cancelled": future.cancel(), "closed": connection.closed}

    with ThreadPoolExecutor(1) as closed, ThreadPoolExecutor(1) as worker:
        closed.shutdown()
        worker.submit(release.wait, TIMEOUT)
        assert run(app, view) == {"cancelled": True, "closed": 0}
        assert connection.closed == 1
        release.set()


def test_a_client_that_hangs_up_harms_no_task(
    app: Flask, pool: ThreadPoolExecutor
) -> None:
    hung_up = threading.Event()
    started: queue.Queue[Future[tuple[str, str]]] = queue.Queue()

    @app.route("/<name>")
    def view(name: str) -> str:
        @carry_context
        def work() -> tuple[str, str]:
            assert hung_up.wait(TIMEOUT)
            return request.path, request.headers["Id"]

        started.put(pool.submit(work))
        assert hung_up.wait(TIMEOUT)
        return "for nobody" * 100_000

    with serving(app) as port:
        client = socket.create_connection(("127.0.0.1", port), TIMEOUT)
        client.sendall(b"GET /x HTTP/1.1\r\nHost: a\r\nId: 17\r\n\r\n")
        future = started.get(timeout=TIMEOUT)
        client.close()
        hung_up.set()
        assert future.result(TIMEOUT) == ("/x", "17")


# Any order of writing, wrapping, calling and ending, against a model of plain values

Change = tuple[str, str, str | None]  # The place, the name, and the value or None.
Seen = dict[str, dict[str, str]]
Call = tuple[list[Change], list[Change] | None, bool]
Wrapper = tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any], Seen]

NAMES = "HTTP_A", "HTTP_B", "HTTP_C"
VARIABLES: dict[str, contextvars.ContextVar[str | None]] = {
    name: contextvars.ContextVar(name, default=None) for name in NAMES
}
PLACES = ["g", "session", "attribute", "view_args", "environ", "variable", "cart"]
VALUES = st.none() | st.sampled_from("0123")
CHANGES = st.lists(
    st.tuples(st.sampled_from([*PLACES, "flash"]), st.sampled_from(NAMES), VALUES)
)


def places() -> dict[str, Any]:
    """Return what the active context is read from and written to."""
    places = {"g": vars(g), "session": session, "attribute": vars(request)}
    return {**places, "view_args": request.view_args, "environ": request.environ}


def see() -> Seen:
    """Read the active context into plain values."""
    found = {place: dict(values or {}) for place, values in places().items()}
    found["variable"] = {name: variable.get() for name, variable in VARIABLES.items()}
    found["header"] = {name: request.headers.get(name[5:]) for name in NAMES}
    seen: Seen = {
        place: {name: values[name] for name in NAMES if values.get(name) is not None}
        for place, values in found.items()
    }
    seen["cart"] = {"all": str(session.get("cart", []))}
    seen["flash"] = {"all": str([name for _, name in session.get("_flashes", [])])}
    return seen


def change(changes: list[Change]) -> None:
    """Apply the changes to the active context, to the session's lists in place."""
    for place, name, value in changes:
        if place == "cart":
            session.setdefault("cart", []).append(name)
        elif place == "flash":
            flask.flash(name)
        elif place == "variable":
            VARIABLES[name].set(value)
        elif value is None:
            places()[place].pop(name, None)
        else:
            places()[place][name] = value


def changed(seen: Seen, changes: list[Change]) -> Seen:
    """Apply the changes to the model."""
    seen = copy.deepcopy(seen)
    for place, name, value in changes:
        for each in [place, "header"] if place == "environ" else [place]:
            if place in ("cart", "flash"):
                seen[place]["all"] = str([*ast.literal_eval(seen[place]["all"]), name])
            elif value is None:
                seen[each].pop(name, None)
            else:
                seen[each][name] = value
    return seen


class Carrying(RuleBasedStateMachine):
    wrappers: Bundle[Wrapper] = Bundle("wrappers")

    def __init__(self) -> None:
        super().__init__()
        self.app = Flask("shop")
        self.app.secret_key = "secret"
        self.app.add_url_rule("/", "view")
        self.app.teardown_request(self.tear_down)
        self.app.teardown_appcontext(self.tear_down)
        self.torn_down: list[str] = []
        self.alive: weakref.WeakSet[Thing] = weakref.WeakSet()
        self.view: Any = None
        self.model: Seen = {}
        for variable in VARIABLES.values():
            variable.set(None)

    def tear_down(self, error: BaseException | None) -> None:
        own = sorted(each for each in vars(g).items() if each[0] in NAMES)
        met = see()["cart"] if flask.has_request_context() else None
        self.torn_down.append(f"{own} {met} {error!r}")

    def expect_teardown(self, borrowed: Seen, seen: Seen, error: object) -> list[str]:
        """What teardown functions find: all in g that was not carried, and no view."""
        own = sorted(seen["g"].items() - borrowed["g"].items())
        met = [seen["cart"], seen["cart"] if FLASK >= (3, 2) else None]
        return [f"{own} {cart} {error!r}" for cart in met]

    def carry(self, model: Seen) -> Wrapper:
        """Wrap the functions of a task in the active context, as in the model."""

        def steps(call: Call, seen: list[Seen]) -> Iterator[None]:
            seen.append(see())
            g.thing = Thing()
            self.alive.add(g.thing)
            yield
            change(call[0])
            yield
            seen.append(see())

        def work(call: Call, seen: list[Seen], meet: Callable[[], Any]) -> None:
            for _ in steps(call, seen):
                meet()
            if call[1] is not None:
                carry_context(work)((call[1], None, False), seen, int)
                seen.append(see())
            if call[2]:
                raise LookupError

        async def work_async(call: Call, seen: list[Seen]) -> None:
            for _ in steps(call, seen):
                await asyncio.sleep(0)
            if call[1] is not None:
                await carry_context(work_async)((call[1], None, False), seen)
                seen.append(see())
            if call[2]:
                raise LookupError

        def carry_on(changes: list[Change]) -> Wrapper:
            change(changes)
            return self.carry(changed(model, changes))

        on = carry_context(carry_on)
        return carry_context(work), carry_context(work_async), on, model

    @precondition(lambda self: not self.view)
    @rule()
    def begin_request(self) -> None:
        self.view = self.app.test_request_context("/")
        self.view.push()
        self.model = see()

    @precondition(lambda self: self.view)
    @rule(changes=CHANGES)
    def change_in_the_view(self, changes: list[Change]) -> None:
        change(changes)
        self.model = changed(self.model, changes)

    @precondition(lambda self: self.view)
    @rule(target=wrappers)
    def wrap(self) -> Wrapper:
        return self.carry(self.model)

    @rule(target=wrappers, wrapper=wrappers, changes=CHANGES)
    def wrap_in_a_task(self, wrapper: Wrapper, changes: list[Change]) -> Wrapper:
        made: Wrapper = in_thread(partial(wrapper[2], changes))
        return made

    @rule(
        wrapper=wrappers,
        calls=st.lists(
            st.tuples(CHANGES, st.none() | CHANGES, st.booleans()), max_size=3
        ),
        is_async=st.booleans(),
    )
    def call_at_once(self, wrapper: Wrapper, calls: list[Call], is_async: bool) -> None:
        work, work_async, _, carried = wrapper
        seen: list[list[Seen]] = [[] for _ in calls]
        self.torn_down.clear()

        async def main() -> list[Any]:
            tasks = map(work_async, calls, seen)
            return await asyncio.gather(*tasks, return_exceptions=True)

        barrier = threading.Barrier(max(len(calls), 1), timeout=TIMEOUT)

        def in_a_thread(number: int) -> BaseException | None:
            before, error = state(), None
            try:
                work(calls[number], seen[number], barrier.wait)
            except LookupError as raised:
                error = raised.with_traceback(None)
            except BaseException:
                barrier.abort()
                raise
            assert state() == before
            return error

        if is_async:
            errors = in_thread(lambda: asyncio.run(main()))
        else:
            with ThreadPoolExecutor(3) as pool:
                errors = list(pool.map(in_a_thread, range(len(calls))))
            assert not self.alive

        teardowns: list[str] = []
        for (changes, inner, fails), sights, error in zip(calls, seen, errors):
            after = changed(carried, changes)
            expected = [carried, after]
            if inner is not None:
                innermost = changed(after, inner)
                expected += [after, innermost, after]
                teardowns += self.expect_teardown(after, innermost, None)
            teardowns += self.expect_teardown(carried, after, error)
            assert sights == expected
            assert isinstance(error, LookupError) == fails
        assert sorted(self.torn_down) == sorted(teardowns)

    @precondition(lambda self: self.view)
    @rule()
    def end_request(self) -> None:
        self.torn_down.clear()
        self.view.pop(None)
        self.view = None
        assert self.torn_down == self.expect_teardown({"g": {}}, self.model, None)

    @stateful.invariant()
    def nothing_is_written_back(self) -> None:
        if self.view:
            assert see() == self.model
        else:
            assert not flask.has_request_context() and not flask.has_app_context()

    def teardown(self) -> None:
        if self.view:
            self.view.pop(None)


TestCarrying: Any = Carrying.TestCase
TestCarrying.settings = settings(
    deadline=None, max_examples=200, stateful_step_count=20
)
