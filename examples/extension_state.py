"""Extensions in tasks that outlive the response: what works by itself, and the rest.

Run it with:
.venv/bin/pip install -q ".[examples]" && .venv/bin/python examples/extension_state.py

A connection in g, Flask-Login's current_user and Flask-Babel's forced locale are the
task's own without a word. An ORM object in g is the view's, and detached once the view
has ended: one receiver of appcontext_pushed merges it into each task's session, so
that no task has to think of it.
"""

import importlib
import sqlite3
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from flask import Flask, appcontext_pushed, g
from flask_sqlalchemy import SQLAlchemy

from ctxcarry import carry_context

babel: Any = importlib.import_module("flask_babel")
login: Any = importlib.import_module("flask_login")
db: Any = SQLAlchemy()


class Account(db.Model):  # type: ignore[misc]
    id = db.Column(db.Integer, primary_key=True)
    name = db.Column(db.String, nullable=False)


class User(db.Model, login.UserMixin):  # type: ignore[misc]
    id = db.Column(db.Integer, primary_key=True)
    name = db.Column(db.String, nullable=False)


def merge_account(sender: Flask) -> None:
    """The receiver: it finds an account in the g of tasks, and none in a view's."""
    if g.get("account"):
        g.account = db.session.merge(g.account)


def get_db() -> sqlite3.Connection:
    if "db" not in g:
        g.db = sqlite3.connect(":memory:")
    connection: sqlite3.Connection = g.db
    return connection


def connection() -> str:
    get_db().execute("create table if not exists seen (id integer)")
    get_db().execute("insert into seen values (1)")
    rows = get_db().execute("select count(*) from seen").fetchone()[0]
    return f"rows seen: {rows}"


def user() -> str:
    return str(login.current_user.name)


def number() -> str:
    with babel.force_locale("de"):
        forced: str = babel.format_decimal(1234.5)
    return forced


def account() -> str:
    g.account.name = g.account.name.upper()
    db.session.commit()
    return f"renamed to {g.account.name}"


READS: dict[str, Callable[[], str]] = {
    "g.db, a connection": connection,
    "current_user.name": user,
    "in force_locale('de')": number,
    "g.account, an ORM object": account,
}


def create_app(database: Path) -> Flask:
    app = Flask(__name__)
    app.secret_key = "for this example only"
    app.config["SQLALCHEMY_DATABASE_URI"] = f"sqlite:///{database}"
    db.init_app(app)
    babel.Babel(app)

    def load_user(id: str) -> Any:
        return db.session.get(User, int(id))

    login.LoginManager(app).user_loader(load_user)

    @app.before_request
    def load_account() -> None:
        g.account = db.session.get(Account, 1)

    @app.teardown_appcontext
    def close_db(error: BaseException | None) -> None:
        if "db" in g:
            g.pop("db").close()

    with app.app_context():
        db.create_all()
        db.session.add_all([Account(name="acme"), User(name="ada")])
        db.session.commit()
    return app


def run(receiver: bool) -> dict[str, list[str]]:
    """What the view reads, and then, after the response, a task for each row."""
    answered = threading.Event()
    rows: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor() as pool:
        app = create_app(Path(folder, "shop.sqlite"))

        @app.route("/login")
        def log_in() -> str:
            login.login_user(db.session.get(User, 1))
            return ""

        @app.route("/")
        def view() -> str:
            plain = babel.format_decimal(1234.5)
            rows["g.db, a connection"] = [connection()]
            rows["current_user.name"] = [user()]
            rows["in force_locale('de')"] = [f"{plain} (en)"]
            rows["g.account, an ORM object"] = [g.account.name]
            db.session.commit()  # Or merge takes along what is loaded here.
            for name, read in READS.items():
                tasks[name] = pool.submit(late, carry_context(read))
            return ""

        def late(task: Callable[[], str]) -> str:
            answered.wait()
            try:
                return task()
            except Exception as error:
                return type(error).__name__

        tasks: dict[str, Any] = {}
        if receiver:
            appcontext_pushed.connect(merge_account, app)
        client = app.test_client()
        client.get("/login")
        client.get("/")
        answered.set()
        for name, task in tasks.items():
            rows[name].append(task.result())
        with app.app_context():
            stored = db.session.get(Account, 1).name
            rows["account in the database"] = ["acme", stored]
            db.session.remove()
            db.engine.dispose()
    return rows


def main() -> None:
    without, receiving = run(receiver=False), run(receiver=True)
    titles = ["", "view", "task", "task, with the receiver"]
    print("{:26}{:16}{:24}{}".format(*titles))
    for name, row in without.items():
        print(f"{name:26}{row[0]:16}{row[1]:24}{receiving[name][1]}")


if __name__ == "__main__":
    main()
