# ctxcarry 2.0.0, SPDX-License-Identifier: MIT-0
"""Carry Flask's contexts and context variables into threads, pools and event loops.

``carry_context()`` makes a ``_Snapshot`` of the view's context. Each call to the wrapper
makes its own contexts from the snapshot, in ``_CallContexts``. The functions below decide
what is copied, what stays with the view, and what is refused.

Values that users keep in ``g``, the session and context variables are tested with
``issubclass(type(x), ...)``, because ``isinstance()`` would resolve a ``LocalProxy``.
"""

from __future__ import annotations

import contextlib
import contextvars
import copy
import decimal
import functools
import inspect
import io
import itertools
import types
from collections.abc import Callable, Generator
from typing import Any, ParamSpec, TypeVar, cast

import flask.ctx
import flask.globals
from flask import has_app_context, has_request_context
from werkzeug.datastructures import EnvironHeaders, FileStorage
from werkzeug.local import LocalProxy
from werkzeug.wsgi import get_content_length

__all__ = ["carry_context"]
__version__ = "2.0.0"

P = ParamSpec("P")
R = TypeVar("R")


def carry_context(func: Callable[P, R], /) -> Callable[P, R]:
    """Wrap a function so that it runs with a copy of the current context.

    Flask's contexts are only active where the request is handled. Call this in a view,
    and pass the result to a thread, a pool, a timer, a greenlet or an event loop::

        @app.route("/report")
        def report():
            @carry_context
            def part(item):
                return f"{item} of {g.tenant}, for {session['user']}"

            return list(executor.map(part, request.args.getlist("item")))

    The copy is made when this is called, so call it after everything the task needs is
    set. Each call to the wrapper pushes its own contexts, made from that copy, and pops
    them when it ends. Calls may run concurrently, and may outlive the response. What a
    call sets in ``g``, in ``session`` or on ``request`` stays in that call.

    -   In ``g`` and in context variables, values that can be closed or committed, and
        SQLAlchemy model instances, stay with the view. So does a list, dict, set or
        tuple that holds one among its first hundred values. Reading ``g.db`` in the
        task then raises an ``AttributeError``. Open or load it there, as ``get_db()``
        does in Flask's tutorial. What an object has as an attribute is not detected.
    -   Everything else in ``g`` and in context variables is carried. A mutable value is
        shared with the view: replace it rather than changing it.
    -   ``request`` and ``session`` are copies, and so are the plain lists, dicts, sets
        and tuples in the session. Changes to the copied session are not saved. The
        view's session counts as accessed, so the response has ``Vary: Cookie``.
    -   The task can read the request's form, JSON or data only if the view has read it.
        Parsed JSON and uploaded files are shared. The files are closed when the view's
        request ends.

    .. warning::
        The task opens its own database connection, which doesn't see what is not yet
        committed. Commit in the view before the task starts.

        Teardown functions run for each call. They don't see values carried from the
        view, so they can't close them. One that reads ``g.start`` must use
        ``g.get("start")``. Flask can't run async ones where an event loop is running.

    :param func: A callable. For a coroutine function, the result is one too. Each call
        runs from start to finish in its own context, on whichever loop awaits it.
        Generator functions are not supported.
    :return: A callable with the same parameters and return value. It cannot be pickled.
    :raises TypeError: If ``func`` is not callable, or is a generator function. The
        wrapper raises it if a plain ``func`` returns a coroutine.
    :raises RuntimeError: If no context is active, or if this is called at the top level
        of a module that is imported during a request.
    """
    flags = _code_flags(func)
    _check_callable(func, flags)
    _check_app_context()
    snapshot = _Snapshot()
    if snapshot.request is not None:
        _check_import()

    def carried(*args: P.args, **kwargs: P.kwargs) -> R:
        call = _CallContexts(snapshot, func)
        with call:
            result = call.cv_context.run(func, *args, **kwargs)
            _check_result(result)
            return result

    async def carried_async(*args: P.args, **kwargs: P.kwargs) -> Any:
        call = _CallContexts(snapshot, func)
        with call:
            coroutine = call.cv_context.run(func, *args, **kwargs)
            return await _StepsInContext(call, coroutine)

    wrapper: Any = carried_async if flags & inspect.CO_COROUTINE else carried
    _update_wrapper(wrapper, func)
    return cast("Callable[P, R]", wrapper)


