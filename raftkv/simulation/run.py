"""One run from its seed: a phase in which anything may go wrong, one in which all must come right again, the checks."""

import gc
import logging
import warnings
from dataclasses import dataclass, field

from raftkv.lease import LeaseStore
from raftkv.mvcc import encoding as enc
from raftkv.mvcc.hashing import hash_history
from raftkv.raft import EntryKind
from raftkv.server.server import Server
from raftkv.simulation import linearizability, promises, revisions
from raftkv.simulation.clients import Clients
from raftkv.simulation.cluster import Cluster
from raftkv.simulation.faults import Fault, Nemesis, plan_faults
from raftkv.simulation.history import History
from raftkv.simulation.invariants import Violation
from raftkv.simulation.machine import Process
from raftkv.simulation.members import Roll
from raftkv.simulation.model import Model, version_of
from raftkv.simulation.options import Options

ELECTIONS_TO_COMMIT = 12
"""Election timeouts within which a healthy cluster must take a write; and, before that,"""
STRAGGLING_SECONDS = 5.0
"""what messages and disk jobs from before may still need."""
CONVERGE_SECONDS = 30.0
DRAIN_SECONDS = 40.0
_frozen = False


@dataclass(slots=True)
class Result:
    """What a run was like and how it ended. `violation` is empty when every check held."""

    seed: int
    violation: str = ""
    digest: int = 0
    seconds: float = 0.0
    events: int = 0
    operations: int = 0
    acknowledged: int = 0
    unknown: int = 0
    faults: int = 0
    elections: int = 0
    lives: int = 0
    stops: int = 0
    snapshots: int = 0
    messages: int = 0
    lost: int = 0
    changes: int = 0
    """Changes of the members."""
    entries: int = 0
    undecided: int = 0
    """Keys whose history was too much for the search of the second checker."""
    plan: list[Fault] = field(default_factory=list)


