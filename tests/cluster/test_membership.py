"""Members come and go while the cluster serves: what an operator does, with real processes."""

import contextlib
import io
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from raftkv.client import Client, ClientError
from raftkv.pb import rpc_pb2
from raftkv.wal.dump import dump
from tests.cluster.test_health import get
from tests.support.processes import START_SECONDS, Cluster, Process, cluster, free_ports, wait_log

FAST = ("--heartbeat-interval", "50", "--election-timeout", "500")


@pytest.fixture
def three(tmp_path: Path) -> Iterator[Cluster]:
    with cluster(tmp_path, 3, *FAST) as running:
        yield running


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for something that the cluster does by itself."""
    deadline = time.monotonic() + START_SECONDS
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def persist(attempt: Callable[[], None], *passing: str) -> None:
    """Try until it is not refused in these words: for what a cluster refuses for a moment only."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            return attempt()
        except ClientError as error:
            if not any(words in str(error) for words in passing) or time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def ids(client: Client) -> dict[str, int]:
    """Members by name."""
    return {member.name: member.ID for member in client.member_list(linearizable=True).members}


def initial_cluster(members: list[rpc_pb2.Member], name: str) -> str:
    return ",".join(f"{member.name or name}={url}" for member in members for url in member.peerURLs)


def add(running: Cluster, client: Client, name: str, *flags: str, learner: bool = False) -> tuple[Process, int]:
    """Add a member and start it; its process and its id."""
    directory = Path(running.members[0].directory)
    member = running.newcomer(name, directory, *FAST, *flags)
    answer = client.member_add([member.peer_url], learner=learner)
    member.set_flag("--initial-cluster", initial_cluster(list(answer.members), name))
    member.start()
    return member, answer.member.ID


def promote(client: Client, member: int) -> None:
    persist(lambda: [None, client.member_promote(member)][0], "in sync with leader", "not enough started")


def wait_voter(running: Cluster, member: Process) -> None:
    running.wait_ready(member)


@pytest.mark.alone
def test_a_fourth_member_learns_is_promoted_and_the_leader_is_removed(three: Cluster) -> None:
    with three.client() as client:
        for number in range(50):
            client.put(f"key-{number}", "v")
        learner, learner_id = add(three, client, "m3", learner=True)
        with learner.client() as at_learner:
            until(lambda: served(at_learner, 50), f"the learner never serves\n{learner.log()}")
            for refused in (at_learner.member_list, lambda: at_learner.put("a", "b"), lambda: at_learner.range("a")):
                with pytest.raises(ClientError, match="etcdserver: rpc not supported for learner"):
                    refused()
            assert at_learner.status().isLearner
        assert get(learner, "/readyz/non_learner") == (503, "[-]non_learner failed: not supported for learner\n\n")
        assert get(learner, "/livez") == (200, "ok\n")
        with pytest.raises(ClientError, match="etcdserver: too many learner members in cluster"):
            client.member_add(["http://127.0.0.1:1"], learner=True)
        promote(client, learner_id)
        wait_voter(three, learner)
        with pytest.raises(ClientError, match="etcdserver: can only promote a learner member"):
            client.member_promote(learner_id)
        # Whoever led then has counted.
        counted = "".join(get(member, "/metrics")[1] for member in three.members)
        assert "\netcd_server_learner_promote_successes 1.0\n" in counted
        reason = 'Reason="etcdserver: can only promote a learner member"'
        assert f"\netcd_server_learner_promote_failures{{{reason}}} 1.0\n" in counted
    removed = remove_a_leader_that_hands_over(three)
    with three.client() as client:
        assert removed.member_id not in ids(client).values()
        with pytest.raises(ClientError, match="etcdserver: member not found"):
            client.member_remove(removed.member_id)
        removed.start()
        assert removed.wait() == 1
        assert "has been removed from the cluster for good" in removed.log()
        assert client.range("key-", prefix=True).count == 50


def remove_a_leader_that_hands_over(running: Cluster) -> Process:
    """Remove the leader, and if an election made it a follower meanwhile, which hands over nothing, the next one."""
    for _ in range(2):
        leader = running.leader()
        with running.client(leader) as client:
            client.member_remove(leader.member_id)
        assert leader.wait() == 0
        assert leader.log().splitlines()[-1] == (
            f"raftkv: member {leader.member_id:x} has been permanently removed from the cluster; "
            "its data is of no more use"
        )
        running.members.remove(leader)
        if successor := re.search(r"handing leadership over to (\w+)", leader.log()):
            # One election and no more: the successor leads in the very next term.
            led = re.findall(rf"follows leader {leader.member_id:x} in term (\d+)", leader.log())
            (heir,) = (member for member in running.members if f"{member.member_id:x}" == successor[1])
            wait_log(heir, f"member {successor[1]} follows leader {successor[1]} in term {int(led[-1]) + 1}")
            return leader
    raise AssertionError("no leader that was removed handed over")


def served(client: Client, count: int) -> bool:
    with contextlib.suppress(ClientError):
        return client.range("key-", prefix=True, serializable=True).count == count
    return False


