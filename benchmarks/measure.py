"""The rounds: both engines run, one is driven at a time, in turn."""

import contextlib
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import grpc

from benchmarks import awake, engines
from benchmarks.calm import Patience
from benchmarks.engines import CONTENDERS, Contender, Engine, EngineError
from benchmarks.load import CallJob, CheckFailed, Job, Load
from benchmarks.renewing import KEYS_PER_LEASE, RENEW, STREAMS, RenewJob, grant_many
from benchmarks.restart import restart, store_each
from benchmarks.watching import SHAPES, WATCH, Shape, WatchJob
from benchmarks.work import LIST_KEYS, MEMORY, POINTS, RESTART, WORKS, Work, store_many

MEBIBYTE = 2**20
SMALL_PER_LARGE = 10
"""How many keys of 256 B there are for each of 1 KiB, where many are stored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to measure, and how long.

    loads: only these, where a work has them; None: all. curve: these instead, for whatever has the usual ones, with how
    long each request took. seconds: how long one run should take. requests: the number
    of requests of a run, instead of what fits into `seconds`. keys: how many of 1 KiB `page` and `memory` store;
    `restart` stores ten times as many of 256 B.
    patience: seconds to put off a run while others use the machine. contenders: who is measured, the first being what
    the second is held against.
    """

    members: tuple[int, ...]
    works: tuple[str, ...]
    loads: tuple[Load, ...] | None
    rounds: int
    seconds: float
    requests: int | None
    keys: int
    patience: float
    contenders: tuple[Contender, Contender] = CONTENDERS
    curve: tuple[Load, ...] = ()


@dataclass(slots=True, kw_only=True)
class Cell:
    """One row of the table.

    kinds: the engines, by name. figures: by engine, one per round, in `unit`. cpu: by engine, one per round, the
    processor time that all its members together used for a request, in microseconds; others on the machine disturb it
    less. latency_ms: likewise p50 and p99, where they are measured. saturated: by engine, the runs in which the
    generator was busy or late.
    """

    members: int
    work: str
    title: str
    load: str
    unit: str
    kinds: tuple[str, ...] = tuple(one.name for one in CONTENDERS)
    figures: dict[str, list[float]] = field(init=False)
    cpu: dict[str, list[float]] = field(init=False)
    latency_ms: dict[str, list[tuple[float, float]]] = field(init=False)
    saturated: dict[str, int] = field(init=False)
    requests: dict[str, int] = field(default_factory=dict)
    others: list[float] = field(default_factory=list)
    repeated: int = 0
    elections: dict[str, int] = field(default_factory=dict)
    failure: str | None = None

    def __post_init__(self) -> None:
        self.figures = {kind: [] for kind in self.kinds}
        self.cpu = {kind: [] for kind in self.kinds}
        self.latency_ms = {kind: [] for kind in self.kinds}
        self.saturated = dict.fromkeys(self.kinds, 0)

    def median(self, kind: str) -> float:
        """Return the median of an engine's rounds."""
        return statistics.median(self.figures[kind])

    @property
    def ratio(self) -> float | None:
        """The second one's median to the first one's; None without both."""
        if self.failure is not None or not all(self.figures.values()):
            return None
        first, second = self.kinds
        return self.median(second) / self.median(first)


def measure(plan: Plan, directory: Path) -> Iterator[Cell]:
    """Measure all that is planned, with data in a directory; yields each cell when it is done."""
    for size in plan.members:
        for needs_many in (False, True):
            works = [name for name in plan.works if name in WORKS and WORKS[name].needs_many == needs_many]
            memory = needs_many and MEMORY in plan.works
            if works or memory or (WATCH in plan.works and not needs_many):
                with _both(plan, size, directory / f"{size}-{'many' if needs_many else 'few'}") as pair:
                    yield from _phase(plan, size, pair, works, memory, directory / "body")
                    if WATCH in plan.works and not needs_many:
                        yield from _watch(plan, size, pair)
        if RENEW in plan.works:
            with _both(plan, size, directory / f"{size}-leases") as pair:
                yield _renew(plan, size, pair)
        if RESTART in plan.works and size == 1:
            with _both(plan, size, directory / "restart") as pair:
                yield from _restart(plan, pair)


@contextlib.contextmanager
def _both(plan: Plan, size: int, directory: Path) -> Iterator[dict[str, Engine]]:
    with contextlib.ExitStack() as stack:
        yield {
            one.name: stack.enter_context(engines.running(one, size, directory / str(place)))
            for place, one in enumerate(plan.contenders)
        }


def _phase(
    plan: Plan, size: int, pair: dict[str, Engine], works: list[str], memory: bool, body: Path
) -> Iterator[Cell]:
    if memory or any(WORKS[name].needs_many for name in works):
        cell = _store_and_weigh(size, pair, plan.keys)
        if memory:
            yield cell
    for name in works:
        work = WORKS[name]
        for load in plan.curve if plan.curve and work.loads == POINTS else work.loads:
            if plan.loads is None or load in plan.loads:
                cell = Cell(kinds=tuple(pair), members=size, work=name, title=work.title, load=str(load), unit="/s")
                yield _fill(cell, plan, pair, partial(_call_job, plan, work, load, body))


def _call_job(plan: Plan, work: Work, load: Load, body: Path, engine: Engine) -> Job:
    return CallJob(work.call(engine.leader().connection), load, body, timed=bool(plan.curve))


def _watch(plan: Plan, size: int, pair: dict[str, Engine]) -> Iterator[Cell]:
    for shape in SHAPES:
        if plan.loads is None or shape.load in plan.loads:
            cell = Cell(kinds=tuple(pair), members=size, work=WATCH, title=shape.title, load=str(shape.load), unit="/s")
            yield _fill(cell, plan, pair, partial(_watch_job, shape))


