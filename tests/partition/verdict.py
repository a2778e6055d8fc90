"""After the faults: the members agree, watchers have heard everything, and the log explains every answer."""

import contextlib
import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from raftkv.client import Client, ClientError
from raftkv.client import requests as req
from raftkv.disk import OsDisk
from raftkv.pb import rpc_pb2
from raftkv.simulation import promises, revisions
from raftkv.simulation.history import Operation
from raftkv.simulation.invariants import Violation
from raftkv.simulation.linearizability import linearizable
from raftkv.simulation.model import Model, versions_of
from raftkv.simulation.revisions import LOGGED
from raftkv.wal.log import Wal
from tests.partition.ground import Ground, until
from tests.partition.recorder import Recorder

KEPT = Path(__file__).parents[2] / "build" / "partition"
"""Where what shows a violation is kept."""
_NORMAL = 0
Entry = tuple[int, int, int, bytes]


@dataclass
class Summary:
    """What a scenario came to; `verdict` is `ok`, or what is wrong."""

    scenario: str
    network: str
    operations: int = 0
    acknowledged: int = 0
    refused: int = 0
    unknown: int = 0
    unavailable_seconds: float = 0.0
    elections: int = 0
    undecided: int = 0
    verdict: str = "not finished"

    def __str__(self) -> str:
        undecided = f", {self.undecided} keys undecided" if self.undecided else ""
        return (
            f"{self.scenario} ({self.network}): {self.operations} operations, {self.acknowledged} acknowledged, "
            f"{self.refused} refused, {self.unknown} unknown, no write for at most {self.unavailable_seconds:.2f} s, "
            f"{self.elections} elections{undecided}: {self.verdict}"
        )


def count(summary: Summary, recorder: Recorder) -> None:
    """Fill in what clients saw."""
    operations = recorder.history.operations
    summary.operations = len(operations)
    summary.acknowledged = recorder.history.acknowledged()
    summary.refused = len(recorder.definite)
    summary.unknown = summary.operations - summary.acknowledged - summary.refused
    ends = [max((op.returned for op in operations), default=recorder.began)]
    times = [recorder.began, *sorted(op.returned for op in operations if op.ok and op.kind in LOGGED), *ends]
    summary.unavailable_seconds = max(after - before for before, after in zip(times, times[1:], strict=False)) / 1e9


def settle(ground: Ground, recorder: Recorder) -> int:
    """Wait until a write is taken, all members have applied the same log, and watchers heard of it; its last index."""
    with Client(ground.endpoints, timeout=2.0) as client:

        def written() -> bool:
            with contextlib.suppress(ClientError):
                client.put("settled", "")
                return True
            return False

        until(written, "a write is taken after the faults")
        until(lambda: len(_positions(ground)) == 1, "all members have applied the same log")
        revision, index = _positions(ground).pop()
        until(lambda: recorder.drained(revision), f"all watchers heard of revision {revision}")
        _compare_hashes(ground, client, revision)
        return index


def _positions(ground: Ground) -> set[tuple[int, int]]:
    found = set()
    for member in ground.members:
        try:
            with Client(member.endpoint, timeout=2.0) as client:
                status = client.status()
        except ClientError:
            return set()
        if status.raftIndex != status.raftAppliedIndex:
            return set()
        found.add((status.header.revision, status.raftIndex))
    return found


def _compare_hashes(ground: Ground, client: Client, revision: int) -> None:
    found = {}
    for member in ground.members:

        def asked(endpoint: str = member.endpoint, name: str = member.name) -> bool:
            with contextlib.suppress(ClientError):
                answer = client.call(req.HASH_KV, rpc_pb2.HashKVRequest(revision=revision), endpoint=endpoint)
                found[name] = answer.hash, answer.compact_revision
                return True
            return False

        until(asked, f"{member.name} answers HashKV")
    if len(set(found.values())) != 1:
        raise Violation(f"I19: members have different histories at revision {revision}: {found}")


