"""Coming from a closure that copies g.__dict__ and runs in copy_context(): not needed.

Run it with:
.venv/bin/flask --app examples/from_a_closure.py run

and open http://127.0.0.1:5000/ or http://127.0.0.1:5000/?source=contextvars
and, to see a task without carry_context, http://127.0.0.1:5000/?copy=false

What changed: the closure is gone, carry_context is in its place. One wrapper can be
called many times at once.

What behaves differently: an open connection in g stays with the view, and the task
opens its own. What a task writes to session and request stays with the task. Teardown
functions run for each call, and find in g only what the call has put there, so they
close nothing that the view still uses.
"""

import contextvars
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from flask import Flask, abort, g, has_app_context, request

from ctxcarry import carry_context

app = Flask(__name__)
executor = ThreadPoolExecutor()
request_id: contextvars.ContextVar[str | None] = contextvars.ContextVar("request_id")


@app.before_request
def identify() -> None:
    g.request_id = uuid.uuid4().hex
    request_id.set(g.request_id)


def from_g() -> str | None:
    return g.request_id if has_app_context() else None


def from_contextvars() -> str | None:
    return request_id.get(None)


@app.route("/")
def index() -> dict[str, str | None]:
    sources = {"g": from_g, "contextvars": from_contextvars}
    source = request.args.get("source", "g")
    if source not in sources:
        abort(400, "The source is g or contextvars.")
    read: Callable[[], str | None] = sources[source]
    task = read if request.args.get("copy") == "false" else carry_context(read)

    in_thread: Future[str | None] = Future()
    threading.Thread(target=lambda: in_thread.set_result(task())).start()
    return {
        "view": read(),
        "pool": executor.submit(task).result(),
        "thread": in_thread.result(),
    }