def test_every_member_of_three_is_replaced(three: Cluster) -> None:
    for number, gone in enumerate(list(three.members)):
        with three.client(gone) as client:
            client.put(f"key-{number}", "v")
            member, member_id = add(three, client, f"n{number}", learner=True)
            promote(client, member_id)
            wait_voter(three, member)
            persist(lambda name=gone.name, c=client: [None, c.member_remove(ids(c)[name])][0], "unhealthy")  # type: ignore[misc]
        assert gone.wait() == 0
        three.members.remove(gone)
    with three.client() as client:
        assert sorted(ids(client)) == ["n0", "n1", "n2"]
        assert client.range("key-", prefix=True).count == 3
    # They survive a restart of all, by what their own data say.
    for member in three.members:
        member.kill()
    for member in three.members:
        member.start()
    for member in three.members:
        three.wait_ready(member)


def test_a_member_that_was_away_when_it_was_removed_stops_when_it_comes_back(three: Cluster) -> None:
    away = next(member for member in three.members if member is not three.leader())
    with away.client() as client:
        status = client.status()
    three.kill_and_miss(away)
    with three.client() as client:
        client.member_remove(status.header.member_id)
    away.start()
    assert away.wait() == 0
    assert "permanently removed" in away.log().splitlines()[-1]
    assert own_candidacies(away) <= set(range(status.raftTerm + 1)), "a removed member disturbed the others"


def own_candidacies(member: Process) -> set[int]:
    """The terms in which a member that has ended voted for itself, as its log has it."""
    out = io.StringIO()
    assert dump(str(member.data / "wal"), out) is None
    return {int(term) for term in re.findall(rf"term=(\d+) vote={member.member_id:x} ", out.getvalue())}


def test_a_removed_member_that_serves_the_call_answers_it(three: Cluster) -> None:
    follower = next(member for member in three.members if member is not three.leader())
    with follower.client() as client:
        own = ids(client)[follower.name]
        answer = client.member_remove(own)
        assert own not in [member.ID for member in answer.members]
    assert follower.wait() == 0


def test_a_peer_url_is_updated_and_used(three: Cluster) -> None:
    moved = next(member for member in three.members if member is not three.leader())
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    with three.client(moved) as client:
        own = ids(client)[moved.name]
        with pytest.raises(ClientError, match="etcdserver: Peer URLs already exists"):
            client.member_update(own, [next(member.peer_url for member in three.members if member is not moved)])
        with pytest.raises(ClientError, match="etcdserver: given member URLs are invalid"):
            client.member_update(own, ["nonsense"])
        with pytest.raises(ClientError, match="etcdserver: member not found"):
            client.member_update(own + 1, ["http://127.0.0.1:1"])
        client.member_update(own, [url])
        moved.kill()
        moved.set_flag("--listen-peer-urls", url)
        moved.set_flag("--initial-advertise-peer-urls", url)
        moved.start()
        client.put("key", "behind the new address")
    three.wait_ready(moved)
    with moved.client() as client:
        (found,) = [member for member in client.member_list().members if own == member.ID]
        assert list(found.peerURLs) == [url]


def test_a_survivor_goes_on_alone_with_all_it_acknowledged(three: Cluster, tmp_path: Path) -> None:
    with three.client() as client:
        for number in range(100):
            client.put(f"key-{number}", "v")
        before = client.member_list()
    for member in three.members:
        member.kill()
    survivor, *lost = three.members
    survivor.arguments.append("--force-new-cluster")
    survivor.start()
    three.wait_ready(survivor)
    with survivor.client() as client:
        assert client.range("key-", prefix=True).count == 100
        after = client.member_list()
        assert [member.name for member in after.members] == [survivor.name]
        assert after.header.cluster_id == before.header.cluster_id
        client.put("key-100", "v")
    # Those who were lost are told when they come back, and do not disturb.
    lost[0].start()
    assert lost[0].wait() == 0
    assert "permanently removed" in lost[0].log()
    # The flag was forgotten: it does nothing any more, and nothing that was acknowledged meanwhile is lost.
    survivor.kill()
    survivor.start()
    three.wait_ready(survivor)
    assert "--force-new-cluster has no effect" in survivor.log()
    survivor.arguments.remove("--force-new-cluster")
    three.members = [survivor]
    with survivor.client() as client:
        assert client.range("key-", prefix=True).count == 101
        added, _ = add(three, client, "n1")
        three.wait_ready(added)
        assert client.range("key-", prefix=True).count == 101


def test_a_change_that_would_cost_the_majority_is_refused(three: Cluster) -> None:
    with three.client() as client:
        leader = three.leader()
        down, other = (member for member in three.members if member is not leader)
        known = ids(client)
        with pytest.raises(ClientError, match="etcdserver: Peer URLs already exists"):
            client.member_add([down.peer_url])
        three.kill_and_miss(down)
        with leader.client() as at_leader:
            with pytest.raises(ClientError, match="etcdserver: unhealthy cluster"):
                at_leader.member_add(["http://127.0.0.1:9"])
            with pytest.raises(ClientError, match="etcdserver: unhealthy cluster"):
                at_leader.member_remove(known[other.name])
            # The one that is down may go, and then nobody else.
            at_leader.member_remove(known[down.name])
            answer = at_leader.member_add(["http://127.0.0.1:9"])
            with pytest.raises(ClientError, match="re-configuration failed due to not enough started members"):
                at_leader.member_add(["http://127.0.0.1:19"])
            with pytest.raises(ClientError, match="re-configuration failed due to not enough started members"):
                at_leader.member_remove(known[other.name])
            at_leader.member_remove(answer.member.ID)


