"""A process that writes the log is killed at any moment: what it acknowledged is there, whole and in order."""

import random
import subprocess
import sys
from pathlib import Path

import pytest

from raftkv.disk import OsDisk
from raftkv.wal import Wal
from tests.support.log_writer import SEGMENT_BYTES, value

ROOT = Path(__file__).parents[2]


def write_and_die(directory: Path, first: int, seed: int, after: int) -> int:
    """Let a writer acknowledge `after` writes and kill it somewhere behind; the last index it acknowledged."""
    command = [sys.executable, "-m", "tests.support.log_writer", str(directory), str(first), str(seed)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as process:
        try:
            assert process.stdout is not None
            told = [process.stdout.readline() for _ in range(after)]
        finally:
            process.kill()
        told += process.stdout.read().splitlines(keepends=True)
    whole = [line for line in told if line.endswith(b"\n")]
    assert len(whole) >= after, "the writer stopped by itself"
    return int(whole[-1])


def check(directory: Path, acknowledged: int) -> int:
    """Every acknowledged entry is there, perhaps the write after it, and nothing else; the last index found."""
    wal, contents = Wal.open(OsDisk(), str(directory), SEGMENT_BYTES)
    wal.settle()
    wal.close()
    last = contents.entries[-1][1]
    assert acknowledged <= last <= acknowledged + 4
    assert contents.entries == [(1, index, 0, value(index)) for index in range(1, last + 1)]
    return last


def rounds(directory: Path, count: int, seed: int) -> None:
    rng = random.Random(seed)
    last = 0
    for number in range(count):
        last = check(directory, write_and_die(directory, last + 1, number, rng.randint(1, 60)))


def test_a_killed_writer_loses_nothing_it_acknowledged(tmp_path: Path) -> None:
    rounds(tmp_path / "wal", 8, seed=1)


@pytest.mark.soak
def test_a_killed_writer_loses_nothing_it_acknowledged_for_long(tmp_path: Path) -> None:
    for directory in range(10):
        rounds(tmp_path / str(directory) / "wal", 40, seed=directory)
