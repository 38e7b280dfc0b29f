"""A long task as people want to see it: it goes on, whatever happens to the page.

Run it, beside README.md, with:
.venv/bin/pip install -q ".[examples]" && .venv/bin/flask --app examples/progress/app.py run

A shop has a supplier's list priced. Each row is a task, with the visitor in the session,
the shop's terms in g, the request id in the log, and a database session of its own.
"""

import csv
import logging
import re
import secrets
import signal
import threading
import time
from collections import Counter, defaultdict
from concurrent.futures import Future, ThreadPoolExecutor
from decimal import Decimal
from functools import partial
from pathlib import Path

import click
import structlog
from flask import (
    Blueprint,
    Flask,
    abort,
    g,
    redirect,
    render_template,
    request,
    session,
    url_for,
)
from flask.typing import ResponseReturnValue
from flask_sqlalchemy import SQLAlchemy
from flask_wtf import CSRFProtect  # type: ignore[import-untyped]
from sqlalchemy import JSON, ForeignKey, Label, case, func, select, update
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship
from werkzeug.exceptions import HTTPException

from ctxcarry import carry_context

TEAS = Path(__file__).with_name("teas.csv")
# Spreadsheets write a mark at the start of a file, and line breaks in quotes.
with TEAS.open(encoding="utf-8-sig", newline="") as file:
    ROWS = list(csv.DictReader(file))
# What a shop multiplies a cost by: its margin and its VAT.
SHOPS = {"Acme Deli, Berlin": Decimal("1.49"), "Zoo Café, Vienna": Decimal("1.82")}
MOST = 40  # Tasks of one visitor in the pool, so that the others get their turn.

pool = ThreadPoolExecutor(4)
# What waits or runs, by the visitor and the item. It is not stored, as it ends with this
# process: after a crash, the database would say that it still runs.
tasks: dict[tuple[str, int], Future[str]] = {}
submitting = threading.Lock()
page = Blueprint("page", __name__)
log = structlog.get_logger()


class Base(DeclarativeBase):
    pass


class Report(Base):
    """A section of the list that a visitor has priced."""

    __tablename__ = "report"
    id: Mapped[int] = mapped_column(primary_key=True)
    owner: Mapped[str] = mapped_column(index=True)
    section: Mapped[str]
    items: Mapped[list["Item"]] = relationship(order_by="Item.id")


class Item(Base):
    """A row of a report. It is "stopped" until it is "done" or has "failed"."""

    __tablename__ = "item"
    id: Mapped[int] = mapped_column(primary_key=True)
    report_id: Mapped[int] = mapped_column(ForeignKey(Report.id), index=True)
    row: Mapped[dict[str, str]] = mapped_column(JSON)
    state: Mapped[str] = mapped_column(default="stopped")
    result: Mapped[str] = mapped_column(default="")


db = SQLAlchemy(metadata=Base.metadata)


def submit(report: Report) -> None:
    """Hand to the pool what is not done, unless it is there already."""
    task, ended = carry_context(work), carry_context(end)
    with submitting:
        mine = in_pool()
        ids = [item.id for item in report.items if item.state != "done"]
        new = [id for id in ids if id not in mine]
        if len(mine) + len(new) > MOST:
            abort(429, "Your other reports still run. Start this one after them.")
        for id in new:
            future = tasks[g.owner, id] = pool.submit(task, id)
            future.add_done_callback(partial(ended, id))


def work(id: int) -> str:
    """Do one item. The task loads it: the view's objects stay with the view."""
    return price(db.session.get_one(Item, id).row)


def end(id: int, task: Future[str]) -> None:
    """Store how a task ended, and forget the task, even if that cannot be stored."""
    try:
        if not task.cancelled():
            state, result = outcome(id, task)
            ended = update(Item).where(Item.id == id).values(state=state, result=result)
            db.session.execute(ended)
            db.session.commit()
    finally:
        del tasks[g.owner, id]


def outcome(id: int, task: Future[str]) -> tuple[str, str]:
    """Ask for the result. A task that raises an error tells nobody else about it."""
    error = task.exception()
    if error is None:
        return "done", task.result()
    log.error("failed", item=id, exc_info=error)
    if isinstance(error, ValueError):
        return "failed", str(error)
    return "failed", "A mistake of ours."


def in_pool() -> dict[int, Future[str]]:
    """Return the visitor's tasks that wait or run, by the id of the item."""
    return {id: task for (owner, id), task in tasks.copy().items() if owner == g.owner}


