"""Moving from Flask-Executor: start a task, respond, and fetch the result by its key.

Run it with:
.venv/bin/flask --app examples/from_flask_executor.py run
and open http://127.0.0.1:5000/start-task, then the address in its answer.
"""

import time
import uuid
from concurrent.futures import Future, ThreadPoolExecutor

from flask import Flask, abort, request, url_for

from ctxcarry import carry_context

app = Flask(__name__)
executor = ThreadPoolExecutor()  # In place of Executor(app).
futures: dict[str, Future[str]] = {}  # In place of submit_stored().


def work() -> str:
    time.sleep(3)
    return f"{request.path} was asked by {request.remote_addr}"


def log_failure(future: Future[str]) -> None:
    if error := future.exception():
        app.logger.error("%s failed", request.path, exc_info=error)


@app.route("/start-task")
def start_task() -> dict[str, str]:
    key = uuid.uuid4().hex
    futures[key] = executor.submit(carry_context(work))
    futures[key].add_done_callback(carry_context(log_failure))
    return {"see": url_for("get_task_result", key=key, _external=True)}


@app.route("/get-task-result/<key>")
def get_task_result(key: str) -> dict[str, str]:
    future = futures.get(key)
    if future is None:
        abort(404, "No task has this key.")
    if not future.done():
        return {"state": "running"}
    futures.pop(key, None)  # A result is fetched once.
    if error := future.exception():
        return {"state": "failed", "error": str(error)}
    return {"state": "done", "result": future.result()}
