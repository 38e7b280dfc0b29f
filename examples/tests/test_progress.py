"""The page goes on, whatever happens to it: seen in a real browser, on real servers.

PROGRESS_PICTURES=examples/progress takes the pictures of the README.
"""

import contextlib
import importlib
import importlib.resources
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Generator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy.event
import structlog
from helpers import EXAMPLES, ROOT, program
from selenium.common import WebDriverException
from selenium.webdriver import Chrome
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait
from werkzeug.serving import make_server

PROGRESS = EXAMPLES / "progress"
FLASK = ["flask", "--app", str(PROGRESS / "app.py"), "run", "--port", "0"]
GUNICORN = ["gunicorn", "-c", str(PROGRESS / "gunicorn_conf.py"), "-b", "127.0.0.1:0"]
TIMEOUT = 30
ACME, ZOO = "Acme Deli, Berlin", "Zoo Café, Vienna"
LOST = "The server does not answer."
STOPPED = "0 of 12 done, 8 stopped, 4 running"
# Notes the pauses of a page, and makes them short, in a browser that is not the newest.
QUICK = """window.pauses = [];
    const wait = setTimeout;
    window.setTimeout = (done, pause, ...rest) => {
        const limit = pause === 10_000;  // Of a request.
        if (!limit) pauses.push(pause);
        return wait(done, limit ? 1000 : pause / 20, ...rest);
    };
    AbortSignal.any = AbortSignal.timeout = undefined;"""
# What keeps an end from being stored, and what undoes it.
FAULTS = {
    "database is locked": ("BEGIN EXCLUSIVE", "ROLLBACK"),
    "database or disk is full": (
        """CREATE TRIGGER full BEFORE UPDATE ON item
        BEGIN SELECT RAISE(ABORT, 'database or disk is full'); END""",
        "DROP TRIGGER full",
    ),
}


