"""Bugs on purpose where members come and go: more of `raftkv.simulation.mutants`."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from raftkv.pb import log_pb2
from raftkv.raft import NodeId, RaftNode, RequestVote
from raftkv.raft.leader import Leader
from raftkv.server.membership import Membership
from raftkv.server.reconfiguration import Reconfiguration


def changes_overtake_each_other() -> None:
    """A leader proposes a change while an earlier one may be under way (thesis 4.1 and its erratum)."""

    def init(self: Reconfiguration, *args: Any, **named: Any) -> None:
        _init(self, *args, **named)
        self._lock = nullcontext()  # type: ignore[assignment]

    _init: Callable[..., None] = Reconfiguration.__init__
    Reconfiguration.__init__ = init  # type: ignore[method-assign]
    Leader.may_change_conf = property(lambda self: True)  # type: ignore[assignment,method-assign]


def promotes_who_never_started() -> None:
    """A learner becomes a voter whether or not it has anything (etcd #15096)."""

    def decide(self: Any, member: NodeId) -> log_pb2.ConfChange:
        return log_pb2.ConfChange(promote=member)

    Reconfiguration._decide_promote = decide  # type: ignore[method-assign]


def snapshots_leave_the_members_as_they_were() -> None:
    """Who installs a snapshot goes on with the members it had."""

    def load(self: Membership) -> None:
        if not self._members:
            _load(self)

    _load: Callable[[Membership], None] = Membership.load
    Membership.load = load  # type: ignore[method-assign]


def stands_before_it_has_applied_the_members() -> None:
    """A member campaigns though it knows of a committed change that it has not applied (raft e6ce296)."""
    RaftNode._promotable = lambda self: self.id in self._membership.voters  # type: ignore[method-assign]


def stands_before_it_has_installed_its_snapshot() -> None:
    """A member campaigns though the snapshot it was sent is not on its disk (raft f1f74e0)."""

    def promotable(self: Any) -> bool:
        installing, self._installing = self._installing, False
        try:
            return bool(_promotable(self))
        finally:
            self._installing = installing

    _promotable: Callable[[Any], bool] = RaftNode._promotable
    RaftNode._promotable = promotable  # type: ignore[method-assign]


def learners_refuse_their_vote() -> None:
    """Who does not know yet that it was promoted does not vote (raft abb533c)."""

    def handle(self: RaftNode, message: RequestVote) -> None:
        if self.id in self._membership.voters:
            _handle(self, message)

    _handle: Callable[[RaftNode, RequestVote], None] = RaftNode._handle_request_vote
    RaftNode._handle_request_vote = handle  # type: ignore[method-assign]


def removed_members_are_listened_to() -> None:
    """Nobody tells a removed member, and its messages are taken."""
    Membership.is_removed = lambda self, member: False  # type: ignore[method-assign]


MEMBER_MUTANTS: dict[str, Callable[[], None]] = {
    mutant.__name__.replace("_", "-"): mutant
    for mutant in (
        changes_overtake_each_other,
        promotes_who_never_started,
        snapshots_leave_the_members_as_they_were,
        stands_before_it_has_applied_the_members,
        stands_before_it_has_installed_its_snapshot,
        learners_refuse_their_vote,
        removed_members_are_listened_to,
    )
}
