"""Past one machine: the same task in a thread of this process, or in a Celery worker.

Run it with:
.venv/bin/pip install -q ".[examples]" && .venv/bin/flask --app examples/celery_app.py run
and a worker with:
.venv/bin/pip install -q ".[examples]" && .venv/bin/celery --workdir examples --app celery_app:celery worker --pool threads

The broker is a folder, unless CELERY_BROKER_URL names another. What crosses to the
worker is plain data: ids, the tenant, the request id. A request, a session or a
connection belongs to the process that has the socket, so the worker opens a context
of its own, and carries that one into its threads.
"""

import contextvars
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from celery import Celery  # type: ignore[import-untyped]
from flask import Flask, g, request

from ctxcarry import carry_context

app = Flask(__name__)
executor = ThreadPoolExecutor()
request_id: contextvars.ContextVar[str] = contextvars.ContextVar("request_id")

folder = Path(os.environ.get("CELERY_FOLDER", Path(tempfile.gettempdir(), "celery")))
for name in "messages", "control", "results":
    (folder / name).mkdir(parents=True, exist_ok=True)
celery: Any = Celery(
    __name__,
    broker=os.environ.get("CELERY_BROKER_URL", "filesystem://"),
    backend=os.environ.get("CELERY_RESULT_BACKEND", f"file://{folder}/results"),
)
if celery.conf.broker_url == "filesystem://":
    messages = str(folder / "messages")
    celery.conf.broker_transport_options = {
        "data_folder_in": messages,
        "data_folder_out": messages,
        "control_folder": str(folder / "control"),
    }


@app.before_request
def identify() -> None:
    g.tenant = request.headers.get("Tenant", "acme")
    request_id.set(request.headers.get("Request-Id", "none"))


def price(item: str) -> str:
    return f"{item} for {g.tenant}, asked by {request_id.get()}"


def prices(items: list[str]) -> list[str]:
    """The task: it neither knows nor cares where it runs."""
    return list(executor.map(carry_context(price), items))


@celery.task(name="prices")  # type: ignore[untyped-decorator]
def prices_in_a_worker(items: list[str], tenant: str, asked_by: str) -> list[str]:
    with app.app_context():
        g.tenant = tenant
        request_id.set(asked_by)
        return prices(items)


@app.route("/here")
def here() -> dict[str, Any]:
    # Not in `executor`: a task that waits for its own pool can wait for ever.
    with ThreadPoolExecutor(1) as pool:
        return {"prices": pool.submit(carry_context(prices), ["tea", "milk"]).result()}


@app.route("/start")
def start() -> Any:
    task = prices_in_a_worker.delay(["tea", "milk"], g.tenant, request_id.get())
    return {"id": task.id}, 202


@app.route("/result/<id>")
def result(id: str) -> dict[str, Any]:
    task = celery.AsyncResult(id)
    return {"prices": task.get()} if task.ready() else {"state": task.state}
