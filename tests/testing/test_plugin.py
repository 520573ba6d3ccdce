"""The pytest plugin, in runs of pytest of its own."""

from __future__ import annotations

import subprocess
import sys

import anyio
import httpx
import pytest
import trio  # noqa: F401  # see everything_imported

import resilmesh
from resilmesh.testing import ScriptedTransport

#: The runs in this process have meshes that the check of this one must not look at.
pytestmark = pytest.mark.mesh_leaks("off")

BEGINNING = '''
import asyncio, threading
from contextlib import closing
import httpx, pytest, resilmesh
from resilmesh.testing import ScriptedTransport, Reply

POLICY = """
apiVersion: resilmesh/v1
services:
- name: inventory
  hosts: [inventory.test]
  concurrency: {maxRequests: 1, maxPending: 5, maxPendingWait: null}
  circuitBreaker: {consecutiveFailures: 1, waitDurationInOpenState: 5s, permittedNumberOfCallsInHalfOpenState: 1}
  routes:
  - {name: read, match: [{method: GET}]}
"""

def client_of(mesh):
    return httpx.Client(transport=resilmesh.http.Transport(mesh, inner=ScriptedTransport(Reply(200, content=b"body"))), trust_env=False)

def open_stream(mesh):
    client = client_of(mesh)
    return client.send(client.build_request("GET", "http://inventory.test/"), stream=True)
'''


class Run:
    """One run of pytest over one file of tests."""

    def __init__(self, pytester: pytest.Pytester) -> None:
        self._pytester = pytester

    def __call__(self, tests: str, *words: str, ini: str = "") -> pytest.RunResult:
        self._pytester.makepyfile(BEGINNING + tests)
        self._pytester.makeini(f"[pytest]\n{ini}\n")
        plugin = () if _is_installed() else ("-p", "resilmesh.testing.plugin")
        start = self._pytester.runpytest_subprocess if "-n" in words else self._pytester.runpytest_inprocess
        return start(*plugin, "-p", "no:cacheprovider", "-p", "no:hypothesispytest", *words)  # which it would import anew each time


def _is_installed() -> bool:
    from importlib.metadata import entry_points

    return "resilmesh" in {each.name for each in entry_points(group="pytest11")}


@pytest.fixture(scope="module", autouse=True)
def everything_imported() -> None:
    """A run in this process forgets what it has imported, and extension modules take being imported twice amiss."""
    mesh = resilmesh.Mesh.from_text("apiVersion: resilmesh/v1\nservices: [{name: svc, hosts: [svc.test]}]")
    service = ScriptedTransport(200)
    with httpx.Client(transport=resilmesh.http.Transport(mesh, inner=service), trust_env=False) as client:
        client.get("http://svc.test/")

    async def nothing() -> None:
        async with httpx.AsyncClient(transport=resilmesh.http.AsyncTransport(mesh, inner=service), trust_env=False) as client:
            await client.get("http://svc.test/")

    anyio.run(nothing, backend="asyncio")
    anyio.run(nothing, backend="trio")


@pytest.fixture
def run(pytester: pytest.Pytester) -> Run:
    return Run(pytester)


def test_the_fixtures_make_meshes_on_one_clock(run: Run, pytester: pytest.Pytester) -> None:
    pytester.path.joinpath("policy.yaml").write_text("apiVersion: resilmesh/v1\nservices: [{name: ledger, timeout: 1s}]\n")
    result = run('''
def test_all_kinds(make_mesh, mesh_clock):
    text, file = make_mesh(POLICY), make_mesh("policy.yaml", seed=5)
    model = make_mesh(file.table.policy, mode="OBSERVE")
    assert text.clock is file.clock is model.clock is mesh_clock
    assert model.snapshot()["mode"] == "OBSERVE"
    assert make_mesh('{"apiVersion": "resilmesh/v1", "services": [{"name": "a", "timeout": "1s"}]}')
    with pytest.raises(resilmesh.PolicyError):
        make_mesh("nowhere.yaml")
''')
    result.assert_outcomes(passed=1)


