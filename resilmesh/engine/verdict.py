"""What an attempt turned out to be: the one value that everything else consumes.

A driver classifies outside of any lock, by one table per protocol, into an ``Answer``. The circuit
breaker, outlier detection, the budget and the retry decision all read that answer and nothing else:

    verdict    examples                                         circuit breaker   outlier detection
    SUCCESS    2xx-4xx but 429; OK, NOT_FOUND                   success           success
    FAILURE    5xx, reset, time-outs, UNAVAILABLE               failure           failure
    UNSENT     connect refused, REFUSED_STREAM                  failure           failure
    THROTTLED  429, RESOURCE_EXHAUSTED                          fails a probe     success
    IGNORED    caller cancelled, local rejection, pool full     permit returned   not counted

``words`` are the retry words of Envoy that apply to the attempt, as a bit mask: ``retryOn`` is another
mask, and an attempt may be retried where the two meet (or where its status is listed as a number).
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Collection, Sequence


class Verdict(enum.Enum):
    """See the table at the top of this file."""

    SUCCESS = "SUCCESS"
    FAILURE = "FAILURE"
    UNSENT = "UNSENT"
    THROTTLED = "THROTTLED"
    IGNORED = "IGNORED"


#: Envoy's retry words, a bit each.
WORDS: dict[str, int] = {
    word: 1 << bit
    for bit, word in enumerate((
        "5xx", "gateway-error", "reset", "reset-before-request", "connect-failure", "refused-stream", "retriable-4xx",
        "envoy-ratelimited", "cancelled", "deadline-exceeded", "internal", "resource-exhausted", "unavailable",
    ))
}


#: No word of Envoy: the program itself asks for the attempt to be repeated. A success with a word is looked at again.
ASKED_FOR: int = 1 << len(WORDS)


def mask(*words: str) -> int:
    """The bit mask of some retry words."""
    bits = 0
    for word in words:
        bits |= WORDS[word]
    return bits


def of_status(status: int) -> tuple[Verdict, int]:
    """What an HTTP status is: its verdict and the retry words that apply (ENVOY.md 2a)."""
    if status == 429:
        return Verdict.THROTTLED, 0
    if status in (502, 503, 504):
        return Verdict.FAILURE, mask("5xx", "gateway-error")
    if 500 <= status < 600:  # beyond, Envoy sees nothing wrong
        return Verdict.FAILURE, mask("5xx")
    return Verdict.SUCCESS, mask("retriable-4xx") if status == 409 else 0


#: A gRPC status as HTTP, by which Envoy judges it (its grpcToHttpStatus); the number is the index.
GRPC_AS_HTTP: tuple[int, ...] = (200, 499, 500, 400, 504, 404, 409, 403, 429, 400, 409, 400, 501, 500, 503, 500, 401)
#: The retry words that a gRPC status has, which are its own alone (ENVOY.md 2l).
_GRPC_WORDS: dict[int, int] = {
    1: mask("cancelled"), 4: mask("deadline-exceeded"), 8: mask("resource-exhausted"), 13: mask("internal"), 14: mask("unavailable"),
}


def of_grpc(code: int, of_http: Callable[[int], tuple[Verdict, int]] = of_status) -> tuple[Verdict, int, int]:
    """What a gRPC status is that a service gave: its verdict, its retry words, and the HTTP status that it counts as.

    ``of_http``: the policy's view of HTTP statuses (``classify``).
    """
    status = GRPC_AS_HTTP[code] if 0 <= code < len(GRPC_AS_HTTP) else 500
    return of_http(status)[0], _GRPC_WORDS.get(code, 0), status


class Classes:
    """The policy's classify block: which statuses and response headers are failures or successes, against the common table."""

    __slots__ = ("_failures", "_headers", "_successes")

    def __init__(
        self, failures: Collection[int], successes: Collection[int], headers: Sequence[tuple[str, Callable[[str | None], bool]]],
    ) -> None:
        self._failures = frozenset(failures)
        self._successes = frozenset(successes)
        #: Name of a response header, and whether a value of it (``None``: absent) makes the answer a failure.
        self._headers = tuple(headers)

    def of_status(self, status: int) -> tuple[Verdict, int]:
        """What a status is, and its retry words. One that counts as failure gets no word by that, one that counts as success has none."""
        verdict, words = of_status(status)
        if status in self._failures:
            return Verdict.FAILURE, words
        if status in self._successes:
            return Verdict.SUCCESS, 0
        return verdict, words

    def fails(self, values: Callable[[str], Sequence[str]]) -> bool:
        """Whether a response header makes the answer a failure; ``values`` gives those that were sent under a name."""
        return any(any(map(wanted, values(name) or (None,))) for name, wanted in self._headers)

    @property
    def reads_headers(self) -> bool:
        return bool(self._headers)


class Answer:
    """The outcome of one attempt, classified. Immutable by convention; the common ones are shared."""

    __slots__ = (
        "again", "backoff", "complete", "cut", "grpc", "injected", "local_origin", "refused", "retry_after", "status", "timed_out",
        "verdict", "words",
    )

    def __init__(
        self,
        verdict: Verdict,
        words: int = 0,
        status: int = 0,
        *,
        retry_after: float | None = None,
        complete: bool = True,
        timed_out: bool = False,
        injected: bool = False,
        local_origin: bool = False,
        again: bool | None = None,
        backoff: float | None = None,
        grpc: str | None = None,
        refused: bool = False,
        cut: str = "",
    ) -> None:
        self.verdict = verdict
        #: Retry words that apply.
        self.words = words
        #: HTTP status, 0 where there is none; of a gRPC status the one that it counts as.
        self.status = status
        #: Seconds that the service asks the caller to wait.
        self.retry_after = retry_after
        #: Nothing more comes. False: a body follows, and the driver owes ``ended`` or ``abandon``.
        self.complete = complete
        #: A limit of time ended the attempt.
        self.timed_out = timed_out
        #: A fault of the policy made it up: outlier detection does not see it.
        self.injected = injected
        #: It failed without a connection of its own: refused, unreachable, connect time-out; or the body after an answer broke.
        self.local_origin = local_origin
        #: Whether to repeat it, by the program's own strategies; None: they were not asked, and retryOn and maxRetries decide.
        self.again = again
        #: Seconds to wait before that, in place of the policy's backoff.
        self.backoff = backoff
        #: Name of the gRPC status, such as UNAVAILABLE; None: this is no gRPC.
        self.grpc = grpc
        #: The service promises not to have looked at it (HTTP/2 REFUSED_STREAM, GOAWAY), and it may be sent again at once.
        self.refused = refused
        #: What ended it after its status, or before any, other than what the rest says.
        self.cut = cut

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.__slots__ if getattr(self, name))
        return f"Answer({shown})"


#: A finished success, such as a function that returned.
OK = Answer(Verdict.SUCCESS)
#: An attempt that says nothing about the service.
NO_VERDICT = Answer(Verdict.IGNORED)
