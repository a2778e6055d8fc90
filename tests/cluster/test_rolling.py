"""Every member of a cluster is replaced under load while members are killed: nothing acknowledged is lost."""

import contextlib
import random
import threading
import time
from pathlib import Path

import pytest

from raftkv.client import Client, ClientError
from raftkv.client.requests import HASH_KV
from raftkv.pb import rpc_pb2
from tests.cluster.test_membership import FAST, add
from tests.support.processes import Cluster, Process, cluster

PATIENCE_SECONDS = 120.0


class Load:
    """Writers that put keys and remember which were acknowledged, and in which seconds."""

    def __init__(self, running: Cluster, writers: int = 4) -> None:
        self._running = running
        self.acknowledged: list[str] = []
        self.seconds: set[int] = set()
        self.started = time.monotonic()
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._write, args=(number,), daemon=True) for number in range(writers)]
        for thread in self._threads:
            thread.start()

    def _write(self, writer: int) -> None:
        number = 0
        while not self._ended.is_set():
            endpoints = [member.endpoint for member in list(self._running.members)]
            first = writer % len(endpoints)
            with Client(endpoints[first:] + endpoints[:first], timeout=1.0) as client:
                # Who the members are changes: connect anew now and then.
                for _ in range(100):
                    if self._ended.is_set():
                        return
                    number += 1
                    key = f"load-{writer}-{number:08d}"
                    with contextlib.suppress(ClientError):
                        client.put(key, b"v" * 64)
                        self.acknowledged.append(key)
                        self.seconds.add(int(time.monotonic() - self.started))

    def end(self) -> float:
        """Stop; the share of seconds in which something was acknowledged."""
        total = int(time.monotonic() - self.started)
        self._ended.set()
        for thread in self._threads:
            thread.join(90)
        return len({second for second in self.seconds if second < total}) / max(1, total)


class Killer(threading.Thread):
    """Kills a member every few seconds and starts it again."""

    def __init__(self, running: Cluster, every_seconds: float) -> None:
        super().__init__(daemon=True)
        self._running = running
        self._every = every_seconds
        self._ended = threading.Event()
        self.kills = 0
        self.start()

    def run(self) -> None:
        chance = random.Random(1)
        while not self._ended.wait(self._every):
            victim = chance.choice(list(self._running.members))
            if victim.running():
                victim.kill()
                self.kills += 1
                victim.start()

    def end(self) -> None:
        self._ended.set()
        self.join(90)


def through(running: Cluster, attempt: "Attempt") -> None:
    """Make a change however often it takes; `attempt` says whether it is made."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    problem = ""
    while time.monotonic() < deadline:
        with Client([member.endpoint for member in running.members], timeout=5.0) as client:
            try:
                if attempt(client):
                    return
            except ClientError as error:
                problem = str(error)
        time.sleep(0.2)
    raise AssertionError(f"the change is never made: {problem}")


class Attempt:
    """One step of the change, made of what the members say."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, client: Client) -> bool:
        members = client.member_list(linearizable=True).members
        return self.step(client, {member.name: member for member in members})

    def step(self, client: Client, members: "dict[str, rpc_pb2.Member]") -> bool:
        raise NotImplementedError


class Promote(Attempt):
    def step(self, client: Client, members: "dict[str, rpc_pb2.Member]") -> bool:
        member = members.get(self._name)
        if member is None:
            return False
        if member.isLearner:
            client.member_promote(member.ID)
        return True


class Remove(Attempt):
    def step(self, client: Client, members: "dict[str, rpc_pb2.Member]") -> bool:
        if self._name in members:
            client.member_remove(members[self._name].ID)
        return True


def grow(running: Cluster, name: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        established = list(running.members)
        try:
            with Client([member.endpoint for member in established], timeout=5.0) as client:
                add(running, client, name, learner=True)
            break
        except ClientError as error:
            running.members = established
            assert "unknown" not in type(error).__name__.lower(), "an added member without a process"
            assert time.monotonic() < deadline, error
            time.sleep(0.2)
    through(running, Promote(name))


def shrink(running: Cluster, gone: Process) -> None:
    running.members.remove(gone)
    through(running, Remove(gone.name))
    gone.wait()


def hashes(running: Cluster) -> set[int]:
    found = set()
    with Client(running.members[0].endpoint) as client:
        revision = client.range("load-", limit=1).header.revision
        for member in running.members:
            client.range("load-", limit=1)
            found.add(client.call(HASH_KV, rpc_pb2.HashKVRequest(revision=revision), endpoint=member.endpoint).hash)
    return found


def roll(running: Cluster, *, newcomers: int, kill_every: float | None, pause: float = 0.0) -> int:
    """Grow by so many members, then remove as many of the first ones; then the rest in the same way.

    `pause` seconds pass between two steps. How many members were killed.
    """
    first = list(running.members)
    load = Load(running)
    killer = Killer(running, kill_every) if kill_every else None
    for start in range(0, len(first), newcomers):
        replaced = first[start : start + newcomers]
        for number, _ in enumerate(replaced, start):
            grow(running, f"n{number}")
            time.sleep(pause)
        for gone in replaced:
            shrink(running, gone)
            time.sleep(pause)
    if killer is not None:
        killer.end()
    share = load.end()
    for member in running.members:
        running.wait_ready(member)
    with Client([member.endpoint for member in running.members]) as client:
        held = {kv.key.decode() for kv in client.range("load-", prefix=True).kvs}
    lost = set(load.acknowledged) - held
    assert not lost, f"{len(lost)} of {len(load.acknowledged)} acknowledged writes are lost: {sorted(lost)[:5]}"
    assert len(hashes(running)) == 1
    kills = killer.kills if killer is not None else 0
    print(f"{len(load.acknowledged)} writes, {kills} kills, {share:.1%} of seconds available")
    assert share >= (0.95 if kill_every else 0.5), f"available in {share:.1%} of the seconds"
    return kills


def test_every_member_is_replaced_under_load(tmp_path: Path) -> None:
    with cluster(tmp_path, 3, *FAST) as running:
        roll(running, newcomers=2, kill_every=None)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_three_grow_to_five_and_shrink_to_three_under_load_and_kills(tmp_path: Path) -> None:
    with cluster(tmp_path, 3, *FAST) as running:
        assert roll(running, newcomers=2, kill_every=5.0, pause=15.0) >= 12
