"""Carry Flask's context and contextvars into threads, pools, timers and event loops."""

# SPDX-License-Identifier: MIT-0

import contextvars
import copy
import functools
import inspect
import io
import sys
import types
from collections.abc import Callable, Coroutine, Generator
from typing import Any, NoReturn, ParamSpec, TypeVar, cast

import flask.ctx
from flask import (
    Flask,
    Request,
    current_app,
    g,
    has_app_context,
    has_request_context,
    request,
    session,
)
from flask.sessions import SecureCookieSession
from werkzeug.datastructures import EnvironHeaders

__all__ = ["carry_context"]
__version__ = "1.0.0"

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

_FORM_TYPES = "multipart/form-data", "application/x-www-form-urlencoded"


def carry_context(func: Callable[P, R], /) -> Callable[P, R]:
    """Make a function run, wherever it is called, in the context that is active now.

    Call this inside a view, and hand the result to a thread, a pool, a timer, a
    greenlet or an event loop::

        @app.route("/report")
        def report():
            @carry_context
            def part(item):
                return f"{item} of {g.tenant}, for {session['user']}"

            parts = list(executor.map(part, request.args.getlist("item")))
            executor.submit(carry_context(send_mail), parts)
            threading.Thread(target=carry_context(index), args=[parts]).start()
            threading.Timer(60, carry_context(clean_up)).start()
            return parts

    What is carried: shallow copies, as of now, of the request, the session and the
    attributes of ``g``; the context variables; the application. With an app context
    alone (a command, a start-up job), all of that but request and session.

    What each call gets: an app context, ``g``, request, session and context variables
    of its own, so that one result can be called many times, also at once. Nothing is
    written back, not to the session cookie either. The URL is not matched again.
    Teardown functions run when the call ends, and are given its exception.

    Who owns what in ``g``: what a call adds is its own, for teardown functions to find
    and close. What was carried is borrowed, and taken out before they run, so that
    they close nothing that the view still uses. A task that wants a connection of its
    own begins with ``g.pop("db", None)``, and with ``g.pop("_login_user", None)`` for
    Flask-Login to load the user through it.

    The request body: what the view has read by now, with ``get_json()``, ``form`` or
    ``get_data()``, can be read in the call. What it has not read stays the view's: in
    the call, reading it raises :exc:`RuntimeError`. Uploads close with the request of
    the view, so save them there.

    Coroutine functions: the result is one too. Every step of the body runs in the
    context of the call, on whatever loop awaits it. To run one in a pool::

        executor.submit(carry_context(asyncio.run), work())

    :param func: any callable but a generator function.
    :return: a callable with the same parameters and result. It cannot be pickled, so
        it does not cross to another process: pass plain data there.
    :raises TypeError: if ``func`` is not callable, or is a generator function, whose
        body would run outside of the context.
    :raises RuntimeError: if no context is active, or if a request is, and ``func``
        belongs to a module being imported: every later call would carry that request.

    Unlike :func:`flask.copy_current_request_context`, it carries ``g``
    (pallets/flask#3306), shares neither request nor session with the view, and can run
    more than once at a time (pallets/flask#5252).
    """
    is_async = _check(func)
    snapshot = _Snapshot()

    if is_async:

        @functools.wraps(func)
        async def carried_async(*args: P.args, **kwargs: P.kwargs) -> Any:
            async def call() -> Any:
                with _Context(snapshot):
                    return await cast(Any, func)(*args, **kwargs)

            return await _steps(snapshot.variables.copy(), call())

        return cast("Callable[P, R]", carried_async)

    @functools.wraps(func)
    def carried(*args: P.args, **kwargs: P.kwargs) -> R:
        def call() -> R:
            with _Context(snapshot):
                return func(*args, **kwargs)

        return snapshot.variables.copy().run(call)

    return carried


class _Snapshot:
    """What is active now. All calls share it, and none changes it."""

    def __init__(self) -> None:
        self.variables = contextvars.copy_context()
        self.app: Flask = _current(current_app)
        self.g: dict[str, Any] = _current(g).__dict__.copy()
        self.has_request = has_request_context()
        if not self.has_request:
            return
        self.session = _copy(_current(session))
        self.request: Request = _copy(_current(request))
        environ = self.request.environ.copy()
        environ["werkzeug.request"] = None  # It is the view's.
        attributes = vars(self.request)
        attributes.update(
            environ=environ,
            view_args=copy.copy(self.request.view_args),
            close=_do_nothing,  # A pop would close the view's uploads.
        )
        empty = environ.get("CONTENT_LENGTH", "") in ("", "0")
        chunked = "HTTP_TRANSFER_ENCODING" in environ
        parsed = "form" in attributes and self.request.mimetype in _FORM_TYPES
        self.body = io.BytesIO if parsed or empty and not chunked else _UnreadBody
        # Up to Flask 2.1, a push first pops the context that a debugger or a test
        # client preserved. Cover the view's, unless the stack belongs to the thread.
        preserving = hasattr(Flask, "preserve_context_on_exception")
        if preserving and not contextvars.Context().run(has_request_context):
            self.variables.run(_Context(self).contexts[-1].push)


def _do_nothing(*_: object) -> None:
    pass


