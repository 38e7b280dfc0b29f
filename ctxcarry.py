# ctxcarry 1.1.0, SPDX-License-Identifier: MIT-0
"""Carry Flask's context and contextvars into threads, pools, timers and event loops."""

from __future__ import annotations

import contextlib
import contextvars
import copy
import decimal
import functools
import inspect
import io
import sys
import types
from collections.abc import Callable, Generator
from typing import Any, ParamSpec, TypeVar, cast

import flask.globals
import werkzeug.local
from flask import Request, has_app_context, has_request_context
from flask.sessions import SecureCookieSession
from werkzeug.datastructures import EnvironHeaders
from werkzeug.routing import MapAdapter

__all__ = ["carry_context"]
__version__ = "1.1.0"

P = ParamSpec("P")
R = TypeVar("R")
_dict, _list, _type = cast(Any, (dict, list, type))  # Which no type checker narrows.
_own = cast(Any, (Request, SecureCookieSession, MapAdapter))
_HOOKS = "__copy__", "__getstate__", "__new__", "__reduce__", "__setstate__"  # Of copy.
_PLAIN = {id(cls) for cls in (bool, float, int, list, str, type(None))}  # Never open.
_FORM_TYPES = "multipart/form-data", "application/x-www-form-urlencoded"
_DISPATCH = "flask.app", "flask.helpers"  # Of views, and of generators that stream.
_flask: dict[str, Any] = vars(werkzeug.local) | vars(flask.globals) | vars(flask.ctx)
_CONTEXTS = _flask["AppContext"], _flask.get("RequestContext", _flask["AppContext"])
_APART = decimal.Context, *_CONTEXTS  # Not carried as they are.
_app_ctx: Any = _flask.get("app_ctx")
_request_ctx: Any = _flask.get("request_ctx", _app_ctx)  # Merged: pallets/flask#5639.
_stacks: list[Any] = []
if "app_ctx" not in _flask:  # Up to Flask 2.1.
    _stacks = [_flask["_app_ctx_stack"], _flask["_request_ctx_stack"]]
    _app_ctx, _request_ctx = (stack() for stack in _stacks)


def carry_context(func: Callable[P, R], /) -> Callable[P, R]:
    """Make a function run, wherever it is called, in the context that is active now.

    Call this inside a view, and hand the result to a thread, a pool or a timer::

        @app.route("/report")
        def report():
            @carry_context
            def part(item):
                return f"{item} of {g.tenant}, for {session['user']}"

            return list(executor.map(part, request.args.getlist("item")))

    Each call, also many at once (pallets/flask#5252), has its own copies of request,
    session, ``g`` (pallets/flask#3306) and context variables, as of now, and writes
    nothing back. A mutable value is shared, but for lists and dicts in the session:
    replace it, do not change it. Of the request body, what the view has read is there.

    Data in ``g`` is carried. An open resource, which has ``close()`` and is a context
    manager, stays with the view: open one in the call, or pass the view's to it.

    :param func: any callable but a generator function. A coroutine function stays one.
    :return: a callable with the same parameters and result. It cannot be pickled.
    :raises TypeError: if ``func`` is not callable, or a generator function; in the call,
        if it returns a coroutine and is no coroutine function.
    :raises RuntimeError: if no context is active, or those of two apps; if the session
        is not open yet; if a module that a request imports calls this at its top level.
    """
    is_async, snapshot = _check(func), _Snapshot()

    async def carried_async(*args: P.args, **kwargs: P.kwargs) -> Any:
        async def call() -> Any:
            with _Context(snapshot):
                return await cast(Any, func)(*args, **kwargs)

        return await _steps(snapshot.variables.copy(), call())

    def carried(*args: P.args, **kwargs: P.kwargs) -> R:
        def call() -> R:
            with _Context(snapshot):
                return cast(R, _refuse_coroutine(func(*args, **kwargs)))

        return snapshot.variables.copy().run(call)

    return functools.wraps(func)(cast(Any, carried_async if is_async else carried))


