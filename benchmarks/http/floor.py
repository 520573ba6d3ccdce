"""The least that a policy in a transport can cost: a breaker, a concurrency limit and retries around httpx's own, by hand.

Not a library: no deadline over the body, no endpoints, nothing configurable.
"""

from __future__ import annotations

import time

import httpx

LIMIT, FAILURES, TRIES = 64, 20, 3


class Floor(httpx.BaseTransport):
    """Around a blocking transport."""

    def __init__(self) -> None:
        self.inner = httpx.HTTPTransport()
        self.flying = self.failed = 0
        self.opened = 0.0

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        if self.flying >= LIMIT or (self.failed >= FAILURES and time.monotonic() < self.opened + 5):
            raise httpx.TransportError("rejected")
        self.flying += 1
        try:
            for number in range(1, TRIES + 1):
                try:
                    response = self.inner.handle_request(request)
                except httpx.TransportError:
                    self.failed, self.opened = self.failed + 1, time.monotonic()
                    if number == TRIES:
                        raise
                else:
                    if response.status_code < 500 or number == TRIES:
                        self.failed = 0
                        return response
                    response.close()
            raise AssertionError("the last try returns or raises")
        finally:
            self.flying -= 1

    def close(self) -> None:
        self.inner.close()


class AsyncFloor(httpx.AsyncBaseTransport):
    """Around an asynchronous transport."""

    def __init__(self) -> None:
        self.inner = httpx.AsyncHTTPTransport()
        self.flying = self.failed = 0
        self.opened = 0.0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if self.flying >= LIMIT or (self.failed >= FAILURES and time.monotonic() < self.opened + 5):
            raise httpx.TransportError("rejected")
        self.flying += 1
        try:
            for number in range(1, TRIES + 1):
                try:
                    response = await self.inner.handle_async_request(request)
                except httpx.TransportError:
                    self.failed, self.opened = self.failed + 1, time.monotonic()
                    if number == TRIES:
                        raise
                else:
                    if response.status_code < 500 or number == TRIES:
                        self.failed = 0
                        return response
                    await response.aclose()
            raise AssertionError("the last try returns or raises")
        finally:
            self.flying -= 1

    async def aclose(self) -> None:
        await self.inner.aclose()