def _watch_job(shape: Shape, _: Engine) -> Job:
    return WatchJob(shape)


def _renew(plan: Plan, size: int, pair: dict[str, Engine]) -> Cell:
    title = f"LeaseKeepAlive of {plan.keys:,} leases with {KEYS_PER_LEASE} keys each"
    cell = Cell(kinds=tuple(pair), members=size, work=RENEW, title=title, load=str(Load(1, STREAMS)), unit="/s")
    return _fill(cell, plan, pair, partial(_renew_job, plan.keys))


def _renew_job(leases: int, engine: Engine) -> Job:
    _say(f"  {engine.kind}: granting {leases:,} leases")
    grant_many(engine.leader().endpoint, leases)
    return RenewJob(leases)


def _store_and_weigh(size: int, pair: dict[str, Engine], keys: int) -> Cell:
    title = f"Memory of the leader with {max(keys, LIST_KEYS):,} keys of 1 KiB"
    cell = Cell(kinds=tuple(pair), members=size, work=MEMORY, title=title, load="", unit="MiB")
    for kind, engine in pair.items():
        _say(f"{size} member{'s' * (size > 1)}, {kind}: storing {max(keys, LIST_KEYS):,} keys of 1 KiB")
        store_many(engine.leader().connection, max(keys, LIST_KEYS))
        engine.settle()
        cell.figures[kind].append(engine.leader().resident_bytes() / MEBIBYTE)
    return cell


def _restart(plan: Plan, pair: dict[str, Engine]) -> Iterator[Cell]:
    keys = plan.keys * SMALL_PER_LARGE
    stored = f"with {keys:,} keys of 256 B"
    time_cell, memory_cell = (
        Cell(kinds=tuple(pair), members=1, work=RESTART, title=f"{what} {stored}", load="", unit=unit)
        for what, unit in (("Restart after kill -9", "s"), ("Memory after a restart", "MiB"))
    )
    for kind, engine in pair.items():
        _say(f"1 member, {kind}: storing {keys:,} keys of 256 B")
        try:
            store_each(engine, keys)
            found = restart(engine, plan.rounds)
        except (CheckFailed, EngineError, OSError) as error:
            time_cell.failure = memory_cell.failure = f"{kind}: {error}"
            break
        time_cell.figures[kind] += found.seconds
        memory_cell.figures[kind] += [size / MEBIBYTE for size in found.resident_bytes]
        _say(f"  {kind} {found.seconds[-1]:.1f} s, {memory_cell.figures[kind][-1]:,.0f} MiB")
    yield time_cell
    yield memory_cell


def _fill(cell: Cell, plan: Plan, pair: dict[str, Engine], prepare: Callable[[Engine], Job]) -> Cell:
    """Measure what `prepare` makes ready in an engine, and return the cell, with the failure if there was one."""
    _say(f"{cell.members} member{'s' * (cell.members > 1)}, {cell.title}, {cell.load}")
    try:
        _rounds(cell, plan, pair, prepare)
    except CheckFailed as error:
        cell.failure = str(error)
        _say(f"  FAILED: {error}")
    return cell


def _rounds(cell: Cell, plan: Plan, pair: dict[str, Engine], prepare: Callable[[Engine], Job]) -> None:
    """Warm both up, then measure them in turn, round after round."""
    jobs = {}
    for kind, engine in pair.items():
        with _named(engine):
            jobs[kind] = prepare(engine)
            cell.requests[kind] = jobs[kind].size(engine.leader().endpoint, plan.seconds, plan.requests)
    for _ in range(plan.rounds):
        for kind, engine in pair.items():
            with _named(engine):
                _run(cell, plan, pair, kind, jobs[kind])
        _say("  " + ", ".join(f"{kind} {figures[-1]:,.0f}/s" for kind, figures in cell.figures.items()))


@contextlib.contextmanager
def _named(engine: Engine) -> Iterator[None]:
    """Turn whatever fails into a `CheckFailed` that says whose failure it is, and whether leaders changed."""
    term = engine.term()
    try:
        yield
    except (CheckFailed, EngineError, grpc.RpcError) as error:
        reason = f"{error.code()}: {error.details()}" if isinstance(error, grpc.Call) else str(error)
        with contextlib.suppress(EngineError, grpc.RpcError):
            elections = engine.term() - term
            reason += f" ({elections} elections)" if elections else ""
        raise CheckFailed(f"{engine.kind}: {reason}") from error


def _run(cell: Cell, plan: Plan, pair: dict[str, Engine], kind: str, job: Job) -> None:
    """Drive one engine and keep the figure, again if others disturbed it."""
    patience = Patience(
        plan.patience, lambda: awake.cpu_seconds() + sum(engine.cpu_seconds() for engine in pair.values())
    )
    while True:
        pair[kind].settle()
        patience.wait()
        leader = pair[kind].leader()
        term = pair[kind].term()
        used = pair[kind].cpu_seconds()
        sample = job.run(leader.endpoint, cell.requests[kind])
        used = pair[kind].cpu_seconds() - used
        share, counts = patience.judge()
        cell.elections[kind] = cell.elections.get(kind, 0) + pair[kind].term() - term
        if counts:
            break
        cell.repeated += 1
    cell.others.append(share)
    cell.cpu[kind].append(used / sample.operations * 1e6)
    cell.figures[kind].append(sample.rate)
    cell.saturated[kind] += sample.saturated
    if sample.latency_ms is not None:
        cell.latency_ms[kind].append(sample.latency_ms)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
