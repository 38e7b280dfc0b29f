"""The database, as in Flask's tutorial: get_db() opens it, and teardown closes it."""

import sqlite3
from pathlib import Path
from typing import Any

from flask import Flask, current_app, g

SCHEMA = """
create table if not exists orders (
    id integer primary key,
    shop text not null,
    item text not null,
    state text not null default 'new'
)
"""


def get_db() -> sqlite3.Connection:
    """Return the connection of this request, or of this task."""
    if "db" not in g:
        config: Any = current_app.config
        g.db = sqlite3.connect(config["DATABASE"])
        g.db.row_factory = sqlite3.Row
    db: sqlite3.Connection = g.db
    return db


def close_db(error: BaseException | None) -> None:
    db = g.pop("db", None)
    if db is not None:
        db.close()


def init_app(app: Flask) -> None:
    """Make the table where it is missing, and close connections at each end."""
    config: Any = app.config
    Path(config["DATABASE"]).parent.mkdir(parents=True, exist_ok=True)
    app.teardown_appcontext(close_db)
    with app.app_context():
        get_db().execute(SCHEMA)
