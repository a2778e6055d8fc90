"""The Raft core: messages, ticks and proposals in, a `Ready` out.

A node is a value that is fed and drained. It has no clock, socket, file or thread; time is `tick()`, randomness is
handed in, and whatever must become durable or be sent is handed out in a `Ready`. The rules of durability are in the
type: `messages` may leave at once, `messages_after_persist` only when the Ready they came with is durable, and
`advance(ready)` says that it is. The node's own vote and its own copy of an entry count there and nowhere else
(thesis 10.2.1: a leader's disk works in parallel with its followers').

`ready()` may be called again before an earlier Ready was advanced; Readys are advanced in the order they came.

This module holds terms, votes, elections and following; what only a leader does is in `leader.py`. All changes of
term, vote, role and leader go through `_become_*`. Deviations from the thesis: PreVote (9.6) and CheckQuorum (6.2) are
on by default; entries are forwarded by followers; a configuration takes effect when it is applied, not when it is
appended.
"""

from collections import deque
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

from . import quorum
from .config import Config, Outbox, ReadState, Ready, Role, SoftState, Status
from .errors import InvariantViolation, ProposalDropped
from .leader import Leader
from .log import RaftLog
from .membership import Membership
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

_P = ParamSpec("_P")
_R = TypeVar("_R")


