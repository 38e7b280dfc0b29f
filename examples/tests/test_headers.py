"""Each example runs by the lines at its top, as they stand, in the clone's own folder."""

import ast
import importlib
import importlib.metadata
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest
from helpers import EXAMPLES, ROOT, TIMEOUT, free_port, program, running

# The comparison and the page in progress/ have tests of their own.
NAMES = [path.name for path in sorted(EXAMPLES.glob("*.py"))] + ["factory/__init__.py"]
PRINTS = "what_a_task_sees.py"  # All others serve.
# What each answers to the first of its header's commands or addresses.
ANSWERS = {
    "async_tasks.py": {
        "prices": ["tea for acme at /gather", "milk for acme at /gather"]
    },
    "celery_app.py": {
        "prices": ["tea for acme, asked by none", "milk for acme, asked by none"]
    },
    "factory/__init__.py": {"order": 1, "see": "http://127.0.0.1:5000/orders/1"},
    "from_a_bare_thread.py": {"state": "started"},
    "from_a_closure.py": {"in the pool": ANY, "in the view": ANY},
    "from_flask_executor.py": {"see": ANY},
    "from_flask_threads.py": {"path": "/user/thread", "user_id": "17"},
    "quickstart.py": [
        "tea for zoo, asked at /prices",
        "milk for zoo, asked at /prices",
    ],
    "uploads.py": {"state": "accepted"},
}
WHERE = """
import ctxcarry
from flask import Flask

app = Flask(__name__)


@app.route("/")
def where():
    return [ctxcarry.__file__]
"""


def header(name: str) -> str:
    return ast.get_docstring(ast.parse((EXAMPLES / name).read_text())) or ""


def lines(name: str) -> list[str]:
    """List the commands of a header that run something of this environment."""
    return re.findall(r"^\.venv/bin/.*", header(name), re.MULTILINE)


def command(name: str) -> list[str]:
    """Return the words of a header's first command, without what it installs."""
    words = shlex.split(lines(name)[0].rpartition(" && ")[2])
    return [words[0].replace(".venv/bin", str(Path(sys.executable).parent)), *words[1:]]


def questions(name: str) -> list[list[str]]:
    """List what a header says to ask, each as the words of a curl command."""
    asked = r"^curl .*|http://127\.0\.0\.1:5000/[^\s,;]*"
    found = re.findall(asked, header(name), re.MULTILINE)
    return [shlex.split(question.removeprefix("curl ")) for question in found]


def ask(words: list[str], port: str) -> Any:
    """Ask a server on a port by curl, and return the JSON of its answer."""
    words = [word.replace(":5000", f":{port}") for word in words]
    curl = [program("curl"), "--silent", "--show-error", "--fail", "--noproxy", "*"]
    curl += ["--max-time", str(TIMEOUT)]
    answer = subprocess.check_output([*curl, *words], cwd=ROOT, text=True)
    return json.loads(answer.replace(f":{port}", ":5000"))


def imports(name: str) -> set[str]:
    """List the packages that an example imports, those of its modules too."""
    path = EXAMPLES / name
    paths = path.parent.glob("*.py") if path.name == "__init__.py" else [path]
    modules: set[str] = set()
    for statement in [at for path in paths for at in ast.parse(path.read_text()).body]:
        if isinstance(statement, ast.Import):
            modules.update(alias.name for alias in statement.names)
        elif isinstance(statement, ast.ImportFrom) and not statement.level:
            modules.add(str(statement.module))
    return {module.partition(".")[0] for module in modules}


def normal(name: str) -> str:
    return re.split(r"[^\w-]", name.lower().replace("_", "-"))[0]


def test_a_subprocess_and_a_server_import_this_checkout(tmp_path: Path) -> None:
    (tmp_path / "where.py").write_text(WHERE)
    checkout = str(ROOT / "ctxcarry.py")
    shown = [sys.executable, "-c", "from where import where; print(*where())"]
    assert subprocess.check_output(shown, cwd=tmp_path, text=True).strip() == checkout
    port = free_port()
    serve = [*command("quickstart.py")[:1], "--app", str(tmp_path / "where.py"), "run"]
    with running([*serve, "--port", str(port)], "Running on"):
        assert ask(["http://127.0.0.1:5000/"], str(port)) == [checkout]


def test_each_example_names_its_line() -> None:
    assert [name for name in NAMES if lines(name)] == NAMES
    serve = {name for name in NAMES if command(name)[-1] == "run"}
    assert serve == ANSWERS.keys() == {name for name in NAMES if questions(name)}


@pytest.mark.parametrize("name", NAMES)
def test_each_line_installs_all_that_the_example_imports(name: str) -> None:
    # pytest brings tomli along where Python has no tomllib.
    toml = importlib.import_module("tomllib" if sys.version_info > (3, 11) else "tomli")
    project = toml.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = list(project["dependencies"])
    for line in lines(name):
        for extra in re.findall(r'pip install -q "\.\[(.*?)\]"', line):
            needed += project["optional-dependencies"][extra]
    distributions = importlib.metadata.packages_distributions()
    own = {"ctxcarry", *(path.stem for path in EXAMPLES.iterdir())}
    others = imports(name) - sys.stdlib_module_names - own
    imported = {normal(distributions[module][0]) for module in others}
    assert imported <= {normal(requirement) for requirement in needed}


@pytest.mark.parametrize("name", ANSWERS)
def test_an_example_that_serves_answers_as_its_header_says(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = str(free_port())
    monkeypatch.setenv("FLASK_RUN_PORT", port)
    monkeypatch.setenv("FLASK_DATABASE", str(tmp_path / "shop.sqlite"))
    monkeypatch.setenv("CELERY_FOLDER", str(tmp_path / "celery"))
    with running(command(name), "Running on"):
        answers = [ask(words, port) for words in questions(name)]
    assert answers[0] == ANSWERS[name]


def test_the_example_that_prints_ends_by_itself() -> None:
    subprocess.check_output(command(PRINTS), cwd=ROOT, timeout=TIMEOUT)


def test_the_line_of_the_celery_worker_runs_the_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CELERY_BROKER_URL", raising=False)
    monkeypatch.setenv("CELERY_FOLDER", str(tmp_path))
    example: Any = importlib.import_module("celery_app")
    example.create_app()
    started = example.prices_in_a_worker.delay(["tea"], "zoo", "r1")
    with running(command("make_celery.py"), "celery@"):
        assert started.get(timeout=TIMEOUT) == ["tea for zoo, asked by r1"]
