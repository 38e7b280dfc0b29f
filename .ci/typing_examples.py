"""What type checkers must say of carry_context. Checked, and never run."""

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, TypeVar, assert_type

from ctxcarry import carry_context

T = TypeVar("T")


def plain(item: str, count: int = 1, *, strict: bool) -> list[str]:
    return [item] * count if strict else []


async def coroutine(item: str) -> int:
    return len(item)


def generic(value: T) -> list[T]:
    return [value]


class Shop:
    def method(self, item: str) -> bytes:
        return item.encode()

    async def __call__(self, item: str) -> float:
        return len(item)


@carry_context
def decorated(item: str) -> int:
    return len(item)


# Parameters and results come through unchanged.
assert_type(decorated("tea"), int)
assert_type(carry_context(plain)("tea", 2, strict=True), list[str])
assert_type(carry_context(Shop)(), Shop)
assert_type(carry_context(Shop().method)(item="tea"), bytes)
assert_type(carry_context(partial(plain, "tea"))(strict=True), list[str])
assert_type(carry_context(generic)("tea"), list[str])
assert_type(carry_context(generic)(1), list[int])

# Coroutine functions stay coroutine functions.
returned: Callable[[str], Coroutine[Any, Any, int]] = carry_context(coroutine)
called: Callable[[str], Coroutine[Any, Any, float]] = carry_context(Shop())


async def main() -> None:
    assert_type(await carry_context(coroutine)("tea"), int)
    carried = carry_context(coroutine)
    assert_type(await asyncio.gather(carried("tea"), carried("milk")), tuple[int, int])


# What would fail is an error: each of these comments is needed.
carry_context(plain)("tea")  # type: ignore[call-arg]
carry_context(plain)("tea", "2", strict=True)  # type: ignore[arg-type]
carry_context(plain)("tea", 2, True)  # type: ignore[call-arg]
carry_context(plain)("tea", strict=True, lenient=True)  # type: ignore[call-arg]
carry_context(Shop().method)(1)  # type: ignore[arg-type]
print(carry_context(coroutine)())  # type: ignore[call-arg]
carry_context(coroutine("tea"))  # type: ignore[arg-type]
carry_context(plain("tea", strict=True))  # type: ignore[arg-type]
carry_context(3)  # type: ignore[arg-type]
carry_context()  # type: ignore[call-arg]
carry_context(func=plain)  # type: ignore[call-arg]
wrong: Callable[[int], int] = carry_context(coroutine)  # type: ignore[arg-type]
