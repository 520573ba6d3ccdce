"""Other libraries, each set up for the same case as near as it allows.

Only what a library documents is used. A library is missing from a case when it has no such guard: ``breaker`` needs a failure
*rate* over a window; ``consecutive`` is the simpler breaker that most libraries have; a rate or concurrency limit must not block
a caller that it admits. A stack is retry around breaker around rate limit around concurrency limit, in the library's own way of
composing.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from typing import Any

import circuitbreaker
import crashbytes_resilience as crashbytes
import grit
import hyx.bulkhead
import hyx.circuitbreaker
import hyx.ratelimit
import hyx.retry
import hyx.timeout
import nopanic
import purgatory
import pybreaker
import pyresilience
import resilix
import stamina
import tenacity

from benchmarks.overhead.floor import LIMIT, MANY, MINIMUM, SECONDS

Function = Callable[..., Any]
Guards = dict[str, Callable[[Function], Function]]

TRIES = 3
HOUR = 3600.0

_window = functools.partial(
    pyresilience.CircuitBreakerConfig, sliding_window_size=100, failure_rate_threshold=0.5, minimum_calls=MINIMUM, recovery_timeout=HOUR
)
_retry = functools.partial(pyresilience.RetryConfig, max_attempts=TRIES, delay=0.025)
_rate = functools.partial(pyresilience.RateLimiterConfig, max_calls=MANY, period=1.0)
_bulkhead = functools.partial(pyresilience.BulkheadConfig, max_concurrent=LIMIT)
_timeout = functools.partial(pyresilience.TimeoutConfig, seconds=SECONDS, per_attempt=False)


def _nopanic(*, rejecting: bool = False) -> nopanic.CircuitBreaker:
    return nopanic.circuit_breaker(failure_threshold=0.5, min_calls=MINIMUM, window=10.0, reset_timeout=HOUR if rejecting else 30.0)


def _nopanic_stack(*outer: Any) -> nopanic.compose:
    return nopanic.compose(
        *outer, nopanic.retry(TRIES), _nopanic(), nopanic.rate_limit(MANY, max_wait=0), nopanic.bulkhead(LIMIT, max_wait=0)
    )


def _grit_stack(*outer: Any) -> Any:
    return grit.policy(*outer, grit.retry(tries=TRIES), grit.breaker(fails=MINIMUM), grit.limiter(MANY), grit.bulkhead(LIMIT))


def _crashbytes_stack(*outer: Any) -> Any:
    # Its pipeline applies from the inside out.
    return crashbytes.pipeline(
        crashbytes.bulkhead(LIMIT), crashbytes.rate_limiter(MANY), crashbytes.circuit_breaker(MINIMUM), crashbytes.retry(TRIES), *outer
    )


def _pyresilience_stack(**more: Any) -> Any:
    return pyresilience.resilient(retry=_retry(), circuit_breaker=_window(), rate_limiter=_rate(), bulkhead=_bulkhead(), **more)


def _hyx_stack(function: Function) -> Function:
    inner = hyx.bulkhead.bulkhead(LIMIT, LIMIT)(function)
    limited = hyx.ratelimit.tokenbucket(MANY, 1.0)(inner)
    return hyx.retry.retry(attempts=TRIES)(hyx.circuitbreaker.consecutive_breaker(failure_threshold=MINIMUM)(limited))


def _resilix_breaker(**more: Any) -> Any:
    return resilix.protect.circuit(failures=MINIMUM, reset_timeout=HOUR, **more)


def _resilix_stack(function: Function) -> Function:
    inner = resilix.protect.bulkhead(LIMIT, wait=False)(_resilix_breaker()(function))
    return resilix.protect.when(Exception, retry=TRIES, backoff="exponential")(inner)


def _asyncio_timeout(function: Function) -> Function:
    @functools.wraps(function)
    async def guarded(*args: Any, **kwargs: Any) -> Any:
        async with asyncio.timeout(SECONDS):
            return await function(*args, **kwargs)

    return guarded


_tenacity: Callable[..., Any] = functools.partial(
    tenacity.retry, stop=tenacity.stop_after_attempt(TRIES), wait=tenacity.wait_random_exponential(0.025, 0.25), reraise=True
)


def breaker() -> Guards:
    """A failure rate over a window."""
    return {
        "nopanic": _nopanic(),
        "pyresilience": pyresilience.resilient(circuit_breaker=_window()),
    }


def consecutive() -> Guards:
    """Failures in a row."""
    return {
        "grit": grit.breaker(fails=MINIMUM),
        "crashbytes": crashbytes.circuit_breaker(MINIMUM),
        "resilix": _resilix_breaker(),
        "circuitbreaker": circuitbreaker.circuit(failure_threshold=MINIMUM),
    }


def rate() -> Guards:
    """A token bucket."""
    return {
        "nopanic": nopanic.rate_limit(MANY, max_wait=0),
        "grit": grit.limiter(MANY),
        "crashbytes": crashbytes.rate_limiter(MANY),
        "pyresilience": pyresilience.resilient(rate_limiter=_rate()),
    }


def concurrency() -> Guards:
    """Calls in flight."""
    return {
        "nopanic": nopanic.bulkhead(LIMIT, max_wait=0),
        "grit": grit.bulkhead(LIMIT),
        "crashbytes": crashbytes.bulkhead(LIMIT),
        "resilix": resilix.protect.bulkhead(LIMIT, wait=False),
        "pyresilience": pyresilience.resilient(bulkhead=_bulkhead()),
    }


def retry() -> Guards:
    """Two retries with backoff."""
    return {
        "nopanic": nopanic.retry(TRIES),
        "grit": grit.retry(tries=TRIES),
        "crashbytes": crashbytes.retry(TRIES),
        "resilix": resilix.protect.when(Exception, retry=TRIES, backoff="exponential"),
        "pyresilience": pyresilience.resilient(retry=_retry()),
        "tenacity": _tenacity(),
        "stamina": stamina.retry(on=Exception, attempts=TRIES),
    }


def stack() -> Guards:
    """Retry, breaker, rate and concurrency."""
    return {
        "nopanic": _nopanic_stack(),
        "grit": _grit_stack(),
        "crashbytes": _crashbytes_stack(),
        "pyresilience": _pyresilience_stack(),
    }


def stack_deadline() -> Guards:
    """The stack with a total limit of time. On sync, grit uses SIGALRM (main thread only); the others start or borrow a thread."""
    return {
        "nopanic": _nopanic_stack(nopanic.timeout(SECONDS)),
        "grit": _grit_stack(grit.timeout(SECONDS)),
        "crashbytes": _crashbytes_stack(crashbytes.timeout(SECONDS)),
        "pyresilience": _pyresilience_stack(timeout=_timeout()),
    }


def rejected() -> Guards:
    """Breakers that stay open."""
    return {
        "nopanic": _nopanic(rejecting=True),
        "pyresilience": pyresilience.resilient(circuit_breaker=_window()),
        "grit": grit.breaker(fails=MINIMUM, reset_after=HOUR),
        "crashbytes": crashbytes.circuit_breaker(MINIMUM, HOUR),
        "resilix": _resilix_breaker(),
        "circuitbreaker": circuitbreaker.circuit(failure_threshold=MINIMUM, recovery_timeout=int(HOUR)),
    }


def deadline() -> Guards:
    """A total limit of time for a coroutine."""
    return {
        "asyncio.timeout": _asyncio_timeout,
        "nopanic": nopanic.timeout(SECONDS),
        "grit": grit.timeout(SECONDS),
        "crashbytes": crashbytes.timeout(SECONDS),
        "resilix": resilix.protect.timeout(SECONDS),
        "hyx": hyx.timeout.timeout(SECONDS),
        "pyresilience": pyresilience.resilient(timeout=_timeout()),
    }


def threads() -> Guards:
    """What several threads share: the stack; of resilix what it has of it. Not grit: its limiter polls with sleeps where threads meet."""
    shared = {**stack(), "resilix": _resilix_stack}
    del shared["grit"]
    return shared


_CASES = {
    "breaker": breaker, "consecutive": consecutive, "rate": rate, "concurrency": concurrency, "retry": retry, "deadline": deadline,
    "stack": stack, "stack+deadline": stack_deadline, "rejected": rejected,
}
_SYNC_ONLY: dict[str, Callable[[], Guards]] = {
    "consecutive": lambda: {
        "pybreaker": pybreaker.CircuitBreaker(fail_max=MINIMUM),
        "purgatory": purgatory.SyncCircuitBreakerFactory(default_threshold=MINIMUM)("service"),
    },
    "rejected": lambda: {"pybreaker": pybreaker.CircuitBreaker(fail_max=MINIMUM, reset_timeout=HOUR)},
}
_ASYNC_ONLY: dict[str, Callable[[], Guards]] = {
    "consecutive": lambda: {
        "hyx": hyx.circuitbreaker.consecutive_breaker(failure_threshold=MINIMUM),
        "purgatory": purgatory.AsyncCircuitBreakerFactory(default_threshold=MINIMUM)("service"),
    },
    "rate": lambda: {"hyx": hyx.ratelimit.tokenbucket(MANY, 1.0)},
    "concurrency": lambda: {"hyx": hyx.bulkhead.bulkhead(LIMIT, LIMIT)},
    "retry": lambda: {"hyx": hyx.retry.retry(attempts=TRIES)},
    "stack": lambda: {"hyx": _hyx_stack},
    "stack+deadline": lambda: {"hyx": lambda function: hyx.timeout.timeout(SECONDS)(_hyx_stack(function))},
}


def guards(case: str, mode: str) -> Guards:
    """Fresh guards of every library that has ``case`` in ``mode``: ``sync`` or ``async``."""
    only = (_ASYNC_ONLY if mode == "async" else _SYNC_ONLY).get(case, dict)
    return {**_CASES[case](), **only()}
