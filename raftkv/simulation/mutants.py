"""Bugs on purpose: each is one that Raft and etcd implementations have had, put back where the code has that seam.

A mutant exists to be found. `raftkv sim --mutant NAME` runs with it, in that process only; docs/guarantees.md has a
table of how many seeds each one survives. What no mutant can reach, no seed protects.
"""

from collections.abc import Callable, Sequence
from typing import Any

from raftkv.mvcc.store import Store
from raftkv.mvcc.txn import Txn
from raftkv.raft import Entry, RaftNode, RequestVote, RequestVoteResponse, quorum
from raftkv.raft.leader import Leader
from raftkv.raft.log import RaftLog
from raftkv.raft.progress import Progress
from raftkv.raft.read_only import Read, ReadRounds
from raftkv.server import server as server_module
from raftkv.server.apply import _APPLIED, _APPLIED_FORMAT, Applier
from raftkv.server.reads import Reads
from raftkv.server.server import Server
from raftkv.simulation.lease_mutants import LEASE_MUTANTS
from raftkv.simulation.member_mutants import MEMBER_MUTANTS
from raftkv.simulation.store_mutants import STORE_MUTANTS
from raftkv.wal import Wal
from raftkv.wal import format as wal_format
from raftkv.wal import log as wal_log
from raftkv.watch import Hub

MUTANTS: dict[str, Callable[[], None]] = {**LEASE_MUTANTS, **MEMBER_MUTANTS, **STORE_MUTANTS}
"""Name to what puts the bug in."""


def _mutant(install: Callable[[], None]) -> Callable[[], None]:
    MUTANTS[install.__name__.replace("_", "-")] = install
    return install


def _replace(owner: Any, name: str, make: Callable[[Any], Any]) -> None:
    setattr(owner, name, make(getattr(owner, name)))


# Durability


@_mutant
def acknowledges_before_fsync() -> None:
    """What was handed to the disk counts as durable at once (etcd #14370)."""

    def sync(self: Any) -> None:
        while self._unsynced:
            batch = list(self._unsynced)
            self._unsynced.clear()
            groups = [group for _, group in batch if group is not None]
            if groups:
                self._run(self._run_wal, self._writing(batch, groups), lambda: None)
            self._persisted([owed for owed, _ in batch])
            while self.node.has_ready():
                self._handle(self.node.ready())

    _replace(Server, "_sync", lambda _: sync)


@_mutant
def votes_before_it_is_durable() -> None:
    """A vote is told before it is on disk (raft e9e525d)."""

    def after(self: RaftNode, message: RequestVote) -> None:
        original(self, message)
        out = self._out
        votes = [m for m in out.messages_after_persist if isinstance(m, RequestVoteResponse)]
        out.messages += votes
        out.messages_after_persist = [m for m in out.messages_after_persist if not isinstance(m, RequestVoteResponse)]

    original = RaftNode._handle_request_vote
    _replace(RaftNode, "_handle_request_vote", lambda _: after)


@_mutant
def forgets_its_vote() -> None:
    """The vote is not part of what is written."""
    original = server_module._hard_state

    def without_vote(ready: Any) -> tuple[int, int, int] | None:
        state = original(ready)
        return None if state is None else (state[0], 0, state[2])

    server_module._hard_state = without_vote


@_mutant
def retries_a_failed_fsync() -> None:
    """A failed fsync is tried again, and succeeds (fsync-gate)."""
    original = Wal._write

    def retrying(self: Wal, groups: Sequence[Any]) -> None:
        try:
            original(self, groups)
        except OSError:
            assert self._file is not None
            self._file.sync()
            records = sum(len(group.records) for group in groups)
            self._position += records + wal_format.MARKER_BYTES

    _replace(Wal, "_write", lambda _: retrying)


@_mutant
def truncates_damaged_records() -> None:
    """A damaged record that was acknowledged is taken for a torn write (NATS 2.12.1)."""

    def cut(path: str, data: bytes, group_start: int, damage: int) -> str | None:
        return "cut" if data[group_start:].strip(b"\0") else None

    wal_log.end_of_log = cut


@_mutant
def refuses_a_torn_write() -> None:
    """A write that the power cut short is taken for damage (etcd #15069)."""
    original = wal_log.end_of_log

    def refuse(path: str, data: bytes, group_start: int, damage: int) -> str | None:
        if original(path, data, group_start, damage) is not None:
            raise wal_format.CorruptLog(path, damage, "a record is damaged")
        return None

    wal_log.end_of_log = refuse


@_mutant
def counts_what_was_replaced() -> None:
    """The end of an old write counts for entries that have taken its place (raft 897e1cf)."""
    _replace(RaftLog, "_cut_writes", lambda _: lambda self, standing: None)


