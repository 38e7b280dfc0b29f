"""Moving from your own closure with copy_context() and a copy of g.__dict__.

Run it with:
.venv/bin/flask --app examples/from_a_closure.py run
and open http://127.0.0.1:5000/

Replace it with carry_context. One wrapped function can be called many times at once.
Unlike the closure, it leaves an open connection in g with the view, and the task opens
its own.
"""

import contextvars
import uuid
from concurrent.futures import ThreadPoolExecutor

from flask import Flask, g, request

from ctxcarry import carry_context

app = Flask(__name__)
executor = ThreadPoolExecutor()
request_id: contextvars.ContextVar[str] = contextvars.ContextVar("request_id")


@app.before_request
def identify() -> None:
    g.tenant = request.args.get("tenant", "acme")
    request_id.set(uuid.uuid4().hex)


def describe(item: str) -> str:
    return f"{item} for {g.tenant}: {request_id.get()}"


@app.route("/")
def index() -> dict[str, list[str]]:
    items = ["tea", "milk"]
    return {
        "in the view": [describe(item) for item in items],
        "in the pool": list(executor.map(carry_context(describe), items)),
    }
