"""The smallest app: a view passes work to a pool, and the task knows the request.

Run it with:
.venv/bin/flask --app examples/quickstart.py run
and try it with:
curl -H "Tenant: zoo" "http://127.0.0.1:5000/prices?item=tea&item=milk"
"""

from concurrent.futures import ThreadPoolExecutor

from flask import Flask, g, request

from ctxcarry import carry_context

app = Flask(__name__)
executor = ThreadPoolExecutor()


@app.before_request
def set_tenant() -> None:
    g.tenant = request.headers.get("Tenant", "acme")


def price(item: str) -> str:
    return f"{item} for {g.tenant}, asked at {request.path}"


@app.route("/prices")
def prices() -> list[str]:
    return list(executor.map(carry_context(price), request.args.getlist("item")))
