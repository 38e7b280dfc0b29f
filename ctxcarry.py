# ctxcarry 1.2.0, SPDX-License-Identifier: MIT-0
"""Carry Flask's contexts and context variables into threads, pools and event loops."""

from __future__ import annotations

import builtins
import contextlib
import contextvars
import copy
import decimal
import functools
import inspect
import io
import itertools
import types
from collections.abc import Callable, Collection, Generator
from typing import Any, ParamSpec, TypeVar, cast

import flask.ctx
import flask.globals
import werkzeug.local
from flask import Request, has_app_context, has_request_context
from flask.sessions import SecureCookieSession
from werkzeug.datastructures import EnvironHeaders
from werkzeug.routing import MapAdapter
from werkzeug.wsgi import get_content_length

__all__ = ["carry_context"]
__version__ = "1.2.0"

P = ParamSpec("P")
R = TypeVar("R")


def carry_context(func: Callable[P, R], /) -> Callable[P, R]:
    """Wrap a function so that it runs with a copy of the current context.

    Flask's contexts belong to the thread that handles the request. Call this in a view,
    and hand the result to a thread, a pool, a timer, a greenlet or an event loop::

        @app.route("/report")
        def report():
            @carry_context
            def part(item):
                return f"{item} of {g.tenant}, for {session['user']}"

            return list(executor.map(part, request.args.getlist("item")))

    The copy is made when this is called. Each call of the result pushes contexts of its
    own, made from that copy, and pops them at its end. Calls can run at the same time,
    and after the response. What they set in ``g`` or in ``session`` stays in the call.

    -   ``request`` and ``session`` are copies. Attributes that you have set on
        ``request`` are shared, and so are uploaded files. Plain lists, dicts, sets and
        tuples in the session are copied too. What a task writes to its session is not
        sent, and a view that calls this counts as one that reads the session.
    -   ``g`` and the context variables have the same values as in the view. A mutable
        value is shared with the view: replace it, do not change it.
    -   Open resources, such as database connections, and SQLAlchemy's objects stay with
        the view: ``g.db`` raises an ``AttributeError`` in the task. Open or load them
        there, as ``get_db()`` does in Flask's tutorial.
    -   The task can use the form, the JSON or the data of the request if the view has
        read it.

    .. warning::
        Commit in the view before the task starts. The task has its own connection.

        Teardown functions run for each call. In ``g`` they find only what the task has
        set, so that they do not close what belongs to the view. Write ``g.get("start")``
        there, not ``g.start``.

    :param func: A callable. For a coroutine function, the result is one too, and all its
        steps run in the context. Generator functions are not supported.
    :return: A callable with the same parameters and result. It cannot be pickled.
    :raises TypeError: If ``func`` is not callable, or is a generator function. Calling
        the result raises it if a plain function returns a coroutine.
    :raises RuntimeError: If no context is active, or if this is called at the top level
        of a module that is imported during a request.
    """
    _check_callable(func)
    _check_context()
    snapshot = _Snapshot()

    def carried(*args: P.args, **kwargs: P.kwargs) -> R:
        call = functools.partial(_call, snapshot, func, *args, **kwargs)
        return snapshot.new_variables().run(call)

    async def carried_async(*args: P.args, **kwargs: P.kwargs) -> Any:
        call = _call_async(snapshot, func, *args, **kwargs)
        return await _StepsInContext(snapshot.new_variables(), call)

    is_async = _code_flags(func) & inspect.CO_COROUTINE
    wrapper: Any = carried_async if is_async else carried
    _update_wrapper(wrapper, func)
    return cast("Callable[P, R]", wrapper)


def _call(
    snapshot: _Snapshot, func: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs
) -> R:
    """Call a function in contexts of its own."""
    with _PushedContexts(snapshot, func):
        result = func(*args, **kwargs)
        _check_result(result)
        return result