def check(ground: Ground, recorder: Recorder, index: int, summary: Summary) -> None:
    """Compare everything with the log, up to the index that all have applied. The members have ended.

    Raises:
        Violation
    """
    if recorder.problems:
        raise Violation(recorder.problems[0])
    entries = _common_log(ground, index)
    # Every leader begins with an entry of its term.
    summary.elections = len({term for term, *_ in entries if term}) - 1
    model = Model()
    for term, place, kind, data in entries:
        model.apply(place, term, data if kind == _NORMAL else b"")
    # When entries were committed is not known from outside; all else of the check is exact.
    revisions.check(recorder.history, model, [0] * len(entries))
    for number in recorder.definite:
        outcome = model.outcomes.get(number)
        if outcome is not None and outcome.wrote:
            raise Violation(f"I26: operation {number} was refused, and took effect at {outcome.revision}")
    promises.check_watches(recorder.history, model, drained=True)
    for key, accesses in sorted(recorder.accesses.items()):
        order = linearizable(accesses)
        if order is None:
            summary.undecided += 1
        elif not order:
            raise Violation(f"I11: no order explains what clients saw of {key!r}")


def check_state(ground: Ground, model_state: list[object]) -> None:
    """Every member holds these versions (I5)."""
    for member in ground.members:
        with Client(member.endpoint, timeout=5.0) as client:
            found = versions_of(client.range(b"\0", b"\0", serializable=True).kvs)
        if found != model_state:
            raise Violation(f"I5: {member.name} holds {len(found)} keys, not what the log says")


def _common_log(ground: Ground, index: int) -> list[Entry]:
    """The log up to an index, which is the same on all members (I3)."""
    logs = []
    for member in ground.members:
        wal, contents = Wal.open(OsDisk(), str(log_directory(member.data)))
        wal.close()
        logs.append(contents.entries)
    common: dict[int, Entry] = {}
    for member, entries in zip(ground.members, logs, strict=True):
        for entry in entries:
            if entry[1] <= index and common.setdefault(entry[1], entry) != entry:
                raise Violation(f"I3: {member.name} has another entry at index {entry[1]}")
    return [common[place] for place in sorted(common)]


def log_directory(data: Path) -> Path:
    """Where a member keeps its log."""
    return next(data.rglob("*.wal")).parent


def keep(ground: Ground, recorder: Recorder, summary: Summary) -> Path:
    """Put aside what shows a violation: the history, the faults, the logs of the members."""
    name = summary.scenario.replace(",", "").replace(" ", "-")
    directory = KEPT / f"{name}-{time.strftime('%Y%m%dT%H%M%S')}"
    directory.mkdir(parents=True)
    (directory / "summary.txt").write_text(f"{summary}\n")
    with (directory / "history.jsonl").open("w") as out:
        for time_ns, fault in ground.faults:
            out.write(json.dumps({"time": time_ns, "fault": fault}) + "\n")
        for operation in recorder.history.operations:
            out.write(json.dumps(_shown(operation, recorder)) + "\n")
        for watched in recorder.history.watches:
            for told in watched.segments:
                line = {"watcher": watched.client, "from": told.start, "reached": told.reached, "told": told.batches}
                out.write(json.dumps(line, default=lambda value: value.decode("latin-1")) + "\n")
    for member in ground.members:
        (directory / f"{member.name}.log").write_text(member.log())
        with contextlib.suppress(OSError, StopIteration):
            shutil.copytree(log_directory(member.data), directory / member.name)
    return directory


def _shown(operation: Operation, recorder: Recorder) -> dict[str, object]:
    return {
        "number": operation.number,
        "client": operation.client,
        "member": operation.member,
        "kind": operation.kind,
        "request": str(operation.request),
        "invoked": operation.invoked,
        "returned": operation.returned,
        "answer": operation.answer.hex() if operation.answer is not None else None,
        "error": operation.error.message if operation.error is not None else None,
        "refused": operation.number in recorder.definite,
    }
