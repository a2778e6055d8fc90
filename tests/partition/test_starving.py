"""A process that never rests is starved in each of the ways, runs on afterwards, and nothing of it is left."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.partition import starving
from tests.partition.disks import PREFIX, NotPermitted
from tests.partition.ground import until

SECONDS = 2.0


@dataclass
class Busy:
    """A process that would use a whole processor."""

    process: "subprocess.Popen[bytes]"

    @property
    def pid(self) -> int:
        return self.process.pid

    def running(self) -> bool:
        """Whether it lives."""
        return self.process.poll() is None

    def used(self) -> float:
        """Seconds of a processor it has used."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.fixture
def busy() -> Iterator[Busy]:
    made = Busy(subprocess.Popen([sys.executable, "-c", "while True: pass"]))
    try:
        yield made
    finally:
        made.process.kill()
        made.process.wait()


@pytest.mark.parametrize("name", starving.WAYS)
def test_who_is_starved_runs_for_a_part_of_the_time(name: str, busy: Busy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAFTKV_PARTITION_STARVING", name)
    until(lambda: busy.used() > 0.1, "it runs")
    done, told = threading.Event(), list[str]()

    def work() -> None:
        try:
            told.append(starving.starve(busy, done))
        except NotPermitted as error:
            told.append(f"not permitted: {error}")

    thread = threading.Thread(target=work)
    before, began = busy.used(), time.monotonic()
    thread.start()
    try:
        time.sleep(SECONDS)
        used, seconds = busy.used() - before, time.monotonic() - began
    finally:
        done.set()
        thread.join()
    (outcome,) = told
    if outcome.startswith("not permitted"):
        pytest.skip(outcome)
    # Whatever else this machine does only lets it have less.
    assert used < 0.4 * seconds, outcome
    assert outcome.startswith("starved by")
    before = busy.used()
    until(lambda: busy.used() > before + 0.2, "it runs again")
    assert os.sched_getaffinity(busy.pid) == os.sched_getaffinity(0)
    assert not list(Path("/sys/fs/cgroup").glob(f"*/{PREFIX}{os.getpid()}"))
