"""What carry_context promises and costs, beside what people use in its place.

Run it with:  python examples/compare.py  (with the extra `compare` installed; --json for data)
"""

import argparse
import asyncio
import contextlib
import contextvars
import functools
import gc
import importlib
import importlib.metadata
import inspect
import io
import itertools
import json
import logging
import math
import os
import platform
import random
import statistics
import sys
import threading
import time
import tracemalloc
import weakref
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import tqdm
from flask import (
    Flask,
    copy_current_request_context,
    current_app,
    g,
    has_request_context,
    request,
    session,
)
from werkzeug.test import EnvironBuilder

import ctxcarry

Task = Callable[..., Any]
TIMEOUT = 5
VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("VARIABLE")


# The peers: what each makes of a function in a view


class Peer:
    name = "copy_context().run"
    needs = "flask"

    def __init__(self, app: Flask) -> None:
        self.app = app

    def wrap(self, func: Task) -> Task:
        return functools.partial(contextvars.copy_context().run, func)

    def thread(self, func: Task) -> threading.Thread:
        return threading.Thread(target=self.wrap(func))

    def submit(self, func: Task, *args: Any) -> "Future[Any]":
        return POOL.submit(self.wrap(func), *args)

    def map(self, func: Task, items: Iterable[Any]) -> list[Any]:
        return list(POOL.map(self.wrap(func), items, timeout=TIMEOUT))


class Ctxcarry(Peer):
    name = "ctxcarry"

    def wrap(self, func: Task) -> Task:
        return ctxcarry.carry_context(func)


class BuiltIn(Peer):
    name = "Flask's built-in"

    def wrap(self, func: Task) -> Task:
        return copy_current_request_context(func)


class Closure(Peer):
    name = "usual closure"

    def wrap(self, func: Task) -> Task:
        values = dict(vars(g))

        @copy_current_request_context
        def run(*args: Any) -> Any:
            with self.app.app_context():
                vars(g).update(values)
                return func(*args)

        return functools.partial(contextvars.copy_context().run, run)


class FlaskExecutor(Peer):
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


class FlaskThreads(Peer):
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


POOL = ThreadPoolExecutor(4)
PEERS = [Ctxcarry, BuiltIn, FlaskExecutor, FlaskThreads, Closure, Peer]


# The promises: each is an app and a view, and what the task or the client saw

Promise = Callable[[Flask, Peer], bool]
PROMISES: dict[str, Promise] = {}


def promise(text: str) -> Callable[[Promise], Promise]:
    def register(check: Promise) -> Promise:
        PROMISES[text] = check
        return check

    return register


def ask(app: Flask, view: Callable[[], Any], **sent: Any) -> Any:
    """Send one request, and return what the view returns."""
    answers: list[Any] = []

    def answer(name: str) -> str:
        answers.append(view())
        return ""

    app.add_url_rule("/<name>", "answer", answer, methods=["GET", "POST"])
    arguments: dict[str, Any] = {"method": "POST", "data": b"body"} | sent
    app.test_client().open("/view", **arguments)
    return answers[0]


def task_sees(read: Callable[[], Any], expected: Any) -> Promise:
    def check(app: Flask, peer: Peer) -> bool:
        def view() -> Any:
            session["user"] = g.user = "ada"
            VARIABLE.set("acme")
            return peer.submit(read).result(TIMEOUT)

        return bool(ask(app, view) == expected)

    return check


promise("The task has request")(task_sees(lambda: request.path, "/view"))
promise("The task has session")(task_sees(lambda: session["user"], "ada"))
promise("The task has g")(task_sees(lambda: g.user, "ada"))
promise("The task has context variables")(task_sees(VARIABLE.get, "acme"))
promise("The task has current_app")(task_sees(lambda: current_app.name, "app"))


@promise("All of it in a raw thread")
def _(app: Flask, peer: Peer) -> bool:
    seen: list[str] = []

    def look() -> None:
        with contextlib.suppress(Exception):
            seen[:] = [request.path, g.user, session["user"], VARIABLE.get()]

    def view() -> list[str]:
        g.user = session["user"] = "ada"
        VARIABLE.set("acme")
        thread = peer.thread(look)
        thread.start()
        thread.join(TIMEOUT)
        return seen

    return bool(ask(app, view) == ["/view", "ada", "ada", "acme"])


