"""Asks the program again and again, on a thread of its own, so that keys are answered while it does not answer."""

from __future__ import annotations

import threading

from resilmesh.telemetry.asking import NoDocument, ask
from resilmesh.top.figures import Figures, figures


class Reader:
    """One reading after the other, each compared with the one before."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._before: dict[str, object] | None = None

    def read(self) -> Figures:
        """Ask once. Raises ``NoDocument``."""
        document = ask(self._where, timeout=3.0)
        try:
            found = figures(document, self._before)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise NoDocument(f"{self._where} gave stats that cannot be read ({error!r}): is it another version of resilmesh?") from None
        self._before = document
        return found


class Poll:
    """The newest reading, or why there is none."""

    def __init__(self, where: str, interval: float) -> None:
        self._reader, self._interval = Reader(where), interval
        #: What was read last, and why nothing newer was: replaced together.
        self.latest: tuple[Figures | None, str | None] = (None, None)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="resilmesh-top", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.latest = self._reader.read(), None
            except NoDocument as error:
                self.latest = self.latest[0], str(error)
            self._stop.wait(self._interval)

    def close(self) -> None:
        """Ask no more."""
        self._stop.set()
