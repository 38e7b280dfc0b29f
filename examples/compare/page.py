"""The page: what was found goes into its two tables."""

import os
import platform
import re
import statistics
from importlib.metadata import version

from costs import COSTS, FAILS
from promises import PROMISES
from ways import WAYS, BuiltIn

import ctxcarry

Kept = dict[str, dict[str, bool]]
Values = dict[str, dict[str, list[float]]]

PACKAGES = [
    "Flask",
    "Flask-Executor",
    "Flask-Threads",
    "Flask-SQLAlchemy-Lite",
    "Flask-Login",
]


def table(rows: list[list[str]]) -> str:
    """Make a table of Markdown, with the ways as its head."""
    names = [way.name for way in WAYS]
    lines = [["", *names], ["---"] * (len(names) + 1), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def promise_table(kept: Kept) -> str:
    rows: list[list[str]] = []
    section = ""
    for text, row in kept.items():
        if PROMISES[text].section != section:
            section = PROMISES[text].section
            rows.append([f"**{section}**", *("" for _ in WAYS)])
        rows.append([text, *("yes" if row[way.name] else "-" for way in WAYS)])
    return table(rows)


def cost_table(values: Values) -> str:
    rows: list[list[str]] = []
    for text, row in values.items():
        cells = [cost_cell(COSTS[text].unit, row, way.name) for way in WAYS]
        rows.append([text, *cells])
    return table(rows)


def cost_cell(unit: str, row: dict[str, list[float]], name: str) -> str:
    """Show times as ratios to the built-in's, and all else as it was measured."""
    median = statistics.median(row[name])
    if median == FAILS:
        return "fails"
    if unit == "µs" and name != BuiltIn.name:
        # Both were measured in the same round.
        pairs = zip(row[name], row[BuiltIn.name])
        return f"{statistics.median(ours / theirs for ours, theirs in pairs):.2f}"
    return f"{median:,.2f}" if unit == "×" else f"{median:,.0f} {unit}"


def what_was_used(rounds: int) -> str:
    system = f"{platform.system()} on {platform.machine()} with {os.cpu_count()} cores"
    used = [f"Python {platform.python_version()}", f"ctxcarry {ctxcarry.__version__}"]
    used += [f"{package} {version(package)}" for package in PACKAGES]
    return f"Last run: {rounds} rounds on {system}, {', '.join(used)}."


def fill_in(page: str, kept: Kept, values: Values, rounds: int) -> str:
    """Replace both tables of the page, and the line that says what was used."""
    tables = iter([promise_table(kept), cost_table(values)])
    page = re.sub("(?m)^Last run: .*", what_was_used(rounds), page)
    return re.sub(r"(?m)(^\|.*\n)+", lambda _: next(tables), page)