@promise("All of it after the response")
def _(app: Flask, peer: Peer) -> bool:
    answered = threading.Event()

    def look() -> list[str]:
        answered.wait(TIMEOUT)
        return [request.path, g.user, session["user"], VARIABLE.get()]

    def view() -> Any:
        g.user = session["user"] = "ada"
        VARIABLE.set("acme")
        return peer.submit(look)

    future = ask(app, view)
    answered.set()
    return bool(future.result(TIMEOUT) == ["/view", "ada", "ada", "acme"])


@promise("A coroutine function stays one, and has all of it")
def _(app: Flask, peer: Peer) -> bool:
    async def look() -> list[str]:
        await asyncio.sleep(0)
        return [request.path, g.user]

    def view() -> Any:
        g.user = "ada"
        wrapped = peer.wrap(look)
        return wrapped if inspect.iscoroutinefunction(wrapped) else None

    async def main(wrapped: Any) -> list[str]:
        return list(await wrapped())

    return asyncio.run(main(ask(app, view))) == ["/view", "ada"]


@promise("map runs one wrapper on four threads at once")
def _(app: Flask, peer: Peer) -> bool:
    barrier = threading.Barrier(4, timeout=1)

    def work(number: int) -> int:
        barrier.wait()
        return number if has_request_context() else -1

    def view() -> bool:  # Often, as a lucky order of pops hides that it cannot.
        return all(peer.map(work, range(4)) == [0, 1, 2, 3] for _ in range(20))

    return bool(ask(app, view))


@promise("Calls at once do not see each other's writes")
def _(app: Flask, peer: Peer) -> bool:
    barrier = threading.Barrier(4, timeout=1)

    def work(number: int) -> bool:
        barrier.wait()
        g.own = session["own"] = number
        VARIABLE.set(str(number))
        barrier.wait()
        return g.own == session["own"] == number and VARIABLE.get() == str(number)

    return all(ask(app, lambda: peer.map(work, range(4))))


def leaves_alone(write: Callable[[], Any], read: Callable[[], Any]) -> Promise:
    def check(app: Flask, peer: Peer) -> bool:
        def view() -> bool:
            g.user = session["user"] = "ada"
            before = read()
            peer.submit(write).result(TIMEOUT)
            return bool(read() == before)

        return bool(ask(app, view))

    return check


def write_view_args() -> None:
    assert request.view_args is not None
    request.view_args["name"] = "written"


promise("The view's g is not written to")(
    leaves_alone(lambda: vars(g).update(user="eve"), lambda: g.user)
)
promise("The view's session is not written to")(
    leaves_alone(lambda: session.update(user="eve"), lambda: session["user"])
)
promise("The view's request is not written to")(
    leaves_alone(write_view_args, lambda: dict(request.view_args or {}))
)


@promise("What the view changes later is not seen")
def _(app: Flask, peer: Peer) -> bool:
    changed = threading.Event()

    def work() -> list[str]:
        changed.wait(TIMEOUT)
        return [g.user, session["user"]]

    def view() -> Any:
        g.user = session["user"] = "ada"
        future = peer.submit(work)
        g.user = session["user"] = "eve"
        changed.set()
        return future.result(TIMEOUT)

    return bool(ask(app, view) == ["ada", "ada"])


class Connection:
    closed = 0


def closing(app: Flask) -> None:
    @app.teardown_appcontext
    def close(error: BaseException | None) -> None:
        if "db" in g:
            g.pop("db").closed += 1


@promise("The view's connection in g stays open")
def _(app: Flask, peer: Peer) -> bool:
    closing(app)

    def view() -> bool:
        g.db = Connection()
        seen = peer.submit(lambda: g.get("db")).result(TIMEOUT)
        return seen is g.db and g.db.closed == 0

    return bool(ask(app, view))


@promise("The task's connection in g is closed when it ends")
def _(app: Flask, peer: Peer) -> bool:
    closing(app)

    def work() -> Connection:
        g.db = connection = Connection()
        return connection

    return bool(ask(app, lambda: peer.submit(work).result(TIMEOUT).closed == 1))


@promise("Teardown functions get the task's exception")
def _(app: Flask, peer: Peer) -> bool:
    errors: list[BaseException | None] = []

    @app.teardown_appcontext
    def tear_down(error: BaseException | None) -> None:
        errors.append(error)

    def fail() -> None:
        raise LookupError

    def view() -> bool:
        error = peer.submit(fail).exception(TIMEOUT)
        return error is not None and errors == [error]

    return bool(ask(app, view))


