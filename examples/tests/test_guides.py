"""The guides: their recipes run, and their links lead somewhere, those of the README too."""

import asyncio
import importlib
import io
import logging
import os
import queue
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from functools import wraps
from pathlib import Path
from typing import Any, cast

import flask
import jinja2
import pytest
from documents import RECIPES, anchors, documents, links, section, snippets, write_shop
from flask import Flask, copy_current_request_context, g, request, session
from flask.sessions import SecureCookieSession, SessionInterface
from helpers import EXAMPLES, ROOT, TIMEOUT, free_port, in_thread, program, running
from werkzeug.serving import make_server

from ctxcarry import carry_context

RunRecipe = Callable[..., dict[str, Any]]


# Links


@pytest.mark.parametrize("name", documents())
def test_each_link_of_a_document_leads_somewhere(name: str) -> None:
    path = ROOT / name
    broken: list[str] = []
    for link in links(path.read_text("utf-8")):
        if re.match(r"https?://", link):
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        found = target.exists() and target.is_relative_to(ROOT)
        if anchor and found:
            found = anchor in anchors(target.read_text("utf-8"))
        if not found:
            broken.append(link)
    assert broken == []


def test_each_example_is_in_the_table_of_examples() -> None:
    listed = set(links(section(RECIPES, "## Examples")))
    files = {path.name for path in EXAMPLES.glob("*.py")} - {"make_celery.py"}
    folders = {path.name for path in EXAMPLES.iterdir() if path.is_dir()}
    folders -= {"tests", "instance", "__pycache__"}
    assert files <= listed
    assert folders <= {link.partition("/")[0] for link in listed}


@pytest.fixture
def run_recipe(app: Flask, pool: ThreadPoolExecutor) -> RunRecipe:
    """A function that runs the snippets of a section, with an app and a pool."""

    def run(heading: str, *changes: tuple[str, str], **given: Any) -> dict[str, Any]:
        recipe = section(RECIPES, heading)
        for old, new in changes:
            assert old in recipe
            recipe = recipe.replace(old, new)
        names = vars(flask) | {"app": app, "asyncio": asyncio, "executor": pool}
        names |= {"carry_context": carry_context, **given}
        for snippet in snippets(recipe):
            exec(snippet, names)
        return names

    return run


# Logs

LOGGED_TASKS = """
from ctxcarry import carry_context
from shop.tasks import background, executor


@background
def fail():
    raise LookupError("no price")


def succeed():
    app.logger.info("in a task")
    logging.getLogger("library").info("in a library")


@app.route("/")
def view():
    executor.submit(carry_context(succeed)).result()
    fail()
    executor.shutdown()  # Waits until the error is logged.
    raise ZeroDivisionError


app.logger.info("outside")
app.test_client().get("/", headers={"X-Request-Id": "r17"})
"""


