"""What a call holds of the bytes that all calls together may, and how long it may take to arrive."""

import asyncio
import contextlib
from collections.abc import MutableMapping
from typing import Any

from raftkv.http.asgi import Receive
from raftkv.http.load import Load
from raftkv.status import Code, StatusError

BODY_SECONDS = 60.0
"""How long a message may take from its first byte to its last."""


class Held:
    """The share of one call."""

    __slots__ = ("_load", "bytes")

    def __init__(self, load: Load) -> None:
        self._load = load
        self.bytes = 0

    def set(self, size: int) -> None:
        """Hold so much from now on; 0 gives all back.

        Raises:
            StatusError: RESOURCE_EXHAUSTED, that is more than there is room for.
        """
        more = size - self.bytes
        self.bytes = size
        self._load.bytes += more
        if more > 0 and self._load.bytes > self._load.max_bytes and self._load.bytes > size:
            self._load.refused_calls += 1
            raise too_much()


def admit(load: Load, size: int) -> None:
    """See whether there is room for an answer; of any size, while little else is in flight.

    Raises:
        StatusError: RESOURCE_EXHAUSTED
    """
    if load.bytes + size > load.max_bytes and load.bytes > load.max_bytes >> 3:
        load.refused_calls += 1
        raise too_much()


def too_much() -> StatusError:
    """What a call ends with that there is no room for."""
    return StatusError(Code.RESOURCE_EXHAUSTED, "raftkv: too many bytes of requests and answers are in flight")


def too_many() -> StatusError:
    """What a call ends with when as many are open as may be."""
    return StatusError(Code.RESOURCE_EXHAUSTED, "raftkv: too many calls are open")


def too_slow() -> StatusError:
    """What a call ends with whose request does not arrive."""
    return StatusError(Code.DEADLINE_EXCEEDED, f"raftkv: the request was not complete within {BODY_SECONDS:g}s")


def hurried(receive: Receive) -> Receive:
    """Receive the body of a unary request, which must not take for ever."""
    latest = asyncio.get_running_loop().time() + BODY_SECONDS

    async def soon() -> MutableMapping[str, Any]:
        try:
            async with asyncio.timeout_at(latest):
                return await receive()
        except TimeoutError:
            raise too_slow() from None

    return soon


async def drain(receive: Receive, max_bytes: int = 1 << 20) -> None:
    """Read a request that is answered unread, up to a limit: an answer before its end looks like a fault to clients."""
    size = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(BODY_SECONDS):
            while size < max_bytes:
                event = await receive()
                size += len(event.get("body", b""))
                if event["type"] == "http.disconnect" or not event.get("more_body", False):
                    return