# Up to Flask 3.1, a request has two contexts: its own, and the app's, which holds g.
# Flask 3.2 has one for both (pallets/flask#5639), and warns when the old names are
# imported, so vars() looks them up. This can go when Flask 3.1 is no longer supported.
_app_ctx: Any = flask.globals.app_ctx
_request_ctx: Any = vars(flask.globals).get("request_ctx", _app_ctx)
_AppContext: Any = flask.ctx.AppContext
_RequestContext: Any = vars(flask.ctx).get("RequestContext", _AppContext)
_HAS_ONE_CONTEXT = _RequestContext is _AppContext


class _Snapshot:
    """The view's context, as it is when carry_context() is called.

    All calls of one wrapper share it, and never change it. It does not refer to the
    view's contexts, request or stream, so they can be freed.
    """

    def __init__(self) -> None:
        app_context = _app_ctx._get_current_object()
        self.app = app_context.app
        self.request: Any = None
        self.session: Any = None
        self._take_g(app_context.g)
        self._take_variables()
        if has_request_context():
            request_context = _request_ctx._get_current_object()
            # Up to Flask 3.1, the active app context may belong to another app.
            if request_context.app is self.app:
                self._take_request(request_context)

    def _take_g(self, g: Any) -> None:
        """Take the values in g, and the names of those that stay with the view."""
        self.carried: dict[str, Any] = {}
        self.staying_names: set[str] = set()
        for name, value in g.__dict__.copy().items():
            if name in _EXTENSION_NAMES:
                continue
            if _stays_with_view(value):
                self.staying_names.add(name)
            else:
                self.carried[name] = value

    def _take_variables(self) -> None:
        """Take the context variables, except Flask's own and those that stay.

        copy_context() alone would keep the view's contexts alive. Signals and teardown
        functions would see them before the task's are pushed and after they are popped.
        """
        self.cv_context = contextvars.Context()
        self.decimal_contexts: list[tuple[Any, decimal.Context]] = []
        for variable, value in contextvars.copy_context().items():
            if issubclass(type(value), (_AppContext, _RequestContext)):
                continue
            if issubclass(type(value), decimal.Context):
                self.decimal_contexts.append((variable, value.copy()))
            elif not _stays_with_view(value):
                self.cv_context.run(variable.set, value)

    def _take_request(self, context: Any) -> None:
        """Take the request and the session."""
        session = context.session
        # The response then has Vary: Cookie. Since 3.1.3, Flask has already set this.
        with contextlib.suppress(AttributeError):
            session.accessed = True
        self.session = _copy_session(session)
        self.request = _copy_request(context.request, body=None)
        self.body_class = _UnreadBody if _has_unread_body(self.request) else io.BytesIO
        self.context_class: Any = type(context)
        self.app_with_adapter = _AppWithAdapter(self.app, context.url_adapter)

    def new_cv_context(self) -> contextvars.Context:
        """Make the contextvars.Context for one call."""
        cv_context = self.cv_context.copy()
        # The decimal module changes its context in place, so each call gets a copy.
        for variable, value in self.decimal_contexts:
            cv_context.run(variable.set, value.copy())
        return cv_context

    def new_contexts(self) -> list[Any]:
        """Make Flask's contexts for one call, in the order they are pushed."""
        if self.request is None:
            return [self.app.app_context()]
        request = _copy_request(self.request, self.body_class())
        request.close = _do_nothing  # It would close the view's uploads.
        session = _copy_session(self.session)
        app: Any = self.app_with_adapter
        if _HAS_ONE_CONTEXT:
            context = self.context_class(app, request=request, session=session)
        else:
            context = self.context_class(app, request.environ, request, session)
        context.app = self.app  # Only its __init__() needs the stand-in.
        context.match_request = _do_nothing  # Converters would run again.
        return [context] if _HAS_ONE_CONTEXT else [self.app.app_context(), context]


