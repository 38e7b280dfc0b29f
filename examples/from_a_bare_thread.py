"""Moving from a bare threading.Thread that is passed everything the task needs.

Run it with:
.venv/bin/flask --app examples/from_a_bare_thread.py run
and open http://127.0.0.1:5000/execute_task

Add the decorator. The task then knows the request that started it, even after the
response has been sent. Teardown functions run at the end of each task too. They close
what the task has opened in g.
"""

import sqlite3
import threading
import time

from flask import Flask, g, request

from ctxcarry import carry_context

app = Flask(__name__)


def get_db() -> sqlite3.Connection:
    if "db" not in g:
        g.db = sqlite3.connect(":memory:")
    db: sqlite3.Connection = g.db
    return db


@app.teardown_appcontext
def close_db(error: BaseException | None) -> None:
    db = g.pop("db", None)
    if db is not None:
        db.close()


@app.route("/execute_task")
def execute_task() -> dict[str, str]:
    get_db().execute("select 1")
    g.user = request.args.get("user", "anonymous")

    @carry_context
    def task() -> None:
        get_db().execute("select 1")  # The task's own: the view's stays with the view.
        time.sleep(3)
        app.logger.warning("%s is done for %r", request.path, g.user)

    threading.Thread(target=task, name="task").start()
    return {"state": "started"}