def test_a_learner_is_added_while_a_member_is_down(three: Cluster) -> None:
    """etcd 21669: refused, although the majority of the voters was there all the time."""
    leader = three.leader()
    three.kill_and_miss(next(member for member in three.members if member is not leader))
    with leader.client() as client:
        with pytest.raises(ClientError, match="etcdserver: unhealthy cluster"):
            client.member_add(["http://127.0.0.1:9"])
        assert client.member_add(["http://127.0.0.1:9"], learner=True).member.isLearner


def test_a_sole_member_grows_and_keeps_its_last_voter(tmp_path: Path) -> None:
    with cluster(tmp_path, 1, *FAST, "--auto-promote-learners") as running, running.client() as client:
        own = ids(client)["m0"]
        with pytest.raises(ClientError, match="not enough started members"):
            client.member_remove(own)
        client.put("key-0", "v")
        learner, _ = add(running, client, "m1", learner=True)
        until(lambda: not any(m.isLearner for m in client.member_list().members), "the learner is never promoted")
        running.wait_ready(learner)
        promoted = ids(client)
        client.member_remove(promoted["m1"])
        assert learner.wait() == 0
        client.put("key-1", "v")


def test_a_newcomer_behind_a_compacted_log_is_given_the_store(tmp_path: Path) -> None:
    flags = (*FAST, "--snapshot-count", "20", "--snapshot-catchup-entries", "5")
    with cluster(tmp_path, 3, *flags) as running, running.client() as client:
        for number in range(100):
            client.put(f"key-{number}", "v")
        wait_log(running.leader(), "the log begins behind")
        newcomer, _ = add(running, client, "m3", *flags[len(FAST) :])
        running.wait_ready(newcomer)
        assert "goes on from a snapshot" in newcomer.log()
        # What it was given speaks of members the log no longer names: it can lead, and be asked by the next.
        newcomer.kill()
        newcomer.start()
        running.wait_ready(newcomer)
        removed = next(member for member in running.members if member not in (newcomer, running.leader()))
        client.member_remove(ids(client)[removed.name])
        assert removed.wait() == 0


def test_a_newcomer_is_refused_where_it_was_not_added_or_lost_its_data(three: Cluster, tmp_path: Path) -> None:
    stranger = three.newcomer("m3", tmp_path, *FAST)
    founders = ",".join(f"{member.name}={member.peer_url}" for member in three.members[:3])
    stranger.set_flag("--initial-cluster", f"{founders},m3={stranger.peer_url}")
    stranger.start()
    with three.client(stranger) as client:
        assert stranger.wait() == 1
        assert "member count is unequal" in stranger.log()
        assert not stranger.data.exists()
        three.members.remove(stranger)
        member, member_id = add(three, client, "m4")
        three.wait_ready(member)
        until(lambda: "m4" in ids(client), "it never says its name")
        member.kill()
        shutil.rmtree(member.data)
        member.start()
        assert member.wait() == 1
        assert f"member {member_id:x} has already been bootstrapped" in member.log()


def test_a_learner_that_never_started_is_not_promoted(three: Cluster) -> None:
    with three.client() as client:
        answer = client.member_add(["http://127.0.0.1:9"], learner=True)
        with pytest.raises(ClientError, match="can only promote a learner member which is in sync with leader"):
            client.member_promote(answer.member.ID)
        client.member_remove(answer.member.ID)


def test_a_learner_that_has_all_and_is_away_is_not_promoted(tmp_path: Path) -> None:
    with cluster(tmp_path, 1, *FAST) as one, one.client() as client:
        client.put("key-0", "v")
        learner, learner_id = add(one, client, "m1", learner=True)
        with learner.client() as at_learner:
            until(lambda: served(at_learner, 1), f"the learner never serves\n{learner.log()}")
        until(lambda: "m1" in ids(client), "it never says its name")
        one.kill_and_miss(learner)
        with pytest.raises(ClientError, match="can only promote a learner member which is in sync with leader"):
            client.member_promote(learner_id)
        client.put("key-1", "one of one")
        learner.start()
        promote(client, learner_id)
        one.wait_ready(learner)


def test_a_member_is_stopped_gracefully_while_another_is_added(three: Cluster) -> None:
    """A leader that stops hands over to a voter, not to a learner however far that is."""
    with three.client() as client:
        learner, _ = add(three, client, "m3", learner=True)
        until(lambda: learner.log().count("follows leader") > 0, "the learner hears of no leader")
        leader = three.leader_of(three.members[:3])
        leader.signal(signal.SIGTERM)
        assert leader.wait() == 0
        rest = [member for member in three.members[:3] if member is not leader]
        assert three.leader_of(rest) in rest
