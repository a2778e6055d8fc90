"""`raftkv sim`: run the whole server under virtual time, many seeds or one, and say what was found.

Progress goes to stderr, one JSON object to stdout. Exit status: 0 when every check held, 1 when one did not, 2 when the
arguments make no sense.
"""

import argparse
import gc
import json
import logging
import multiprocessing
import os
import resource
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from raftkv.simulation.faults import KINDS
from raftkv.simulation.mutants import MUTANTS
from raftkv.simulation.options import SECONDS, Options, draw
from raftkv.simulation.run import Result, Simulation, run
from raftkv.simulation.shrink import shrink
from raftkv.simulation.timeline import timeline
from raftkv.simulation.trace import Trace

_SUMS = (
    "seconds",
    "events",
    "operations",
    "acknowledged",
    "unknown",
    "faults",
    "elections",
    "lives",
    "stops",
    "snapshots",
    "messages",
    "lost",
    "changes",
    "entries",
    "undecided",
)

RUNS, RUN_SECONDS = 32, 640.0
"""How many runs a worker ends after, and how many seconds with faults at most: it leaves some 200 MB of garbage."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What every run of one command has in common."""

    nodes: int | None
    seconds: float | None
    rate: float | None
    faults: frozenset[str] | None
    mutant: str | None

    def options(self, seed: int) -> Options:
        """The options of one seed."""
        return draw(seed, nodes=self.nodes, seconds=self.seconds, rate=self.rate, faults=self.faults, kinds=KINDS)


def main(arguments: Sequence[str]) -> int:
    """Run the command; its exit status."""
    parser = _parser()
    given = parser.parse_args(arguments)
    _end_cleanly()
    try:
        wanted = Wanted(given.nodes, given.seconds, given.rate, _faults(given.faults), given.mutant)
    except ValueError as error:
        parser.error(str(error))
    if given.seed is None:
        if given.trace or given.shrink or given.html:
            parser.error("--trace, --shrink and --html are for one --seed")
        return _many(wanted, range(given.first, given.first + given.seeds), given.jobs)
    if given.html:
        try:
            # Before the work, which may take minutes.
            open(given.html, "a").close()
        except OSError as error:
            parser.error(f"cannot write --html {given.html}: {(error.strerror or str(error)).lower()}")
    _mutate(given.mutant)
    return _one(wanted.options(given.seed), trace=given.trace, html=given.html, shrinking=given.shrink)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="raftkv sim",
        description="Run whole clusters under virtual time with faults, and check what clients, members and disks saw.",
        epilog=f"Faults: {', '.join(KINDS)}.",
    )
    parser.add_argument("--seeds", type=_positive, default=100, help="how many seeds to run (100)")
    parser.add_argument("--first", type=int, default=1, help="the first of them (1)")
    parser.add_argument("--seed", type=int, help="run this one seed")
    parser.add_argument("--trace", action="store_true", help="print the run as a conversation (with --seed)")
    parser.add_argument(
        "--shrink", action="store_true", help="look for the fewest faults that still fail (with --seed)"
    )
    parser.add_argument("--html", metavar="FILE", help="write a timeline of the run (with --seed)")
    parser.add_argument(
        "--faults", help="faults separated by commas, or all, or none; by default each seed draws its own"
    )
    parser.add_argument("--nodes", type=int, choices=(1, 3, 5, 7), help="members; by default drawn")
    parser.add_argument("--seconds", type=_above_zero, help=f"simulated seconds with faults ({SECONDS:g})")
    parser.add_argument("--rate", type=_above_zero, help="operations per second; by default drawn")
    parser.add_argument("--mutant", choices=sorted(MUTANTS), metavar="NAME", help=argparse.SUPPRESS)
    parser.add_argument("--jobs", type=_positive, default=os.cpu_count() or 1, help="processes (one per core)")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return number


