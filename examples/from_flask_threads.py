"""Moving from Flask-Threads: a thread and a pool read a value that a hook set in g.

Run it with:
.venv/bin/flask --app examples/from_flask_threads.py run
and try it with:
curl -H "User-Id: 17" http://127.0.0.1:5000/user/thread
curl -H "User-Id: 17" http://127.0.0.1:5000/user/executor
"""

import threading
from concurrent.futures import ThreadPoolExecutor

from flask import Flask, g, request

from ctxcarry import carry_context

app = Flask(__name__)
executor = ThreadPoolExecutor()  # In place of ThreadPoolWithAppContextExecutor().


@app.before_request
def remember_user() -> None:
    g.user_id = request.headers.get("User-Id")


def get_user() -> dict[str, str]:
    return {"user_id": g.user_id, "path": request.path}


@app.route("/user/thread")
def user_in_a_thread() -> dict[str, str]:
    found: list[dict[str, str]] = []

    @carry_context
    def task() -> None:
        found.append(get_user())

    thread = threading.Thread(target=task)  # In place of AppContextThread.
    thread.start()
    thread.join()
    return found[0]


@app.route("/user/executor")
def user_in_a_pool() -> dict[str, str]:
    return executor.submit(carry_context(get_user)).result()