async def _call_async(
    snapshot: _Snapshot, func: Callable[P, Any], /, *args: P.args, **kwargs: P.kwargs
) -> Any:
    """Call a coroutine function, and await it, in contexts of its own."""
    with _PushedContexts(snapshot, func):
        return await func(*args, **kwargs)


class _StepsInContext(Generator[Any, Any, Any]):
    """Awaits a coroutine, and runs each of its steps in a context, on any event loop.

    The ``context`` of an ``asyncio.Task`` does this for one event loop only.
    """

    def __init__(self, context: contextvars.Context, coroutine: Any) -> None:
        self._context = context
        self._coroutine = coroutine

    def __await__(self) -> Generator[Any, Any, Any]:
        return self

    def send(self, value: Any, /) -> Any:
        return self._context.run(self._coroutine.send, value)

    def throw(self, *error: Any) -> Any:
        try:
            return self._context.run(self._coroutine.throw, *error)
        finally:
            del error  # Else the error, its traceback and this frame form a cycle.


# Flask's contexts. Up to Flask 3.1 a request has two: its own, and the app's, which has
# g. Flask 3.2 has one for both (pallets/flask#5639). It warns if the old names are
# imported, so they are looked up with vars().
_HAS_ONE_CONTEXT = "RequestContext" not in vars(flask.ctx)
_CONTEXT_CLASSES: tuple[Any, ...] = (
    flask.ctx.AppContext,
    vars(flask.ctx).get("RequestContext", flask.ctx.AppContext),
)
_STACKS: list[Any] = []
_release_local: Any = vars(werkzeug.local)["release_local"]  # Not typed in 2.2.

if "app_ctx" in vars(flask.globals):
    _app_ctx: Any = vars(flask.globals)["app_ctx"]
    _request_ctx: Any = vars(flask.globals).get("request_ctx", _app_ctx)
else:  # Up to Flask 2.1. Calling a stack returns a proxy for what is on top of it.
    _STACKS.append(vars(flask.globals)["_app_ctx_stack"])
    _STACKS.append(vars(flask.globals)["_request_ctx_stack"])
    _app_ctx, _request_ctx = (stack() for stack in _STACKS)


def _active_contexts() -> tuple[Any, Any]:
    """Return the active app context, and the request context if it is of the same app.

    A view may push a context of another app. It then sees that app, without a request.
    """
    app_context = _app_ctx._get_current_object()
    if has_request_context():
        request_context = _request_ctx._get_current_object()
        if request_context.app is app_context.app:
            return app_context, request_context
    return app_context, None


class _AppWithAdapter:
    """Stands in for the app while a request context is made.

    A context asks the app for a URL adapter, which takes longer than all the rest. This
    hands out the one that the view's context has. The app answers everything else.
    """

    def __init__(self, app: Any, url_adapter: Any) -> None:
        self._app = app
        self._url_adapter = url_adapter

    def create_url_adapter(self, request: object) -> Any:
        return self._url_adapter

    def __getattr__(self, name: str) -> Any:
        return getattr(self._app, name)