def run_program(folder: Path, *arguments: str) -> str:
    """Run Python where no test runner handles the log, and return what it prints."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{folder}"},
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT,
    )
    return done.stdout


def test_each_log_line_of_a_request_and_of_its_tasks_has_the_id(tmp_path: Path) -> None:
    write_shop(tmp_path)
    (recipe,) = snippets(section(RECIPES, "## A request id in every log line"))
    printed = run_program(tmp_path, "-c", recipe + LOGGED_TASKS)
    assert re.findall(r"^\S+ (?:__main__|library): .*", printed, re.MULTILINE) == [
        "- __main__: outside",
        "r17 __main__: in a task",
        "r17 library: in a library",
        "r17 __main__: fail failed",
        "r17 __main__: Exception on / [GET]",
    ]
    assert printed.count("LookupError: no price") == 1


@pytest.mark.parametrize(
    ("given", "is_kept"),
    [
        ("r17.A_b-c", True),
        ("", False),
        ("\x1b[2J", False),
        ("r17 app: all is well", False),
        ("1" * 60_000, False),
    ],
    ids=["plain", "empty", "escape", "sentence", "long"],
)
def test_the_log_has_no_id_that_only_an_attacker_would_send(
    run_recipe: RunRecipe, given: str, is_kept: bool
) -> None:
    names = run_recipe("## A request id in every log line")
    app: Flask = names["app"]
    app.add_url_rule("/", view_func=names["request_id"].get)
    logged = app.test_client().get("/", headers={"X-Request-Id": given}).text
    assert (logged == given) is is_kept
    assert re.fullmatch(r"[\w.-]{1,64}", logged)


# Testing


def test_the_tests_of_the_recipes_pass(tmp_path: Path) -> None:
    write_shop(tmp_path)
    code = "\n\n".join(snippets(section(RECIPES, "## Testing")))
    (tmp_path / "test_shop.py").write_text(code)
    printed = run_program(tmp_path, "-m", "pytest", "-q", "-p", "no:cacheprovider")
    assert "3 passed" in printed


def test_a_test_of_the_recipes_that_fails_comes_to_an_end(tmp_path: Path) -> None:
    write_shop(tmp_path)
    code = "\n\n".join(snippets(section(RECIPES, "## Testing")))
    code = code.replace("messages == []", "messages == ['early']").replace(
        "10)", "0.1)"
    )
    (tmp_path / "test_shop.py").write_text(code)
    printed = run_program(tmp_path, "-m", "pytest", "-q", "-p", "no:cacheprovider")
    assert "1 failed, 2 passed" in printed


# Recipes with a view

BROWSER_OPTIONS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--no-first-run",
    "--remote-debugging-port=0",  # It says so once it runs.
]


def test_slow_calls_run_in_parallel(app: Flask, run_recipe: RunRecipe) -> None:
    together = threading.Barrier(3)

    def fetch_price(item: str) -> str:
        together.wait(TIMEOUT)
        return f"{item} at {request.path}"

    run_recipe("## Slow calls in parallel", fetch_price=fetch_price)
    answer = app.test_client().get("/prices?item=a&item=b&item=c").get_json()
    assert answer == {item: f"{item} at /prices" for item in "abc"}


def test_a_time_limit_cancels_what_still_runs(
    app: Flask, run_recipe: RunRecipe
) -> None:
    ended: list[str] = []

    @app.teardown_request
    def note(error: BaseException | None) -> None:
        ended.append(f"{g.get('item')}: {type(error).__name__}")

    async def fetch_offer(item: str) -> str:
        g.item = item
        if item == "slow":
            await asyncio.Event().wait()
        return f"{item} at {request.path}"

    run_recipe("## Slow calls in parallel", ("=2", "=0.01"), fetch_offer=fetch_offer)
    client = app.test_client()
    assert client.get("/offers?item=a").get_json() == ["a at /offers"]
    ended.clear()
    assert client.get("/offers?item=a&item=slow").status_code == 504
    assert ended == ["a: NoneType", "slow: CancelledError", "None: NoneType"]


def test_events_are_sent_while_the_task_runs(app: Flask, run_recipe: RunRecipe) -> None:
    is_read = threading.Event()

    def fetch_price(item: str) -> str:
        if item == "b":
            assert is_read.wait(TIMEOUT)
        return f"{item} at {request.path}"

    run_recipe("## Server-sent events", fetch_price=fetch_price)
    response = app.test_client().get("/events?item=a&item=b")
    lines = response.iter_encoded()
    assert next(lines) == b"data: a at /events\n\n"
    is_read.set()
    assert list(lines) == [b"data: b at /events\n\n", b"event: end\ndata: end\n\n"]
    assert response.mimetype == "text/event-stream"


def test_an_error_ends_the_events_and_is_logged(
    app: Flask, run_recipe: RunRecipe, caplog: pytest.LogCaptureFixture
) -> None:
    def fetch_price(_: str) -> str:
        raise LookupError("no price")

    run_recipe("## Server-sent events", fetch_price=fetch_price)
    answer = app.test_client().get("/events?item=a")
    assert answer.text == "event: end\ndata: end\n\n"
    assert caplog.messages == ["The events of /events failed."]
    assert "LookupError: no price" in caplog.text


def test_a_task_goes_on_when_the_client_of_its_events_leaves(
    app: Flask, pool: ThreadPoolExecutor, run_recipe: RunRecipe
) -> None:
    has_left = threading.Event()
    fetched: list[str] = []

    def fetch_price(item: str) -> str:
        if item == "b":
            assert has_left.wait(TIMEOUT)
        fetched.append(f"{item} at {request.path}")
        return item

    run_recipe("## Server-sent events", fetch_price=fetch_price)
    response = app.test_client().get("/events?item=a&item=b")
    next(response.iter_encoded())
    response.close()
    has_left.set()
    pool.shutdown()
    assert fetched == ["a at /events", "b at /events"]


# The page tells the server in which state its source is, once that has an end or an error.
EVENTS_PAGE = """
<!doctype html>
<script>
const source = new EventSource("/events?item=a");
{closing}
for (const name of ["end", "error"])
  source.addEventListener(name, () => fetch(`/said/${{name}}/${{source.readyState}}`));
