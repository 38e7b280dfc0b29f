"""Each example runs by the lines at its top, as they stand, in the clone's own folder."""

import argparse
import ast
import importlib
import importlib.metadata
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest
from helpers import EXAMPLES, ROOT, free_port

TIMEOUT = 30
# The comparison and the page in progress/ have tests of their own.
NAMES = [path.name for path in sorted(EXAMPLES.glob("*.py"))] + ["factory/__init__.py"]
PRINTS = ["extension_state.py", "what_a_task_sees.py"]
# What each answers to the first of its header's commands or addresses.
ANSWERS = {
    "async_tasks.py": {
        "prices": ["tea for acme at /gather", "milk for acme at /gather"]
    },
    "celery_app.py": {
        "prices": ["tea for acme, asked by none", "milk for acme, asked by none"]
    },
    "factory/__init__.py": {"order": 1, "see": "http://127.0.0.1:5000/orders/1"},
    "from_a_bare_thread.py": {"started": ANY},
    "from_a_closure.py": {"pool": ANY, "thread": ANY, "view": ANY},
    "from_flask_executor.py": {"started": "task"},
    "from_flask_threads.py": {"path": "/user/thread", "user_id": "17"},
    "quickstart.py": [
        "tea for zoo, asked at /prices",
        "milk for zoo, asked at /prices",
    ],
}


def header(name: str) -> str:
    return ast.get_docstring(ast.parse((EXAMPLES / name).read_text())) or ""


def lines(name: str) -> list[str]:
    """List the commands of a header that run something of this environment."""
    return re.findall(r"^\.venv/bin/.*", header(name), re.MULTILINE)


def addresses(name: str) -> list[list[str]]:
    """List what a header says to ask, each as the words of a curl command."""
    asked = r"^curl .*|http://127\.0\.0\.1:5000/[^\s,;]*"
    found = re.findall(asked, header(name), re.MULTILINE)
    return [shlex.split(command.removeprefix("curl ")) for command in found]


def statements(name: str) -> list[ast.stmt]:
    """List what an example does at the top level of its module, or of its modules."""
    path = EXAMPLES / name
    paths = path.parent.glob("*.py") if path.name == "__init__.py" else [path]
    return [at for path in paths for at in ast.parse(path.read_text()).body]


LINES = [(name, line) for name in NAMES for line in lines(name)]


def normal(name: str) -> str:
    return re.split(r"[^\w-]", name.lower().replace("_", "-"))[0]


def split(line: str) -> tuple[str | None, list[str]]:
    """The extra that the line installs, and the command that it runs here."""
    install, _, command = line.rpartition(" && ")
    extra = re.fullmatch(r'\.venv/bin/pip install -q "\.\[(.*)\]"', install)
    assert not install or extra
    words = shlex.split(command)
    words[0] = words[0].replace(".venv/bin", str(Path(sys.executable).parent))
    return extra and extra[1], words


@contextmanager
def running(command: list[str], **environ: str) -> Generator[subprocess.Popen[str]]:
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as run:
        try:
            yield run
        finally:
            run.send_signal(signal.SIGTERM)
            try:
                run.wait(TIMEOUT)
            finally:
                run.kill()


def test_each_example_names_its_line() -> None:
    assert {name for name, _ in LINES} == {*NAMES}
    serve = {name for name, line in LINES if line.endswith(" run")}
    assert serve == ANSWERS.keys() == {name for name in NAMES if addresses(name)}


@pytest.mark.parametrize(("name", "line"), LINES)
def test_each_line_installs_all_that_the_example_imports(name: str, line: str) -> None:
    extra, _ = split(line)
    needed = importlib.metadata.requires("ctxcarry") or []
    installed = {"ctxcarry", "flask", "werkzeug"}
    for requirement in needed:
        if extra and requirement.endswith(f"extra == '{extra}'"):
            installed.add(normal(requirement))
    distributions = importlib.metadata.packages_distributions()
    modules: set[str] = set()
    for statement in statements(name):
        if isinstance(statement, ast.Import):
            modules.update(alias.name for alias in statement.names)
        elif isinstance(statement, ast.ImportFrom) and not statement.level:
            modules.add(str(statement.module))
        elif not isinstance(statement, ast.Try):  # That is for what need not be there.
            calls = re.findall(r"import_module\('(\w+)'\)", ast.unparse(statement))
            modules.update(calls)
    tops = {module.partition(".")[0] for module in modules} - sys.stdlib_module_names
    tops -= {path.stem for path in EXAMPLES.iterdir()}
    imported = {normal(distributions[top][0]) for top in tops}
    assert imported <= installed


def ask(words: list[str]) -> Any:
    """Ask as curl does with these words, and return the JSON of the answer."""
    parser = argparse.ArgumentParser()
    parser.add_argument("-H", default="")
    parser.add_argument("--data", type=str.encode)
    parser.add_argument("url")
    options = parser.parse_args(words)
    name, _, value = options.H.partition(": ")
    headers = {name: value} if name else {}
    browser = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    question = urllib.request.Request(options.url, options.data, headers)
    with browser.open(question, timeout=TIMEOUT) as response:
        return json.load(response)


@pytest.mark.parametrize("name", ANSWERS)
def test_an_example_that_serves_answers_as_its_header_says(
    name: str, tmp_path: Path
) -> None:
    _, command = split(lines(name)[0])
    port = str(free_port())
    environ = {
        "CELERY_FOLDER": str(tmp_path / "celery"),
        "FLASK_DATABASE": str(tmp_path / "shop.sqlite"),
        "FLASK_RUN_PORT": port,
    }
    with running(command, **environ) as run:
        assert run.stdout is not None
        assert any("Running on" in text for text in run.stdout)
        threading.Thread(target=run.stdout.read, daemon=True).start()
        answers = [
            ask([word.replace(":5000", f":{port}") for word in words])
            for words in addresses(name)
        ]
    first = json.loads(json.dumps(answers[0]).replace(f":{port}", ":5000"))
    assert first == ANSWERS[name]


@pytest.mark.parametrize("name", PRINTS)
def test_an_example_that_prints_ends_by_itself(name: str) -> None:
    (line,) = lines(name)
    _, command = split(line)
    done = subprocess.run(
        command,
        cwd=ROOT,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        timeout=TIMEOUT,
    )
    if name == "extension_state.py":
        *rows, _, last = done.stdout.splitlines()[1:]
        assert [re.split(r"\s{2,}", row)[1:] for row in rows] == [
            ["1 row written", "1 row written"],
            ["ada", "ada"],
            ["1.234,5", "1.234,5"],
            ["acme", "AttributeError: account"],
            ["acme", "renamed"],
        ]
        assert last == "The account in the database, after the tasks: renamed"


def test_the_line_of_the_celery_worker_runs_the_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CELERY_FOLDER", str(tmp_path))
    monkeypatch.delenv("CELERY_BROKER_URL", raising=False)
    example: Any = importlib.import_module("celery_app")
    example.create_app()
    started = example.prices_in_a_worker.delay(["tea"], "zoo", "r1")
    (line,) = lines("make_celery.py")
    with running(split(line)[1]):
        assert started.get(timeout=TIMEOUT) == ["tea for zoo, asked by r1"]
