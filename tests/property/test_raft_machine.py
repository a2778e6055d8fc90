"""Consensus under everything a network and a power supply can do, in any order hypothesis thinks of."""

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from raftkv.raft import ProposalDropped
from tests.unit.raft.group import Group


class RaftMachine(RuleBasedStateMachine):
    """Deliver, drop, duplicate, reorder, tick, sync, crash, propose, read; `Group` checks the rules at every step."""

    group: Group

    @initialize(size=st.sampled_from((3, 3, 5)), seed=st.integers(0, 1 << 16), quorum=st.booleans())
    def start(self, size: int, seed: int, quorum: bool) -> None:
        self.group = Group(size, seed, election_ticks=4, max_inflight_messages=3, check_quorum=quorum, pre_vote=quorum)
        self.count = 0
        self.group.elect(1)

    def node(self, number: int) -> int:
        return number % len(self.group.nodes) + 1

    @rule(number=st.integers(0, 4), ticks=st.integers(1, 9))
    def tick(self, number: int, ticks: int) -> None:
        for _ in range(ticks):
            self.group.tick(self.node(number))

    @rule(number=st.integers(0, 4), count=st.integers(1, 3))
    def sync(self, number: int, count: int) -> None:
        self.group.sync(self.node(number), count)

    @precondition(lambda self: self.group.network)
    @rule(place=st.integers(0, 1 << 10), count=st.integers(1, 8))
    def deliver(self, place: int, count: int) -> None:
        for _ in range(count):
            if self.group.network:
                self.group.deliver(self.group.network.pop(place % len(self.group.network)))

    @precondition(lambda self: self.group.network)
    @rule(place=st.integers(0, 1 << 10))
    def duplicate(self, place: int) -> None:
        self.group.deliver(self.group.network[place % len(self.group.network)])

    @precondition(lambda self: self.group.network)
    @rule(place=st.integers(0, 1 << 10))
    def drop(self, place: int) -> None:
        self.group.network.pop(place % len(self.group.network))

    @rule(number=st.integers(0, 4))
    def crash(self, number: int) -> None:
        self.group.crash(self.node(number))

    @rule(number=st.integers(0, 4), count=st.integers(1, 3))
    def propose(self, number: int, count: int) -> None:
        node = self.node(number)
        try:
            self.group.nodes[node].propose([b"%d" % (self.count + item) for item in range(count)])
        except ProposalDropped:
            return
        self.count += count
        self.group.take(node)

    @rule(number=st.integers(0, 4))
    def read(self, number: int) -> None:
        self.count += 1
        try:
            self.group.read(self.node(number), b"read %d" % self.count)
        except ProposalDropped:
            return

    @rule(number=st.integers(0, 4), to=st.integers(0, 4))
    def transfer(self, number: int, to: int) -> None:
        node = self.node(number)
        self.group.nodes[node].transfer_leader(self.node(to))
        self.group.take(node)

    @rule()
    def settle(self) -> None:
        self.group.settle()

    @rule(number=st.integers(0, 4))
    def isolate_and_elect(self, number: int) -> None:
        """A whole election among the others, while one hears nothing."""
        alone = self.node(number)
        others = [node for node in self.group.nodes if node != alone]
        for _ in range(30):
            for node in others:
                self.group.tick(node)
            self.group.settle(lambda message: alone in (message.sender, message.to))

    def teardown(self) -> None:
        if hasattr(self, "group"):
            self.group.recover()


TestRaftMachine = RaftMachine.TestCase
TestRaftMachine.settings = settings(
    max_examples=100,
    stateful_step_count=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