class _AppWithAdapter:
    """Stands in for the app while a request context is made.

    This returns the view's URL adapter, so the task builds the same URLs. To bind another
    one would take about a quarter of a call's time. The app does everything else.
    """

    def __init__(self, app: Any, url_adapter: Any) -> None:
        self._app = app
        self._url_adapter = url_adapter

    def create_url_adapter(self, request: object) -> Any:
        return self._url_adapter

    def __getattr__(self, name: str) -> Any:
        return getattr(self._app, name)


class _CallContexts:
    """The contexts of one call. They are pushed on entry and popped on exit.

    This happens in the call's own contextvars.Context, and the function runs there too.
    If a coroutine is never finished, the garbage collector closes it, possibly while
    another request is active. The two must not see each other's contexts. This is a class,
    because the collector could close the generator of a contextlib.contextmanager before
    it closes the coroutine.
    """

    def __init__(self, snapshot: _Snapshot, func: object) -> None:
        self.snapshot = snapshot
        self.func = func
        self.cv_context = snapshot.new_cv_context()
        self.contexts: list[Any] = self.cv_context.run(snapshot.new_contexts)
        self.pushed: list[Any] = []
        self.task_g = _TaskGlobals(self.contexts[0].g, snapshot)

    def __enter__(self) -> None:
        try:
            self.cv_context.run(self._push)
        except BaseException as error:
            self.__exit__(None, error, None)
            raise

    def __exit__(self, cls: object, error: BaseException | None, tb: object) -> None:
        try:
            self.cv_context.run(self._end, error)
        finally:
            # The error's traceback refers to this object. Without this, an error that
            # the task keeps in g or in a context variable would form a reference cycle.
            del self.cv_context, self.contexts, self.task_g

    def _push(self) -> None:
        for context in self.contexts:
            # If a receiver of appcontext_pushed raises, the context is already pushed.
            self.pushed.append(context)
            context.push()

    def _end(self, error: BaseException | None) -> None:
        """Log mistakes that raise no error, clear g, and pop the contexts."""
        app = self.snapshot.app
        if app.debug or app.testing:
            # Sessions, their values, loggers and filters may raise. A job has no session.
            with contextlib.suppress(Exception):
                self._warn()
        self.task_g.remove_carried()
        try:
            self._pop(error)
        except Exception:
            if error is None:
                raise
            with contextlib.suppress(Exception):
                app.logger.exception("Teardown failed after a task had failed.")

    def _pop(self, error: BaseException | None) -> None:
        """Pop the pushed contexts, the last one first, even if popping one raises."""
        try:
            self.pushed.pop().pop(error)
        finally:
            if self.pushed:
                self._pop(error)

    def _warn(self) -> None:
        """Log the names that the task missed in g, and a changed session."""
        logger = self.snapshot.app.logger
        task = getattr(self.func, "__qualname__", type(self.func).__qualname__)
        asked_names = self.task_g.asked_names - self.task_g.set_names
        for name in sorted(self.snapshot.staying_names & asked_names):
            logger.warning("%s asked for g.%s. %s", task, name, _stays_message(name))
        if dict(self.contexts[-1].session) != dict(self.snapshot.session):
            logger.warning(
                "%s changed the session in a carry_context() task. The change is lost,"
                " because the task's copy of the session is never saved. Return the"
                " value from the task, and set it in the view.",
                task,
            )


