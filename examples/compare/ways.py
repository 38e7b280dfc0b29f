"""The five ways to wrap a function in a view, so that it runs in another thread."""

import contextvars
import functools
import importlib
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from flask import Flask, copy_current_request_context, g

import ctxcarry

# These two have no types.
flask_executor: Any = importlib.import_module("flask_executor.executor")
flask_threads: Any = importlib.import_module("flaskthreads")

Task = Callable[..., Any]
TIMEOUT = 5


class Way(ABC):
    """One way to run a function in a pool or in a thread with what the view has."""

    name = ""

    def __init__(self, app: Flask) -> None:
        self.app = app
        self.pool = ThreadPoolExecutor(4)  # Its own, as some leave contexts behind.

    @abstractmethod
    def wrap(self, func: Task) -> Task:
        """Wrap a function, in the view."""

    def thread(self, func: Task) -> threading.Thread:
        return threading.Thread(target=self.wrap(func))

    def submit(self, func: Task, *args: Any) -> "Future[Any]":
        return self.pool.submit(self.wrap(func), *args)

    def run(self, func: Task, *args: Any) -> Any:
        return self.submit(func, *args).result(TIMEOUT)

    def map(self, func: Task, items: Iterable[Any]) -> list[Any]:
        return list(self.pool.map(self.wrap(func), items, timeout=TIMEOUT))


class BuiltIn(Way):
    name = "Flask's built-in"

    def wrap(self, func: Task) -> Task:
        return copy_current_request_context(func)


class Ctxcarry(Way):
    name = "`carry_context`"

    def wrap(self, func: Task) -> Task:
        return ctxcarry.carry_context(func)


class FlaskExecutor(Way):
    name = "Flask-Executor"

    def __init__(self, app: Flask) -> None:
        super().__init__(app)
        app.config["EXECUTOR_MAX_WORKERS"] = 4
        self.executor = flask_executor.Executor(app)

    def wrap(self, func: Task) -> Task:
        """Wrap as its executor does, to measure the costs of that alone."""
        copied = copy_current_request_context(func)
        wrapped: Task = flask_executor.push_app_context(copied)
        return wrapped

    def thread(self, func: Task) -> threading.Thread:
        raise RuntimeError("It wraps only for its own executor.")

    def submit(self, func: Task, *args: Any) -> Any:
        return self.executor.submit(func, *args)

    def map(self, func: Task, items: Iterable[Any]) -> list[Any]:
        return list(self.executor.map(func, items, timeout=TIMEOUT))


class FlaskThreads(Way):
    name = "Flask-Threads"

    def wrap(self, func: Task) -> Task:
        """Return what its thread runs, to measure the costs of that alone."""
        run: Task = self.thread(func).run
        return run

    def thread(self, func: Task) -> threading.Thread:
        thread: threading.Thread = flask_threads.AppContextThread(target=func)
        return thread

    def submit(self, func: Task, *args: Any) -> Any:
        return flask_threads.ThreadPoolWithAppContextExecutor(4).submit(func, *args)

    def map(self, func: Task, items: Iterable[Any]) -> list[Any]:
        pool = flask_threads.ThreadPoolWithAppContextExecutor(4)
        return list(pool.map(func, items, timeout=TIMEOUT))


class Closure(Way):
    name = "closure"

    def wrap(self, func: Task) -> Task:
        values = dict(vars(g))

        @copy_current_request_context
        def run(*args: Any) -> Any:
            with self.app.app_context():
                vars(g).update(values)
                return func(*args)

        return functools.partial(contextvars.copy_context().run, run)


WAYS: list[type[Way]] = [BuiltIn, Ctxcarry, FlaskExecutor, FlaskThreads, Closure]