</script>
"""


def test_a_browser_closes_the_source_of_events_that_have_ended(
    app: Flask, run_recipe: RunRecipe, tmp_path: Path
) -> None:
    said: queue.Queue[list[Any]] = queue.Queue()
    run_recipe("## Server-sent events", fetch_price=str)
    (closing,) = snippets(section(RECIPES, "## Server-sent events"), "js")

    @app.route("/")
    def page() -> str:
        return EVENTS_PAGE.format(closing=closing)

    @app.route("/said/<name>/<int:state>")
    def say(name: str, state: int) -> str:
        said.put([name, state])
        return ""

    browser = [program("chromium"), *BROWSER_OPTIONS, f"--user-data-dir={tmp_path}"]
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}/"
    try:
        with running([*browser, address], "DevTools listening"):
            assert said.get(timeout=TIMEOUT) == ["end", 2]  # 2 is EventSource.CLOSED.
    finally:
        server.shutdown()
        thread.join(TIMEOUT)
        server.server_close()


def test_a_mail_is_written_in_the_users_language(
    app: Flask, run_recipe: RunRecipe
) -> None:
    mails: queue.Queue[list[str]] = queue.Queue()
    babel: Any = importlib.import_module("flask_babel")
    babel.Babel(app, locale_selector=lambda: request.form["language"])
    template = "{{ 1234.5|numberformat }} at {{ url_for('sign_up', _external=True) }}"
    cast(Any, app).jinja_loader = jinja2.DictLoader({"welcome.txt": template})

    def send_mail(address: str, text: str) -> None:
        mails.put([address, text])

    heading = "## An email in the user's language"
    run_recipe(heading, ("Timer(60,", "Timer(0,"), send_mail=send_mail)
    form = {"address": "ada@localhost", "language": "de"}
    app.test_client().post("/users", base_url="https://shop", data=form)
    mail = mails.get(timeout=TIMEOUT)
    assert mail == ["ada@localhost", "1.234,5 at https://shop/users"]


MAILING_SHOP = """
from flask import Flask, request

from ctxcarry import carry_context

app = Flask(__name__)
"""


def test_a_mail_that_waits_does_not_keep_the_process_alive(tmp_path: Path) -> None:
    (recipe,) = snippets(section(RECIPES, "## An email in the user's language"))
    post = 'app.test_client().post("/users", data={"address": "ada@localhost"})'
    code = f"{MAILING_SHOP}{recipe}\nprint({post}.json)"
    assert run_program(tmp_path, "-c", code) == "{'state': 'signed up'}\n"


def test_a_long_task_stops_when_it_is_told_to(
    app: Flask, pool: ThreadPoolExecutor, run_recipe: RunRecipe
) -> None:
    run_recipe("## Stopping a long task")
    client = app.test_client()
    key = client.post("/start").get_json()["key"]
    assert client.post(f"/stop/{key}").get_json() == {"stopped": key}
    pool.shutdown()  # Waits for the task, which would take 1,000 seconds.


def test_a_long_task_that_was_never_stopped_leaves_nothing_behind(
    app: Flask, pool: ThreadPoolExecutor, run_recipe: RunRecipe
) -> None:
    names = run_recipe("## Stopping a long task", ("range(1000)", "range(0)"))
    client = app.test_client()
    key = client.post("/start").get_json()["key"]
    pool.shutdown()
    assert names["stops"] == {}
    assert client.post(f"/stop/{key}").status_code == 404


def ask(address: str, body: bytes | None = None, /, **headers: str) -> str:
    """Get a page, or post a body to it."""
    browser = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    browser.addheaders = list(headers.items())
    with browser.open(address, body, timeout=TIMEOUT) as response:
        text: str = response.read().decode()
    return text


STOPPED_SHOP = """
from concurrent.futures import ThreadPoolExecutor

from flask import Flask, request

from ctxcarry import carry_context

app = Flask(__name__)
executor = ThreadPoolExecutor()
"""
WAITRESS = """
import logging
import sys

from shop import app
from waitress import serve