class _Snapshot:
    """What is active when carry_context() is called.

    All calls of one wrapper share it and none changes it. It keeps no context, request
    or stream of the view alive.
    """

    def __init__(self) -> None:
        app_context, request_context = _active_contexts()
        self.app = app_context.app
        self._take_g(app_context.g)
        self._take_variables()
        self.request: Any = None
        self.session: Any = None
        if request_context is not None:
            self._take_request(request_context)

    def _take_g(self, g: Any) -> None:
        """Take the data in g, and the names of what stays with the view."""
        self.attributes: dict[str, Any] = {}
        self.left_names: list[str] = []
        attributes = _get_attributes(g) or {}
        for name, value in attributes.copy().items():
            if name in _LEFT_NAMES or _holds_resource(value):
                self.left_names.append(name)
            else:
                self.attributes[name] = value

    def _take_variables(self) -> None:
        """Take the context variables, except Flask's contexts and open resources.

        copy_context() alone would keep the view's contexts alive, and show them to
        signals and teardown functions while those of the task are not pushed.
        """
        self.variables = contextvars.Context()
        self.decimal_contexts: list[tuple[Any, decimal.Context]] = []
        for variable, value in contextvars.copy_context().items():
            # Not isinstance(), which would look up what a LocalProxy stands for.
            if issubclass(type(value), decimal.Context):
                self.decimal_contexts.append((variable, value.copy()))
                continue
            if issubclass(type(value), _CONTEXT_CLASSES) or _holds_resource(value):
                continue
            self.variables.run(variable.set, value)
        # A stack of Flask up to 2.1 is in a context variable, and holds the view's.
        for stack in _STACKS:
            self.variables.run(_release_local, stack)

    def _take_request(self, context: Any) -> None:
        """Take the request and the session."""
        session = context.session
        if session is None:
            raise RuntimeError("carry_context() was called before the session is open.")
        with contextlib.suppress(AttributeError):
            session.accessed = True  # The response then varies by cookie.
        self.context_class = context.__class__
        self.url_adapter = _copy(context.url_adapter)
        self.request = _copy_request(context.request, None)
        self.session = _copy_session(session, {})
        self.body_class = _UnreadBody if _has_unread_body(self.request) else io.BytesIO

    def new_variables(self) -> contextvars.Context:
        """Make the contextvars.Context of one call."""
        variables = self.variables.copy()
        for variable, value in self.decimal_contexts:
            variables.run(variable.set, value.copy())  # It is changed in place.
        return variables

    def new_contexts(self) -> list[Any]:
        """Make the contexts of one call, in the order in which they are pushed."""
        if self.request is None:
            return [self.app.app_context()]
        request = _copy_request(self.request, self.body_class())
        session = _copy_session(self.session, {})
        app = _AppWithAdapter(self.app, _copy(self.url_adapter))
        if _HAS_ONE_CONTEXT:
            context = self.context_class(app, request=request, session=session)
            contexts = [context]
        else:
            context = self.context_class(
                app, environ=request.environ, request=request, session=session
            )
            contexts = [self.app.app_context(), context]
        context.app = self.app  # The other one was for its __init__() only.
        context.match_request = _do_nothing  # The view's URL was matched.
        request.close = _do_nothing  # It would close the view's uploads.
        return contexts


_LEFT_NOTE = (
    "g.{name} stays with the view: carry_context() does not carry open resources or"
    " objects of an ORM. Open or load it in the task, as get_db() in Flask's tutorial."
)
_CARRIED_NOTE = (
    "g.{name} was carried from the view. Teardown functions find only what the task has"
    " set in g. Use g.get({name!r}) there."
)
_LOST_SESSION = (
    "%s changed the session in a task of carry_context(). The change is lost: the task"
    " has a copy of the session, which is not sent with the response. Return the value"
    " from the task, and set it in the view."
)
# Python 3.10 has neither groups nor notes. isinstance(error, ()) is false.
_EXCEPTION_GROUP: Any = vars(builtins).get("BaseExceptionGroup", ())


