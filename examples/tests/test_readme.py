"""The snippets and commands of the README do what it says. test_compare.py tries its table."""

import asyncio
import importlib
import queue
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, cast

import flask
import pytest
from documents import README, snippets, write_shop
from flask import (
    Flask,
    copy_current_request_context,
    current_app,
    g,
    has_request_context,
    request,
    session,
)
from helpers import ROOT, TIMEOUT, Late

from ctxcarry import carry_context

MAIN, ACCESSOR, TASKS, EXECUTOR, JOB = snippets(README)


@pytest.fixture
def names() -> dict[str, Any]:
    """What the first snippet of the README defines."""
    names: dict[str, Any] = {"__name__": "readme"}
    exec(MAIN, names)
    return names


def test_its_first_two_shell_commands_are_the_main_job_and_the_tests() -> None:
    main, tests = snippets(README, "sh")
    setup = "python3 -m venv .venv && .venv/bin/pip install -q "
    assert main.startswith(f"{setup}. && ")
    assert tests == f'{setup}".[test]" && .venv/bin/python -m pytest\n'


def test_the_main_job_finds_everything_carried() -> None:
    command = shlex.split(snippets(README, "sh")[0].rpartition(" && ")[2])
    assert command[0] == ".venv/bin/python"
    done = subprocess.run(
        [sys.executable, *command[1:]],
        cwd=ROOT,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        timeout=TIMEOUT,
    )
    assert "With carry_context" in done.stdout


def test_the_first_example_answers(names: dict[str, Any]) -> None:
    answer = names["app"].test_client().get("/report").text.strip()
    assert f"| `@carry_context` | `{answer}` |" in README


def test_the_first_example_fails_with_the_built_in(
    caplog: pytest.LogCaptureFixture,
) -> None:
    names: dict[str, Any] = {"__name__": "readme"}
    names["copy_current_request_context"] = copy_current_request_context
    text = MAIN.replace("@carry_context", "@copy_current_request_context")
    exec(text, names)
    assert names["app"].test_client().get("/report").status_code == 500
    (record,) = caplog.records
    assert record.exc_info
    assert "500, `AttributeError: tenant`" in README
    assert repr(record.exc_info[1]) == "AttributeError('tenant')"


# Using it


def test_the_ways_to_hand_a_task_over_work(app: Flask) -> None:
    lines: queue.Queue[str] = queue.Queue()
    given = (
        "`executor.submit(carry_context(task), 17)`, `Thread(target=carry_context(task))`, "
        "`Timer(60, carry_context(task))`"
    )
    assert given in README.replace("\n", " ")
    with ThreadPoolExecutor(1) as executor:

        @app.route("/orders")
        def view() -> str:
            def task(number: int = 0) -> None:
                lines.put(f"{request.path} {number}")

            executor.submit(carry_context(task), 17)
            threading.Thread(target=carry_context(task)).start()
            threading.Timer(0, carry_context(task)).start()
            return ""

        app.test_client().get("/orders")
        seen = sorted(lines.get(timeout=TIMEOUT) for _ in range(3))
    assert seen == ["/orders 0", "/orders 0", "/orders 17"]


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The package `shop` of the README, imported."""
    write_shop(tmp_path)
    cast(Any, monkeypatch).syspath_prepend(tmp_path)
    yield importlib.import_module("shop")
    for name in [name for name in sys.modules if name.partition(".")[0] == "shop"]:
        del sys.modules[name]


def test_a_task_of_a_module_has_the_context_of_the_view_that_calls_it(
    shop: Any, caplog: pytest.LogCaptureFixture
) -> None:
    app = shop.create_app()
    assert app.test_client().post("/orders/17/pay").get_json() == {"paid": 17}
    tasks: Any = importlib.import_module("shop.tasks")
    with app.test_request_context():
        g.tenant = "zoo"
        future: Future[None] = tasks.send_receipt(18)
        assert future.result(TIMEOUT) is None
    tasks.executor.shutdown()
    paid = ["Order 17 of acme is paid.", "Order 18 of zoo is paid."]
    assert sorted(caplog.messages) == paid


def test_a_task_of_a_module_that_fails_is_logged(
    shop: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def pay(order: int) -> None:
        raise LookupError(order)

    tasks: Any = importlib.import_module("shop.tasks")
    with shop.create_app().test_request_context():
        future: Future[None] = tasks.background(pay)(17)
        assert isinstance(future.exception(TIMEOUT), LookupError)
    tasks.executor.shutdown()
    (record,) = caplog.records
    assert (record.getMessage(), record.levelname) == ("pay failed", "ERROR")


def test_an_executor_that_wraps_automatically_carries_every_call(
    names: dict[str, Any],
) -> None:
    exec(EXECUTOR, names)
    app: Flask = names["app"]
    with names["ContextExecutor"](2) as executor:

        @app.route("/ways")
        async def ways() -> list[str]:
            def path(_: object = None) -> str:
                return request.path

            loop = asyncio.get_running_loop()
            in_loop = await loop.run_in_executor(executor, path)
            return [executor.submit(path).result(), *executor.map(path, [1]), in_loop]

        assert app.test_client().get("/ways").get_json() == ["/ways"] * 3


def test_a_job_without_a_request_has_the_app_and_may_start_itself_again(
    names: dict[str, Any],
) -> None:
    runs: queue.Queue[list[Any]] = queue.Queue()

    def refresh_prices(left: int = 1) -> None:
        if left:
            again = carry_context(partial(refresh_prices, left - 1))
            threading.Timer(0, again).start()
        runs.put([current_app.name, has_request_context()])

    names["refresh_prices"] = refresh_prices
    exec(JOB, names)
    assert [runs.get(timeout=TIMEOUT) for _ in range(2)] == [["readme", False]] * 2


# The one rule


def test_an_accessor_loads_an_orm_object_in_the_task(
    app: Flask, db: Any, late: Late
) -> None:
    class Account(db.Model):  # type: ignore[misc]
        id = db.Column(db.Integer, primary_key=True)
        name = db.Column(db.String, nullable=False)

    with app.app_context():
        db.create_all()
        db.session.add(Account(name="acme"))
        db.session.commit()
    names = {**vars(flask), "db": db, "Account": Account}
    exec(ACCESSOR, names)
    get_account: Any = names["get_account"]

    @app.route("/")
    def view() -> str:
        session["account_id"] = 1

        def rename() -> bool:
            get_account().name = "zoo"
            db.session.commit()
            return get_account() is g.account

        late.submit(carry_context(rename))
        return str(get_account().name)

    assert app.test_client().get("/").text == "acme"
    assert late.result() is True
    with app.app_context():
        assert db.session.get(Account, 1).name == "zoo"
        db.session.remove()
