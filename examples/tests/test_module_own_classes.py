"""What odd classes of an app do in a task, in more cases than test_ctxcarry.py has."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask, Request, g, request, session
from flask.sessions import SecureCookieSession, SecureCookieSessionInterface
from helpers import in_thread

from ctxcarry import carry_context


class Streaming(Request):
    """Has a stream that cannot be set."""

    @property
    def stream(self) -> Any:
        return self.environ["wsgi.input"]


def test_a_request_may_have_a_stream_that_cannot_be_set(app: Flask) -> None:
    app.request_class = Streaming
    with app.test_request_context("/x", method="POST", data=b"body"):
        assert in_thread(carry_context(lambda: request.path)) == "/x"
        with pytest.raises(RuntimeError, match="carry_context"):
            in_thread(carry_context(lambda: request.stream.read()))
        assert request.stream.read() == b"body"


class Copied(SecureCookieSession):
    """Says how it is copied."""

    how = "as it was"

    def __copy__(self) -> Any:
        copied = Copied(self)
        copied.how = "by itself"
        return copied


def test_a_session_that_says_how_it_is_copied_is_asked(app: Flask) -> None:
    class Interface(SecureCookieSessionInterface):
        session_class = Copied

    app.session_interface = Interface()
    with app.test_request_context():
        own: Any = session
        assert in_thread(carry_context(lambda: own.how)) == "by itself"
        assert own.how == "as it was"


class Rows(list[Any]):
    """Loads its values when somebody looks at them."""

    is_loaded = False

    def __iter__(self) -> Iterator[Any]:
        self.is_loaded = True
        return super().__iter__()


def test_a_list_in_g_is_not_asked_for_its_values(app: Flask) -> None:
    with app.app_context():
        g.rows = Rows([1])
        carry_context(int)
        assert not g.rows.is_loaded


def test_no_more_than_a_hundred_values_in_g_are_looked_at(app: Flask) -> None:
    looked_at: set[int] = set()

    def look(value: object) -> Any:
        looked_at.add(id(value))
        return cls

    cls: Any = type("Watched", (), {"__class__": property(look)})

    def count_looks(value: object) -> int:
        with app.app_context():
            g.value = value
            looked_at.clear()
            carry_context(int)
            return len(looked_at)

    assert count_looks({number: cls() for number in range(100)}) == 100
    assert count_looks({number: cls() for number in range(100_000)}) == 100
    assert count_looks([[cls() for _ in range(70)] for _ in range(70)]) == 30


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
        in_thread(carry_context(lambda: g.pop("lock")))
        assert found == [False]