class _PushedContexts:
    """The contexts of one call, which are pushed on entry and popped on exit."""

    def __init__(self, snapshot: _Snapshot, func: object) -> None:
        self.snapshot = snapshot
        self.func = func
        self.pushed: list[Any] = []

    def __enter__(self) -> None:
        contexts = self.snapshot.new_contexts()
        self.g = contexts[0].g
        self.attributes = _carry_attributes(self.g, self.snapshot.attributes)
        try:
            for context in contexts:
                # A receiver of appcontext_pushed may raise. The context is pushed then.
                self.pushed.append(context)
                context.push()
        except BaseException as error:
            self._end(error)
            raise

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        self._end(error)

    def _end(self, error: BaseException | None) -> None:
        """Remove the carried values from g, and pop the contexts whatever happens."""
        try:
            self._warn_of_lost_session()
            self._explain(error, self.snapshot.left_names, _LEFT_NOTE)
            if self.attributes is not None:
                self.attributes.remove_carried()
        finally:
            self._pop(error)

    def _pop(self, error: BaseException | None) -> None:
        """Pop the contexts. An error of teardown does not replace one of the task."""
        try:
            # Not ``with context``, which may keep it for a debugger up to Flask 2.1.
            try:
                self.pushed[-1].pop(error)
            finally:
                for app_context in self.pushed[:-1]:
                    app_context.pop(error)
        except Exception as teardown_error:
            self._explain(teardown_error, self.snapshot.left_names, _LEFT_NOTE)
            self._explain(teardown_error, self.snapshot.attributes, _CARRIED_NOTE)
            if error is None:
                raise
            self.snapshot.app.logger.exception("A task failed, and then its teardown.")

    def _warn_of_lost_session(self) -> None:
        """Log that a change of the session is lost, while the app is developed."""
        app = self.snapshot.app
        if self.snapshot.request is None or not (app.debug or app.testing):
            return
        # A session of any class may raise here, and so may the values in it.
        with contextlib.suppress(Exception):
            if dict(self.pushed[-1].session) != dict(self.snapshot.session):
                name = getattr(self.func, "__qualname__", repr(self.func))
                app.logger.warning(_LOST_SESSION, name)

    def _explain(self, error: Any, names: Collection[str], note: str) -> None:
        """Add a note to an AttributeError about one of these names in the task's g."""
        if isinstance(error, _EXCEPTION_GROUP):
            for each in error.exceptions:
                self._explain(each, names, note)
        elif isinstance(error, AttributeError) and hasattr(error, "add_note"):
            name = str(error.name)
            if error.obj is self.g and name in names:
                error.add_note(note.format(name=name))


# The attributes of g, and who has set them.

_MISSING = object()


class _TaskAttributes(dict[str, Any]):
    """The ``__dict__`` of a task's g, which notes the names that the task sets.

    Teardown functions must not close what belongs to the view, but must close what the
    task has opened. To compare values is not enough: the task may set the very object
    that was carried, such as ``True`` or a client that all threads share.
    """

    __slots__ = ("carried", "defaults", "set_names")

    def __init__(self, defaults: dict[str, Any], carried: dict[str, Any]) -> None:
        super().__init__({**defaults, **carried})
        self.defaults = defaults
        self.carried = carried
        self.set_names: set[str] = set()

    def __setitem__(self, name: str, value: Any) -> None:
        self.set_names.add(name)
        super().__setitem__(name, value)

    # The methods of dict do not call __setitem__.
    def setdefault(self, name: str, default: Any = None) -> Any:
        if name not in self:
            self[name] = default
        return self[name]

    def update(self, *args: Any, **kwargs: Any) -> None:
        for name, value in dict(*args, **kwargs).items():
            self[name] = value

    def __reduce__(self) -> tuple[Any, ...]:
        """Let copy and pickle make a plain dict of ``vars(g)``."""
        return dict, (dict(self),)

    def remove_carried(self) -> None:
        """Remove what was carried, and put back the defaults that it has replaced."""
        for name, value in self.carried.items():
            # Flask 1.x sets an attribute of g without calling __setitem__. Another value
            # shows that it was set.
            if name in self.set_names or self.get(name, _MISSING) is not value:
                continue
            self.pop(name, None)
            if name in self.defaults:
                self[name] = self.defaults[name]


def _get_attributes(g: Any) -> dict[str, Any] | None:
    """Return the attributes of g, or None if an app's class has no plain ones."""
    attributes = getattr(g, "__dict__", None)
    if type(attributes) in (dict, _TaskAttributes):
        return cast("dict[str, Any]", attributes)
    return None


