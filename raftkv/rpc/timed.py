"""How long handlers take, for whoever wants to pay for knowing it."""

import time
from collections.abc import AsyncIterator
from typing import Any

from raftkv.histogram import Histogram
from raftkv.rpc.answers import close
from raftkv.rpc.framing import Answer, Framed
from raftkv.rpc.method import Context, Kind, Method

BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Buckets of grpc_server_handling_seconds, in seconds."""


def timed(method: Method) -> Method:
    """The same method, whose `calls` also observe how long each call took its handler; a stream's, from end to end."""
    times = method.calls.handling = Histogram(BOUNDS)
    handler = method.handler

    async def answer(request: Any, context: Context) -> Answer:
        started = time.perf_counter()
        try:
            found: Answer = await handler(request, context)
            return found
        finally:
            times.observe(time.perf_counter() - started)

    async def stream(request: Any, context: Context) -> AsyncIterator[bytes | Framed]:
        started = time.perf_counter()
        answers = handler(request, context)
        try:
            async for message in answers:
                yield message
        finally:
            times.observe(time.perf_counter() - started)
            await close(answers)

    return method.served_by(answer if method.kind in (Kind.UNARY, Kind.CLIENT_STREAM) else stream)
