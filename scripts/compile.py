"""Make a compiled copy of raftkv in build/compiled: `make compiled`. docs/decisions/0011 says why, and what it gains.

The modules through which every request passes become extension modules by mypyc; all others are copied as they are.
With `--simulator` the copy is build/simulator, and has those of the simulation compiled as well: `make sim COMPILED=1`.
Nothing is written beside the sources, so that no extension hides a module that was edited later.
"""

import ast
import os
import shutil
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
TARGET = ROOT / "build" / "compiled"
SIMULATOR_TARGET = ROOT / "build" / "simulator"
UNFINISHED = ROOT / "build" / "compiling"

MODULES = (
    "api/guard api/kv histogram",
    "http/connection http/frames http/hpack http/requests http/sending http/stream",
    "mvcc/backend mvcc/counts mvcc/encoding mvcc/history mvcc/ranges mvcc/store mvcc/table",
    "mvcc/turnover mvcc/txn mvcc/validate",
    "raft/config raft/leader raft/log raft/membership raft/messages raft/node raft/progress raft/quorum raft/read_only",
    "rpc/app rpc/calls rpc/framing rpc/interrupt rpc/method rpc/prompt",
    "server/alarms server/apply server/errands server/headers server/leadership server/proposals server/quota",
    "server/reads server/server server/slow",
    "peer/call peer/codec peer/connection peer/questions",
    "wal/format wal/log",
    "watch/event watch/hub watch/index watch/response watch/stream watch/tree",
)
"""What mypyc compiles. It has no asynchronous generators, and an attribute `_thread` is no name in C: such modules stay
as they are, and so do those of `unsafe`."""

SIMULATOR = (
    "api/services auth/store lease/lessor lease/store mvcc/hashing mvcc/interval mvcc/leases",
    "server/flushes server/membership server/retention",
    "simulation/calls simulation/clients simulation/cluster simulation/disk simulation/durable simulation/history",
    "simulation/invariants simulation/linearizability simulation/machine simulation/model simulation/network",
    "simulation/revisions simulation/run simulation/scheduler",
)
"""What more of it a simulated member, and the simulation itself, run through. Not server/snapshots, and not
simulation/members: compiled (mypyc 2.4) they do something else."""


def main() -> None:
    """Copy, compile, and only then put it where it is run from."""
    simulator = "--simulator" in sys.argv[1:]
    target = SIMULATOR_TARGET if simulator else TARGET
    shutil.rmtree(UNFINISHED, ignore_errors=True)
    for package in ("raftkv", "cli"):
        shutil.copytree(ROOT / package, UNFINISHED / package, ignore=shutil.ignore_patterns("__pycache__"))
    problem = missing()
    if problem is None:
        compile_modules((*MODULES, *SIMULATOR) if simulator else MODULES)
    else:
        print(f"{target.relative_to(ROOT)} holds plain Python: there is no {problem} to compile with", file=sys.stderr)
    shutil.rmtree(target, ignore_errors=True)
    UNFINISHED.rename(target)


def missing() -> str | None:
    """What a compiler of extension modules lacks here, or None."""
    compiler = os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc"
    if not shutil.which(compiler.split()[0]):
        return f"C compiler ({compiler.split()[0]})"
    header = Path(sysconfig.get_path("include"), "Python.h")
    return None if header.exists() else str(header)


def unsafe(source: str) -> list[int]:
    """Lines at which mypyc (2.4) goes wrong: a coroutine that waits in a `finally` raises again, each time it ends
    well, what it once raised. `async with` is such a `finally`, too."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.AsyncWith):
            lines.append(node.lineno)
        elif isinstance(node, ast.Try | ast.TryStar):
            inside = [part for statement in node.finalbody for part in ast.walk(statement)]
            lines += [part.lineno for part in inside if isinstance(part, ast.Await | ast.Yield | ast.YieldFrom)]
    return lines


def compile_modules(modules: Sequence[str]) -> None:
    """Compile in the copy; where the compiler fails, so does this."""
    from mypyc.build import mypycify
    from setuptools import setup

    print("compiling, which takes some minutes …", flush=True)
    files = [f"raftkv/{module}.py" for line in modules for module in line.split()]
    for file in files:
        if lines := unsafe(Path(UNFINISHED, file).read_text()):
            sys.exit(f"{file} cannot be compiled: it waits in a finally on line {lines[0]}")
    config = f"--config-file={ROOT / 'pyproject.toml'}"
    os.chdir(UNFINISHED)
    # The first level of optimisation takes half the time of the third; what it makes is as fast.
    extensions = mypycify([config, *files], opt_level="1", debug_level="0", multi_file=True, group_name="raftkv")
    setup(
        name="raftkv",
        packages=[],
        ext_modules=extensions,
        script_args=["--quiet", "build_ext", "--inplace", "--build-temp", "build"],
    )
    shutil.rmtree("build")
    shutil.rmtree(".mypy_cache", ignore_errors=True)


if __name__ == "__main__":
    main()
