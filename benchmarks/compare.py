"""`make bench-compare A=main B=.`: two commits of raftkv, driven in turn as etcd and raftkv are in `make bench`.

Each round drives one right after the other, and what counts is the quotient of the two: what the machine does in the
long run touches both alike. The interval is that of the median quotient, by the bootstrap.
"""

import argparse
import contextlib
import json
import random
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks import awake, engines, machine, report
from benchmarks.arguments import at_least, count, counts, loads, some_of
from benchmarks.load import Load
from benchmarks.measure import Cell, Plan, measure
from benchmarks.work import WORKS

HERE = "."
"""Names the sources as they are, committed or not."""
ROUNDS, ROUNDS_LEAST = 9, 5
"""The best interval of fewer rounds would say nothing."""
RESAMPLES = 10_000
CONFIDENCE = 0.95
LOADS = (Load(1, 1), Load(10, 10))


class UnknownCommit(Exception):
    """Git knows no such commit."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run and return the exit code: 0, 1 when an answer was wrong or an engine failed, 2 when it cannot begin."""
    options = _parser().parse_args(argv)
    if (absent := engines.missing({"h2load": engines.PACKAGES["h2load"]})) is not None:
        print(f"not installed: {absent}", file=sys.stderr)
        return 2
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="raftkv-compare-"))).resolve()
        try:
            first, second = (stack.enter_context(_tree(name, directory)) for name in (options.a, options.b))
        except UnknownCommit as error:
            print(error, file=sys.stderr)
            return 2
        plan = Plan(
            members=options.members,
            works=options.work,
            loads=options.load,
            rounds=options.rounds,
            seconds=options.seconds,
            requests=options.requests,
            keys=10_000,
            patience=0,
            contenders=(engines.sources(f"A ({options.a})", first), engines.sources(f"B ({options.b})", second)),
        )
        stack.enter_context(awake.processors())
        try:
            cells = list(measure(plan, directory))
        except (engines.EngineError, RuntimeError) as error:
            print(error, file=sys.stderr)
            return 1
        properties = machine.describe(directory)
    for name in ("machine", "disk", "h2load"):
        print(f"- {name}: {properties[name]}")
    print(f"- A: {_described(options.a)}\n- B: {_described(options.b)}\n")
    print("\n".join(table(cells)))
    if options.json is not None:
        options.json.write_text(json.dumps(report.document(cells, properties, "make bench-compare"), indent=1) + "\n")
    return 1 if any(cell.failure is not None for cell in cells) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make bench-compare", description=__doc__)
    parser.add_argument("a", metavar="A", help="a commit, or . for the sources as they are")
    parser.add_argument("b", metavar="B", help="what is held against it")
    parser.add_argument("--members", type=counts, default=(1,), help="sizes of the clusters (1)")
    parser.add_argument(
        "--work", type=some_of(tuple(WORKS)), default=("put", "range"), help=f"some of {','.join(WORKS)} (put,range)"
    )
    parser.add_argument("--load", type=loads, default=LOADS, help="connections x streams (1x1,10x10)")
    parser.add_argument(
        "--rounds", type=at_least(ROUNDS_LEAST), default=ROUNDS, help=f"at least {ROUNDS_LEAST} ({ROUNDS})"
    )
    parser.add_argument("--seconds", type=float, default=1.0, help="how long a run should take (1)")
    parser.add_argument("--requests", type=count, help="requests of a run, instead of what fits into its seconds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure to this file")
    return parser


# The sources


@contextlib.contextmanager
def _tree(commit: str, directory: Path) -> Iterator[Path]:
    """Lay out the sources of a commit for as long as they are needed.

    Raises:
        UnknownCommit
    """
    if commit == HERE:
        yield engines.ROOT
        return
    found = _git("rev-parse", "--verify", "--quiet", f"{commit}^{{commit}}")
    if found.returncode != 0:
        raise UnknownCommit(
            f"{commit} is no commit here: name one, a branch or a tag, or . for the sources as they are"
        )
    tree = Path(tempfile.mkdtemp(prefix="sources-", dir=directory))
    _git("worktree", "add", "--detach", "--force", str(tree), found.stdout.strip())
    try:
        yield tree
    finally:
        _git("worktree", "remove", "--force", str(tree))


def _described(commit: str) -> str:
    if commit == HERE:
        return f"the sources as they are, {_git('describe', '--always', '--dirty').stdout.strip()}"
    return _git("log", "-1", "--format=%h %s", commit).stdout.strip()


def _git(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(["git", *arguments], cwd=engines.ROOT, capture_output=True, text=True, check=False)


# What came of it


def interval(first: Sequence[float], second: Sequence[float]) -> tuple[float, float, float]:
    """Return the median quotient of the second to the first, round by round, and the ends of its interval."""
    quotients = [two / one for one, two in zip(first, second, strict=True)]
    # The same figures give the same interval.
    rng = random.Random(0)
    medians = sorted(statistics.median(rng.choices(quotients, k=len(quotients))) for _ in range(RESAMPLES))
    beyond = int(RESAMPLES * (1 - CONFIDENCE) / 2)
    return statistics.median(quotients), medians[beyond], medians[-beyond - 1]


def verdict(low: float, high: float) -> str:
    """Say what an interval of quotients of rates tells of the second one."""
    if low > 1:
        return "B is faster"
    return "B is slower" if high < 1 else "no difference seen"


def table(cells: Sequence[Cell]) -> Iterator[str]:
    """Return the lines of a table for people."""
    yield f"| members | work | connections × streams | A | B | B ÷ A | {CONFIDENCE:.0%} of its interval | |"
    yield "|---|---|---|---|---|---|---|---|"
    for cell in cells:
        head = f"| {cell.members} | {cell.title} | {cell.load} |"
        if cell.failure is not None:
            yield f"{head} — | — | FAILED: {' '.join(cell.failure.split())[:120]} | — | — |"
            continue
        first, second = (cell.figures[kind] for kind in cell.kinds)
        middle, low, high = interval(first, second)
        rates = " | ".join(f"{statistics.median(figures):,.0f}/s" for figures in (first, second))
        yield f"{head} {rates} | **{middle:.3f}** | {low:.3f}–{high:.3f} | {verdict(low, high)} |"


if __name__ == "__main__":
    # Servers are children of this process: asked to stop, it stops them first.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
