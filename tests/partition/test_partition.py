"""Real processes, a network that is cut, and the checkers of the simulation on what clients saw.

`make partition` runs all of it; `docs/guarantees.md` says what is checked.
"""

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from raftkv.simulation.invariants import Violation
from tests.partition import verdict
from tests.partition.ground import ground
from tests.partition.recorder import Recorder
from tests.partition.scenarios import SCENARIOS, serves
from tests.partition.verdict import Summary

EVERY_TIME = {
    ("leader isolated", 3),
    ("one-way links", 3),
    ("clients cut off from the leader", 3),
    ("paused leader", 3),
    ("all killed", 3),
}
"""What `make test` runs; the rest is for `make partition`."""
CASES = [
    pytest.param(
        *(name, size),
        id=f"{name.replace(' ', '-')}-{size}",
        marks=[] if (name, size) in EVERY_TIME else [pytest.mark.soak],
    )
    for name in SCENARIOS
    for size in (3, 5)
]


@pytest.fixture
def directory() -> Iterator[Path]:
    """A short-lived place for data: logs are large."""
    path = Path(tempfile.mkdtemp(prefix="raftkv-partition-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


def run(name: str, size: int, directory: Path, mutant: str = "") -> Summary:
    """Run a scenario and check what came of it; what breaks a promise is kept, unless it was put in on purpose."""
    with ground(directory, size, mutant) as running:
        summary = Summary(f"{name}, {size} members", running.network.kind)
        recorder = Recorder([member.endpoint for member in running.members], summary.scenario)
        try:
            recorder.start()
            serves(recorder, "before any fault")
            SCENARIOS[name](running, recorder)
            running.heal()
            serves(recorder, "when all faults have ended")
            recorder.stop()
            settled = verdict.settle(running, recorder)
            running.stop()
            verdict.check(running, recorder, settled, summary)
            summary.verdict = "ok"
        except (Violation, AssertionError, subprocess.TimeoutExpired) as error:
            summary.verdict = str(error)
            if not mutant:
                summary.verdict += f" (kept in {verdict.keep(running, recorder, summary)})"
        finally:
            recorder.close()
        verdict.count(summary, recorder)
        return summary


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("name", "size"), CASES)
def test_scenario(name: str, size: int, directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = run(name, size, directory)
    with capsys.disabled():
        print(f"\n{summary}")
    assert summary.verdict == "ok"


@pytest.mark.soak
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("mutant", "name", "promise"),
    [
        ("reads-without-asking-a-quorum", "paused leader", "I11"),
        ("proposes-twice", "leader isolated", "I21"),
    ],
)
def test_a_bug_put_back_is_found(mutant: str, name: str, promise: str, directory: Path) -> None:
    for attempt in range(4):
        place = directory / str(attempt)
        place.mkdir()
        summary = run(name, 3, place, mutant)
        if promise in summary.verdict:
            return
    raise AssertionError(str(summary))
