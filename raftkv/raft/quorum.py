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
    outgoing = conf.voters_outgoing
    return _count(conf.voters, members) * 2 > len(conf.voters) and (
        not outgoing or _count(outgoing, members) * 2 > len(outgoing)
    )


def cannot_win(conf: ConfState, against: Container[NodeId]) -> bool:
    """Whether so many voted against that no majority is possible any more."""
    outgoing = conf.voters_outgoing
    return _count(conf.voters, against) * 2 >= len(conf.voters) or bool(
        outgoing and _count(outgoing, against) * 2 >= len(outgoing)
    )


def _count(voters: Sequence[NodeId], members: Container[NodeId]) -> int:
    # Not a sum over a generator: every read of three members comes by here thrice.
    count = 0
    for voter in voters:
        if voter in members:
            count += 1
    return count
