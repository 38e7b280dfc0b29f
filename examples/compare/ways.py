"""The ways to carry: what each makes of a function in a view."""

import contextvars
import functools
import importlib
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from flask import Flask, copy_current_request_context, g

import ctxcarry

Task = Callable[..., Any]
TIMEOUT = 5


class Way:
    name = "copy_context().run"
    needs = "flask"

    def __init__(self, app: Flask) -> None:
        self.app = app
        self.pool = ThreadPoolExecutor(4)  # Its own, as some leave contexts behind.

    def wrap(self, func: Task) -> Task:
        return functools.partial(contextvars.copy_context().run, func)

    def thread(self, func: Task) -> threading.Thread:
        return threading.Thread(target=self.wrap(func))

    def submit(self, func: Task, *args: Any) -> "Future[Any]":
        return self.pool.submit(self.wrap(func), *args)

    def run(self, func: Task, *args: Any) -> Any:
        return self.submit(func, *args).result(TIMEOUT)

    def map(self, func: Task, items: Iterable[Any]) -> list[Any]:
        return list(self.pool.map(self.wrap(func), items, timeout=TIMEOUT))


class Ctxcarry(Way):
    name = "ctxcarry"

    def wrap(self, func: Task) -> Task:
        return ctxcarry.carry_context(func)


class BuiltIn(Way):
    name = "Flask's built-in"

    def wrap(self, func: Task) -> Task:
        return copy_current_request_context(func)


class Closure(Way):
    name = "usual closure"

    def wrap(self, func: Task) -> Task:
        values = dict(vars(g))

        @copy_current_request_context
        def run(*args: Any) -> Any:
            with self.app.app_context():
                vars(g).update(values)
                return func(*args)

        return functools.partial(contextvars.copy_context().run, run)


class FlaskExecutor(Way):
    name = "Flask-Executor"
    needs = "flask-executor"

    def __init__(self, app: Flask) -> None:
        super().__init__(app)
        self.module = importlib.import_module("flask_executor.executor")
        app.config["EXECUTOR_MAX_WORKERS"] = 4
        self.executor = self.module.Executor(app)

    def wrap(self, func: Task) -> Task:  # As its executor does, for the costs.
        wrapped: Task = self.module.push_app_context(copy_current_request_context(func))
        return wrapped

    def thread(self, func: Task) -> threading.Thread:
        raise RuntimeError("It wraps for its own executor only.")

    def submit(self, func: Task, *args: Any) -> Any:
        return self.executor.submit(func, *args)

    def map(self, func: Task, items: Iterable[Any]) -> list[Any]:
        return list(self.executor.map(func, items, timeout=TIMEOUT))


class FlaskThreads(Way):
    name = "Flask-Threads"
    needs = "flask-threads"

    def __init__(self, app: Flask) -> None:
        super().__init__(app)
        self.module = importlib.import_module("flaskthreads")

    def wrap(self, func: Task) -> Task:
        run: Task = self.thread(func).run
        return run

    def thread(self, func: Task) -> threading.Thread:
        thread: threading.Thread = self.module.AppContextThread(target=func)
        return thread

    def submit(self, func: Task, *args: Any) -> Any:
        return self.module.ThreadPoolWithAppContextExecutor(4).submit(func, *args)

    def map(self, func: Task, items: Iterable[Any]) -> list[Any]:
        pool = self.module.ThreadPoolWithAppContextExecutor(4)
        return list(pool.map(func, items, timeout=TIMEOUT))


WAYS = [Ctxcarry, BuiltIn, FlaskExecutor, FlaskThreads, Closure, Way]
