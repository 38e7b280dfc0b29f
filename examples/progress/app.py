"""A long task as people want to see it: it goes on, whatever happens to the page.

Run it, beside README.md, with:
.venv/bin/pip install -q ".[examples]" && .venv/bin/flask --app examples/progress/app.py run

A shop has a supplier's list priced. Each row is a task, with the visitor in the session,
the shop's terms in g, the request id in the log, and a database session of its own.
"""

import csv
import re
import secrets
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import click
import structlog
from flask import Flask, abort, g, redirect, render_template, request, session, url_for
from flask_sqlalchemy import SQLAlchemy
from flask_wtf import CSRFProtect  # type: ignore[import-untyped]
from werkzeug.exceptions import HTTPException

from ctxcarry import carry_context

CSV = Path(__file__).with_name("teas.csv").read_text("utf-8")
ROWS = list(csv.DictReader(CSV.splitlines()))
# What a shop multiplies a cost by: its margin and its VAT.
SHOPS = {"Acme Deli, Berlin": Decimal("1.49"), "Zoo Café, Vienna": Decimal("1.82")}
MAX_ID = 2**31 - 1  # Of a column that is an Integer: with more, databases fail.
executor = ThreadPoolExecutor(4)
db: Any = SQLAlchemy()
log = structlog.get_logger()


class Report(db.Model):  # type: ignore[misc]
    id = db.Column(db.Integer, primary_key=True)
    user = db.Column(db.String, nullable=False)
    shop = db.Column(db.String, nullable=False)
    section = db.Column(db.String, nullable=False)
    items = db.relationship("Item", order_by="Item.id", lazy="selectin")


class Item(db.Model):  # type: ignore[misc]
    id = db.Column(db.Integer, primary_key=True)
    report_id = db.Column(db.ForeignKey(Report.id), nullable=False, index=True)
    row = db.Column(db.JSON, nullable=False)
    state = db.Column(db.String, nullable=False, default="waiting")
    result = db.Column(db.String, nullable=False, default="")


def submit(report: Report) -> None:
    """Hand each item to the pool, and what becomes of it to a reader."""
    task, reader = carry_context(work), carry_context(read)
    for id in [item.id for item in report.items]:
        executor.submit(task, id).add_done_callback(partial(reader, id))


def work(id: int) -> None:
    """Do one item, if it still waits: it may be done, or cancelled."""
    if mark("running", Item.id == id, Item.state == "waiting"):
        mark("done", Item.id == id, result=price(db.session.get(Item, id).row))


def read(id: int, task: Future[None]) -> None:
    """Ask how the task ended: else nobody would hear of what it raised."""
    if task.cancelled():
        mark("interrupted", Item.id == id, Item.state == "waiting")
    elif error := task.exception():
        log.error("failed", item=id, exc_info=error)
        reason = str(error) if isinstance(error, ValueError) else "A mistake of ours."
        mark("failed", Item.id == id, result=reason)


def mark(state: str, *which: Any, result: str = "") -> int:
    """Give a state to the items that meet all conditions, at once, and count them."""
    change = db.update(Item).where(*which).values(state=state, result=result)
    count: int = db.session.execute(change).rowcount
    db.session.commit()
    return count


def price(row: dict[str, str]) -> str:
    """The work itself: the price on the shelf, and the price per kilogram beside it."""
    time.sleep(0.2)  # Stands for a service that is asked.
    if sum(int(digit) * (1, 3)[at % 2] for at, digit in enumerate(row["ean"])) % 10:
        raise ValueError(f"The check digit of {row['ean']} is wrong.")
    if not re.fullmatch(r"\d+\.\d\d", row["cost"]):
        raise ValueError(f"“{row['cost']}” is not a price.")
    shelf = Decimal(row["cost"]) * g.factor
    kilogram = 1000 * shelf / int(row["grams"])
    log.info("priced", user=session["user"], ean=row["ean"], price=f"{shelf:.2f}")
    return f"{shelf:.2f} €, {kilogram:.2f} €/kg"


def create_app() -> Flask:
    app = Flask(__name__)
    app.config["SECRET_KEY"] = secrets.token_hex()  # Until FLASK_SECRET_KEY is set.
    app.config["SESSION_COOKIE_SAMESITE"] = "Lax"
    app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite:///progress.sqlite"
    app.config["WTF_CSRF_TIME_LIMIT"] = None  # A page may stay open for days.
    app.config.from_prefixed_env()  # FLASK_SECRET_KEY, and so on.
    db.init_app(app)
    with app.app_context():
        db.create_all()
    if command := click.get_current_context(silent=True):
        # The interpreter's exit is too late: it first runs all that waits.
        command.call_on_close(partial(executor.shutdown, cancel_futures=True))

    first, serving = threading.Lock(), False

    @app.before_request
    def begin_to_serve() -> None:
        """Mark at the first request what an earlier process had begun: it is over.

        Whoever answers requests owns the pool. A command such as `flask routes`, a
        server that finds its port taken and a reloader's parent make the app as well,
        but get no request, so they leave alone what another process is doing.
        """
        nonlocal serving
        with first:
            if not serving:
                mark("interrupted", Item.state.in_(["waiting", "running"]))
                serving = True

    @app.before_request
    def identify() -> None:
        request_id = request.headers.get("Request-Id", secrets.token_hex(4))
        structlog.contextvars.bind_contextvars(request_id=request_id)
        if "user" in session:
            g.factor = SHOPS[session["shop"]]
        elif request.endpoint not in (None, "index", "sign_in", "static"):
            abort(401, "Your session has ended. Sign in again to go on.")

    @app.errorhandler(HTTPException)
    def problem(error: HTTPException) -> Any:
        page = render_template("problem.html", error=error)
        return page, error.code, error.get_headers()

    def own() -> Any:
        user, shop = session.get("user"), session.get("shop")
        return db.select(Report).filter_by(user=user, shop=shop).order_by(-Report.id)

    @app.get("/")
    def index() -> str:
        reports = db.session.scalars(own())
        return render_template("index.html", reports=reports, rows=ROWS, shops=SHOPS)

    @app.post("/sign-in")
    def sign_in() -> Any:  # Stands for the login that you have.
        if request.form["shop"] not in SHOPS:
            abort(400, "There is no such shop.")
        user = request.form["user"].strip()
        if not user:
            abort(400, "Your name is missing.")
        session.update(user=user, shop=request.form["shop"])
        return redirect(url_for("index"), 303)

    @app.post("/reports")
    def start() -> Any:
        section = request.form["section"]
        report = Report(user=session["user"], shop=session["shop"], section=section)
        report.items = [Item(row=row) for row in ROWS if row["section"] == section]
        if not report.items:
            abort(400, "The list has no such section.")
        db.session.add(report)
        db.session.commit()
        submit(report)
        return redirect(url_for("show", id=report.id), 303)

    @app.route(f"/reports/<int(max={MAX_ID}):id>", methods=["GET", "POST"])
    def show(id: int) -> Any:
        report = db.one_or_404(own().filter_by(id=id))
        if "cancel" in request.form:
            mark("cancelled", Item.report_id == id, Item.state == "waiting")
        elif "restart" in request.form:
            left = Item.state.not_in(["done", "running"])
            mark("waiting", Item.report_id == id, left)
            submit(report)
        if request.method == "POST":
            return redirect(request.path, 303)
        return render_template("report.html", report=report)

    CSRFProtect(app)
    return app
