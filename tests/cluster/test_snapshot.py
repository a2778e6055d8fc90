"""A follower that needs more than the log holds is given the store: real members, real disks, kills at every step."""

import os
import re
import signal
import time
import urllib.request
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

from tests.cluster.test_kill import check_agreement, check_writes
from tests.cluster.test_membership import until
from tests.support.objects import Writers
from tests.support.processes import START_SECONDS, Cluster, Process, cluster, in_one_of, wait_log
from tests.support.watching import Stream

FLAGS = ("--snapshot-count", "20", "--snapshot-catchup-entries", "5")
INSTALLED = "goes on from a snapshot"
COMPACTED = "the log begins behind"
DECISIVE_STEPS = ("snapshot-aside", "snapshot-recorded", "snapshot-moved")
OTHER_STEPS = ("snapshot-receiving", "snapshot-received", "snapshot-in-place")
"""tests/unit/server/test_snapshots.py dies at every step too, in a moment."""
SENDER_STEPS = ("snapshot-copied", "snapshot-sending")
SENT_IN_PART = "snapshot-sent-in-part"


@pytest.fixture
def three(tmp_path: Path) -> Iterator[Cluster]:
    with cluster(tmp_path, 3, *FLAGS) as running:
        yield running


def a_follower(running: Cluster) -> Process:
    leader = running.leader()
    return next(member for member in running.members if member is not leader)


def test_a_follower_that_was_away_is_given_the_store_while_writes_go_on(three: Cluster) -> None:
    writers = Writers([member.endpoint for member in three.members], 20_000)
    writers.wait(200)
    follower = a_follower(three)
    follower.kill()
    writers.wait(writers.acknowledged + 3_000)
    follower.start()
    wait_log(follower, INSTALLED)
    writers.wait(writers.acknowledged + 300)
    sent = [scrape(member) for member in three.members if member is not follower]
    assert sum(samples("send_success", text) for text in sent) >= 1
    received = scrape(follower)
    assert samples("receive_success", received) == samples("receive_total_duration_seconds_count", received) >= 1
    assert samples("receive_inflights_total", received) == 0
    assert "# TYPE etcd_network_snapshot_receive_success counter" in received
    writers.end()
    check_writes(check_agreement(three), writers)


def scrape(member: Process) -> str:
    with urllib.request.urlopen(f"http://{member.endpoint}/metrics", timeout=60) as answer:
        return str(answer.read().decode())


def samples(name: str, text: str) -> float:
    """The sum over all peers."""
    found = re.findall(rf"^etcd_network_snapshot_{name}{{.*?}} (\S+)$", text, re.MULTILINE)
    return sum(map(float, found))


def wait_compacted(member: Process, index: int) -> None:
    """Wait until a member's log begins behind this index."""
    deadline = time.monotonic() + START_SECONDS
    while first_index(member) < index:
        assert time.monotonic() < deadline, member.log()
        time.sleep(0.05)


def last_index(member: Process) -> int:
    with member.client() as client:
        return client.status().raftIndex


def first_index(member: Process) -> int:
    """Behind which index a member's log begins, as it says itself."""
    return max(map(int, re.findall(COMPACTED + r" (\d+)", member.log())), default=0)


def arm(member: Process, *names: str) -> None:
    member.environment = {"RAFTKV_FAILPOINTS": ",".join(f"{name}=exit" for name in names)} if names else {}


def leave_behind(running: Cluster, follower: Process, writers: Writers) -> None:
    """Stop a follower until the others have compacted what it needs."""
    follower.kill()
    others = [member for member in running.members if member is not follower]
    index = max(map(last_index, others))
    writers.wait(writers.acknowledged + 200)
    for member in others:
        wait_compacted(member, index)


@pytest.mark.parametrize("steps", [DECISIVE_STEPS, pytest.param(OTHER_STEPS, marks=pytest.mark.soak)])
def test_a_follower_killed_at_each_step_of_an_installation_comes_back_right(
    three: Cluster, steps: tuple[str, ...]
) -> None:
    writers = Writers([member.endpoint for member in three.members], 100_000)
    writers.wait(100)
    follower = a_follower(three)
    for step in steps:
        leave_behind(three, follower, writers)
        arm(follower, step)
        follower.start()
        assert follower.wait() == -signal.SIGKILL, step
        arm(follower)
        follower.start()
        three.wait_ready(follower)
        left = {name for name in os.listdir(follower.data) if name.startswith("snapshot")}
        assert not left - {"snapshot.receiving"}, left
    writers.end()
    check_writes(check_agreement(three), writers)
    print(f"killed at {', '.join(steps)}: {writers.acknowledged} acknowledged writes, none lost")


