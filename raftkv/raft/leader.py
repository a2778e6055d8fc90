"""What only a leader has and does: it replicates, counts, proves that it leads, and hands over.

A `Leader` lives for one term; stepping down drops it with everything it waited for. It sends before its own disk is
done and counts its own copy when `persisted()` says so (thesis 10.2.1).
"""

from collections.abc import Iterable, Sequence
from contextlib import suppress

from . import quorum
from .config import Config, Outbox, ReadState
from .errors import InvariantViolation, ProposalDropped
from .log import RaftLog
from .membership import Membership
from .messages import (
    NOBODY,
    AppendEntries,
    AppendEntriesResponse,
    Entry,
    EntryKind,
    Heartbeat,
    HeartbeatResponse,
    InstallSnapshot,
    NodeId,
    ReadIndexResponse,
    SnapshotMetadata,
    TimeoutNow,
)
from .progress import Progress, ProgressState
from .read_only import Read, ReadRounds


class Leader:
    """Leadership of one term.

    Invariants:
    1. The log is only appended to; an entry is committed by counting only if it is of this term.
    2. `_uncommitted_bytes` is the size of the entries above the commit index.
    3. Reads are answered only when an entry of this term is committed.
    """

    __slots__ = (
        "_config",
        "_confirmers",
        "_early_reads",
        "_id",
        "_log",
        "_membership",
        "_out",
        "_pending_conf_index",
        "_progress",
        "_reads",
        "_term",
        "_transferee",
        "_uncommitted_bytes",
    )

    def __init__(self, config: Config, term: int, log: RaftLog, membership: Membership, out: Outbox) -> None:
        self._config = config
        self._id = config.id
        self._term = term
        self._log = log
        self._membership = membership
        self._out = out
        self._progress: dict[NodeId, Progress] = {}
        self._reads = ReadRounds()
        self._early_reads: list[tuple[bytes, NodeId]] = []
        self._confirmers: tuple[NodeId, ...] = ()
        """Who confirmed the last round of reads, and so the next one; empty: all are asked."""
        self._transferee: NodeId = NOBODY
        self._uncommitted_bytes = sum(len(entry.data) for entry in log.slice(log.commit + 1, log.last_index + 1))
        self._track_members(active=False)
        # The no-op of our term lets everything before it be committed (thesis 3.6.2, 6.4). A configuration may hide
        # among what we inherited: none is proposed before the no-op is applied (thesis 4.1, and its erratum).
        log.append([Entry(term, log.last_index + 1, EntryKind.NORMAL, b"")])
        self._pending_conf_index = log.last_index
        self._broadcast_append()

    # Proposals

    def propose(self, data: Sequence[bytes], kind: EntryKind = EntryKind.NORMAL) -> None:
        """Append each item as one entry and send them.

        Raises:
            ProposalDropped: leadership is being transferred, or `max_uncommitted_bytes` is reached.
        """
        if self._transferee != NOBODY:
            raise ProposalDropped("leadership is being transferred")
        size = sum(map(len, data))
        if self._uncommitted_bytes and self._uncommitted_bytes + size > self._config.max_uncommitted_bytes:
            raise ProposalDropped(f"{self._uncommitted_bytes} bytes are not committed yet")
        self._uncommitted_bytes += size
        first = self._log.last_index + 1
        self._log.append([Entry(self._term, first + place, kind, item) for place, item in enumerate(data)])
        self._broadcast_append()

    def propose_conf_change(self, data: bytes) -> None:
        """Propose a configuration; one at a time.

        Raises:
            ProposalDropped: an earlier one, or our first entry, is not applied yet; or as `propose`.
        """
        if not self.may_change_conf:
            raise ProposalDropped(
                f"index {self._pending_conf_index} must be applied before a configuration is proposed"
            )
        self.propose([data], EntryKind.CONF_CHANGE)
        self._pending_conf_index = self._log.last_index

    @property
    def may_change_conf(self) -> bool:
        """Whether no change of the configuration is under way, nor could one hide among what was inherited."""
        return self._pending_conf_index <= self._log.applied

    # Members

    def leave_joint(self) -> None:
        """Propose to leave a joint configuration that is to be left of itself (thesis 4.3), once it is applied.

        An entry without data says so; whoever leads when it is due proposes it, and nobody does so twice.
        """
        conf_state = self._membership.current
        if conf_state.auto_leave and conf_state.voters_outgoing and self.may_change_conf:
            with suppress(ProposalDropped):
                self.propose_conf_change(b"")

    def members_changed(self) -> None:
        """Follow a new configuration: who is counted, who is sent to."""
        if self._transferee not in self._membership.current.voters:
            self._transferee = NOBODY
        # One that is new has not been silent yet (else CheckQuorum might depose us), and may need a snapshot at once.
        self._track_members(active=True)
        self._maybe_commit()
        self._broadcast_append()

    def _track_members(self, *, active: bool) -> None:
        self._confirmers = ()
        known = self._progress
        self._progress = {
            member: known.get(member) or self._new_progress(active) for member in self._membership.current.members()
        }
        own = self._progress.get(self._id)
        if own is not None:
            own.accepted(self._log.durable)
            own.active = True

    def _new_progress(self, active: bool) -> Progress:
        return Progress(
            match=0,
            next_index=self._log.last_index + 1,
            max_messages=self._config.max_inflight_messages,
            max_bytes=self._config.max_inflight_bytes,
            active=active,
        )

    def match_indexes(self) -> dict[NodeId, int]:
        """How far each member's log is known to agree."""
        return {peer: progress.match for peer, progress in self._progress.items()}

    def unreachable(self, peer: NodeId) -> None:
        """Stop streaming to this peer, find out where it is."""
        progress = self._progress.get(peer)
        if peer in self._confirmers:
            self._confirmers = ()
        if progress is not None and progress.state is ProgressState.REPLICATE:
            progress.become_probe()

    def snapshot_reported(self, peer: NodeId, *, ok: bool) -> None:
        """Leave the snapshot state; the peer's answer or the next heartbeat restarts the flow."""
        progress = self._progress.get(peer)
        if progress is None or progress.state is not ProgressState.SNAPSHOT:
            return
        if not ok:
            progress.pending_snapshot = 0
        progress.become_probe()
        progress.probe_sent = True

    # Time

    def beat(self) -> None:
        """Send heartbeats; they repeat the newest read round, so that a lost one is made up for."""
        newest = self._reads.newest()
        if newest:
            # Whoever was asked may be gone. Whoever answers first is asked from then on.
            self._confirmers = ()
        self._send_heartbeats(self._peers(), newest)

    def heard_quorum(self) -> bool:
        """Whether a quorum answered since this was last asked (thesis 6.2)."""
        heard = {peer for peer, progress in self._progress.items() if progress.active or peer == self._id}
        for peer, progress in self._progress.items():
            progress.active = peer == self._id
        return quorum.has_quorum(self._membership.current, heard)

    def transfer(self, to: NodeId) -> None:
        """Bring a voter up to date and let it start an election; no proposals are taken meanwhile (thesis 3.10)."""
        self._transferee = to
        progress = self._progress[to]
        if progress.match == self._log.last_index:
            self._out.messages.append(TimeoutNow(self._id, to, self._term))
        else:
            progress.probe_sent = False
            self._send_append(to)

    def give_up_transfer(self) -> None:
        """Take proposals again."""
        self._transferee = NOBODY

    # Replication (thesis 3.5, 10.2.2)

    def _peers(self) -> list[NodeId]:
        return [peer for peer in self._progress if peer != self._id]

    def _broadcast_append(self) -> None:
        for peer in self._peers():
            self._send_append(peer)

    def _send_append(self, peer: NodeId) -> None:
        """Send what this follower lacks, as far as its window allows; an empty append still carries the commit."""
        progress = self._progress[peer]
        while not progress.paused():
            if not self._append_from(peer, progress, self._log.last_index + 1) or progress.next > self._log.last_index:
                return

    def _append_from(self, peer: NodeId, progress: Progress, hi: int, *, ask: bool = False) -> bool:
        """Send one append with entries of [next, hi); False when a snapshot is needed first. `ask` for an answer."""
        prev = progress.next - 1
        prev_term = self._log.term(prev)
        if prev_term is None:
            self._send_snapshot(peer, progress)
            return False
        entries = self._log.slice(progress.next, hi, self._config.max_message_bytes)
        silent = not (entries or ask) and progress.state is ProgressState.REPLICATE
        self._out.messages.append(
            AppendEntries(self._id, peer, self._term, prev, prev_term, entries, self._log.commit, silent)
        )
        progress.sent(prev + len(entries), sum(len(entry.data) for entry in entries))
        return True

    def _send_snapshot(self, peer: NodeId, progress: Progress) -> None:
        if not progress.active:
            return
        log = self._log
        metadata = SnapshotMetadata(
            index=log.snapshot_index, term=log.snapshot_term, conf_state=self._membership.at_snapshot
        )
        progress.become_snapshot(metadata.index)
        self._out.messages.append(InstallSnapshot(self._id, peer, self._term, metadata))

    def _send_heartbeats(self, peers: Iterable[NodeId], context: bytes) -> None:
        for peer in peers:
            # Never beyond what the follower is known to hold: its log may differ after that.
            commit = min(self._progress[peer].match, self._log.commit)
            self._out.messages.append(Heartbeat(self._id, peer, self._term, commit, context))

    def append_answered(self, message: AppendEntriesResponse) -> None:
        """Learn from an answer to an append where the follower's log is, and go on from there."""
        progress = self._progress.get(message.sender)
        if progress is None:
            return
        progress.active = True
        if message.rejected:
            self._append_rejected(message, progress)
        else:
            self._append_accepted(message, progress)

    def _append_rejected(self, message: AppendEntriesResponse, progress: Progress) -> None:
        hint, _ = self._log.newest_not_after(message.hint_index, message.hint_term)
        if progress.rejected(message.index, hint):
            if progress.state is ProgressState.REPLICATE:
                progress.become_probe()
            self._send_append(message.sender)

    def _append_accepted(self, message: AppendEntriesResponse, progress: Progress) -> None:
        if message.index > self._log.last_index:
            # It knows of committed entries that we lack: then we must not lead.
            raise InvariantViolation(f"{message.sender:x} has {message.index}, our log ends at {self._log.last_index}")
        was_paused = progress.paused()
        progress.accepted(message.index)
        if progress.state is ProgressState.PROBE or self._has_snapshot(progress):
            progress.become_replicate()
        if self._maybe_commit():
            self._broadcast_append()
        elif was_paused or progress.next <= self._log.last_index:
            self._send_append(message.sender)
        if message.sender == self._transferee and progress.match == self._log.last_index:
            self._out.messages.append(TimeoutNow(self._id, message.sender, self._term))

    def _has_snapshot(self, progress: Progress) -> bool:
        """Whether the log can take over from the snapshot that was sent."""
        return progress.state is ProgressState.SNAPSHOT and progress.match >= self._log.snapshot_index

    def heartbeat_answered(self, message: HeartbeatResponse) -> None:
        """Note that the follower is alive; it may confirm reads, and shows when appends were lost."""
        progress = self._progress.get(message.sender)
        if progress is None:
            return
        progress.active = True
        progress.heard()
        if progress.match < self._log.last_index:
            all_sent = progress.full() or progress.next > self._log.last_index
            if progress.state is ProgressState.REPLICATE and all_sent:
                # What is in flight may be lost, or the answers: an empty append behind it is refused, or accepted.
                self._append_from(message.sender, progress, progress.next, ask=True)
            else:
                self._send_append(message.sender)
        if message.context:
            self._confirm_reads(message.context, message.sender)

    # Commitment (thesis 3.6.2)

    def persisted(self) -> None:
        """Count our own copies that have become durable."""
        own = self._progress.get(self._id)
        if own is not None:
            own.accepted(self._log.durable)
        if self._maybe_commit():
            self._broadcast_append()

    def _maybe_commit(self) -> bool:
        """Commit what a quorum holds, if it is of our own term; whether anything was."""
        log = self._log
        index = quorum.committed_index(self._membership.current, self._match)
        if index <= log.commit or log.term(index) != self._term:
            return False
        for entry in log.slice(log.commit + 1, index + 1):
            self._uncommitted_bytes -= len(entry.data)
            if entry.kind is EntryKind.CONF_CHANGE:
                log.held = True
        log.commit_to(index)
        if self._early_reads:
            waiting, self._early_reads = self._early_reads, []
            for context, requester in waiting:
                self.read(context, requester)
        return True

    def _match(self, voter: NodeId) -> int:
        progress = self._progress.get(voter)
        return progress.match if progress is not None else 0

    # Reads (thesis 6.4)

    def read(self, context: bytes, requester: NodeId) -> None:
        """Find an index at which a read is linearizable and tell the requester, once a quorum has confirmed us."""
        commit = self._log.commit
        if self._log.term(commit) != self._term:
            # A new leader does not know what is committed before an entry of its own term is.
            self._early_reads.append((context, requester))
            return
        read = Read(context, requester, commit)
        if self._wins({self._id}):
            self._answer_read(read)
            return
        name = self._reads.add(read, self._id)
        if name is not None:
            self._send_heartbeats(self._confirmers or self._peers(), name)

    def _confirm_reads(self, name: bytes, follower: NodeId) -> None:
        """Count an acknowledgement of a round of reads.

        Those who confirm a round are a quorum with us, and are asked alone the next time: to ask everybody costs each
        read a message to and from every follower more. Should one of them fall silent, the next heartbeat asks all.
        """
        confirmed, acks = self._reads.acknowledge(name, follower, self._wins)
        for read in confirmed:
            self._answer_read(read)
        if confirmed and not self._confirmers:
            conf = self._membership.current
            voters = {*conf.voters, *conf.voters_outgoing} & acks
            self._confirmers = tuple(peer for peer in self._peers() if peer in voters)

    def sole_read_index(self) -> int | None:
        """The index at which a read is linearizable now, if our own word is a quorum; else None."""
        commit = self._log.commit
        if self._log.term(commit) != self._term or not self._wins({self._id}):
            return None
        return commit

    def reads_announced(self) -> None:
        """Our heartbeats have been handed out."""
        self._reads.announced()

    def _wins(self, acks: set[NodeId]) -> bool:
        return quorum.has_quorum(self._membership.current, acks)

    def _answer_read(self, read: Read) -> None:
        if read.requester == self._id:
            self._out.read_states.append(ReadState(read.context, read.index))
        else:
            self._out.messages.append(ReadIndexResponse(self._id, read.requester, self._term, read.context, read.index))
