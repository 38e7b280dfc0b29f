"""The page: both tables, and the picture of the costs."""

import importlib
import math
import os
import platform
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from costs import Bare
from promises import NOT_PROMISED, PROMISES
from ways import BuiltIn, Ctxcarry

# What a command finds: promises, costs, versions and what is missing.
Found = dict[str, Any]

PAGE = """\
# The ways to carry, side by side

`.venv/bin/pip install -q ".[compare]" && .venv/bin/python examples/compare` writes this page and its pictures.
{system}, Python {python}, {used}.{missing}

## What each keeps

Each row is an app, a view, and what the task or the client saw: `promises.py`. What each way is, in code: `ways.py`.

{promises}

What is not promised, some need: another way has it.

## What each costs

<picture>
<source media="(prefers-color-scheme: dark)" srcset="costs-dark.svg">
<img src="costs-light.svg" alt="Bars of four rows of the table below, by way">
</picture>

Medians of {rounds} rounds, and in brackets the ratio to Flask's built-in, round by round: `costs.py`. "fails": in most rounds.
"nothing" calls the function as it is. The function is empty, so it seldom runs twice at once: that map gets through is luck
where the first table says that it cannot.

{costs}
"""

PICTURED = [
    "a request that waits for one task, µs",
    "wrap and call, µs",
    "50 URLs in a task, to the same in the view",
    "kept by a pending task, bytes",
]


# Of the pictures: the ground, the ink, our bars, and those of the others.
COLOURS = {
    "light": ("#ffffff", "#1f2328", "#0969da", "#c4cad1"),
    "dark": ("#0d1117", "#e6edf3", "#2f81f7", "#4b535d"),
}


def table(head: list[str], rows: Iterable[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def promise_rows(promises: dict[str, dict[str, bool]]) -> list[list[str]]:
    names = list(next(iter(promises.values())))
    rows: list[list[str]] = []
    title = ""
    kept = [each for each in promises if PROMISES[each].section != NOT_PROMISED]
    for text, row in promises.items():
        if PROMISES[text].section != title:
            title = PROMISES[text].section
            if title == NOT_PROMISED:
                sums = [sum(promises[each][name] for each in kept) for name in names]
                rows.append([f"of these {len(kept)}", *map(str, sums)])
            rows.append([f"**{title}**", *[""] * len(names)])
        rows.append([text] + ["yes" if row[name] else "-" for name in names])
    return rows


def number(value: float) -> str:
    if math.isinf(value):
        return "fails"
    return f"{value:,.{0 if value >= 100 else 1 if value >= 10 else 2}f}"


def with_ratio(values: list[float], of_built_in: list[float]) -> str:
    median = statistics.median(values)
    if math.isinf(median) or math.isinf(statistics.median(of_built_in)):
        return number(median)
    pairs = zip(values, of_built_in)
    ratio = statistics.median(
        ours / theirs for ours, theirs in pairs if theirs < math.inf
    )
    return f"{number(median)} ({ratio:.2f})"


def page(found: Found) -> str:
    promises, costs = found["promises"], found["costs"]
    names, ways = list(next(iter(promises.values()))), list(next(iter(costs.values())))
    missing = ", ".join(found["missing"])
    cost_rows = [
        [cost] + [with_ratio(row[name], row[BuiltIn.name]) for name in ways]
        for cost, row in costs.items()
    ]
    return PAGE.format(
        system=f"{platform.system()} on {platform.machine()}, {os.cpu_count()} cores",
        python=platform.python_version(),
        used=", ".join(
            f"{name} {version}" for name, version in found["versions"].items()
        ),
        missing=missing
        and f" Not installed, and left out with what needs it: {missing}.",
        promises=table(["promise", *names], promise_rows(promises)),
        rounds=len(next(iter(costs.values()))[BuiltIn.name]),
        costs=table(["cost", *ways], cost_rows),
    )


def draw(
    found: Found, path: Path, ground: str, ink: str, ours: str, theirs: str
) -> None:
    """Draw bars by way, in these colours."""
    matplotlib = importlib.import_module("matplotlib")
    style = {
        "svg.fonttype": "none",  # As text: small, and in the reader's font.
        "svg.hashsalt": "ctxcarry",  # The same numbers make the same file.
        "text.color": ink,
        "xtick.color": ink,
        "ytick.color": ink,
        "figure.facecolor": ground,
        "axes.facecolor": ground,
        "axes.titlesize": 11,
    }
    with matplotlib.rc_context(style):
        figure = importlib.import_module("matplotlib.figure").Figure((9, 5.4))
        for axes, cost in zip(figure.subplots(2, 2, sharey=True).flat, PICTURED):
            row = {
                name: statistics.median(v) for name, v in found["costs"][cost].items()
            }
            row.pop(Bare.name)
            names, medians = list(row), list(row.values())
            lengths = [0 if math.isinf(median) else median for median in medians]
            colours = [ours if name == Ctxcarry.name else theirs for name in names]
            bars = axes.barh(names, lengths, color=colours)
            axes.bar_label(bars, [number(median) for median in medians], padding=3)
            axes.set_title(cost, loc="left")
            axes.set_xticks([])
            axes.margins(x=0.15)
            axes.tick_params(length=0)
            axes.spines[:].set_visible(False)
        figure.axes[0].invert_yaxis()
        figure.tight_layout()
        figure.savefig(path, metadata={"Date": None})


def write(found: Found, folder: Path) -> list[Path]:
    """Write the page and its two pictures into a folder, and return their paths."""
    written = [folder / "README.md"]
    written[0].write_text(page(found), encoding="utf-8")
    for scheme, colours in COLOURS.items():
        picture = folder / f"costs-{scheme}.svg"
        draw(found, picture, *colours)
        written.append(picture)
    return written