@promise("The view's uploads stay open")
def _(app: Flask, peer: Peer) -> bool:
    def view() -> bytes:
        upload = request.files["file"]
        peer.submit(lambda: None).result(TIMEOUT)
        content: bytes = upload.read()
        return content

    sent = {"file": (io.BytesIO(b"content"), "file.txt")}
    return bool(ask(app, view, data=sent) == b"content")


@promise("The view reads its body after the task has tried to")
def _(app: Flask, peer: Peer) -> bool:
    def view() -> bytes:
        peer.submit(lambda: request.get_data()).exception(TIMEOUT)
        return request.get_data()

    return bool(ask(app, view) == b"body")


@promise("The URL is matched once")
def _(app: Flask, peer: Peer) -> bool:
    @app.url_value_preprocessor
    def pull(endpoint: str | None, values: dict[str, Any] | None) -> None:
        (values or {})["name"] = "pulled"

    def view() -> Any:
        return peer.submit(lambda: request.view_args).result(TIMEOUT)

    return bool(ask(app, view) == {"name": "pulled"})


@promise("Passing a result in place of a function is refused")
def _(app: Flask, peer: Peer) -> bool:
    def view() -> bool:
        not_a_function: Any = 3
        try:
            peer.wrap(not_a_function)
        except TypeError:
            return True
        return False

    return bool(ask(app, view))


@promise("Memory goes without the garbage collector")
def _(app: Flask, peer: Peer) -> bool:
    alive: list[weakref.ref[Connection]] = []

    def work() -> None:
        g.own = Connection()
        alive.append(weakref.ref(g.own))

    def view() -> None:
        thread = peer.thread(work)
        thread.start()
        thread.join(TIMEOUT)

    gc.disable()
    try:
        ask(app, view)
        return [ref() for ref in alive] == [None]
    finally:
        gc.enable()


@promise("The task can write to the view's session (not promised)")
def _(app: Flask, peer: Peer) -> bool:
    def view() -> Any:
        peer.submit(lambda: session.update(user="ada")).result(TIMEOUT)
        return session.get("user")

    return bool(ask(app, view) == "ada")


@promise("The task can read a body that the view has not (not promised)")
def _(app: Flask, peer: Peer) -> bool:
    def view() -> Any:
        return peer.submit(lambda: request.get_data()).result(TIMEOUT)

    return bool(ask(app, view) == b"body")


def new_app() -> Flask:
    app = Flask("app")
    app.secret_key = "for this example only"
    return app


def holds(check: Promise, peer: type[Peer]) -> bool:
    app = new_app()
    try:
        return check(app, peer(app))
    except Exception:  # Whatever breaks the promise.
        return False


# The costs: each is measured for one peer, and gives values by name

Costs = dict[str, float]


def empty(_: object = None) -> None:
    pass


def wrap_and_call(peer: Peer) -> Costs:
    """A few tasks at a time, as a view has them."""
    wrap = call = 0.0
    batch, batches = 5, 40
    for _ in range(batches):
        wrapped: list[Task] = []
        start = time.perf_counter()
        for _ in range(batch):
            wrapped.append(peer.wrap(empty))
        wrap += time.perf_counter() - start
        call += POOL.submit(call_all, wrapped).result()
    wrap, call = (cost / batch / batches * 1e6 for cost in (wrap, call))
    return {"wrap, µs": wrap, "call, µs": call, "wrap and call, µs": wrap + call}


def call_all(wrapped: list[Task]) -> float:
    start = time.perf_counter()
    while wrapped:
        wrapped.pop()()
    return time.perf_counter() - start


def start_response(*_: object) -> Task:
    return empty


def whole_request(app: Flask) -> Costs:
    environs = [EnvironBuilder("/one").get_environ() for _ in range(40)]
    start = time.perf_counter()
    for environ in environs:
        list(app.wsgi_app(environ, start_response))
    duration = time.perf_counter() - start
    return {"a request that waits for one task, µs": duration / len(environs) * 1e6}


def pending_task(peer: Peer) -> Costs:
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    pending = [peer.wrap(empty) for _ in range(100)]
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return {"kept by a pending task, bytes": (after - before) / len(pending)}


