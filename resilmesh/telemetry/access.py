"""The access log: a line for each outbound call, in Envoy's default format and with its flags, so that what reads Envoy's reads ours.

    [START_TIME] "METHOD PATH PROTOCOL" CODE FLAGS BYTES_RECEIVED BYTES_SENT DURATION UPSTREAM_SERVICE_TIME
        "X-FORWARDED-FOR" "USER-AGENT" "X-REQUEST-ID" "AUTHORITY" "UPSTREAM_HOST"

    flag   here
    UO     the circuit is open, or the concurrency limit is reached
    UH     no healthy endpoint
    UF     no connection
    UC     the connection broke before the headers
    UT     a time-out of the call or of its last attempt
    URX    the retries are used up, or the budget has refused one
    RL     the rate limit
    DI FI  a delay, an abort was injected
    DC     the caller went away

As an Envoy would have answered: 503 for a call that raised because nobody listened. The path has no query, which may hold a secret, and of
the headers nothing is told but what the format names. A guarded function has neither: its line says FUNCTION and the service's name.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, MutableMapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from resilmesh.engine.verdict import Verdict
from resilmesh.errors import CallError

if TYPE_CHECKING:
    from resilmesh.engine.call import Call, Listener
    from resilmesh.engine.events import Traces
    from resilmesh.state.stats import Exemplar, Outcome


#: Opened once more, a file that the shell has redirected to would be written from its beginning.
_STANDARD = {"/dev/stdout": 1, "/dev/stderr": 2}


class Asked(NamedTuple):
    """What an adapter knows of a call, and a line tells."""

    path: str
    protocol: str
    authority: str
    headers: Mapping[str, str]


class AccessLog:
    """Writes to a file, line by line. ``inner``: who traces the calls beside it."""

    def __init__(self, path: str | os.PathLike[str], inner: Traces | None) -> None:
        """Raises ``OSError``."""
        self.inner = inner
        standard = _STANDARD.get(os.fspath(path))
        # Whole lines, whoever else appends: workers share the file.
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._file = os.open(path, flags, 0o640) if standard is None else os.dup(standard)

    def begin(self, call: Call) -> Entry:
        """Who is told of a call that starts."""
        return Entry(self, call, None if self.inner is None else self.inner.begin(call))

    def is_instrumented(self, library: str) -> bool:
        """As who traces knows it."""
        return self.inner is not None and self.inner.is_instrumented(library)

    def passes_on(self, carrier: MutableMapping[str, str]) -> None:
        """As who traces does it."""
        if self.inner is not None:
            self.inner.passes_on(carrier)

    def write(self, line: str) -> None:
        """Append a line. What cannot be written is lost: a full disk must not break a call."""
        try:
            os.write(self._file, line.encode("utf-8", "replace") + b"\n")
        except OSError:
            return

    def close(self) -> None:
        """Write no more."""
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)


class Entry:
    """What is remembered of one call for its line."""

    __slots__ = ("_began", "_call", "_endpoint", "_flags", "_inner", "_log", "_sent", "_started", "_status", "_took")

    def __init__(self, log: AccessLog, call: Call, inner: Listener | None) -> None:
        self._log = log
        self._call = call
        self._inner = inner
        self._began = time.time()
        self._started: float | None = None
        self._sent = 0.0
        self._endpoint: str | None = None
        self._took: float | None = None
        self._status = 0
        self._flags: list[str] = []

    # ------------------------------------------------------------------------------------------- the engine

    def told(self, at: float, name: str, attempt: int, detail: dict[str, Any]) -> None:
        """Something happened to the call."""
        if self._inner is not None:
            self._inner.told(at, name, attempt, detail)
        if self._started is None:
            self._started = at
        match name:
            case "attempt_started":
                self._sent, self._took, self._endpoint = at, None, detail["endpoint"]
            case "attempt_ended":
                self._took = at - self._sent
                self._status = 200 if "grpc_status" in detail else detail["status"]
            case "fault_injected":
                self._flag("DI" if "delay" in detail else "FI")
            case "retry_refused":
                self._flag("URX" if detail["reason"] == "budget" else "")
            case "call_rejected" | "call_ended" | "call_abandoned":
                self._end(at, name, detail)

    def attempt_over(self, at: float, attempt: int, outcome: Outcome, verdict: Verdict, again: bool) -> Exemplar | None:
        """An attempt is over."""
        retries = self._call.plan.retries
        error = outcome[2]
        if not again:
            self._flag({"timeout": "UT", "not_sent": "UF", "reset": "UC", "incomplete_body": "UC"}.get(error, ""))
            if verdict is not Verdict.SUCCESS and retries is not None and 0 < retries.max_retries < attempt:
                self._flag("URX")
        return None if self._inner is None else self._inner.attempt_over(at, attempt, outcome, verdict, again)

    # ---------------------------------------------------------------------------------------- the adapters

    def sends(self, name: str, attributes: Mapping[str, Any], carrier: MutableMapping[str, str]) -> None:
        """As who traces does it."""
        if self._inner is None:
            self._log.passes_on(carrier)
        else:
            self._inner.sends(name, attributes, carrier)

    def lends(self) -> Any:
        """Likewise."""
        return None if self._inner is None else self._inner.lends()

    def runs(self) -> Any:
        """Likewise."""
        return None if self._inner is None else self._inner.runs()

    def ran(self, token: Any) -> None:
        """Likewise."""
        if self._inner is not None:
            self._inner.ran(token)

    # --------------------------------------------------------------------------------------------- the line

    def _flag(self, flag: str) -> None:
        if flag and flag not in self._flags:
            self._flags.append(flag)

    def _end(self, at: float, name: str, detail: Mapping[str, Any]) -> None:
        call = self._call
        error = call.error
        status = self._status
        if name == "call_abandoned":
            self._flag("DC")
            status = 0
        elif isinstance(error, CallError) and (name == "call_rejected" or not status):
            status, _, flag, _ = error.reply
            status = getattr(error, "status", status)
            self._flag(flag if flag != "-" else "")
        elif not status:
            status = 504 if "UT" in self._flags else 503 if detail["verdict"] != "SUCCESS" else 200
        seconds = 0.0 if self._started is None else at - self._started
        sizes = (0, 0) if call.asker is None else call.asker.sizes()
        self._log.write(line(
            self._began, call.what or "FUNCTION", asked(call), status, self._flags, sizes, seconds, self._took, self._endpoint,
        ))


def line(
    began: float, method: str, about: Asked, status: int, flags: list[str], sizes: tuple[int, int], seconds: float, took: float | None,
    endpoint: str | None,
) -> str:
    """A line of Envoy's default format. ``sizes``: bytes of the request's body and of the response's."""
    start = datetime.fromtimestamp(began, UTC)
    headers = [_quoted(about.headers.get(name)) for name in ("x-forwarded-for", "user-agent", "x-request-id")]
    return (
        f'[{start:%Y-%m-%dT%H:%M:%S}.{start.microsecond // 1000:03d}Z] "{method} {_clean(about.path)} {about.protocol}" {status} '
        f"{','.join(flags) or '-'} {sizes[0]} {sizes[1]} {round(seconds * 1000)} {'-' if took is None else round(took * 1000)} "
        f"{' '.join(headers)} {_quoted(about.authority)} {_quoted(endpoint)}"
    )


def asked(call: Call) -> Asked:
    """What a call asks for."""
    if call.asker is not None:
        return Asked(*call.asker.asked())
    return Asked(call.plan.service, "-", "-", {})


def _quoted(value: str | None) -> str:
    return '"-"' if not value else f'"{_clean(value)}"'


def _clean(value: str) -> str:
    """Nothing that would end the field, or the line."""
    return "".join(each if each.isprintable() and each not in '"\\' else f"\\x{ord(each):02x}" for each in value)