@pytest.mark.parametrize("step", [*(pytest.param(step, marks=pytest.mark.soak) for step in SENDER_STEPS), SENT_IN_PART])
def test_a_leader_killed_while_it_sends_is_followed_by_one_that_sends(three: Cluster, step: str) -> None:
    writers = Writers([member.endpoint for member in three.members], 100_000)
    writers.wait(100)
    follower = a_follower(three)
    leave_behind(three, follower, writers)
    leader = three.leader()
    armed = sorted((member for member in three.members if member is not follower), key=lambda one: one is leader)
    for member in armed:
        member.kill()
        arm(member, step)
        member.start()
        three.wait_ready(member)
    follower.start()
    # Whoever leads by then.
    until(lambda: not all(member.running() for member in armed), "nobody is killed while it sends")
    assert {member.wait() for member in armed if not member.running()} == {-signal.SIGKILL}
    if step == SENT_IN_PART:
        # What has arrived is given up.
        until(lambda: samples("receive_failures", scrape(follower)) >= 1, follower.log())
    for member in armed:
        member.kill()
        arm(member)
        member.start()
    wait_log(follower, INSTALLED)
    writers.end()
    check_writes(check_agreement(three), writers)


def test_a_member_killed_between_the_point_in_its_log_and_the_removal_of_what_lies_before(tmp_path: Path) -> None:
    with cluster(tmp_path, 1, *FLAGS) as one:
        (member,) = one.members
        member.kill()
        arm(member, "log-point-recorded")
        member.start()
        writers = Writers([member.endpoint], 100_000)
        assert member.wait() == -signal.SIGKILL
        arm(member)
        member.start()
        # Its log begins behind the point that was recorded: it goes on from there.
        writers.wait(writers.acknowledged + 200)
        wait_log(member, COMPACTED)
        writers.end()
        check_writes(check_agreement(one), writers)


def test_the_log_stays_bounded_and_a_compacted_one_is_restarted_from(tmp_path: Path) -> None:
    value = bytes(1 << 20)
    with cluster(tmp_path, 1) as running, running.client() as client:
        (member,) = running.members
        for number in range(520):
            client.put(f"k{number % 20}", value)
        last = client.put("k0", b"last").header.revision
        wait_compacted(member, 300)
        size = sum(path.stat().st_size for path in (member.data / "wal").iterdir())
        # What is kept, what may gather before it is compacted, and the segments that both begin and end in.
        assert size < 300 << 20
        member.kill()
        member.start()
        running.wait_ready(member)
        with running.client() as again:
            assert len(again.range("k", prefix=True, keys_only=True).kvs) == 20
            found = again.get("k0")
            assert found is not None
            assert (found.value, found.mod_revision) == (b"last", last)
            assert again.put("k0", b"more").header.revision == last + 1


def test_a_watch_on_a_follower_that_is_reset_hears_every_change_once(three: Cluster) -> None:
    follower = a_follower(three)
    with three.client(follower) as client, Stream(follower.endpoint) as stream:
        stream.create(key=b"k", range_end=b"l")
        assert stream.next().created
        first = client.put("k", "0").header.revision
        stream.next()
        follower.signal(signal.SIGSTOP)
        try:
            # More than what is on its way to the follower already, 256 messages at most.
            for number in range(1, 600):
                client.put("k", str(number))
            for member in three.living():
                wait_compacted(member, 500)
        finally:
            follower.signal(signal.SIGCONT)
        wait_log(follower, INSTALLED)
        last = client.put("k", "600").header.revision
        heard = [event for answer in stream.until(last) for event in answer.events]
    assert [event.kv.mod_revision for event in heard] == list(range(first + 1, last + 1))
    assert [int(event.kv.value) for event in heard] == list(range(1, 601))


def said_at(member: Process, words: str) -> float:
    """When a member logged these words last, in seconds of its clock."""
    line = next(line for line in reversed(member.log().splitlines()) if words in line)
    return datetime.fromisoformat(line.split()[0]).timestamp()


SENT_BYTES, SENT_RATE = 4_000_000, 1 << 20


@pytest.mark.alone
def test_heartbeats_and_writes_do_not_wait_behind_a_snapshot(tmp_path: Path) -> None:
    with cluster(tmp_path, 3, *FLAGS, f"--snapshot-send-bytes-per-second={SENT_RATE}") as three:
        in_one_of(3, lambda: write_behind_a_snapshot(three))


def write_behind_a_snapshot(three: Cluster) -> None:
    follower = a_follower(three)
    before = follower.log().count(INSTALLED)
    with three.client(follower) as client:
        follower.kill()
        index = max(map(last_index, three.living()))
        for number in range(40):
            client.put(f"k{number}", os.urandom(SENT_BYTES // 40))
        while any(first_index(member) < index for member in three.living()):
            client.put("k0", os.urandom(SENT_BYTES // 40))
        follower.start()
        wait_log(follower, "sends a snapshot", before + 1)
        writes = 0
        while follower.log().count(INSTALLED) == before:
            client.put("k0", str(writes))
            writes += 1
        last = client.put("last", "x").header.revision
    # It is paced, and took several times as long as the silence after which a follower campaigns.
    assert said_at(follower, INSTALLED) - said_at(follower, "sends a snapshot") > 0.9 * SENT_BYTES / SENT_RATE
    assert writes > 20
    assert "has no leader" not in follower.log()[follower.log().rindex("sends a snapshot") :]
    with follower.client() as client:
        found = client.range("", prefix=True)
    assert (found.header.revision, found.count) == (last, 41)
