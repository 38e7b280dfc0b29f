"""The view saves an upload, or reads a JSON body, before it wraps the task.

Run it, and send a file and a body, with:
.venv/bin/flask --app examples/uploads.py run
curl -F "file=@README.md" http://127.0.0.1:5000/files
curl -H "Content-Type: application/json" -d '{"item": "tea"}' http://127.0.0.1:5000/events
"""

import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from flask import Flask, request

from ctxcarry import carry_context

app = Flask(__name__)
app.config["MAX_CONTENT_LENGTH"] = 10_000_000
executor = ThreadPoolExecutor()


def measure(path: Path) -> None:
    app.logger.warning("%s: %d bytes", request.path, path.stat().st_size)
    path.unlink()


@app.post("/files")
def upload() -> dict[str, str]:
    file = request.files["file"]
    with tempfile.NamedTemporaryFile(delete=False) as saved:
        file.save(saved)  # Flask closes the upload itself when the view ends.
    executor.submit(carry_context(measure), Path(saved.name))
    return {"state": "accepted"}


def log_event() -> None:
    app.logger.warning("%s: %r", request.path, request.get_json())


@app.post("/events")
def receive() -> dict[str, str]:
    request.get_json()  # The task can read the body only if the view has read it.
    executor.submit(carry_context(log_event))
    return {"state": "accepted"}
