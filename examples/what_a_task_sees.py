"""What tasks see of one request, without and with carry_context, by how they are run.

A server, a request, and a table for each way: a pool, a thread, a greenlet (if gevent
is installed), a coroutine on a loop in another thread, a timer after the response.

Run it with:
.venv/bin/python examples/what_a_task_sees.py
"""

import asyncio
import contextvars
import importlib
import sys
import threading
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.cookiejar import CookieJar
from typing import Any

from flask import Flask, current_app, g, request, session
from werkzeug.serving import WSGIRequestHandler, make_server

from ctxcarry import carry_context

try:
    spawn: Any = importlib.import_module("gevent").spawn
except ImportError:
    spawn = None

LEGEND = """\
yes     The task reads what the view had. It has a copy of its own of request, session
        and g; current_app is the app itself.
shared  The task has the view's own object. What one of them changes, the other sees,
        and the object may be torn down while the task still uses it.
-       The task has nothing: a RuntimeError, or a LookupError for a context variable."""
PLACES = ["request", "session", "g", "contextvars", "current_app"]
request_id: contextvars.ContextVar[str] = contextvars.ContextVar("request_id")

app = Flask(__name__)
app.secret_key = "for this example only"
pool = ThreadPoolExecutor()
loop = asyncio.new_event_loop()
answered = threading.Event()
rows: dict[str, list[str]] = {}
timers: list[threading.Timer] = []


def leave(func: Any) -> Any:
    """Return the function as it is: a task without carry_context."""
    return func


@app.before_request
def remember() -> None:
    g.tenant = "acme"
    request_id.set(request.headers["X-Request-Id"])


@app.route("/log-in")
def log_in() -> str:
    session["user"] = "ada"
    return "Logged in."


@app.route("/<any(bare, carried):how>")
def view(how: str) -> str:
    carry: Any = carry_context if how == "carried" else leave
    of_the_view = [request.environ, vars(session), vars(g)]

    def task(_: object = None) -> list[str]:
        row: list[str] = []
        reads: list[Callable[[], tuple[bool, object]]] = [
            lambda: (request.headers["X-Request-Id"] == "17", request.environ),
            lambda: (session["user"] == "ada", vars(session)),
            lambda: (g.tenant == "acme", vars(g)),
            lambda: (request_id.get() == "17", {}),
            lambda: (current_app.name == app.name, {}),
        ]
        for read in reads:
            try:
                right, storage = read()
            except (RuntimeError, LookupError):
                row.append("-")
            else:
                shared = any(storage is own for own in of_the_view)
                row.append("shared" if shared else "yes" if right else "wrong")
        return row

    async def coroutine() -> list[str]:
        await asyncio.sleep(0)
        return task()

    def late_task() -> list[str]:
        answered.wait()
        return task()

    def put(name: str, func: Callable[[], list[str]]) -> None:
        rows[name] = func()

    rows["executor.submit"] = pool.submit(carry(task)).result()
    for number, row in enumerate(pool.map(carry(task), range(3)), 1):
        rows[f"executor.map, call {number}"] = row
    thread = threading.Thread(target=put, args=["Thread", carry(task)])
    thread.start()
    thread.join()
    if spawn:
        rows["gevent.spawn"] = spawn(carry(task)).get()
    future = asyncio.run_coroutine_threadsafe(carry(coroutine)(), loop)
    rows["coroutine, in another thread"] = future.result()
    timers.append(
        threading.Timer(0, put, ["Timer, after the response", carry(late_task)])
    )
    timers[-1].start()
    return "The timer is still to come."


class Quiet(WSGIRequestHandler):
    def log(self, type: str, message: str, *args: Any) -> None:
        pass


def main() -> bool:
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=Quiet)
    threading.Thread(target=server.serve_forever).start()
    threading.Thread(target=loop.run_forever).start()
    browser = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPCookieProcessor(CookieJar())
    )
    browser.addheaders = [("X-Request-Id", "17")]
    try:
        base = f"http://127.0.0.1:{server.server_port}"
        browser.open(f"{base}/log-in", timeout=10).close()
        for how in "bare", "carried":
            answered.clear()
            browser.open(f"{base}/{how}", timeout=10).close()
            answered.set()
            timers.pop().join()
            title = (
                "With carry_context" if how == "carried" else "Without carry_context"
            )
            print(f"{title:30}", *(f"{place:11}" for place in PLACES))
            for name, row in rows.items():
                print(f"  {name:28}", *(f"{cell:11}" for cell in row))
            print()
        print(LEGEND)
        return all(set(row) == {"yes"} for row in rows.values())
    finally:
        server.shutdown()
        loop.call_soon_threadsafe(loop.stop)


if __name__ == "__main__":
    sys.exit(not main())
