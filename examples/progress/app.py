"""A long task as people want to see it: a bar that moves, rows as they come, a way out.

Run it with:  flask --app examples/progress/app.py run  (needs flask-sqlalchemy)

The view hands the items to a pool, by one wrapper. Each task has the visitor in the
session, the tenant in g, the request id in every log line, and a database session of
its own, as Flask-SQLAlchemy gives one to every app context.
"""

import contextvars
import logging
import random
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from flask import Flask, abort, g, redirect, render_template, request, session, url_for
from flask_sqlalchemy import SQLAlchemy

from ctxcarry import carry_context

request_id: contextvars.ContextVar[str] = contextvars.ContextVar("request_id")
log = logging.getLogger("progress")
executor = ThreadPoolExecutor(4)
db: Any = SQLAlchemy()


class Report(db.Model):  # type: ignore[misc]
    id = db.Column(db.Integer, primary_key=True)
    visitor = db.Column(db.String, nullable=False)
    tenant = db.Column(db.String, nullable=False)
    cancelled = db.Column(db.Boolean, nullable=False, default=False)
    items = db.relationship("Item", order_by="Item.id", backref="report")


class Item(db.Model):  # type: ignore[misc]
    id = db.Column(db.Integer, primary_key=True)
    report_id = db.Column(db.ForeignKey("report.id"), nullable=False)
    number = db.Column(db.Integer, nullable=False)
    state = db.Column(db.String, nullable=False, default="waiting")
    result = db.Column(db.String, nullable=False, default="")


class RequestIdFilter(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        record.request_id = request_id.get("-")
        return True


def compute(number: int) -> str:
    """The work itself: every seventh item cannot be done."""
    time.sleep(random.uniform(0.2, 0.6))
    if number % 7 == 0:
        raise ValueError(f"There is no price for item {number}.")
    return f"{number * 3} € for {session['visitor'][:4]} of {g.tenant}"


def work(id: int) -> None:
    item = db.session.get(Item, id)
    if item.report.cancelled:
        item.state = "cancelled"
    else:
        try:
            item.result, item.state = compute(item.number), "done"
        except ValueError as error:
            item.result, item.state = str(error), "failed"
    db.session.commit()
    log.info("item %s is %s", item.number, item.state)


def create_app(database: str = "sqlite:///progress.sqlite") -> Flask:
    app = Flask(__name__)
    app.secret_key = "change me"
    app.config["SQLALCHEMY_DATABASE_URI"] = database
    db.init_app(app)
    with app.app_context():
        db.create_all()

    @app.before_request
    def identify() -> None:
        session.setdefault("visitor", uuid.uuid4().hex)
        g.tenant = request.headers.get("Tenant", "acme")
        request_id.set(request.headers.get("Request-Id", uuid.uuid4().hex[:8]))

    def own_report(id: int) -> Any:
        report = db.session.get(Report, id)
        if report is None or report.visitor != session["visitor"]:
            abort(404)
        return report

    @app.route("/")
    def index() -> str:
        own = Report.query.filter_by(visitor=session["visitor"])
        return render_template("index.html", reports=own.order_by(Report.id.desc()))

    @app.route("/reports", methods=["POST"])
    def start() -> Any:
        count = request.form.get("items", type=int)
        if count is None or not 1 <= count <= 100:
            abort(400, "A report has 1 to 100 items.")
        report = Report(visitor=session["visitor"], tenant=g.tenant)
        report.items = [Item(number=number) for number in range(1, count + 1)]
        db.session.add(report)
        db.session.commit()
        executor.map(carry_context(work), [item.id for item in report.items])
        return redirect(url_for("show", id=report.id))

    @app.route("/reports/<int:id>")
    def show(id: int) -> str:
        return render_template("report.html", report=own_report(id))

    @app.route("/reports/<int:id>/state")
    def state(id: int) -> dict[str, Any]:
        items = own_report(id).items
        return {
            "items": [[item.number, item.state, item.result] for item in items],
            "ended": sum(item.state != "waiting" for item in items),
        }

    @app.route("/reports/<int:id>/cancel", methods=["POST"])
    def cancel(id: int) -> Any:
        own_report(id).cancelled = True
        db.session.commit()
        return redirect(url_for("show", id=id))

    return app


logging.basicConfig(format="%(levelname)s %(request_id)s %(message)s")
for handler in logging.getLogger().handlers:
    handler.addFilter(RequestIdFilter())
log.setLevel(logging.INFO)
