"""The page behind gunicorn.

Run it with:

.venv/bin/pip install -q ".[examples]" gunicorn
.venv/bin/gunicorn --config examples/progress/gunicorn_conf.py
"""

from pathlib import Path
from typing import Any

chdir = str(Path(__file__).parent)
wsgi_app = "app:create_app()"
# One process owns the pool, and marks at its first request what an earlier one left. With
# more, each would mark what the others are doing: there the work belongs in a queue.
workers = 1
threads = 8


def worker_exit(server: Any, worker: Any) -> None:
    """Shut the pool down in order, before the interpreter's exit would run all of it."""
    from app import executor

    executor.shutdown(cancel_futures=True)
