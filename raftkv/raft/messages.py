"""What the core takes and gives: entries, states and messages, one class per kind.

Values are never changed after construction; the hot ones are not frozen only because freezing triples the cost of
building them. Names are those of the dissertation (figure 3.1).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

NodeId = int
"""A member's Raft id; 0 is nobody."""

NOBODY: NodeId = 0


class EntryKind(IntEnum):
    """What an entry's data is for."""

    NORMAL = 0
    CONF_CHANGE = 1


@dataclass(slots=True)
class Entry:
    """One entry of the log; `data` is opaque to the core, empty in a new leader's first entry."""

    term: int
    index: int
    kind: EntryKind
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class HardState:
    """What must survive a crash besides entries (thesis 3.8); `commit` is a hint and may be lost."""

    term: int = 0
    voted_for: NodeId = NOBODY
    commit: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfState:
    """Who takes part (thesis chapter 4); `voters_outgoing` is not empty while a joint configuration is in force."""

    voters: tuple[NodeId, ...]
    learners: tuple[NodeId, ...] = ()
    voters_outgoing: tuple[NodeId, ...] = ()
    learners_next: tuple[NodeId, ...] = ()
    auto_leave: bool = False

    def members(self) -> tuple[NodeId, ...]:
        """Everyone who receives the log, sorted."""
        return tuple(sorted({*self.voters, *self.learners, *self.voters_outgoing, *self.learners_next}))


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotMetadata:
    """The point in the log that a snapshot stands for, and the members in force there."""

    index: int
    term: int
    conf_state: ConfState


@dataclass(slots=True)
class RequestVote:
    """Asks for a vote (thesis 3.4), or whether one would be given (`pre_vote`, thesis 9.6).

    `transfer`: the leader asked for this election, so having heard from it lately is no reason to refuse (4.2.3).
    """

    sender: NodeId
    to: NodeId
    term: int
    last_log_index: int
    last_log_term: int
    pre_vote: bool
    transfer: bool


@dataclass(slots=True)
class RequestVoteResponse:
    sender: NodeId
    to: NodeId
    term: int
    granted: bool
    pre_vote: bool


@dataclass(slots=True)
class AppendEntries:
    """Replicates `entries` after the entry at `prev_log_index` (thesis 3.5).

    A `silent` one, which only carries the commit index, is answered when it is refused, not when it is accepted: that
    would tell the leader nothing, and there is one for every commit.
    """

    sender: NodeId
    to: NodeId
    term: int
    prev_log_index: int
    prev_log_term: int
    entries: Sequence[Entry]
    commit: int
    silent: bool = False


@dataclass(slots=True)
class AppendEntriesResponse:
    """Accepted: `index` is the last that matches the leader. Rejected: `index` is the refused prev_log_index, and the
    hint names the newest entry that may match."""

    sender: NodeId
    to: NodeId
    term: int
    rejected: bool
    index: int
    hint_index: int
    hint_term: int


@dataclass(slots=True)
class Heartbeat:
    """Keeps a follower quiet; `context` names the read round that the answer confirms (thesis 6.4)."""

    sender: NodeId
    to: NodeId
    term: int
    commit: int
    context: bytes


@dataclass(slots=True)
class HeartbeatResponse:
    sender: NodeId
    to: NodeId
    term: int
    context: bytes


@dataclass(slots=True)
class InstallSnapshot:
    """The log no longer holds what the follower needs; the state itself travels on a stream of its own."""

    sender: NodeId
    to: NodeId
    term: int
    metadata: SnapshotMetadata


@dataclass(slots=True)
class TimeoutNow:
    """Start an election at once (thesis 3.10)."""

    sender: NodeId
    to: NodeId
    term: int


@dataclass(slots=True)
class Propose:
    """Proposals a follower passes on to the leader; each becomes one entry. Only the leader of `term` takes them."""

    sender: NodeId
    to: NodeId
    term: int
    data: Sequence[bytes]


@dataclass(slots=True)
class ReadIndex:
    """A follower asks for a read index; `context` is never used twice. Its term is 0."""

    sender: NodeId
    to: NodeId
    term: int
    context: bytes


@dataclass(slots=True)
class ReadIndexResponse:
    sender: NodeId
    to: NodeId
    term: int
    context: bytes
    index: int


Message = (
    RequestVote
    | RequestVoteResponse
    | AppendEntries
    | AppendEntriesResponse
    | Heartbeat
    | HeartbeatResponse
    | InstallSnapshot
    | TimeoutNow
    | Propose
    | ReadIndex
    | ReadIndexResponse
)
