"""A stream of responses that is no call: what an interceptor, or something that instruments grpc, makes of one by a generator.

Of such a stream only its messages and its end are known. It begins when it is first read, and it cannot be cancelled while
somebody reads: a time-out of an attempt strikes when the reading ends, a deadline in time, as it is grpc's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import grpc


class BareStream(grpc.RpcError, grpc.Call):
    """An iterator over messages as a call, which is the error that it ended in, as grpc's own is."""

    def __init__(self, messages: Any) -> None:
        super().__init__()
        self._messages: Iterator[Any] = iter(messages)
        #: How it ended, as an error of grpc's; of OK there is none.
        self._error: Any = None
        self._code: grpc.StatusCode | None = None
        self._callbacks: list[Callable[[], object]] = []

    def __next__(self) -> Any:
        if self._code is not None:
            raise StopIteration if self._error is None else self._error
        try:
            return next(self._messages)
        except StopIteration:
            self._code = grpc.StatusCode.OK
            raise
        except grpc.RpcError as error:
            self._error = error
            self._code = error.code()
            raise

    def cancel(self) -> bool:
        """End it, unless somebody reads: a generator cannot be closed while it runs."""
        if self._code is not None:
            return False
        try:
            getattr(self._messages, "close", bool)()
        except ValueError:
            return False
        self._code = grpc.StatusCode.CANCELLED
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()
        return True

    def add_callback(self, callback: Callable[[], object]) -> bool:
        """Have it called when the stream is cancelled. Who reads it to its end knows that it is over."""
        if self._code is not None:
            return False
        self._callbacks.append(callback)
        return True

    def is_active(self) -> bool:
        return self._code is None

    def code(self) -> grpc.StatusCode | None:  # type: ignore[override]  # None of a stream that goes on
        return self._code

    def time_remaining(self) -> None:  # type: ignore[override]  # nobody knows
        return None

    def details(self) -> str:
        return "" if self._error is None else self._error.details() or ""

    def debug_error_string(self) -> str:
        return self.details()

    def initial_metadata(self) -> Any:
        return () if self._error is None else self._error.initial_metadata() or ()

    def trailing_metadata(self) -> Any:
        return () if self._error is None else self._error.trailing_metadata() or ()