# Consensus


@_mutant
def commits_old_terms_by_counting() -> None:
    """A leader commits an entry of an earlier term because a majority has it (thesis figure 3.7)."""

    def maybe_commit(self: Any) -> bool:
        log = self._log
        index = quorum.committed_index(self._membership.current, self._match)
        if index <= log.commit:
            return False
        for entry in log.slice(log.commit + 1, index + 1):
            self._uncommitted_bytes -= len(entry.data)
        log.commit_to(index)
        return True

    _replace(Leader, "_maybe_commit", lambda _: maybe_commit)


@_mutant
def leaks_uncommitted_bytes() -> None:
    """What was committed still counts as uncommitted, until nothing more is taken (raft a370b6f)."""
    original = Leader._maybe_commit

    def maybe_commit(self: Any) -> bool:
        before = self._uncommitted_bytes
        news = original(self)
        self._uncommitted_bytes = before
        return news

    _replace(Leader, "_maybe_commit", lambda _: maybe_commit)


@_mutant
def leaks_inflight_bytes() -> None:
    """What a follower has taken still counts as on its way, until nothing more is sent (raft e419ba5)."""
    original = Progress.accepted

    def accepted(self: Any, index: int) -> bool:
        before = self._inflight_bytes
        news = original(self, index)
        self._inflight_bytes = before
        return news

    _replace(Progress, "accepted", lambda _: accepted)


@_mutant
def votes_for_shorter_logs() -> None:
    """A vote does not ask whether the candidate's log is as complete (thesis 3.6.1)."""
    _replace(RaftLog, "is_up_to_date", lambda _: lambda self, last_index, last_term: True)


@_mutant
def truncates_a_matching_suffix() -> None:
    """An append shortens the log to its own end, even if it was overtaken by a longer one."""
    original = RaftLog.merge

    def merge(self: RaftLog, entries: Sequence[Entry]) -> None:
        original(self, entries)
        if entries and self.commit <= entries[-1].index < self.last_index:
            self._truncate(entries[-1].index + 1)

    _replace(RaftLog, "merge", lambda _: merge)


@_mutant
def takes_appends_that_do_not_match() -> None:
    """A follower does not compare the entry before an append (raft 76f1249)."""

    def handle(self: Any, message: Any) -> None:
        if message.entries and message.prev_log_index <= self.log.last_index:
            known = self.log.term(message.prev_log_index)
            if known is not None:
                message.prev_log_term = known
        original(self, message)

    original = RaftNode._handle_append
    _replace(RaftNode, "_handle_append", lambda _: handle)


@_mutant
def heartbeats_carry_any_commit() -> None:
    """A heartbeat tells a follower to commit what it may not have."""

    def handle(self: Any, message: Any) -> None:
        message.commit = min(max(message.commit, self.log.commit + 1), self.log.last_index)
        original(self, message)

    original = RaftNode._handle_heartbeat
    _replace(RaftNode, "_handle_heartbeat", lambda _: handle)


@_mutant
def never_answers_stale_messages() -> None:
    """A member with a newer term does not tell a deposed leader, nor a candidate that lags (raft d4471b2)."""
    _replace(RaftNode, "_answer_stale", lambda _: lambda self, message: None)


# Reads


@_mutant
def reads_without_asking_a_quorum() -> None:
    """A leader answers reads without making sure that it still leads (thesis 6.4)."""

    def read(self: Any, context: bytes, requester: int) -> None:
        self._answer_read(Read(context, requester, self._log.commit))

    _replace(Leader, "read", lambda _: read)


@_mutant
def late_answers_confirm_later_reads() -> None:
    """All rounds of reads have one name: an answer to an earlier one confirms a later one (etcd #20418)."""

    def add(self: Any, read: Read, leader: int) -> bytes | None:
        self._number = 0
        name: bytes | None = original(self, read, leader)
        return name

    original = ReadRounds.add
    _replace(ReadRounds, "add", lambda _: add)


@_mutant
def reads_before_its_first_commit() -> None:
    """A new leader takes its commit index for the cluster's before it has committed anything (raft 3189a66)."""

    def read(self: Any, context: bytes, requester: int) -> None:
        name = self._reads.add(Read(context, requester, self._log.commit), self._id)
        if name is not None:
            self._broadcast_heartbeat(name)

    _replace(Leader, "read", lambda _: read)


@_mutant
def reads_before_it_has_applied() -> None:
    """A confirmed read does not wait until its index is applied."""

    def confirmed(self: Any, states: Any, applied: int) -> None:
        original(self, states, 1 << 62)

    original = Reads.confirmed
    _replace(Reads, "confirmed", lambda _: confirmed)


# Applying


