"""`python -m benchmarks`: measure etcd and raftkv side by side and print a table. Progress goes to stderr."""

import argparse
import contextlib
import json
import os
import shlex
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks import awake, engines, machine, plots, report
from benchmarks.arguments import count, counts, loads, some_of
from benchmarks.measure import Plan, measure
from benchmarks.mixing import BESIDE, MIXED
from benchmarks.renewing import RENEW
from benchmarks.watching import WATCH
from benchmarks.work import KEYSPACE, MEMORY, OVERLOADED, RESTART, VALUES, WATCHERS, WORKS

USUAL = (*WORKS, MIXED, OVERLOADED, BESIDE, RENEW, WATCH, MEMORY, RESTART)
SCALING = (VALUES, KEYSPACE, WATCHERS)
NAMES = (*USUAL, *SCALING)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="2 short rounds over 10,000 keys instead of 5 over 100,000"
    )
    parser.add_argument("--members", type=counts, default=(1, 3), help="sizes of the clusters (1,3)")
    parser.add_argument(
        "--work", type=some_of(NAMES), default=USUAL, help=f"some of {','.join(NAMES)} (all but the last three)"
    )
    parser.add_argument("--load", type=loads, help="only these connections x streams, as 1x1,10x10 (all of each work)")
    parser.add_argument("--rounds", type=count, help="measured runs of each engine in each cell (5; quick 2)")
    parser.add_argument("--seconds", type=float, help="how long a run should take (1.5; quick 0.3)")
    parser.add_argument("--requests", type=count, help="requests of a run, instead of what fits into its seconds")
    parser.add_argument(
        "--calm", type=float, default=0, metavar="SECONDS", help="put a run off while others are busy (0)"
    )
    parser.add_argument(
        "--let-sleep", action="store_true", help="do not keep the processors awake: see benchmarks/README.md"
    )
    parser.add_argument("--dir", type=Path, help="where the temporary directory with all data is made")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure to this file")
    parser.add_argument(
        "--plots", type=Path, metavar="DIR", help="measure 1 to 1,024 requests in flight, and draw them there as SVG"
    )
    parser.add_argument("--write", action="store_true", help="put the table into benchmarks/README.md")
    return parser


def _plan(arguments: argparse.Namespace) -> Plan:
    quick = arguments.quick
    return Plan(
        members=arguments.members,
        works=arguments.work,
        loads=arguments.load,
        rounds=arguments.rounds or (2 if quick else 5),
        seconds=arguments.seconds or (0.3 if quick else 1.5),
        requests=arguments.requests,
        keys=10_000 if quick else 100_000,
        patience=arguments.calm,
        curve=plots.CURVE if arguments.plots is not None else (),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run and return the exit code: 0, 1 when an answer was wrong or an engine failed, 2 when a program is missing."""
    argv = sys.argv[1:] if argv is None else argv
    arguments = _parser().parse_args(argv)
    if (missing := engines.missing()) is not None:
        print(f"not installed: {missing}", file=sys.stderr)
        return 2
    command = f"make bench ARGS={shlex.quote(shlex.join(argv))}" if argv else "make bench"
    with tempfile.TemporaryDirectory(prefix="raftkv-bench-", dir=arguments.dir) as name:
        directory = Path(name).resolve()
        properties = machine.describe(directory)
        properties["load average before"] = f"{os.getloadavg()[0]:.2f}"
        properties["processors"] = "as the system has them" if arguments.let_sleep else "kept awake"
        try:
            with contextlib.nullcontext() if arguments.let_sleep else awake.processors():
                cells = list(measure(_plan(arguments), directory))
        except (engines.EngineError, RuntimeError) as error:
            print(error, file=sys.stderr)
            return 1
    text = report.markdown(cells, properties, command)
    print(text)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(report.document(cells, properties, command), indent=1) + "\n")
    if arguments.plots is not None:
        for path in plots.write(cells, arguments.plots):
            print(path, file=sys.stderr)
    if arguments.write:
        report.write_readme(text)
    return 1 if any(cell.failure is not None for cell in cells) else 0


if __name__ == "__main__":
    # Servers are children of this process: asked to stop, it stops them first.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