class _TaskGlobals(dict[str, Any]):
    """The ``__dict__`` of a task's g, where Flask keeps the values that are set in g.

    It knows what the task has set. Teardown functions must not find the view's values,
    such as the path of a temporary file, which they would delete. They must find what
    the task has set, even if it is the very same object.

    It also explains why a name is missing. To read it, g asks for ``__dict__[name]``,
    which calls ``__missing__``.
    """

    def __init__(self, g: Any, snapshot: _Snapshot) -> None:
        self.defaults: dict[str, Any] = g.__dict__  # From an app's own g class.
        self.snapshot = snapshot
        self.set_names: set[str] = set()
        self.asked_names: set[object] = set()
        super().__init__({**self.defaults, **snapshot.carried})
        # A plain assignment would set g.__dict__["__dict__"].
        object.__setattr__(g, "__dict__", self)

    def __setitem__(self, name: str, value: Any) -> None:
        self.set_names.add(name)
        super().__setitem__(name, value)

    def __missing__(self, name: str) -> Any:
        self.asked_names.add(name)
        if name in self.snapshot.staying_names:
            raise AttributeError(_stays_message(name))
        if name in self.snapshot.carried:
            raise AttributeError(
                f"g.{name} was carried from the view by carry_context(), and is gone."
                f" The task has removed it, or has ended. Use g.get({name!r}) instead."
            )
        raise KeyError(name)

    def __contains__(self, name: object) -> bool:
        self.asked_names.add(name)
        return super().__contains__(name)

    # dict.get() and dict.setdefault() don't call the methods above.

    def get(self, name: str, default: Any = None) -> Any:
        self.asked_names.add(name)
        return super().get(name, default)

    def setdefault(self, name: str, default: Any = None) -> Any:
        if name not in self:
            self[name] = default
        return self[name]

    def __reduce__(self) -> tuple[Any, ...]:
        """Let copy and pickle turn ``vars(g)`` into a plain dict."""
        return dict, (dict(self),)

    def remove_carried(self) -> None:
        """Remove the view's values that the task has not replaced."""
        for name, value in self.snapshot.carried.items():
            # It may be gone, or replaced without __setitem__(). No value in g is self.
            if name in self.set_names or super().get(name, self) is not value:
                continue
            if name in self.defaults:
                super().__setitem__(name, self.defaults[name])
            else:
                self.pop(name, None)  # Another thread may have removed it.


class _StepsInContext(Generator[Any, Any, Any]):
    """Awaits a coroutine, and runs each step in the contextvars.Context of a call.

    Unlike asyncio's ``create_task(context=...)``, it works on any event loop.
    """

    def __init__(self, call: _CallContexts, coroutine: Any) -> None:
        self._call = call
        self._steps = coroutine.__await__()

    def __await__(self) -> Generator[Any, Any, Any]:
        return self

    def send(self, value: Any, /) -> Any:
        return self._call.cv_context.run(self._steps.send, value)

    def throw(self, *error: Any) -> Any:
        try:
            return self._call.cv_context.run(self._steps.throw, *error)
        finally:
            del error  # Otherwise the error, its traceback and this frame form a cycle.

    def close(self) -> None:
        self._call.cv_context.run(self._steps.close)


# Used to call dict's own methods on an app's dict class, which may load items or write to
# a store. Any, because strict type checkers don't know what is in it.
_dict: Any = dict


def _copy(original: Any) -> Any:
    """Copy an object with its attributes.

    For a class without __copy__(), copy.copy() would call __getstate__(), which may drop
    what can't be pickled, and __getattr__(), which may recurse forever.
    """
    cls = cast(Any, type(original))
    if hasattr(cls, "__copy__"):
        return copy.copy(original)
    copied = cls.__new__(cls)
    copied.__dict__.update(original.__dict__)
    return copied


def _copy_request(request: Any, body: Any) -> Any:
    """Copy a request, with its own environ and with this body."""
    copied = _copy(request)
    environ = request.environ.copy()
    environ["werkzeug.request"] = None  # It refers to the view's request.
    environ["wsgi.input"] = body
    headers = request.headers
    # A hook may have replaced the headers.
    if isinstance(headers, EnvironHeaders) and headers.environ is request.environ:
        copied.headers = type(headers)(environ)
    copied.environ = environ
    vars(copied)["stream"] = body  # As the cached property does.
    copied.view_args = copy.copy(request.view_args)
    return copied


def _copy_session(session: Any) -> Any:
    """Copy a session, and the containers in its items and attributes."""
    copied = _copy(session)
    if issubclass(type(session), dict):
        # dict.copy() would ask for each item if the class has its own __iter__().
        items = dict(list(_dict.items(session)))
        _dict.update(copied, _copy_containers(items))
    copied.__dict__.update(_copy_containers(copied.__dict__))
    return copied


def _copy_containers(value: Any) -> Any:
    """Copy a plain list, dict, set or tuple, and those in it. Return all else as is.

    Each is first copied in one call, because another thread may change it meanwhile.
    """
    cls = cast(Any, type(value))
    if cls is dict:
        return {key: _copy_containers(item) for key, item in value.copy().items()}
    if cls is list:
        return [_copy_containers(item) for item in value.copy()]
    if cls is tuple:
        return tuple(_copy_containers(item) for item in value)
    if cls is set:
        return value.copy()
    return value


