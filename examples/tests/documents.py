"""What tests of the README and of the guides share: their sections, snippets and links."""

import re
from pathlib import Path

from helpers import EXAMPLES, ROOT

README = (ROOT / "README.md").read_text("utf-8")
RECIPES = (EXAMPLES / "README.md").read_text("utf-8")
# What README.md leaves out of its package: an app factory, and a view that starts the task.
SHOP = """
from flask import Blueprint, Flask, g

from .tasks import send_receipt

blueprint = Blueprint("orders", __name__)


@blueprint.post("/orders/<int:order>/pay")
def pay(order):
    send_receipt(order)
    return {"paid": order}


def create_app():
    app = Flask(__name__)

    @app.before_request
    def set_tenant():
        g.tenant = "acme"

    app.register_blueprint(blueprint)
    return app
"""


def section(document: str, heading: str) -> str:
    """Return what stands under a heading, up to the next one of its level."""
    level, _ = heading.split(" ", 1)
    _, found, rest = f"\n{without_snippets(document)}".partition(f"\n{heading}\n")
    assert found, heading
    end = re.search(rf"^#{{1,{len(level)}}} ", rest, re.MULTILINE)
    length = end.start() if end else len(rest)
    start = len(without_snippets(document)) - len(rest)
    return document[start : start + length]


def without_snippets(document: str) -> str:
    """Blank the snippets out, whose comments look like headings."""

    def blank(match: re.Match[str]) -> str:
        return re.sub(".", " ", match[0])

    return re.sub(r"^```.*?^```$", blank, document, flags=re.MULTILINE | re.DOTALL)


def snippets(document: str, language: str = "python") -> list[str]:
    """Return the snippets of a document or of a section."""
    return re.findall(rf"```{language}\n(.*?)```", document, re.DOTALL)


def anchors(document: str) -> set[str]:
    """Return the anchors of the headings, as GitHub makes them."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.*)", without_snippets(document), re.MULTILINE):
        words = re.sub(r"[^\w\- ]", "", heading.lower())
        found.add(words.replace(" ", "-"))
    return found


def links(document: str) -> list[str]:
    """Return what a document links to, and the pictures that it shows."""
    text = without_snippets(document)
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    return targets + re.findall(r'(?:src|srcset)="([^"]+)"', text)


def write_shop(folder: Path) -> None:
    """Write the package `shop` of the README's section about tasks."""
    package = folder / "shop"
    package.mkdir()
    (package / "__init__.py").write_text(SHOP)
    (tasks,) = [text for text in snippets(README) if text.startswith("# shop/tasks.py")]
    (package / "tasks.py").write_text(tasks)


def documents() -> list[str]:
    """Return all documents of the repository, by their paths in it."""
    paths = [ROOT / "README.md", *sorted(EXAMPLES.rglob("*.md"))]
    return [str(path.relative_to(ROOT)) for path in paths]
