"""What extensions keep for a request, in a view and in tasks that outlive the response.

Run it with:
.venv/bin/pip install -q ".[examples]" && .venv/bin/python examples/extension_state.py

A database connection, Flask-Login's current_user and Flask-Babel's forced locale need
nothing: each task has its own. An ORM object stays with the view, so a task that reads
g.account fails. The accessor get_account() loads the object in the task's own session.
"""

import sqlite3
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import flask_babel
import flask_login
from flask import Flask, g
from flask_sqlalchemy import SQLAlchemy

from ctxcarry import carry_context

db: Any = SQLAlchemy()  # mypy does not know db.Model of the real type.


class Account(db.Model):
    id = db.Column(db.Integer, primary_key=True)
    name = db.Column(db.String, nullable=False)


class User(db.Model, flask_login.UserMixin):
    id = db.Column(db.Integer, primary_key=True)
    name = db.Column(db.String, nullable=False)


def get_db() -> sqlite3.Connection:
    if "db" not in g:
        g.db = sqlite3.connect(":memory:")
    return g.db


def get_account() -> Account:
    if "account" not in g:
        g.account = db.session.get(Account, 1)
    return g.account


def connection() -> str:
    """Write a row: a new connection has one row then, a shared one has more."""
    get_db().execute("create table if not exists seen (id integer)")
    get_db().execute("insert into seen values (1)")
    (rows,) = get_db().execute("select count(*) from seen").fetchone()
    return f"{rows} row written"


def user() -> str:
    return flask_login.current_user.name


def number() -> str:
    with flask_babel.force_locale("de"):
        return flask_babel.format_decimal(1234.5)


def account_from_g() -> str:
    g.account.name = "renamed"
    db.session.commit()
    return g.account.name


def account_from_accessor() -> str:
    get_account().name = "renamed"
    db.session.commit()
    return get_account().name


TASKS: dict[str, Callable[[], str]] = {
    "get_db(), a connection": connection,
    "current_user.name": user,
    "format_decimal(), in German": number,
    "g.account.name": account_from_g,
    "get_account().name": account_from_accessor,
}


def create_app(database: Path) -> Flask:
    app = Flask(__name__)
    app.secret_key = "for this example only"
    app.config["SQLALCHEMY_DATABASE_URI"] = f"sqlite:///{database}"
    db.init_app(app)
    flask_babel.Babel(app)

    def load_user(id: str) -> User | None:
        return db.session.get(User, int(id))

    flask_login.LoginManager(app).user_loader(load_user)

    @app.route("/login")
    def log_in() -> str:
        flask_login.login_user(db.session.get(User, 1))
        return ""

    @app.teardown_appcontext
    def close_db(error: BaseException | None) -> None:
        if "db" in g:
            g.pop("db").close()

    with app.app_context():
        db.create_all()
        db.session.add_all([Account(name="acme"), User(name="ada")])
        db.session.commit()
    return app


class AfterResponse:
    """A pool whose tasks begin once the client has its response."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self.pool = pool
        self.answered = threading.Event()

    def submit(self, task: Callable[[], str]) -> Future[str]:
        def wait() -> str:
            self.answered.wait()
            return task()

        return self.pool.submit(wait)


def outcome(task: Future[str]) -> str:
    error = task.exception()
    return f"{type(error).__name__}: {error}" if error else task.result()


def main() -> None:
    in_view: dict[str, str] = {}
    in_task: dict[str, Future[str]] = {}
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor() as pool:
        app = create_app(Path(folder, "shop.sqlite"))
        late = AfterResponse(pool)

        @app.route("/")
        def view() -> str:
            in_view["get_db(), a connection"] = connection()
            in_view["current_user.name"] = user()
            in_view["format_decimal(), in German"] = number()
            in_view["g.account.name"] = get_account().name
            in_view["get_account().name"] = get_account().name
            for name, task in TASKS.items():
                in_task[name] = late.submit(carry_context(task))
            return ""

        client = app.test_client()
        client.get("/login")
        client.get("/")
        late.answered.set()
        print(f"{'':30}{'in the view':18}in a task, after the response")
        for name, task in in_task.items():
            print(f"{name:30}{in_view[name]:18}{outcome(task)}")
        with app.app_context():
            stored = db.session.get(Account, 1).name
            print(f"\nThe account in the database, after the tasks: {stored}")
            db.engine.dispose()


if __name__ == "__main__":
    main()
