"""What tasks leave in memory that test_ctxcarry.py does not look at: kept errors, forgotten
coroutines, and what grows with the number of tasks."""

import asyncio
import contextvars
import copy
import gc
import sys
import types
import weakref
from collections.abc import Coroutine, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from flask import Flask, g, request, session

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


class Noted(Exception):
    """An error whose life can be watched."""


@types.coroutine
def suspend() -> Generator[None, None, None]:
    yield


def run_steps(coroutine: Any) -> None:
    """Run a coroutine that suspends once, without an event loop that keeps its error."""
    coroutine.send(None)
    coroutine.send(None)


@pytest.mark.parametrize("is_async", [False, True], ids=["plain", "async"])
@pytest.mark.parametrize("place", ["g", "variable"])
def test_an_error_that_a_task_keeps_is_in_no_cycle(
    app: Flask, place: str, is_async: bool
) -> None:
    variable: contextvars.ContextVar[Exception] = contextvars.ContextVar("variable")

    def fail() -> None:
        error = Noted()
        if place == "g":
            g.error = error
        else:
            variable.set(error)
        try:
            raise error
        finally:
            del error

    async def fail_async() -> None:
        await suspend()
        fail()

    def run() -> weakref.ref[Noted]:
        with app.app_context():
            carried: Any = carry_context(fail_async if is_async else fail)
        try:
            run_steps(carried()) if is_async else carried()
        except Noted as error:
            return weakref.ref(error)
        raise AssertionError

    assert run()() is None


def test_an_error_thrown_into_a_coroutine_is_in_no_cycle(app: Flask) -> None:
    def throw() -> weakref.ref[Noted]:
        with app.test_request_context():
            coroutine: Any = carry_context(work)()
        coroutine.send(None)
        try:
            coroutine.throw(Noted())
        except Noted as thrown:
            return weakref.ref(thrown)
        raise AssertionError

    async def work() -> None:
        await suspend()

    assert throw()() is None


def test_a_task_that_fails_through_a_future_is_in_no_cycle(app: Flask) -> None:
    async def fail() -> None:
        await asyncio.sleep(0)
        raise Noted

    async def work() -> None:
        await asyncio.ensure_future(fail())

    async def main(coroutine: Coroutine[Any, Any, None]) -> weakref.ref[Any]:
        task = asyncio.ensure_future(coroutine)
        await asyncio.wait([task])
        return weakref.ref(task.exception())

    with app.app_context():
        carried = carry_context(work)
    loop = asyncio.new_event_loop()
    alive = loop.run_until_complete(main(carried()))
    loop.run_until_complete(asyncio.sleep(0))  # The loop lets go of the last step.
    assert alive() is None
    loop.close()


def test_a_coroutine_that_is_closed_in_another_request_meets_its_own_g(
    app: Flask,
) -> None:
    ended: list[str] = []

    async def work() -> None:
        g.db = "the task's"
        try:
            await suspend()
        finally:
            ended.append(g.db)

    with app.test_request_context():
        coroutine: Any = carry_context(work)()
        coroutine.send(None)
    with app.test_request_context():
        g.db = "the other request's"
        coroutine.close()
    assert ended == ["the task's"]


def suspended() -> dict[int, Any]:
    """Return all coroutines and generators that there are."""
    kinds = [types.CoroutineType, types.GeneratorType]
    return {id(each): each for each in gc.get_objects() if type(each) in kinds}


def test_a_forgotten_coroutine_that_is_collected_meets_no_other_request(
    app: Flask,
) -> None:
    closed: list[Any] = []

    @app.teardown_appcontext
    def close_db(error: BaseException | None) -> None:
        closed.append(g.pop("db", None))

    async def work(cycle: list[Any]) -> None:
        g.db = "the task's"
        await suspend()

    def start_and_forget(first: int) -> bool:
        """Have one of its coroutines closed first. Say whether it has more."""
        others = suspended()
        cycle: list[Any] = []
        with app.test_request_context():
            cycle.append(carry_context(work)(cycle))
        cycle[0].send(None)
        started = [each for id, each in suspended().items() if id not in others]
        has_more = first + 1 < len(started)
        in_use = [started[first], cycle]
        del cycle, started, others
        gc.collect()  # It sorts what is in use by the order in which it gets there.
        del in_use
        return has_more

    first = 0
    has_more = True
    while has_more:
        has_more = start_and_forget(first)
        closed.clear()
        with app.test_request_context():
            g.db = "the other request's"
            gc.collect()
            assert closed == ["the task's"]
            assert g.db == "the other request's"
        first += 1


def test_memory_does_not_grow_with_the_number_of_tasks(
    app: Flask, pool: ThreadPoolExecutor
) -> None:
    def work(_: int) -> None:
        session["own"] = g.own = copy.copy(request)

    @app.route("/<int:tasks>")
    def view(tasks: int) -> str:
        list(pool.map(carry_context(work), range(tasks)))
        return ""

    def growth(tasks: int) -> int:
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(20):
            app.test_client().get(f"/{tasks // 20}")
        after, _ = tracemalloc.get_traced_memory()
        return int(after - before)

    tracemalloc.start()
    try:
        growth(10_000)  # Fills caches and free lists.
        more = growth(10_000) - growth(1_000)
    finally:
        tracemalloc.stop()
    smallest = sys.getsizeof(object())
    assert more < 9_000 * smallest, "An object stays of each task."
