"""The rounds: both engines run, one is driven at a time, in turn."""

import contextlib
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import grpc

from benchmarks import awake, engines
from benchmarks.calm import Patience
from benchmarks.engines import CONTENDERS, Contender, Engine, EngineError
from benchmarks.load import OVERLOAD, PEAK, CallJob, CheckFailed, Job, Load, OverloadJob
from benchmarks.mixing import BESIDE, LARGES, MIXED, READS, STEADY_RATE, BesideJob, Large, MixJob, store_mixed
from benchmarks.renewing import KEYS_PER_LEASE, RENEW, STREAMS, RenewJob, grant_many
from benchmarks.restart import restart, store_each
from benchmarks.watching import CROWDS, SHAPES, WATCH, Shape, WatchJob
from benchmarks.work import (
    KEYS,
    KEYSPACE,
    LIST_KEYS,
    MEMORY,
    OVERLOADED,
    POINTS,
    RESTART,
    VALUE_BYTES,
    VALUES,
    WATCHERS,
    WORKS,
    Work,
    sized,
    store_many,
)

MEBIBYTE = 2**20
MIXTURE = f"{READS:.0%} reads, {1 - READS:.0%} puts of 256 B"
FEW_IN_FLIGHT = Load(10, 1)
"""For values of all sizes."""
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


@dataclass(frozen=True, slots=True)
class Place:
    """Where a cell stands on a curve that is not of requests in flight: what is drawn, over which axis, and where."""

    title: str
    axis: str
    value: float


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
    place: Place | None = None
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
        for name, wanted, phase in _PHASES:
            works = [work for work in plan.works if work in wanted]
            if works:
                with _both(plan, size, directory / f"{size}-{name}") as pair:
                    yield from phase(plan, size, pair, works, directory / "body")


@contextlib.contextmanager
def _both(plan: Plan, size: int, directory: Path) -> Iterator[dict[str, Engine]]:
    with contextlib.ExitStack() as stack:
        yield {
            one.name: stack.enter_context(engines.running(one, size, directory / str(place)))
            for place, one in enumerate(plan.contenders)
        }


Pair = dict[str, Engine]
Phase = Callable[[Plan, int, Pair, list[str], Path], Iterator[Cell]]


def _few(plan: Plan, size: int, pair: Pair, works: list[str], body: Path) -> Iterator[Cell]:
    """A store that begins empty."""
    yield from _calls(plan, size, pair, works, body)
    if OVERLOADED in works:
        title = f"{WORKS['put'].title}: answered at {OVERLOAD}, as a part of {PEAK}"
        cell = _cell(pair, size, OVERLOADED, title, str(OVERLOAD), unit="of the peak")
        yield _fill(cell, plan, pair, lambda engine: OverloadJob(WORKS["put"].call(engine.leader().connection), body))
    if WATCH in works:
        yield from _watch(plan, size, pair, WATCH, SHAPES)


def _many(plan: Plan, size: int, pair: Pair, works: list[str], body: Path) -> Iterator[Cell]:
    """A store with many keys of 1 KiB, which is weighed first."""
    cell = _store_and_weigh(size, pair, plan.keys)
    if MEMORY in works:
        yield cell
    yield from _calls(plan, size, pair, works, body)


def _calls(plan: Plan, size: int, pair: Pair, works: list[str], body: Path) -> Iterator[Cell]:
    for name in works:
        if name in WORKS:
            work = WORKS[name]
            for load in plan.curve if plan.curve and work.loads == POINTS else work.loads:
                if plan.loads is None or load in plan.loads:
                    cell = _cell(pair, size, name, work.title, str(load))
                    yield _fill(cell, plan, pair, partial(_call_job, plan, work, load, body))


def _mixed(plan: Plan, size: int, pair: Pair, _works: list[str], _body: Path) -> Iterator[Cell]:
    _store_mixed(pair, 0, plan.keys)
    title = f"{MIXTURE}, over {plan.keys:,} keys"
    for load in plan.curve or POINTS:
        if plan.loads is None or load in plan.loads:
            cell = _cell(pair, size, MIXED, title, str(load))
            yield _fill(cell, plan, pair, partial(_mix_job, load, plan.keys))


def _beside(plan: Plan, size: int, pair: Pair, _works: list[str], _body: Path) -> Iterator[Cell]:
    _store_and_weigh(size, pair, plan.keys)
    _store_mixed(pair, 0, plan.keys)
    for large in LARGES:
        title = f"p99 of {STEADY_RATE:,.0f} puts a second beside {large.title}"
        cell = _cell(pair, size, BESIDE, title, "", unit="ms")
        yield _fill(cell, plan, pair, partial(_beside_job, plan.keys, large))


def _values(plan: Plan, size: int, pair: Pair, _works: list[str], body: Path) -> Iterator[Cell]:
    for value_bytes in VALUE_BYTES:
        for what, work in sized(value_bytes).items():
            cell = _cell(pair, size, f"{VALUES}-{what}", work.title, str(FEW_IN_FLIGHT))
            cell.place = Place(work.title.partition(",")[0], "bytes of a value", value_bytes)
            yield _fill(cell, plan, pair, partial(_sized_job, work, body))


def _keyspace(plan: Plan, size: int, pair: Pair, _works: list[str], _body: Path) -> Iterator[Cell]:
    stored = 0
    for keys in KEYS:
        _store_mixed(pair, stored, keys)
        stored = keys
        load = POINTS[1]
        cell = _cell(pair, size, KEYSPACE, f"{MIXTURE}, over {keys:,} keys", str(load))
        cell.place = Place(MIXTURE, "keys", keys)
        yield _fill(cell, plan, pair, partial(_mix_job, load, keys))


