"""An app factory with a blueprint, and tasks in a module of their own.

Run it with:
.venv/bin/flask --app examples/factory run
and place an order with:
curl -H "Shop: acme" --data "item=tea" http://127.0.0.1:5000/orders
and look up the order with:
curl -H "Shop: acme" http://127.0.0.1:5000/orders/1
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flask import Flask

from . import db, orders


def create_app(config: Mapping[str, Any] | None = None) -> Flask:
    """Make the app. A test passes a configuration of its own."""
    app = Flask(__name__)
    app.config["DATABASE"] = str(Path(app.instance_path, "shop.sqlite"))
    app.config.from_prefixed_env()  # FLASK_DATABASE, and so on.
    app.config.from_mapping(config)
    db.init_app(app)
    app.register_blueprint(orders.blueprint)
    return app
