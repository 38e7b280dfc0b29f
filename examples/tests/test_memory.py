"""What a task leaves in memory, with a coroutine's errors and under a real server."""

import asyncio
import contextlib
import contextvars
import copy
import gc
import http.client
import sys
import threading
import types
import weakref
from collections.abc import Coroutine, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from flask import Flask, g, request, session
from helpers import TIMEOUT, in_thread
from werkzeug.serving import WSGIRequestHandler, make_server

from ctxcarry import carry_context

tracemalloc: Any = pytest.importorskip("tracemalloc")  # PyPy has none.


@pytest.fixture(autouse=True)
def no_gc() -> Iterator[None]:
    """Switch the garbage collector off, where objects go without it."""
    if sys.implementation.name != "cpython":
        pytest.skip("Only CPython counts references.")
    gc.collect()
    gc.disable()
    yield
    gc.enable()


class Thing:
    """Something whose life can be watched."""


@types.coroutine
def suspend() -> Generator[None, None, None]:
    yield


def test_an_exception_thrown_into_a_coroutine_is_in_no_cycle(app: Flask) -> None:
    class Thrown(Exception):
        pass

    def throw() -> weakref.ref[Thrown]:
        coroutine: Any = carried()
        coroutine.send(None)
        try:
            coroutine.throw(Thrown())
        except Thrown as thrown:
            return weakref.ref(thrown)
        raise AssertionError

    async def work() -> None:
        await suspend()

    with app.test_request_context():
        carried = carry_context(work)
    assert throw()() is None


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

    with app.app_context():
        g.thing = Thing()
        alive = weakref.ref(g.thing)
        carried = carry_context(work)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(main(carried()))
    del carried
    loop.run_until_complete(asyncio.sleep(0))  # The loop lets go of the last step.
    assert alive() is None
    loop.close()


def test_an_error_that_a_task_keeps_in_a_context_variable_is_in_no_cycle(
    app: Flask,
) -> None:
    kept: contextvars.ContextVar[Exception] = contextvars.ContextVar("kept")

    def fail() -> None:
        error = LookupError("noted")
        kept.set(error)
        try:
            raise error
        finally:
            del error

    def run() -> weakref.ref[Thing]:
        with app.app_context():
            g.thing = Thing()
            alive = weakref.ref(g.thing)
            carried = carry_context(fail)
        with pytest.raises(LookupError, match="noted"):
            in_thread(carried)
        return alive

    assert run()() is None


class KeepAlive(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"

    def log(self, type: str, message: str, *args: Any) -> None:
        """Leave the output to the test."""


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
        after, _ = tracemalloc.get_traced_memory()
        return int(after - before)

    with contextlib.ExitStack() as stack:
        tracemalloc.start()
        stack.callback(tracemalloc.stop)
        port = stack.enter_context(serving(app))
        growth(port, 10_000)  # Fills caches and free lists.
        more = growth(port, 10_000) - growth(port, 1_000)
    smallest = sys.getsizeof(object())
    assert more < 9_000 * smallest, "An object stays of each task."
