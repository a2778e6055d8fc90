"""After the faults: the members agree, watchers have heard everything, and the log explains every answer."""

import contextlib
import itertools
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from raftkv.client import Client, ClientError
from raftkv.client import requests as req
from raftkv.disk import OsDisk
from raftkv.pb import rpc_pb2
from raftkv.simulation import promises, revisions
from raftkv.simulation.history import Operation
from raftkv.simulation.invariants import Violation
from raftkv.simulation.linearizability import linearizable
from raftkv.simulation.model import Model, Version, versions_of
from raftkv.wal.log import Wal
from tests.partition.ground import until
from tests.partition.holders import check_fenced, check_left, known_by
from tests.partition.recorder import WRITES, Recorder

KEPT = Path(__file__).parents[2] / "build" / "partition"
"""Where what shows a violation is kept."""
_NORMAL = 0
_EVERYTHING = rpc_pb2.RangeRequest(key=b"\0", range_end=b"\0")
Entry = tuple[int, int, int, bytes]


class Member(Protocol):
    """One that is asked, and leaves its data."""

    name: str
    endpoint: str
    data: Path

    def log(self) -> str: ...


class Members(Protocol):
    """The cluster that is judged."""

    faults: list[tuple[int, str]]

    @property
    def present(self) -> Sequence[Member]: ...


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
    renewals: int = 0
    locks: int = 0
    undecided: int = 0
    verdict: str = "not finished"

    def __str__(self) -> str:
        undecided = f", {self.undecided} keys undecided" if self.undecided else ""
        return (
            f"{self.scenario} ({self.network}): {self.operations} operations, {self.acknowledged} acknowledged, "
            f"{self.refused} refused, {self.unknown} unknown, {self.renewals} renewals, {self.locks} locks, "
            f"no write for at most {self.unavailable_seconds:.2f} s, "
            f"{self.elections} elections{undecided}: {self.verdict}"
        )


def count(summary: Summary, recorder: Recorder) -> None:
    """Fill in what clients saw."""
    operations = recorder.history.operations
    summary.operations = len(operations)
    summary.acknowledged = recorder.history.acknowledged()
    summary.refused = len(recorder.definite)
    summary.unknown = summary.operations - summary.acknowledged - summary.refused
    summary.renewals = len(recorder.history.renewals)
    summary.locks = sum(op.ok and op.kind == "lock" for op in operations)
    ends = [max((op.returned for op in operations), default=recorder.began)]
    times = [recorder.began, *sorted(op.returned for op in operations if op.ok and op.kind in WRITES), *ends]
    summary.unavailable_seconds = max(after - before for before, after in itertools.pairwise(times)) / 1e9


@dataclass
class Settled:
    """Where all members have arrived, and what each holds at that revision.

    Requests that clients gave up may still be on their way, and take effect later: nothing here depends on it.
    """

    index: int
    revision: int
    keys: dict[str, list[Version]]


def settle(ground: Members, recorder: Recorder) -> Settled:
    """Wait until a write is taken, leases have ended, all members have applied the same log, and watchers heard it."""
    endpoints = ",".join(member.endpoint for member in ground.present)
    with Client(endpoints, timeout=2.0) as client:

        def written() -> bool:
            with contextlib.suppress(ClientError):
                client.put("settled", "")
                return True
            return False

        until(written, "a write is taken after the faults")
        until(
            lambda: len(_positions(ground)) == 1,
            "all leases have ended, and all members have applied the same log (I17)",
        )
        revision, index = _positions(ground).pop()
        until(lambda: recorder.drained(revision), f"all watchers heard of revision {revision}")
        _compare_hashes(ground, client, revision)
        _compare_members(ground)
    return Settled(index, revision, {member.name: _keys(member, revision) for member in ground.present})


def _keys(member: Member, revision: int) -> list[Version]:
    with Client(member.endpoint, timeout=10.0) as client:
        return versions_of(client.range(b"\0", b"\0", revision=revision, serializable=True).kvs)