class _Snapshot:  # What is active now. All calls share it, and none changes it.
    def __init__(self) -> None:
        app_context: Any = _app_ctx._get_current_object()
        self.app, self.merged = app_context.app, False
        self.request: Any = None
        made_again: set[Any] = {"_flask_babel"}  # By Flask-Babel.
        if has_request_context():
            context: Any = _request_ctx._get_current_object()
            if context.app is not self.app:
                raise RuntimeError(
                    f"carry_context() mixes no apps: {self.app} is active in a request"
                    f" of {context.app}. Wrap outside of `with other.app_context():`."
                )
            self.context_class, self.merged = context.__class__, context is app_context
            self.url_adapter = _copy(context.url_adapter)
            request, session = _detach(context.request), None
            try:
                session = context.session
                session.accessed = True  # For responses to vary by cookie.
            except (AssertionError, AttributeError) as error:
                if session is None:
                    why = "carry_context() needs an open session. Wrap inside the view."
                    raise RuntimeError(why) from error
            # Flask-Login can load the user again. To ask may load the session.
            made_again.add("_user_id" in session and "_login_user")
            self.request, self.session = request, _copy_session(session)
            parsed = "form" in request.__dict__ and request.mimetype in _FORM_TYPES
            length = str(request.environ.get("CONTENT_LENGTH")).strip(" 0")
            sent = length.isdecimal() or "HTTP_TRANSFER_ENCODING" in request.environ
            self.body = _UnreadBody if sent and not parsed else io.BytesIO
        self.variables = contextvars.Context()
        self.decimals: list[Any] = []
        for variable, value in contextvars.copy_context().items():
            if not issubclass(_type(value), _APART):
                self.variables.run(variable.set, value)
            elif issubclass(_type(value), decimal.Context):  # The rest is Flask's.
                self.decimals.append((variable, value.copy()))  # Changed in place.
        for stack in _stacks:
            self.variables.run(_flask["release_local"], stack)
        self.g: dict[str, Any] = getattr(app_context.g, "__dict__", {}).copy()
        self.left: dict[object, object] = {}  # By name, and by identity.
        for name, value in [*self.g.items()]:
            if name not in made_again and id(_type(value)) in _PLAIN:
                continue  # For speed.
            held = _dict.values(value) if issubclass(_type(value), dict) else ()
            resources = {id(v): v for v in (value, *held) if _is_resource(v)}
            if resources or value is not None and name in made_again:
                self.left |= resources | {name: True, id(value): self.g.pop(name)}


def _is_resource(value: object) -> bool:
    """Ask the classes alone whether it can be closed and is a context manager."""
    cls = named = _type(value)
    if not issubclass(_type(value), werkzeug.local.LocalProxy):  # Which would wake.
        with contextlib.suppress(Exception):  # Such as a weakref.proxy()'s.
            named = value.__class__  # Sees through the proxies of tracers.
    for each in (cls,) if named is cls else (cls, named):
        manages = hasattr(each, "__exit__") or hasattr(each, "__aexit__")
        if manages and (hasattr(each, "close") or hasattr(each, "aclose")):
            return True
    return False


class _Context:  # The context of one call, pushed on entry and popped on exit.
    def __init__(self, snapshot: _Snapshot) -> None:
        self.snapshot = snapshot
        self.pushed: list[Any] = []

    # For speed, a context is made with this as its app, whose URLs it would bind.
    def create_url_adapter(self, _: object) -> None: ...

    def __getattr__(self, name: str) -> Any:
        return getattr(self.snapshot.app, name)

    def __enter__(self) -> None:
        snapshot, pushed = self.snapshot, self.pushed
        for variable, value in snapshot.decimals:
            variable.set(value.copy())
        contexts: list[Any] = [] if snapshot.merged else [snapshot.app.app_context()]
        if snapshot.request is not None:
            request = _detach(snapshot.request, snapshot.body())
            given = {"request": request, "session": _copy_session(snapshot.session)}
            environ = [] if snapshot.merged else [request.environ]
            app = self if snapshot.context_class in _CONTEXTS else snapshot.app
            context = snapshot.context_class(app, *environ, **given)
            context.app, context.url_adapter = snapshot.app, _copy(snapshot.url_adapter)
            # A push would match again, and a pop would close the view's uploads.
            context.match_request = request.__dict__["close"] = lambda: None
            contexts.append(context)
        self.g, self.at_push = contexts[0].g, snapshot.g
        self.values = values = getattr(contexts[0].g, "__dict__", {})
        self.fresh = values.copy()
        values.update(snapshot.g)
        try:
            for context in contexts:
                pushed.append(context)
                context.push()
        except BaseException as error:  # Of a receiver: the context is pushed by then.
            self.__exit__(None, error, None)
            raise
        self.at_push = values.copy()  # What a receiver takes out is borrowed no longer.

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        values, at_push, snapshot = self.values, self.at_push, self.snapshot
        for name, value in [*values.items()]:
            borrowed = at_push.get(name, self) is value is snapshot.g.get(name, self)
            if borrowed or id(value) in snapshot.left:
                del values[name]
        values.update(self.fresh | values)
        if isinstance(error, AttributeError) and getattr(error, "obj", None) is self.g:
            if error.name in snapshot.left and sys.version_info >= (3, 11):
                error.add_note(
                    f"g.{error.name} stays with the view: open it in the task, or pass"
                    " it as an argument. carry_context() carries no open resources."
                )
        try:  # Not ``with``, which up to Flask 2.1 may preserve a context instead.
            try:
                self.pushed.pop().pop(error)
            finally:
                for context in self.pushed:  # The app's, up to Flask 3.1.
                    context.pop(error)
        except Exception:
            if error is None:
                raise
            self.snapshot.app.logger.exception("A task failed, and then its teardown.")


class _UnreadBody(io.RawIOBase):  # The server's stream is the view's to read.
    readable = cast(Any, io.BytesIO().readable)  # Answers True.

    def readinto(self, _: object, /) -> int:
        raise RuntimeError(
            "carry_context() carries what the view has read of the request body. Read"
            " all of it in the view first, with get_data(), get_json() or form."
        )


