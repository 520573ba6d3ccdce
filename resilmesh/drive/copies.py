"""Sends the copies of calls that ``mirror`` asks for, beside those calls. Who made the call waits for none and sees no answer.

A blocking client's copies are sent by a few daemon threads, which end when there is nothing to do; an asynchronous
client's by tasks of its own event loop. What waits or flies at once is bounded for each client: beyond that a copy is
dropped and counted (``mirrorsDropped``: busy).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Coroutine
from queue import Empty, SimpleQueue
from typing import Any, Final

from resilmesh.drive.context import DEADLINE
from resilmesh.engine.plan import INFINITY

#: Copies of one client that may wait or fly at once.
MOST_COPIES: Final = 128
#: Threads that send a blocking client's copies, and the seconds that one waits for more work.
_MOST_THREADS: Final = 4
_IDLE_SECONDS: Final = 1.0


class ThreadCopies:
    """Sends copies on threads."""

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._jobs: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._threads: set[threading.Thread] = set()
        self._pending = 0
        self._closed = False
        self._process = os.getpid()

    def send(self, job: Callable[[], object]) -> bool:
        """Have ``job`` run soon, by somebody else; False when there is too much to do already."""
        if self._process != os.getpid():
            self._begin()  # the threads are the parent's
        with self._lock:
            if self._closed or self._pending >= MOST_COPIES or not self._has_threads():
                return False
            self._pending += 1
            self._jobs.put(job)
        return True

    def _has_threads(self) -> bool:
        """Under the lock: begin a thread for one more copy, up to the most; whether there is any."""
        if len(self._threads) < min(self._pending + 1, _MOST_THREADS):
            thread = threading.Thread(target=self._work, name="resilmesh-mirror", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # the system has no more, or the interpreter is shutting down
                return bool(self._threads)
            self._threads.add(thread)
        return True

    def _work(self) -> None:
        while True:
            try:
                job = self._jobs.get(timeout=_IDLE_SECONDS)
            except Empty:
                with self._lock:
                    if self._jobs.empty():
                        self._threads.discard(threading.current_thread())
                        return
                continue
            if job is None:
                with self._lock:
                    self._threads.discard(threading.current_thread())
                return
            try:
                job()
            finally:
                with self._lock:
                    self._pending -= 1

    def close(self) -> None:
        """Forget what waits; what flies ends by itself."""
        if self._process != os.getpid():
            self._begin()  # the lock may be one that a thread of the parent holds
        with self._lock:
            self._closed = True
            while not self._jobs.empty():
                self._jobs.get()
            for _ in self._threads:
                self._jobs.put(None)


class TaskCopies:
    """Sends copies as tasks of the running event loop."""

    def __init__(self) -> None:
        #: What ends each copy that flies.
        self._flying: dict[object, Callable[[], object]] = {}

    def send(self, job: Callable[[], Coroutine[Any, Any, object]]) -> bool:
        """Have ``job`` run soon; False when there is too much to do already."""
        if len(self._flying) >= MOST_COPIES:
            return False
        from asyncio import get_running_loop  # which blocking programs do without

        from resilmesh.drive.runtime import in_trio

        if in_trio():
            import trio

            scope = trio.CancelScope()
            self._flying[scope] = scope.cancel
            trio.lowlevel.spawn_system_task(self._in_trio, scope, job, name="resilmesh-mirror")
        else:
            task = get_running_loop().create_task(self._alone(job), name="resilmesh-mirror")
            self._flying[task] = task.cancel
            task.add_done_callback(self._landed)
        return True

    async def _alone(self, job: Callable[[], Coroutine[Any, Any, object]]) -> None:
        DEADLINE.set(INFINITY)  # the caller's time is not the copy's
        await job()

    async def _in_trio(self, scope: Any, job: Callable[[], Coroutine[Any, Any, object]]) -> None:
        try:
            with scope:
                await self._alone(job)
        finally:
            self._landed(scope)

    def _landed(self, key: object) -> None:
        self._flying.pop(key, None)

    def close(self) -> None:
        """End every copy that flies."""
        for key, end in list(self._flying.items()):
            try:
                end()
            except RuntimeError:  # its event loop is closed: it will never land
                self._landed(key)
