"""The shop's background tasks. They are module-level functions, like views."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import wraps
from typing import ParamSpec, TypeVar

from flask import current_app, g, url_for

from ctxcarry import carry_context

from .db import get_db

P = ParamSpec("P")
R = TypeVar("R")
executor = ThreadPoolExecutor()


def background(task: Callable[P, R]) -> Callable[P, Future[R]]:
    """Make a function run in the pool, in the context of the view that calls it."""

    def log_error(future: Future[R]) -> None:
        if not future.cancelled() and (error := future.exception()):
            current_app.logger.error("%s failed", task.__name__, exc_info=error)

    @wraps(task)
    def start(*args: P.args, **kwargs: P.kwargs) -> Future[R]:
        future = executor.submit(carry_context(task), *args, **kwargs)
        future.add_done_callback(carry_context(log_error))
        return future

    return start


@background
def confirm(order_id: int) -> None:
    """Confirm an order that its view has committed, and tell the shop."""
    db = get_db()  # The task's own connection: the view's stays with the view.
    db.execute("update orders set state = 'confirmed' where id = ?", [order_id])
    db.commit()
    see = url_for("orders.show", id=order_id, _external=True)
    current_app.logger.warning("Order %d of %r is confirmed: %s", order_id, g.shop, see)