def test_what_is_left_in_flight_fails_the_test_and_says_how_to_end_it(run: Run) -> None:
    result = run('''
def test_response_kept(make_mesh):
    global kept
    kept = open_stream(make_mesh(POLICY))

def test_response_forgotten():
    open_stream(resilmesh.Mesh.from_text(POLICY))

def test_loop_forgotten():
    next(iter(resilmesh.Mesh.from_text(POLICY).attempts("inventory")))

def test_thread(make_mesh):
    mesh, begun = make_mesh(POLICY), threading.Event()
    @mesh.guard("inventory")
    def work():
        begun.set()
        threading.Event().wait()
    for _ in range(2):
        threading.Thread(target=work, daemon=True).start()
    begun.wait()
    while not mesh.snapshot()["services"]["inventory"]["concurrency"]["*"]["pending"]:
        pass

def test_probe(make_mesh, mesh_clock):
    global probe
    mesh = make_mesh(POLICY)
    with pytest.raises(ZeroDivisionError):
        mesh.guard("inventory")(lambda: 1 / 0)()
    mesh_clock.advance(6)
    probe = iter(mesh.attempts("inventory"))
    next(probe)

def test_injection(make_mesh):
    global injection
    injection = make_mesh(POLICY).inject("inventory", route="read", status=503)
    injection.__enter__()
''')
    result.assert_outcomes(passed=6, errors=6)
    result.stdout.fnmatch_lines([
        "*ERROR at teardown of test_response_kept*",
        "this test has left something in flight:",
        "  inventory/read: calls that have not ended: 1. Read or close the response; await or cancel the task; join the thread",
        "  inventory: slots of the concurrency limit that are held, by calls that have not ended: 1",
        'If that is meant: @pytest.mark.mesh_leaks("off")',
        "*ERROR at teardown of test_response_forgotten*",
        "  inventory/read: calls that have not ended: 1*",
        "*ERROR at teardown of test_loop_forgotten*",
        "  inventory: responses, or loops of attempts, that were forgotten before their end: 1*",
        "*ERROR at teardown of test_thread*",
        "  inventory: calls that have not ended: 2*",
        "  inventory: calls that wait in the queue of the concurrency limit: 1*",
        "*ERROR at teardown of test_probe*",
        "  inventory: probes of the half-open circuit that are out, *: 1",
        "*ERROR at teardown of test_injection*",
        "  inventory/read: injections that are active: 1. Leave the block*",
    ])


def test_what_ends_is_not_reported(run: Run) -> None:
    result = run('''
@pytest.fixture
def stream():
    response = open_stream(resilmesh.Mesh.from_text(POLICY))
    yield response
    response.close()

def test_a_fixture_ends_it(stream):
    assert stream.status_code == 200

def test_read(make_mesh):
    assert client_of(make_mesh(POLICY)).get("http://inventory.test/").content == b"body"

def test_a_thread_that_is_about_to_end(make_mesh):
    begun = threading.Event()
    @make_mesh(POLICY).guard("inventory")
    def work():
        begun.set()
        threading.Event().wait(0.05)
    threading.Thread(target=work).start()
    begun.wait()

def test_injected(make_mesh):
    with make_mesh(POLICY).inject("inventory", status=503):
        pass
''')
    result.assert_outcomes(passed=4)


def test_a_test_that_failed_is_not_reported_twice(run: Run) -> None:
    result = run('''
def test_fails(make_mesh):
    response = open_stream(make_mesh(POLICY))
    assert response.status_code == 500
''')
    result.assert_outcomes(failed=1)


SHARED = '''
mesh = resilmesh.Mesh.from_text(POLICY)
kept = []

@pytest.fixture(scope="session")
def busy():
    busy = resilmesh.Mesh.from_text(POLICY)
    with closing(open_stream(busy)):
        yield busy

@pytest.fixture(scope="module")
def idle():
    return resilmesh.Mesh.from_text(POLICY)

def test_of_the_session(busy):
    assert busy.snapshot()["inFlight"] == 1

def test_of_the_module(idle):
    kept.append(open_stream(idle))

def test_of_the_file():
    kept.append(open_stream(mesh))

def test_afterwards(busy, idle):
    pass
'''