def _carry_attributes(g: Any, carried: dict[str, Any]) -> _TaskAttributes | None:
    """Give g what is carried, or return None if an app's class does not allow it."""
    defaults = _get_attributes(g)
    if defaults is None:
        return None
    attributes = _TaskAttributes(defaults, carried)
    try:
        # A plain assignment would add an attribute of this name to g.
        object.__setattr__(g, "__dict__", attributes)
    except (AttributeError, TypeError):
        return None
    return attributes


# What is copied, and how.

_COPY_HOOKS = "__copy__", "__getnewargs__", "__getnewargs_ex__", "__setstate__"
_COPIED_PLAINLY: tuple[Any, ...] = (Request, SecureCookieSession, MapAdapter)


def _copy(original: Any) -> Any:
    """Copy an object with its attributes, and with its items if it is a dict.

    copy.copy() calls __getstate__, which may leave out what cannot be pickled. It calls
    __setitem__, which may write to a session store. It looks up names on a copy without
    attributes, so a __getattr__ may recurse without end.
    """
    cls = cast(Any, type(original))
    # For speed, skip the check for Flask's own classes.
    if cls not in _COPIED_PLAINLY and _needs_copy_module(cls):
        return copy.copy(original)
    try:
        copied = cls.__new__(cls)
        if issubclass(cls, dict):
            plain_dict = cast(Any, dict)
            plain_dict.update(copied, plain_dict.items(original))
        object.__setattr__(copied, "__dict__", original.__dict__.copy())
    except (AttributeError, TypeError):  # It has no plain __new__ or no plain __dict__.
        return copy.copy(original)
    return copied


def _needs_copy_module(cls: Any) -> bool:
    """Say whether a class is copied in a way of its own, or has slots."""
    if any(hasattr(cls, name) for name in _COPY_HOOKS):
        return True
    if hasattr(cls, "__getattr__"):
        return False  # copy.copy() may recurse in it without end.
    has_slots = any(base.__dict__.get("__slots__") for base in cls.__mro__)
    return has_slots or cls.__reduce__ is not object.__reduce__


def _copy_request(request: Any, body: Any) -> Any:
    """Copy a request with an environ of its own, and with this body."""
    copied = _copy(request)
    environ = request.environ.copy()
    environ["werkzeug.request"] = None  # It refers to the view's request.
    environ["wsgi.input"] = body
    headers = request.headers
    if isinstance(headers, EnvironHeaders) and headers.environ is request.environ:
        copied.headers = type(headers)(environ)
    copied.environ = environ
    vars(copied)["stream"] = body  # As its cached property does.
    copied.view_args = copy.copy(request.view_args)
    return copied


def _copy_session(session: Any, copies: dict[int, Any]) -> Any:
    """Copy a session, and the containers in its items and attributes.

    ``copies`` has what is copied already, so that containers may contain each other.
    """
    if id(session) in copies:
        return copies[id(session)]
    copied = _copy(session)
    copies[id(session)] = copied
    if issubclass(type(session), dict):
        # The class's own methods may load the session, or write to its store.
        plain_dict = cast(Any, dict)
        for key, value in plain_dict.items(copied):
            plain_dict.__setitem__(copied, key, _copy_containers(value, copies))
    attributes: dict[str, object] = getattr(copied, "__dict__", {})
    for name, value in attributes.items():
        cls = type(value)
        if issubclass(cls, dict) and cls is not dict:
            # Beaker's session wraps another session, which is such an attribute.
            with contextlib.suppress(TypeError):  # It is shared if it cannot be copied.
                attributes[name] = _copy_session(value, copies)
        else:
            attributes[name] = _copy_containers(value, copies)
    return copied