def state_now() -> Label[str]:
    """Build the SQL for the state of an item: the pool's word counts, if it has one."""
    mine = in_pool()
    running = [id for id, task in mine.items() if task.running()]
    known = (Item.id.in_(running), "running"), (Item.id.in_(mine), "waiting")
    return case(*known, else_=Item.state).label("now")


def price(row: dict[str, str]) -> str:
    """The work itself: the price on the shelf, and the price per kilogram beside it."""
    time.sleep(0.2)  # Stands for a service that is asked.
    if not re.fullmatch(r"\d+\.\d\d", row["cost"]):
        raise ValueError(f"“{row['cost']}” is not a price.")
    shelf = Decimal(row["cost"]) * g.factor
    kilogram = 1000 * shelf / int(row["grams"])
    log.info("priced", user=session["user"], article=row["article"])
    return f"{shelf:.2f} €, {kilogram:.2f} €/kg"


@page.before_app_request
def identify() -> None:
    """Set what the views and the tasks ask for: who it is, and on which terms."""
    structlog.contextvars.bind_contextvars(request_id=secrets.token_hex(4))
    if "user" in session:
        g.owner = f"{session['user']}, {session['shop']}"
        g.factor = SHOPS[session["shop"]]
    elif request.endpoint in ("page.start", "page.show"):
        abort(401, "Your session has ended. Sign in again to go on.")


@page.app_errorhandler(HTTPException)
def problem(error: HTTPException) -> ResponseReturnValue:
    text = render_template("problem.html", error=error)
    return text, error.code or 500, error.get_headers()


@page.get("/")
def index() -> str:
    if "owner" not in g:
        return render_template("sign_in.html", shops=SHOPS)
    query = select(Report, state_now(), func.count()).join(Report.items)
    query = query.where(Report.owner == g.owner).group_by(Report.id, "now")
    reports: dict[Report, Counter[str]] = defaultdict(Counter)
    for report, state, count in db.session.execute(query.order_by(Report.id.desc())):
        reports[report][state] = count
    return render_template("index.html", reports=reports, rows=ROWS, running=in_pool())


@page.post("/sign-in")
def sign_in() -> ResponseReturnValue:  # Stands for the login that you have.
    user, shop = request.form["user"].strip(), request.form["shop"]
    if shop not in SHOPS:
        abort(400, "There is no such shop.")
    if not 0 < len(user) <= 80:  # The session has to fit into a cookie.
        abort(400, "Your name needs 1 to 80 characters.")
    session.update(user=user, shop=shop)
    return redirect(url_for("page.index"), 303)


@page.post("/reports")
def start() -> ResponseReturnValue:
    section = request.form["section"]
    items = [Item(row=row) for row in ROWS if row["section"] == section]
    if not items:
        abort(400, "The list has no such section.")
    report = Report(owner=g.owner, section=section, items=items)
    db.session.add(report)
    db.session.commit()
    submit(report)
    return redirect(url_for("page.show", id=report.id), 303)


# A greater id does not fit into the column, and some databases raise an error.
@page.route(f"/reports/<int(max={2**31 - 1}):id>", methods=["GET", "POST"])
def show(id: int) -> ResponseReturnValue:
    report: Report = db.one_or_404(select(Report).filter_by(id=id, owner=g.owner))
    if "start" in request.form:
        submit(report)
    elif "cancel" in request.form:
        mine = in_pool()
        for item in report.items:
            if item.id in mine:
                mine[item.id].cancel()
    if request.method == "POST":
        return redirect(request.path, 303)
    query = select(Item, state_now()).where(Item.report_id == id).order_by(Item.id)
    rows = db.session.execute(query).all()
    states = Counter(state for _, state in rows)
    return render_template("report.html", report=report, rows=rows, states=states)


def stop() -> None:
    """Drop what waits. The interpreter would run it before it exits."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # A second Ctrl-C ends what runs.
    pool.shutdown(cancel_futures=True)


def create_app() -> Flask:
    # A log that cannot be written, as behind `| head`, fails no task that logs.
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    structlog.configure(logger_factory=structlog.stdlib.LoggerFactory())
    app = Flask(__name__)
    app.config["SECRET_KEY"] = secrets.token_hex()  # Until FLASK_SECRET_KEY is set.
    app.config["SESSION_COOKIE_SAMESITE"] = "Lax"
    app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite:///shelf_prices.sqlite"
    app.config["WTF_CSRF_TIME_LIMIT"] = None  # A page may stay open for days.
    app.config.from_prefixed_env()  # FLASK_SECRET_KEY, and so on.
    app.register_blueprint(page)
    CSRFProtect(app)
    db.init_app(app)
    with app.app_context():
        db.create_all()
    if command := click.get_current_context(silent=True):
        command.call_on_close(stop)
    return app