def _watchers(plan: Plan, size: int, pair: Pair, _works: list[str], _body: Path) -> Iterator[Cell]:
    yield from _watch(plan, size, pair, WATCHERS, CROWDS)


def _store_mixed(pair: Pair, first: int, last: int) -> None:
    for kind, engine in pair.items():
        _say(f"{kind}: storing {last:,} keys of 256 B")
        store_mixed(engine.leader().connection, first, last)
        engine.settle()


def _cell(pair: Pair, size: int, work: str, title: str, load: str, unit: str = "/s") -> Cell:
    return Cell(kinds=tuple(pair), members=size, work=work, title=title, load=load, unit=unit)


def _sized_job(work: Work, body: Path, engine: Engine) -> Job:
    return CallJob(work.call(engine.leader().connection), FEW_IN_FLIGHT, body, timed=True)


def _mix_job(load: Load, keys: int, _: Engine) -> Job:
    return MixJob(load, keys)


def _beside_job(keys: int, large: Large, _: Engine) -> Job:
    return BesideJob(keys, large)


def _call_job(plan: Plan, work: Work, load: Load, body: Path, engine: Engine) -> Job:
    return CallJob(work.call(engine.leader().connection), load, body, timed=bool(plan.curve))


def _watch(plan: Plan, size: int, pair: Pair, name: str, shapes: Sequence[Shape]) -> Iterator[Cell]:
    for shape in shapes:
        if plan.loads is None or shape.load in plan.loads:
            cell = _cell(pair, size, name, shape.title, str(shape.load))
            if name == WATCHERS:
                cell.place = Place("Watch of 1 key", "watchers", shape.fan_out)
            yield _fill(cell, plan, pair, partial(_watch_job, shape))


def _watch_job(shape: Shape, _: Engine) -> Job:
    return WatchJob(shape)


def _renew(plan: Plan, size: int, pair: Pair, _works: list[str], _body: Path) -> Iterator[Cell]:
    title = f"LeaseKeepAlive of {plan.keys:,} leases with {KEYS_PER_LEASE} keys each"
    cell = _cell(pair, size, RENEW, title, str(Load(1, STREAMS)))
    yield _fill(cell, plan, pair, partial(_renew_job, plan.keys))


def _renew_job(leases: int, engine: Engine) -> Job:
    _say(f"  {engine.kind}: granting {leases:,} leases")
    grant_many(engine.leader().endpoint, leases)
    return RenewJob(leases)


def _store_and_weigh(size: int, pair: Pair, keys: int) -> Cell:
    title = f"Memory of the leader with {max(keys, LIST_KEYS):,} keys of 1 KiB"
    cell = _cell(pair, size, MEMORY, title, "", unit="MiB")
    for kind, engine in pair.items():
        _say(f"{size} member{'s' * (size > 1)}, {kind}: storing {max(keys, LIST_KEYS):,} keys of 1 KiB")
        store_many(engine.leader().connection, max(keys, LIST_KEYS))
        engine.settle()
        cell.figures[kind].append(engine.leader().resident_bytes() / MEBIBYTE)
    return cell


def _restart(plan: Plan, size: int, pair: Pair, _works: list[str], _body: Path) -> Iterator[Cell]:
    if size != 1:
        return
    keys = plan.keys * SMALL_PER_LARGE
    stored = f"with {keys:,} keys of 256 B"
    time_cell, memory_cell = (
        _cell(pair, size, RESTART, f"{what} {stored}", "", unit)
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


def _fill(cell: Cell, plan: Plan, pair: Pair, prepare: Callable[[Engine], Job]) -> Cell:
    """Measure what `prepare` makes ready in an engine, and return the cell, with the failure if there was one."""
    _say(f"{cell.members} member{'s' * (cell.members > 1)}, {cell.title}, {cell.load}")
    try:
        _rounds(cell, plan, pair, prepare)
    except CheckFailed as error:
        cell.failure = str(error)
        _say(f"  FAILED: {error}")
    return cell


def _rounds(cell: Cell, plan: Plan, pair: Pair, prepare: Callable[[Engine], Job]) -> None:
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
        unit = cell.unit if cell.unit == "/s" else f" {cell.unit}"
        latest = {kind: figures[-1] for kind, figures in cell.figures.items()}
        _say("  " + ", ".join(f"{kind} {value:,.{0 if value >= 100 else 2}f}{unit}" for kind, value in latest.items()))


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


def _run(cell: Cell, plan: Plan, pair: Pair, kind: str, job: Job) -> None:
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


_PHASES: tuple[tuple[str, frozenset[str], Phase], ...] = (
    ("few", frozenset(name for name, work in WORKS.items() if not work.needs_many) | {OVERLOADED, WATCH}, _few),
    ("many", frozenset(name for name, work in WORKS.items() if work.needs_many) | {MEMORY}, _many),
    ("mixed", frozenset({MIXED}), _mixed),
    ("beside", frozenset({BESIDE}), _beside),
    ("leases", frozenset({RENEW}), _renew),
    ("restart", frozenset({RESTART}), _restart),
    (VALUES, frozenset({VALUES}), _values),
    (KEYSPACE, frozenset({KEYSPACE}), _keyspace),
    (WATCHERS, frozenset({WATCHERS}), _watchers),
)
"""Which works share engines, and what measures them."""


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