def _positions(ground: Members) -> set[tuple[int, int]]:
    found = set()
    for member in ground.present:
        try:
            with Client(member.endpoint, timeout=2.0) as client:
                leases = client.leases().leases
                status = client.status()
        except ClientError:
            return set()
        if leases or status.raftIndex != status.raftAppliedIndex:
            return set()
        found.add((status.header.revision, status.raftIndex))
    return found


def _compare_hashes(ground: Members, client: Client, revision: int) -> None:
    found: dict[str, tuple[int, int]] = {}
    for member in ground.present:

        def asked(endpoint: str = member.endpoint, name: str = member.name) -> bool:
            with contextlib.suppress(ClientError):
                answer = client.call(req.HASH_KV, rpc_pb2.HashKVRequest(revision=revision), endpoint=endpoint)
                found[name] = answer.hash, answer.compact_revision
                return True
            return False

        until(asked, f"{member.name} answers HashKV")
    if len(set(found.values())) != 1:
        raise Violation(f"I19: members have different histories at revision {revision}: {found}")


def _compare_members(ground: Members) -> None:
    """All members know the same members: those there should be."""
    for member in ground.present:
        with Client(member.endpoint, timeout=10.0) as client:
            known = sorted(one.name for one in client.member_list().members)
        if known != sorted(one.name for one in ground.present):
            raise Violation(f"I22: {member.name} knows the members {known}")


def check(ground: Members, recorder: Recorder, settled: Settled, summary: Summary) -> None:
    """Compare everything with the log. The members have ended.

    Raises:
        Violation
    """
    if recorder.problems:
        raise Violation(recorder.problems[0])
    entries = _common_log(ground, settled.index)
    # Every leader begins with an entry of its term.
    summary.elections = len({term for term, *_ in entries if term}) - 1
    model = Model()
    for term, place, kind, data in entries:
        model.apply(place, term, data if kind == _NORMAL else b"")
        if place == settled.index and model.leases:
            raise Violation(f"I17: leases {[hex(lease) for lease in model.leases]} are in the log, and nobody has them")
    # When entries were committed is not known from outside; all else of the check is exact.
    revisions.check(recorder.history, model, [0] * len(entries))
    for number in recorder.definite:
        outcome = model.outcomes.get(number)
        if outcome is not None and outcome.wrote:
            raise Violation(f"I26: operation {number} was refused, and took effect at {outcome.revision}")
    for name, keys in settled.keys.items():
        if keys != model.range_at(_EVERYTHING, settled.revision)[2]:
            raise Violation(f"I5: {name} holds {len(keys)} keys, which are not those of the log")
    known = known_by(recorder.history, recorder.heard, model)
    promises.check_leases(recorder.history, model, known, fastest=1.0, drained_at=None)
    check_left(recorder.history, model, known)
    check_fenced(recorder.history, model)
    # All of them came to the settled revision, or there would be no verdict; some may have heard of more.
    promises.check_watches(recorder.history, model, drained=False)
    for key, accesses in sorted(recorder.accesses.items()):
        order = linearizable(accesses)
        if order is None:
            summary.undecided += 1
        elif not order:
            raise Violation(f"I11: no order explains what clients saw of {key!r}")


def _common_log(ground: Members, index: int) -> list[Entry]:
    """What was ever committed: up to an index all members that have an entry have the same one (I3), beyond a majority.

    A member that gave its first entries up for a snapshot does not have them; another one does.
    """
    logs: list[dict[int, Entry]] = []
    for member in ground.present:
        wal, contents = Wal.open(OsDisk(), str(log_directory(member.data)))
        wal.close()
        logs.append({entry[1]: entry for entry in contents.entries})
    common: list[Entry] = []
    while True:
        found = [log.get(len(common) + 1) for log in logs]
        there = {entry for entry in found if entry is not None}
        if len(common) < index and len(there) != 1:
            raise Violation(f"I3: members have different entries at index {len(common) + 1}: {found}")
        entry = max(there, key=found.count, default=None)
        if entry is None or (len(common) >= index and found.count(entry) * 2 <= len(logs)):
            return common
        common.append(entry)


def log_directory(data: Path) -> Path:
    """Where a member keeps its log."""
    return next(data.rglob("*.wal")).parent


def keep(ground: Members, recorder: Recorder, summary: Summary) -> Path:
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
    for member in ground.present:
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