logging.basicConfig(level=logging.INFO)
serve(app, listen=sys.argv[1])
"""


@pytest.mark.parametrize("name", ["gunicorn", "waitress"])
def test_long_tasks_stop_with_their_server(name: str, tmp_path: Path) -> None:
    recipe, configuration = snippets(section(RECIPES, "## Stopping a long task"))
    recipe = recipe.replace("1000", "40")  # If nothing stops it, it ends by itself.
    (tmp_path / "shop.py").write_text(STOPPED_SHOP + recipe)
    (tmp_path / "gunicorn.conf.py").write_text(configuration)
    served = WAITRESS + configuration + "\nworker_exit(None, None)\n"
    (tmp_path / "served.py").write_text(served)
    address = f"127.0.0.1:{free_port()}"
    command, ready = ["served.py", address], "Serving on"
    if name == "gunicorn":
        # Without the configuration, its worker would wait longer than this test does.
        options = ["--graceful-timeout", "60", "--bind", address]
        command, ready = ["-m", "gunicorn", *options, "shop:app"], "Booting worker"
    with running([sys.executable, *command], ready, tmp_path) as process:
        assert "key" in ask(f"http://{address}/start", b"")
        process.send_signal(signal.SIGINT)
        assert process.wait(TIMEOUT) == 0


# Jobs


def test_a_loop_outlives_an_error_and_each_step_has_its_own_context(
    app: Flask, run_recipe: RunRecipe, caplog: pytest.LogCaptureFixture
) -> None:
    closed: list[str] = []
    seen: queue.Queue[list[str]] = queue.Queue()

    @app.teardown_appcontext
    def close(_: object) -> None:
        if "db" in g:
            closed.append(g.pop("db"))

    def poll_supplier() -> None:
        seen.put([*closed])
        g.db = "a connection"
        raise LookupError("The supplier is away.")

    heading, changes = "## A loop that runs for ever", ("wait(60)", "wait(0)")
    names = run_recipe(heading, changes, poll_supplier=poll_supplier)
    stop = names["start_polling"](app)
    try:
        assert seen.get(timeout=TIMEOUT) == []
        assert seen.get(timeout=TIMEOUT) == ["a connection"]
    finally:
        stop.set()
    assert caplog.messages[0] == "A step failed."


SHOP_WITH_JOBS = """
import threading

from flask import Flask

from ctxcarry import carry_context

has_run = threading.Event()


def poll_supplier():
    has_run.set()


def fetch_prices():
    has_run.set()


def create_app():
    app = Flask(__name__)
    app.add_url_rule("/", view_func=lambda: str(has_run.wait(10)))
    return app


