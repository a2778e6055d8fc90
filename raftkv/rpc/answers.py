"""How calls end on an ASGI host: with a response in pieces, or with a status."""

import asyncio
import logging
import sys
from collections.abc import AsyncIterator, Awaitable, Callable

from raftkv.http.asgi import Send
from raftkv.http.load import Load
from raftkv.rpc.framing import Framed, Large, percent_encode
from raftkv.rpc.method import Method
from raftkv.status import Code, StatusError

logger = logging.getLogger(__name__)

HEADERS = ((b"content-type", b"application/grpc"), (b"grpc-accept-encoding", b"identity,gzip"))
OK = ((b"grpc-status", b"0"),)
NOTHING = {"type": "http.response.body", "body": b"", "more_body": True}
START = {"type": "http.response.start", "status": 200, "headers": HEADERS, "trailers": True}
_END = {"type": "http.response.body", "body": b"", "more_body": False}
_TRAILERS_OK = {"type": "http.response.trailers", "headers": OK}

TAKE_SECONDS = 60.0
"""How long a client may take nothing of a large answer."""


def as_status(error: Exception, method: Method) -> StatusError:
    """The status of a call whose handler raised this; what is none is a bug, and logged."""
    if isinstance(error, StatusError):
        return error
    logger.error("%s failed", getattr(method.handler, "__qualname__", "a handler"), exc_info=error)
    return StatusError(Code.INTERNAL, f"internal error: {type(error).__name__}")


async def send_response(send: Send, response: bytes | Large, load: Load) -> None:
    """Send a whole response of a unary call, which `admit` has let pass if it is large."""
    try:
        await send(START)
        if isinstance(response, Large):
            response = await all_but_the_last(send, response, load)
        # The last piece may have to wait, too: what came before may fill what is kept for the client.
        async with asyncio.timeout(TAKE_SECONDS):
            await send({"type": "http.response.body", "body": response, "more_body": False})
        await send(_TRAILERS_OK)
    except OSError:
        # The client is gone.
        return


async def all_but_the_last(send: Send, body: Large, load: Load) -> bytes:
    """Send a large body in pieces, as fast as the client takes them; the last one, which is still to be sent.

    Meanwhile it counts as a part of `load`.

    Raises:
        OSError: the client is gone, or takes nothing.
    """
    size = len(body)
    load.bytes += size
    try:
        pieces = body.pieces()
        piece = next(pieces)
        for following in pieces:
            async with asyncio.timeout(TAKE_SECONDS):
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            piece = following
    finally:
        load.bytes -= size
    return piece


async def pass_on(responses: AsyncIterator[bytes | Framed], give: Callable[[bytes | Framed], Awaitable[None]]) -> None:
    """Give each message of a handler that streams, and close it whatever happens.

    Only where this call itself is thrown away half-way, as with its loop, nothing can be waited for.
    """
    try:
        async for message in responses:
            await give(message)
    finally:
        if not isinstance(sys.exception(), GeneratorExit):
            await close(responses)


async def close(responses: AsyncIterator[bytes | Framed]) -> None:
    """Close what a handler that streams has returned, and with it what its `finally` gives back.

    Now, not when the collector finds it. Whoever passes answers of another handler on closes that one.
    """
    aclose = getattr(responses, "aclose", None)
    if aclose is not None:
        await aclose()


async def end(send: Send, error: Exception | None, *, started: bool) -> None:
    """End a call with a status.

    ASGI cannot ask for a status alone as one HEADERS frame ("trailers-only"); raftkv's server makes one of these events
    if nothing was sent before.
    """
    trailers = _TRAILERS_OK
    if isinstance(error, StatusError):
        status = [(b"grpc-status", b"%d" % error.code), (b"grpc-message", percent_encode(error.message))]
        trailers = {"type": "http.response.trailers", "headers": status}
    try:
        if not started:
            await send(START)
        await send(_END)
        await send(trailers)
    except OSError:
        return
