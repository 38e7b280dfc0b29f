"""Servers of production under load: test_ctxcarry.py starts none."""

import contextlib
import http.client
import itertools
import json
import re
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import pytest
from flask import Flask, g, request, session
from helpers import ROOT, TIMEOUT

from ctxcarry import carry_context

HERE = Path(__file__).parent
TENANT: ContextVar[str] = ContextVar("TENANT")


def load_app() -> Flask:
    """Make an app whose tasks check that each sees the request that started it."""
    app = Flask("load")
    app.secret_key = "secret"
    pool = ThreadPoolExecutor(8)
    waiting: dict[str, tuple[threading.Event, threading.Thread]] = {}
    closed: list[int] = []
    mixed: list[list[str]] = []
    opened, started, ended = itertools.count(), itertools.count(), itertools.count()

    @app.before_request
    def identify() -> None:
        g.id = session["id"] = request.headers["Id"]
        TENANT.set(g.id)
        g.resource = next(opened)

    @app.teardown_appcontext
    def close(error: BaseException | None) -> None:
        if "resource" in g:
            closed.append(g.pop("resource"))

    def task(fails: bool = False) -> str:
        if g.pop("resource") in closed and request.endpoint != "late":
            mixed.append(["closed", g.id])
        g.resource = next(opened)
        seen: list[str] = [g.id, session["id"], TENANT.get(), request.headers["Id"]]
        seen += [request.args["id"], request.cookies["id"], str(request.view_args)]
        g.id = session["id"] = request.environ["HTTP_ID"] = "of another task"
        TENANT.set(g.id)
        if set(seen) != {seen[0], str({"id": seen[0]})}:
            mixed.append(seen)
        next(ended)
        if fails:
            raise LookupError(seen[0])
        return seen[0]

    @app.route("/map/<id>")
    def fan_out(id: str) -> dict[str, Any]:
        calls = [False for _ in range(4) if next(started) >= 0]
        return {"ids": list(pool.map(carry_context(task), calls))}

    @app.route("/late/<id>")
    def late(id: str) -> dict[str, Any]:
        answered = threading.Event()

        @carry_context
        def work() -> None:
            assert answered.wait(TIMEOUT)
            task()

        next(started)
        waiting[id] = answered, threading.Thread(target=work)
        waiting[id][1].start()
        return {"ids": [id]}

    @app.route("/answered/<id>")
    def answered(id: str) -> dict[str, Any]:
        event, thread = waiting.pop(id)
        event.set()
        thread.join(TIMEOUT)
        return {"ids": [id]}

    @app.route("/fail/<id>")
    def fail(id: str) -> dict[str, Any]:
        next(started)
        error = pool.submit(carry_context(task), fails=True).exception(TIMEOUT)
        return {"ids": error and error.args}

    @app.route("/report/<id>")
    def report(id: str) -> dict[str, Any]:
        return {
            "module": carry_context.__code__.co_filename,
            "mixed": mixed,
            "started": next(started),
            "ended": next(ended),
            "opened": next(opened) - 1,  # Without that of this request.
            "closed": len(closed),
            "closed once": len(set(closed)),
        }

    return app


def check_under_load(port: int, clients: int, requests: int) -> None:
    """Send requests of several clients at once to a server of the load app."""

    def get(connection: http.client.HTTPConnection, kind: str, id: str) -> Any:
        headers = {"Id": id, "Cookie": f"id={id}"}
        connection.request("GET", f"/{kind}/{id}?id={id}", headers=headers)
        response = connection.getresponse()
        content = response.read()
        assert response.status == 200, content
        return json.loads(content)

    def connect() -> contextlib.closing[http.client.HTTPConnection]:
        return contextlib.closing(
            http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)
        )

    def client(name: int) -> None:
        with connect() as connection:
            for number in range(requests):
                for kind in "map", "late", "answered", "fail":
                    id = f"{name}-{number}"
                    assert set(get(connection, kind, id)["ids"]) == {id}

    with ThreadPoolExecutor(clients) as threads:
        list(threads.map(client, range(clients)))
    with connect() as connection:
        report = get(connection, "report", "last")
    tasks, views = clients * requests * 6, clients * requests * 4
    assert report == {
        "module": str(ROOT / "ctxcarry.py"),  # Not an installed copy.
        "mixed": [],
        "started": tasks,
        "ended": tasks,
        "opened": tasks + views,
        "closed": tasks + views,
        "closed once": tasks + views,
    }


@pytest.mark.parametrize("server", ["gthread", "gevent", "waitress"])
def test_under_load_no_task_sees_another_request_and_every_resource_is_closed(
    server: str,
) -> None:
    command = [sys.executable, "-m"]
    if server == "waitress":
        command += ["waitress", "--listen=127.0.0.1:0", "--threads=8", "--call"]
        command += ["test_module_load:load_app"]
    else:
        command += ["gunicorn", "--bind=127.0.0.1:0", "--threads=8", "-k", server]
        command += ["test_module_load:load_app()"]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # A shell may ignore it.
    with subprocess.Popen(command, cwd=HERE, stderr=subprocess.PIPE, text=True) as run:
        try:
            assert run.stderr is not None
            for line in run.stderr:
                if listening := re.search(r"http://127\.0\.0\.1:(\d+)", line):
                    break
            else:
                pytest.fail("The server ended before it listened.")
            check_under_load(int(listening[1]), clients=6, requests=42)
            run.send_signal(signal.SIGINT)
            assert run.wait(TIMEOUT) == 0
        finally:
            run.kill()
