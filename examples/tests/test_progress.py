"""The page goes on, whatever happens to it: seen in a real browser, on real servers.

PROGRESS_PICTURES=examples/progress takes the pictures of the README.
"""

import ast
import contextlib
import importlib
import importlib.resources
import os
import re
import shlex
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
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
TIMEOUT = 30
ACME = "Acme Deli, Berlin"
LOST = "The server does not answer."
CANCEL, RESTART = "Cancel what waits", "Start again what is not done"


class Gate:
    """Holds back the work on a row until the test has let so many rows pass."""

    def __init__(self) -> None:
        self.moved = threading.Condition()
        self.passed = 0

    def open(self, count: int = 1000) -> None:
        with self.moved:
            self.passed += count
            self.moved.notify_all()

    def wait(self, at: int) -> None:
        with self.moved:
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
    module.executor.shutdown(cancel_futures=True)
    close(module, module.app)


def close(module: Any, app: Any) -> None:
    with app.app_context():
        module.db.engine.dispose()


@pytest.fixture
def server(module: Any) -> Generator[Any]:
    """The page on a real server, behind a proxy that can lose it."""
    state = SimpleNamespace(module=module, lost="", late=None)
    state.answers = threading.Event()
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


@contextlib.contextmanager
def chromium(profile: Path) -> Generator[Any]:
    options = Options()
    options.binary_location = program("chromium")
    for switch in [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--no-first-run",
        "--hide-scrollbars",
        f"--user-data-dir={profile}",
    ]:
        options.add_argument(switch)
    window: Any = Chrome(options=options, service=Service(program("chromedriver")))
    try:
        yield window
    finally:
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

    def signs_in(self, address: str, user: str = "Ada") -> None:
        self.window.get(address)
        self.window.find_element("name", "user").send_keys(f"{user}\n")
        self.reads("New report")

    def starts(self, section: str) -> None:
        option = f"option[value='{section}']"
        self.window.find_element("css selector", option).click()
        self.presses("Price them")
        self.reads(f": {section}")

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

    def reads(self, text: str) -> None:
        self.sees(lambda: text in self.text)

    @property
    def text(self) -> str:
        return str(self.window.find_element("tag name", "body").text)

    def sees(self, holds: Callable[[], Any]) -> None:
        # While the window navigates, what is read can go, in more than one way.
        wait = WebDriverWait(self.window, TIMEOUT, 0.05, [WebDriverException])
        wait.until(lambda _: holds())

    @property
    def count(self) -> str:
        return str(self.window.find_element("css selector", ".count").text)

    def counts(self, text: str) -> None:
        self.sees(lambda: self.count == text)


class Client:
    """A visitor without a browser."""

    def __init__(self, app: Any, shop: str = ACME) -> None:
        self.client = app.test_client()
        self.get = self.client.get
        self.post("/sign-in", user="Ada", shop=shop)

    def token(self) -> str:
        found = re.search('name="csrf_token" value="([^"]+)', self.get("/").text)
        assert found is not None
        return found[1]

    def post(self, path: str, headers: Any = None, **form: str) -> Any:
        form.setdefault("csrf_token", self.token())
        return self.client.post(path, data=form, headers=headers)

    def start(self, section: str, headers: Any = None) -> str:
        return str(self.post("/reports", headers, section=section).location)

    def states(self, path: str) -> Counter[str]:
        return Counter(re.findall(r'<td class="(\w+)">', self.get(path).text))


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Generator[Any]:
    with chromium(tmp_path_factory.mktemp("profile")) as window:
        yield window


@pytest.fixture
def visitor(browser: Any) -> Generator[Visitor]:
    """Somebody new, in a new tab."""
    browser.switch_to.new_window("tab")
    browser.execute_cdp_cmd("Network.clearBrowserCookies", {})
    yield Visitor(browser)
    browser.close()
    browser.switch_to.window(browser.window_handles[0])


