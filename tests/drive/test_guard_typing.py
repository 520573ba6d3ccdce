"""Guarding a function does not change its type: what mypy says of a program that is only read."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROGRAM = '''
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator, Iterator
from typing import Any, assert_type

import resilmesh
import tenacity

mesh = resilmesh.Mesh.from_text("")

@mesh.guard("svc")
def plain(number: int, *, flag: bool = False) -> list[str]:
    return [str(number)]

@mesh.guard("svc", failures=(KeyError, ValueError), ignore=LookupError, idempotent=True, route="read")
async def awaited(name: str) -> bytes:
    return name.encode()

@resilmesh.guard("svc", failures=lambda outcome: outcome is None)
def global_one() -> float:
    return 1.0

@mesh.guard("svc", stop=tenacity.stop_after_attempt(3) | tenacity.stop_after_delay(10), wait=tenacity.wait_exponential_jitter(),
            retry=tenacity.retry_if_exception_type(OSError), fallback=lambda error: [])
def stream(count: int) -> Generator[int, str, bytes]:
    yield count
    return b""

@mesh.guard("svc", wait=lambda state: state.attempt_number)
async def feed(count: int) -> AsyncIterator[int]:
    yield count

async def kept(error: object) -> bytes:
    return b""

@mesh.guard("svc", fallback=kept)
async def fetched() -> bytes:
    return b""

class Owner:
    @mesh.guard("svc")
    def method(self, number: int) -> str:
        return str(number)

    @mesh.guard("svc")
    async def later(self) -> int:
        return 1

    @classmethod
    @mesh.guard("svc")
    def made(cls) -> "Owner":
        return cls()

    @staticmethod
    @mesh.guard("svc")
    def static(value: bytes) -> bytes:
        return value

assert_type(plain(1, flag=True), list[str])
assert_type(global_one(), float)
assert_type(stream(1), Generator[int, str, bytes])
assert_type(feed(1), AsyncIterator[int])
assert_type(mesh.call("svc", plain, 1, flag=True), list[str])
assert_type(mesh.call("svc", stream, count=1), Generator[int, str, bytes])
assert_type(resilmesh.__version__, str)
assert_type(Owner().method(3), str)
assert_type(Owner.made(), Owner)
assert_type(Owner.static(b""), bytes)

async def main() -> None:
    assert_type(await awaited("a"), bytes)
    assert_type(await fetched(), bytes)
    assert_type(await mesh.call("svc", awaited, "a"), bytes)
    assert_type(await Owner().later(), int)
    async for attempt in mesh.attempts("svc"):
        async with attempt:
            assert_type(attempt.number, int)
    with resilmesh.deadline(1.5) as until:
        assert_type(until, float)

for attempt in resilmesh.attempts("svc"):
    with attempt:
        assert_type(attempt.error, BaseException | None)

reveal_type(plain)
reveal_type(awaited)
reveal_type(mesh.snapshot())
plain("one")
plain(1, flags=True)
mesh.guard("svc", failures=3)
mesh.guard("svc", before_sleep=print)
mesh.call("svc", plain, "one")
mesh.attempts("svc", fallback=print)
resilmesh.Mesh.from_text("", moed="OFF")
'''
SAID = [
    'note: Revealed type is "def (number: int, *, flag: bool =) -> list[str]"',
    'note: Revealed type is "def (name: str) -> Coroutine[Any, Any, bytes]"',
    'note: Revealed type is "dict[str, Any]"',
    'error: Argument 1 to "plain" has incompatible type "str"; expected "int"  [arg-type]',
    'error: Unexpected keyword argument "flags" for "plain"; did you mean "flag"?  [call-arg]',
    'error: Argument "failures" to "guard" of "Mesh" has incompatible type "int"; expected',
    'error: Unexpected keyword argument "before_sleep" for "guard" of "Mesh"  [call-arg]',
    'error: Argument 3 to "call" of "Mesh" has incompatible type "str"; expected "int"  [arg-type]',
    'error: Unexpected keyword argument "fallback" for "attempts" of "Mesh"  [call-arg]',
    'error: Unexpected keyword argument "moed" for "from_text" of "Mesh"  [call-arg]',
]


def test_mypy_sees_the_function_through_the_guard(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file", "", "--cache-dir", str(tmp_path), str(program)],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=300,
    )
    said = [line.split(": ", 1)[1] for line in done.stdout.splitlines() if line.startswith(str(program))]
    own = [each for each in said if "def plain" not in each and " defined in " not in each]
    simple = [each.replace("builtins.", "").replace("typing.", "") for each in own]
    assert len(simple) == len(SAID), done.stdout
    for each, expected in zip(simple, SAID, strict=True):
        assert each.startswith(expected), done.stdout
