"""A group of cores joined by a network that tests control, with the rules of Raft checked after every event."""

import itertools
import random
from collections.abc import Callable

from raftkv.raft import (
    AppendEntriesResponse,
    ChangeRefused,
    Config,
    ConfState,
    Entry,
    EntryKind,
    HardState,
    HeartbeatResponse,
    InstallSnapshot,
    Message,
    ProposalDropped,
    RaftNode,
    ReadState,
    Ready,
    Role,
    add_learner,
    add_voter,
    enter_joint,
    leave_joint,
    remove,
)
from raftkv.raft.quorum import has_quorum


class Disk:
    """What one node has made durable. `entries` are all there ever were; a snapshot has those up to its index."""

    def __init__(self) -> None:
        self.snapshot_index = 0
        self.hard_state = HardState()
        self.entries: list[Entry] = []

    def persist(self, ready: Ready) -> None:
        if not ready.must_sync:
            # Nothing is written for a commit index alone.
            return
        if ready.hard_state is not None:
            self.hard_state = ready.hard_state
        if ready.entries:
            self.entries = self.entries[: ready.entries[0].index - 1] + list(ready.entries)


def changed(conf: ConfState, data: bytes) -> ConfState:
    """What an entry makes of a configuration: `+4` `~4` `-4` add a voter or learner, remove; `=1,2;3` go to these
    voters and learners through a joint one; nothing leaves that. What cannot be done is not."""
    kind, rest = data[:1], data[1:].decode()
    try:
        if kind == b"=":
            voters, _, learners = rest.partition(";")
            return enter_joint(conf, *([int(node) for node in half.split(",") if node] for half in (voters, learners)))
        return {b"+": add_voter, b"~": add_learner, b"-": remove}[kind](conf, int(rest)) if data else leave_joint(conf)
    except ChangeRefused:
        return conf


