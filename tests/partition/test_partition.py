"""Real processes, a network that is cut, and the checkers of the simulation on what clients saw.

`make partition` runs all of it; `docs/guarantees.md` says what is checked.
"""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.partition import verdict
from tests.partition.ground import ground
from tests.partition.recorder import Recorder
from tests.partition.scenarios import SCENARIOS, serves
from tests.partition.verdict import Summary

EVERY_TIME = {("leader isolated", 3), ("one-way links", 3), ("clients cut off from the leader", 3), ("all killed", 3)}
"""What `make test` runs; the rest is for `make partition`."""
CASES = [
    pytest.param(name, size, id=f"{name.replace(' ', '-')}-{size}", marks=[] if (name, size) in EVERY_TIME else [pytest.mark.soak])
    for name in SCENARIOS
    for size in (3, 5)
]


@pytest.fixture
def directory() -> Iterator[Path]:
    """A short-lived place for data: logs are large."""
    path = Path(tempfile.mkdtemp(prefix="raftkv-partition-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("name", "size"), CASES)
def test_scenario(name: str, size: int, directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with ground(directory, size) as running:
        summary = Summary(f"{name}, {size} members", running.network.kind)
        recorder = Recorder([member.endpoint for member in running.members], summary.scenario)
        try:
            recorder.start()
            serves(recorder, "before any fault")
            SCENARIOS[name](running, recorder)
            running.heal()
            serves(recorder, "when all faults have ended")
            recorder.stop()
            index = verdict.settle(running, recorder)
            running.stop()
            verdict.count(summary, recorder)
            verdict.check(running, recorder, index, summary)
            summary.verdict = "ok"
        except BaseException as error:
            verdict.count(summary, recorder)
            summary.verdict = f"{error}"
            kept = verdict.keep(running, recorder, summary)
            summary.verdict += f" (kept in {kept})"
            raise
        finally:
            recorder.close()
            with capsys.disabled():
                print(f"\n{summary}")
