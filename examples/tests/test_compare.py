"""The comparison is run, and its page says what was found."""

import re
import subprocess
import sys

import pytest
from costs import COSTS, FAILS
from helpers import EXAMPLES, ROOT
from page import fill_in
from promises import ONLY_OTHERS, PROMISES
from ways import WAYS, BuiltIn, Ctxcarry

# What measures each row of the README's table.
MEASURED = {
    "`g` and context variables": "All of these, after the response has been sent",
    "one function, many calls: `executor.map`": (
        "Many times at once, with `executor.map()`"
    ),
    "what the task writes to `session` or `request`": (
        "What the task writes to `request`, `session` and `g` stays in the task"
    ),
    "uploaded files": "Uploaded files stay open in the view when the task ends",
    "`await` in an async view": "With `await`, on another event loop",
}
COMPARE = EXAMPLES / "compare"
PAGE = (COMPARE / "README.md").read_text("utf-8")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Run the comparison, and return the page that it writes."""
    path = tmp_path_factory.mktemp("page") / "README.md"
    command = [sys.executable, str(COMPARE), "--page", str(path), "--rounds", "1"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, timeout=120)
    assert done.stdout.decode() == f"Wrote {path}\n"
    return path.read_text("utf-8")


def table_rows(text: str) -> dict[str, list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    cells = ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines)
    return {first: rest for first, *rest in cells}


def column(text: str, name: str) -> dict[str, str]:
    """Return what both tables say of one way."""
    number = [way.name for way in WAYS].index(name)
    return {first: rest[number] for first, rest in table_rows(text).items()}


def without_figures(text: str) -> str:
    text = re.sub(r"(?m)^Last run: .*", "Last run:", text)
    return re.sub(r"\d[\d.,]*", "0", text)


def test_carry_context_keeps_what_it_promises_and_no_more(page: str) -> None:
    cells = column(page, Ctxcarry.name)
    kept = {text: cells[text] for text in PROMISES}
    assert kept == {
        text: "-" if promise.section == ONLY_OTHERS else "yes"
        for text, promise in PROMISES.items()
    }


def test_another_way_has_what_carry_context_has_not(page: str) -> None:
    rows = table_rows(page)
    for text, promise in PROMISES.items():
        if promise.section == ONLY_OTHERS:
            assert "yes" in rows[text], text


def test_the_page_is_as_the_command_writes_it(page: str) -> None:
    assert without_figures(page) == without_figures(PAGE)


def test_a_time_is_shown_as_the_ratio_to_the_built_in_in_the_same_round() -> None:
    failed: dict[str, list[float]] = {way.name: [FAILS] for way in WAYS}
    measured = {BuiltIn.name: [10.0, 20.0, 40.0], Ctxcarry.name: [40.0, 20.0, 60.0]}
    kept = {text: {way.name: True for way in WAYS} for text in PROMISES}
    values = {text: failed | measured for text in COSTS}
    text = fill_in(PAGE, kept, values, rounds=3)
    assert column(text, BuiltIn.name)["Wrap"] == "20 µs"
    assert column(text, Ctxcarry.name)["Wrap"] == "1.50"
    assert column(text, Ctxcarry.name)["Memory of a task that waits"] == "40 bytes"
    assert column(text, WAYS[-1].name)["Wrap"] == "fails"


def test_what_the_main_readme_says_of_the_built_in_is_on_the_page() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    section = readme.split("\n## Why not ")[1].split("\n## ")[0]
    _, *rows = table_rows(section)
    assert rows == list(MEASURED)
    for text in MEASURED.values():
        assert column(PAGE, Ctxcarry.name)[text] == "yes"
        assert column(PAGE, BuiltIn.name)[text] == "-"
