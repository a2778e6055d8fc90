"""Consensus on long random walks, many more steps than hypothesis takes, and bent towards what breaks implementations.

Each walk is a number: it chooses which things happen at all and how often (most walks do without most of them), how the
network orders messages, whose disk is slow. Partitions hold messages back instead of losing them; some messages are
kept and arrive long after. A failure names its walk and its last steps: `Walk(NUMBER).run()` repeats it.
"""

import random
from collections.abc import Callable
from contextlib import suppress

import pytest

from raftkv.raft import AppendEntries, Message, ProposalDropped, RequestVote, RequestVoteResponse, Role
from tests.unit.raft.group import Group

WALKS = 600
STEPS = 150
ELECTION_TICKS = 4


class Walk:
    """One random life of a group; `Group` checks the rules of Raft at every step."""

    def __init__(self, number: int) -> None:
        self.random = chance = random.Random(number)
        # In every other walk members come and go.
        self.spare = 2 * (number % 2)
        self.group = Group(
            chance.choice((3, 3, 5)),
            number,
            spare=self.spare,
            election_ticks=ELECTION_TICKS,
            max_inflight_messages=chance.choice((1, 3, 256)),
            max_inflight_bytes=chance.choice((16, 1 << 20)),
            max_uncommitted_bytes=chance.choice((64, 1 << 20)),
            # One entry per append, or all that there is.
            max_message_bytes=chance.choice((-1, 1 << 20)),
            check_quorum=chance.random() < 0.5,
            pre_vote=chance.random() < 0.5,
        )
        self.group.on_send = self.keep
        self.kept: list[Message] = []
        self.side = dict.fromkeys(self.group.nodes, 0)
        self.slow = {node for node in self.group.nodes if chance.random() < 0.3}
        self.in_order = chance.random() < 0.5
        self.count = 0
        self.trace: list[object] = []
        weights = {
            **{step: chance.choice((5, 20)) for step in (self.deliver, self.sync)},
            **{step: chance.choice((1, 5)) for step in (self.propose, self.usurp, self.talk)},
            **{step: chance.choice((0, 1, 3)) for step in (self.tick, self.read, self.crash, self.drop, self.late)},
            **{
                step: chance.choice((0, 1, 3))
                for step in (self.part, self.heal, self.transfer, self.stray, self.revolt)
            },
            self.compact: chance.choice((0, 0, 6)),
            self.reconfigure: 8 if self.spare else 0,
        }
        self.steps: list[Callable[[], None]] = list(weights)
        self.weights = list(weights.values())

    def run(self) -> None:
        for step in self.random.choices(self.steps, self.weights, k=STEPS):
            self.trace.append(step.__name__)
            step()
        self.trace.append("recover")
        self.group.recover()

    def keep(self, message: Message) -> None:
        if self.random.random() < 0.2:
            self.kept.append(message)

    def any_node(self) -> int:
        return self.random.randrange(len(self.group.nodes)) + 1

    def passes(self, message: Message) -> bool:
        return self.side[message.sender] == self.side[message.to]

    # What happens

    def deliver(self) -> None:
        network = self.group.network
        places = [place for place, message in enumerate(network) if self.passes(message)]
        if places:
            message = network.pop(places[0] if self.in_order else self.random.choice(places))
            self.trace.append(message)
            self.group.deliver(message)

    def drop(self) -> None:
        if self.group.network:
            self.group.network.pop(self.random.randrange(len(self.group.network)))

    def late(self) -> None:
        """Something arrives once more, or after all."""
        if self.kept:
            message = self.kept.pop(self.random.randrange(len(self.kept)))
            self.trace.append(message)
            self.group.deliver(message)

    def sync(self) -> None:
        node = self.any_node()
        if node not in self.slow or self.random.random() < 0.2:
            self.trace.append(node)
            self.group.sync(node, self.random.choice((1, None)))

    def tick(self) -> None:
        node = self.any_node()
        for _ in range(self.random.randint(1, ELECTION_TICKS)):
            self.group.tick(node)

    def leader(self) -> int:
        """Whoever thinks it leads, stale or not; else anyone."""
        leaders = [node for node, core in self.group.nodes.items() if core.role is Role.LEADER]
        return self.random.choice(leaders) if leaders else self.any_node()

    def propose(self) -> None:
        node = self.leader()
        self.count += 1
        self.trace.append(node)
        with suppress(ProposalDropped):
            self.group.nodes[node].propose([b"%04d" % self.count])
        self.group.take(node)

    def reconfigure(self) -> None:
        """The leader proposes some change of the members, sensible or not."""
        leader = self.leader()
        nodes = list(self.group.nodes)
        joint = ",".join(map(str, sorted(self.random.sample(nodes, self.random.randint(1, 3)))))
        data = self.random.choice((b"+%d", b"~%d", b"-%d")) % self.any_node()
        if self.random.random() < 0.3:
            data = f"={joint}".encode()
        self.trace.append((leader, data))
        with suppress(ProposalDropped):
            self.group.nodes[leader].propose_conf_change(data)
        self.group.take(leader)

    def read(self, node: int = 0) -> None:
        node = node or self.leader()
        self.count += 1
        self.trace.append(node)
        with suppress(ProposalDropped):
            self.group.read(node, b"%d" % self.count)

    def crash(self) -> None:
        node = self.any_node()
        self.trace.append(node)
        self.group.crash(node)

    def compact(self) -> None:
        """Everyone forgets what it can of its log; leaders hear which of their snapshots were lost."""
        for node, core in self.group.nodes.items():
            if not any(ready.snapshot for ready in self.group.unsynced[node]):
                self.group.compact(node, min(core.applied, self.group.disks[node].hard_state.commit))
        self.group.report_snapshots()

    def transfer(self) -> None:
        for node, core in self.group.nodes.items():
            core.transfer_leader(self.any_node())
            self.group.take(node)

    def part(self) -> None:
        for node in self.side:
            self.side[node] = self.random.randrange(2)

    def heal(self) -> None:
        self.side = dict.fromkeys(self.side, 0)

    def talk(self) -> None:
        """Two nodes hear each other and nobody else."""
        pair = {self.any_node(), self.any_node()}
        for _ in range(self.random.randint(1, 8)):
            between = [message for message in self.group.network if {message.sender, message.to} == pair]
            if between:
                self.trace.append(between[0])
                self.group.network.remove(between[0])
                self.group.deliver(between[0])
            for node in sorted(pair):
                self.group.sync(node, self.random.choice((0, 1, None)))

    def usurp(self, candidate: int = 0) -> None:
        """Someone stands for election, and those it reaches have not heard of a leader for long; nothing but that."""
        candidate = candidate or self.any_node()
        self.trace.append(candidate)
        reached = [node for node, side in self.side.items() if side == self.side[candidate]]
        for node in reached:
            if self.group.nodes[node].role is not Role.LEADER:
                for _ in range(ELECTION_TICKS):
                    self.group.tick(node)
        self.group.nodes[candidate].campaign()
        self.group.take(candidate)
        for _ in range(6):
            for node in reached:
                self.group.sync(node)
            for message in list(self.group.network):
                if isinstance(message, RequestVote | RequestVoteResponse) and self.passes(message):
                    self.group.network.remove(message)
                    self.group.deliver(message)

    def revolt(self) -> None:
        """The others elect someone and go on; the old leader is asked, and then hears what was said before."""
        old = self.leader()
        others = [node for node in self.group.nodes if node != old]
        self.read(old)
        for _ in range(self.random.randint(0, 4)):
            self.deliver()
        self.side = {node: int(node == old) for node in self.side}
        self.usurp(self.random.choice(others))
        self.propose()
        for _ in range(self.random.randint(0, 20)):
            self.deliver()
            self.sync()
        self.read(old)
        self.heal()
        self.deliver()

    def stray(self) -> None:
        """An append that figure 3.1 lets a leader send, though ours would begin elsewhere."""
        leader = self.group.nodes[self.leader()]
        to = self.any_node()
        if leader.role is Role.LEADER and to != leader.id:
            prev = self.random.randint(leader.log.snapshot_index, leader.last_index)
            entries = leader.log.slice(prev + 1, prev + 1 + self.random.randint(0, 2))
            term = leader.log.term(prev)
            assert term is not None
            message = AppendEntries(leader.id, to, leader.term, prev, term, entries, leader.commit_index)
            self.group.network.insert(0, message)


@pytest.mark.parametrize("first", range(0, WALKS, 100))
def test_walks(first: int) -> None:
    for number in range(first, first + 100):
        walk = Walk(number)
        try:
            walk.run()
        except Exception as error:
            error.add_note(f"walk {number}, last steps: {' '.join(map(str, walk.trace[-60:]))}")
            raise
