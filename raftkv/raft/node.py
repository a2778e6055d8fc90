"""The Raft core: messages, ticks and proposals in, a `Ready` out.

A node is a value that is fed and drained. It has no clock, socket, file or thread; time is `tick()`, randomness is
handed in, and whatever must become durable or be sent is handed out in a `Ready`. The rules of durability are in the
type: `messages` may leave at once, `messages_after_persist` only when the Ready they came with is durable, and
`advance(ready)` says that it is. The node's own vote and its own copy of an entry count there and nowhere else
(thesis 10.2.1: a leader's disk works in parallel with its followers').

`ready()` may be called again before an earlier Ready was advanced; Readys are advanced in the order they came.

All changes of term, vote, role and leader go through `_become_*`. Deviations from the thesis: PreVote (9.6) and
CheckQuorum (6.2) are on by default; entries are forwarded by followers; a configuration takes effect when it is
applied, not when it is appended.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

from . import quorum
from .errors import InvariantViolation, ProposalDropped
from .log import RaftLog
from .messages import (
    NOBODY,
    AppendEntries,
    AppendEntriesResponse,
    ConfState,
    Entry,
    EntryKind,
    HardState,
    Heartbeat,
    HeartbeatResponse,
    InstallSnapshot,
    Message,
    NodeId,
    Propose,
    ReadIndex,
    ReadIndexResponse,
    RequestVote,
    RequestVoteResponse,
    SnapshotMetadata,
    TimeoutNow,
)
from .progress import Progress, ProgressState
from .read_only import ReadRounds, Round


class Role(Enum):
    """What a node is in its term; a pre-candidate asks whether it could win before it disturbs anyone."""

    FOLLOWER = "follower"
    PRE_CANDIDATE = "pre-candidate"
    CANDIDATE = "candidate"
    LEADER = "leader"


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Settings of one node; times in ticks, sizes in bytes of entry data.

    Raises:
        ValueError: an election timeout that is not longer than a heartbeat.
    """

    id: NodeId
    random: random.Random
    election_ticks: int = 10
    heartbeat_ticks: int = 1
    max_message_bytes: int = 1 << 20
    max_inflight_messages: int = 256
    max_inflight_bytes: int = 64 << 20
    max_uncommitted_bytes: int = 256 << 20
    max_apply_bytes: int = 16 << 20
    pre_vote: bool = True
    check_quorum: bool = True

    def __post_init__(self) -> None:
        if self.id == NOBODY:
            raise ValueError("id 0 is nobody")
        if not 0 < self.heartbeat_ticks < self.election_ticks:
            raise ValueError(f"election {self.election_ticks} ticks, heartbeat {self.heartbeat_ticks} ticks")


@dataclass(frozen=True, slots=True, kw_only=True)
class SoftState:
    """Who leads and what we are; not persisted."""

    leader: NodeId
    role: Role


@dataclass(frozen=True, slots=True)
class ReadState:
    """The read with this context is current once `index` is applied."""

    context: bytes
    index: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """What is owed since the last one; each thing is handed out once.

    `messages` may be sent at once. `messages_after_persist` may be sent when `hard_state` and `entries` are durable.
    `committed` are entries to apply, durable here. Without `must_sync` there is nothing to make durable.
    """

    hard_state: HardState | None
    entries: Sequence[Entry]
    snapshot: SnapshotMetadata | None
    must_sync: bool
    messages: Sequence[Message]
    messages_after_persist: Sequence[Message]
    committed: Sequence[Entry]
    read_states: Sequence[ReadState]
    soft_state: SoftState | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """A view for operators; `match_indexes` is empty unless we lead."""

    id: NodeId
    term: int
    role: Role
    leader: NodeId
    commit: int
    applied: int
    last_index: int
    match_indexes: dict[NodeId, int]


