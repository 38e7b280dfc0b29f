"""The rows of the second table. Each measures one way, by the clock of the CPU."""

import contextvars
import json
import math
import random
import tracemalloc
from collections.abc import Callable
from time import process_time
from typing import Any, NamedTuple

from flask import Flask, Request, g, session, url_for
from flask.sessions import SecureCookieSession, SecureCookieSessionInterface
from promises import empty, new_app
from ways import WAYS, Task, Way
from werkzeug.test import EnvironBuilder
from werkzeug.utils import cached_property

Measure = Callable[[Flask, Way], float]
FAILS = math.inf


class Cost(NamedTuple):
    unit: str
    measure: Measure


COSTS: dict[str, Cost] = {}


def cost(text: str, unit: str = "µs") -> Callable[[Measure], Measure]:
    def register(measure: Measure) -> Measure:
        COSTS[text] = Cost(unit, measure)
        return measure

    return register


def in_view(app: Flask, measure: Callable[[], float]) -> float:
    """Measure something in the view of a small app."""

    @app.route("/costs/<int:number>")
    def costs(number: int) -> str:
        g.user = session["user"] = "ada"
        g.count = number
        return json.dumps(measure())

    return float(app.test_client().get("/costs/7?page=2").data)


class Spent(NamedTuple):
    """Microseconds of the CPU for one task."""

    wrap: float
    call: float


def spend(way: Way, func: Task = empty, batches: int = 40) -> Spent:
    """Wrap five functions at a time, as a view does, and call them in a pool."""
    wrap = call = 0.0
    for _ in range(batches):
        start = process_time()
        wrapped = [way.wrap(func) for _ in range(5)]
        wrap += process_time() - start
        call += way.pool.submit(call_all, wrapped).result()
    return Spent(wrap / batches / 5 * 1e6, call / batches / 5 * 1e6)


def call_all(wrapped: list[Task]) -> float:
    start = process_time()
    while wrapped:
        wrapped.pop()()
    return process_time() - start


@cost("Wrap")
def wrap(app: Flask, way: Way) -> float:
    return in_view(app, lambda: spend(way).wrap)


@cost("Wrap and call")
def wrap_and_call(app: Flask, way: Way) -> float:
    return in_view(app, lambda: sum(spend(way)))


EIGHT = [contextvars.ContextVar[Any](f"variable_{number}") for number in range(8)]


@cost("Wrap and call, with eight more context variables")
def with_eight_variables(app: Flask, way: Way) -> float:
    for variable in EIGHT:
        variable.set("value")
    return in_view(app, lambda: sum(spend(way)))


class OwnRequest(Request):
    @cached_property
    def tenant(self) -> str:
        return self.headers.get("Tenant", "acme")


class OwnSession(SecureCookieSession):
    def __init__(self, initial: Any = None) -> None:
        super().__init__(initial)
        self.sid = "5f2b"


class OwnSessions(SecureCookieSessionInterface):
    session_class = OwnSession


class User:
    def __init__(self, name: str) -> None:
        self.name = name


class Span:
    """What a library for tracing or logging keeps in a context variable."""


@cost("Wrap and call, in a typical app")
def in_a_typical_app(app: Flask, way: Way) -> float:
    """Classes of its own, an object and a dict in g, and eight context variables."""
    app.request_class = OwnRequest
    app.session_interface = OwnSessions()

    def measure() -> float:
        g.user = User("ada")
        g.settings = {"language": "en", "currency": "EUR", "beta": True}
        return sum(spend(way))

    for variable in EIGHT:
        variable.set(Span())
    return in_view(app, measure)


def start_response(*_: object) -> Task:
    return empty


@cost("A whole request that waits for one task")
def whole_request(app: Flask, way: Way) -> float:
    @app.route("/one")
    def one() -> str:
        g.user = session["user"] = "ada"
        way.pool.submit(way.wrap(empty)).result()
        return ""

    app.test_client().get("/one")  # The first request sets the app up.
    environs = [EnvironBuilder("/one").get_environ() for _ in range(40)]
    start = process_time()
    for environ in environs:
        list(app.wsgi_app(environ, start_response))
    return (process_time() - start) / len(environs) * 1e6


@cost("A task that builds 50 URLs")
def fifty_urls(app: Flask, way: Way) -> float:
    def build_urls() -> None:
        for number in range(50):
            url_for("costs", number=number)

    return in_view(app, lambda: sum(spend(way, build_urls, batches=4)))


@cost("Memory of a task that waits", "bytes")
def pending_task(app: Flask, way: Way) -> float:
    def measure() -> float:
        tracemalloc.start()
        pending = [way.wrap(empty) for _ in range(100)]
        size, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return size / len(pending)

    return in_view(app, measure)


@cost("Wrap and call, with 10,000 strings in a dict in `g`, compared with 10", "×")
def with_many_strings(app: Flask, way: Way) -> float:
    def with_strings(count: int) -> float:
        g.strings = {str(number): str(number) for number in range(count)}
        return sum(spend(way))

    return in_view(app, lambda: with_strings(10_000) / with_strings(10))


def measure_once(cost: Cost, way_class: type[Way]) -> float:
    app = new_app()
    app.config["PROPAGATE_EXCEPTIONS"] = True
    way = way_class(app)
    try:
        # In a context of its own, as more context variables take more time.
        return contextvars.Context().run(cost.measure, app, way)
    except Exception:  # Without a request there are no URLs.
        return FAILS
    finally:
        way.pool.shutdown()


def measure(rounds: int) -> dict[str, dict[str, list[float]]]:
    """Measure all ways in each round, in any order, so that all see the same noise."""
    values = {text: {way.name: list[float]() for way in WAYS} for text in COSTS}
    for _ in range(rounds):
        for text, cost in COSTS.items():
            for way in random.sample(WAYS, len(WAYS)):
                values[text][way.name].append(measure_once(cost, way))
    return values
