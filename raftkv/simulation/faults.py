"""What goes wrong in a run, and when: a plan drawn from the seed before the run begins.

Every fault is one decision that can be left out without moving the others, which is what makes a failing plan
shrinkable. What a fault needs to draw while it happens comes from its own number.
"""

import asyncio
import errno
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from raftkv.raft import Role
from raftkv.simulation.cluster import Cluster
from raftkv.simulation.machine import Process
from raftkv.simulation.options import MEMBERS, OVERLOAD, Options
from raftkv.simulation.staged import KINDS as STAGED
from raftkv.simulation.staged import Staged

KINDS = (
    "crash",
    "crash-all",
    "power",
    "vote-crash",
    "pause",
    "halves",
    "isolate",
    "one-way",
    "partial",
    "flap",
    "clients",
    "loss",
    "slow-network",
    "slow-disk",
    "stall-disk",
    "disk-error",
    "full-disk",
    "bit-flip",
    "slow-cpu",
    "transfer",
    "flush",
    "clocks",
    MEMBERS,
    OVERLOAD,
    *STAGED,
)
STATIC = frozenset({"clocks", MEMBERS})
"""Kinds that are not events but the circumstances of the whole run."""


Happened = tuple[int, Callable[[], None] | None]
"""To which member (-1: no single one), and what ends it."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault: from `at` on, for some seconds; `number` seeds what it draws."""

    at: float
    kind: str
    seconds: float
    number: int

    def __str__(self) -> str:
        return f"{self.at:7.3f} s  {self.kind}, {self.seconds:.2f} s, number {self.number}"


def plan_faults(options: Options) -> list[Fault]:
    """Draw the faults of a run."""
    rng = random.Random(f"{options.seed}/faults")
    kinds = [kind for kind in KINDS if kind in options.faults and kind not in STATIC]
    if not kinds:
        return []
    election = options.heartbeat_ms * options.election_ticks / 1000
    faults: list[Fault] = []
    at = rng.random() * 2
    while at < options.seconds:
        seconds = rng.choice((0.3, 1.0, 2.0, 4.0)) * election * (0.2 + rng.random())
        faults.append(Fault(at, rng.choice(kinds), seconds, len(faults)))
        # Often the next one comes before the last has ended.
        at += rng.expovariate(1 / (options.calm_seconds * election))
    return faults


