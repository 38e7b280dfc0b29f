"""What the README says is what happens: its snippets, run one after the other."""

import queue
import re
import subprocess
import sys
from typing import Any

import pytest
from flask import g
from flask_sqlalchemy import SQLAlchemy
from helpers import EXAMPLES, ROOT

from ctxcarry import carry_context

TIMEOUT = 20

README = (ROOT / "README.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
PARTS = [f"{item} of acme for ada, at /report" for item in ("tea", "milk")]
VIEWS = {
    "/report": (None, {"parts": PARTS}),
    "/log": (None, {"started": 2}),
    "/connections": (None, {"total": 3, "still open": 1}),
    "/orders": ({"items": ["tea"]}, {"items": ["tea"]}),
    "/prices": (None, {"prices": ["tea for ada", "milk for ada"]}),
}


@pytest.fixture(scope="module")
def readme() -> dict[str, Any]:
    """What the Python snippets of the README define, run one after the other."""
    names: dict[str, Any] = {"__name__": "readme"}
    for snippet in SNIPPETS:
        exec(snippet, names)  # noqa: S102
    names["app"].config["SQLALCHEMY_DATABASE_URI"] = "sqlite://"
    names["db"] = SQLAlchemy(names["app"])
    return names


@pytest.mark.parametrize("path", VIEWS)
def test_each_view_of_the_readme_answers(readme: dict[str, Any], path: str) -> None:
    client = readme["app"].test_client()
    sent, expected = VIEWS[path]
    response = client.post(path, json=sent) if sent else client.get(path)
    assert response.get_json() == expected


def test_the_thread_and_the_timer_of_the_readme_write_their_lines(
    readme: dict[str, Any],
) -> None:
    log: queue.Queue[str] = queue.Queue()
    readme["log"] = log
    readme["app"].test_client().get("/log")
    lines = {log.get(timeout=TIMEOUT) for _ in range(2)}
    assert lines == {"thread: GET /log", "timer: GET /log"}


def test_no_view_of_the_readme_is_left_out(readme: dict[str, Any]) -> None:
    rules = {rule.rule for rule in readme["app"].url_map.iter_rules()}
    assert rules == VIEWS.keys() | {"/static/<path:filename>"}


def test_the_receiver_of_the_readme_merges_the_account(readme: dict[str, Any]) -> None:
    db: Any = readme["db"]

    class Account(db.Model):  # type: ignore[misc]
        name = db.Column(db.String, primary_key=True)

    with readme["app"].app_context():
        db.create_all()
        g.account = Account(name="acme")
        db.session.add(g.account)
        db.session.commit()
        task = carry_context(lambda: [g.account.name, g.account in db.session])
    assert task() == ["acme", True]
    with readme["app"].app_context():
        db.engine.dispose()


def test_the_log_lines_of_the_readme_have_the_id_of_the_request() -> None:
    program = """
@app.route("/")
def view():
    return executor.submit(carry_context(app.logger.warning), "in a task").result() or ""


contextvars.Context().run(app.test_client().get, "/", headers={"Request-Id": "r17"})
app.logger.warning("outside")
"""
    code = "\n".join(["import contextvars", *SNIPPETS, program])
    command = [sys.executable, "-c", code]  # Where no test runner handles the log.
    done = subprocess.run(command, check=True, text=True, stderr=subprocess.PIPE)
    assert done.stderr == "r17 in a task\n- outside\n"


def test_the_test_of_the_readme_passes(readme: dict[str, Any]) -> None:
    readme["log"] = queue.Queue()
    readme["test_write_line"]()


def test_the_quickstart_finds_everything_carried() -> None:
    command = [sys.executable, str(EXAMPLES / "quickstart.py")]
    done = subprocess.run(command, check=False, text=True, stdout=subprocess.PIPE)
    before, after, _ = done.stdout.split("\n\n")
    assert done.returncode == 0
    assert "-" in before and "With carry_context" in after
    assert all(set(row.split()[-5:]) == {"yes"} for row in after.splitlines()[1:])