class Group:
    """Nodes 1 to `size`, and `spare` more that are no members at first. Messages wait in `network` until they
    are delivered.

    Checked after every event (figure 3.2 of the thesis): election safety, leader append-only, log matching, leader
    completeness, state machine safety; and that no commit is forgotten and no read index is too old. What any node
    says is committed counts at once, before anyone applies it: a majority must have it on disk by then.
    """

    def __init__(self, size: int, seed: int = 0, *, spare: int = 0, **config: int | bool) -> None:
        self.conf_state = ConfState(voters=tuple(range(1, size + 1)))
        self.random = random.Random(seed)
        self.settings = config
        self.committed: list[Entry] = []
        self.disks = {node: Disk() for node in range(1, size + spare + 1)}
        self.nodes = {node: self._start(node) for node in self.disks}
        self.unsynced: dict[int, list[Ready]] = {node: [] for node in self.nodes}
        self.network: list[Message] = []
        self.applied: dict[int, list[Entry]] = {node: [] for node in self.nodes}
        self.committed_in: list[int] = []
        """The term in which each was: the first to know is the leader."""
        self.commits: dict[int, int] = dict.fromkeys(self.nodes, 0)
        self.leaders: dict[int, int] = {}
        self.leader_logs: dict[int, list[Entry]] = {}
        self.reads: dict[bytes, int] = {}
        self.answers: list[tuple[int, ReadState]] = []
        self.votes: dict[tuple[int, int], int] = {}
        self.acknowledged: dict[tuple[int, int], list[Entry]] = {}
        self.on_send: Callable[[Message], None] = lambda message: None

    def _start(self, node: int) -> RaftNode:
        disk = self.disks[node]
        config = Config(id=node, random=random.Random(self.random.random()), **self.settings)  # type: ignore[arg-type]
        index = disk.snapshot_index
        return RaftNode(
            config,
            self.conf_at(index),
            disk.hard_state,
            disk.entries[index:],
            snapshot_index=index,
            snapshot_term=disk.entries[index - 1].term if index else 0,
            applied=index,
        )

    def conf_at(self, index: int) -> ConfState:
        """The configuration that follows from what is committed up to an index."""
        conf = self.conf_state
        for entry in self.committed[:index]:
            if entry.kind is EntryKind.CONF_CHANGE:
                conf = changed(conf, entry.data)
        return conf

    def members(self) -> dict[int, RaftNode]:
        """The nodes that take part, by all that is committed."""
        return {node: self.nodes[node] for node in self.conf_at(len(self.committed)).members()}

    # What can happen

    def tick(self, node: int) -> None:
        self.nodes[node].tick()
        self.take(node)

    def deliver(self, message: Message) -> None:
        self.nodes[message.to].step(message)
        self.take(message.to)

    def take(self, node: int) -> None:
        """Take what the node owes: send and apply; what must be durable waits for `sync`."""
        core = self.nodes[node]
        # As a server does it.
        self._send(core.take_messages())
        while core.has_ready():
            ready = core.ready()
            self._send(ready.messages)
            self.unsynced[node].append(ready)
            if ready.snapshot is not None:
                assert ready.snapshot.conf_state == self.conf_at(ready.snapshot.index), "a snapshot of other members"
                self.applied[node] = self.committed[: ready.snapshot.index]
            # Before a configuration is applied: what is committed by now was so under the one before it.
            self._check_committed(core)
            self._apply(node, ready)
            for state in ready.read_states:
                self._answer(node, state)
        self.check()

    def sync(self, node: int, count: int | None = None) -> None:
        """Make the oldest `count` Readys durable, by default all; then what waited for them is sent."""
        waiting = self.unsynced[node]
        if not waiting:
            return
        for _ in range(len(waiting) if count is None else min(count, len(waiting))):
            ready = waiting.pop(0)
            if ready.snapshot is not None:
                self.disks[node].snapshot_index = ready.snapshot.index
                self.disks[node].entries = self.committed[: ready.snapshot.index]
            self.disks[node].persist(ready)
            self._check_acknowledged(node)
            self.nodes[node].advance(ready)
            self._send(ready.messages_after_persist)
        self.take(node)

    def compact(self, node: int, index: int) -> None:
        """Put what is applied up to `index` in a snapshot, and forget the log up to there."""
        self.disks[node].snapshot_index = max(index, self.disks[node].snapshot_index)
        self.nodes[node].compact(index)
        self.check()

    def report_snapshots(self) -> None:
        """Tell leaders that snapshots they sent, and that are not under way any more, did not arrive."""
        under_way = {(m.sender, m.to) for m in self.network if isinstance(m, InstallSnapshot)}
        for node, peer in itertools.permutations(self.nodes, 2):
            if (node, peer) not in under_way:
                self.nodes[node].report_snapshot(peer, ok=False)

    def log(self, node: RaftNode) -> list[Entry]:
        """The whole log of a node; a snapshot stands for what was committed."""
        index = node.log.snapshot_index
        assert not index or node.log.snapshot_term == self.committed[index - 1].term, "a snapshot of another log"
        return self.committed[:index] + node.log.slice(index + 1, node.last_index + 1)

    def crash(self, node: int) -> None:
        """Lose everything that was not synced, and start again. The state machine starts from its snapshot, too."""
        self.unsynced[node].clear()
        self.applied[node] = self.committed[: self.disks[node].snapshot_index]
        self.leader_logs = {term: log for term, log in self.leader_logs.items() if self.leaders[term] != node}
        self.nodes[node] = self._start(node)
        self.commits[node] = self.disks[node].snapshot_index
        self.take(node)

    def read(self, node: int, context: bytes) -> None:
        self.reads[context] = len(self.committed)
        self.nodes[node].read_index(context)
        self.take(node)

    def settle(self, drop: Callable[[Message], bool] = lambda message: False) -> None:
        """Sync and deliver until nothing moves."""
        for _ in range(10_000):
            for node in self.nodes:
                self.sync(node)
            if not self.network:
                return
            message = self.network.pop(0)
            if not drop(message):
                self.deliver(message)
        raise AssertionError("the group never comes to rest")

    def elect(self, node: int) -> None:
        """Make this node the leader."""
        self.nodes[node].campaign()
        self.take(node)
        self.settle()
        assert self.nodes[node].role is Role.LEADER

    def recover(self) -> None:
        """Liveness: everything works again, and within bounded ticks a leader is followed by all, what its log holds is
        committed though nobody proposes anything, a read is answered, and a proposal is applied everywhere."""
        steps = iter((self._read_at, self._propose_at))
        due = next(steps)
        for _ in range(200):
            # Who was removed is not listened to: it may as well be silent.
            for node in self.members():
                self.tick(node)
            self.settle()
            self.report_snapshots()
            leader = self.leader()
            if leader is None or any(node.leader != leader.id for node in self.members().values()):
                continue
            if due(leader):
                step = next(steps, None)
                if step is None:
                    return
                due = step
        raise AssertionError(f"the group does not recover: {due.__name__}, {[n.status() for n in self.nodes.values()]}")

    def _read_at(self, leader: RaftNode) -> bool:
        context = b"recovered %d" % len(self.reads)
        self.read(leader.id, context)
        self.settle()
        answered = any(state.context == context for _, state in self.answers)
        return answered and all(node.commit_index == leader.last_index for node in self.members().values())

    def _propose_at(self, leader: RaftNode) -> bool:
        data = b"recovered %d" % leader.last_index
        try:
            leader.propose([data])
        except ProposalDropped:
            return False  # a transfer is under way, and will be given up
        self.take(leader.id)
        self.settle()
        left = not self.conf_at(len(self.committed)).voters_outgoing
        return left and all(self.applied[node][-1].data == data for node in self.members())

    def leader(self) -> RaftNode | None:
        """The leader of the newest term, if there is one."""
        leading = [node for node in self.nodes.values() if node.role is Role.LEADER]
        return max(leading, key=lambda node: node.term, default=None)

    # What must hold

    def _send(self, messages: "list[Message] | tuple[Message, ...]") -> None:  # type: ignore[type-arg]
        for message in messages:
            self.on_send(message)
            self._check_vote(message)
            self._note_acknowledgement(message)
            if isinstance(message, AppendEntriesResponse | HeartbeatResponse):
                assert message.term <= self.disks[message.sender].hard_state.term, f"{message} reveals a term too early"
            self.network.append(message)

    def _check_vote(self, message: Message) -> None:
        if type(message).__name__ == "RequestVoteResponse" and message.granted and not message.pre_vote:  # type: ignore[union-attr]
            key = (message.sender, message.term)
            assert self.votes.setdefault(key, message.to) == message.to, f"{message.sender} voted twice: {key}"
            assert self.disks[message.sender].hard_state.term >= message.term, "a vote left before it was durable"

    def _note_acknowledgement(self, message: Message) -> None:
        if isinstance(message, AppendEntriesResponse) and not message.rejected:
            durable = self.disks[message.sender].entries
            assert message.index <= len(durable), f"{message} left before its entries were durable"
            key = (message.sender, message.term)
            if message.index > len(self.acknowledged.get(key, ())):
                self.acknowledged[key] = durable[: message.index]

    def _check_acknowledged(self, node: int) -> None:
        """What a follower acknowledged to a leader it keeps for as long as that leader's term lasts."""
        disk = self.disks[node]
        kept = self.acknowledged.get((node, disk.hard_state.term), [])
        assert disk.entries[: len(kept)] == kept, f"{node} dropped entries it had acknowledged"

    def _apply(self, node: int, ready: Ready) -> None:
        durable = self.disks[node].entries
        for entry in ready.committed:
            log = self.applied[node]
            assert entry.index == len(log) + 1, f"{node} applied {entry.index} after {len(log)}"
            assert durable[entry.index - 1 : entry.index] == [entry], f"{node} applied {entry}, which may yet be lost"
            assert self.committed[entry.index - 1 : entry.index] in ([], [entry]), (
                f"state machines differ at {entry.index}"
            )
            log.append(entry)
            if entry.kind is EntryKind.CONF_CHANGE:
                core = self.nodes[node]
                core.apply_conf_state(changed(core.conf_state, entry.data), entry.index)
        if ready.committed:
            self.nodes[node].applied_to(ready.committed[-1].index)

    def _check_committed(self, node: RaftNode) -> None:
        if node.log.held:
            # It has not said so yet, and may forget it.
            return
        for entry in self.log(node)[self.commits[node.id] : node.commit_index]:
            if entry.index <= len(self.committed):
                assert self.committed[entry.index - 1] == entry, f"{node.id} has another entry committed: {entry}"
            else:
                self._check_quorum_holds(entry, node.conf_state)
                self.committed.append(entry)
                self.committed_in.append(node.term)
        self.commits[node.id] = node.commit_index

    def _check_quorum_holds(self, entry: Entry, conf: ConfState) -> None:
        holders = {
            node
            for node, disk in self.disks.items()
            if len(disk.entries) >= entry.index and disk.entries[entry.index - 1] == entry
        }
        assert has_quorum(conf, holders), f"{entry} was committed with durable copies at {holders} of {conf}"

    def _answer(self, node: int, state: ReadState) -> None:
        self.answers.append((node, state))
        assert state.index >= self.reads[state.context], f"stale read: {state} at {self.reads[state.context]}"

    def check(self) -> None:
        for node in self.nodes.values():
            if node.commit_index != self.commits[node.id]:
                self._check_committed(node)
            if node.role is Role.LEADER:
                known = self.leaders.setdefault(node.term, node.id)
                assert known == node.id, f"two leaders in term {node.term}: {known} and {node.id}"
                log = self.log(node)
                before = self.leader_logs.get(node.term)
                if before is None:
                    state = self.disks[node.id].hard_state
                    assert (state.term, state.voted_for) == (node.term, node.id), f"{node.id} may forget its own vote"
                    # One elected by votes that came late may lack what later terms committed; nobody follows it.
                    needed = sum(term < node.term for term in self.committed_in)
                    assert log[:needed] == self.committed[:needed], f"leader {node.id} lacks committed entries"
                else:
                    assert log[: len(before)] == before, f"leader {node.id} changed its log"
                self.leader_logs[node.term] = log
        self._check_log_matching()

    def _check_log_matching(self) -> None:
        logs = [self.log(node) for node in self.nodes.values()]
        first = logs[0]
        for other in logs[1:]:
            for index in range(min(len(first), len(other)) - 1, -1, -1):
                if first[index].term == other[index].term:
                    assert first[: index + 1] == other[: index + 1], "logs with an equal entry differ before it"
                    break
