"""A thread that has something done again and again, for as long as there is somebody to do it."""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable


class Ticker:
    """Calls ``tick``, a bound method, every ``interval`` seconds once it is started; ``None``: never.

    It holds the method weakly, with what it is bound to, and its thread, which has the name ``thread``, is a daemon: it keeps neither the
    process nor that alive. What the method raises goes to ``log``, as a failure of ``task``, and the next tick comes all the same.
    """

    def __init__(self, tick: Callable[[], object], interval: float | None, *, thread: str, task: str, log: logging.Logger) -> None:
        self._tick = weakref.WeakMethod(tick)
        self._interval = interval
        self._thread = thread
        self._task = task
        self._log = log
        self._stop = threading.Event()

    @property
    def stopped(self) -> bool:
        """Whether ``stop`` was called."""
        return self._stop.is_set()

    def start(self) -> None:
        """Begin to tick, once."""
        if self._interval is not None:
            arguments = (self._tick, self._stop, self._interval, self._task, self._log)
            threading.Thread(target=_run, args=arguments, name=self._thread, daemon=True).start()

    def stop(self) -> None:
        """No further tick. One that has begun goes on."""
        self._stop.set()

    def after_fork(self) -> None:
        """In a child: the thread stayed with the parent, so another one begins."""
        if not self.stopped:
            self._stop = threading.Event()
            self.start()


def _run(
    get: weakref.WeakMethod[Callable[[], object]], stop: threading.Event, interval: float, task: str, log: logging.Logger,
) -> None:
    while not stop.wait(interval):
        tick = get()
        if tick is None:
            return
        try:
            tick()
        except Exception:
            log.exception("%s failed; trying again", task)
        finally:
            del tick  # or this thread would keep its object alive while it waits