class Simulation:
    """A cluster, its clients and its faults."""

    def __init__(
        self,
        options: Options,
        plan: list[Fault] | None = None,
    ) -> None:
        """`plan` takes the place of the faults that the seed gives."""
        self.options = options
        self.plan = plan_faults(options) if plan is None else plan
        self.cluster = Cluster(options)
        self.history = History()
        self.clients = Clients(self.cluster, self.history)
        self.nemesis = Nemesis(self.cluster, self.plan)
        self.nemesis.crowd = self.clients.crowd
        self.result = Result(options.seed, plan=self.plan)

    def run(self) -> Result:
        """Run to the end, or to the first violation."""
        try:
            self._run()
        except Violation as violation:
            self.result.violation = str(violation)
        finally:
            self._count()
            self.cluster.close()
        return self.result

    def _run(self) -> None:
        cluster = self.cluster
        for number in range(self.options.nodes):
            cluster.start(number)
        self.clients.start()
        self.nemesis.start()
        cluster.run_for(self.options.seconds)
        self.nemesis.heal()
        self._recover()
        self._check()

    def _count(self) -> None:
        result, cluster, history = self.result, self.cluster, self.history
        result.digest = cluster.scheduler.digest
        result.seconds = cluster.scheduler.seconds
        result.events = cluster.scheduler.events
        result.operations = len(history.operations)
        result.acknowledged = history.acknowledged()
        result.unknown = history.unknown()
        result.faults = self.nemesis.happened
        result.elections = cluster.invariants.elections
        result.lives = sum(machine.lives for machine in cluster.machines)
        result.stops = cluster.stops
        result.snapshots = sum(machine.installed for machine in cluster.machines)
        result.messages = cluster.network.sent
        result.lost = cluster.network.lost
        result.changes = self.clients.operator.changes if self.clients.operator is not None else 0
        result.entries = len(cluster.invariants.committed)

    # The liveness phase

    def _recover(self) -> None:
        """With everybody well, writes are taken, all members agree, watchers hear everything, leases end (I23)."""
        cluster, clients = self.cluster, self.clients
        election = self.options.heartbeat_ms * self.options.election_ticks / 1000 / min(self.options.rates)
        before = len(cluster.invariants.committed)
        if clients.operator is not None:
            clients.operator.start_everybody()
        served = cluster.run_until(
            lambda: self._leads_since(before), ELECTIONS_TO_COMMIT * election + STRAGGLING_SECONDS
        )
        if not served:
            raise Violation(f"I23 liveness: no entry was committed within {ELECTIONS_TO_COMMIT} election timeouts")
        clients.stop()
        if not cluster.run_until(lambda: not clients.working, DRAIN_SECONDS):
            raise Violation("I23 liveness: clients do not come to an end")
        # A member that was slow may still propose what its client has given up, a grant for instance.
        self._await_agreement()
        if not cluster.run_until(lambda: self._leases() == 0, DRAIN_SECONDS / min(self.options.rates)):
            raise Violation(f"I17: {self._leases()} leases have not expired {DRAIN_SECONDS} s after all was well")
        self._await_agreement()
        clients.final_revision = max(self._server(process).store.revision for process in cluster.serving())
        if not cluster.run_until(lambda: not clients.busy, DRAIN_SECONDS):
            late = [watcher.number for watcher in clients.watchers if not watcher.drained()]
            raise Violation(f"I23 liveness: watchers {late} have not heard everything")
        failure = clients.failure()
        if failure is not None:
            raise failure
        cluster.run_until(self._converged, CONVERGE_SECONDS)

    def _await_agreement(self) -> None:
        if not self.cluster.run_until(self._converged, CONVERGE_SECONDS):
            raise Violation(f"I23 liveness: members do not agree: {self._positions()}")

    def _leads_since(self, before: int) -> bool:
        return len(self.cluster.invariants.committed) > before

    @staticmethod
    def _server(process: Process) -> Server:
        assert process.server is not None
        return process.server

    def _leases(self) -> int:
        return max((len(self._server(process).leases.store) for process in self.cluster.serving()), default=0)

    def _positions(self) -> list[tuple[int, int, int]]:
        return [
            (server.node.term, server.node.log.last_index, server.applier.index)
            for server in map(self._server, self.cluster.serving())
        ]

    def _converged(self) -> bool:
        positions = self._positions()
        return (
            self._all_members()
            and len(set(positions)) == 1
            and positions[0][1] == positions[0][2]
            and not any(len(self._server(process).proposals) for process in self.cluster.serving())
        )

    def _all_members(self) -> bool:
        """Whether those that run are the members, no more and no fewer, but for those whom nobody can tell."""
        serving = self.cluster.serving()
        servers = [self._server(process) for process in serving]
        running = sorted(server.node.id for server in servers)
        if any(running != [member.ID for member in server.membership.members] for server in servers):
            return False
        gone = [self._server(process) for process in self.cluster.processes() if process not in serving]
        # Who knows none of the members can neither be told nor disturb them.
        return all(server.membership.peers.keys().isdisjoint(running) for server in gone)

    # The checks

    def _check(self) -> None:
        model = self._replay()
        committed_at = self.cluster.invariants.committed_at
        for watcher in self.clients.watchers:
            if watcher.problem:
                raise Violation(f"I14: watcher {watcher.number} was {watcher.problem}")
        revisions.check(self.history, model, committed_at)
        promises.check_watches(self.history, model, drained=True)
        promises.check_leases(
            self.history,
            model,
            committed_at,
            fastest=max(self.options.rates),
            drained_at=self.cluster.scheduler.now,
        )
        self._check_states(model)
        self._check_members()
        self._check_registers()

    def _replay(self) -> Model:
        model = Model()
        for entry in self.cluster.invariants.committed:
            model.apply(entry.index, entry.term, entry.data if entry.kind is EntryKind.NORMAL else b"")
        return model

    def _check_states(self, model: Model) -> None:
        """All members hold what the log says, and the same history (I5, I19)."""
        expected = sorted(model.state.values())
        hashes = set()
        for process in self.cluster.serving():
            server = self._server(process)
            store = server.store
            chunks = store.select((b"", None))
            found = [version_of(enc.decode_chunk(chunk)) for chunk in chunks]
            number = process.machine.number
            if (store.revision, store.compacted_revision) != (model.revision, model.compacted) or found != expected:
                raise Violation(
                    f"I5: member {number} holds revision {store.revision}, compacted {store.compacted_revision} and "
                    f"{len(found)} keys; the log says {model.revision}, {model.compacted} and {len(expected)} keys"
                )
            self._check_attached(number, server.leases.store, model)
            while store.compaction_step():
                pass
            hashes.add((hash_history(store).compute(), store.compacted_revision))
        if len(hashes) > 1:
            raise Violation(f"I19: members have different histories: {sorted(hashes)}")

    def _check_members(self) -> None:
        """The members are those that the log says (I10)."""
        cluster = self.cluster
        roll = Roll(member for member, number in cluster.members.items() if number < self.options.nodes)
        for entry in cluster.invariants.committed:
            roll.apply(entry)
        for process in cluster.serving():
            found = self._server(process).membership.conf_state
            if (set(found.voters), set(found.learners)) != (roll.voters, roll.learners):
                raise Violation(
                    f"I10: member {process.machine.number} has {found}; the log says voters {sorted(roll.voters)} and "
                    f"learners {sorted(roll.learners)}"
                )

    @staticmethod
    def _check_attached(number: int, leases: LeaseStore, model: Model) -> None:
        found = {lease.id: sorted(lease.keys or ()) for lease in leases.leases.values()}
        expected = {lease_id: sorted(lease.keys) for lease_id, lease in model.leases.items()}
        if found != expected:
            raise Violation(f"I5: member {number} has the leases {found}, the log says {expected}")

    def _check_registers(self) -> None:
        for key, accesses in sorted(self.clients.accesses.items()):
            verdict = linearizability.linearizable(accesses)
            if verdict is None:
                self.result.undecided += 1
            elif not verdict:
                raise Violation(f"I11: no order explains what clients saw of {key!r}; see --trace")


def run(options: Options, plan: list[Fault] | None = None) -> Result:
    """Run once, quietly and without the collector: what it would find is thrown away with the run."""
    global _frozen
    if not _frozen:
        # What is imported by now is not looked at again.
        gc.freeze()
        _frozen = True
    logging.disable(logging.CRITICAL)
    enabled = gc.isenabled()
    gc.disable()
    try:
        with warnings.catch_warnings():
            # What a process had begun when it died was never awaited.
            warnings.simplefilter("ignore", RuntimeWarning)
            return Simulation(options, plan).run()
    finally:
        if enabled:
            gc.enable()
        logging.disable(logging.NOTSET)