def _do_nothing() -> None:
    """Replace a method that must not run for a task."""


class _UnreadBody(io.RawIOBase):
    """The body of a task's request if the view has not read it. Reading it raises."""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object, /) -> int:
        raise RuntimeError(
            "carry_context() carries the request body only if the view has read and"
            " kept it. Before carry_context(), use get_json(), get_data() or form in"
            " the view, and read() or save() uploaded files."
        )


def _has_unread_body(request: Any) -> bool:
    """Return whether there is a body that the view has not parsed as a form.

    A body that the view has read with get_data() or get_json() is cached, so the stream
    is not read again. A body that it has read from the stream is gone.
    """
    if "form" in vars(request):
        if request.mimetype == "application/x-www-form-urlencoded":
            return False
        # Without a boundary, the parser returns an empty form and reads nothing.
        is_multipart = request.mimetype == "multipart/form-data"
        if is_multipart and request.mimetype_params.get("boundary"):
            return False
    environ = request.environ
    if get_content_length(environ) or "HTTP_TRANSFER_ENCODING" in environ:
        return True
    # Over HTTP/2, a body needs neither header.
    return bool(
        not environ.get("CONTENT_LENGTH")
        and environ.get("wsgi.input_terminated")
        and environ.get("SERVER_PROTOCOL", "").startswith(("HTTP/2", "HTTP/3"))
        and request.method in ("POST", "PUT", "PATCH")
    )


# Two threads must not share a transaction, socket or cursor. There is no reliable way to
# tell which values have one, so these methods are looked for. __exit__, release and
# shutdown are not among them, because paths, locks and executors have those.
_METHODS = (
    "close",
    "aclose",
    "disconnect",
    "commit",
    "commit_transaction",  # pymongo sessions.
    "abandon",  # ldap3 connections. Their unbind() is on structlog loggers, too.
)
# What extensions keep in g for one request, and set again if it is missing.
_EXTENSION_NAMES = (
    "_flask_babel",  # Flask-Babel's locale. It is changed in place.
    "_sqlalchemy_queries",  # The queries that Flask-SQLAlchemy has recorded.
    "fs_authn_via",  # How Flask-Security has found the user. Without it, it looks again.
)
# The last three have a close(), but are data. The others are here for speed. These are
# ids, because a metaclass may make a class unhashable.
_DATA = set(map(id, [bool, bytes, float, int, str, type(None)]))
_DATA.update(map(id, [io.BytesIO, io.StringIO, FileStorage]))
# An app's own class may load its values when it is iterated. These do not.
_COLLECTIONS: Any = (list, tuple, set)
# A dict in g may be large, so only the first values are inspected.
_MOST_VALUES = 100


def _stays_with_view(value: object) -> bool:
    """Return whether a value belongs to the view, or is a container of one that does."""
    if id(type(value)) in _DATA:
        return False  # For speed. Most values are such, and need no list.
    values = [value]
    # The list grows while it is read. Values in containers are appended, and count too.
    for each in itertools.islice(values, 1 + _MOST_VALUES):
        if id(type(each)) in _DATA:
            continue
        # What can't be inspected is data, such as a dict that another thread changes.
        with contextlib.suppress(Exception):
            if _belongs_to_view(each):
                return True
            if issubclass(type(each), dict):
                values.extend(itertools.islice(_dict.values(each), _MOST_VALUES))
            for base in _COLLECTIONS:
                if issubclass(type(each), base):
                    values.extend(itertools.islice(base.__iter__(each), _MOST_VALUES))
    return False


def _belongs_to_view(value: object) -> bool:
    """Return whether a value can be closed or committed, or is a SQLAlchemy model.

    ``__class__`` is used, because a tracer's wrapper around a connection names the
    connection's class there. For a LocalProxy, it would resolve the proxy.
    """
    is_proxy = issubclass(type(value), LocalProxy)
    cls: Any = type(value) if is_proxy else value.__class__
    if hasattr(cls, "__mapper__"):  # A SQLAlchemy model.
        return True
    for name in _METHODS:
        # A member of that name may be something else, such as a column.
        if callable(getattr(cls, name, None)):
            return True
    return False


