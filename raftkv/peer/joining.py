"""A member that was added and has no data: it asks the others who they are, and so learns who it is itself.

Unlike all else between members this carries no ids: the one that asks does not know them yet.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence

from google.protobuf.message import DecodeError

from raftkv import errors
from raftkv.pb import peer_pb2
from raftkv.peer.asking import Asking
from raftkv.peer.dial import Dial
from raftkv.rpc import Context, Method
from raftkv.status import StatusError

logger = logging.getLogger(__name__)

MEMBERS = "/raftkvpb.Peer/Members"
ANSWER_SECONDS = 1.0
PAUSE_SECONDS = 0.2


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
    asking = Asking(dial or Dial())
    try:
        while True:
            for url in urls:
                found = await _ask(url, asking)
                if found is not None and fits(found):
                    return found
                last = found or last
            if loop.time() >= deadline:
                return last
            await asyncio.sleep(PAUSE_SECONDS)
    finally:
        asking.close()


async def _ask(url: str, asking: Asking) -> peer_pb2.KnownMembers | None:
    request = peer_pb2.MembersRequest().SerializeToString()
    try:
        return peer_pb2.KnownMembers.FromString(await asking.ask(url, MEMBERS, request, timeout=ANSWER_SECONDS))
    except (StatusError, OSError, DecodeError) as error:
        logger.info("%s does not say who the members are: %s", url, error)
        return None
