"""etcdctl and raftctl in one queue, each at another of three members: locks exclude, leaders follow each other."""

import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.test_lock import ETCDCTL, RAFTCTL, queued, running
from tests.support.processes import Cluster, cluster

pytestmark = pytest.mark.skipif(shutil.which("etcdctl") is None, reason="etcdctl is not installed")
TTL = 6
ORDERS = [(ETCDCTL, RAFTCTL), (RAFTCTL, ETCDCTL)]


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("coordination"), 3) as live:
        yield live


@pytest.mark.parametrize("tools", ORDERS, ids=["etcdctl first", "raftctl first"])
def test_one_tool_waits_for_the_lock_of_the_other(tools: tuple[tuple[str, ...], ...], three: Cluster) -> None:
    one, other, _ = (member.endpoint for member in three.members)
    with three.client() as client, running(one, "lock", "shared", tool=tools[0]) as holder:
        assert holder.line().startswith(b"shared/")
        with running(other, "lock", "shared", "--", "echo", "mine", tool=tools[1]) as waiting:
            queued(client, "shared", 2)
            assert waiting.process.poll() is None
            holder.end(signal.SIGINT)
            assert waiting.line() == b"mine\n"
            assert waiting.end().status == 0
        queued(client, "shared", 0)


@pytest.mark.parametrize("tools", ORDERS, ids=["etcdctl first", "raftctl first"])
def test_both_hear_of_leaders_of_both(tools: tuple[tuple[str, ...], ...], three: Cluster) -> None:
    one, other, third = (member.endpoint for member in three.members)
    with (
        three.client() as client,
        running(third, "elect", "-l", "post", tool=ETCDCTL) as their_ear,
        running(third, "elect", "-l", "post", tool=RAFTCTL) as our_ear,
        running(one, "elect", "post", "first", tool=tools[0]) as first,
    ):
        key = first.line()
        for heard in (first, their_ear, our_ear):
            assert heard is first or heard.line() == key
            assert heard.line() == b"first\n"
        with running(other, "elect", "post", "second", tool=tools[1]) as second:
            queued(client, "post", 2)
            first.end(signal.SIGINT)
            key = second.line()
            for heard in (second, their_ear, our_ear):
                assert heard is second or heard.line() == key
                assert heard.line() == b"second\n"
            second.end(signal.SIGINT)
        queued(client, "post", 0)


def test_etcdctl_keeps_a_lease_and_an_office_though_the_leader_is_killed(tmp_path: Path) -> None:
    with cluster(tmp_path, 3) as three, three.client() as client:
        everywhere = three.endpoints
        lease = client.lease_grant(TTL)
        client.put("kept", "v", lease=lease.ID)
        with (
            running(everywhere, "lease", "keep-alive", f"{lease.ID:x}", tool=ETCDCTL) as keeper,
            running(everywhere, "elect", "post", "one", tool=ETCDCTL) as first,
            running(everywhere, "elect", "-l", "post", tool=ETCDCTL) as ear,
        ):
            assert first.line().startswith(b"post/")
            assert [ear.line().startswith(b"post/"), ear.line()] == [True, b"one\n"]
            assert b"keepalived with TTL" in keeper.line()
            with running(everywhere, "elect", "post", "two", tool=ETCDCTL) as second:
                queued(client, "post", 2)
                killed = three.leader()
                killed.kill()
                until = time.monotonic() + 2 * TTL
                while time.monotonic() < until:
                    assert b"keepalived with TTL" in keeper.line()
                assert client.get("kept") is not None
                killed.start()
                three.wait_ready(killed)
                assert [tool.process.poll() for tool in (keeper, first, ear, second)] == [None] * 4
                first.end(signal.SIGINT)
                assert second.line().startswith(b"post/")
                assert [ear.line().startswith(b"post/"), ear.line()] == [True, b"two\n"]
                second.end(signal.SIGINT)
