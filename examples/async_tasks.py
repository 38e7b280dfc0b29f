"""Async: coroutines in a view, a coroutine on another thread's loop, and a pool.

Run it with:
.venv/bin/pip install -q ".[examples]" && .venv/bin/flask --app examples/async_tasks.py run
and open http://127.0.0.1:5000/gather, http://127.0.0.1:5000/elsewhere
or http://127.0.0.1:5000/executor
"""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

from flask import Flask, g, request

from ctxcarry import carry_context

app = Flask(__name__)
executor = ThreadPoolExecutor()
loop = asyncio.new_event_loop()
threading.Thread(target=loop.run_forever, daemon=True).start()


@app.before_request
def remember_tenant() -> None:
    g.tenant = request.args.get("tenant", "acme")


async def price(item: str) -> str:
    await asyncio.sleep(0.01)
    g.item = item  # Each call has its own g.
    await asyncio.sleep(0.01)
    return f"{g.item} for {g.tenant} at {request.path}"


def blocking_price(item: str) -> str:
    return f"{item} for {g.tenant} at {request.path}"


@app.route("/gather")
async def gather() -> dict[str, list[str]]:
    carried = carry_context(price)
    return {"prices": list(await asyncio.gather(carried("tea"), carried("milk")))}


@app.route("/elsewhere")
def elsewhere() -> dict[str, list[str]]:
    coroutine = carry_context(price)("tea")
    return {"prices": [asyncio.run_coroutine_threadsafe(coroutine, loop).result()]}


@app.route("/executor")
async def in_executor() -> dict[str, list[str]]:
    running = asyncio.get_running_loop()
    work = carry_context(blocking_price)
    return {"prices": [await running.run_in_executor(executor, work, "tea")]}
