"""Classes that an app has in place of Flask's, or of plain ones, work in a task."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask, Request, g, request, session
from flask.sessions import SecureCookieSession, SessionInterface
from helpers import in_thread

from ctxcarry import carry_context


def test_a_request_context_may_take_keywords_only(app: Flask) -> None:
    base: Any = type(app.test_request_context())

    class Context(base):  # type: ignore[misc]
        def __init__(self, app: Flask, *environ: Any, **given: Any) -> None:
            assert len(environ) < 2
            base.__init__(self, app, *environ, **given)

    class Shop(Flask):
        def request_context(self, environ: Any) -> Any:
            made: Any = super().request_context(environ)
            made.__class__ = Context
            return made

    shop = Shop("shop")
    with shop.test_request_context("/x"):
        assert in_thread(carry_context(lambda: request.path)) == "/x"


class Streaming(Request):
    """Has a stream that cannot be set."""

    @property
    def stream(self) -> Any:
        return self.environ["wsgi.input"]


def test_a_request_may_have_a_stream_that_cannot_be_set(app: Flask) -> None:
    app.request_class = Streaming
    with app.test_request_context("/x", method="POST", data=b"body"):
        path, read = (
            carry_context(lambda: request.path),
            carry_context(lambda: request.stream.read()),
        )
        assert in_thread(path) == "/x"
        with pytest.raises(RuntimeError, match="carry_context"):
            in_thread(read)
        assert request.stream.read() == b"body"


class Unpicklable(Request):
    """Answers any attribute, and refuses to be pickled."""

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)

    def __reduce__(self) -> Any:
        raise TypeError("A request is not pickled.")


def test_a_request_that_refuses_to_be_pickled_is_copied(app: Flask) -> None:
    app.request_class = Unpicklable
    with app.test_request_context("/x"):
        assert in_thread(carry_context(lambda: request.path)) == "/x"


class WithCopy(SecureCookieSession):
    how = "as it was"

    def __copy__(self) -> Any:
        copied = WithCopy(self)
        copied.how = "by itself"
        return copied


class WithState(SecureCookieSession):
    how = "as it was"

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, how="by itself")


@pytest.mark.parametrize("cls", [WithCopy, WithState])
def test_a_session_that_says_how_it_is_copied_is_asked(app: Flask, cls: Any) -> None:
    class Interface(Sessions):
        def open_session(self, app: Flask, request: Request) -> Any:
            return cls({"user": "ada"})

    app.session_interface = Interface()
    with app.test_request_context():
        own: Any = session
        seen = in_thread(carry_context(lambda: (session["user"], own.how)))
        assert seen == ("ada", "by itself")
        assert own.how == "as it was"


def test_a_connection_that_names_another_class_stays_with_the_view(app: Flask) -> None:
    names: dict[str, Any] = {"close": print, "commit": print}
    names["__class__"] = property(lambda _: object)
    with app.app_context():
        g.db = type("Hidden", (), names)()
        assert in_thread(carry_context(lambda: "db" in g)) is False


class Linked(dict[str, Any]):
    outer: Any


class LinkedSession(SecureCookieSession):
    inner: Linked


def test_a_session_may_be_reached_from_its_own_attributes(app: Flask) -> None:
    class Interface(Sessions):
        def open_session(self, app: Flask, request: Request) -> Any:
            opened = LinkedSession()
            opened.inner = Linked()
            opened.inner.outer = opened
            return opened

    def work() -> bool:
        own: Any = session
        own["user"] = "task's"
        return bool(own.inner.outer == {"user": "task's"})

    app.session_interface = Interface()
    with app.test_request_context():
        assert in_thread(carry_context(work))
        assert "user" not in session


class Rows(list[Any]):
    """Loads its values when somebody looks at them."""

    def __iter__(self) -> Iterator[Any]:
        raise AssertionError("The values were loaded.")


def test_a_list_in_g_is_not_asked_for_its_values(app: Flask) -> None:
    with app.app_context():
        g.rows = rows = Rows([1])
        assert in_thread(carry_context(lambda: g.rows)) is rows


def test_no_more_than_a_hundred_values_of_a_dict_in_g_are_looked_at(app: Flask) -> None:
    looks: list[object] = []

    def look(value: object) -> Any:
        looks.append(value)
        return cls

    cls: Any = type("Counted", (), {"__class__": property(look)})

    def count_looks(values: int) -> int:
        with app.app_context():
            g.prices = {number: cls() for number in range(values)}
            looks.clear()
            carry_context(int)
            return len(looks)

    assert 0 < count_looks(100) == count_looks(100_000)


class Cache(dict[str, Any]):
    """Needs its client, which no copy knows."""

    def __new__(cls, client: object) -> Any:
        return super().__new__(cls)

    def __init__(self, client: object) -> None:
        super().__init__()
        self.client = client


class CachedSession(SecureCookieSession):
    cache: Cache


class Sessions(SessionInterface):
    def open_session(self, app: Flask, request: Request) -> CachedSession:
        opened = CachedSession({"user": "ada"})
        opened.cache = Cache(self)
        return opened

    def save_session(self, app: Flask, session: Any, response: Any) -> None:
        """Keep nothing."""


def test_a_dict_of_a_session_that_cannot_be_copied_is_shared(app: Flask) -> None:
    app.session_interface = Sessions()
    with app.test_request_context():
        own: Any = session
        cache = own.cache
        seen = in_thread(carry_context(lambda: (session["user"], own.cache)))
    assert seen[0] == "ada"
    assert seen[1] is cache


def test_a_default_of_g_that_the_task_has_removed_is_not_put_back(app: Flask) -> None:
    base: Any = app.app_ctx_globals_class
    found: list[bool] = []

    class Globals(base):  # type: ignore[misc]
        def __init__(self) -> None:
            self.lock = threading.Lock()

    @app.teardown_appcontext
    def look(_: BaseException | None) -> None:
        found.append("lock" in g)

    app.app_ctx_globals_class = Globals
    with app.test_request_context():
        carried = carry_context(lambda: g.pop("lock"))
        in_thread(carried)
        assert found == [False]


def test_a_form_with_an_empty_boundary_was_not_parsed(app: Flask) -> None:
    def view() -> str:
        assert not request.form
        error = in_thread(carry_context(read))
        return f"{error}, then {request.get_data().decode()}"

    def read() -> str:
        try:
            return request.get_data().decode()
        except RuntimeError:
            return "refused"

    app.add_url_rule("/", "view", view, methods=["POST"])
    kind = 'multipart/form-data; boundary=""'
    response = app.test_client().post("/", data=b"body", content_type=kind)
    assert response.data.startswith(b"refused")