class Gate:
    """Holds back the work on a row until the test has let so many rows pass."""

    def __init__(self) -> None:
        self.moved = threading.Condition()
        self.passed = self.asked = 0

    def open(self, count: int = 1000) -> None:
        with self.moved:
            self.passed += count
            self.moved.notify_all()

    def reached(self, count: int) -> None:
        with self.moved:
            assert self.moved.wait_for(lambda: self.asked == count, TIMEOUT)

    def wait(self, at: int) -> None:
        with self.moved:
            self.asked += 1
            self.moved.notify_all()
            assert self.moved.wait_for(lambda: at < self.passed, TIMEOUT)


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def module(
    gate: Gate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Generator[Any]:
    """The page's module, imported anew, with a database of its own."""
    uri = f"sqlite:///{tmp_path / 'progress.sqlite'}"
    monkeypatch.setenv("FLASK_SQLALCHEMY_DATABASE_URI", uri)
    monkeypatch.setenv("FLASK_SECRET_KEY", "of the tests")
    sys.modules.pop("app", None)
    module: Any = importlib.import_module("app")
    price = module.price

    def gated(row: dict[str, str]) -> str:
        section = [other for other in module.ROWS if other["section"] == row["section"]]
        gate.wait(section.index(row))
        return str(price(row))

    monkeypatch.setattr(module, "price", gated)
    monkeypatch.setattr(module, "time", SimpleNamespace(sleep=abs))
    module.app = module.create_app()
    yield module
    gate.open()
    module.pool.shutdown(cancel_futures=True)
    close(module, module.app)
    structlog.reset_defaults()


def close(module: Any, app: Any) -> None:
    with app.app_context():
        module.db.engine.dispose()


def finish(module: Any) -> None:
    """Wait until each thread of the pool is through with what it had."""
    barrier = threading.Barrier(5, timeout=TIMEOUT)
    for _ in range(4):
        module.pool.submit(barrier.wait)
    barrier.wait()


class Client:
    """A visitor without a browser."""

    def __init__(self, app: Any, shop: str = ACME, user: str = "Ada") -> None:
        self.client = app.test_client()
        self.get = self.client.get
        self.post("/sign-in", user=user, shop=shop)

    def token(self) -> str:
        found = re.search('name="csrf_token" value="([^"]+)', self.get("/").text)
        assert found is not None
        return found[1]

    def post(self, path: str, headers: Any = None, **form: str) -> Any:
        if "csrf_token" not in form:
            form["csrf_token"] = self.token()
        return self.client.post(path, data=form, headers=headers)

    def start(self, section: str, headers: Any = None) -> str:
        return str(self.post("/reports", headers, section=section).location)

    def states(self, path: str) -> Counter[str]:
        return Counter(re.findall(r'<td class="(\w+)">', self.get(path).text))


# The end of a task


def test_an_item_that_fails_says_why_and_is_logged_with_its_request_id_and_traceback(
    module: Any, gate: Gate
) -> None:
    gate.open()
    merge = structlog.contextvars.merge_contextvars
    client = Client(module.app)
    with structlog.testing.capture_logs(processors=[merge]) as logged:
        page = client.start("Matcha", {"Request-Id": "not this one"})
        finish(module)
    text = client.get(page).text
    assert "“on request” is not a price." in text
    assert "A mistake of ours." in text
    assert "DivisionByZero" not in text
    (request_id,) = {entry["request_id"] for entry in logged}
    assert re.fullmatch(r"[0-9a-f]{8}", request_id)
    errors = [entry["exc_info"] for entry in logged if entry["event"] == "failed"]
    names = sorted(type(error).__name__ for error in errors)
    assert names == ["DivisionByZero", "ValueError"]
    assert all(error.__traceback__ for error in errors)
    users = [entry["user"] for entry in logged if entry["event"] == "priced"]
    assert users == ["Ada"] * 6
    held = threading.Event()
    for _ in range(4):
        module.pool.submit(held.wait, TIMEOUT)
    client.post(page, start="")
    assert client.states(page) == {"done": 6, "waiting": 2}
    assert "A mistake of ours." not in client.get(page).text
    held.set()


def test_the_tasks_have_the_terms_of_their_shop(module: Any, gate: Gate) -> None:
    gate.open()
    for shop, price in [(ACME, "10.10 €"), (ZOO, "12.34 €")]:
        client = Client(module.app, shop)
        page = client.start("Green")
        finish(module)
        assert f"<td>{price}, " in client.get(page).text


@pytest.mark.parametrize("says", FAULTS)
def test_an_item_whose_end_cannot_be_stored_can_be_started_again(
    module: Any, gate: Gate, tmp_path: Path, caplog: Any, says: str
) -> None:
    client = Client(module.app)
    page = client.start("Green")
    gate.reached(4)
    client.post(page, cancel="")
    fault, undo = FAULTS[says]
    with contextlib.closing(sqlite3.connect(tmp_path / "progress.sqlite")) as other:
        other.execute(fault)
        gate.open()
        finish(module)
        other.execute(undo)
    assert caplog.text.count(f"Error) {says}\n") == 4
    assert client.states(page) == {"stopped": 12}
    client.post(page, start="")
    finish(module)
    assert client.states(page) == {"done": 11, "failed": 1}


def test_a_new_process_goes_on_after_the_database_was_deleted(
    module: Any, gate: Gate, tmp_path: Path
) -> None:
    client = Client(module.app)
    client.start("Green")
    (tmp_path / "progress.sqlite").unlink()
    gate.open()
    finish(module)
    assert not module.tasks
    close(module, module.app)
    module.app = module.create_app()
    client = Client(module.app)
    page = client.start("Green")
    finish(module)
    assert client.states(page) == {"done": 11, "failed": 1}


# What a visitor can do


def test_what_waits_or_runs_is_not_started_again(module: Any, gate: Gate) -> None:
    client = Client(module.app)
    page = client.start("Green")
    gate.reached(4)
    for _ in range(50):
        client.post(page, start="")
    assert client.states(page) == {"running": 4, "waiting": 8}
    gate.open()
    finish(module)
    assert gate.asked == 12


def test_two_requests_at_once_start_an_item_once(
    module: Any, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = Client(module.app), Client(module.app)
    page = first.start("Green")
    gate.reached(4)
    first.post(page, cancel="")
    second.client.set_cookie("session", first.client.get_cookie("session").value)
    in_pool, form = module.in_pool, {"start": "", "csrf_token": first.token()}
    other = threading.Thread(target=second.post, args=[page], kwargs=form)

    def overtaken() -> Any:
        mine = in_pool()
        if not other.ident:
            other.start()
            other.join(1)  # It has to wait for the first request.
        return mine

    monkeypatch.setattr(module, "in_pool", overtaken)
    first.post(page, **form)
    other.join()
    gate.open()
    finish(module)
    assert gate.asked == 12


def test_one_visitor_cannot_fill_the_pool(module: Any, gate: Gate) -> None:
    client = Client(module.app)
    pages = [client.start("Green") for _ in range(3)]
    refused = client.post("/reports", section="Green")
    assert refused.status_code == 429
    assert "Your other reports still run." in refused.text
    assert len(module.tasks) == 36
    assert Client(module.app, user="Grace").start("Green") == "/reports/5"
    gate.open()
    finish(module)
    client.post("/reports/4", start="")
    finish(module)
    for page in [*pages, "/reports/4"]:
        assert client.states(page) == {"done": 11, "failed": 1}


def test_to_cancel_twice_starts_nothing(module: Any, gate: Gate, caplog: Any) -> None:
    client = Client(module.app)
    page = client.start("Green")
    gate.reached(4)
    for _ in range(2):
        client.post(page, cancel="")
        assert client.states(page) == {"running": 4, "stopped": 8}
    gate.open()
    finish(module)
    client.post(page, cancel="")
    assert client.states(page) == {"done": 3, "failed": 1, "stopped": 8}
    assert "exception calling callback" not in caplog.text


def test_the_list_has_the_newest_report_first_and_loads_no_items(
    module: Any, gate: Gate
) -> None:
    gate.open()
    client = Client(module.app)
    for section in ("Green", "Matcha"):
        client.start(section)
    finish(module)
    loaded: list[Any] = []

    def note(item: Any, context: Any) -> None:
        loaded.append(item)

    sqlalchemy.event.listen(module.Item, "load", note)
    counts = r"(\d+) of (\d+) done, (\d+) failed"
    assert re.findall(counts, client.get("/").text) == [
        ("6", "8", "2"),
        ("11", "12", "1"),
    ]
    assert not loaded


@pytest.mark.parametrize(
    ("path", "form", "code", "says"),
    [
        ("/reports", {"section": "Coffee"}, 400, "no such section"),
        ("/sign-in", {"user": "Ada", "shop": "Nobody's"}, 400, "no such shop"),
        ("/sign-in", {"user": " ", "shop": ACME}, 400, "1 to 80 characters"),
        ("/sign-in", {"user": 81 * "A", "shop": ACME}, 400, "1 to 80 characters"),
        ("/reports/1", {"cancel": ""}, 404, "not found"),
        ("/reports/99999999999999999999999", {"cancel": ""}, 404, "not found"),
        ("/", {}, 405, "not allowed"),
    ],
    ids=["section", "shop", "no name", "long name", "id", "huge id", "method"],
)
def test_what_cannot_be_done_is_refused_with_a_way_back(
    module: Any, path: str, form: dict[str, str], code: int, says: str
) -> None:
    answer = Client(module.app).post(path, **form)
    assert answer.status_code == code
    assert says in answer.text
    assert '<a href="/">To your reports</a>' in answer.text
    assert ("Allow" in answer.headers) == (code == 405)


def test_the_longest_name_fits_into_the_cookie(module: Any) -> None:
    answer = Client(module.app).post("/sign-in", user=80 * "🫖", shop=ZOO)
    assert len(answer.headers["Set-Cookie"]) < 4096


def test_a_name_is_shown_as_text(module: Any) -> None:
    text = Client(module.app, user="<script>").get("/").text
    assert "&lt;script&gt;, Acme" in text
    assert "<script>" not in text


def test_a_report_is_shown_to_its_visitor_alone(module: Any) -> None:
    page = Client(module.app).start("White")
    for stranger in [Client(module.app, ZOO), Client(module.app, user="Grace")]:
        assert "Report 1" not in stranger.get("/").text
        assert stranger.get(page).status_code == 404
        for action in ("start", "cancel"):
            assert stranger.post(page, **{action: ""}).status_code == 404
    ended = module.app.test_client().post(page)
    assert ended.status_code == 401
    assert "Your session has ended." in ended.text


def test_a_form_from_elsewhere_is_refused(module: Any) -> None:
    client = Client(module.app)
    for path in ("/sign-in", "/reports", "/reports/1"):
        answer = client.client.post(path, data={"section": "Matcha"})
        assert answer.status_code == 400
        assert "The CSRF token is missing." in answer.text
    assert "SameSite=Lax" in module.app.test_client().get("/").headers["Set-Cookie"]


def test_a_form_that_was_open_for_a_day_is_taken(
    module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = Client(module.app)
    token, tomorrow = client.token(), time.time() + 24 * 3600
    monkeypatch.setattr(time, "time", lambda: tomorrow)
    answer = client.post("/reports", csrf_token=token, section="Matcha")
    assert answer.status_code == 303


def test_the_secret_is_the_environments_or_this_apps(
    module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert module.app.secret_key == "of the tests"
    monkeypatch.delenv("FLASK_SECRET_KEY")
    first, second = module.create_app(), module.create_app()
    for app in (first, second):
        close(module, app)
        assert len(app.secret_key) == 64
    assert first.secret_key != second.secret_key


def test_the_list_is_read_as_spreadsheets_save_it(module: Any) -> None:
    assert module.TEAS.read_bytes().startswith(b"\xef\xbb\xbfsection,")
    assert len(module.ROWS) == 40
    assert "Gyokuro Yame,\nfirst flush, 50 g" in [row["article"] for row in module.ROWS]


# The page in a browser


@pytest.fixture
def server(module: Any) -> Generator[Any]:
    """The page on a real server, behind a proxy that can lose it."""
    state = SimpleNamespace(lost="", late=None, answers=threading.Event())
    state.answers.set()
    requests: set[threading.Thread] = set()

    def proxy(environ: Any, start_response: Any) -> Any:
        requests.add(threading.current_thread())
        assert state.answers.wait(TIMEOUT)
        if state.lost:
            status, _, page = state.lost.partition(": ")
            start_response(status, [("Content-Type", "text/html")])
            return [page.encode()]
        answer = module.app.wsgi_app(environ, start_response)
        if late := state.late:
            state.late = None
            late.wait()  # It is held back,
            late.wait()  # and let go.
        return answer

    serving = make_server("127.0.0.1", 0, proxy, threaded=True)
    thread = threading.Thread(target=serving.serve_forever)
    thread.start()
    state.address = f"http://127.0.0.1:{serving.server_port}"
    yield state
    serving.shutdown()
    thread.join(TIMEOUT)
    serving.server_close()
    for request in requests:
        request.join(TIMEOUT)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Generator[Any]:
    options = Options()
    options.binary_location = program("chromium")
    for switch in [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--no-first-run",
        "--hide-scrollbars",
        f"--user-data-dir={tmp_path_factory.mktemp('profile')}",
    ]:
        options.add_argument(switch)
    window: Any = Chrome(options=options, service=Service(program("chromedriver")))
    yield window
    window.quit()


class Visitor:
    """Somebody in front of a window of the browser."""

    def __init__(self, window: Any) -> None:
        self.window = window
        self.cdp: Callable[[str, dict[str, Any]], Any] = window.execute_cdp_cmd
        self.run: Callable[..., Any] = window.execute_script
        self.looks_at(1280)

    def looks_at(self, width: int, height: int = 900, *, dark: bool = False) -> None:
        screen = {"width": width, "height": height, "deviceScaleFactor": 1}
        screen["mobile"] = False
        self.cdp("Emulation.setDeviceMetricsOverride", screen)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.cdp("Emulation.setEmulatedMedia", {"features": [scheme]})

    def before_each_page(self, script: str) -> None:
        self.cdp("Page.addScriptToEvaluateOnNewDocument", {"source": script})

    def signs_in(self, address: str) -> None:
        self.window.get(address)
        self.window.find_element("name", "user").send_keys("Ada\n")
        self.reads("Section")

    def starts(self, section: str) -> None:
        self.window.find_element("xpath", f"//option[.='{section}']").click()
        self.presses("Price them")
        self.reads(f": {section}")

    def prices(self, address: str, section: str) -> None:
        self.signs_in(address)
        self.starts(section)

    def presses(self, label: str) -> None:
        self.window.find_element("xpath", f"//button[.='{label}']").click()

    def types(self, *keys: str) -> None:
        self.window.switch_to.active_element.send_keys(*keys)

    def tabs_to(self, text: str) -> None:
        """Go on by the Tab key alone, at most once around the page."""
        for _ in range(20):
            self.types(Keys.TAB)
            if self.focus.startswith(text):
                return
        raise AssertionError(f"The Tab key does not come to {text}.")

    @property
    def focus(self) -> str:
        script = """const at = document.activeElement;
            return at === document.body ? "" : at.name || at.innerText"""
        return str(self.run(script))

    @property
    def text(self) -> str:
        return str(self.window.find_element("tag name", "body").text)

    def reads(self, text: str) -> None:
        self.sees(lambda: text in self.text)

    def counts(self, text: str) -> None:
        count = "return document.querySelector('[id^=count]').innerText"
        self.sees(lambda: self.run(count) == text)

    def sees(self, holds: Callable[[], Any]) -> None:
        # While the window navigates, what is read can go, in more than one way.
        wait = WebDriverWait(self.window, TIMEOUT, 0.05, [WebDriverException])
        wait.until(lambda _: holds())

    def notes(self, selector: str) -> None:
        """Write down each change of these elements, and their text after it."""
        self.run(f"""window.said = [];
            for (const at of document.querySelectorAll("{selector}"))
                new MutationObserver(() => said.push(at.textContent))
                    .observe(at, {{ childList: true, attributes: true }});""")

    @property
    def said(self) -> list[str]:
        return list(self.run("return said"))

    def pictures(self, name: str) -> None:
        if folder := os.environ.get("PROGRESS_PICTURES"):
            self.window.save_screenshot(str(Path(folder, name)))


@pytest.fixture
def visitor(browser: Any) -> Generator[Visitor]:
    """Somebody new, in a new tab."""
    browser.switch_to.new_window("tab")
    browser.execute_cdp_cmd("Network.clearBrowserCookies", {})
    yield Visitor(browser)
    browser.close()
    browser.switch_to.window(browser.window_handles[0])


def test_the_bar_moves_and_the_rows_come(
    server: Any, gate: Gate, visitor: Visitor
) -> None:
    visitor.looks_at(1280, 800)
    visitor.prices(server.address, "Green")
    visitor.counts("0 of 12 done, 4 running, 8 waiting")
    gate.open(5)
    visitor.counts("4 of 12 done, 1 failed, 4 running, 3 waiting")
    bar = visitor.window.find_element("tag name", "progress")
    assert (bar.get_property("value"), bar.get_property("max")) == (5, 12)
    rows = visitor.window.find_elements("css selector", "tbody tr")
    assert len(rows) == 12
    assert rows[0].text == "Sencha Uji, 50 g done 10.10 €, 202.04 €/kg"
    assert rows[11].text == "Long Jing, 500 g waiting"
    visitor.pictures("1280.png")


def test_a_lost_server_is_said_and_asked_again_for_what_was_pressed(
    server: Any, gate: Gate, visitor: Visitor
) -> None:
    visitor.before_each_page(QUICK)
    visitor.prices(server.address, "Black")
    gate.open(3)
    visitor.counts("3 of 12 done, 4 running, 5 waiting")
    assert LOST not in visitor.text
    visitor.notes("[role=alert]")
    server.answers.clear()
    visitor.presses("Cancel the rest")
    visitor.reads(LOST)
    visitor.sees(lambda: visitor.run("return pauses").count(30_000) > 1)
    growing = [pause for pause in visitor.run("return pauses") if pause > 1000]
    assert growing[:6] == [2000, 4000, 8000, 16000, 30_000, 30_000]
    server.answers.set()
    visitor.counts("3 of 12 done, 5 stopped, 4 running")
    said, silent = visitor.said
    assert said.startswith(LOST) and silent == ""
    visitor.sees(lambda: visitor.run("return pauses")[-1] == 1000)


def test_an_answer_that_is_not_the_pages_is_that_of_a_lost_server(
    server: Any, gate: Gate, visitor: Visitor
) -> None:
    visitor.before_each_page(QUICK)
    visitor.prices(server.address, "Black")
    for answer in [
        "502 Bad Gateway: <h1>of a proxy</h1>",
        "500 Internal Server Error: <p id='problem'>of the app</p>",
        "200 OK: <h1>of a hotel's network</h1>",
    ]:
        server.lost = answer
        visitor.reads(LOST)
        server.lost = ""
        visitor.sees(lambda: LOST not in visitor.text)
    gate.open()
    visitor.counts("11 of 12 done, 1 failed")


def test_what_was_pressed_overtakes_an_answer_that_is_late(
    server: Any, gate: Gate, visitor: Visitor
) -> None:
    visitor.prices(server.address, "Green")
    visitor.counts("0 of 12 done, 4 running, 8 waiting")
    server.late = late = threading.Barrier(2, timeout=TIMEOUT)
    late.wait()
    visitor.notes("[id^=count], #problem")
    visitor.presses("Cancel the rest")
    visitor.counts(STOPPED)
    late.wait()
    gate.open(4)
    end = "3 of 12 done, 1 failed, 8 stopped"
    visitor.counts(end)
    assert visitor.said == [STOPPED, end]


def test_an_expired_session_is_said_and_asked_for_no_more(
    server: Any, visitor: Visitor
) -> None:
    visitor.before_each_page("""window.pending = new Set();
        const [wait, clear] = [setTimeout, clearTimeout];
        window.setTimeout = (...all) => (pending.add(wait(...all)), [...pending].at(-1));
        window.clearTimeout = timer => (pending.delete(timer), clear(timer));""")
    visitor.prices(server.address, "Green")
    visitor.counts("0 of 12 done, 4 running, 8 waiting")
    visitor.cdp("Network.clearBrowserCookies", {})
    visitor.reads("Your session has ended.")
    visitor.sees(lambda: visitor.run("return pending.size") == 0)
    visitor.window.find_element("link text", "To your reports").click()
    visitor.reads("Your name")


def test_to_cancel_and_to_start_keep_the_focus_the_history_and_their_places(
    server: Any, gate: Gate, visitor: Visitor
) -> None:
    visitor.prices(server.address, "Green")
    visitor.counts("0 of 12 done, 4 running, 8 waiting")
    buttons = """return [stays, history.length, ...["cancel", "start"].map(id => {
        const { x, y } = document.getElementById(id).getBoundingClientRect();
        return [id, x, y];
    })]"""
    before = visitor.run(f"window.stays = true; {buttons}")
    disabled = """return [...document.querySelectorAll("button")].map(
        button => button.ariaDisabled)"""
    assert visitor.run(disabled) == [None, "true"]
    visitor.presses("Cancel the rest")
    visitor.counts(STOPPED)
    assert visitor.focus == "cancel"
    assert visitor.run(disabled) == ["true", None]
    gate.open(4)
    visitor.counts("3 of 12 done, 1 failed, 8 stopped")
    assert visitor.run(buttons) == before
    visitor.types(Keys.ENTER)
    visitor.presses("Start the rest")
    visitor.counts("3 of 12 done, 1 failed, 4 running, 4 waiting")
    assert visitor.focus == "start"
    gate.open()
    visitor.counts("11 of 12 done, 1 failed")
    assert visitor.run(buttons) == before
    visitor.window.back()
    visitor.reads("Section")
    visitor.counts("11 of 12 done, 1 failed")


def test_only_what_differs_is_changed(
    server: Any, gate: Gate, visitor: Visitor
) -> None:
    visitor.prices(server.address, "Green")
    gate.open(1)
    visitor.counts("1 of 12 done, 4 running, 7 waiting")
    selected = visitor.run("""
        window.rows = [...document.querySelectorAll("tbody tr")];
        window.cell = rows[0].firstElementChild;
        getSelection().selectAllChildren(cell);
        return getSelection().toString();""")
    assert selected == "Sencha Uji, 50 g"
    visitor.notes("[role]")
    gate.open(3)
    visitor.counts("3 of 12 done, 1 failed, 4 running, 4 waiting")
    gate.open()
    visitor.counts("11 of 12 done, 1 failed")
    assert visitor.said == ["The report has ended."]
    assert visitor.run("return getSelection().toString()") == selected
    assert visitor.run("return [cell, ...rows].every(at => at.isConnected)")


def test_without_a_script_the_page_refreshes_itself(
    server: Any, gate: Gate, visitor: Visitor
) -> None:
    visitor.cdp("Emulation.setScriptExecutionDisabled", {"value": True})
    visitor.prices(server.address, "Green")
    gate.open(3)
    visitor.reads("3 of 12 done, 4 running, 5 waiting")
    visitor.presses("Cancel the rest")
    visitor.reads("3 of 12 done, 5 stopped, 4 running")
    gate.open(4)
    visitor.reads("6 of 12 done, 1 failed, 5 stopped")
    visitor.presses("Start the rest")
    gate.open()
    visitor.reads("11 of 12 done, 1 failed")
    visitor.reads("The report has ended.")


def test_the_keyboard_is_enough(server: Any, gate: Gate, visitor: Visitor) -> None:
    visitor.window.get(server.address)
    visitor.tabs_to("user")
    visitor.types("Ada")
    visitor.tabs_to("shop")
    visitor.types("Z")
    visitor.tabs_to("Sign in")
    visitor.types(Keys.ENTER)
    visitor.reads("Ada, Zoo Café, Vienna")
    visitor.tabs_to("section")
    visitor.types("Gr")
    visitor.tabs_to("Price them")
    visitor.types(Keys.ENTER)
    visitor.counts("0 of 12 done, 4 running, 8 waiting")
    visitor.tabs_to("cancel")
    visitor.types(Keys.SPACE)
    visitor.counts(STOPPED)
    visitor.tabs_to("start")
    visitor.types(Keys.SPACE)
    visitor.counts("0 of 12 done, 4 running, 8 waiting")
    gate.open()
    visitor.counts("11 of 12 done, 1 failed")
    visitor.tabs_to("Your reports")
    visitor.types(Keys.ENTER)
    visitor.reads("Section")
    visitor.tabs_to("Report 1: Green")
    visitor.types(Keys.ENTER)
    visitor.reads("The report has ended.")


def test_the_list_shows_how_far_a_report_is(
    server: Any, gate: Gate, visitor: Visitor
) -> None:
    visitor.prices(server.address, "Green")
    visitor.window.get(server.address)
    visitor.counts("0 of 12 done, 4 running, 8 waiting")
    visitor.run("document.querySelector('li a').focus()")
    gate.open()
    visitor.counts("11 of 12 done, 1 failed")
    assert visitor.focus == "Report 1: Green"


def test_each_page_and_state_is_accessible_and_fits(
    server: Any, gate: Gate, visitor: Visitor
) -> None:
    folder = importlib.resources.files("axe_core_python")
    axe = folder.joinpath("axe.min.js").read_text("utf-8")
    audit = "const done = arguments[0]; axe.run().then(done)"
    too_wide = """return [...document.querySelectorAll("body *")].filter(
        at => at.getBoundingClientRect().right > innerWidth).map(at => at.outerHTML)"""
    ground = "return getComputedStyle(document.body).backgroundColor"
    found: list[Any] = []
    passed: Counter[str] = Counter()

    def check(state: str) -> None:
        grounds: set[str] = set()
        for dark in (False, True):
            visitor.looks_at(360, dark=dark)
            grounds.add(visitor.run(ground))
            visitor.run(axe)
            report = visitor.window.execute_async_script(audit)
            passed.update(rule["id"] for rule in report["passes"])
            for rule in report["violations"] + report["incomplete"]:
                found.extend(
                    (state, rule["id"], node["html"]) for node in rule["nodes"]
                )
        assert len(grounds) == 2
        assert visitor.run(too_wide) == []
        visitor.looks_at(320)
        visitor.cdp("Page.setFontSizes", {"fontSizes": {"standard": 32}})
        assert visitor.run(too_wide) == [], state
        visitor.cdp("Page.setFontSizes", {"fontSizes": {"standard": 16}})

    visitor.window.get(server.address)
    check("signed out")
    visitor.signs_in(server.address)
    check("an empty list")
    visitor.starts("Matcha")
    gate.open(3)
    visitor.counts("2 of 8 done, 1 failed, 4 running, 1 waiting")
    check("running")
    visitor.presses("Cancel the rest")
    visitor.counts("2 of 8 done, 1 failed, 1 stopped, 4 running")
    check("cancelled")
    server.lost = "502 Bad Gateway"
    visitor.reads(LOST)
    check("lost")
    server.lost = ""
    gate.open()
    visitor.counts("5 of 8 done, 2 failed, 1 stopped")
    check("ended")
    visitor.presses("Start the rest")
    visitor.counts("6 of 8 done, 2 failed")
    visitor.looks_at(360, 800, dark=True)
    visitor.pictures("360-dark.png")
    visitor.window.get(server.address)
    visitor.reads("Report 1: Matcha")
    check("a list")
    visitor.window.get(f"{server.address}/reports/17")
    visitor.reads("Not Found")
    check("an error")
    assert found == []
    assert passed["color-contrast"] == passed["document-title"] == 16


# The page on servers that end, well or not


class Server:
    """A server in a process of its own, on a database that outlives it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        assert process.stdout is not None
        self.output = process.stdout
        found = (re.search(r"http://127\.0\.0\.1:\d+", line) for line in self.output)
        self.address = next(match[0] for match in found if match)


@contextlib.contextmanager
def serve(folder: Path, *command: str) -> Generator[Server]:
    environ = dict(
        os.environ,
        FLASK_SECRET_KEY="of the tests",
        FLASK_SQLALCHEMY_DATABASE_URI=f"sqlite:///{folder / 'progress.sqlite'}",
        PYTHONPATH=os.pathsep.join([str(folder), str(PROGRESS), str(ROOT)]),
    )
    signal.signal(signal.SIGINT, signal.default_int_handler)  # A shell may ignore it.
    with subprocess.Popen(
        [sys.executable, "-m", *command],
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        bound = threading.Timer(3 * TIMEOUT, process.kill)
        bound.start()
        try:
            yield Server(process)
        finally:
            process.kill()
            bound.cancel()


def stalled(folder: Path, seconds: int) -> str:
    """Write an app whose tasks take so long, but for the first three of green teas."""
    app = folder / "stalled.py"
    app.write_text(f"""
import threading
import app

price, quick = app.price, app.ROWS[12:15]

def stalled(row):
    if row not in quick:
        threading.Event().wait({seconds})
    return price(row)

app.price = stalled
create_app = app.create_app
""")
    return str(app)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_what_a_server_was_doing_when_it_was_killed_can_be_started_again(
    visitor: Visitor, tmp_path: Path, number: signal.Signals
) -> None:
    app = stalled(tmp_path, 60)
    visitor.before_each_page(QUICK)
    with serve(tmp_path, "flask", "--app", app, "run", "--port", "0") as one:
        visitor.prices(one.address, "Green")
        visitor.counts("3 of 12 done, 4 running, 5 waiting")
        one.process.send_signal(number)
        visitor.reads(LOST)
        if (
            number == signal.SIGINT
        ):  # The first lets what runs end, the second does not.
            one.process.send_signal(number)
        assert one.process.wait(TIMEOUT) == -number
    port = one.address.rpartition(":")[2]
    with serve(tmp_path, *FLASK[:-1], port):
        visitor.counts("3 of 12 done, 9 stopped")
        assert LOST not in visitor.text
        visitor.presses("Start the rest")
        visitor.counts("11 of 12 done, 1 failed")


def test_a_report_runs_on_while_another_process_serves_the_same_database(
    module: Any, gate: Gate, tmp_path: Path
) -> None:
    client = Client(module.app)
    page = client.start("Green")
    gate.reached(4)
    with serve(tmp_path, *FLASK) as other, urllib.request.urlopen(other.address):
        assert client.states(page) == {"running": 4, "waiting": 8}
    gate.open()
    finish(module)
    assert client.states(page) == {"done": 11, "failed": 1}


@pytest.mark.parametrize(
    ("command", "number"),
    [
        (["flask", "--app", "stalled", "run", "--port", "0"], signal.SIGINT),
        ([*GUNICORN, "stalled:create_app()"], signal.SIGTERM),
    ],
    ids=["flask", "gunicorn"],
)
def test_a_server_that_ends_finishes_what_runs_and_drops_what_waits(
    visitor: Visitor, tmp_path: Path, command: list[str], number: signal.Signals
) -> None:
    stalled(tmp_path, 4)
    with serve(tmp_path, *command) as server:
        visitor.prices(server.address, "Green")
        visitor.counts("3 of 12 done, 4 running, 5 waiting")
        server.process.send_signal(number)
        said = server.output.read()
        assert server.process.wait(TIMEOUT) == 0
    with contextlib.closing(sqlite3.connect(tmp_path / "progress.sqlite")) as database:
        found = Counter(database.execute("SELECT state FROM item"))
    assert found == {("done",): 6, ("failed",): 1, ("stopped",): 5}
    assert said.count("priced") == 6
    visitor.reads(LOST)


def test_a_server_works_on_after_its_output_was_closed(
    visitor: Visitor, tmp_path: Path
) -> None:
    with serve(tmp_path, *FLASK) as server:
        server.output.close()
        visitor.prices(server.address, "Green")
        visitor.counts("11 of 12 done, 1 failed")


def test_gunicorn_answers_while_another_request_is_slow(tmp_path: Path) -> None:
    begun = b"""POST /sign-in HTTP/1.1\r
Host: localhost\r
Content-Type: application/x-www-form-urlencoded\r
Content-Length: 9\r
\r
"""
    with serve(tmp_path, *GUNICORN) as server:
        port = int(server.address.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)) as slow:
            slow.sendall(begun)
            with urllib.request.urlopen(server.address, timeout=TIMEOUT / 3) as answer:
                assert b"Your name" in answer.read()