def _copy_containers(value: object, copies: dict[int, Any]) -> Any:
    """Copy a plain list, dict, set or tuple, and those in it. Return all else as is."""
    kind = type(value)
    if kind not in (list, dict, set, tuple):
        return value
    if id(value) in copies:
        return copies[id(value)]
    original = cast(Any, value)
    if kind is tuple:
        copied: Any = tuple([_copy_containers(item, copies) for item in original])
        copies[id(value)] = copied
        return copied
    copied = original.copy()
    copies[id(value)] = copied
    if kind is list:
        for index, item in enumerate(original):
            copied[index] = _copy_containers(item, copies)
    elif kind is dict:
        for key, item in original.items():
            copied[key] = _copy_containers(item, copies)
    return copied


def _do_nothing() -> None:
    """Replace a method that must not run for a task."""


# The request body.

_FORM_TYPES = "multipart/form-data", "application/x-www-form-urlencoded"
_METHODS_WITHOUT_BODY = "GET", "HEAD", "DELETE", "OPTIONS", "TRACE"


class _UnreadBody(io.RawIOBase):
    """The body of a task's request, if the view has not read it. Reading it raises."""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object, /) -> int:
        raise RuntimeError(
            "carry_context() carries the request body only if the view has read and kept"
            " it. Read all of it in the view first, before carry_context(), with"
            " get_json(), get_data() or form. Call read() or save() of an uploaded file."
        )


def _has_unread_body(request: Any) -> bool:
    """Say whether reading the stream is an error in a task.

    It is if there is a body, unless the view has parsed a form from it. What the view has
    read with get_data() or get_json() is cached, and does not reach the stream.
    """
    # Without a boundary, the parser returns an empty form and reads nothing.
    if "form" in vars(request) and request.mimetype in _FORM_TYPES:
        is_multipart = request.mimetype == "multipart/form-data"
        if not is_multipart or request.mimetype_params.get("boundary"):
            return False
    environ = request.environ
    if get_content_length(environ) or "HTTP_TRANSFER_ENCODING" in environ:
        return True
    # HTTP/2 has neither of the two, if the client does not know the length.
    return bool(
        not environ.get("CONTENT_LENGTH")
        and environ.get("wsgi.input_terminated")
        and environ.get("SERVER_PROTOCOL", "").startswith(("HTTP/2", "HTTP/3"))
        and request.method not in _METHODS_WITHOUT_BODY
    )


# Open resources, which stay with the view.

_CLOSING = "close", "aclose", "disconnect", "unbind"
_MANAGING = "__exit__", "__aexit__", "commit", "transaction"
# State of one request, of Flask-Babel and Flask-Security. Both set it again.
_LEFT_NAMES = "_flask_babel", "fs_authn_via"
_NO_RESOURCES = bool, bytes, float, int, str, type(None), io.BytesIO, io.StringIO
_CONTAINERS: tuple[Any, ...] = (dict, list, tuple, set)
# The two of io only hold memory. Ids, as a metaclass may make a class unhashable.
_NO_RESOURCE_IDS = {id(cls) for cls in (*_NO_RESOURCES, *_CONTAINERS)}


def _holds_resource(value: object) -> bool:
    """Say whether a value is an open resource, or a container with one in it."""
    values = [value]
    if issubclass(type(value), _CONTAINERS):
        # Only the first values, as a dict in g may be large. They are listed before they
        # are looked at, as another thread may change the dict meanwhile.
        values += itertools.islice(_iterate(value), 100)
    for each in values:
        # For speed, skip the classes of most values.
        if id(type(each)) not in _NO_RESOURCE_IDS and _is_resource(each):
            return True
    return False


def _iterate(container: object) -> Any:
    """Iterate without the methods of an app's class, which may load the values."""
    if issubclass(type(container), dict):
        return cast(Any, dict).values(container)
    base = next(each for each in _CONTAINERS if issubclass(type(container), each))
    return base.__iter__(container)


def _is_resource(value: object) -> bool:
    """Look at the class of a value. Tracers wrap a value and set its ``__class__``."""
    cls = type(value)
    with contextlib.suppress(Exception):  # A class may raise anything. Then it is data.
        if _is_resource_class(cls):
            return True
        # A LocalProxy would look up the object behind it.
        if not issubclass(cls, werkzeug.local.LocalProxy):
            return _is_resource_class(value.__class__)
    return False


