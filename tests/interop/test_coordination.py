"""etcdctl and raftctl in one queue, each at another of three members: locks exclude, leaders follow each other."""

import shutil
import signal
from collections.abc import Iterator

import pytest

from raftkv.client import Client
from tests.cli.test_lock import ETCDCTL, RAFTCTL, queued, running
from tests.support.processes import Cluster, cluster

pytestmark = pytest.mark.skipif(shutil.which("etcdctl") is None, reason="etcdctl is not installed")
ORDERS = [(ETCDCTL, RAFTCTL), (RAFTCTL, ETCDCTL)]


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("coordination"), 3) as live:
        yield live


@pytest.mark.parametrize("tools", ORDERS, ids=["etcdctl first", "raftctl first"])
def test_one_tool_waits_for_the_lock_of_the_other(tools: tuple[tuple[str, ...], ...], three: Cluster) -> None:
    one, other, _ = (member.endpoint for member in three.members)
    with Client(three.endpoints) as client, running(one, "lock", "shared", tool=tools[0]) as holder:
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
        Client(three.endpoints) as client,
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