def _above_zero(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return number


def _faults(text: str | None) -> frozenset[str] | None:
    if text is None:
        return None
    if text == "all":
        return frozenset(KINDS)
    chosen = frozenset(filter(None, text.split(","))) - {"none"}
    unknown = sorted(chosen - set(KINDS))
    if unknown:
        raise ValueError(f"unknown faults: {', '.join(unknown)}; there are {', '.join(KINDS)}")
    return chosen


# Many seeds


def _many(wanted: Wanted, seeds: range, jobs: int) -> int:
    started, told_at, cpu_before = time.monotonic(), time.monotonic(), _cpu_seconds()
    sums = dict.fromkeys(_SUMS, 0)
    digest = 0
    failed: list[dict[str, object]] = []
    for done, result in enumerate(_results(wanted, seeds, jobs), 1):
        for name in _SUMS:
            sums[name] += getattr(result, name)
        # In whatever order they come.
        digest ^= hash((result.seed, result.digest))
        if result.violation:
            failed.append({"seed": result.seed, "violation": result.violation})
            _tell(f"seed {result.seed}: {result.violation}")
            if wanted.mutant is not None:
                # One is enough to know that it is found.
                break
        if time.monotonic() - told_at > 5.0:
            told_at = time.monotonic()
            rate = sums["seconds"] / (told_at - started)
            _tell(f"{done} of {len(seeds)} seeds, {len(failed)} violations, {rate:.0f} simulated seconds per second")
    elapsed = time.monotonic() - started
    summary = {
        "seeds": done,
        "first": seeds.start,
        "violations": failed,
        "elapsed_seconds": round(elapsed, 1),
        "cpu_seconds": round(_cpu_seconds() - cpu_before, 1),
        "cluster_hours": round(sums["seconds"] / 3600, 3),
        **{name: round(value, 1) if isinstance(value, float) else value for name, value in sums.items()},
        "digest": _hexadecimal(digest),
    }
    print(json.dumps(summary, indent=2))
    if failed:
        _tell(f"{len(failed)} of {len(seeds)} seeds fail; look at one: raftkv sim --seed {failed[0]['seed']} --trace")
    return 1 if failed else 0


def _cpu_seconds() -> float:
    """What this process and those that it has waited for have used."""
    return sum(sum(resource.getrusage(whose)[:2]) for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def _hexadecimal(digest: int) -> str:
    return f"{digest & (1 << 64) - 1:016x}"


def _results(wanted: Wanted, seeds: range, jobs: int) -> Iterator[Result]:
    work = [(wanted, seed) for seed in seeds]
    if len(seeds) == 1:
        yield from map(_run_seed, work)
        return
    _tell(f"{len(seeds)} seeds from {seeds.start} on, {jobs} {'process' if jobs == 1 else 'processes'}")
    # A worker has everything imported, and ends before its garbage is worth collecting.
    gc.collect()
    gc.freeze()
    runs = max(1, min(RUNS, int(RUN_SECONDS // (wanted.seconds or SECONDS))))
    # A worker that is told to end while it begins would not hear it, with our handler, and be waited for for ever.
    os.register_at_fork(after_in_child=_end_at_once)
    with multiprocessing.get_context("fork").Pool(jobs, gc.disable, maxtasksperchild=runs) as pool:
        yield from pool.imap_unordered(_run_seed, work)
        # Nothing is left to do: nobody needs to be told.
        pool.close()
        pool.join()


def _run_seed(work: tuple[Wanted, int]) -> Result:
    wanted, seed = work
    _end_cleanly()
    _mutate(wanted.mutant)
    return run(wanted.options(seed))


_mutated: list[str] = []


def _mutate(mutant: str | None) -> None:
    """Put a bug into this process, for good."""
    if mutant is not None and not _mutated:
        MUTANTS[mutant]()
        _mutated.append(mutant)


def _end_cleanly() -> None:
    """Let SIGTERM end a run like an exception: what it has in the file system goes with it."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))


def _end_at_once() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


# One seed


def _one(options: Options, *, trace: bool, html: str | None, shrinking: bool) -> int:
    _tell(f"seed {options.seed}: {options}")
    plan = None
    if shrinking:
        options, plan = shrink(options, _tell)
    if trace or html:
        result, log = traced(Simulation(options, plan), Trace())
        if trace:
            for line in log.text():
                print(line)
        if html:
            with open(html, "w", encoding="utf-8") as file:
                file.write(timeline(options, result, log))
            _tell(f"timeline in {html}")
    else:
        result = run(options, plan)
    for fault in result.plan:
        _tell(f"  {fault}")
    if not trace:
        print(json.dumps({**asdict(result), "digest": _hexadecimal(result.digest)}, indent=2, default=str))
    if result.violation:
        _tell(f"seed {options.seed}: {result.violation}")
    return 1 if result.violation else 0


def traced(simulation: Simulation, log: Trace) -> tuple[Result, Trace]:
    """Run with everything written down."""
    cluster = simulation.cluster
    log.now = lambda: cluster.scheduler.now
    log.names = cluster.members
    cluster.spy = log.message
    simulation.nemesis.told = log.fault
    logger = logging.getLogger("raftkv")
    before = logger.level, logger.propagate
    logger.addHandler(log)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        result = simulation.run()
    finally:
        # What dead processes had begun still has things to say when it is thrown away.
        logging.disable(logging.CRITICAL)
        logger.removeHandler(log)
        logger.setLevel(before[0])
        logger.propagate = before[1]
    log.roles(cluster.invariants.role_changes)
    log.commits = cluster.invariants.committed_at
    log.history(simulation.history)
    return result, log