def picture(visitor: Visitor, name: str) -> None:
    if folder := os.environ.get("PROGRESS_PICTURES"):
        visitor.window.save_screenshot(str(Path(folder, name)))


def test_the_bar_moves_and_the_rows_come(
    server: Any, gate: Gate, visitor: Visitor
) -> None:
    visitor.looks_at(1280, 760)
    visitor.signs_in(server.address)
    visitor.starts("Green")
    visitor.counts("0 of 72 done, 4 running, 68 waiting")
    gate.open(5)
    visitor.counts("4 of 72 done, 1 failed, 4 running, 63 waiting")
    bar = visitor.window.find_element("tag name", "progress")
    assert (bar.get_property("value"), bar.get_property("max")) == (5, 72)
    rows = visitor.window.find_elements("css selector", "tbody tr")
    assert len(rows) == 72
    assert re.fullmatch(
        r"1 Sencha Uji, 50 g done \d+\.\d\d €, \d+\.\d\d €/kg", rows[0].text
    )
    assert rows[71].text == "72 Jasmine Pearls, 1 kg waiting"
    picture(visitor, "1280.png")


def test_the_end_in_a_narrow_dark_window(
    server: Any, gate: Gate, visitor: Visitor
) -> None:
    visitor.looks_at(360, 800, dark=True)
    visitor.signs_in(server.address)
    visitor.starts("Matcha")
    gate.open()
    visitor.counts("6 of 8 done, 2 failed")
    # Each price is on one line: a range has a rectangle for each line.
    lines = """return [...document.querySelectorAll("td.done + td")].map(cell => {
        const range = document.createRange();
        range.selectNodeContents(cell);
        return range.getClientRects().length;
    })"""
    assert visitor.run(lines) == [1] * 6
    picture(visitor, "360-dark.png")


def test_an_item_that_fails_says_why_and_is_logged_with_its_request_id_and_traceback(
    module: Any, gate: Gate
) -> None:
    gate.open()
    merge = structlog.contextvars.merge_contextvars
    client = Client(module.app)
    with structlog.testing.capture_logs(processors=[merge]) as logged:
        page = client.start("Matcha", {"Request-Id": "r17"})
        module.executor.shutdown()
    text = client.get(page).text
    assert "“on request” is not a price." in text
    assert "A mistake of ours." in text
    assert "DivisionByZero" not in text
    assert {entry["request_id"] for entry in logged} == {"r17"}
    errors = [entry["exc_info"] for entry in logged if entry["event"] == "failed"]
    names = sorted(type(error).__name__ for error in errors)
    assert names == ["DivisionByZero", "ValueError"]
    assert all(error.__traceback__ for error in errors)
    users = [entry["user"] for entry in logged if entry["event"] == "priced"]
    assert users == ["Ada"] * 6


def test_what_the_pool_drops_is_interrupted(module: Any, gate: Gate) -> None:
    client = Client(module.app)
    page = client.start("White")
    module.executor.shutdown(wait=False, cancel_futures=True)
    gate.open()
    module.executor.shutdown()
    states = client.states(page)
    assert states.keys() <= {"done", "interrupted"}
    assert states["interrupted"] >= 20


def test_the_tasks_have_the_terms_of_their_shop(module: Any, gate: Gate) -> None:
    gate.open()
    started = [(shop, Client(module.app, shop)) for shop in module.SHOPS]
    pages = [(shop, client, client.start("Matcha")) for shop, client in started]
    module.executor.shutdown()
    row = next(row for row in module.ROWS if row["section"] == "Matcha")
    for shop, client, page in pages:
        price = module.Decimal(row["cost"]) * module.SHOPS[shop]
        shown = f"<td>{price:.2f} €, {1000 * price / int(row['grams']):.2f} €/kg</td>"
        assert shown in client.get(page).text


