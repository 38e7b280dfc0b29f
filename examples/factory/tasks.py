"""What the shop does in the background: functions of a module, as views are."""

import functools
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from flask import current_app, g, url_for

from ctxcarry import carry_context

from .db import get_db

P = ParamSpec("P")
R = TypeVar("R")
executor = ThreadPoolExecutor()


def background(task: Callable[P, R]) -> Callable[P, Future[R]]:
    """Make a function run in the pool, in the context of whoever calls it.

    The context is that of the call, so `carry_context` is in the body. As a decorator
    in its place it would run while this module is imported, where no request is.
    """

    @functools.wraps(task)
    def start(*args: P.args, **kwargs: P.kwargs) -> Future[R]:
        return executor.submit(carry_context(task), *args, **kwargs)

    return start


@background
def confirm(order_id: int) -> str:
    """Confirm an order that its view has committed, and tell the shop."""
    db = get_db()  # The task's own connection: the view's stays with the view.
    db.execute("update orders set state = 'confirmed' where id = ?", [order_id])
    db.commit()
    address = url_for("orders.show", id=order_id, _external=True)
    message = f"{g.shop}, your order is confirmed: {address}"
    current_app.logger.warning(message)
    return message