def test_meshes_of_wider_scopes_are_left_alone(run: Run) -> None:
    run(SHARED).assert_outcomes(passed=4)


def test_all_reports_them_where_they_were_idle(run: Run) -> None:
    result = run(SHARED, ini="mesh_leaks = all")
    result.assert_outcomes(passed=4, errors=2)
    result.stdout.fnmatch_lines(["*ERROR at teardown of test_of_the_module*", "*ERROR at teardown of test_of_the_file*"])


def test_switched_off_by_ini_and_by_marker(run: Run) -> None:
    tests = '''
kept = []

def test_one(make_mesh):
    kept.append(open_stream(make_mesh(POLICY)))

@pytest.mark.mesh_leaks("off")
def test_other(make_mesh):
    kept.append(open_stream(make_mesh(POLICY)))
'''
    run(tests).assert_outcomes(passed=2, errors=1)
    run(tests, ini="mesh_leaks = off").assert_outcomes(passed=2)
    run(tests.replace('"off"', '"auto"'), ini="mesh_leaks = off").assert_outcomes(passed=2, errors=1)


def test_a_wrong_word_is_said(run: Run) -> None:
    result = run("def test_nothing(): pass", ini="mesh_leaks = yes")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*mesh_leaks: the ini option says 'yes'; it must be one of auto, all, off*"])


def test_in_unittest_and_in_async_tests(run: Run) -> None:
    result = run('''
import unittest

class Case(unittest.TestCase):
    def setUp(self):
        self.mesh = resilmesh.Mesh.from_text(POLICY)

    def test_leaks(self):
        self.response = open_stream(self.mesh)

    def test_ends(self):
        with closing(open_stream(self.mesh)):
            pass

class Ends(unittest.IsolatedAsyncioTestCase):
    async def test_ends(self):
        mesh = resilmesh.Mesh.from_text(POLICY)
        @mesh.guard("inventory")
        async def work():
            await asyncio.sleep(0)
        await asyncio.gather(work(), work())

@pytest.fixture
def anyio_backend():
    return "trio"

@pytest.mark.anyio
async def test_anyio(make_mesh):
    global client, response
    inner = ScriptedTransport(Reply(200, content=b"body"))
    client = httpx.AsyncClient(transport=resilmesh.http.AsyncTransport(make_mesh(POLICY), inner=inner), trust_env=False)
    response = await client.send(client.build_request("GET", "http://inventory.test/"), stream=True)
''')
    result.assert_outcomes(passed=4, errors=2)
    result.stdout.fnmatch_lines(["*ERROR at teardown of Case.test_leaks*", "*ERROR at teardown of test_anyio*"])


def test_on_the_workers_of_xdist(run: Run) -> None:
    result = run('''
kept = []

@pytest.mark.parametrize("number", range(8))
def test_each(make_mesh, number):
    if number % 2:
        kept.append(open_stream(make_mesh(POLICY)))
''', "-n", "2")
    result.assert_outcomes(passed=8, errors=4)


def test_a_mesh_lives_no_longer_for_being_watched(run: Run) -> None:
    result = run('''
def test_gone():
    import gc, weakref
    mesh = resilmesh.Mesh.from_text(POLICY)
    gone = weakref.ref(mesh)
    del mesh
    gc.collect()
    assert gone() is None
''')
    result.assert_outcomes(passed=1)


def test_a_program_without_a_mesh_pays_next_to_nothing() -> None:
    program = "import pytest, resilmesh.testing.plugin, sys; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & {"httpx", "httpx2", "trio", "anyio", "asyncio", "pydantic", "wrapt", "yaml"}


def test_the_kit_itself_imports_neither_clients_nor_pytest() -> None:
    program = "from resilmesh.testing import *; import sys; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & {"httpx", "httpx2", "trio", "anyio", "asyncio", "pydantic", "pytest", "_pytest"}