def _stays_message(name: str) -> str:
    return (
        f"g.{name} stays with the view. carry_context() doesn't carry values that can"
        " be closed or committed, or SQLAlchemy model instances. Open or load it in the"
        " task, as get_db() does in Flask's tutorial."
    )


def _code_flags(func: Any) -> int:
    """Return the flags, as in ``inspect``, of the code that a call of func runs.

    Unlike the functions of ``inspect``, this handles compiled functions, mocks, and
    objects with an async ``__call__``.
    """
    while issubclass(type(func), functools.partial):
        func = func.func
    for each in (func, type(func).__call__):
        flags = getattr(getattr(each, "__code__", None), "co_flags", None)
        if isinstance(flags, int):  # A mock may have another mock there.
            return flags
    return 0


def _check_callable(func: Any, flags: int) -> None:
    """Refuse what is not callable, and generator functions, which run later."""
    if not callable(func):
        raise TypeError(
            f"carry_context() takes a function, not {type(func).__qualname__!r}. Pass the"
            " function itself, as in carry_context(task). Don't pass the result of calling"
            " it, a Thread, or a Future."
        )
    if flags & (inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR):
        raise TypeError(
            f"carry_context() cannot carry the generator function {func!r}. Its body"
            " runs later, without the context. Wrap the function that iterates over it."
        )


def _check_result(result: Any) -> None:
    """Refuse a coroutine that has not started. It would run without the context."""
    is_coroutine = issubclass(type(result), types.CoroutineType)
    if is_coroutine and inspect.getcoroutinestate(result) == inspect.CORO_CREATED:
        result.close()
        raise TypeError(
            "The function in carry_context() returned a coroutine, which would run"
            f" without the context. Await carry_context({result.__name__})() in an"
            " event loop. In threads, pass the coroutine to carry_context(asyncio.run)."
        )


_ADVICE = "Wrap the task inside the view: executor.submit(carry_context(task))."


def _check_app_context() -> None:
    """Refuse a call while no context is active."""
    if not has_app_context():
        raise RuntimeError(
            f"There is no active Flask context to carry. {_ADVICE} Wrap a job that belongs"
            " to no request inside `with app.app_context():`."
        )


# The modules that call what runs in a request.
_CALLERS = (
    "flask.app",  # Views.
    "flask.helpers",  # Streamed responses.
    "flask.ctx",  # Functions in copy_current_request_context().
    "asgiref.sync",  # Async views.
    "concurrent.futures.thread",  # What an async view gathers, or runs in a thread.
    __name__,  # Tasks.
)


def _check_import() -> None:
    """Refuse to carry a request at the top level of a module that it imports.

    A decorator there would give this request's session to all later users. If no view
    is being called, the module itself has opened the context, for a job at startup.
    """
    importing: str | None = None
    frame = inspect.currentframe()
    while frame and frame.f_globals.get("__name__") == __name__:
        frame = frame.f_back
    # Stop at the view, because an app may be served while its module is imported.
    while frame and frame.f_globals.get("__name__") not in _CALLERS:
        # The import system sets this. exec() has a <module> frame, too, but not this.
        spec = frame.f_globals.get("__spec__")
        is_module = frame.f_code.co_name == "<module>"
        if is_module and getattr(spec, "_initializing", False):
            importing = importing or str(frame.f_globals["__name__"])
        frame = frame.f_back
    if frame and importing:
        raise RuntimeError(
            "carry_context() was called while a request was importing the module"
            f" {importing!r}. All later calls would have this request. {_ADVICE}"
        )


def _update_wrapper(wrapper: Any, func: Any) -> None:
    """Make the wrapper look like the function, as functools.wraps() does."""
    try:
        functools.update_wrapper(wrapper, func)
    except TypeError:  # A mock's __name__ may be a mock. That of its __call__ is not.
        functools.update_wrapper(wrapper, func.__call__)
    # Job queues such as RQ store a function by this name, and import it later. They
    # must not find the unwrapped function.
    name = getattr(func, "__qualname__", "carried")
    wrapper.__qualname__ = f"carry_context.<locals>.{name}"
