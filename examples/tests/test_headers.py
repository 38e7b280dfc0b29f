"""Each example runs by the lines at its top, as they stand, in the clone's own folder."""

import ast
import importlib
import importlib.metadata
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from helpers import EXAMPLES, ROOT

TIMEOUT = 30
# What to ask of those that serve.
PATHS = {
    "async_tasks.py": "/gather",
    "celery_app.py": "/here",
    "from_a_bare_thread.py": "/execute_task",
    "from_a_closure.py": "/",
    "from_flask_executor.py": "/squares/3",
    "from_flask_threads.py": "/user/thread",
}


def lines(name: str) -> list[str]:
    header = ast.get_docstring(ast.parse((EXAMPLES / name).read_text())) or ""
    return re.findall(r"^\.venv/bin/.*", header, re.MULTILINE)


# The comparison and the page in progress/ have tests of their own.
NAMES = [path.name for path in sorted(EXAMPLES.glob("*.py"))]
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
    assert {name for name, line in LINES if line.endswith(" run")} == PATHS.keys()


@pytest.mark.parametrize(("name", "line"), LINES)
def test_each_line_installs_all_that_the_example_imports(name: str, line: str) -> None:
    extra, _ = split(line)
    needed = importlib.metadata.requires("ctxcarry") or []
    installed = {"ctxcarry", "flask", "werkzeug"}
    for requirement in needed:
        if extra and requirement.endswith(f"extra == '{extra}'"):
            installed.add(normal(requirement))
    distributions = importlib.metadata.packages_distributions()
    tree = ast.parse((EXAMPLES / name).read_text())
    modules: set[str] = set()
    for statement in tree.body:
        if isinstance(statement, ast.Import):
            modules.update(alias.name for alias in statement.names)
        elif isinstance(statement, ast.ImportFrom):
            modules.add(str(statement.module))
        elif not isinstance(statement, ast.Try):  # That is for what need not be there.
            calls = re.findall(r"import_module\('(\w+)'\)", ast.unparse(statement))
            modules.update(calls)
    tops = {module.partition(".")[0] for module in modules} - sys.stdlib_module_names
    imported = {normal(distributions[top][0]) for top in tops}
    assert imported <= installed


@pytest.mark.parametrize("name", PATHS)
def test_an_example_that_serves_answers(name: str, tmp_path: Path) -> None:
    _, command = split(lines(name)[0])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    browser = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with running(command, FLASK_RUN_PORT=port, CELERY_FOLDER=str(tmp_path)) as run:
        assert run.stdout is not None
        assert any("Running on" in text for text in run.stdout)
        threading.Thread(target=run.stdout.read, daemon=True).start()
        address = f"http://127.0.0.1:{port}{PATHS[name]}"
        with browser.open(address, timeout=TIMEOUT) as response:
            assert response.headers["Content-Type"] == "application/json"


@pytest.mark.parametrize("name", ["extension_state.py", "what_a_task_sees.py"])
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
        cells = [re.split(r"\s{2,}", row) for row in done.stdout.splitlines()[1:]]
        assert [row[1:] for row in cells] == [
            ["rows seen: 1", "rows seen: 1", "rows seen: 1"],
            ["ada", "ada", "ada"],
            ["1,234.5 (en)", "1.234,5", "1.234,5"],
            ["acme", "DetachedInstanceError", "renamed to ACME"],
            ["acme", "acme", "ACME"],
        ]


def test_the_celery_worker_runs_the_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CELERY_FOLDER", str(tmp_path))
    monkeypatch.delenv("CELERY_BROKER_URL", raising=False)
    sys.modules.pop("celery_app", None)
    example: Any = importlib.import_module("celery_app")
    started = example.prices_in_a_worker.delay(["tea"], "zoo", "r1")
    _, command = split(lines("celery_app.py")[1])
    with running(command):
        assert started.get(timeout=TIMEOUT) == ["tea for zoo, asked by r1"]
