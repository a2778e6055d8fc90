"""The long run: `python -m tests.fuzz [TARGET …] --inputs 1000000`; exits 1 when something was found.

With --guided the inputs are chosen by what code they reach, if the package `atheris` is there (docs/fuzzing.md).
"""

import argparse
import importlib.util
import logging
import sys
import time
from pathlib import Path


def main() -> int:
    """Run the targets one after the other."""
    parser = argparse.ArgumentParser(prog="make fuzz ARGS=…", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="all of them, when none is named")
    parser.add_argument("--inputs", type=int, default=1_000_000, help="for each target (default: 1,000,000)")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="for each target at most")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--keep", action="store_true", help="add what is found to tests/fuzz/corpus")
    parser.add_argument("--guided", type=Path, metavar="DIRECTORY", help="one target by atheris, its corpus there")
    options = parser.parse_args()
    logging.basicConfig(level=logging.CRITICAL)
    if options.guided is not None:
        if len(options.targets) != 1:
            parser.error("--guided takes one target")
        if importlib.util.find_spec("atheris") is None:
            parser.error("--guided needs atheris: .venv/bin/python -m pip install atheris")
        return guided(options)
    from tests.fuzz.search import search
    from tests.fuzz.targets import TARGETS

    unknown = set(options.targets) - set(TARGETS)
    if unknown:
        parser.error(f"no target {', '.join(sorted(unknown))}; there are {', '.join(TARGETS)}")
    print(f"seed {options.seed}")
    found = False
    for name in options.targets or TARGETS:
        until = time.monotonic() + options.seconds
        outcome = search(
            TARGETS[name], options.inputs, options.seed, until=until, tell=lambda word: print(word, flush=True)
        )
        print(f"{name}: {outcome}", flush=True)
        found |= bool(outcome.failures) or outcome.leaks
        for data, problem in outcome.failures if options.keep else ():
            TARGETS[name].keep(data, problem.splitlines()[-1])
    return int(found)


def guided(options: argparse.Namespace) -> int:
    """Hand one target to atheris, which never returns."""
    import atheris  # type: ignore[import-untyped]

    with atheris.instrument_imports(include=["raftkv"]):
        from tests.fuzz.targets import TARGETS
    target = TARGETS[options.targets[0]]
    options.guided.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate((*target.seeds, *target.kept())):
        (options.guided / f"seed-{number}").write_bytes(data)
    flags = [f"-max_len={target.max_bytes}", f"-runs={options.inputs}", f"-seed={options.seed % (1 << 31)}"]
    if options.seconds != float("inf"):
        flags.append(f"-max_total_time={options.seconds:.0f}")
    atheris.Setup([sys.argv[0], *flags, str(options.guided)], target.check)
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
