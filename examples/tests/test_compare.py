"""The ways are asked and measured, and the pages say what was found."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers import EXAMPLES, ROOT
from page import PICTURED, draw, page
from promises import NOT_PROMISED, PROMISES

# What measures each row of the README's table.
MEASURED = {
    "`g` and context variables": (
        "Request, session, g and context variables after the response"
    ),
    "one function, many calls: `executor.map`": (
        "map runs one wrapper on four threads at once"
    ),
    "what the task writes to `session` or `request`": (
        "The view's session is not written to"
    ),
    "uploaded files": "The view's uploads stay open",
    "`await` in an async view": "A coroutine function stays one, and has them too",
}
COMPARE = EXAMPLES / "compare"
WRITTEN = (COMPARE / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def found() -> Any:
    command = [sys.executable, str(COMPARE), "--json", "--rounds", "1"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, timeout=120)
    return json.loads(done.stdout)


def table_rows(text: str) -> dict[str, list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    cells = ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines)
    return {first: rest for first, *rest in cells}


def said(kept: bool) -> str:
    return "yes" if kept else "-"


def promised(text: str) -> bool:
    return PROMISES[text].section != NOT_PROMISED


def test_ctxcarry_keeps_what_it_promises_and_no_more(found: Any) -> None:
    kept = {text: row["ctxcarry"] for text, row in found["promises"].items()}
    assert kept == {text: promised(text) for text in kept}
    missing = {*found["missing"]}
    left_out = {text for text in PROMISES if missing & {*PROMISES[text].needs}}
    assert PROMISES.keys() - kept == left_out


def test_the_page_shows_all_that_was_found(found: Any) -> None:
    rows = table_rows(page(found))
    for text, row in found["promises"].items():
        assert rows[text] == [said(kept) for kept in row.values()]
    for cost, row in found["costs"].items():
        assert len(rows[cost]) == len(row)


def test_the_page_as_it_was_written_has_the_rows_of_today(found: Any) -> None:
    names = table_rows(WRITTEN)["promise"]
    everything = {text: dict.fromkeys(names, promised(text)) for text in PROMISES}
    today = table_rows(page({**found, "promises": everything}))
    rows = table_rows(WRITTEN)
    assert list(rows) == list(today)
    for text in PROMISES:
        assert rows[text][0] == said(promised(text))


def test_what_the_main_readme_says_of_the_built_in_is_on_the_page() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    section = readme.split("\n## Why not ")[1].split("\n## ")[0]
    _, *rows = table_rows(section)
    assert rows == list(MEASURED)
    page_rows = table_rows(WRITTEN)
    assert page_rows["promise"][:2] == ["ctxcarry", "Flask's built-in"]
    for promise in MEASURED.values():
        assert page_rows[promise][:2] == ["yes", "-"]


def test_the_command_says_what_it_wrote(tmp_path: Path) -> None:
    command = [sys.executable, str(COMPARE), "--folder", str(tmp_path), "--rounds", "1"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, timeout=120)
    names = ["README.md", "costs-light.svg", "costs-dark.svg"]
    said = [f"Wrote {tmp_path / name}" for name in names]
    assert done.stdout.decode().splitlines() == said
    assert {path.name for path in tmp_path.iterdir()} == {*names}


@pytest.mark.parametrize("name", ["costs-dark.svg", "costs-light.svg"])
def test_the_pictures_show_the_numbers_of_the_page(name: str) -> None:
    picture, rows = (COMPARE / name).read_text(encoding="utf-8"), table_rows(WRITTEN)
    assert len(picture) < 60_000
    for cost in PICTURED:
        assert cost in picture
        for cell in rows[cost][:-1]:
            assert f">{cell.split(' (')[0]}</text>" in picture


def test_a_picture_has_a_bar_for_each_way(found: Any, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    draw(found, tmp_path / "costs.svg", "#fff", "#000", "#00f", "#ccc")
    picture = (tmp_path / "costs.svg").read_text(encoding="utf-8")
    ways = next(iter(found["promises"].values()))
    assert all(f">{name}</text>" in picture for name in ways)