"""


@pytest.mark.parametrize("name", ["loop", "job"])
def test_it_runs_in_the_workers_of_a_preloaded_app(name: str, tmp_path: Path) -> None:
    recipe = section(RECIPES, "## A loop that runs for ever").replace("60", "0.1")
    code, configuration = snippets(recipe)
    if name == "job":
        recipe = section(RECIPES, "## A job that starts itself again")
        (code,) = snippets(recipe)
        (call,) = re.findall(r"`(start_refreshing\(worker.*?)`", recipe)
        configuration = configuration.replace("start_polling(worker.wsgi)", call)
        configuration = configuration.replace("start_polling", "start_refreshing")
        configuration = configuration.replace("3600", "0.1")
    (tmp_path / "shop.py").write_text(SHOP_WITH_JOBS + code)
    (tmp_path / "gunicorn.conf.py").write_text(configuration)
    address = f"127.0.0.1:{free_port()}"
    command = ["gunicorn", "--preload", "--bind", address, "shop:create_app()"]
    with running([sys.executable, "-m", *command], "Booting worker", tmp_path):
        assert ask(f"http://{address}/") == "True"


def last_timer(ended: threading.Event) -> type[threading.Timer]:
    """Return a timer that ends a job, because it never calls the job again."""

    class LastTimer(threading.Timer):
        def start(self) -> None:
            ended.set()

    return LastTimer


def test_a_job_that_starts_itself_again_inherits_nothing(
    app: Flask, run_recipe: RunRecipe
) -> None:
    ended = threading.Event()
    runs: list[list[Any]] = []
    variable: ContextVar[str] = ContextVar("variable", default="fresh")

    def fetch_prices() -> None:
        runs.append([variable.get(), "run" in g, flask.has_request_context()])
        variable.set("stale")
        g.run = len(runs)
        if g.run == 3:
            names["Timer"] = last_timer(ended)

    heading = "## A job that starts itself again"
    names = run_recipe(heading, fetch_prices=fetch_prices)
    names["start_refreshing"](app, 0)
    assert ended.wait(TIMEOUT)
    assert runs == [["fresh", False, False]] * 3


def test_a_job_that_starts_itself_again_outlives_an_error(
    app: Flask, run_recipe: RunRecipe, caplog: pytest.LogCaptureFixture
) -> None:
    ended = threading.Event()
    runs: list[list[str]] = []

    def fetch_prices() -> None:
        runs.append([*caplog.messages])
        if len(runs) == 2:
            names["Timer"] = last_timer(ended)
        else:
            raise LookupError("The supplier is away.")

    heading = "## A job that starts itself again"
    names = run_recipe(heading, fetch_prices=fetch_prices)
    names["start_refreshing"](app, 0)
    assert ended.wait(TIMEOUT)
    assert runs == [[], ["A refresh failed."]]


# Moving from the built-in

Carry = Callable[[Any], Any]


def call_twice(app: Flask, carry: Carry) -> Any:
    def count() -> int:
        session["count"] = session.get("count", 0) + 1
        return int(session["count"])

    with app.test_request_context():
        carried = carry(count)
        return [in_thread(carried), in_thread(carried), session.get("count")]


def run_a_coroutine_function(app: Flask, carry: Carry) -> Any:
    async def path() -> str:
        return request.path

    with app.test_request_context("/orders"):
        result: Any = in_thread(carry(path))
    if isinstance(result, str):
        return result
    return result.close()


def await_what_wraps_returns(app: Flask, carry: Carry) -> Any:
    async def path() -> str:
        return request.path

    @wraps(path)
    def decorated() -> Any:
        return path()

    @app.route("/orders")
    async def view() -> str:
        return str(await carry(decorated)())

    return app.test_client().get("/orders").text


def carry_after_the_request(app: Flask, carry: Carry) -> Any:
    @app.after_request
    def after(response: flask.Response) -> flask.Response:
        carry(int)()
        return response

    return app.test_client().get("/").headers.get("Vary")


def read_g_in_a_teardown_function(app: Flask, carry: Carry) -> Any:
    seen: list[Any] = []

    @app.teardown_request
    def note(_: object) -> None:
        seen.append(g.get("start"))

    with app.test_request_context():
        g.start = 17
        in_thread(carry(int))
    return seen


class OneSession(SessionInterface):
    """Hands out the same session to all requests, as some stores do."""

    def __init__(self) -> None:
        self.session = SecureCookieSession()

    def open_session(self, app: Flask, request: Any) -> Any:
        return self.session


def write_to_a_session_that_lives_on(app: Flask, carry: Carry) -> Any:
    app.session_interface = interface = OneSession()
    with app.test_request_context():
        task = carry(lambda: session.update(name="ada"))
    in_thread(task)
    return interface.session.get("name")


def use_the_transaction_of_the_view(app: Flask, carry: Carry) -> Any:
    def get_db() -> sqlite3.Connection:
        if "db" not in g:
            g.db = sqlite3.connect("file:shop?mode=memory&cache=shared", uri=True)
        db: sqlite3.Connection = g.db
        return db

    @app.teardown_appcontext
    def close(_: object) -> None:
        if "db" in g:
            g.db.close()

    with app.test_request_context():
        own = get_db()
        return carry(lambda: get_db() is own)()


MOVES: list[tuple[Callable[[Flask, Carry], Any], Any, Any]] = [
    (call_twice, [1, 2, 2], [1, 1, None]),
    (run_a_coroutine_function, "/orders", None),
    (await_what_wraps_returns, "/orders", TypeError),
    (carry_after_the_request, None, "Cookie"),
    (read_g_in_a_teardown_function, [None, 17], [None, 17]),
    (write_to_a_session_that_lives_on, "ada", None),
    (use_the_transaction_of_the_view, True, False),
]


@pytest.mark.parametrize(("move", "before", "now"), MOVES)
def test_moving_from_the_built_in_changes_what_the_guide_says(
    move: Callable[[Flask, Carry], Any], before: Any, now: Any
) -> None:
    for carry, expected in (copy_current_request_context, before), (carry_context, now):
        app = Flask("shop")
        app.secret_key = "for this test only"
        app.testing = True
        if expected is TypeError:
            with pytest.raises(TypeError):
                move(app, carry)
        else:
            assert move(app, carry) == expected


@pytest.mark.parametrize("is_wrapped", [False, True])
def test_moving_from_flask_executor_begins_within_flask_executor(
    app: Flask, is_wrapped: bool
) -> None:
    flask_executor: Any = importlib.import_module("flask_executor")
    executor = flask_executor.Executor(app)

    def work() -> str:
        session["user"] = "ada"
        return f"{request.path} of {g.tenant}"

    with app.test_request_context("/orders"):
        g.tenant = "acme"
        task = carry_context(work) if is_wrapped else work
        assert executor.submit(task).result(TIMEOUT) == "/orders of acme"
        assert session.get("user") == (None if is_wrapped else "ada")
    executor.shutdown()


# Servers and processes

APP = "from_flask_threads:app"
COMMANDS = {
    "preload": f"gunicorn --preload --workers 2 --bind {{}} {APP}",
    "gevent": f"gunicorn --worker-class gevent --bind {{}} {APP}",
    "waitress": f"waitress --listen {{}} {APP}",
}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_servers_of_the_guide_run_tasks(name: str) -> None:
    address = f"127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", *COMMANDS[name].format(address).split()]
    started = "Serving on" if name == "waitress" else "Booting worker"
    with running(command, started, EXAMPLES):
        for path in "/user/thread", "/user/executor":
            answer = ask(f"http://{address}{path}", **{"user-id": "17"})
            assert '"user_id":"17"' in answer


def test_greenlets_and_background_tasks_have_the_request(app: Flask) -> None:
    gevent: Any = importlib.import_module("gevent")
    pool: Any = importlib.import_module("gevent.pool").Pool()
    socketio: Any = importlib.import_module("flask_socketio").SocketIO(app)
    seen: list[str] = []

    def work(item: str) -> None:
        gevent.sleep(0)
        seen.append(f"{request.path} {item}")

    with app.test_request_context("/orders"):
        carried = carry_context(work)
        gevent.spawn(carried, "spawn").get(timeout=TIMEOUT)
        pool.map(carried, ["a", "b"])
        socketio.start_background_task(carried, "background").join(TIMEOUT)
    assert seen == ["/orders spawn", "/orders a", "/orders b", "/orders background"]


@pytest.mark.parametrize("is_configured", [False, True])
def test_flasks_own_log_handler_fails_after_the_response(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    is_configured: bool,
) -> None:
    # Without handlers of the root logger, Flask logs to that stream of the request.
    handlers = [logging.StreamHandler()] if is_configured else []
    monkeypatch.setattr(logging.getLogger(), "handlers", handlers)
    stream = io.StringIO()
    app = Flask(f"configured-{is_configured}")
    with app.test_request_context(errors_stream=stream):
        task = carry_context(lambda: app.logger.error("no price"))
    stream.close()  # As mod_wsgi does.
    in_thread(task)
    printed = capsys.readouterr().err
    assert ("--- Logging error ---" in printed) is not is_configured
    assert (printed == "no price\n") is is_configured


def test_a_worker_of_a_queue_builds_the_urls_of_the_request(
    app: Flask, run_recipe: RunRecipe
) -> None:
    app.add_url_rule("/orders/<int:id>", "show")

    def build_message() -> str:
        return f"{g.tenant}: {flask.url_for('show', id=17, _external=True)}"

    def confirm(_: int) -> Any:
        return in_thread(carry_context(build_message))

    names = run_recipe("## Processes and Celery", confirm=confirm)
    with app.test_request_context(base_url="https://shop/eu"):
        root_url = request.root_url
    message = names["confirm_in_worker"](17, "acme", root_url)
    assert message == "acme: https://shop/eu/orders/17"


def test_the_command_of_the_progress_page_is_that_of_its_header() -> None:
    (command,) = snippets(section(RECIPES, "## The progress page"), "sh")
    assert command in (EXAMPLES / "progress" / "app.py").read_text("utf-8")
    (behind,) = re.findall(r"`(\.venv/bin/gunicorn .*?)`", RECIPES)
    configuration = EXAMPLES / "progress" / "gunicorn_conf.py"
    assert behind in configuration.read_text("utf-8")
