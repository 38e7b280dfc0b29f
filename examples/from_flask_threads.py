"""Coming from Flask-Threads: what a hook put into g, read in a thread and in a pool.

Run it with:
.venv/bin/flask --app examples/from_flask_threads.py run
and ask it with:
curl -H "User-Id: 17" http://127.0.0.1:5000/user/thread
curl -H "User-Id: 17" http://127.0.0.1:5000/user/executor

What changed: Thread and ThreadPoolExecutor are the standard ones, and the function is
wrapped with carry_context. The request, the session and the context variables are
there as well.

What behaves differently: the task has an app context of its own, not the view's live
one, so what it puts into g stays with it, and an open connection in g stays with the
view. Teardown functions run at the end of each task, and close what it has opened.
"""

import queue
import threading
from concurrent.futures import ThreadPoolExecutor

from flask import Flask, g, request

from ctxcarry import carry_context

app = Flask(__name__)
executor = ThreadPoolExecutor()


@app.before_request
def remember_user() -> None:
    g.user_id = request.headers.get("User-Id")


def get_user() -> dict[str, str]:
    return {"user_id": g.user_id, "path": request.path}


@app.route("/user/thread")
def user_in_a_thread() -> dict[str, str]:
    users: queue.Queue[dict[str, str]] = queue.Queue()

    @carry_context
    def put_user() -> None:
        users.put(get_user())

    threading.Thread(target=put_user).start()
    return users.get()


@app.route("/user/executor")
def user_in_a_pool() -> dict[str, str]:
    return executor.submit(carry_context(get_user)).result()