@_mutant
def applied_index_runs_ahead() -> None:
    """The stored applied index is one entry ahead of the stored effects (etcd 3.5.0, #13766)."""
    original = Applier.apply

    def apply(self: Any, entries: Sequence[Entry], **more: Any) -> None:
        store = self._store
        if len(entries) > 1:
            original(self, entries[:-1], **more)
            store.set_meta(_APPLIED, _APPLIED_FORMAT.pack(entries[-1].index, entries[-1].term))
            flush = store.begin_flush() if not store.backend._frozen[b"meta"] else None
            if flush is not None:
                flush.write()
                store.backend.end_flush(flush)
            entries = entries[-1:]
        original(self, entries, **more)

    _replace(Applier, "apply", lambda _: apply)


@_mutant
def revision_is_not_stored() -> None:
    """After a restart the revision is that of the newest record, which compaction may have removed (etcd #17780)."""

    def begin_flush(self: Any) -> Any:
        return self.backend.begin_flush()

    _replace(Store, "begin_flush", lambda _: begin_flush)


@_mutant
def proposes_twice() -> None:
    """What was handed to a leader is handed over again when there is a new one (etcd #14890, in the server)."""

    def leader_changed(self: Any, state: Any) -> None:
        original(self, state)
        if state.leader:
            waiting = self.proposals._waiting
            self.proposals._queued += [number for number, call in waiting.items() if call.term]

    original = Server._soft_state_changed
    _replace(Server, "_soft_state_changed", lambda _: leader_changed)


@_mutant
def expires_leases_of_other_terms() -> None:
    """An expiry that an earlier leader decided on still counts."""

    def expiry(self: Any, proposal: Any) -> list[bytes]:
        told = proposal.lease_expiry
        self._leases.expire(told.ids, told.grants)
        result: list[bytes] = self._respond(b"")
        return result

    _replace(Applier, "_lease_expiry", lambda _: expiry)


@_mutant
def txn_ranges_are_not_checked() -> None:
    """A transaction finds out about a compacted revision when it has begun to write (etcd #18667)."""
    _replace(Txn, "_check_ranges", lambda _: lambda self, plan: None)


@_mutant
def skips_between_pages() -> None:
    """What does not fit into one page of committed entries is in none (raft 8ecce32)."""

    def take(self: RaftLog, max_bytes: int) -> list[Entry]:
        entries: list[Entry] = original(self, max_bytes)
        self.handed_to_apply = max(self.handed_to_apply, min(self.commit, self.durable))
        return entries

    original = RaftLog.take_to_apply
    _replace(RaftLog, "take_to_apply", lambda _: take)


@_mutant
def stale_state_after_a_snapshot() -> None:
    """The applied index in memory outlives the installation of a snapshot (etcd PR 13933)."""
    original = Applier.load

    def load(self: Any) -> None:
        if not hasattr(self, "index"):
            original(self)

    _replace(Applier, "load", lambda _: load)


# Watches


@_mutant
def progress_overtakes_events() -> None:
    """Progress is told although events wait (etcd #15220)."""
    _replace(Hub, "is_current", lambda _: lambda self, watcher: True)


@_mutant
def future_watches_begin_at_once() -> None:
    """A watch from a future revision is told of earlier ones (etcd #20221)."""

    def join(self: Any, watcher: Any, start_revision: int) -> None:
        original(self, watcher, start_revision if start_revision <= self.revision else 0)

    original = Hub.join
    _replace(Hub, "join", lambda _: join)


@_mutant
def watches_jump_over_a_snapshot() -> None:
    """What a snapshot brought is told to nobody (etcd #15271)."""

    def become(self: Any, store: Any) -> None:
        self._store.on_commit = None
        self._store = store
        store.on_commit = self.committed
        self._fresh.clear()
        self.revision = store.revision

    _replace(Hub, "become", lambda _: become)


@_mutant
def compaction_makes_silent_gaps() -> None:
    """A watcher that compaction has overtaken goes on behind it without a word (etcd #17529)."""

    def end(self: Any, stream: Any) -> None:
        for watcher in stream.behind:
            watcher.next_revision = max(watcher.next_revision, self._store.compacted_revision)

    _replace(Hub, "_end_compacted", lambda _: end)


@_mutant
def compaction_forgets_deletions() -> None:
    """The deletion at the compacted revision is gone for watchers that begin there (etcd #18089, #19179)."""

    def compact_key(self: Any, key: bytes) -> None:
        revision, self.compacted_revision = self.compacted_revision, self.compacted_revision + 1
        try:
            original(self, key)
        finally:
            self.compacted_revision = revision

    original = Store._compact_key
    _replace(Store, "_compact_key", lambda _: compact_key)
