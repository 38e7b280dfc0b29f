"""Work for more than one machine: the same task in a thread or in a Celery worker.

Run it with:
.venv/bin/pip install -q ".[examples]" && .venv/bin/flask --app examples/celery_app.py run
and start one or more workers with the line in make_celery.py. Then open
http://127.0.0.1:5000/here for the task in this process, or
http://127.0.0.1:5000/start for the task in a worker, and the address in its answer.

The broker is a folder, instance/celery. For a real one, set this for app and workers:
CELERY_BROKER_URL=redis://localhost
If a worker dies, another one runs its tasks again. With Redis, that is after the
visibility timeout, which is one hour by default and must be longer than any task.

The worker gets plain data: ids, the tenant, the request id. A request, a session or a
connection belongs to the process that has the socket. The worker opens its own app
context, and carries it into its threads.
"""
# Celery has no types.
# pyright: basic

import contextvars
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import UUID

from celery import Celery, Task, shared_task  # type: ignore[import-untyped]
from celery.result import AsyncResult  # type: ignore[import-untyped]
from flask import Flask, g, request, url_for

from ctxcarry import carry_context

executor = ThreadPoolExecutor()
request_id: contextvars.ContextVar[str] = contextvars.ContextVar("request_id")


def celery_init_app(app: Flask) -> Celery:
    """Make the Celery app, as in Flask's documentation."""

    class FlaskTask(Task):  # type: ignore[misc]
        def __call__(self, *args: object, **kwargs: object) -> object:
            with app.app_context():
                return self.run(*args, **kwargs)

    celery_app = Celery(app.name, task_cls=FlaskTask)
    celery_app.config_from_object(app.config["CELERY"])
    celery_app.set_default()
    app.extensions["celery"] = celery_app
    return celery_app


def broker_in(folder: Path) -> dict[str, Any]:
    """Make a broker of a folder, which needs no server."""
    for name in "messages", "control", "results":
        (folder / name).mkdir(parents=True, exist_ok=True)
    messages = str(folder / "messages")
    options = {"data_folder_in": messages, "data_folder_out": messages}
    options["control_folder"] = str(folder / "control")
    return {
        "broker_url": "filesystem://",
        "broker_transport_options": options,
        "result_backend": f"file://{folder}/results",
    }


def price(item: str) -> str:
    return f"{item} for {g.tenant}, asked by {request_id.get()}"


def prices(items: list[str]) -> list[str]:
    """The work itself. It is the same in a thread and in a worker."""
    return list(executor.map(carry_context(price), items))


@shared_task(ignore_result=False)  # type: ignore[untyped-decorator]
def prices_in_a_worker(items: list[str], tenant: str, asked_by: str) -> list[str]:
    g.tenant = tenant
    request_id.set(asked_by)
    return prices(items)


def create_app(config: Mapping[str, Any] | None = None) -> Flask:
    """Make the app. A test passes settings of Celery."""
    app = Flask(__name__)
    celery: dict[str, Any] = {
        # A worker takes a task off the queue when it has done it. If the worker dies,
        # another one does the task again, from its start: that must do no harm.
        "task_acks_late": True,
        "task_reject_on_worker_lost": True,
        "task_track_started": True,
        "worker_prefetch_multiplier": 1,
    }
    if broker := os.environ.get("CELERY_BROKER_URL"):
        celery.update(broker_url=broker, result_backend=broker)
    else:
        folder = os.environ.get("CELERY_FOLDER", Path(app.instance_path, "celery"))
        celery.update(broker_in(Path(folder)))
    app.config["CELERY"] = celery | dict(config or {})
    celery_init_app(app)

    @app.before_request
    def identify() -> None:
        g.tenant = request.headers.get("Tenant", "acme")
        request_id.set(request.headers.get("Request-Id", "none"))

    @app.route("/here")
    def here() -> dict[str, Any]:
        # Not in `executor`: a task that waits for its own pool can wait for ever.
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(carry_context(prices), ["tea", "milk"])
        return {"prices": future.result()}

    @app.route("/start")
    def start() -> Any:
        work: Any = prices_in_a_worker
        task = work.delay(["tea", "milk"], g.tenant, request_id.get())
        return {"see": url_for("result", id=task.id, _external=True)}, 202

    @app.route("/result/<uuid:id>")
    def result(id: UUID) -> dict[str, Any]:
        task: Any = AsyncResult(str(id))
        if task.successful():
            return {"prices": task.result}
        return {"state": task.state}

    return app
