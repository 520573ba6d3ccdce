"""The connectivity of several channels as that of one: READY when one is, else the most hopeful of theirs."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import grpc

log = logging.getLogger("resilmesh")

Listener = Callable[[grpc.ChannelConnectivity], None]

#: The first that is there is what all together are.
_ORDER = (
    grpc.ChannelConnectivity.READY, grpc.ChannelConnectivity.CONNECTING, grpc.ChannelConnectivity.IDLE,
    grpc.ChannelConnectivity.TRANSIENT_FAILURE, grpc.ChannelConnectivity.SHUTDOWN,
)


def together(states: Iterable[grpc.ChannelConnectivity]) -> grpc.ChannelConnectivity:
    """What several states are together; of none: IDLE."""
    return min(states, key=_ORDER.index, default=grpc.ChannelConnectivity.IDLE)


class Connectivity:
    """Who wants to know of one channel's connectivity. Looks at the sub-channels only while somebody does."""

    def __init__(self, channels: Callable[[], list[grpc.Channel]]) -> None:
        self._channels = channels
        self._listeners: list[Listener] = []
        self._states: dict[Any, grpc.ChannelConnectivity] = {}
        self._watched: dict[Any, Listener] = {}
        self._told: grpc.ChannelConnectivity | None = None
        self._lock = threading.Lock()
        self._telling = threading.Lock()

    def subscribe(self, listener: Listener, try_to_connect: bool) -> None:
        """Tell ``listener`` what is and what comes."""
        with self._lock:
            self._listeners.append(listener)
            state = self._told
        if state is not None:
            _tell(listener, state)
        for channel in self._channels():
            with self._lock:
                watched = self._watched.get(channel)
                if watched is None:
                    self._watched[channel] = watched = partial(self._heard, channel)
                else:
                    # grpc connects when a listener asks for it as it subscribes.
                    watched = None if not try_to_connect else (lambda state: None)
            if watched is not None:
                channel.subscribe(watched, try_to_connect)

    def unsubscribe(self, listener: Listener) -> None:
        """Tell it nothing more; unknown ones are passed over, as grpc does."""
        with self._lock:
            if listener in self._listeners:
                self._listeners.remove(listener)
            watched = {} if self._listeners else self._forget()
        for channel, ours in watched.items():
            channel.unsubscribe(ours)

    def _forget(self) -> dict[Any, Listener]:
        watched, self._watched, self._states, self._told = self._watched, {}, {}, None
        return watched

    def close(self) -> None:
        """The channel is closed: everyone hears SHUTDOWN, as the last."""
        with self._lock:
            listeners, self._listeners = self._listeners, []
            watched = self._forget()
        for channel, ours in watched.items():
            channel.unsubscribe(ours)
        for listener in listeners:
            _tell(listener, grpc.ChannelConnectivity.SHUTDOWN)

    def _heard(self, channel: Any, state: grpc.ChannelConnectivity) -> None:
        with self._telling:  # so that listeners hear states in their order; nothing else takes this lock
            with self._lock:
                if channel not in self._watched:
                    return
                self._states[channel] = state
                now = together(self._states.values())
                changed, self._told = now is not self._told, now
                listeners = list(self._listeners) if changed else []
            for listener in listeners:
                _tell(listener, now)


def _tell(listener: Listener, state: grpc.ChannelConnectivity) -> None:
    try:
        listener(state)
    except Exception:
        log.exception("a listener to the connectivity of a channel failed")
