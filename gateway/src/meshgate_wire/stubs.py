"""Stubs that are made once for each channel."""

from collections.abc import Callable
from typing import Generic, TypeVar

import grpc

T = TypeVar("T")


class PerChannel(Generic[T]):
    """A stub, kept while its channel is the one to use: to make one takes as long as to send a call of it.

    Safe for threads: two that come at once may each make one.
    """

    def __init__(self, *, channel: Callable[[], grpc.Channel], make: Callable[[grpc.Channel], T]) -> None:
        self._channel, self._make = channel, make
        self._kept: tuple[grpc.Channel, T] | None = None

    def __call__(self) -> T:
        """For the channel of now."""
        channel, kept = self._channel(), self._kept
        if kept is None or kept[0] is not channel:
            kept = self._kept = (channel, self._make(channel))
        return kept[1]
