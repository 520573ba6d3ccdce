"""The access log: Envoy's default format, its flags, and nothing that is nobody's business."""

from __future__ import annotations

import re
import threading

import httpx
import pytest

import resilmesh
from resilmesh import Mesh

#: Envoy's default format.
LINE = re.compile(
    r'^\[(?P<start>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z)\] "(?P<method>\S+) (?P<path>\S+) (?P<protocol>\S+)" '
    r'(?P<code>\d+) (?P<flags>\S+) (?P<received>\d+) (?P<sent>\d+) '
    r'(?P<duration>\d+) (?P<service_time>\d+|-) "(?P<xff>[^"]*)" "(?P<agent>[^"]*)" "(?P<id>[^"]*)" '
    r'"(?P<authority>[^"]*)" "(?P<host>[^"]*)"$'
)


def _policy(*blocks):
    lines = [f"  {block}" for block in blocks]
    return "\n".join((
        "apiVersion: resilmesh/v1", "services:", "- name: stock", "  hosts: [stock.test]",
        '  endpoints: [{address: "10.0.0.1:80"}]', *lines,
    )) + "\n"


class _Log:
    def __init__(self, path, *blocks):
        self.mesh = Mesh.from_text(_policy(*blocks), seed=1)
        self._path = path
        self.mesh.telemetry.access_log(path)

    def client(self, answer):
        return httpx.Client(transport=resilmesh.http.Transport(self.mesh, httpx.MockTransport(answer)))

    @property
    def lines(self):
        found = [LINE.match(line) for line in self._path.read_text().splitlines()]
        assert all(found), self._path.read_text()
        return found

    @property
    def flags(self):
        return [(int(line["code"]), line["flags"]) for line in self.lines]


@pytest.fixture
def log(tmp_path):
    made = []

    def make(*blocks):
        made.append(_Log(tmp_path / "access.log", *blocks))
        return made[-1]

    yield make
    for each in made:
        each.mesh.close()


def _status(status):
    return lambda request: httpx.Response(status, content=b"body")


def _raises(kind):
    def answer(request):
        raise kind("secret of the network")

    return answer


def test_a_call_is_a_line(log):
    found = log()
    with found.client(_status(200)) as client:
        client.post("http://stock.test/items?token=secret", content=b"12345", headers={
            "cookie": "secret", "authorization": "secret", "user-agent": "tests", "x-request-id": "r-1", "x-forwarded-for": "10.1.1.1",
        })
    [line] = found.lines
    told = line.groupdict()
    for measured in ("start", "sent", "duration", "service_time"):
        told.pop(measured)
    assert told == {
        "method": "POST", "path": "/items", "protocol": "HTTP/1.1", "code": "200", "flags": "-", "received": "5", "xff": "10.1.1.1",
        "agent": "tests", "id": "r-1", "authority": "stock.test", "host": "10.0.0.1:80",
    }
    assert "secret" not in line[0]


@pytest.mark.parametrize(("blocks", "answer", "calls", "expected"), [
    (["rateLimit: {requests: 1, per: 1h}"], _status(200), 2, [(200, "-"), (429, "RL")]),
    (["circuitBreaker: {consecutiveFailures: 1}"], _status(500), 2, [(500, "-"), (503, "UO")]),
    (["outlierDetection: {consecutive5xxErrors: 1, maxEjectionPercent: 100}"], _status(500), 2, [(500, "-"), (503, "UH")]),
    (["fault: {abort: {httpStatus: 418, percent: 100}}"], _status(200), 1, [(418, "FI")]),
    (["fault: {delay: {fixedDelay: 1ms, percent: 100}}"], _status(200), 1, [(200, "DI")]),
    (["retries: {maxRetries: 1, retryOn: [5xx], backoff: {base: 1ms}}"], _status(503), 1, [(503, "URX")]),
    ([], _raises(httpx.ConnectError), 1, [(503, "UF")]),
    ([], _raises(httpx.ReadError), 1, [(503, "UC")]),
    (["timeout: 30ms"], _raises(httpx.ReadTimeout), 1, None),
])
def test_flags_are_envoys(log, blocks, answer, calls, expected):
    found = log(*blocks)
    with found.client(answer) as client:
        for _ in range(calls):
            try:
                client.get("http://stock.test/items")
            except httpx.HTTPError:
                continue
    if expected is None:
        [(code, flags)] = found.flags
        assert (code, flags) in ((504, "UT"), (503, "UC"))
    else:
        assert found.flags == expected


def test_a_caller_that_goes_away(log):
    import asyncio

    found = log()

    async def program():
        async def answer(request):
            await asyncio.sleep(30)

        transport = resilmesh.http.AsyncTransport(found.mesh, httpx.MockTransport(answer))
        async with httpx.AsyncClient(transport=transport) as client:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await client.get("http://stock.test/items")

    asyncio.run(program())
    assert found.flags == [(0, "DC")]


def test_what_a_header_says_cannot_end_the_line(log):
    found = log()
    with found.client(_status(200)) as client:
        client.get("http://stock.test/items", headers={"user-agent": b'a" "b\\', "x-request-id": b"\xc3\xa9"})
    [line] = found.lines
    assert line["agent"] == "a\\x22 \\x22b\\x5c"


def test_functions_have_lines_too(log):
    found = log()
    assert found.mesh.call("stock", lambda: 1) == 1
    [line] = found.lines
    assert (line["method"], line["path"], line["code"]) == ("FUNCTION", "stock", "200")


def test_threads_write_whole_lines(log):
    found = log()
    book = found.mesh.guard("stock")(lambda: 1)
    threads = [threading.Thread(target=lambda: [book() for _ in range(100)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found.lines) == 800


def test_a_full_disk_breaks_no_call():
    mesh = Mesh.from_text(_policy())
    mesh.telemetry.access_log("/dev/full")
    assert mesh.call("stock", lambda: 1) == 1
    mesh.close()


def test_the_environment_names_it_and_a_file_that_cannot_be_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("RESILMESH_ACCESS_LOG", str(tmp_path / "calls.log"))
    with Mesh.from_text(_policy()) as mesh:
        mesh.call("stock", lambda: 1)
    assert LINE.match((tmp_path / "calls.log").read_text().strip())
    monkeypatch.setenv("RESILMESH_ACCESS_LOG", str(tmp_path))
    with pytest.raises(IsADirectoryError):
        Mesh.from_text(_policy())