class Nemesis:
    """Lets a plan happen to a cluster. `told` hears of every fault: its kind, member (-1: all) and length."""

    def __init__(self, cluster: Cluster, faults: list[Fault]) -> None:
        self._cluster = cluster
        self._faults = faults
        self._staged = Staged(cluster, self._later)
        self.told: Callable[[str, int, float], None] = lambda *_: None
        self.crowd: Callable[[random.Random, float], None] = lambda *_: None
        """Lets many clients ask at once, for some seconds."""
        self._healed = False
        self.happened = 0

    def start(self) -> None:
        """Plan everything."""
        for fault in self._faults:
            self._cluster.scheduler.after(fault.at, self._happen, fault)

    def heal(self) -> None:
        """End all faults, for good: links work, everybody runs, disks are quick."""
        self._healed = True
        self._staged.heal()
        cluster = self._cluster
        cluster.on_vote = cluster.on_leader = cluster.on_message = None
        cluster.network.mend_all()
        weather = cluster.network.weather
        weather.loss = weather.duplicate = weather.straggle = 0.0
        for machine in cluster.machines:
            machine.sync_seconds = 0.0008
            machine.stall_until = 0
            machine.disk.calm()
            machine.on_arrival = None
            machine.turn_ns = 20_000
            if machine.flipped is not None:
                self._flip_back(machine.number)
            if machine.process is not None:
                machine.process.loop.turn_ns = 20_000
                machine.process.loop.resume()
            cluster.start(machine.number)

    def _happen(self, fault: Fault) -> None:
        if self._healed:
            return
        self.happened += 1
        rng = random.Random(f"{self._cluster.options.seed}/fault/{fault.number}")
        name = fault.kind.replace("-", "_")
        end: Callable[[], None] | None = None
        if fault.kind in STAGED:
            member = getattr(self._staged, name)(rng, fault.seconds)
        else:
            member, end = getattr(self, "_" + name)(rng, fault.seconds)
        self.told(fault.kind, member, fault.seconds)
        if end is not None:
            self._cluster.scheduler.after(fault.seconds, self._end, end)

    def _end(self, end: Callable[[], None]) -> None:
        if not self._healed:
            end()

    def _later(self, seconds: float, callback: Callable[..., None], *args: object) -> None:
        self._cluster.scheduler.after(seconds, self._end, partial(callback, *args))

    def _any(self, rng: random.Random) -> int:
        """A member, the leader as often as not."""
        leader = self._cluster.leader()
        if leader is not None and rng.random() < 0.5:
            return leader.machine.number
        return self._cluster.any_place(rng)

    # Processes

    def _crash(self, rng: random.Random, seconds: float) -> Happened:
        number = self._any(rng)
        self._cluster.kill(number, power=False)
        return number, partial(self._cluster.start, number)

    def _power(self, rng: random.Random, seconds: float) -> Happened:
        number = self._any(rng)
        self._cluster.kill(number, power=True)
        if rng.random() < 0.2:
            # And again, while it starts.
            self._cluster.machines[number].disk.cut_power(after=rng.randrange(12))
        return number, partial(self._cluster.start, number)

    def _vote_crash(self, rng: random.Random, seconds: float) -> Happened:
        """Whoever votes may lose its power at that very moment, and is back at once; and the leader goes, so that they
        vote."""
        cluster = self._cluster

        def voted(number: int) -> None:
            if rng.random() < 0.6:
                cluster.scheduler.after(rng.choice((0.0, 0.0005, 0.002)), cluster.kill_and_restart, number, 0.02)

        def end() -> None:
            cluster.on_vote = None
            if leader is not None:
                cluster.start(leader.machine.number)

        leader = cluster.leader()
        cluster.on_vote = voted
        if leader is not None:
            cluster.kill(leader.machine.number, power=True)
        return -1, end

    def _crash_all(self, rng: random.Random, seconds: float) -> Happened:
        power = rng.random() < 0.7
        for number in self._cluster.places:
            self._cluster.kill(number, power=power)

        def start() -> None:
            for number in self._cluster.places:
                self._cluster.scheduler.after(rng.random() * 0.5, self._start_again, number)

        return -1, start

    def _start_again(self, number: int) -> None:
        self._cluster.start(number)

    def _pause(self, rng: random.Random, seconds: float) -> Happened:
        number = self._any(rng)
        process = self._cluster.process(number)
        if process is None:
            return number, None
        process.loop.pause()
        return number, process.loop.resume

    def _slow_cpu(self, rng: random.Random, seconds: float) -> Happened:
        number = self._any(rng)
        machine = self._cluster.machines[number]

        def set_turn(turn_ns: int) -> None:
            machine.turn_ns = turn_ns
            if machine.process is not None:
                machine.process.loop.turn_ns = turn_ns

        set_turn(rng.choice((1_000_000, 10_000_000, 60_000_000)))
        return number, partial(set_turn, 20_000)

    # Links

    def _cut(self, links: list[tuple[int, int]]) -> Callable[[], None]:
        self._cluster.network.cut(links)
        return partial(self._cluster.network.mend, links)

    def _halves(self, rng: random.Random, seconds: float) -> Happened:
        places = list(self._cluster.places)
        rng.shuffle(places)
        side = places[: rng.randrange(1, max(2, len(places)))]
        links = [(a, b) for a in places for b in places if a != b and (a in side) != (b in side)]
        return -1, self._cut(links)

    def _isolate(self, rng: random.Random, seconds: float) -> Happened:
        number = self._any(rng)
        return number, self._cut(self._all_links(number))

    def _all_links(self, number: int) -> list[tuple[int, int]]:
        others = [place for place in self._cluster.places if place != number]
        return [(number, other) for other in others] + [(other, number) for other in others]

    def _one_way(self, rng: random.Random, seconds: float) -> Happened:
        number = self._any(rng)
        outwards = rng.random() < 0.5
        return number, self._cut([link for link in self._all_links(number) if (link[0] == number) == outwards])

    def _partial(self, rng: random.Random, seconds: float) -> Happened:
        one = self._any(rng)
        places = self._cluster.places
        if len(places) < 2:
            return one, None
        other = places[(places.index(one) + rng.randrange(1, len(places))) % len(places)]
        return one, self._cut([(one, other), (other, one)])

    def _flap(self, rng: random.Random, seconds: float) -> Happened:
        """A link that works and does not, about as often as elections time out."""
        number = self._any(rng)
        links = self._all_links(number)
        options = self._cluster.options
        period = options.heartbeat_ms * options.election_ticks / 1000 * (0.5 + rng.random())
        at = 0.0
        while at < 2 * seconds:
            self._cluster.scheduler.after(at, self._flap_once, links, period / 2)
            at += period
        return number, None

    def _flap_once(self, links: list[tuple[int, int]], seconds: float) -> None:
        if not self._healed:
            self._cluster.scheduler.after(seconds, self._end, self._cut(links))

    def _clients(self, rng: random.Random, seconds: float) -> Happened:
        """Clients do not reach a member, which others do; in one direction or in both."""
        number = self._any(rng)
        ends = [-1 - client for client in range(300)]
        links = [(end, number) for end in ends]
        if rng.random() < 0.7:
            links += [(number, end) for end in ends]
        return number, self._cut(links)

    def _loss(self, rng: random.Random, seconds: float) -> Happened:
        weather = self._cluster.network.weather
        before = weather.loss, weather.duplicate

        def end() -> None:
            weather.loss, weather.duplicate = before

        weather.loss, weather.duplicate = rng.choice((0.05, 0.2, 0.5)), rng.choice((0.0, 0.1, 0.4))
        return -1, end

    def _slow_network(self, rng: random.Random, seconds: float) -> Happened:
        weather = self._cluster.network.weather
        before = weather.straggle, weather.straggle_seconds

        def end() -> None:
            weather.straggle, weather.straggle_seconds = before

        weather.straggle, weather.straggle_seconds = rng.choice((0.05, 0.3, 1.0)), rng.choice((0.05, 0.5, 3.0))
        return -1, end

    # Disks

    def _slow_disk(self, rng: random.Random, seconds: float) -> Happened:
        number = self._any(rng)
        machine = self._cluster.machines[number]
        machine.sync_seconds = rng.choice((0.01, 0.1, 0.5))

        def end() -> None:
            machine.sync_seconds = 0.0008

        return number, end

    def _stall_disk(self, rng: random.Random, seconds: float) -> Happened:
        number = self._any(rng)
        scheduler = self._cluster.scheduler
        self._cluster.machines[number].stall_until = scheduler.now + int(seconds * 1_000_000_000)
        return number, None

    def _disk_error(self, rng: random.Random, seconds: float) -> Happened:
        return self._fail(rng, rng.choice(("write", "sync", "sync", "create", "rename", "sync_directory")), errno.EIO)

    def _full_disk(self, rng: random.Random, seconds: float) -> Happened:
        return self._fail(rng, rng.choice(("write", "create")), errno.ENOSPC)

    def _fail(self, rng: random.Random, operation: str, error: int) -> Happened:
        """The disk fails once; a member stops of that, and somebody starts it again."""
        number = self._any(rng)
        machine = self._cluster.machines[number]
        machine.disk.fail(operation, error, after=rng.randrange(20))

        def end() -> None:
            machine.disk.calm()
            self._cluster.start(number)

        return number, end

    def _bit_flip(self, rng: random.Random, seconds: float) -> Happened:
        """A bit of the log of a member that is down changes; it may not start with it, and gets its backup back."""
        number = self._any(rng)
        machine = self._cluster.machines[number]
        if machine.flipped is not None or machine.process is None:
            return number, None
        self._cluster.kill(number, power=True)
        machine.flipped = machine.disk.flip_somewhere(rng)
        self._cluster.start(number)
        return number, partial(self._flip_back, number)

    def _flip_back(self, number: int) -> None:
        machine = self._cluster.machines[number]
        flipped, machine.flipped = machine.flipped, None
        if machine.process is None and flipped is not None:
            machine.disk.flip(*flipped)
        self._cluster.start(number)

    # Clients

    def _overload(self, rng: random.Random, seconds: float) -> Happened:
        self.crowd(rng, min(seconds, 1.0))
        return -1, None

    # Orders

    def _transfer(self, rng: random.Random, seconds: float) -> Happened:
        """The leader is told to hand over, to whomever."""
        process = self._cluster.leader()
        if process is None or process.server is None:
            return -1, None
        target = rng.choice(sorted(self._cluster.members))
        server = process.server

        def transfer() -> None:
            if server.node.role is Role.LEADER and not server.failed.done():
                server.node.transfer_leader(target)
                server.wake()

        process.loop.run_in(transfer)
        return process.machine.number, None

    def _flush(self, rng: random.Random, seconds: float) -> Happened:
        """A member defragments its store, which flushes it; somebody may die of it at the same time.

        And each defragments at the moment at which a snapshot has arrived next; then it dies some time after, or its
        disk stalls and the leader dies, so that it would stand for election.
        """
        number = self._any(rng)
        process = self._cluster.process(number)
        if process is not None:
            process.loop.run_in(self._defragment, process)
            if rng.random() < 0.3:
                self._cluster.scheduler.after(rng.random() * 0.004, self._cluster.kill_and_restart, number, 0.5)

        def arrived(receiver: Process) -> None:
            cluster, machine = self._cluster, receiver.machine
            machine.on_arrival = None
            self._defragment(receiver)
            which = rng.random()
            if which < 0.6:
                cluster.scheduler.after(0.05 + rng.random(), cluster.kill_and_restart, machine.number, 0.5)
            elif which < 0.9 and (leader := cluster.leader()) is not None:
                cluster.scheduler.after(0.0, cluster.kill_and_restart, leader.machine.number, 0.5)
                election_ns = cluster.options.heartbeat_ms * cluster.options.election_ticks * 1_000_000
                machine.stall_until = cluster.scheduler.now + 3 * election_ns

        for machine in self._cluster.machines:
            machine.on_arrival = arrived
        return number, None

    @staticmethod
    def _defragment(process: Process) -> None:
        if process.server is not None:
            _forget(process.loop.create_task(process.server.defragment(process.machine.config.data_dir)))


def _forget(task: "asyncio.Task[tuple[int, int]]") -> None:
    """Nobody waits for it; that it failed was logged."""
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