class RaftNode:
    """One member's Raft.

    Invariants:
    1. `term` never decreases, and `voted_for` changes at most once in a term.
    2. A leader's log only grows; what is committed never changes.
    3. No message in `messages` reveals a term or vote that is not durable.
    """

    def __init__(
        self,
        config: Config,
        conf_state: ConfState,
        hard_state: HardState,
        entries: Sequence[Entry],
        *,
        snapshot_index: int = 0,
        snapshot_term: int = 0,
        applied: int = 0,
    ) -> None:
        """Restart from what was durable. A state machine ahead of `hard_state.commit` proves a later commit."""
        self.config = config
        self.id = config.id
        self.conf_state = conf_state
        commit = max(hard_state.commit, applied, snapshot_index)
        self.log = RaftLog(
            entries, snapshot_index=snapshot_index, snapshot_term=snapshot_term, commit=commit, applied=applied
        )
        if self.log.last_term > hard_state.term:
            raise InvariantViolation(f"last entry of term {self.log.last_term}, but term is {hard_state.term}")
        self.term = hard_state.term
        self.voted_for = hard_state.voted_for
        self.role = Role.FOLLOWER
        self.leader: NodeId = NOBODY
        self._poison: InvariantViolation | None = None
        self._durable_vote = (self.term, self.voted_for)
        self._handed_state = HardState(term=self.term, voted_for=self.voted_for, commit=commit)
        self._handed_soft = SoftState(leader=NOBODY, role=Role.FOLLOWER)
        self._messages: list[Message] = []
        self._messages_after_persist: list[Message] = []
        self._read_states: list[ReadState] = []
        self._snapshot: SnapshotMetadata | None = None
        self._outstanding: list[Ready] = []
        self._progress: dict[NodeId, Progress] = {}
        self._votes: dict[NodeId, bool] = {}
        self._reads = ReadRounds()
        self._early_reads: list[tuple[bytes, NodeId]] = []
        self._transferee: NodeId = NOBODY
        self._transfer_election = False
        self._uncommitted_bytes = 0
        self._pending_conf_index = 0
        self._election_elapsed = 0
        self._heartbeat_elapsed = 0
        self._randomized_timeout = 0
        self._reset_election_timer()
        self._handlers: dict[type, Callable[..., None]] = {
            RequestVote: self._handle_request_vote,
            RequestVoteResponse: self._handle_vote_response,
            AppendEntries: self._handle_append,
            AppendEntriesResponse: self._handle_append_response,
            Heartbeat: self._handle_heartbeat,
            HeartbeatResponse: self._handle_heartbeat_response,
            InstallSnapshot: self._handle_install_snapshot,
            TimeoutNow: self._handle_timeout_now,
            Propose: self._handle_propose,
            ReadIndex: self._handle_read_index,
            ReadIndexResponse: self._handle_read_index_response,
        }

    # Inputs

    def tick(self) -> None:
        """Let one unit of time pass."""
        self._check()
        self._election_elapsed += 1
        if self.role is Role.LEADER:
            self._tick_leader()
        elif self._election_elapsed >= self._randomized_timeout and self._promotable():
            self.campaign()

    def step(self, message: Message) -> None:
        """Take a message from a peer. Terms are settled here, for every kind, before anything else (thesis 3.3)."""
        self._check()
        try:
            if self._settle_term(message):
                self._handlers[type(message)](message)
        except InvariantViolation as error:
            self._poison = error
            raise

    def propose(self, data: Sequence[bytes]) -> None:
        """Append each item as one entry, or pass them on to the leader, who takes them in this term or never.

        Raises:
            ProposalDropped: no leader is known, leadership is being transferred, or `max_uncommitted_bytes` is reached.
        """
        self._check()
        if self.role is Role.LEADER:
            self._propose_entries(data, EntryKind.NORMAL)
        elif self.leader == NOBODY:
            raise ProposalDropped("no leader")
        else:
            self._messages.append(Propose(self.id, self.leader, self.term, tuple(data)))

    def propose_conf_change(self, data: bytes) -> None:
        """Propose one change of the configuration; a second one only after the first was applied (thesis 4.1).

        Raises:
            ProposalDropped: we do not lead, or an earlier change is not applied yet.
        """
        self._check()
        if self.role is not Role.LEADER:
            raise ProposalDropped("only the leader proposes configurations")
        if self._pending_conf_index > self.log.applied:
            raise ProposalDropped(f"configuration at index {self._pending_conf_index} is not applied yet")
        self._propose_entries([data], EntryKind.CONF_CHANGE)
        self._pending_conf_index = self.log.last_index

    def apply_conf_state(self, conf_state: ConfState) -> None:
        """Put a configuration in force; called when the entry that holds it is applied."""
        self._check()
        self.conf_state = conf_state
        if self.role is not Role.LEADER:
            return
        if self.id not in conf_state.members():
            self._become_follower(self.term, NOBODY)
            return
        self._track_members()
        self._maybe_commit()
        self._broadcast_append()

    def read_index(self, context: bytes) -> None:
        """Ask for an index at which a read is linearizable; a later Ready answers with the same context.

        The answer may never come (messages are lost): ask again under a context that was never used.

        Raises:
            ProposalDropped: no leader is known.
        """
        self._check()
        if self.role is Role.LEADER:
            self._leader_read_index(context, self.id)
        elif self.leader == NOBODY:
            raise ProposalDropped("no leader")
        else:
            self._messages.append(ReadIndex(self.id, self.leader, 0, context))

    def transfer_leader(self, to: NodeId) -> None:
        """Hand leadership to a voter once its log is complete; given up after an election timeout (thesis 3.10)."""
        self._check()
        if self.role is not Role.LEADER or to == self.id or to not in self.conf_state.voters:
            return
        self._transferee = to
        self._election_elapsed = 0
        progress = self._progress[to]
        if progress.match == self.log.last_index:
            self._messages.append(TimeoutNow(self.id, to, self.term))
        else:
            progress.probe_sent = False
            self._send_append(to)

    def campaign(self) -> None:
        """Stand for election."""
        self._check()
        if self.role is Role.LEADER or not self._promotable():
            return
        if self.config.pre_vote:
            self._become_pre_candidate()
        else:
            self._become_candidate(transfer=False)

    def report_unreachable(self, peer: NodeId) -> None:
        """Messages to this peer are being lost: stop streaming, find out where it is."""
        progress = self._progress.get(peer)
        if progress is not None and progress.state is ProgressState.REPLICATE:
            progress.become_probe()

    def report_snapshot(self, peer: NodeId, *, ok: bool) -> None:
        """The snapshot sent to this peer was installed, or was not."""
        progress = self._progress.get(peer)
        if progress is None or progress.state is not ProgressState.SNAPSHOT:
            return
        if not ok:
            progress.pending_snapshot = 0
        progress.become_probe()
        # Its answer, or the next heartbeat, restarts the flow.
        progress.probe_sent = True

    def applied_to(self, index: int) -> None:
        """The state machine has applied everything up to `index`."""
        self.log.applied_to(index)

    def compact(self, index: int) -> None:
        """Forget the log up to `index`, which is applied and in a snapshot."""
        self.log.compact(index)

    # Outputs

    def has_ready(self) -> bool:
        """Whether `ready()` would hand out anything."""
        log = self.log
        return bool(
            self._messages
            or self._messages_after_persist
            or log.handed < log.last_index
            or log.has_to_apply()
            or self._read_states
            or self._snapshot
            or self._hard_state() != self._handed_state
            or self._soft_state() != self._handed_soft
        )

    def ready(self) -> Ready:
        """Hand out what is owed. Persist, send and apply it, then `advance()`."""
        self._check()
        state, soft = self._hard_state(), self._soft_state()
        entries = self.log.take_to_persist()
        handed = self._handed_state
        votes_changed = (state.term, state.voted_for) != (handed.term, handed.voted_for)
        ready = Ready(
            hard_state=state if state != handed else None,
            entries=entries,
            snapshot=self._snapshot,
            must_sync=bool(entries) or votes_changed or self._snapshot is not None,
            messages=self._messages,
            messages_after_persist=self._messages_after_persist,
            committed=self.log.take_to_apply(self.config.max_apply_bytes),
            read_states=self._read_states,
            soft_state=soft if soft != self._handed_soft else None,
        )
        self._messages, self._messages_after_persist, self._read_states = [], [], []
        self._snapshot = None
        self._handed_state, self._handed_soft = state, soft
        self._outstanding.append(ready)
        return ready

    def advance(self, ready: Ready) -> None:
        """Learn that this Ready is durable. Our own vote and our own copies of its entries count from here on."""
        self._check()
        if not self._outstanding or self._outstanding[0] is not ready:
            raise InvariantViolation("Readys must be advanced in the order they were handed out")
        self._outstanding.pop(0)
        state = ready.hard_state
        if state is not None:
            self._durable_vote = (state.term, state.voted_for)
            if self.role is Role.CANDIDATE and self._durable_vote == (self.term, self.id):
                self._count_vote(self.id, granted=True)
        if ready.entries:
            last = ready.entries[-1]
            self.log.persisted(last.index, last.term)
            if self.role is Role.LEADER:
                own = self._progress.get(self.id)
                if own is not None:
                    own.accepted(self.log.durable)
                if self._maybe_commit():
                    self._broadcast_append()

    def status(self) -> Status:
        """A view of this moment."""
        leads = self.role is Role.LEADER
        return Status(
            id=self.id,
            term=self.term,
            role=self.role,
            leader=self.leader,
            commit=self.log.commit,
            applied=self.log.applied,
            last_index=self.log.last_index,
            match_indexes={peer: progress.match for peer, progress in self._progress.items()} if leads else {},
        )

    @property
    def commit_index(self) -> int:
        """Highest index known to be committed."""
        return self.log.commit

    @property
    def applied(self) -> int:
        """Highest index the state machine has applied."""
        return self.log.applied

    @property
    def last_index(self) -> int:
        """Index of the last entry of the log."""
        return self.log.last_index

    # Roles: the only places that change term, vote, role and leader

    def _become_follower(self, term: int, leader: NodeId) -> None:
        self._reset(term)
        self.role = Role.FOLLOWER
        self.leader = leader

    def _become_pre_candidate(self) -> None:
        """Ask whether we could win; neither term nor vote changes, nobody is disturbed (thesis 9.6)."""
        self._votes = {}
        self.leader = NOBODY
        self.role = Role.PRE_CANDIDATE
        self._reset_election_timer()
        self._count_vote(self.id, granted=True)
        if self.role is Role.PRE_CANDIDATE:
            self._request_votes(self.term + 1, pre_vote=True, transfer=False)

    def _become_candidate(self, *, transfer: bool) -> None:
        self._reset(self.term + 1)
        self.role = Role.CANDIDATE
        self.leader = NOBODY
        self.voted_for = self.id
        self._transfer_election = transfer
        # Our own vote counts when it is durable, in advance(); the requests leave with it.
        self._request_votes(self.term, pre_vote=False, transfer=transfer)

    def _become_leader(self) -> None:
        if self.role is not Role.CANDIDATE or self._durable_vote != (self.term, self.id):
            raise InvariantViolation(f"{self.id:x} leads term {self.term} as {self.role}, vote {self._durable_vote}")
        self._reset(self.term)
        self.role = Role.LEADER
        self.leader = self.id
        self._track_members()
        self._uncommitted_bytes = sum(
            len(entry.data) for entry in self.log.slice(self.log.commit + 1, self.log.last_index + 1)
        )
        # A configuration may hide among entries we inherited: none may be proposed before they are applied.
        self._pending_conf_index = self.log.last_index
        # The no-op of our term lets everything before it be committed (thesis 3.6.2, 6.4).
        self.log.append([Entry(self.term, self.log.last_index + 1, EntryKind.NORMAL, b"")])
        self._broadcast_append()

    def _reset(self, term: int) -> None:
        if term < self.term:
            raise InvariantViolation(f"term {term} after {self.term}")
        if term != self.term:
            self.term = term
            self.voted_for = NOBODY
        self._votes = {}
        self._progress = {}
        self._reads.clear()
        self._early_reads.clear()
        self._transferee = NOBODY
        self._transfer_election = False
        self._uncommitted_bytes = 0
        self._heartbeat_elapsed = 0
        self._reset_election_timer()

    def _reset_election_timer(self) -> None:
        self._election_elapsed = 0
        self._randomized_timeout = self.config.election_ticks + int(
            self.config.random.random() * self.config.election_ticks
        )

    def _track_members(self) -> None:
        last = self.log.last_index
        members = self.conf_state.members()
        tracked = {}
        for member in members:
            tracked[member] = self._progress.get(member) or Progress(
                match=0,
                next_index=last + 1,
                max_messages=self.config.max_inflight_messages,
                max_bytes=self.config.max_inflight_bytes,
            )
        self._progress = tracked
        if self.id in tracked:
            tracked[self.id].accepted(self.log.durable)
            tracked[self.id].active = True

    # Elections (thesis 3.4, 3.6.1, 4.2.3, 9.6)

    def _promotable(self) -> bool:
        """Whether we may stand: a voter, with no snapshot or configuration waiting to be applied."""
        if self._snapshot is not None or self.id not in {*self.conf_state.voters, *self.conf_state.voters_outgoing}:
            return False
        log = self.log
        return all(entry.kind is not EntryKind.CONF_CHANGE for entry in log.slice(log.applied + 1, log.commit + 1))

    def _request_votes(self, term: int, *, pre_vote: bool, transfer: bool) -> None:
        out = self._messages if pre_vote else self._messages_after_persist
        log = self.log
        for peer in sorted({*self.conf_state.voters, *self.conf_state.voters_outgoing} - {self.id}):
            out.append(RequestVote(self.id, peer, term, log.last_index, log.last_term, pre_vote, transfer))

    def _count_vote(self, voter: NodeId, *, granted: bool) -> None:
        self._votes.setdefault(voter, granted)
        if quorum.has_quorum(self.conf_state, {peer for peer, vote in self._votes.items() if vote}):
            if self.role is Role.PRE_CANDIDATE:
                self._become_candidate(transfer=False)
            else:
                self._become_leader()
        elif quorum.cannot_win(self.conf_state, {peer for peer, vote in self._votes.items() if not vote}):
            self._become_follower(self.term, NOBODY)

    def _in_lease(self) -> bool:
        """Whether we heard a leader so lately that a candidate must be ignored (thesis 4.2.3)."""
        return (
            self.config.check_quorum and self.leader != NOBODY and self._election_elapsed < self.config.election_ticks
        )

    def _settle_term(self, message: Message) -> bool:
        """Compare terms; whether the message is to be handled."""
        if message.term == 0 or message.term == self.term:
            return True
        if message.term < self.term:
            self._answer_stale(message)
            return False
        if isinstance(message, RequestVote):
            if not message.transfer and self._in_lease():
                return False
            if message.pre_vote:
                return True
        if isinstance(message, RequestVoteResponse) and message.pre_vote and message.granted:
            # Granted for a term we have not entered yet.
            return True
        from_leader = isinstance(message, AppendEntries | Heartbeat | InstallSnapshot)
        self._become_follower(message.term, message.sender if from_leader else NOBODY)
        return True

    def _answer_stale(self, message: Message) -> None:
        """Tell a deposed leader, or a pre-candidate that lags, of our term: else it would never learn it."""
        if isinstance(message, AppendEntries | Heartbeat):
            self._messages_after_persist.append(
                AppendEntriesResponse(self.id, message.sender, self.term, True, 0, 0, 0)
            )
        elif isinstance(message, RequestVote) and message.pre_vote:
            self._messages_after_persist.append(RequestVoteResponse(self.id, message.sender, self.term, False, True))

    def _handle_request_vote(self, message: RequestVote) -> None:
        free = self.voted_for == message.sender or (self.voted_for == NOBODY and self.leader == NOBODY)
        may_vote = free or (message.pre_vote and message.term > self.term)
        granted = may_vote and self.log.is_up_to_date(message.last_log_index, message.last_log_term)
        # A pre-vote is granted for the term asked about; everything else speaks of our own term.
        term = message.term if granted else self.term
        answer = RequestVoteResponse(self.id, message.sender, term, granted, message.pre_vote)
        self._messages_after_persist.append(answer)
        if granted and not message.pre_vote:
            self.voted_for = message.sender
            self._election_elapsed = 0

    def _handle_vote_response(self, message: RequestVoteResponse) -> None:
        expected = self.role is (Role.PRE_CANDIDATE if message.pre_vote else Role.CANDIDATE)
        if expected and message.pre_vote and message.granted and message.term != self.term + 1:
            return
        if expected:
            self._count_vote(message.sender, granted=message.granted)

    def _handle_timeout_now(self, message: TimeoutNow) -> None:
        if self.role is Role.FOLLOWER and self._promotable():
            self._become_candidate(transfer=True)

    # Following

    def _follow(self, leader: NodeId) -> None:
        if self.role is Role.LEADER:
            raise InvariantViolation(f"two leaders in term {self.term}: {self.id:x} and {leader:x}")
        if self.role is not Role.FOLLOWER:
            self._become_follower(self.term, leader)
        self.leader = leader
        self._election_elapsed = 0

    def _handle_append(self, message: AppendEntries) -> None:
        self._follow(message.sender)
        log = self.log
        if message.prev_log_index < log.commit:
            # All we have up to commit matches any leader; what follows on it is still of use, but a stale probe is not.
            self._answer_append(message.sender, log.commit)
            return
        if log.term(message.prev_log_index) != message.prev_log_term:
            hint_index, hint_term = log.newest_not_after(message.prev_log_index, message.prev_log_term)
            self._messages_after_persist.append(
                AppendEntriesResponse(
                    self.id, message.sender, self.term, True, message.prev_log_index, hint_index, hint_term
                )
            )
            return
        log.merge(message.entries)
        last_new = message.prev_log_index + len(message.entries)
        # Beyond what this message proves to match, our log may still differ from the leader's.
        log.commit_to(min(message.commit, last_new))
        self._answer_append(message.sender, last_new)

    def _answer_append(self, leader: NodeId, index: int) -> None:
        self._messages_after_persist.append(AppendEntriesResponse(self.id, leader, self.term, False, index, 0, 0))

    def _handle_heartbeat(self, message: Heartbeat) -> None:
        self._follow(message.sender)
        self.log.commit_to(message.commit)
        answer = HeartbeatResponse(self.id, message.sender, self.term, message.context)
        # Only a term that is durable may be revealed; then the answer need not wait for entries being written.
        durable = self._durable_vote == (self.term, self.voted_for)
        (self._messages if durable else self._messages_after_persist).append(answer)

    def _handle_install_snapshot(self, message: InstallSnapshot) -> None:
        self._follow(message.sender)
        metadata = message.metadata
        log = self.log
        if metadata.index <= log.commit:
            self._answer_append(message.sender, log.commit)
        elif log.term(metadata.index) == metadata.term:
            log.commit_to(metadata.index)
            self._answer_append(message.sender, log.commit)
        elif self.id in metadata.conf_state.members():
            log.restore(metadata.index, metadata.term)
            self.conf_state = metadata.conf_state
            self._snapshot = metadata
            self._answer_append(message.sender, log.last_index)

    # Leading

    def _tick_leader(self) -> None:
        self._heartbeat_elapsed += 1
        if self._election_elapsed >= self.config.election_ticks:
            self._election_elapsed = 0
            self._transferee = NOBODY
            if self.config.check_quorum and not self._heard_quorum():
                self._become_follower(self.term, NOBODY)
                return
        if self._heartbeat_elapsed >= self.config.heartbeat_ticks:
            self._heartbeat_elapsed = 0
            self._broadcast_heartbeat(self._reads.newest())

    def _heard_quorum(self) -> bool:
        """Whether a quorum was heard since the last time (thesis 6.2); starts a new count."""
        heard = {peer for peer, progress in self._progress.items() if progress.active or peer == self.id}
        for peer, progress in self._progress.items():
            progress.active = peer == self.id
        return quorum.has_quorum(self.conf_state, heard)

    def _propose_entries(self, data: Sequence[bytes], kind: EntryKind) -> None:
        if self._transferee != NOBODY:
            raise ProposalDropped("leadership is being transferred")
        size = sum(map(len, data))
        if self._uncommitted_bytes and self._uncommitted_bytes + size > self.config.max_uncommitted_bytes:
            raise ProposalDropped(f"{self._uncommitted_bytes} bytes are not committed yet")
        self._uncommitted_bytes += size
        first = self.log.last_index + 1
        self.log.append([Entry(self.term, first + place, kind, item) for place, item in enumerate(data)])
        self._broadcast_append()

    def _peers(self) -> list[NodeId]:
        return [peer for peer in self._progress if peer != self.id]

    def _broadcast_append(self) -> None:
        for peer in self._peers():
            self._send_append(peer)

    def _send_append(self, peer: NodeId) -> None:
        """Send what this follower lacks, as far as its window allows; an empty append still carries the commit."""
        progress = self._progress[peer]
        while not progress.paused():
            prev = progress.next - 1
            prev_term = self.log.term(prev)
            if prev_term is None:
                self._send_snapshot(peer, progress)
                return
            entries = self.log.slice(progress.next, self.log.last_index + 1, self.config.max_message_bytes)
            self._messages.append(AppendEntries(self.id, peer, self.term, prev, prev_term, entries, self.log.commit))
            progress.sent(prev + len(entries), sum(len(entry.data) for entry in entries))
            if progress.next > self.log.last_index:
                return

    def _send_snapshot(self, peer: NodeId, progress: Progress) -> None:
        if not progress.active:
            return
        metadata = SnapshotMetadata(
            index=self.log.snapshot_index, term=self.log.snapshot_term, conf_state=self.conf_state
        )
        progress.become_snapshot(metadata.index)
        self._messages.append(InstallSnapshot(self.id, peer, self.term, metadata))

    def _broadcast_heartbeat(self, context: bytes) -> None:
        for peer in self._peers():
            # Never beyond what the follower is known to hold: its log may differ after that.
            commit = min(self._progress[peer].match, self.log.commit)
            self._messages.append(Heartbeat(self.id, peer, self.term, commit, context))

    def _handle_append_response(self, message: AppendEntriesResponse) -> None:
        progress = self._progress.get(message.sender)
        if self.role is not Role.LEADER or progress is None:
            return
        progress.active = True
        if message.rejected:
            self._append_rejected(message, progress)
        else:
            self._append_accepted(message, progress)

    def _append_rejected(self, message: AppendEntriesResponse, progress: Progress) -> None:
        hint, _ = self.log.newest_not_after(message.hint_index, message.hint_term)
        if progress.rejected(message.index, hint):
            if progress.state is ProgressState.REPLICATE:
                progress.become_probe()
            self._send_append(message.sender)

    def _append_accepted(self, message: AppendEntriesResponse, progress: Progress) -> None:
        was_paused = progress.paused()
        news = progress.accepted(message.index)
        if news or progress.state is ProgressState.PROBE:
            if progress.state is ProgressState.PROBE:
                progress.become_replicate()
            elif progress.state is ProgressState.SNAPSHOT and progress.match >= self.log.snapshot_index:
                progress.become_probe()
                progress.become_replicate()
        if self._maybe_commit():
            self._broadcast_append()
        elif was_paused or progress.next <= self.log.last_index:
            self._send_append(message.sender)
        if message.sender == self._transferee and progress.match == self.log.last_index:
            self._messages.append(TimeoutNow(self.id, message.sender, self.term))

    def _maybe_commit(self) -> bool:
        """Commit what a quorum holds, if it is of our own term (thesis 3.6.2); whether anything was."""
        index = quorum.committed_index(self.conf_state, self._match)
        if index <= self.log.commit or self.log.term(index) != self.term:
            return False
        for entry in self.log.slice(self.log.commit + 1, index + 1):
            self._uncommitted_bytes -= len(entry.data)
        self.log.commit_to(index)
        if self._early_reads:
            waiting, self._early_reads = self._early_reads, []
            for context, requester in waiting:
                self._leader_read_index(context, requester)
        return True

    def _match(self, voter: NodeId) -> int:
        progress = self._progress.get(voter)
        return progress.match if progress is not None else 0

    def _handle_heartbeat_response(self, message: HeartbeatResponse) -> None:
        progress = self._progress.get(message.sender)
        if self.role is not Role.LEADER or progress is None:
            return
        progress.active = True
        progress.heard()
        if progress.match < self.log.last_index:
            self._send_append(message.sender)
        if message.context:
            for done in self._reads.acknowledge(message.context, message.sender, self._wins):
                self._answer_read(done)

    def _handle_propose(self, message: Propose) -> None:
        """Take proposals forwarded to us as the leader of this very term; what cannot be taken is dropped."""
        try:
            if self.role is Role.LEADER:
                self._propose_entries(message.data, EntryKind.NORMAL)
        except ProposalDropped:
            return

    # Reads (thesis 6.4)

    def _wins(self, acks: set[NodeId]) -> bool:
        return quorum.has_quorum(self.conf_state, acks)

    def _leader_read_index(self, context: bytes, requester: NodeId) -> None:
        if self.log.term(self.log.commit) != self.term:
            # A new leader does not know what is committed before an entry of its own term is.
            self._early_reads.append((context, requester))
            return
        if self._wins({self.id}):
            self._answer_read(Round(context, self.log.commit, requester))
            return
        self._reads.open(context, self.log.commit, requester, self.id)
        self._broadcast_heartbeat(context)

    def _answer_read(self, done: Round) -> None:
        if done.requester == self.id:
            self._read_states.append(ReadState(done.context, done.index))
        else:
            self._messages.append(ReadIndexResponse(self.id, done.requester, self.term, done.context, done.index))

    def _handle_read_index(self, message: ReadIndex) -> None:
        if self.role is Role.LEADER:
            self._leader_read_index(message.context, message.sender)

    def _handle_read_index_response(self, message: ReadIndexResponse) -> None:
        self._read_states.append(ReadState(message.context, message.index))

    # Odds and ends

    def _check(self) -> None:
        if self._poison is not None:
            raise self._poison

    def _hard_state(self) -> HardState:
        return HardState(term=self.term, voted_for=self.voted_for, commit=self.log.commit)

    def _soft_state(self) -> SoftState:
        return SoftState(leader=self.leader, role=self.role)
