"""The views of the shop."""

from typing import Any

from flask import Blueprint, abort, g, request, url_for

from . import tasks
from .db import get_db

LARGEST_ID = 2**63 - 1  # SQLite has none above it.
blueprint = Blueprint("orders", __name__, url_prefix="/orders")


@blueprint.before_request
def set_shop() -> None:
    if "Shop" not in request.headers:
        abort(400, "The header Shop is missing.")
    g.shop = request.headers["Shop"]


@blueprint.post("")
def order() -> Any:
    """Take an order, and answer before it is confirmed."""
    db = get_db()
    row = [g.shop, request.form["item"]]
    id = db.execute("insert into orders (shop, item) values (?, ?)", row).lastrowid
    assert id is not None
    db.commit()  # So that the task, on a connection of its own, finds the order.
    tasks.confirm(id)
    return {"order": id, "see": url_for("orders.show", id=id, _external=True)}, 202


@blueprint.get(f"/<int(max={LARGEST_ID}):id>")
def show(id: int) -> dict[str, Any]:
    query = "select * from orders where id = ? and shop = ?"
    row = get_db().execute(query, [id, g.shop]).fetchone()
    if row is None:
        abort(404, "There is no such order.")
    return dict(row)