def _detach(request: Any, body: Any = None) -> Any:
    """Copy a request so that nothing of it is the server's, or another call's."""
    copied, environ = _copy(request), request.environ.copy()
    environ["werkzeug.request"], environ["wsgi.input"] = None, body
    copied.__dict__["stream"] = body
    headers = request.headers
    if isinstance(headers, EnvironHeaders) and headers.environ is request.environ:
        copied.headers = type(headers)(environ)
    copied.environ, copied.view_args = environ, copy.copy(request.view_args)
    return copied


def _copy_session(session: Any) -> Any:
    """Copy a session, with the lists and dicts in it, which are changed in place."""
    copied = _copy(session)
    copies: dict[int, Any] = {}
    own = copied if isinstance(copied, _dict) else getattr(copied, "__dict__", _dict())
    for holder in (holders := [own]):  # They grow meanwhile.
        kind = _list if _type(holder) is list else _dict
        for key, value in enumerate(holder) if kind is _list else _dict.items(holder):
            if _type(value) is list or _type(value) is dict:
                if id(value) not in copies:
                    copies[id(value)] = value.copy()
                    holders.append(copies[id(value)])
                kind.__setitem__(holder, key, copies[id(value)])
    return copied


def _copy(original: Any) -> Any:
    """Return ``copy.copy(original)``, where that neither recurses nor sets items."""
    cls = _type(original)
    if not (own := cls in _own):
        recurses = hasattr(cls, "__getattr__")
        odd = recurses or issubclass(cls, _dict) and hasattr(original, "__dict__")
        asked = _HOOKS[:1] if recurses else _HOOKS
        if not odd or any(getattr(cls, n, n) is not getattr(dict, n, n) for n in asked):
            return copy.copy(original)
    copied = cls.__new__(cls)
    if issubclass(cls, _dict):
        _dict.update(copied, original if own else _dict.items(original))
    if own:  # For speed.
        copied.__dict__ = original.__dict__.copy()
        return copied
    object.__setattr__(copied, "__dict__", original.__dict__.copy())
    each = (v for b in map(vars, cls.__mro__) if b.get("__slots__") for v in b.values())
    for slot in filter(inspect.ismemberdescriptor, each):
        with contextlib.suppress(AttributeError):  # It may not be set.
            slot.__set__(copied, slot.__get__(original))
    return copied


def _refuse_coroutine(result: Any) -> Any:
    """Return the result of a call, unless it is a coroutine that has yet to run."""
    is_coroutine = _type(result) is types.CoroutineType
    if is_coroutine and inspect.getcoroutinestate(result) == inspect.CORO_CREATED:
        result.close()
        raise TypeError(
            "The function in carry_context() returned a coroutine to run outside. Await"
            f" carry_context({result.__name__})(), or carry asyncio.run in a thread."
        )
    return result


@types.coroutine
def _steps(context: contextvars.Context, coroutine: Any) -> Generator[Any, Any, Any]:
    """Await a coroutine with each of its steps in the context, as in PEP 380."""
    step, value = coroutine.send, None
    while True:
        try:
            awaited = [context.run(step, value)]
        except StopIteration as stop:
            return stop.value
        finally:
            del value  # An error, or a future with one, would be in a cycle.
        try:
            step, value = coroutine.send, (yield awaited.pop())
        except BaseException as error:
            step, value = coroutine.throw, error


def _check(func: Any) -> object:
    """Say whether this is, or is marked as, a coroutine function. Raise if unfit."""
    while isinstance(func, functools.partial):
        func = cast(Any, func).func
    if not callable(func):
        raise TypeError(
            f"carry_context() takes a function, not {type(func).__qualname__!r}. Pass"
            " the function, not its result, nor what holds it: carry_context(task)."
        )
    function = func if hasattr(func, "__code__") else type(func).__call__
    flags: int = getattr(getattr(function, "__code__", None), "co_flags", 0)
    if flags & (inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR):
        raise TypeError(
            f"carry_context() cannot carry into the generator function {func!r}: its"
            " body would run outside. Wrap the function that iterates over it."
        )
    advice = "Wrap the task inside the view: executor.submit(carry_context(task))."
    if not has_app_context():
        raise RuntimeError(f"There is no active Flask context to carry. {advice}")
    frame: Any = inspect.currentframe() if has_request_context() else None
    while frame and (names := frame.f_globals).get("__name__") not in _DISPATCH:
        if frame.f_code.co_name == "<module>":
            if getattr(names.get("__spec__"), "_initializing", False):
                raise RuntimeError(
                    "carry_context() was called while a request, which all calls would"
                    f" carry, imports the module {names['__name__']!r}. {advice}"
                )
        frame = frame.f_back
    odd = _type(func) is not types.FunctionType or func.__dict__  # For speed.
    return flags & inspect.CO_COROUTINE or odd and inspect.iscoroutinefunction(func)