def tasks_a_second(peer: Peer) -> Costs:
    rates: Costs = {}
    for threads in 1, 2, 4, 8:
        with ThreadPoolExecutor(threads) as pool:
            wrapped = peer.wrap(empty)
            start = time.perf_counter()
            try:
                list(pool.map(wrapped, range(200)))
                rate = 200 / (time.perf_counter() - start)
            except Exception:  # Most cannot run one wrapper twice at a time.
                rate = math.nan
        rates[f"tasks a second by map, pool of {threads}"] = rate
    return rates


class Bare(Peer):
    name = "nothing"

    def wrap(self, func: Task) -> Task:
        return func


def costs_app(peer: type[Peer]) -> Flask:
    """An app with views that measure the peer."""
    app = new_app()
    app.testing = True
    peer_of_app = peer(app)

    @app.route("/one")
    def one() -> str:
        g.user = session["user"] = "ada"
        POOL.submit(peer_of_app.wrap(empty)).result()
        return ""

    @app.route("/costs/<int:number>")
    def costs(number: int) -> str:
        g.user = session["user"] = "ada"
        g.db = Connection()
        measured: Costs = {}
        for measure in wrap_and_call, pending_task, tasks_a_second:
            measured |= measure(peer_of_app)
        return json.dumps(measured)

    return app


def costs_in_a_view(app: Flask) -> Costs:
    costs: Costs = json.loads(app.test_client().get("/costs/7?page=2").data)
    return costs


def measure(peers: list[type[Peer]], rounds: int) -> dict[str, dict[str, list[float]]]:
    """Measure the peers in turn, in any order, so that all see the same noise."""
    apps = [(peer.name, costs_app(peer)) for peer in peers]
    values: dict[str, dict[str, list[float]]] = {}
    turns = [*itertools.product((whole_request, costs_in_a_view), range(rounds))]
    for costs_of, _ in tqdm.tqdm(turns, "costs", file=sys.stderr):
        for name, app in random.sample(apps, len(apps)):
            for cost, value in costs_of(app).items():
                values.setdefault(cost, {}).setdefault(name, []).append(value)
    return values


# The report


def table(head: list[str], rows: Iterable[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def shown(values: list[float], of_ours: list[float]) -> str:
    median = statistics.median(values)
    if math.isnan(median):
        return "fails"
    ratio = statistics.median(value / own for value, own in zip(values, of_ours))
    return f"{median:,.{1 if median < 100 else 0}f} ({ratio:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", action="store_true", help="print data")
    parser.add_argument("--rounds", type=int, default=50, help="of measuring costs")
    options = parser.parse_args()

    versions: dict[str, str] = {}
    missing: list[str] = []
    for package in dict.fromkeys(peer.needs for peer in PEERS):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            missing.append(package)
    peers = [peer for peer in PEERS if peer.needs in versions]
    promises = {
        text: {peer.name: holds(check, peer) for peer in peers}
        for text, check in tqdm.tqdm(PROMISES.items(), "promises", file=sys.stderr)
    }
    costs = measure([*peers, Bare], options.rounds)

    if options.json:
        medians = {
            cost: {name: statistics.median(values) for name, values in row.items()}
            for cost, row in costs.items()
        }
        print(
            json.dumps({"promises": promises, "costs": medians, "versions": versions})
        )
        return
    names = [peer.name for peer in peers]
    kept = ["of these"] + [
        str(sum(row[name] for row in promises.values())) for name in names
    ]
    rows = [
        [text] + ["yes" if row[name] else "-" for name in names]
        for text, row in promises.items()
    ]
    print(table(["promise", *names], [*rows, kept]))
    print("\nMedians, and in brackets the ratio to ctxcarry, round by round:\n")
    names.append(Bare.name)
    rows = [
        [cost] + [shown(row[name], row[Ctxcarry.name]) for name in names]
        for cost, row in costs.items()
    ]
    print(table(["cost", *names], rows))
    used = ", ".join(f"{name} {number}" for name, number in versions.items())
    print(f"\nPython {platform.python_version()}, {used}, {os.cpu_count()} cores.")
    if missing:
        print(f"Not installed, and left out: {', '.join(missing)}.")


if __name__ == "__main__":
    logging.disable()  # Of the tasks that break, by design.
    main()
    POOL.shutdown()
