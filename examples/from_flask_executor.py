"""Coming from Flask-Executor: start a task, answer at once, fetch the result by its key.

Run it with:
.venv/bin/flask --app examples/from_flask_executor.py run
and open http://127.0.0.1:5000/start-task/3, then http://127.0.0.1:5000/get-task-result,
or http://127.0.0.1:5000/squares/5

What changed: the executor is the standard one, and wraps nothing by itself: wrap the
function with carry_context, and what is given to add_done_callback too. Keep futures in
a dict of your own. Context variables come along, and map works.

What behaves differently: what a task writes to session and request stays with the
task, and the view reads the body first. Teardown functions run for each task as before,
but find in g only what the task has put there, so they do not close the connections of
the view, and read what a hook has put into g with g.get().
"""

import logging
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from flask import Flask, abort, request

from ctxcarry import carry_context

app = Flask(__name__)
executor = ThreadPoolExecutor()
tasks: dict[str, Future[str]] = {}
starting = threading.Lock()
log = logging.getLogger("tasks")


def work(duration: int) -> str:
    time.sleep(duration)
    return f"{request.remote_addr} waited for {duration} s"


def log_end(task: Future[str]) -> None:
    log.warning("%s ended: %s", request.path, task.exception() or task.result())


@app.route("/start-task/<int(signed=True):duration>")
def start_task(duration: int) -> Any:
    key = request.args.get("key", "task")
    if duration < 0:
        abort(400, "A task cannot end before it starts.")
    with starting:
        if key in tasks and not tasks[key].done():
            abort(409, "A task with this key is still running.")
        tasks[key] = executor.submit(carry_context(work), duration)
        tasks[key].add_done_callback(carry_context(log_end))
    return {"started": key}, 202


@app.route("/get-task-result")
def get_task_result() -> dict[str, str]:
    key = request.args.get("key", "task")
    if key not in tasks:
        abort(404, "No task has this key.")
    task = tasks[key]
    if not task.done():
        return {"state": "running"}
    if error := task.exception():
        return {"state": "failed", "error": str(error)}
    return {"state": "done", "result": task.result()}


@app.route("/squares/<int:count>")
def squares(count: int) -> dict[str, Any]:
    def square(number: int) -> str:
        return f"{request.path}: {number * number}"

    return {"squares": list(executor.map(carry_context(square), range(count)))}
