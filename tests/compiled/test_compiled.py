"""The compiled form says what it is, and passes the tests of what is compiled in it."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMPILE = ROOT / "scripts" / "compile.py"

TESTS = (
    *("tests/unit/http", "tests/unit/rpc", "tests/unit/raft", "tests/unit/mvcc", "tests/unit/peer"),
    "tests/unit/wal",
    *("tests/property/test_raft_machine.py", "tests/property/test_raft_walks.py", "tests/property/test_mvcc_model.py"),
    *("tests/property/test_wal.py", "tests/property/test_wal_machine.py", "tests/cluster/test_kill.py"),
)
INTERPRETED_ONLY = (
    "tests/unit/rpc/test_reflection.py",
    "tests/unit/raft/test_schedules.py::test_an_error_nobody_thought_of_poisons_the_node_as_well",
    "tests/unit/peer/test_call.py::test_a_call_whose_connection_was_given_up_in_the_making_can_be_closed",
    "tests/unit/mvcc/test_stream.py::test_a_page_of_an_old_revision_is_read_alone",
)
"""They hand over objects of other types than declared, replace a method or inherit: the compiled form refuses that."""

_spec = importlib.util.spec_from_file_location("compile_script", COMPILE)
assert _spec is not None
assert _spec.loader is not None
script = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(script)


@pytest.mark.parametrize(
    ("body", "lines"),
    [
        ("    try:\n        await work()\n    finally:\n        await close()\n", [5]),
        ("    async with lock:\n        work()\n", [2]),
        ("    try:\n        await work()\n    finally:\n        close()\n", []),
    ],
)
def test_what_would_be_compiled_wrongly_is_seen(body: str, lines: list[int]) -> None:
    assert script.unsafe(f"async def run():\n{body}") == lines


def test_every_module_that_is_compiled_is_there_and_safe() -> None:
    modules = [module for line in (*script.MODULES, *script.SIMULATOR) for module in line.split()]
    assert len(set(modules)) == len(modules) > 30
    for module in modules:
        source = (ROOT / "raftkv" / f"{module}.py").read_text()
        assert script.unsafe(source) == [], module
        assert "__weakref__" not in source, "mypyc leaves it out, and a weak reference is a TypeError"


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.skipif(script.missing() is not None, reason=f"there is no {script.missing()} to compile with")
def test_the_compiled_form_passes_the_tests_of_what_is_compiled(tmp_path: Path) -> None:
    subprocess.run([sys.executable, COMPILE], check=True)
    tree = tmp_path / "compiled"
    shutil.copytree(script.TARGET, tree)
    for name in ("tests", "benchmarks", "scripts", "proto"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tree)
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    command = [sys.executable, "-m", "raftkv", "--version"]
    said = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=True).stdout
    assert said.splitlines()[0].endswith(" (compiled)")
    deselected = [f"--deselect={test}" for test in INTERPRETED_ONLY]
    command = [sys.executable, "-m", "pytest", "-q", "--tb=short", *TESTS, *deselected]
    subprocess.run(command, cwd=tree, env=environment, check=True)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.skipif(script.missing() is not None, reason=f"there is no {script.missing()} to compile with")
def test_the_compiled_simulation_is_the_same_stream_of_events() -> None:
    subprocess.run([sys.executable, COMPILE, "--simulator"], check=True)
    command = [sys.executable, "-m", "raftkv", "sim", "--seeds", "200", "--first", "20000", "--seconds", "8"]
    said = []
    for tree in (ROOT, script.SIMULATOR_TARGET):
        environment = {**os.environ, "PYTHONPATH": str(tree)}
        done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=True)
        said.append(json.loads(done.stdout))
        del said[-1]["elapsed_seconds"]
    assert said[0] == said[1]
