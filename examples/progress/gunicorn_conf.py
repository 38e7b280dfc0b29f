"""The page behind gunicorn.

Run it with:

.venv/bin/pip install -q ".[examples]" gunicorn
.venv/bin/gunicorn --config examples/progress/gunicorn_conf.py
"""

from pathlib import Path

chdir = str(Path(__file__).parent)
wsgi_app = "app:create_app()"
# One process has the pool, and no other knows what runs there. For more, use a queue.
workers = 1
threads = 8


def worker_exit(server: object, worker: object) -> None:
    from app import stop

    stop()
