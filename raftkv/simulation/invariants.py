"""What must hold between the members' Raft states after every event: the safety properties of the dissertation.

Only the member that had a turn is looked at, and only what has changed since it was looked at last. What all members
have ever committed is gathered here, entry by entry: it is the order that every other check starts from.
"""

from collections.abc import Callable

from raftkv.raft import (
    AppendEntries,
    AppendEntriesResponse,
    Entry,
    Heartbeat,
    HeartbeatResponse,
    Message,
    NodeId,
    RequestVote,
    RequestVoteResponse,
    Role,
)
from raftkv.server.server import Server
from raftkv.simulation.machine import Process

_REVEALING = frozenset(
    (AppendEntries, AppendEntriesResponse, Heartbeat, HeartbeatResponse, RequestVote, RequestVoteResponse)
)

LOOK_BACK = 20
"""How many of the committed entries that were compared before are looked at again."""
VOTES = (RequestVote, RequestVoteResponse)


class Violation(Exception):
    """A promise that does not hold; the message says which, and where."""


class Invariants:
    """Election safety, leader append-only, log matching, leader completeness, state machine safety (thesis 3.2), and
    that nothing revealed is forgotten (3.8).

    `committed` are all entries any member knows to be committed, the first of them at index 1.
    """

    def __init__(self, now: Callable[[], int], on_leader: Callable[[int], None] = lambda _: None) -> None:
        """`on_leader` hears which machine was elected, in the turn in which it was."""
        self._now = now
        self._on_leader = on_leader
        self.committed: list[Entry] = []
        self.committed_at: list[int] = []
        """When (ns) an entry was first known to be committed."""
        self.elections = 0
        self.removed: set[NodeId] = set()
        """The members that some member knows to be gone for good."""
        self.role_changes: list[tuple[int, int, str, int]] = []
        """Time, place, role and term; for the timeline."""
        self.marks: dict[int, tuple[object, ...]] = {}
        self._leaders: dict[int, NodeId] = {}
        self._known: dict[tuple[int, int], tuple[Entry, int]] = {}
        self._terms: dict[NodeId, int] = {}
        self._votes: dict[tuple[NodeId, int], NodeId] = {}
        self._led: dict[NodeId, tuple[int, int]] = {}
        self._leading: dict[NodeId, Server] = {}

    # What is sent

    def sent(self, message: Message) -> None:
        """A message leaves its sender: what it reveals must be kept for ever."""
        if type(message) not in _REVEALING:
            return
        vote = None
        if isinstance(message, VOTES):
            if message.pre_vote:
                return
            if isinstance(message, RequestVote):
                vote = message.sender
            elif message.granted:
                vote = message.to
        sender, term = message.sender, message.term
        if term > self._terms.get(sender, 0):
            self._terms[sender] = term
        if vote is not None and self._votes.setdefault((sender, term), vote) != vote:
            raise Violation(
                f"I6 vote durability: {sender:x} votes for {vote:x} in term {term}, "
                f"and did for {self._votes[sender, term]:x}"
            )

    def started(self, process: Process) -> None:
        """A process has read what was on its disk."""
        server = process.server
        if server is not None and server.node.term < self._terms.get(server.node.id, 0):
            node = server.node
            raise Violation(
                f"I6 term durability: {node.id:x} starts in term {node.term} after {self._terms[node.id]} was revealed"
            )

    # What is known

    def turned(self, process: Process) -> None:
        """A process has had a turn."""
        server = process.server
        if server is None:
            return
        node = server.node
        log = node.log
        state = (node.term, log.last_index, log.commit, server.applier.index, node.role)
        before = process.reported
        if state == before or server.failed.done():
            return
        process.reported = state
        if before is None:
            self.started(process)
        if log.applied > log.commit or server.applier.index > log.commit:
            raise Violation(f"I9: {node.id:x} has applied {server.applier.index}, committed {log.commit}")
        if before is not None and log.commit < before[2]:
            raise Violation(f"I9: the commit index of {node.id:x} falls from {before[2]} to {log.commit}")
        if before is None or before[4] is not node.role or before[0] != node.term:
            self._role_changed(process, server)
        if before is None or before[1] != log.last_index or before[0] != node.term:
            self._log_changed(server, before[1] if before is not None else 0)
        if before is None or before[2] != log.commit:
            self._committed(server, 0 if before is None else before[2])
        if before is None or before[3] != server.applier.index:
            self._applied(process, server)

    def _role_changed(self, process: Process, server: Server) -> None:
        node = server.node
        self.role_changes.append((self._now(), process.machine.number, node.role.value, node.term))
        if node.role is not Role.LEADER:
            self._leading.pop(node.id, None)
            if node.role is not Role.FOLLOWER and node.installing:
                raise Violation(f"I10: {node.id:x} stands for election with a snapshot that is not on its disk yet")
            return
        leader = self._leaders.setdefault(node.term, node.id)
        if leader != node.id:
            raise Violation(f"I1 election safety: {leader:x} and {node.id:x} lead term {node.term}")
        if self._leading.get(node.id) is not server or self._led.get(node.id, (0, 0))[0] != node.term:
            self.elections += 1
            self._on_leader(process.machine.number)
        self._leading[node.id] = server
        self._led[node.id] = node.term, 0
        self._check_complete(server)

    def _check_complete(self, server: Server) -> None:
        """A leader holds everything that was ever committed before its term."""
        index = len(self.committed)
        log = server.node.log
        if index <= log.snapshot_index:
            return
        entry = self.committed[index - 1]
        if entry.term <= server.node.term and log.term(index) != entry.term:
            raise Violation(
                f"I4 leader completeness: {server.node.id:x} leads term {server.node.term} and has at {index} term "
                f"{log.term(index)}, committed was {entry.term}"
            )

    def _log_changed(self, server: Server, last_seen: int) -> None:
        """The same index and term mean the same entry behind the same entry."""
        node = server.node
        log = node.log
        if node.role is Role.LEADER:
            term, length = self._led.get(node.id, (0, 0))
            if term == node.term and log.last_index < length:
                raise Violation(f"I2 leader append-only: {node.id:x} shrinks from {length} to {log.last_index}")
            self._led[node.id] = node.term, log.last_index
        index = log.last_index
        known = self._known
        while index > log.snapshot_index:
            entry = log.slice(index, index + 1)[0]
            previous = log.term(index - 1)
            found = known.get((index, entry.term))
            if found is None:
                known[index, entry.term] = entry, previous or 0
            else:
                if found[1] != previous or (found[0] is not entry and found[0].data != entry.data):
                    raise Violation(
                        f"I3 log matching: {node.id:x} has another entry {index} of term {entry.term}, or before it"
                    )
                if index <= last_seen:
                    # What is behind it was compared before.
                    return
            index -= 1

    def _committed(self, server: Server, last_seen: int) -> None:
        log = server.node.log
        committed = self.committed
        first = max(log.snapshot_index, last_seen - LOOK_BACK) + 1
        entries = log.slice(first, log.commit + 1)
        known = committed[first - 1 : first - 1 + len(entries)]
        # Nearly always the same objects: lists compare them in no time.
        if entries[: len(known)] != known:
            mine, other = next((one, two) for one, two in zip(entries, known, strict=False) if one != two)
            raise Violation(
                f"I5 state machine safety: {server.node.id:x} commits another entry {mine.index} "
                f"of term {mine.term}; committed was one of term {other.term}"
            )
        grown = len(entries) > len(known)
        for entry in entries[len(known) :]:
            if entry.index != len(committed) + 1:
                raise Violation(f"entry {entry.index} is committed, and nobody saw {len(committed) + 1}")
            committed.append(entry)
            self.committed_at.append(self._now())
        if grown:
            term = committed[-1].term
            for leader in self._leading.values():
                if leader.node.role is Role.LEADER and leader.node.term > term and not leader.failed.done():
                    self._check_complete(leader)

    def _applied(self, process: Process, server: Server) -> None:
        """What is applied is durable here, and members that have applied as much agree on what came of it."""
        applier, log = server.applier, server.node.log
        if applier.index > log.snapshot_index and not process.durable(applier.index, applier.term):
            raise Violation(
                f"I9: {server.node.id:x} has applied entry {applier.index} of term {applier.term}, "
                "which is not on its disk"
            )
        store, leases, membership = server.store, server.leases.store, server.membership
        conf_state = membership.conf_state
        if server.node.conf_state != conf_state:
            raise Violation(f"I10: {server.node.id:x} works under {server.node.conf_state}, applied is {conf_state}")
        self.removed.update(membership.removed)
        auth_revision = applier.auth.revision
        mark = (store.revision, store.compacted_revision, len(leases), leases.grants, auth_revision, conf_state)
        index = server.applier.index
        known = self.marks.setdefault(index, mark)
        if known != mark:
            raise Violation(
                f"I5 state: {server.node.id:x} has after entry {index} revision, compacted revision, leases, grants, "
                f"revision of users and configuration {mark}; another member {known}"
            )

    def died(self, member: NodeId) -> None:
        """A process is gone."""
        self._leading.pop(member, None)