class _Context:
    """The context of one call, pushed on entry and popped on exit."""

    def __init__(self, snapshot: _Snapshot) -> None:
        self.snapshot = snapshot
        self.contexts: list[Any] = [snapshot.app.app_context()]
        if snapshot.has_request:
            request, session = _copy(snapshot.request), _copy(snapshot.session)
            environ, body = request.environ.copy(), snapshot.body()
            environ["wsgi.input"] = body
            vars(request).update(
                environ=environ,
                headers=EnvironHeaders(environ),
                stream=body,
                view_args=copy.copy(request.view_args),
            )
            # Binding the URL map is half of the cost of a context, and sets request.host
            # again. Few tasks build a URL, so it waits for the first that does.
            unbound = types.SimpleNamespace(
                app_ctx_globals_class=snapshot.app.app_ctx_globals_class,  # For 3.2.
                create_url_adapter=_do_nothing,
            )
            ctx = vars(flask.ctx)
            merged = "RequestContext" not in ctx  # Flask 3.2, pallets/flask#5639.
            context = (
                ctx["AppContext"](unbound, request=request, session=session)
                if merged
                else ctx["RequestContext"](unbound, environ, request, session)
            )
            context.app = snapshot.app
            self.contexts = [context] if merged else [*self.contexts, context]
        self.g: dict[str, Any] = vars(self.contexts[0].g)

    def __enter__(self) -> None:
        self.g.update(self.snapshot.g)
        for context in self.contexts:
            context.push()
        if self.snapshot.has_request:
            self.contexts[-1].url_adapter = _URLAdapter(self.snapshot)

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        for name, value in self.snapshot.g.items():
            if self.g.get(name) is value:
                self.g.pop(name, None)
        # Not ``with context:``, which up to Flask 2.1 may preserve it instead.
        try:
            self.contexts[-1].pop(error)
        finally:
            for context in self.contexts[:-1]:
                context.pop(error)


class _URLAdapter:
    """The adapter of a call, bound at its first use."""

    def __init__(self, snapshot: _Snapshot) -> None:
        self.snapshot = snapshot

    def __getattr__(self, name: str) -> Any:
        app, request = self.snapshot.app, self.snapshot.request
        return getattr(app.create_url_adapter(_copy(request)), name)


class _UnreadBody(io.RawIOBase):
    """Stands in for the server's stream, which is the view's to read."""

    def readable(self) -> bool:
        return True

    def readinto(self, _: object, /) -> NoReturn:
        raise RuntimeError(
            "The task cannot read the request body: the view had not read it when it"
            " called carry_context(). Read the body in the view first, with"
            " request.get_data(), request.get_json() or request.form."
        )


def _current(proxy: Any) -> Any:
    """Return the object behind a proxy, which each access through it looks up again."""
    return proxy._get_current_object()  # Documented by Werkzeug.


def _copy(original: T) -> T:
    """Return ``copy.copy(original)``, for Flask's own classes without its detours."""
    cls = type(original)
    copied: Any
    if cls is Request:
        copied = Request.__new__(Request)
    elif cls is SecureCookieSession:
        copied = SecureCookieSession.__new__(SecureCookieSession)
        cast(Any, dict).update(copied, original)
    else:
        return copy.copy(original)
    copied.__dict__ = original.__dict__.copy()
    return cast(T, copied)


@types.coroutine
def _steps(
    context: contextvars.Context, coroutine: Coroutine[Any, Any, R]
) -> Generator[Any, Any, R]:
    """Await a coroutine with each of its steps in the context, as in PEP 380."""
    step = functools.partial(coroutine.send, None)
    while True:
        try:
            awaited = context.run(step)
        except StopIteration as stop:
            return cast(R, stop.value)
        finally:
            del step  # It may hold an error, whose traceback holds this frame.
        try:
            step = functools.partial(coroutine.send, (yield awaited))
        except BaseException as error:
            step = functools.partial(coroutine.throw, error)


def _check(func: object) -> bool:
    """Say whether this is a coroutine function. Raise if it cannot be carried."""
    task: Any = func
    while isinstance(task, functools.partial):
        task = cast(Any, task).func
    if not callable(task):
        raise TypeError(
            f"carry_context() takes a function, not {type(task).__qualname__!r}. Pass"
            " the function, not its result: carry_context(task), without the call."
        )
    # What a callable object runs is a method of its class.
    function = task if inspect.isroutine(task) else type(task).__call__
    flags: int = getattr(getattr(function, "__code__", None), "co_flags", 0)
    if flags & (inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR):
        raise TypeError(
            f"carry_context() cannot carry into the generator function {task!r}: its"
            " body would run outside. Wrap the function that iterates over it."
        )
    advice = (
        "Wrap the function inside the view, or where the view hands it over:"
        " executor.submit(carry_context(task))."
    )
    if not has_app_context():
        raise RuntimeError(
            f"carry_context({task!r}) found no active Flask context, so there is"
            f" nothing to carry. {advice}"
        )
    spec = getattr(sys.modules.get(task.__module__), "__spec__", None)
    if has_request_context() and getattr(spec, "_initializing", False):
        raise RuntimeError(
            f"carry_context({task!r}) was called while a request imports the module"
            f" {task.__module__!r}: every later call would carry this one request."
            f" {advice}"
        )
    # inspect also knows what inspect.markcoroutinefunction() has marked.
    return bool(flags & inspect.CO_COROUTINE) or inspect.iscoroutinefunction(task)
