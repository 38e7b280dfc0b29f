"""What tasks in threads, pools, timers and loops see, without and with carry_context.

Run it with:
.venv/bin/python examples/what_a_task_sees.py
"""

import asyncio
import contextvars
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

from flask import Flask, current_app, g, request, session

from ctxcarry import carry_context

LEGEND = """\
yes     The task has what the view had. What it changes there stays in the task.
shared  The task has the view's own object, which may be torn down while it uses it.
-       The task has nothing. Reading it raises an error."""

app = Flask(__name__)
app.secret_key = "for this example only"
pool = ThreadPoolExecutor()
loop = asyncio.new_event_loop()
request_id: contextvars.ContextVar[str] = contextvars.ContextVar("request_id")
answered = threading.Event()
rows: dict[str, Future[list[str]]] = {}

# How each is read: a value, and the object that it is kept in.
READS: dict[str, Callable[[], tuple[str, object]]] = {
    "request": lambda: (request.path, request.environ),
    "session": lambda: (session["user"], vars(session)),
    "g": lambda: (g.tenant, vars(g)),
    "contextvars": lambda: (request_id.get(), object()),
    "current_app": lambda: (current_app.name, object()),
}


def look(seen_by_the_view: list[tuple[str, object]]) -> list[str]:
    """Read all in a task, and compare it with what the view has read."""
    row: list[str] = []
    for read, (value, kept_in) in zip(READS.values(), seen_by_the_view, strict=True):
        try:
            found, found_in = read()
        except (RuntimeError, LookupError):
            row.append("-")
            continue
        if found_in is kept_in:
            row.append("shared")
        else:
            row.append("yes" if found == value else "wrong")
    return row


@app.before_request
def remember() -> None:
    session["user"] = "ada"
    g.tenant = "acme"
    request_id.set("17")


@app.route("/<any(without, with):how>")
def view(how: str) -> str:
    def carry(func: Any) -> Any:
        return carry_context(func) if how == "with" else func

    seen_by_the_view = [read() for read in READS.values()]
    in_thread: Future[list[str]] = Future()
    in_timer: Future[list[str]] = Future()

    def task() -> list[str]:
        return look(seen_by_the_view)

    async def coroutine() -> list[str]:
        return task()

    def late_task() -> None:
        answered.wait()
        in_timer.set_result(task())

    threading.Thread(target=carry(lambda: in_thread.set_result(task()))).start()
    threading.Timer(0, carry(late_task)).start()
    rows["ThreadPoolExecutor"] = pool.submit(carry(task))
    rows["Thread"] = in_thread
    rows["Event loop"] = asyncio.run_coroutine_threadsafe(carry(coroutine)(), loop)
    wait(rows.values())
    rows["Timer, after the response"] = in_timer
    return "The timer is still to come."


def main() -> bool:
    threading.Thread(target=loop.run_forever, daemon=True).start()
    for how in "without", "with":
        answered.clear()
        app.test_client().get(f"/{how}")
        answered.set()
        print(f"{how.title() + ' carry_context':28}", *(f"{key:11}" for key in READS))
        for name, future in rows.items():
            print(f"  {name:26}", *(f"{cell:11}" for cell in future.result()))
        print()
    print(LEGEND)
    return all(set(future.result()) == {"yes"} for future in rows.values())


if __name__ == "__main__":
    sys.exit(not main())
