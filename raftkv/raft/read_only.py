"""Reads that wait for the leader to prove that it still leads (thesis 6.4)."""

from collections.abc import Callable
from dataclasses import dataclass, field

from .messages import NodeId


@dataclass(slots=True)
class Read:
    """A read to confirm: who asked, under which name, and what was committed then."""

    context: bytes
    requester: NodeId
    index: int


@dataclass(slots=True)
class Round:
    """Reads that one round of heartbeats confirms, and who has answered it."""

    reads: list[Read]
    acks: set[NodeId] = field(default_factory=set)


class ReadRounds:
    """Rounds under way at the leader of one term, oldest first.

    A round is known by a number that the leader never uses again in its term, not by the context of a request, which
    may return: so a delayed acknowledgement confirms its own round or none. Whoever acknowledges a round acknowledges
    all older ones: it followed this leader after they began.

    Invariants:
    1. A read joins a round only while no heartbeat of that round has been handed out.
    """

    __slots__ = ("_number", "_open", "_rounds")

    def __init__(self) -> None:
        self._rounds: dict[bytes, Round] = {}
        self._number = 0
        self._open: Round | None = None

    def add(self, read: Read, leader: NodeId) -> bytes | None:
        """Add a read; the name of the round that now has to be announced, None when it joins one that will be."""
        if self._open is not None:
            self._open.reads.append(read)
            return None
        self._number += 1
        name = self._number.to_bytes(8, "big")
        self._open = self._rounds[name] = Round([read], {leader})
        return name

    def announced(self) -> None:
        """Heartbeats have been handed out: what is asked from now on needs another round."""
        self._open = None

    def newest(self) -> bytes:
        """Name of the newest round under way, empty when there is none."""
        return next(reversed(self._rounds), b"")

    def acknowledge(
        self, name: bytes, follower: NodeId, wins: Callable[[set[NodeId]], bool]
    ) -> tuple[list[Read], set[NodeId]]:
        """Count an acknowledgement; the reads it confirms, oldest first, and who has acknowledged their round."""
        answered = self._rounds.get(name)
        if answered is None:
            return [], set()
        answered.acks.add(follower)
        if not wins(answered.acks):
            return [], answered.acks
        confirmed: list[Read] = []
        for older in list(self._rounds):
            confirmed += self._rounds.pop(older).reads
            if older == name:
                break
        if self._open is answered:
            self._open = None
        return confirmed, answered.acks
