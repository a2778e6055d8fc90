"""A member without data: a first start is welcome however late, one that lost its data must not vote again."""

import asyncio
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from raftkv.disk import OsDisk
from raftkv.flags import parse
from raftkv.mvcc import LmdbBackend, Store
from raftkv.peer.introduction import Acquaintance, may_start
from raftkv.server.bootstrap import bootstrap
from raftkv.server.datadir import DataDir, StartError
from raftkv.server.heard import Heard
from raftkv.server.identity import first_members
from tests.support.processes import Cluster, Process, cluster, wait_log


@pytest.fixture
def unstarted(tmp_path: Path) -> Iterator[Cluster]:
    members = Cluster(tmp_path, 3)
    try:
        yield members
    finally:
        members.kill()


@pytest.fixture
def three(tmp_path: Path) -> Iterator[Cluster]:
    with cluster(tmp_path, 3) as running:
        yield running


def test_two_of_three_serve_and_the_third_joins_late(unstarted: Cluster) -> None:
    *early, late = unstarted.members
    for member in early:
        member.start()
    unstarted.wait_ready(early[0])
    with unstarted.client() as client:
        for number in range(100):
            client.put(f"key-{number}", "v")
    early[0].kill()
    late.start()
    # Only one of the others answers, and it alone cannot know whose acknowledgements counted.
    wait_log(late, "waiting for other members")
    assert not (late.data / "wal").exists()
    early[0].start()
    unstarted.wait_ready(late)
    with late.client() as client:
        assert client.range("key-", prefix=True).count == 100


def test_a_member_that_lost_its_data_is_refused(three: Cluster) -> None:
    with three.client() as client:
        client.put("key", "v")
    wiped = three.members[0]
    wiped.kill()
    shutil.rmtree(wiped.data)
    wiped.start()
    assert wiped.wait() == 1
    line = wiped.log().splitlines()[-1]
    assert line.startswith(f"raftkv: member {wiped.name} (")
    assert "it took part in this cluster" in line
    assert "remove the member" in line
    assert not wiped.data.exists()
    with three.client() as client:
        assert client.get("key") is not None


def acknowledged_by_the_leader_and_one_follower(running: Cluster) -> tuple[Process, Process, Process]:
    """Put a key that leader and one follower hold; leader (killed), that follower (wiped), and the other (killed)."""
    leader = running.leader()
    holder, behind = (member for member in running.members if member is not leader)
    behind.kill()
    with running.client() as client:
        client.put("key", "acknowledged")
    leader.kill()
    holder.kill()
    shutil.rmtree(holder.data)
    return leader, holder, behind


def test_the_wiped_follower_does_not_help_to_forget_an_acknowledged_write(three: Cluster) -> None:
    leader, wiped, behind = acknowledged_by_the_leader_and_one_follower(three)
    behind.start()
    wiped.start()
    assert wiped.wait() == 1
    leader.start()
    three.wait_ready(behind)
    with behind.client() as client:
        found = client.get("key")
    assert found is not None
    assert found.value == b"acknowledged"


def test_without_the_question_the_acknowledged_write_would_be_lost(three: Cluster) -> None:
    """Why the question is asked: the same schedule with a member that just begins anew."""
    _, wiped, behind = acknowledged_by_the_leader_and_one_follower(three)
    begin_anew(wiped)
    behind.start()
    wiped.start()
    three.wait_ready(behind)
    with behind.client() as client:
        assert client.get("key") is None


def begin_anew(member: Process) -> None:
    """Give a member the data of a first start, without asking anyone."""
    identity, members = first_members(parse(member.arguments, {}))
    directory = DataDir(str(member.data))
    directory.lock()
    backend = LmdbBackend(directory.store)
    bootstrap(OsDisk(), directory, Store(backend), identity, members).close()
    backend.close()
    directory.close()


BLANK, STRANGER = Acquaintance.BLANK, Acquaintance.STRANGER


@pytest.mark.parametrize(
    ("voters", "answers", "allowed"),
    [
        (1, [], True),
        (2, [], False),
        (2, [STRANGER], True),
        (3, [], False),
        (3, [BLANK], True),
        (3, [STRANGER], False),
        (3, [BLANK, STRANGER], True),
        (3, [STRANGER, STRANGER], True),
        (4, [BLANK], False),
        (4, [BLANK, STRANGER], True),
        (5, [BLANK], False),
        (5, [BLANK, BLANK], True),
        (5, [BLANK, STRANGER], False),
        (5, [BLANK, STRANGER, STRANGER], True),
    ],
)
def test_when_enough_have_answered(voters: int, answers: list[Acquaintance], allowed: bool) -> None:
    assert may_start(voters, answers) is allowed


def test_who_was_heard_is_remembered_over_restarts(tmp_path: Path) -> None:
    async def scenario() -> None:
        heard = Heard(OsDisk(), str(tmp_path))
        await asyncio.gather(*(heard.remember(member) for member in (3, 1 << 63, 3)))
        assert 3 in heard
        assert 4 not in heard

    asyncio.run(scenario())
    again = Heard(OsDisk(), str(tmp_path))
    assert 3 in again
    assert 1 << 63 in again
    assert 4 not in again
    (tmp_path / "heard").write_text("nonsense\n")
    with pytest.raises(StartError, match="is damaged"):
        Heard(OsDisk(), str(tmp_path))


def test_a_caller_that_gives_up_does_not_disturb_the_next(tmp_path: Path) -> None:
    entered, go_on = threading.Event(), threading.Event()

    class SlowDisk(OsDisk):
        def rename(self, source: str, target: str) -> None:
            entered.set()
            assert go_on.wait(60)
            super().rename(source, target)

    async def scenario() -> None:
        heard = Heard(SlowDisk(), str(tmp_path))
        first = asyncio.ensure_future(heard.remember(3))
        await asyncio.to_thread(entered.wait, 60)
        first.cancel()
        second = asyncio.ensure_future(heard.remember(4))
        await asyncio.sleep(0)
        go_on.set()
        await second

    asyncio.run(scenario())
    again = Heard(OsDisk(), str(tmp_path))
    assert 3 in again
    assert 4 in again


def test_a_member_counts_only_after_it_is_remembered(tmp_path: Path) -> None:
    class FullDisk(OsDisk):
        def rename(self, source: str, target: str) -> None:
            raise OSError(28, "No space left on device")

    async def scenario() -> None:
        heard = Heard(FullDisk(), str(tmp_path))
        with pytest.raises(OSError, match="No space"):
            await heard.remember(3)
        # It may be on disk or not: nobody is told that it is a stranger.
        assert 3 in heard

    asyncio.run(scenario())
