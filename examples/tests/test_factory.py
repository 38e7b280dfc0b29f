"""The app factory: its view, its task, and what a stranger may send."""

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from factory import create_app, tasks
from flask import Flask
from helpers import Late

ACME = {"Shop": "acme"}


@pytest.fixture
def shop(tmp_path: Path) -> Flask:
    return create_app({"DATABASE": str(tmp_path / "shop.sqlite"), "TESTING": True})


@pytest.fixture(autouse=True)
def executor(pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the tasks of each test a pool of their own."""
    monkeypatch.setattr(tasks, "executor", pool)


def order(shop: Flask) -> Any:
    return shop.test_client().post("/orders", headers=ACME, data={"item": "tea"})


def state(shop: Flask) -> str:
    response = shop.test_client().get("/orders/1", headers=ACME)
    shown = response.get_json()
    assert shown == {"id": 1, "shop": "acme", "item": "tea", "state": shown["state"]}
    return str(shown["state"])


def test_an_order_is_confirmed_after_the_response(
    shop: Flask,
    late: Late,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(tasks, "executor", late)
    response = order(shop)
    assert response.status_code == 202
    assert response.get_json() == {"order": 1, "see": "http://localhost/orders/1"}
    assert state(shop) == "new"
    late.result()
    assert state(shop) == "confirmed"
    confirmed = "Order 1 of 'acme' is confirmed: http://localhost/orders/1"
    assert caplog.messages == [confirmed]


def test_the_task_and_its_view_have_a_connection_each_and_both_are_closed(
    shop: Flask, pool: ThreadPoolExecutor, connections: list[Any]
) -> None:
    order(shop)
    pool.shutdown()
    of_the_view, of_the_task = connections
    assert of_the_view.closed
    assert of_the_task.closed


def test_a_task_that_fails_is_logged_and_its_future_has_the_error(
    shop: Flask,
    pool: ThreadPoolExecutor,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    failure = LookupError("no tea")

    @tasks.background
    def brew() -> None:
        raise failure

    monkeypatch.setattr(tasks, "executor", pool)
    with shop.test_request_context():
        future: Future[None] = brew()
    pool.shutdown()
    assert future.exception() is failure
    (record,) = caplog.records
    assert (record.name, record.message) == (shop.logger.name, "brew failed")
    assert record.exc_info is not None
    assert record.exc_info[1] is failure


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        pytest.param("/orders/1", {"Shop": "zoo"}, 404, id="order of another shop"),
        pytest.param("/orders/1", {}, 400, id="no shop"),
        pytest.param("/orders/2", ACME, 404, id="no such order"),
        pytest.param(f"/orders/{2**63}", ACME, 404, id="larger than any id"),
        pytest.param("/orders/" + "9" * 5000, ACME, 404, id="5000 digits"),
    ],
)
def test_what_is_not_there_is_an_error_of_the_client(
    shop: Flask, path: str, headers: dict[str, str], status: int
) -> None:
    order(shop)
    assert shop.test_client().get(path, headers=headers).status_code == status


def test_an_order_of_nothing_is_an_error_of_the_client(shop: Flask) -> None:
    response = shop.test_client().post("/orders", headers=ACME)
    assert response.status_code == 400
