"""The costs: each is measured for one way, and gives values by name."""

import contextvars
import itertools
import json
import math
import random
import sys
import time
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import tqdm
from flask import Flask, copy_current_request_context, g, session, url_for
from promises import empty, new_app
from ways import Task, Way
from werkzeug.test import EnvironBuilder

Costs = dict[str, float]
EIGHT = [contextvars.ContextVar[int](f"number_{number}") for number in range(8)]
FAILED = math.inf  # Sorts as the worst, so that the median of the rounds is right.


class FreshCopy(Way):
    name = "fresh copy per call"

    def wrap(self, func: Task) -> Task:
        context = contextvars.copy_context()  # The request to copy, in any thread.

        def copy_and_call(*args: Any) -> Any:
            return copy_current_request_context(func)(*args)

        return lambda *args: context.copy().run(copy_and_call, *args)


class Bare(Way):
    name = "nothing"

    def wrap(self, func: Task) -> Task:
        return func


def wrap_and_call(way: Way) -> Costs:
    """A few tasks at a time, as a view has them."""
    wrap = call = 0.0
    batch, batches = 5, 40
    for _ in range(batches):
        wrapped: list[Task] = []
        start = time.perf_counter()
        for _ in range(batch):
            wrapped.append(way.wrap(empty))
        wrap += time.perf_counter() - start
        call += way.pool.submit(call_all, wrapped).result()
    wrap, call = (cost / batch / batches * 1e6 for cost in (wrap, call))
    return {"wrap, µs": wrap, "call, µs": call, "wrap and call, µs": wrap + call}


def call_all(wrapped: list[Task]) -> float:
    start = time.perf_counter()
    while wrapped:
        wrapped.pop()()
    return time.perf_counter() - start


def with_eight_variables(way: Way) -> Costs:
    tokens = [variable.set(1) for variable in EIGHT]
    cost = wrap_and_call(way)["wrap and call, µs"]
    for variable, token in zip(EIGHT, tokens):
        variable.reset(token)
    return {"wrap and call, eight more context variables, µs": cost}


def build_urls() -> None:
    for number in range(50):
        url_for("costs", number=number)


def fifty_urls(way: Way) -> Costs:
    in_view = call_all([build_urls] * 4)
    try:
        in_task = way.pool.submit(call_all, [way.wrap(build_urls) for _ in range(4)])
        ratio = in_task.result() / in_view
    except Exception:  # Without a request there are no URLs.
        ratio = FAILED
    return {"50 URLs in a task, to the same in the view": ratio}


def start_response(*_: object) -> Task:
    return empty


def whole_request(app: Flask) -> Costs:
    environs = [EnvironBuilder("/one").get_environ() for _ in range(40)]
    start = time.perf_counter()
    for environ in environs:
        list(app.wsgi_app(environ, start_response))
    duration = time.perf_counter() - start
    return {"a request that waits for one task, µs": duration / len(environs) * 1e6}


def pending_task(way: Way) -> Costs:
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    pending = [way.wrap(empty) for _ in range(100)]
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return {"kept by a pending task, bytes": (after - before) / len(pending)}


def map_at_once(way: Way) -> Costs:
    costs: Costs = {}
    for threads in 1, 4:
        with ThreadPoolExecutor(threads) as pool:
            wrapped = way.wrap(empty)
            start = time.perf_counter()
            try:
                list(pool.map(wrapped, range(200)))
                cost = (time.perf_counter() - start) / 200 * 1e6
            except Exception:  # Most cannot run one wrapper twice at a time.
                cost = FAILED
        costs[f"a task by map, pool of {threads}, µs"] = cost
    return costs


def costs_app(way_class: type[Way]) -> Flask:
    """An app with views that measure the way."""
    app = new_app()
    app.config["PROPAGATE_EXCEPTIONS"] = True  # And nothing of testing mode.
    way = way_class(app)

    @app.route("/one")
    def one() -> str:
        g.user = session["user"] = "ada"
        way.pool.submit(way.wrap(empty)).result()
        return ""

    @app.route("/costs/<int:number>")
    def costs(number: int) -> str:
        g.user = session["user"] = "ada"
        g.count = number
        measured: Costs = {}
        for measure in (
            wrap_and_call,
            with_eight_variables,
            fifty_urls,
            pending_task,
            map_at_once,
        ):
            measured |= measure(way)
        return json.dumps(measured)

    return app


def costs_in_a_view(app: Flask) -> Costs:
    costs: Costs = json.loads(app.test_client().get("/costs/7?page=2").data)
    return costs


def measure(ways: list[type[Way]], rounds: int) -> dict[str, dict[str, list[float]]]:
    """Measure the ways in turn, in any order, so that all see the same noise."""
    apps = [(way.name, costs_app(way)) for way in ways]
    values: dict[str, dict[str, list[float]]] = {}
    measures: list[Callable[[Flask], Costs]] = [whole_request, costs_in_a_view]
    turns = [*itertools.product(measures, range(rounds))]
    for costs_of, _ in tqdm.tqdm(turns, "costs", file=sys.stderr):
        for name, app in random.sample(apps, len(apps)):
            for cost, value in costs_of(app).items():
                row = values.setdefault(cost, {name: [] for name, _ in apps})
                row[name].append(value)
    return values