def _is_resource_class(cls: Any) -> bool:
    """Say whether a class is mapped by SQLAlchemy, or looks like a connection.

    A connection has a method that closes it, and either ``with`` or transactions.
    """
    if hasattr(cls, "__mapper__"):
        return True
    # A class may have a member of that name that is no method, such as a column.
    closes = any(callable(getattr(cls, name, None)) for name in _CLOSING)
    manages = any(callable(getattr(cls, name, None)) for name in _MANAGING)
    return closes and manages


# What is refused, and how the result looks.


def _code_flags(func: Any) -> int:
    """Return the flags, as in ``inspect``, of the code that a call of func runs.

    Unlike the functions of ``inspect``, this looks at the ``__call__`` of an object.
    """
    while isinstance(func, functools.partial):
        func = cast(Any, func).func
    if not isinstance(func, (types.FunctionType, types.MethodType)):
        func = type(func).__call__
    code = getattr(func, "__code__", None)
    return code.co_flags if isinstance(code, types.CodeType) else 0


def _check_callable(func: Any) -> None:
    """Refuse what cannot be called, and what would run after the call."""
    if not callable(func):
        raise TypeError(
            f"carry_context() takes a function, not {type(func).__qualname__!r}. Pass"
            " the function itself, carry_context(task), not its result, and not a"
            " Thread or a Future."
        )
    if _code_flags(func) & (inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR):
        raise TypeError(
            f"carry_context() cannot carry the generator function {func!r}: its body"
            " would run later, without the context. Wrap the function that iterates"
            " over it."
        )


def _check_result(result: Any) -> None:
    """Refuse a coroutine that has yet to start, as it would start without the context."""
    if not issubclass(type(result), types.CoroutineType):
        return
    if inspect.getcoroutinestate(result) == inspect.CORO_CREATED:
        result.close()
        raise TypeError(
            "The function in carry_context() returned a coroutine, which would run later,"
            f" without the context. Await carry_context({result.__name__})() in an event"
            " loop, or carry asyncio.run in a thread."
        )


def _check_context() -> None:
    """Refuse if no context is active, or if a request imports the calling module."""
    advice = "Wrap the task inside the view: executor.submit(carry_context(task))."
    if not has_app_context():
        raise RuntimeError(
            f"There is no active Flask context to carry. {advice} Wrap a job that"
            " belongs to no request under `with app.app_context():`."
        )
    if has_request_context():
        module = _find_importing_module()
        if module is not None:
            raise RuntimeError(
                f"carry_context() was called while a request imports the module {module!r}."
                f" All later calls would run with this one request. {advice}"
            )


# The modules of Flask that call views, and the generators of streamed responses.
_DISPATCHING = "flask.app", "flask.helpers"


def _find_importing_module() -> str | None:
    """Return the name of the module that the view imports, if its top level calls this."""
    frame = inspect.currentframe()
    # No further than to the view: an app may be served while its module is imported.
    while frame and frame.f_globals.get("__name__") not in _DISPATCHING:
        if frame.f_code.co_name == "<module>":
            spec = frame.f_globals.get("__spec__")
            if getattr(spec, "_initializing", False):
                return str(frame.f_globals["__name__"])
        frame = frame.f_back
    return None


def _update_wrapper(wrapper: Any, func: Any) -> None:
    """Make the wrapper look like the function, as functools.wraps() does."""
    try:
        functools.update_wrapper(wrapper, func)
    except TypeError:
        # An xmlrpc method answers any attribute, also __name__, with another method.
        functools.update_wrapper(wrapper, func.__call__)
    # Job queues such as RQ store a function by this name, and import it later. They must
    # not find the unwrapped function.
    name = getattr(wrapper.__wrapped__, "__qualname__", "carried")
    wrapper.__qualname__ = f"carry_context.<locals>.{name}"
