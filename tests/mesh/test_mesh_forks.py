"""A forked child goes on with a mesh of its own: nothing hangs, nothing is in flight, and it polls.

Each case is a program of its own, so that it is a process with exactly these threads.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.drive.guarding import policy

ROOT = Path(__file__).parents[2]
BLOCKS = {
    "timeout": "60s", "concurrency": "{maxRequests: 4, maxPending: 2, maxPendingWait: 60s}",
    "circuitBreaker": "{failureRateThreshold: 50, slidingWindow: {type: TIME_BASED, size: 10s}}",
    "retries": "{maxRetries: 1, retryOn: [5xx], idempotent: true}", "retryBudget": "{percent: 20}",
    "endpoints": '[{address: "10.0.0.1:80"}]', "outlierDetection": "{}",
}
PREAMBLE = """
import os, sys, threading, time, warnings
warnings.filterwarnings("ignore", ".*multi-threaded.*", DeprecationWarning)  # forking beside threads is what this is about
from resilmesh import Mesh
from tests.drive.guarding import idle, policy

def plan_timeout(mesh):
    return mesh.table.named("svc", None)[1].timeout

def eventually(question):
    until = time.monotonic() + 10
    while not question():
        assert time.monotonic() < until, question
        time.sleep(0.005)

def wait_for(child):
    until = time.monotonic() + 20
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert status == 0, status
            return
        if time.monotonic() > until:
            os.kill(child, 9)
            raise SystemExit("the child hangs")
        time.sleep(0.005)

def in_child(work):
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException:
            import traceback
            traceback.print_exc()
        finally:
            os._exit(status)
    return child
"""


def run(program: str, path: Path) -> None:
    path.write_text(policy(**BLOCKS))
    script = path.with_name("program.py")
    script.write_text(PREAMBLE + textwrap.dedent(program))
    done = subprocess.run(
        [sys.executable, str(script), str(path)], cwd=ROOT, env={"PYTHONPATH": str(ROOT), "PATH": ""}, capture_output=True, text=True,
        timeout=60, check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_child_of_a_busy_process_works_and_polls(tmp_path: Path) -> None:
    run("""
        path = sys.argv[1]
        mesh = Mesh.from_file(path, reload_interval=0.005)
        guarded = mesh.guard("svc")(lambda work=lambda: None: work())
        ended, entered = threading.Event(), threading.Semaphore(0)

        def hold():
            entered.release()
            ended.wait(30)

        holders = [threading.Thread(target=guarded, args=(hold,)) for _ in range(4)]
        for thread in holders:
            thread.start()
        for _ in holders:
            entered.acquire()
        waiter = threading.Thread(target=guarded)
        waiter.start()
        eventually(lambda: mesh.snapshot()["services"]["svc"]["concurrency"]["*"]["pending"] == 1)

        def child():
            assert idle(mesh), mesh.snapshot()
            for _ in range(10):
                guarded()
            assert idle(mesh)
            with open(path, "w") as file:
                file.write(policy(timeout="7s"))
            eventually(lambda: plan_timeout(mesh) == 7.0)
            mesh.close()

        wait_for(in_child(child))
        eventually(lambda: plan_timeout(mesh) == 7.0)
        ended.set()
        for thread in [*holders, waiter]:
            thread.join(10)
            assert not thread.is_alive()
        assert idle(mesh), mesh.snapshot()
    """, tmp_path / "policy.yaml")


def test_a_fork_within_a_call_ends_it_in_both_processes(tmp_path: Path) -> None:
    run("""
        mesh = Mesh.from_file(sys.argv[1], reload_interval=None)
        children = []

        def fork_within(fail):
            child = os.fork()
            children.append(child)
            if fail:
                raise LookupError
            return child

        guarded = mesh.guard("svc", idempotent=False)(fork_within)
        for fail in (False, True):
            try:
                result = guarded(fail)
                assert not fail
            except LookupError:
                assert fail
            if children[-1] == 0:
                assert idle(mesh), mesh.snapshot()
                mesh.guard("svc")(lambda: 1)()
                assert idle(mesh)
                os._exit(0)
            wait_for(children[-1])
            assert idle(mesh), mesh.snapshot()

        for attempt in mesh.attempts("svc"):
            with attempt:
                child = os.fork()
        if child == 0:
            assert idle(mesh)
            os._exit(0)
        wait_for(child)
        assert idle(mesh)
    """, tmp_path / "policy.yaml")


def test_forks_at_random_moments_never_hang(tmp_path: Path) -> None:
    run("""
        mesh = Mesh.from_file(sys.argv[1], reload_interval=0.001)
        guarded = mesh.guard("svc", idempotent=True)(lambda n: n if n % 5 else 1 / n)
        ended = threading.Event()

        def hammer():
            n = 0
            while not ended.is_set():
                n += 1
                try:
                    guarded(n % 100)
                except Exception:
                    pass

        threads = [threading.Thread(target=hammer) for _ in range(3)]
        for thread in threads:
            thread.start()

        def child():
            for n in range(1, 5):
                try:
                    guarded(n)
                except Exception:
                    pass
            mesh.apply_text(policy(timeout="1s"))
            guarded(1)
            assert idle(mesh), mesh.snapshot()

        for _ in range(25):
            wait_for(in_child(child))
        ended.set()
        for thread in threads:
            thread.join(10)
        assert idle(mesh), mesh.snapshot()
    """, tmp_path / "policy.yaml")


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_multiprocessing_in_each_of_its_ways(tmp_path: Path, method: str) -> None:
    run(f"""
        import multiprocessing

        def work(path, seen):
            mesh = MESH if {method!r} == "fork" else Mesh.from_file(path, reload_interval=0.01)
            seen.put((mesh.guard("svc")(lambda: 41)() + 1, idle(mesh)))

        if __name__ == "__main__":
            MESH = Mesh.from_file(sys.argv[1], reload_interval=0.01)
            context = multiprocessing.get_context({method!r})
            seen = context.SimpleQueue()
            process = context.Process(target=work, args=(sys.argv[1], seen))
            process.start()
            process.join(30)
            assert process.exitcode == 0
            assert seen.get() == (42, True)
    """, tmp_path / "policy.yaml")


def test_children_do_not_draw_what_their_parent_draws(tmp_path: Path) -> None:
    run("""
        def draws(mesh):
            return [mesh._rng.random() for _ in range(4)]

        for seed, same in ((None, False), (5, True)):
            mesh = Mesh.from_file(sys.argv[1], reload_interval=None, seed=seed)
            reading, writing = os.pipe()
            wait_for(in_child(lambda: os.write(writing, repr(draws(mesh)).encode())))
            assert (os.read(reading, 1000).decode() == repr(draws(mesh))) is same
    """, tmp_path / "policy.yaml")
