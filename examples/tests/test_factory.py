"""The app factory: its view, its task, and what happens to a wrapper at the top level."""

import importlib
import sqlite3
import sys
import textwrap
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from factory import create_app, tasks
from factory.db import get_db
from flask import Flask
from helpers import TIMEOUT, Late

ACME = {"Shop": "acme"}
CONFIRMED = "acme, your order is confirmed: http://localhost/orders/1"


class InlineExecutor(ThreadPoolExecutor):
    """Runs each task at once, in the thread that submits it."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


@pytest.fixture
def shop(tmp_path: Path) -> Flask:
    return create_app({"DATABASE": str(tmp_path / "shop.sqlite"), "TESTING": True})


@pytest.fixture
def executor(monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadPoolExecutor]:
    """A pool that the tasks of one test have for themselves."""
    with ThreadPoolExecutor(2) as executor:
        monkeypatch.setattr(tasks, "executor", executor)
        yield executor


def show(shop: Flask) -> dict[str, Any]:
    response = shop.test_client().get("/orders/1", headers=ACME)
    found: dict[str, Any] = response.get_json()
    return found


def test_an_order_is_confirmed_after_the_response(
    shop: Flask,
    late: Late,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(tasks, "executor", late)
    response = shop.test_client().post("/orders", headers=ACME, data={"item": "tea"})
    assert response.status_code == 202
    assert response.get_json() == {"order": 1, "see": "http://localhost/orders/1"}
    assert show(shop) == {"id": 1, "shop": "acme", "item": "tea", "state": "new"}
    assert late.result() == CONFIRMED
    assert show(shop)["state"] == "confirmed"
    assert caplog.messages == [CONFIRMED]


def test_a_view_can_be_tested_with_an_executor_that_runs_inline(
    shop: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "executor", InlineExecutor())
    shop.test_client().post("/orders", headers=ACME, data={"item": "tea"})
    assert show(shop)["state"] == "confirmed"


def test_a_task_can_be_tested_without_its_view(
    shop: Flask, executor: ThreadPoolExecutor
) -> None:
    with shop.test_request_context("/orders", headers=ACME, method="POST"):
        shop.preprocess_request()
        get_db().execute("insert into orders (shop, item) values ('acme', 'tea')")
        get_db().commit()
        confirmed = tasks.confirm(1)
    assert confirmed.result(TIMEOUT) == CONFIRMED
    assert show(shop)["state"] == "confirmed"


def test_the_task_and_its_view_have_a_connection_each_and_both_are_closed(
    shop: Flask, executor: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[sqlite3.Connection] = []
    closed: list[sqlite3.Connection] = []
    connect = sqlite3.connect

    class Connection(sqlite3.Connection):
        def close(self) -> None:
            closed.append(self)
            super().close()

    def connect_and_count(database: Path) -> sqlite3.Connection:
        opened.append(connect(database, factory=Connection))
        return opened[-1]

    monkeypatch.setattr(sqlite3, "connect", connect_and_count)
    shop.test_client().post("/orders", headers=ACME, data={"item": "tea"})
    executor.shutdown()
    assert len(opened) == len(closed) == 2
    assert {*opened} == {*closed}


def test_orders_of_another_shop_are_not_shown(
    shop: Flask, executor: ThreadPoolExecutor
) -> None:
    client = shop.test_client()
    client.post("/orders", headers=ACME, data={"item": "tea"})
    assert client.get("/orders/1", headers={"Shop": "zoo"}).status_code == 404
    assert client.get("/orders/1").status_code == 400


@pytest.fixture
def wrapped_at_the_top(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """The name of a module that has carry_context as a decorator at its top level."""
    source = """
        from ctxcarry import carry_context

        @carry_context
        def confirm(order_id):
            pass
    """
    (tmp_path / "tasks_of_mistake.py").write_text(textwrap.dedent(source))
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    yield "tasks_of_mistake"
    sys.modules.pop("tasks_of_mistake", None)


def test_carry_context_at_the_top_level_fails_where_no_request_is(
    wrapped_at_the_top: str,
) -> None:
    with pytest.raises(RuntimeError, match="context"):
        importlib.import_module(wrapped_at_the_top)


def test_carry_context_at_the_top_level_fails_when_a_request_imports_the_module(
    shop: Flask, wrapped_at_the_top: str
) -> None:
    @shop.route("/import")
    def import_lazily() -> str:
        return str(importlib.import_module(wrapped_at_the_top))

    with pytest.raises(RuntimeError, match="imports the module"):
        shop.test_client().get("/import")


def test_a_task_started_outside_of_a_request_is_refused_at_the_call(
    executor: ThreadPoolExecutor,
) -> None:
    assert tasks.confirm.__name__ == "confirm"
    with pytest.raises(RuntimeError, match="context"):
        tasks.confirm(1)
