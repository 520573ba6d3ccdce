"""What is fuzzed. The first byte of an input names its target, so that one process and one corpus serve all."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tests.fuzz import matching, policies, wire, words

TARGETS: dict[bytes, Callable[[bytes], None]] = {
    b"p": policies.text,
    b"t": policies.tree,
    b"m": matching.request,
    b"a": words.answer,
    b"d": words.duration,
    b"r": words.regex,
    b"1": wire.http1,
    b"2": wire.http2,
}


def run(data: bytes) -> int:
    """One input; raises what is a finding. -1: no target, so not worth keeping."""
    target = TARGETS.get(data[:1])
    if target is None:
        return -1
    target(data[1:])
    return 0


_ANSWERS = (
    b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", b"HTTP/1.1 503 No\r\nretry-after: 1\r\ncontent-length: 0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nx-trailer: a\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n",
    b"HTTP/1.0 200 OK\r\n\r\nuntil the end", b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\n\0\1",
    b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 4\r\n\r\nnope",
)
_FRAMES = (
    bytes.fromhex("000000040000000000"),  # SETTINGS
    bytes.fromhex("000000040100000000"),  # its acknowledgement
    bytes.fromhex("0000010104000000018800000200010000000001") + b"ok",  # HEADERS :status 200, DATA that ends the stream
    bytes.fromhex("000004030000000001 00000007"),  # RST_STREAM, REFUSED_STREAM
    bytes.fromhex("000008070000000000 00000000 00000000"),  # GOAWAY
    bytes.fromhex("000004080000000000 00000001"),  # WINDOW_UPDATE
    bytes.fromhex("000008060000000000 0001020304050607"),  # PING
)


def seeds() -> Iterator[bytes]:
    """Inputs to begin with: every policy of the testdata, and an answer of every kind."""
    for each in policies.seed_texts():
        yield b"p" + each
    for each in (b"250ms", b"1m30s", b"1.5h", b"0s", b"365d", b"5", b"-1s", b"9999999999999999999d", b"1e3s"):
        yield b"d" + each
    for each in (b"\x06/v[0-9]/v1", b"\x03a{9}aaaaaaaaa", b"\x04(?i)AA", b"\x02[^a", b"\x0a(((((a)*)*)"):
        yield b"r" + each
    for value in (b"120", b"Fri, 31 Dec 1999 23:59:59 GMT", b"Mon, 01 Jan 2035 00:00:00 -0000", b"-1", b"1, 2", b"1.5"):
        yield b"a\x67\x01\x00" + bytes([len(value)]) + value
    yield b"a\x45\x01\x02\x0a1700000060"
    for each in _ANSWERS:
        yield b"1\0\0\xc7" + each
        yield b"1\1\1\0" + each
    for each in _FRAMES:
        yield b"2\0\0\xc7" + _FRAMES[0] + each
    yield b"2\0\0\xc7" + b"".join(_FRAMES)
    for number in range(40):
        yield b"t" + bytes((number * step) % 256 for step in range(1, 40))
        yield b"m" + bytes((number * step * step + step) % 256 for step in range(1, 120))
