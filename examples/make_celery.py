"""The entry point of celery_app.py's workers, as in Flask's documentation.

Run a worker with:
.venv/bin/pip install -q ".[examples]" && .venv/bin/celery --workdir examples --app make_celery worker --pool threads
"""

from celery_app import create_app

flask_app = create_app()
celery_app = flask_app.extensions["celery"]
