"""A member that was added and has no data: it asks the others who they are, and so learns who it is itself.

Unlike all else between members this carries no ids: the one that asks does not know them yet.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence

import grpc
import grpc.aio

from raftkv import errors
from raftkv.pb import peer_pb2
from raftkv.peer.dial import Channels, Dial
from raftkv.rpc import Context, Method

logger = logging.getLogger(__name__)

MEMBERS = "/raftkvpb.Peer/Members"
ANSWER_SECONDS = 1.0
PAUSE_SECONDS = 0.2

_CHANNEL_OPTIONS = [
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.enable_retries", 0),
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
]


def method(known: Callable[[], peer_pb2.KnownMembers | None]) -> Method:
    """The answering end, to be served on the peer port as `MEMBERS`; None: this member does not know yet."""

    async def answer(request: bytes, context: Context) -> bytes:
        found = known()
        if found is None:
            raise errors.Stopped
        return found.SerializeToString()

    return Method.unary(answer)


async def ask_members(
    urls: Sequence[str],
    fits: Callable[[peer_pb2.KnownMembers], bool],
    *,
    seconds: float,
    dial: Dial | None = None,
) -> peer_pb2.KnownMembers | None:
    """Ask at these peer URLs, one after the other, until an answer fits; else the last answer in this time, or None.

    A member that lags may not know of the one that asks yet.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    last: peer_pb2.KnownMembers | None = None
    channels = Channels(dial or Dial(), _CHANNEL_OPTIONS)
    try:
        while True:
            for url in urls:
                found = await _ask(url, channels)
                if found is not None and fits(found):
                    return found
                last = found or last
            if loop.time() >= deadline:
                return last
            await asyncio.sleep(PAUSE_SECONDS)
    finally:
        await channels.close()


async def _ask(url: str, channels: Channels) -> peer_pb2.KnownMembers | None:
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            call = (await channels.get(url)).unary_unary(
                MEMBERS,
                request_serializer=peer_pb2.MembersRequest.SerializeToString,
                response_deserializer=peer_pb2.KnownMembers.FromString,
            )
        found: peer_pb2.KnownMembers = await call(peer_pb2.MembersRequest(), timeout=ANSWER_SECONDS)
    except (grpc.aio.AioRpcError, OSError) as error:
        channels.failed(url)
        problem = error.details() if isinstance(error, grpc.aio.AioRpcError) else error
        logger.info("%s does not say who the members are: %s", url, problem)
        return None
    return found
