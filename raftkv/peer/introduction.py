"""Before a member without data takes part: is this its first start, or has it lost what it promised?

A member that lost its data has forgotten its votes and acknowledgements. Were it to vote again, a majority could elect
a leader without entries that this member helped to commit. So it first asks the others. Each answers one of

- BLANK: I have no term and no log, so I never counted anyone's word;
- STRANGER: I have, but I never took a message of yours;
- KNOWN: I have taken messages of yours. (Remembered durably before the first message is taken, and for good.)

One KNOWN is enough to refuse. Otherwise `may_start` says when enough have answered; docs/decisions/0001 says why.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from enum import Enum

from google.protobuf.message import DecodeError

from raftkv.pb import peer_pb2
from raftkv.peer.asking import Asking
from raftkv.peer.dial import Dial
from raftkv.peer.reception import Reception, call_metadata
from raftkv.raft import NodeId
from raftkv.rpc import Context, Method
from raftkv.status import Code, StatusError

logger = logging.getLogger(__name__)

INTRODUCE = "/raftkvpb.Peer/Introduce"
ANSWER_SECONDS = 1.0
"""How long one round waits for those that do not answer."""
PAUSE_SECONDS = (0.05, 1.0)
"""Between two rounds, at first and at most."""
LOG_SECONDS = (3.0, 30.0)
"""When it is first said for whom it waits, and how often then."""


class Acquaintance(Enum):
    """What a member knows of the one that asks."""

    BLANK = "blank"
    STRANGER = "stranger"
    KNOWN = "known"


class AlreadyTookPart(Exception):
    """The member that asked is no newcomer; `witness` says so."""

    def __init__(self, witness: NodeId) -> None:
        super().__init__(f"member {witness:x} has taken messages of this member before")
        self.witness = witness


def may_start(voters: int, answers: Collection[Acquaintance]) -> bool:
    """Whether a member of `voters` may take part without data, given what the others answered, none of them KNOWN.

    Any majority with this member in it has `majority - 1` others, and each of them would know it. So many others deny
    it that one of those would have to be among them: it never was in a majority. Or else nothing has been written
    here: the answers are all BLANK and a majority together with this member.
    """
    majority = voters // 2 + 1
    if len(answers) > voters - majority:
        return True
    return len(answers) >= majority - 1 and all(answer is Acquaintance.BLANK for answer in answers)


def method(cluster_id: int, member_id: NodeId, know: Callable[[NodeId], Acquaintance]) -> Method:
    """The answering end, to be served on the peer port as `INTRODUCE`."""
    reception = Reception(cluster_id, member_id)

    async def answer(request: bytes, context: Context) -> bytes:
        known = know(reception.sender(context))
        return peer_pb2.Acquaintance(
            blank=known is Acquaintance.BLANK, took_part=known is Acquaintance.KNOWN
        ).SerializeToString()

    return Method.unary(answer)


async def introduce(
    cluster_id: int, member_id: NodeId, peers: Mapping[NodeId, Sequence[str]], dial: Dial | None = None
) -> None:
    """Ask the others (id to URLs, without this member) until this member may take part; for ever if need be.

    Raises:
        AlreadyTookPart: it must not.
    """
    asking = _Asking(cluster_id, member_id, peers, dial or Dial())
    try:
        await asking.until_allowed()
    finally:
        asking.close()


class _Asking:
    """One member's questions, over connections that live as long as it asks."""

    def __init__(self, cluster_id: int, member_id: NodeId, peers: Mapping[NodeId, Sequence[str]], dial: Dial) -> None:
        self._cluster_id = cluster_id
        self._member_id = member_id
        self._peers = peers
        self._asking = Asking(dial)

    async def until_allowed(self) -> None:
        loop = asyncio.get_running_loop()
        pause, longest = PAUSE_SECONDS
        say_at = loop.time() + LOG_SECONDS[0]
        while True:
            answers = await self._round()
            for peer, answer in sorted(answers.items()):
                if answer is Acquaintance.KNOWN:
                    raise AlreadyTookPart(peer)
            if may_start(len(self._peers) + 1, answers.values()):
                return
            if loop.time() >= say_at:
                say_at = loop.time() + LOG_SECONDS[1]
                missing = ", ".join(f"{peer:x}" for peer in self._peers if peer not in answers)
                logger.info("waiting for other members before the first start: no answer yet from %s", missing)
            await asyncio.sleep(pause)
            pause = min(2 * pause, longest)

    async def _round(self) -> dict[NodeId, Acquaintance]:
        """Ask everyone once; a member that can answer is heard before a decision is made without it."""
        peers = sorted(self._peers)
        answers = await asyncio.gather(*map(self._ask, peers))
        return {peer: answer for peer, answer in zip(peers, answers, strict=True) if answer is not None}

    async def _ask(self, peer: NodeId) -> Acquaintance | None:
        metadata = call_metadata(self._cluster_id, self._member_id, peer)
        request = peer_pb2.Introduction().SerializeToString()
        for url in self._peers[peer]:
            try:
                encoded = await self._asking.ask(url, INTRODUCE, request, metadata, timeout=ANSWER_SECONDS)
                answer = peer_pb2.Acquaintance.FromString(encoded)
            except StatusError as error:
                level = logging.WARNING if error.code is Code.FAILED_PRECONDITION else logging.DEBUG
                logger.log(level, "member %x refuses this member: %s", peer, error.message)
            except (OSError, DecodeError) as error:
                logger.debug("member %x does not answer: %s", peer, error)
            else:
                return _decode(answer)
        return None

    def close(self) -> None:
        self._asking.close()


def _decode(answer: peer_pb2.Acquaintance) -> Acquaintance:
    if answer.took_part:
        return Acquaintance.KNOWN
    return Acquaintance.BLANK if answer.blank else Acquaintance.STRANGER
