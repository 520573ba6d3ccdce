"""The least that each guard can cost in Python: one frame, no lock, no counters, nothing shared, nothing configurable.

Not a library: it is what the others are measured against. Each function below is written out by hand for its case, as
nobody would maintain it. Every one takes any arguments, because a decorator must.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable
from typing import Any

Function = Callable[..., Any]

MANY = 10_000_000
LIMIT = 64
MINIMUM = 20
RETRIES = 2
SPAN = 1.0
SECONDS = 5.0


class Refused(Exception):
    """What the floor raises; carries what a caller needs to know."""

    def __init__(self, service: str, retry_after: float) -> None:
        self.service, self.retry_after = service, retry_after
        super().__init__(service)


# ------------------------------------------------------------------------------------------------- sync


def breaker(function: Function) -> Function:
    """A failure rate over buckets of time."""
    opened, edge, good, bad = False, 0.0, 0, 0
    buckets: deque[tuple[int, int]] = deque([(0, 0)] * 10, 10)

    def guarded(*args: Any, **kwargs: Any) -> Any:
        nonlocal edge, good, bad, opened
        if opened:
            raise Refused("service", 1.0)
        try:
            result = function(*args, **kwargs)
        except Exception:
            bad += 1
            opened = good + bad >= MINIMUM and bad >= good
            raise
        now = time.monotonic()
        if now >= edge:
            edge = now + SPAN
            buckets.append((good, bad))
        good += 1
        return result

    return guarded


def consecutive(function: Function) -> Function:
    """Failures in a row."""
    opened, bad = False, 0

    def guarded(*args: Any, **kwargs: Any) -> Any:
        nonlocal bad, opened
        if opened:
            raise Refused("service", 1.0)
        try:
            result = function(*args, **kwargs)
        except Exception:
            bad += 1
            opened = bad >= MINIMUM
            raise
        bad = 0
        return result

    return guarded


def rate(function: Function) -> Function:
    """A token bucket kept as the time at which it would be full."""
    full, step, depth = 0.0, 1 / MANY, 1.0

    def guarded(*args: Any, **kwargs: Any) -> Any:
        nonlocal full
        now = time.monotonic()
        if full <= now:
            full = now + step
        elif full - now <= depth:
            full += step
        else:
            raise Refused("service", full - now - depth)
        return function(*args, **kwargs)

    return guarded


def concurrency(function: Function) -> Function:
    """Calls in flight."""
    flying = 0

    def guarded(*args: Any, **kwargs: Any) -> Any:
        nonlocal flying
        if flying >= LIMIT:
            raise Refused("service", 0.0)
        flying += 1
        try:
            return function(*args, **kwargs)
        finally:
            flying -= 1

    return guarded


def retry(function: Function) -> Function:
    """Two retries with jittered backoff."""

    def guarded(*args: Any, **kwargs: Any) -> Any:
        number = 0
        while True:
            try:
                return function(*args, **kwargs)
            except Exception:
                number += 1
                if number > RETRIES:
                    raise
                time.sleep(random.random() * 0.025 * 2**number)

    return guarded


def stack(function: Function) -> Function:
    """All four in one frame."""
    opened, edge, good, bad, flying = False, 0.0, 0, 0, 0
    full, step, depth = 0.0, 1 / MANY, 1.0
    buckets: deque[tuple[int, int]] = deque([(0, 0)] * 10, 10)

    def guarded(*args: Any, **kwargs: Any) -> Any:
        nonlocal edge, good, bad, opened, flying, full
        now = time.monotonic()
        if full <= now:
            full = now + step
        elif full - now <= depth:
            full += step
        else:
            raise Refused("service", full - now - depth)
        if flying >= LIMIT:
            raise Refused("service", 0.0)
        flying += 1
        number = 0
        try:
            while True:
                if opened:
                    raise Refused("service", 1.0)
                try:
                    result = function(*args, **kwargs)
                except Exception:
                    bad += 1
                    opened = good + bad >= MINIMUM and bad >= good
                    number += 1
                    if number > RETRIES:
                        raise
                    time.sleep(random.random() * 0.025 * 2**number)
                else:
                    now = time.monotonic()
                    if now >= edge:
                        edge = now + SPAN
                        buckets.append((good, bad))
                    good += 1
                    return result
        finally:
            flying -= 1

    return guarded


# ------------------------------------------------------------------------------------------------ async


def breaker_async(function: Function) -> Function:
    """A failure rate over buckets of time."""
    opened, edge, good, bad = False, 0.0, 0, 0
    buckets: deque[tuple[int, int]] = deque([(0, 0)] * 10, 10)

    async def guarded(*args: Any, **kwargs: Any) -> Any:
        nonlocal edge, good, bad, opened
        if opened:
            raise Refused("service", 1.0)
        try:
            result = await function(*args, **kwargs)
        except Exception:
            bad += 1
            opened = good + bad >= MINIMUM and bad >= good
            raise
        now = time.monotonic()
        if now >= edge:
            edge = now + SPAN
            buckets.append((good, bad))
        good += 1
        return result

    return guarded


def consecutive_async(function: Function) -> Function:
    """Failures in a row."""
    opened, bad = False, 0

    async def guarded(*args: Any, **kwargs: Any) -> Any:
        nonlocal bad, opened
        if opened:
            raise Refused("service", 1.0)
        try:
            result = await function(*args, **kwargs)
        except Exception:
            bad += 1
            opened = bad >= MINIMUM
            raise
        bad = 0
        return result

    return guarded


def rate_async(function: Function) -> Function:
    """A token bucket kept as the time at which it would be full."""
    full, step, depth = 0.0, 1 / MANY, 1.0

    async def guarded(*args: Any, **kwargs: Any) -> Any:
        nonlocal full
        now = time.monotonic()
        if full <= now:
            full = now + step
        elif full - now <= depth:
            full += step
        else:
            raise Refused("service", full - now - depth)
        return await function(*args, **kwargs)

    return guarded


def concurrency_async(function: Function) -> Function:
    """Calls in flight."""
    flying = 0

    async def guarded(*args: Any, **kwargs: Any) -> Any:
        nonlocal flying
        if flying >= LIMIT:
            raise Refused("service", 0.0)
        flying += 1
        try:
            return await function(*args, **kwargs)
        finally:
            flying -= 1

    return guarded


def retry_async(function: Function) -> Function:
    """Two retries with jittered backoff."""

    async def guarded(*args: Any, **kwargs: Any) -> Any:
        number = 0
        while True:
            try:
                return await function(*args, **kwargs)
            except Exception:
                number += 1
                if number > RETRIES:
                    raise
                await asyncio.sleep(random.random() * 0.025 * 2**number)

    return guarded


class Deadlines:
    """One timer for all calls of an event loop that have the same limit: the deque is in order of expiry."""

    def __init__(self) -> None:
        self.waiting: deque[list[Any]] = deque()
        self.armed = False

    def arm(self, loop: asyncio.AbstractEventLoop) -> None:
        self.armed = True
        loop.call_at(self.waiting[0][0], self.expire, loop)

    def expire(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        while self.waiting and (self.waiting[0][1] is None or self.waiting[0][0] <= now):
            _, task = entry = self.waiting.popleft()
            if task is not None:
                entry[1] = entry
                task.cancel()
        self.armed = False
        if self.waiting:
            self.arm(loop)


def deadline_async(function: Function) -> Function:
    """A total limit of time."""
    deadlines = Deadlines()
    waiting = deadlines.waiting

    async def guarded(*args: Any, **kwargs: Any) -> Any:
        entry = [time.monotonic() + SECONDS, asyncio.current_task()]
        waiting.append(entry)
        if not deadlines.armed:
            deadlines.arm(asyncio.get_running_loop())
        try:
            return await function(*args, **kwargs)
        except asyncio.CancelledError:
            if entry[1] is entry:
                raise TimeoutError from None
            raise
        finally:
            entry[1] = None
            if waiting and waiting[-1] is entry:
                waiting.pop()

    return guarded


def stack_async(function: Function) -> Function:
    """Retry, breaker, rate and concurrency in one frame."""
    opened, edge, good, bad, flying = False, 0.0, 0, 0, 0
    full, step, depth = 0.0, 1 / MANY, 1.0
    buckets: deque[tuple[int, int]] = deque([(0, 0)] * 10, 10)

    async def guarded(*args: Any, **kwargs: Any) -> Any:
        nonlocal edge, good, bad, opened, flying, full
        now = time.monotonic()
        if full <= now:
            full = now + step
        elif full - now <= depth:
            full += step
        else:
            raise Refused("service", full - now - depth)
        if flying >= LIMIT:
            raise Refused("service", 0.0)
        flying += 1
        number = 0
        try:
            while True:
                if opened:
                    raise Refused("service", 1.0)
                try:
                    result = await function(*args, **kwargs)
                except Exception:
                    bad += 1
                    opened = good + bad >= MINIMUM and bad >= good
                    number += 1
                    if number > RETRIES:
                        raise
                    await asyncio.sleep(random.random() * 0.025 * 2**number)
                else:
                    now = time.monotonic()
                    if now >= edge:
                        edge = now + SPAN
                        buckets.append((good, bad))
                    good += 1
                    return result
        finally:
            flying -= 1

    return guarded


def stack_deadline_async(function: Function) -> Function:
    """The stack and a total limit of time, two frames."""
    return deadline_async(stack_async(function))