@pytest.mark.parametrize(
    ("path", "form", "code", "says"),
    [
        ("/reports", {"section": "Coffee"}, 400, "no such section"),
        ("/sign-in", {"user": "Ada", "shop": "Nobody's"}, 400, "no such shop"),
        ("/sign-in", {"user": "", "shop": ACME}, 400, "name is missing"),
        ("/sign-in", {"user": " ", "shop": ACME}, 400, "name is missing"),
        ("/reports/1", {"cancel": ""}, 404, "not found"),
        ("/reports/99999999999999999999999", {"cancel": ""}, 404, "not found"),
        ("/", {}, 405, "not allowed"),
    ],
    ids=["section", "shop", "no name", "a blank name", "id", "a huge id", "method"],
)
def test_what_cannot_be_done_is_refused_with_a_way_back(
    module: Any, path: str, form: dict[str, str], code: int, says: str
) -> None:
    answer = Client(module.app).post(path, **form)
    assert answer.status_code == code
    assert says in answer.text
    assert '<a href="/">To your reports</a>' in answer.text
    assert ("Allow" in answer.headers) == (code == 405)


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


def test_the_secret_is_the_environments_or_of_this_process_alone(
    module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert module.app.secret_key == "of the tests"
    monkeypatch.delenv("FLASK_SECRET_KEY")
    apps = [module.create_app() for _ in range(2)]
    for app in apps:
        close(module, app)
    assert len({app.secret_key for app in apps}) == 2
    assert all(len(app.secret_key) == 64 for app in apps)


@pytest.mark.parametrize(
    "how",
    [
        "offline",
        "hangs",
        "502 Bad Gateway: <h1>of a proxy</h1>",
        "500 Internal Server Error: <p id='problem'>of the app</p>",
        "200 OK: <h1>of a hotel's network</h1>",
    ],
)
def test_a_lost_server_is_said_and_tried_again_until_it_is_back(
    server: Any, gate: Gate, visitor: Visitor, how: str
) -> None:
    # The pauses are written down, and made short.
    script = """window.pauses = [];
        const wait = setTimeout;
        window.setTimeout = (done, pause, ...rest) =>
            (pauses.push(pause), wait(done, pause / 50, ...rest));
        const timeout = AbortSignal.timeout.bind(AbortSignal);
        AbortSignal.timeout = pause => timeout(pause / 10);"""
    visitor.cdp("Page.addScriptToEvaluateOnNewDocument", {"source": script})
    visitor.signs_in(server.address)
    visitor.starts("White")
    gate.open(6)
    visitor.counts("6 of 24 done, 4 running, 14 waiting")
    assert LOST not in visitor.text
    observe = """const problem = document.getElementById("problem");
        window.said = [];
        new MutationObserver(() => said.push(problem.textContent))
            .observe(problem, { childList: true });"""
    visitor.run(observe)

    def lose(lost: bool) -> None:
        if how == "offline":
            speed = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
            conditions = {"offline": lost, **speed}
            visitor.cdp("Network.enable", {})
            visitor.cdp("Network.emulateNetworkConditions", conditions)
        elif how != "hangs":
            server.lost = how if lost else ""
        elif lost:
            server.answers.clear()
        else:
            server.answers.set()

    lose(True)
    visitor.reads(LOST)
    visitor.sees(lambda: visitor.run("return pauses").count(30_000) > 1)
    growing = [pause for pause in visitor.run("return pauses") if pause > 1000]
    assert growing[:6] == [2000, 4000, 8000, 16000, 30_000, 30_000]
    gate.open(3)
    assert visitor.count == "6 of 24 done, 4 running, 14 waiting"
    lose(False)
    visitor.counts("9 of 24 done, 4 running, 11 waiting")
    said, silent = visitor.run("return said")
    assert said.startswith(LOST) and silent == ""
    visitor.sees(lambda: visitor.run("return pauses")[-1] == 1000)
    gate.open()
    visitor.counts("23 of 24 done, 1 failed")


def test_what_was_pressed_while_the_server_was_lost_is_done_later(
    server: Any, gate: Gate, visitor: Visitor
) -> None:
    visitor.signs_in(server.address)
    visitor.starts("White")
    server.lost = "502 Bad Gateway"
    visitor.presses(CANCEL)
    visitor.reads(LOST)
    server.lost = ""
    visitor.counts("0 of 24 done, 20 cancelled, 4 running")
    assert LOST not in visitor.text


def test_what_was_pressed_overtakes_an_answer_that_is_late(
    server: Any, gate: Gate, visitor: Visitor
) -> None:
    visitor.signs_in(server.address)
    visitor.starts("White")
    visitor.counts("0 of 24 done, 4 running, 20 waiting")
    server.late = late = threading.Barrier(2, timeout=TIMEOUT)
    late.wait()
    script = """window.shown = [];
        for (const at of document.querySelectorAll(".count, #problem"))
            new MutationObserver(() => shown.push(at.textContent))
                .observe(at, { childList: true });"""
    visitor.run(script)
    visitor.presses(CANCEL)
    cancelled = "0 of 24 done, 20 cancelled, 4 running"
    visitor.counts(cancelled)
    late.wait()
    gate.open(4)
    visitor.counts("4 of 24 done, 20 cancelled")
    shown = visitor.run("return shown")
    assert shown == [cancelled, "4 of 24 done, 20 cancelled"]


@pytest.mark.parametrize(
    ("page", "says"),
    [
        ("report", "Your session has ended. Sign in again to go on."),
        ("list", "Sign in to see your reports."),
    ],
)
def test_an_expired_session_is_said_with_a_link_to_the_list(
    server: Any, gate: Gate, visitor: Visitor, page: str, says: str
) -> None:
    script = """window.pending = 0;
        const wait = setTimeout;
        window.setTimeout = (done, pause, ...rest) =>
            (pending++, wait(() => (pending--, done(...rest)), pause));"""
    visitor.cdp("Page.addScriptToEvaluateOnNewDocument", {"source": script})
    visitor.signs_in(server.address)
    visitor.starts("White")
    if page == "list":
        visitor.window.get(server.address)
    gate.open(1)
    visitor.counts("1 of 24 done, 4 running, 19 waiting")
    visitor.cdp("Network.clearBrowserCookies", {})
    visitor.reads(says)
    assert visitor.run("return pending") == 0
    links = {"report": "To your reports", "list": "Your reports"}
    visitor.window.find_element("link text", links[page]).click()
    visitor.reads("Your name")


def test_to_cancel_keeps_the_focus_and_the_history(
    server: Any, gate: Gate, visitor: Visitor
) -> None:
    visitor.signs_in(server.address)
    visitor.starts("White")
    visitor.counts("0 of 24 done, 4 running, 20 waiting")
    entries = visitor.run("window.stays = true; return history.length")
    visitor.presses(CANCEL)
    visitor.counts("0 of 24 done, 20 cancelled, 4 running")
    assert visitor.focus == "cancel"
    disabled = "return document.activeElement.ariaDisabled"
    assert visitor.run(disabled) == "true"
    gate.open(4)
    visitor.counts("4 of 24 done, 20 cancelled")
    assert visitor.focus == "restart"
    assert visitor.run(disabled) is None
    assert visitor.run("return [stays, history.length]") == [True, entries]
    visitor.types(Keys.ENTER)
    visitor.counts("4 of 24 done, 4 running, 16 waiting")
    gate.open()
    visitor.counts("23 of 24 done, 1 failed")
    assert visitor.focus == "restart"
    assert visitor.run("return [stays, history.length]") == [True, entries]
    visitor.window.back()
    visitor.reads("New report")
    visitor.counts("23 of 24 done, 1 failed")


def test_only_what_differs_is_changed_and_only_quarters_are_said(
    server: Any, gate: Gate, visitor: Visitor
) -> None:
    visitor.signs_in(server.address)
    visitor.starts("White")
    gate.open(1)
    visitor.counts("1 of 24 done, 4 running, 19 waiting")
    script = """
        window.rows = [...document.querySelectorAll("tbody tr")];
        window.row = rows[0].firstElementChild;
        window.columns = () => [...document.querySelectorAll("th")].map(
            cell => cell.getBoundingClientRect().x);
        window.before = columns().join();
        getSelection().selectAllChildren(rows[0].children[1]);
        window.said = [];
        const live = document.querySelectorAll("[role], [aria-live]");
        for (const region of live) new MutationObserver(
            () => said.push(region.textContent.trim())
        ).observe(region, { childList: true, characterData: true, subtree: true });
        return getSelection().toString();"""
    selected = visitor.run(script)
    assert selected.endswith(" g")
    for answers, ended in [(2, 3), (3, 6), (3, 9), (3, 12)]:
        gate.open(answers)
        still = "1 failed, " if ended == 12 else ""
        counted = f"{ended - bool(still)} of 24 done, {still}4 running"
        visitor.counts(f"{counted}, {20 - ended} waiting")
    gate.open()
    visitor.counts("23 of 24 done, 1 failed")
    quarters = ["25 % of the report", "50 % of the report"]
    end = "The report has ended, with 23 of 24 done."
    said = [text for text in visitor.run("return said") if text != "75 % of the report"]
    assert said == [*quarters, end]
    assert visitor.run("return getSelection().toString()") == selected
    assert visitor.run("return row.isConnected && rows.every(row => row.isConnected)")
    assert visitor.run("return columns().join() === before")
    heard = visitor.window.find_elements("css selector", "[role=status]")
    assert [region.get_property("textContent").strip() for region in heard] == [end]


def test_without_a_script_the_page_refreshes_itself(
    server: Any, gate: Gate, visitor: Visitor
) -> None:
    visitor.cdp("Emulation.setScriptExecutionDisabled", {"value": True})
    visitor.signs_in(server.address)
    visitor.starts("White")
    gate.open(3)
    visitor.counts("3 of 24 done, 4 running, 17 waiting")
    visitor.presses(CANCEL)
    visitor.counts("3 of 24 done, 17 cancelled, 4 running")
    gate.open(4)
    visitor.counts("7 of 24 done, 17 cancelled")
    visitor.presses(RESTART)
    gate.open()
    visitor.counts("23 of 24 done, 1 failed")


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
    visitor.types("Wh")
    visitor.tabs_to("Price them")
    visitor.types(Keys.ENTER)
    visitor.counts("0 of 24 done, 4 running, 20 waiting")
    visitor.tabs_to("cancel")
    visitor.types(Keys.SPACE)
    visitor.counts("0 of 24 done, 20 cancelled, 4 running")
    gate.open()
    visitor.counts("4 of 24 done, 20 cancelled")
    visitor.types(Keys.SPACE)
    visitor.counts("23 of 24 done, 1 failed")
    visitor.tabs_to("Your reports")
    visitor.types(Keys.ENTER)
    visitor.reads("New report")
    visitor.tabs_to("Report 1: White")
    visitor.types(Keys.ENTER)
    visitor.reads("Start again")


def test_the_list_shows_how_far_each_report_is(
    server: Any, gate: Gate, visitor: Visitor
) -> None:
    visitor.signs_in(server.address)
    visitor.starts("Matcha")
    gate.open(8)
    visitor.counts("6 of 8 done, 2 failed")
    visitor.window.get(server.address)
    visitor.starts("White")
    visitor.window.get(server.address)

    def listed() -> Any:
        found = visitor.window.find_elements("css selector", "li")
        return [item.text.splitlines() for item in found]

    ended = ["Report 1: Matcha", "6 of 8 done, 2 failed"]
    running = "8 of 24 done, 4 running, 12 waiting"
    visitor.sees(lambda: listed() == [["Report 2: White", running], ended])
    visitor.run("document.querySelector('li a').focus()")
    # What another tab has started, the list does not have yet.
    form = "const form = document.querySelector('form');"
    visitor.run(form + "fetch(form.action, {method: 'POST', body: new FormData(form)})")
    gate.open()
    running = "23 of 24 done, 1 failed"
    visitor.sees(lambda: listed() == [["Report 2: White", running], ended])
    assert visitor.focus == "Report 2: White"


def test_two_visitors_at_once_keep_to_themselves(
    server: Any, gate: Gate, visitor: Visitor, tmp_path: Path
) -> None:
    with chromium(tmp_path / "other") as window:
        other = Visitor(window)
        visitor.signs_in(server.address, "Ada")
        other.signs_in(server.address, "Grace")
        visitor.starts("Matcha")
        other.starts("White")
        gate.open()
        visitor.counts("6 of 8 done, 2 failed")
        other.counts("23 of 24 done, 1 failed")
        foreign = visitor.window.current_url
        other.window.get(server.address)
        other.reads("Report 2: White")
        assert "Report 1" not in other.text
        other.window.get(foreign)
        other.reads("Not Found")
    stranger = Client(server.module.app, "Zoo Café, Vienna")
    assert stranger.post("/reports/1", restart="").status_code == 404
    assert stranger.post("/reports/1", cancel="").status_code == 404


@pytest.fixture(scope="session")
def axe() -> str:
    """The source of axe-core, which a package for another browser driver has."""
    folder = importlib.resources.files("axe_playwright_python")
    return folder.joinpath("axe.min.js").read_text("utf-8")


def test_each_page_and_state_is_accessible_and_fits(
    server: Any, gate: Gate, visitor: Visitor, axe: str
) -> None:
    reports: dict[str, Any] = {}

    def check(state: str) -> None:
        for dark in (False, True):
            for width in (360, 1280):
                visitor.looks_at(width, dark=dark)
                background = visitor.run(
                    "return getComputedStyle(document.body).backgroundColor"
                )
                assert (contrast(background, "rgb(255, 255, 255)") > 4.5) == dark
                reports[f"{state}, {width}, dark: {dark}"] = audit()
        visitor.looks_at(320)
        visitor.cdp("Page.setFontSizes", {"fontSizes": {"standard": 32, "fixed": 26}})
        assert visitor.run("return getComputedStyle(document.body).fontSize") == "32px"
        assert visitor.run(too_wide) == [], state
        visitor.cdp("Page.setFontSizes", {"fontSizes": {"standard": 16, "fixed": 13}})

    too_wide = """return [...document.querySelectorAll("body, body *")].filter(
        at => at.getBoundingClientRect().right > 320
    ).concat(document.documentElement.scrollWidth > 320 ? [document.body] : []).map(at => at.outerHTML)"""

    def audit() -> Any:
        assert visitor.run(too_wide.replace("320", "innerWidth")) == []
        visitor.run(axe)
        script = "const done = arguments[0]; axe.run().then(done)"
        return visitor.window.execute_async_script(script)

    visitor.window.get(server.address)
    check("signed out")
    visitor.signs_in(server.address)
    check("an empty list")
    visitor.starts("Matcha")
    check("begun")
    gate.open(3)
    visitor.counts("2 of 8 done, 1 failed, 4 running, 1 waiting")
    check("running")
    visitor.presses(CANCEL)
    visitor.counts("2 of 8 done, 1 failed, 1 cancelled, 4 running")
    check("cancelled, but for what runs")
    server.lost = "502 Bad Gateway"
    visitor.reads(LOST)
    check("lost")
    server.lost = ""
    gate.open()
    visitor.counts("5 of 8 done, 2 failed, 1 cancelled")
    check("ended")
    with server.module.app.app_context():
        server.module.mark("interrupted", server.module.Item.state == "cancelled")
    visitor.window.refresh()
    visitor.counts("5 of 8 done, 2 failed, 1 interrupted")
    check("interrupted")
    with server.module.app.app_context():
        server.module.mark("done", server.module.Item.state != "done", result="1.00 €")
    visitor.window.refresh()
    visitor.counts("8 of 8 done")
    check("done")
    visitor.window.get(server.address)
    visitor.reads("Report 1: Matcha")
    check("a list")
    visitor.window.get(f"{server.address}/reports/17")
    visitor.reads("Not Found")
    check("404")
    visitor.window.get(f"{server.address}/sign-in")
    visitor.reads("Method Not Allowed")
    check("405")
    visitor.window.back()
    visitor.window.back()
    visitor.reads("New report")
    visitor.run("document.querySelector('option').value = 'Coffee'")
    visitor.presses("Price them")
    visitor.reads("Bad Request")
    check("400")
    visitor.cdp("Network.clearBrowserCookies", {})
    visitor.window.get(f"{server.address}/reports/1")
    visitor.reads("Unauthorized")
    check("401")

    for name in ("violations", "incomplete"):
        found = {
            (state, rule["id"], node["html"], node.get("failureSummary"))
            for state, report in reports.items()
            for rule in report[name]
            for node in rule["nodes"]
        }
        assert not found
    assert len(reports) == 56
    passes = Counter(
        rule["id"] for report in reports.values() for rule in report["passes"]
    )
    assert passes["color-contrast"] == len(reports)
    print(f"axe: {len(reports)} reports, {passes.total()} rules passed, none violated")


@pytest.mark.parametrize("dark", [False, True])
def test_the_edges_of_what_can_be_filled_in_have_contrast(
    server: Any, visitor: Visitor, dark: bool
) -> None:
    visitor.looks_at(1280, dark=dark)
    script = """return [...document.querySelectorAll("input:not([type]), select")].map(
        at => [getComputedStyle(at).borderTopColor, getComputedStyle(at).backgroundColor,
        getComputedStyle(at.closest("section")).backgroundColor])"""
    visitor.window.get(server.address)
    fields = visitor.run(script)
    visitor.signs_in(server.address)
    fields += visitor.run(script)
    assert len(fields) == 3
    for edge, inside, outside in fields:
        assert contrast(edge, inside) >= 3
        assert contrast(edge, outside) >= 3


def contrast(one: str, other: str) -> float:
    """As WCAG 2 defines it."""

    def luminance(color: str) -> float:
        shares = [int(share) / 255 for share in re.findall(r"\d+", color)[:3]]
        red, green, blue = (
            share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4
            for share in shares
        )
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    dark, light = sorted([luminance(one), luminance(other)])
    return (light + 0.05) / (dark + 0.05)


# The page on servers that end, well or not


class Server:
    """A server in a process of its own, on a database that outlives it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        assert process.stdout is not None
        self.lines = process.stdout
        found = (re.search(r"http://127\.0\.0\.1:\d+", line) for line in self.lines)
        self.address = next(match[0] for match in found if match)

    def ends(self, signal: int) -> str:
        """Send it a signal, and return what it says until it has ended."""
        self.process.send_signal(signal)
        said = self.lines.read()
        self.process.wait()
        return said


@contextlib.contextmanager
def serve(folder: Path, *command: str) -> Generator[Server]:
    environ = dict(
        os.environ,
        FLASK_SECRET_KEY="of the tests",
        FLASK_SQLALCHEMY_DATABASE_URI=f"sqlite:///{folder / 'progress.sqlite'}",
        PYTHONPATH=os.pathsep.join([str(PROGRESS), str(ROOT)]),
    )
    signal.signal(signal.SIGINT, signal.default_int_handler)  # A shell may ignore it.
    with subprocess.Popen(
        [sys.executable, "-m", *command],
        cwd=ROOT,
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


def states(folder: Path) -> Counter[str]:
    with contextlib.closing(sqlite3.connect(folder / "progress.sqlite")) as database:
        return Counter(state for (state,) in database.execute("select state from item"))


def documented(module: str, program: str) -> list[str]:
    """The command that a module's docstring says."""
    docstring = ast.get_docstring(ast.parse((PROGRESS / module).read_text("utf-8")))
    found = re.search(rf"\.venv/bin/({program} .*)", docstring or "")
    assert found is not None
    return shlex.split(found[1])


STALLED = """
import itertools, threading
import app

calls, price = itertools.count(), app.price

def stalled(row):
    if next(calls) >= 3:
        threading.Event().wait(60)
    return price(row)

app.price = stalled
create_app = app.create_app
"""


def test_what_a_killed_server_was_doing_is_interrupted_and_can_be_started_again(
    visitor: Visitor, tmp_path: Path
) -> None:
    stalled = tmp_path / "stalled.py"
    stalled.write_text(STALLED)
    with serve(tmp_path, "flask", "--app", str(stalled), "run", "--port", "0") as one:
        visitor.signs_in(one.address)
        visitor.starts("White")
        visitor.counts("3 of 24 done, 4 running, 17 waiting")
        one.ends(signal.SIGKILL)
    print("killed:   ", dict(states(tmp_path)))
    assert states(tmp_path) == {"done": 3, "running": 4, "waiting": 17}
    visitor.reads(LOST)
    port = one.address.rpartition(":")[2]
    with serve(tmp_path, *documented("app.py", "flask"), "--port", port):
        visitor.counts("3 of 24 done, 21 interrupted")
        print("restarted:", dict(states(tmp_path)))
        assert LOST not in visitor.text
        visitor.presses(RESTART)
        visitor.counts("23 of 24 done, 1 failed")
        print("again:    ", dict(states(tmp_path)))


@pytest.mark.parametrize(
    ("command", "says"),
    [
        pytest.param(["flask", "routes"], "sign_in", id="flask routes"),
        pytest.param(["flask", "shell"], "Instance: ", id="flask shell"),
        pytest.param(["flask", "run", "--port", "TAKEN"], "in use", id="a failed bind"),
        pytest.param(["flask", "run", "--debug", "--port", "0"], "PIN", id="reloader"),
        pytest.param(
            ["gunicorn", "-c", "gunicorn_conf.py", "--check-config"], "", id="gunicorn"
        ),
    ],
)
def test_a_report_runs_on_while_another_process_makes_the_app(
    server: Any, gate: Gate, command: list[str], says: str
) -> None:
    client = Client(server.module.app)
    page = client.start("White")
    port = server.address.rpartition(":")[2]
    words = [port if word == "TAKEN" else word for word in command]
    with subprocess.Popen(
        [sys.executable, "-m", *words],
        cwd=PROGRESS,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # The reloader has a child, which gets no signal else.
    ) as other:
        try:
            assert other.stdout is not None
            assert any(says in line for line in other.stdout) or not says
            if "--debug" in words:
                os.killpg(other.pid, signal.SIGINT)
            other.wait(TIMEOUT)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(other.pid, signal.SIGKILL)
    assert client.states(page).keys() <= {"waiting", "running"}
    gate.open()
    server.module.executor.shutdown()
    assert client.states(page) == {"done": 23, "failed": 1}


@pytest.mark.parametrize(
    ("module", "command", "options", "end"),
    [
        ("app.py", "flask", ["--port", "0"], signal.SIGINT),
        ("gunicorn_conf.py", "gunicorn", ["--bind", "127.0.0.1:0"], signal.SIGTERM),
    ],
)
def test_a_server_that_ends_finishes_what_runs_and_interrupts_what_waits(
    visitor: Visitor,
    tmp_path: Path,
    module: str,
    command: str,
    options: list[str],
    end: signal.Signals,
) -> None:
    with serve(tmp_path, *documented(module, command), *options) as server:
        visitor.signs_in(server.address)
        visitor.starts("Black")
        visitor.sees(lambda: not visitor.count.startswith("0 of 96"))
        said = server.ends(end)
        assert server.process.returncode == 0
    left = states(tmp_path)
    assert said.count("Traceback") == left["failed"]
    assert left["interrupted"] and left["done"]
    assert not left["running"] and not left["waiting"]
    visitor.reads(LOST)
