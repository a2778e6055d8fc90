"""A whole cluster in virtual time: machines, the network between them, and whoever watches."""

import dataclasses
import os
import random
import tempfile
from collections.abc import Callable

from raftkv.config import Config
from raftkv.pb import peer_pb2
from raftkv.raft import Message, NodeId, Role
from raftkv.server.identity import member_id
from raftkv.simulation.calls import Caller
from raftkv.simulation.invariants import VOTES, Invariants, Violation
from raftkv.simulation.machine import Machine, Process, remove_directory
from raftkv.simulation.network import Network
from raftkv.simulation.options import MEMBERS, Options
from raftkv.simulation.scheduler import SECOND, ProcessLoop, Scheduler

CLIENTS = 1000
"""Number of the loop that all clients run on; their endpoints are negative."""


class Cluster:
    """Machines 0 to n-1 and what connects them. The first violation stops the run and is kept."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.scheduler = Scheduler()
        self.violation: Violation | None = None
        self.network = Network(self.scheduler, random.Random(f"{options.seed}/network"), options.weather)
        self.invariants = Invariants(lambda: self.scheduler.now, self._elected)
        self.spy: Callable[[Message], None] | None = None
        """Hears of every message that is sent."""
        self.on_vote: Callable[[int], None] | None = None
        """Hears who has voted, for somebody or for itself, as it is told."""
        self.on_message: Callable[[Message], None] | None = None
        """Hears of every message that is sent, for a fault that waits for one."""
        self.on_leader: Callable[[int], None] | None = None
        """Hears who was elected."""
        self.path = tempfile.mkdtemp(prefix="raftkv-sim-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
        self._graveyard: list[Process] = []
        self.stops = 0
        """Members that have stopped by themselves, as they must when their disk fails."""
        self.clients = ProcessLoop(self.scheduler, CLIENTS, turn_ns=0, on_error=self._client_failed)
        self.members: dict[NodeId, int] = {}
        self.machines = [self._machine(number, self._config(number)) for number in range(options.nodes)]
        for machine in self.machines:
            config = machine.config
            self.members[member_id(config.initial_advertise_peer_urls, config.initial_cluster_token)] = machine.number
        self.places = list(range(options.nodes))
        """The machines whose members have not been seen to go for good."""

    def _machine(self, number: int, config: Config) -> Machine:
        options = self.options
        return Machine(
            number,
            config,
            scheduler=self.scheduler,
            network=self.network,
            seed=str(options.seed),
            members=self.members,
            find=self.process,
            on_error=self.fail,
            on_died=self._died,
            on_power_cut=self._power_cut,
            after_turn=self._after_turn,
            on_message=self._sent,
            rate=options.rates[number % options.nodes],
            offset=options.offsets[number % options.nodes],
            segment_bytes=options.segment_bytes,
            turn_work=options.turn_work,
            large_keys=options.large_keys,
            on_wire=options.on_wire,
            changing=MEMBERS in options.faults,
            message_bytes=options.message_bytes,
            bounds=options.bounds,
        )

    def _config(self, number: int) -> Config:
        options = self.options
        urls = [(f"m{place}", (f"http://m{place}:2380",)) for place in range(options.nodes)]
        return Config(
            name=f"m{number}",
            data_dir=os.path.join(self.path, f"m{number}"),
            initial_advertise_peer_urls=urls[number][1],
            initial_cluster=tuple(urls),
            initial_cluster_token="simulation",
            heartbeat_interval_ms=options.heartbeat_ms,
            election_timeout_ms=options.heartbeat_ms * options.election_ticks,
            snapshot_count=options.snapshot_count,
            snapshot_catchup_entries=options.catch_up_entries,
        )

    def join(self, member: NodeId, known: peer_pb2.KnownMembers) -> int:
        """Start a machine for a member that was added; `known` is what another says of the members. Its number."""
        number = len(self.machines)
        urls = {one.ID: tuple(one.peerURLs) for one in known.members}
        config = dataclasses.replace(
            self._config(0),
            name=f"m{number}",
            data_dir=os.path.join(self.path, f"m{number}"),
            initial_advertise_peer_urls=urls[member],
            initial_cluster=tuple((f"m{self.members.get(one, number)}", urls[one]) for one in urls),
            initial_cluster_state="existing",
        )
        machine = self._machine(number, config)
        machine.known = known
        self.machines.append(machine)
        self.members[member] = number
        self.places.append(number)
        # Not in the turn of whoever asks.
        self.scheduler.after(0.0, self.start, number)
        return number

    # Parts

    def any_place(self, rng: random.Random) -> int:
        """Draw a machine that is in service."""
        return self.places[rng.randrange(len(self.places))]

    def process(self, number: int) -> Process | None:
        """The process on a machine that is alive."""
        return self.machines[number].process

    def processes(self) -> list[Process]:
        """All that are alive and have started."""
        found = [machine.process for machine in self.machines]
        return [process for process in found if process is not None and process.server is not None]

    def serving(self) -> list[Process]:
        """Those of them that are members: nobody knows that they were removed."""
        removed = self.invariants.removed
        return [one for one in self.processes() if one.server is not None and one.server.node.id not in removed]

    def caller(self, endpoint: int) -> Caller:
        """A client's place."""
        return Caller(self.network, self.scheduler, endpoint, self.clients)

    def leader(self) -> Process | None:
        """The member that leads in the highest term, as far as it knows itself."""
        leading = [p for p in self.processes() if p.server is not None and p.server.node.role is Role.LEADER]
        return max(leading, key=lambda p: p.server.node.term if p.server is not None else 0, default=None)

    # Life

    def start(self, number: int) -> None:
        """Start a process on a machine that has none."""
        if self.machines[number].process is None:
            self.machines[number].start()

    def kill(self, number: int, *, power: bool) -> None:
        """End the process on a machine, if there is one."""
        machine = self.machines[number]
        process = machine.process
        if process is not None:
            self._graveyard.append(process)
            if process.server is not None:
                self.invariants.died(process.server.node.id)
        machine.kill(power=power)

    def _died(self, number: int, reason: str) -> None:
        """A member has stopped by itself, or did not start: wrong, unless its disk has given it a reason."""
        machine = self.machines[number]
        if machine.process is not None:
            # What it applied in its last turn counts, its own removal above all.
            self._after_turn(machine.process)
        gone = any(self.members.get(member) == number for member in self.invariants.removed)
        if gone:
            if number in self.places:
                self.places.remove(number)
        elif not machine.disk.failed and machine.flipped is None:
            self.fail(f"I24: member {number} stopped by itself: {reason}")
        self.stops += 1
        self.kill(number, power=False)

    def _power_cut(self, number: int) -> None:
        self.kill_and_restart(number, 0.5)

    def kill_and_restart(self, number: int, seconds: float) -> None:
        """End a process and start another one later."""
        self.kill(number, power=True)
        self.scheduler.after(seconds, self.start, number)

    def run_for(self, seconds: float) -> None:
        """Let time pass."""
        self.scheduler.run(self.scheduler.now + int(seconds * SECOND))
        if self.violation is not None:
            raise self.violation

    def run_until(self, done: Callable[[], bool], seconds: float, step: float = 0.1) -> bool:
        """Let time pass until `done()`, looked at every `step` seconds; whether it came to that within `seconds`."""
        until = self.scheduler.now + int(seconds * SECOND)
        while not done():
            if self.scheduler.now >= until:
                return False
            self.run_for(step)
        return True

    def close(self) -> None:
        """End everything and leave nothing behind."""
        for machine in self.machines:
            if machine.process is not None:
                machine.process.kill(lambda _: None)
        self.clients.kill()
        remove_directory(self.path)

    # What is watched

    def fail(self, problem: str) -> None:
        """Note a violation, unless there was one before."""
        self.violated(Violation(problem))

    def violated(self, violation: Violation) -> None:
        """Note a violation, unless there was one before."""
        if self.violation is None:
            self.violation = violation
            self.scheduler.stopped = True

    def _client_failed(self, what: str, error: BaseException | None) -> None:
        self.fail(f"a client: {what}: {error!r}")

    def _after_turn(self, process: Process) -> None:
        try:
            self.invariants.turned(process)
        except Violation as violation:
            self.violated(violation)

    def _elected(self, number: int) -> None:
        if self.on_leader is not None:
            self.on_leader(number)

    def _sent(self, message: Message) -> None:
        try:
            self.invariants.sent(message)
        except Violation as violation:
            self.violated(violation)
        if self.on_vote is not None and isinstance(message, VOTES) and not message.pre_vote:
            self.on_vote(self.members[message.sender])
        if self.on_message is not None:
            self.on_message(message)
        if self.spy is not None:
            self.spy(message)
