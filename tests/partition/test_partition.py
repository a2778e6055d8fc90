"""Real processes, a network that is cut, and the checkers of the simulation on what clients saw.

`make partition` runs all of it; `docs/guarantees.md` says what is checked.
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from raftkv.client import ClientError
from raftkv.pb import rpc_pb2, v3lock_pb2
from raftkv.simulation.history import History
from raftkv.simulation.invariants import Violation
from raftkv.simulation.linearizability import FOREVER, Access
from tests.partition import verdict
from tests.partition.beside import beside
from tests.partition.disks import PREFIX, NotPermitted, remove_leftovers
from tests.partition.ground import Ground, ground, until
from tests.partition.holders import GUARDED, is_gone
from tests.partition.messages import Messages, Weather
from tests.partition.recorder import Recorder
from tests.partition.scenarios import SCENARIOS, serves
from tests.partition.starving import remove_left_groups
from tests.partition.verdict import Settled, Summary

EVERY_TIME = {("paused leader", 3), ("snapshot installed", 3), ("power cut", 3), ("messages in any order", 3)}
"""What `make test` runs, besides the leader that is isolated below; the rest is for `make partition`."""
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
    remove_leftovers()
    remove_left_groups()
    path = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


def run(name: str, kind: str, running: Ground, recorder: Recorder, also: Callable[[], None] = lambda: None) -> Settled:
    """Run a scenario, and what is to happen `also`, beside another kind of fault until all members agree; end them."""
    recorder.start()
    serves(recorder, "before any fault")
    until(recorder.holds, "a lease is renewed and the lock given before any fault")
    with beside(kind, running):
        SCENARIOS[name].run(running, recorder)
        also()
        running.heal()
    serves(recorder, "when all faults have ended")
    recorder.stop()
    settled = verdict.settle(running, recorder)
    running.stop()
    return settled


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("name", "size"), CASES)
def test_scenario(name: str, size: int, directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scenario = SCENARIOS[name]
    other = scenario.beside if size == 5 else ""
    try:
        with ground(directory, size, scenario.prepare, scenario.delay_seconds, scenario.weather) as running:
            summary = Summary(f"{name}{other and ' and ' + other}, {size} members", running.network.kind)
            recorder = Recorder([member.endpoint for member in running.members], summary.scenario)
            try:
                settled = run(name, other, running, recorder)
                verdict.check(running, recorder, settled, summary)
                summary.verdict = "ok"
            except (Violation, AssertionError, ClientError, subprocess.TimeoutExpired) as error:
                summary.verdict = f"{error} (kept in {verdict.keep(running, recorder, summary)})"
            finally:
                recorder.close()
    except NotPermitted as error:
        pytest.skip(f"{name}: not permitted here: {error}")
    summary.network = "; ".join([running.network.kind, *running.circumstances])
    verdict.count(summary, recorder)
    with capsys.disabled():
        print(f"\n{summary}")
    assert summary.verdict == "ok"


def lost_write(recorder: Recorder, settled: Settled) -> None:
    """A write is acknowledged that no log has."""
    writes = [op for op in recorder.history.operations if op.ok and op.kind == "put"]
    writes[-1].number = 1 << 30


def stale_read(recorder: Recorder, settled: Settled) -> None:
    """The last read answers what the first one did."""
    reads = [op for op in recorder.history.operations if op.ok and op.kind == "range" and not op.request.range_end]
    reads = [op for op in reads if op.request.key.startswith(b"r/")]
    reads = [op for op in reads if not op.request.serializable and op.request.key == reads[0].request.key]
    reads[-1].answer = reads[0].answer


def effect_of_a_refusal(recorder: Recorder, settled: Settled) -> None:
    """What a client was told to be refused has happened."""
    recorder.definite.update(op.number for op in recorder.history.operations if op.ok and op.kind == "put")


def unordered_register(recorder: Recorder, settled: Settled) -> None:
    """A read of a register sees what nobody wrote."""
    accesses = next(iter(recorder.accesses.values()))
    next(access for access in accesses if access.kind == "get" and access.returned < FOREVER).seen = b"nobody's"


def missed_event(recorder: Recorder, settled: Settled) -> None:
    """A watcher does not hear of one revision."""
    del recorder.history.watches[0].segments[-1].batches[-2]


def other_keys(recorder: Recorder, settled: Settled) -> None:
    """A member has a key less than the others."""
    next(iter(settled.keys.values())).pop()


def early_end(recorder: Recorder, settled: Settled) -> None:
    """A lease that somebody saw end had been renewed a second before."""
    history = recorder.history
    revoked = {op.request.ID for op in history.operations if op.kind == "revoke"}
    gone = next(op for op in history.operations if is_gone(op) and op.request.ID not in revoked)
    history.renewals.append((gone.request.ID, gone.invoked - 10**9, 3))


def renewed_after_its_end(recorder: Recorder, settled: Settled) -> None:
    """A lease that somebody saw end is renewed a second later."""
    history = recorder.history
    gone = next(op for op in history.operations if is_gone(op))
    history.renewals.append((gone.request.ID, gone.returned + 10**9, 3))


def left_after_its_end(recorder: Recorder, settled: Settled) -> None:
    """Whoever asks again for a lease that somebody saw end is told of time left."""
    operations = recorder.history.operations
    gone = next(op for op in operations if is_gone(op))
    left = rpc_pb2.LeaseTimeToLiveResponse(ID=gone.request.ID, TTL=1)
    again = replace(gone, number=len(operations) + 1, invoked=gone.returned + 10**9, returned=gone.returned + 2 * 10**9)
    again.answer = left.SerializeToString()
    operations.append(again)


def lock_of_another(recorder: Recorder, settled: Settled) -> None:
    """Two are told at one revision that they have the lock."""
    locks = [op for op in recorder.history.operations if op.ok and op.kind == "lock"]
    answers = [v3lock_pb2.LockResponse.FromString(op.answer or b"") for op in locks]
    answers[-1].key = answers[0].key
    locks[-1].answer = answers[-1].SerializeToString()


def holder_of_before(recorder: Recorder, settled: Settled) -> None:
    """Somebody writes under the lock with a token that is older than the one before."""
    history = recorder.history
    txns = [op for op in history.operations if op.ok and op.kind == "txn"]
    fenced = [op for op in txns if op.request.success[0].request_put.key == GUARDED]
    request = type(fenced[-1].request).FromString(fenced[-1].request.SerializeToString())
    request.compare[0].create_revision = 1
    fenced[-1].request = request


DAMAGES = [
    (lost_write, "I7"),
    (stale_read, "I11"),
    (effect_of_a_refusal, "I26"),
    (unordered_register, "I11"),
    (missed_event, "I14"),
    (other_keys, "I5"),
    (early_end, "I16: .* expired at"),
    (renewed_after_its_end, "I16: .* renewed at .* had ended at"),
    (left_after_its_end, "I16: .* left after it had ended"),
    (lock_of_another, "I18 lock"),
    (holder_of_before, "I18: the holder since"),
]


Seen = tuple[History, dict[bytes, list[Access]], set[int], Settled]


def copied(history: History, accesses: dict[bytes, list[Access]], definite: set[int], settled: Settled) -> Seen:
    """The same, to be changed."""
    watches = [
        replace(watched, segments=[replace(told, batches=told.batches[:]) for told in watched.segments])
        for watched in history.watches
    ]
    return (
        History([replace(operation) for operation in history.operations], watches, history.renewals[:]),
        {key: [replace(access) for access in found] for key, found in accesses.items()},
        set(definite),
        replace(settled, keys={name: keys[:] for name, keys in settled.keys.items()}),
    )


@pytest.mark.timeout(900)
def test_a_damaged_history_is_found(directory: Path) -> None:
    """What clients saw of real members is changed in one place at a time, and each change is noticed."""
    with ground(directory, 3) as running:
        recorder = Recorder([member.endpoint for member in running.members], "damages")
        try:
            settled = run("leader isolated", "", running, recorder, lambda: until(recorder.loses, "a lease ends"))
        finally:
            recorder.close()
        kept = recorder.history, recorder.accesses, recorder.definite, settled
        verdict.check(running, recorder, settled, Summary("damages", running.network.kind))
        for damage, promise in DAMAGES:
            recorder.history, recorder.accesses, recorder.definite, damaged = copied(*kept)
            damage(recorder, damaged)
            with pytest.raises(Violation, match=promise):
                verdict.check(running, recorder, damaged, Summary("damages", running.network.kind))


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_a_proposal_that_comes_twice_is_found(directory: Path) -> None:
    """Were forwarded proposals doubled as well, writes would happen twice: the proxies act, and the checks notice."""
    with ground(directory, 3, weather=Weather(lost=0.0, late=0.0, once=frozenset())) as running:
        assert isinstance(running.network, Messages)
        recorder = Recorder([member.endpoint for member in running.members], "proposals")
        recorder.start()
        try:
            until(lambda: running.network.counts["doubled", "propose"] > 20, "proposals come twice")
            recorder.stop()
            settled = verdict.settle(running, recorder)
            running.stop()
        finally:
            recorder.close()
        with pytest.raises(Violation, match="I21"):
            verdict.check(running, recorder, settled, Summary("proposals", running.network.kind))
