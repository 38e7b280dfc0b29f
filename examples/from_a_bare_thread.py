"""Coming from a bare threading.Thread: a task of some seconds that outlives the response.

Run it with:
.venv/bin/flask --app examples/from_a_bare_thread.py run
and open http://127.0.0.1:5000/execute_task

What changed: one decorator. The task knows the request that started it, after the
response as well, and nothing needs to be passed to it by hand.

What behaves differently: teardown functions now run at the end of each task too, with
its exception. They close what it has opened in g, and find nothing of the view's, so
what a hook has put into g is read with g.get() there.
"""

import logging
import sqlite3
import threading
import time
import uuid

from flask import Flask, g, request, session

from ctxcarry import carry_context

app = Flask(__name__)
app.secret_key = "change me"
DATABASE, SECONDS = ":memory:", 3
log = logging.getLogger("tasks")


@app.before_request
def identify() -> None:
    g.request_id = uuid.uuid4().hex
    session.setdefault("user", request.args.get("user", "anonymous"))


def get_db() -> sqlite3.Connection:
    if "db" not in g:
        g.db = sqlite3.connect(DATABASE)
    db: sqlite3.Connection = g.db
    return db


@app.teardown_appcontext
def close_db(error: BaseException | None) -> None:
    if "db" in g:
        g.pop("db").close()
        log.warning("closed the connection of %s", threading.current_thread().name)


@app.route("/execute_task")
def execute_task() -> dict[str, str]:
    get_db().execute("select 1")

    @carry_context
    def task() -> None:
        get_db().execute("select 1")  # Its own: the view's stays with the view.
        time.sleep(SECONDS)
        log.warning("%s for %s: %s", request.path, session["user"], g.request_id)

    threading.Thread(target=task, name="task").start()
    return {"started": g.request_id}
