"""Reads that wait for the leader to prove that it still leads (thesis 6.4)."""

from collections.abc import Callable
from dataclasses import dataclass, field

from .messages import NodeId


@dataclass(slots=True)
class Round:
    """One read index to confirm; `requester` asked for it."""

    context: bytes
    index: int
    requester: NodeId
    acks: set[NodeId] = field(default_factory=set)


class ReadRounds:
    """Rounds under way at the leader, oldest first.

    A context is known only while its round is open, so an acknowledgement that was delayed confirms nothing else.
    Whoever acknowledges a round acknowledges all older ones: it followed this leader after they began.
    """

    __slots__ = ("_rounds",)

    def __init__(self) -> None:
        self._rounds: dict[bytes, Round] = {}

    def __len__(self) -> int:
        return len(self._rounds)

    def open(self, context: bytes, index: int, requester: NodeId, leader: NodeId) -> None:
        self._rounds.setdefault(context, Round(context, index, requester, {leader}))

    def newest(self) -> bytes:
        """Context of the newest open round, empty when there is none."""
        return next(reversed(self._rounds), b"")

    def acknowledge(self, context: bytes, follower: NodeId, wins: Callable[[set[NodeId]], bool]) -> list[Round]:
        """Count an acknowledgement; the rounds it confirms, oldest first."""
        answered = self._rounds.get(context)
        if answered is None:
            return []
        answered.acks.add(follower)
        if not wins(answered.acks):
            return []
        confirmed = []
        for key in list(self._rounds):
            confirmed.append(self._rounds.pop(key))
            if key == context:
                break
        return confirmed

    def clear(self) -> None:
        self._rounds.clear()
