"""Majorities, of one configuration or of both halves of a joint one (thesis 4.3)."""

from collections.abc import Callable, Container, Sequence

from .messages import ConfState, NodeId


def majority_index(voters: Sequence[NodeId], match: Callable[[NodeId], int]) -> int:
    """The highest index that a majority of `voters` has reached; without voters, no bound at all."""
    if not voters:
        return 1 << 63
    reached = sorted(map(match, voters))
    return reached[(len(reached) - 1) // 2]


def committed_index(conf: ConfState, match: Callable[[NodeId], int]) -> int:
    """The highest index that every majority in force has reached."""
    return min(majority_index(conf.voters, match), majority_index(conf.voters_outgoing, match))


def has_quorum(conf: ConfState, members: Container[NodeId]) -> bool:
    """Whether `members` include a majority of each half in force."""
    return all(sum(voter in members for voter in half) * 2 > len(half) for half in _halves(conf))


def cannot_win(conf: ConfState, against: Container[NodeId]) -> bool:
    """Whether so many voted against that no majority is possible any more."""
    return any(sum(voter in against for voter in half) * 2 >= len(half) for half in _halves(conf))


def _halves(conf: ConfState) -> list[Sequence[NodeId]]:
    return [conf.voters, conf.voters_outgoing] if conf.voters_outgoing else [conf.voters]