def _guarded(method: "Callable[Concatenate[RaftNode, _P], _R]") -> "Callable[Concatenate[RaftNode, _P], _R]":
    """Let any error but a refusal poison the node: whatever it would do next could make the damage durable."""

    @wraps(method)
    def guarded(self: "RaftNode", /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        if self._poison is not None:
            raise self._poison
        try:
            return method(self, *args, **kwargs)
        except ProposalDropped:
            raise
        except Exception as error:
            self._poison = error if isinstance(error, InvariantViolation) else InvariantViolation(repr(error))
            raise

    return guarded


class RaftNode:
    """One member's Raft.

    Invariants:
    1. `term` never decreases, and `voted_for` changes at most once in a term.
    2. A leader's log only grows; what is committed never changes.
    3. No message in `messages` reveals a term or vote that is not durable; a forwarded proposal or a question before an
       election (PreVote) names a term without promising anything in it.
    4. `_leading` is set exactly while `role` is LEADER.

    Every method raises `InvariantViolation` once it or another one has failed, and does nothing any more.
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
        self._membership = Membership(conf_state, snapshot_index)
        self._poison: InvariantViolation | None = None
        self._durable_vote = (self.term, self.voted_for)
        self._handed_state = self._logged_state = HardState(term=self.term, voted_for=self.voted_for, commit=commit)
        self._handed_soft = SoftState(leader=NOBODY, role=Role.FOLLOWER)
        self._out = Outbox()
        self._snapshot: SnapshotMetadata | None = None
        self._installing = False
        self._outstanding: deque[Ready] = deque()
        self._settling: Ready | None = None
        """The one that makes it durable that a change of the configuration is committed, as long as it is not."""
        self._leading: Leader | None = None
        self._votes: dict[NodeId, bool] = {}
        self._election_elapsed = 0
        self._heartbeat_elapsed = 0
        self._transfer_elapsed = 0
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

    @_guarded
    def tick(self) -> None:
        """Let one unit of time pass."""
        self._election_elapsed += 1
        if self._leading is not None:
            self._tick_leader(self._leading)
        elif self._election_elapsed >= self._randomized_timeout:
            self._campaign()

    @_guarded
    def step(self, message: Message) -> None:
        """Take a message from a peer. Terms are settled here, for every kind, before anything else (thesis 3.3)."""
        if self._settle_term(message):
            self._handlers[type(message)](message)

    @_guarded
    def propose(self, data: Sequence[bytes]) -> None:
        """Append each item as one entry, or pass them on to the leader, who takes them in this term or never.

        Raises:
            ProposalDropped: no leader is known, leadership is being transferred, or `max_uncommitted_bytes` is reached.
        """
        if self._leading is not None:
            self._leading.propose(data)
        elif self.leader == NOBODY:
            raise ProposalDropped("no leader")
        else:
            self._out.messages.append(Propose(self.id, self.leader, self.term, tuple(data)))

    @_guarded
    def propose_conf_change(self, data: bytes) -> None:
        """Propose one change of the configuration; a second one only after the first was applied (thesis 4.1).

        Raises:
            ProposalDropped: we do not lead, or an earlier change, or our own first entry, is not applied yet.
        """
        if self._leading is None:
            raise ProposalDropped("only the leader proposes configurations")
        self._leading.propose_conf_change(data)

    @_guarded
    def apply_conf_state(self, conf_state: ConfState, index: int) -> None:
        """Put a configuration in force; called when the entry at `index`, which holds it, is applied."""
        self._membership.apply(conf_state, index)
        if self.role is Role.FOLLOWER:
            return
        if self.id not in self._membership.voters:
            self._become_follower(self.term, NOBODY)
        elif self._leading is not None:
            self._leading.members_changed()

    @_guarded
    def read_index(self, context: bytes) -> None:
        """Ask for an index at which a read is linearizable; a later Ready answers with the same context.

        The answer may never come (messages are lost): ask again.

        Raises:
            ProposalDropped: no leader is known.
        """
        if self._leading is not None:
            self._leading.read(context, self.id)
        elif self.leader == NOBODY:
            raise ProposalDropped("no leader")
        else:
            self._out.messages.append(ReadIndex(self.id, self.leader, 0, context))

    @_guarded
    def sole_read_index(self) -> int | None:
        """The index at which a read is linearizable now, if nobody else need be asked: a cluster of one. Else None."""
        return None if self._leading is None else self._leading.sole_read_index()

    @_guarded
    def transfer_leader(self, to: NodeId) -> None:
        """Hand leadership to a voter once its log is complete; given up after an election timeout (thesis 3.10)."""
        if self._leading is None or to == self.id or to not in self.conf_state.voters:
            return
        self._transfer_elapsed = 0
        self._leading.transfer(to)

    @_guarded
    def campaign(self) -> None:
        """Stand for election, if we may."""
        self._campaign()

    @_guarded
    def report_unreachable(self, peer: NodeId) -> None:
        """Messages to this peer are being lost: stop streaming, find out where it is."""
        if self._leading is not None:
            self._leading.unreachable(peer)

    @_guarded
    def report_snapshot(self, peer: NodeId, *, ok: bool) -> None:
        """The snapshot sent to this peer was installed, or was not."""
        if self._leading is not None:
            self._leading.snapshot_reported(peer, ok=ok)

    @_guarded
    def applied_to(self, index: int) -> None:
        """The state machine has applied everything up to `index`."""
        self.log.applied_to(index)
        if self._leading is not None:
            self._leading.leave_joint()

    @_guarded
    def compact(self, index: int) -> None:
        """Forget the log up to `index`, which is applied and in a snapshot."""
        self.log.compact(index)
        self._membership.compact(index)

    def snapshot_point(self, index: int, *, max_entries: int, max_bytes: int) -> SnapshotMetadata:
        """Where the log may be compacted to when a snapshot of `index` or later exists; `index` is applied.

        So many entries, and bytes of them, stay before `index` for followers that lag.
        """
        index = self.log.retained_from(index, max_entries=max_entries, max_bytes=max_bytes)
        term = self.log.term(index)
        if term is None:
            raise InvariantViolation(f"no entry {index}: the log begins behind {self.log.snapshot_index}")
        return SnapshotMetadata(index=index, term=term, conf_state=self._membership.at(index))

    # Outputs

    def has_ready(self) -> bool:
        """Whether `ready()` would hand out anything."""
        return bool(self._out.messages) or self._owes_more()

    def _owes_more(self) -> bool:
        """Whether a Ready would hold more than messages that may leave at once."""
        log, out = self.log, self._out
        state, soft = self._handed_state, self._handed_soft
        return bool(
            out.messages_after_persist
            or log.owes()
            or out.read_states
            or self._snapshot
            or log.commit != state.commit
            or self.term != state.term
            or self.voted_for != state.voted_for
            or self.leader != soft.leader
            or self.role is not soft.role
        )

    @_guarded
    def take_messages(self) -> list[Message]:
        """Hand out the messages of a Ready that holds nothing else: nothing follows from them, `advance()` neither.

        Most are of this kind: heartbeats and their answers. No messages: there may be a Ready.
        """
        out = self._out
        if not out.messages or self._settling is not None or self._owes_more():
            return []
        if self._leading is not None:
            self._leading.reads_announced()
        messages, out.messages = out.messages, []
        return messages

    @_guarded
    def ready(self) -> Ready:
        """Hand out what is owed. Persist, send and apply it, then `advance()`."""
        handed, out = self._handed_state, self._out
        entries = self.log.take_to_persist()
        votes_changed = self.term != handed.term or self.voted_for != handed.voted_for
        state = self._hard_state() if votes_changed or self.log.commit != handed.commit else handed
        soft, handed_soft = None, self._handed_soft
        if self.leader != handed_soft.leader or self.role is not handed_soft.role:
            soft = self._handed_soft = self._soft_state()
        # Who is removed leaves as soon as it hears of it. Had we forgotten by our next start that this is committed, we
        # might need its vote to find out again: of two that were, one would never lead. So we note it before we tell
        # anybody, and before we apply it. What the others forget is not covered.
        settles = self.log.held and self._settling is None
        if self.log.held:
            out.messages, out.messages_after_persist = [], out.messages + out.messages_after_persist
        must_sync = bool(entries) or votes_changed or self._snapshot is not None or settles
        # A commit index may be lost, but not before entries that came later: who holds an entry that was proposed under
        # a new configuration must not forget, over a restart, that this configuration is in force.
        known = self._logged_state if must_sync else handed
        if must_sync:
            self._logged_state = state
        ready = Ready(
            hard_state=state if state is not known and state != known else None,
            entries=entries,
            snapshot=self._snapshot,
            must_sync=must_sync,
            messages=out.messages,
            messages_after_persist=out.messages_after_persist,
            committed=self.log.take_to_apply(self.config.max_apply_bytes),
            read_states=out.read_states,
            soft_state=soft,
        )
        out.messages, out.messages_after_persist, out.read_states = [], [], []
        if self._leading is not None:
            self._leading.reads_announced()
        if settles:
            self._settling = ready
        self._snapshot = None
        self._handed_state = state
        self._outstanding.append(ready)
        return ready

    @_guarded
    def advance(self, ready: Ready) -> None:
        """Learn that this Ready is durable. Our own vote and our own copies of its entries count from here on."""
        if not self._outstanding or self._outstanding[0] is not ready:
            raise InvariantViolation("Readys must be advanced in the order they were handed out")
        self._outstanding.popleft()
        if ready is self._settling:
            self._settling, self.log.held = None, False
        if ready.snapshot is not None:
            self._installing = self._snapshot is not None or any(later.snapshot for later in self._outstanding)
        state = ready.hard_state
        if state is not None:
            self._durable_vote = (state.term, state.voted_for)
            if self.role is Role.CANDIDATE and self._durable_vote == (self.term, self.id):
                self._count_vote(self.id, granted=True)
        if ready.entries:
            self.log.persisted()
            if self._leading is not None:
                self._leading.persisted()

    def status(self) -> Status:
        """A view of this moment."""
        return Status(
            id=self.id,
            term=self.term,
            role=self.role,
            leader=self.leader,
            commit=self.log.commit,
            applied=self.log.applied,
            last_index=self.log.last_index,
            match_indexes=self._leading.match_indexes() if self._leading is not None else {},
        )

    @property
    def conf_state(self) -> ConfState:
        """The configuration in force."""
        return self._membership.current

    @property
    def installing(self) -> bool:
        """Whether a snapshot was taken whose Ready is not advanced yet."""
        return self._installing

    @property
    def may_change_conf(self) -> bool:
        """Whether `propose_conf_change` would find no earlier change in its way."""
        return self._leading is not None and self._leading.may_change_conf

    @property
    def commit_index(self) -> int:
        """Highest index known to be committed."""
        return self.log.commit

    @property
    def applied(self) -> int:
        """Highest index the state machine has applied."""
        return self.log.applied

    @property
    def snapshot_index(self) -> int:
        """The log holds the entries behind this index."""
        return self.log.snapshot_index

    @property
    def last_index(self) -> int:
        """Index of the last entry of the log."""
        return self.log.last_index

    def _hard_state(self) -> HardState:
        return HardState(term=self.term, voted_for=self.voted_for, commit=self.log.commit)

    def _soft_state(self) -> SoftState:
        return SoftState(leader=self.leader, role=self.role)

    # Roles: the only places that change term, vote, role and leader

    def _become_follower(self, term: int, leader: NodeId) -> None:
        self._enter_term(term)
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
        self._enter_term(self.term + 1)
        self.role = Role.CANDIDATE
        self.leader = NOBODY
        self.voted_for = self.id
        # Our own vote counts when it is durable, in advance(); the requests leave with it.
        self._request_votes(self.term, pre_vote=False, transfer=transfer)

    def _become_leader(self) -> None:
        if self.role is not Role.CANDIDATE or self._durable_vote != (self.term, self.id):
            raise InvariantViolation(f"{self.id:x} leads term {self.term} as {self.role}, vote {self._durable_vote}")
        self._enter_term(self.term)
        self.role = Role.LEADER
        self.leader = self.id
        self._leading = Leader(self.config, self.term, self.log, self._membership, self._out)

    def _enter_term(self, term: int) -> None:
        if term < self.term:
            raise InvariantViolation(f"term {term} after {self.term}")
        if term != self.term:
            self.term = term
            self.voted_for = NOBODY
        self._votes = {}
        self._leading = None
        self._heartbeat_elapsed = 0
        self._reset_election_timer()

    def _reset_election_timer(self) -> None:
        self._election_elapsed = 0
        ticks = self.config.election_ticks
        self._randomized_timeout = ticks + int(self.config.random.random() * ticks)

    # Elections (thesis 3.4, 3.6.1, 4.2.3, 9.6)

    def _campaign(self) -> None:
        if self.role is Role.LEADER or not self._promotable():
            return
        if self.config.pre_vote:
            self._become_pre_candidate()
        else:
            self._become_candidate(transfer=False)

    def _promotable(self) -> bool:
        """Whether we may stand: a voter, with no snapshot to install and no configuration to apply."""
        if self._installing or self.id not in self._membership.voters:
            return False
        log = self.log
        return all(entry.kind is not EntryKind.CONF_CHANGE for entry in log.slice(log.applied + 1, log.commit + 1))

    def _request_votes(self, term: int, *, pre_vote: bool, transfer: bool) -> None:
        out = self._out.messages if pre_vote else self._out.messages_after_persist
        log = self.log
        for peer in self._membership.voters:
            if peer != self.id:
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
        if isinstance(message, AppendEntries | Heartbeat | InstallSnapshot):
            self._answer_leader(AppendEntriesResponse(self.id, message.sender, self.term, True, 0, 0, 0))
        elif isinstance(message, RequestVote) and message.pre_vote:
            answer = RequestVoteResponse(self.id, message.sender, self.term, False, True)
            self._out.messages_after_persist.append(answer)

    def _handle_request_vote(self, message: RequestVote) -> None:
        free = self.voted_for == message.sender or (self.voted_for == NOBODY and self.leader == NOBODY)
        may_vote = free or (message.pre_vote and message.term > self.term)
        granted = may_vote and self.log.is_up_to_date(message.last_log_index, message.last_log_term)
        # A pre-vote is granted for the term asked about; everything else speaks of our own term.
        term = message.term if granted else self.term
        answer = RequestVoteResponse(self.id, message.sender, term, granted, message.pre_vote)
        self._out.messages_after_persist.append(answer)
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
            # What is committed here is in every leader's log; an append from before it brings nothing new.
            if not message.silent:
                self._acknowledge(message.sender, log.commit)
            return
        if log.term(message.prev_log_index) != message.prev_log_term:
            hint_index, hint_term = log.newest_not_after(message.prev_log_index, message.prev_log_term)
            self._answer_leader(
                AppendEntriesResponse(
                    self.id, message.sender, self.term, True, message.prev_log_index, hint_index, hint_term
                )
            )
            return
        log.merge(message.entries)
        last_new = message.prev_log_index + len(message.entries)
        # Beyond what this message proves to match, our log may still differ from the leader's.
        log.commit_to(min(message.commit, last_new))
        if not message.silent:
            self._acknowledge(message.sender, last_new)

    def _acknowledge(self, leader: NodeId, index: int) -> None:
        self._answer_leader(AppendEntriesResponse(self.id, leader, self.term, False, index, 0, 0))

    def _answer_leader(self, answer: AppendEntriesResponse) -> None:
        self._out.messages_after_persist.append(answer)

    def _handle_heartbeat(self, message: Heartbeat) -> None:
        self._follow(message.sender)
        self.log.commit_to(message.commit)
        answer = HeartbeatResponse(self.id, message.sender, self.term, message.context)
        # Only a term that is durable may be revealed; then the answer need not wait for entries being written.
        durable = self._durable_vote == (self.term, self.voted_for)
        (self._out.messages if durable else self._out.messages_after_persist).append(answer)

    def _handle_install_snapshot(self, message: InstallSnapshot) -> None:
        self._follow(message.sender)
        metadata = message.metadata
        log = self.log
        if metadata.index <= log.commit:
            self._acknowledge(message.sender, log.commit)
        elif log.term(metadata.index) == metadata.term:
            log.commit_to(metadata.index)
            self._acknowledge(message.sender, log.commit)
        else:
            # It may not name us: then we were added behind its point in the log, and learn of that by the entry.
            log.restore(metadata.index, metadata.term)
            self._membership.restore(metadata.conf_state, metadata.index)
            self._snapshot = metadata
            self._installing = True
            self._acknowledge(message.sender, log.last_index)

    # Leading, and asking the leader

    def _tick_leader(self, leading: Leader) -> None:
        self._heartbeat_elapsed += 1
        self._transfer_elapsed += 1
        if self._transfer_elapsed >= self.config.election_ticks:
            leading.give_up_transfer()
        leading.leave_joint()
        if self._election_elapsed >= self.config.election_ticks:
            self._election_elapsed = 0
            if self.config.check_quorum and not leading.heard_quorum():
                self._become_follower(self.term, NOBODY)
                return
        if self._heartbeat_elapsed >= self.config.heartbeat_ticks:
            self._heartbeat_elapsed = 0
            leading.beat()

    def _handle_append_response(self, message: AppendEntriesResponse) -> None:
        if self._leading is not None:
            self._leading.append_answered(message)

    def _handle_heartbeat_response(self, message: HeartbeatResponse) -> None:
        if self._leading is not None:
            self._leading.heartbeat_answered(message)

    def _handle_propose(self, message: Propose) -> None:
        """Take proposals forwarded to us as the leader of this very term; what cannot be taken is dropped."""
        if self._leading is None:
            return
        try:
            self._leading.propose(message.data)
        except ProposalDropped:
            return

    def _handle_read_index(self, message: ReadIndex) -> None:
        if self._leading is not None:
            self._leading.read(message.context, message.sender)

    def _handle_read_index_response(self, message: ReadIndexResponse) -> None:
        self._out.read_states.append(ReadState(message.context, message.index))
