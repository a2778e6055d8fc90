"""Members come and go in virtual time: by hand, by seeds, and with bugs put in on purpose."""

import json
from collections.abc import Iterator

import pytest

from raftkv import errors
from raftkv.pb import rpc_pb2
from raftkv.raft import NodeId
from raftkv.simulation.cluster import Cluster
from raftkv.simulation.options import Options
from raftkv.status import StatusError
from tests.simulation.searching import sim
from tests.simulation.test_cluster import RANGE, call, get, put

CLUSTER = "/etcdserverpb.Cluster/"
ROUGH = "crash,crash-all,power,halves,isolate,one-way,flap,loss,slow-network,pause,transfer,members"
MUTANTS = ("removed-members-are-listened-to", "snapshots-leave-the-members-as-they-were")
"""Of those in docs/guarantees.md, some that are found at once."""


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    cluster = Cluster(Options(seed=11, faults=frozenset({"members"}), snapshot_count=10, catch_up_entries=1))
    for number in range(3):
        cluster.start(number)
    for number in range(30):
        put(cluster, 0, b"k%d" % number, b"v")
    yield cluster
    cluster.close()


def leader_of(cluster: Cluster) -> NodeId:
    assert cluster.run_until(lambda: cluster.leader() is not None, 5.0)
    leader = cluster.leader()
    assert leader is not None
    assert leader.server is not None
    return leader.server.node.id


def add_learner(cluster: Cluster) -> NodeId:
    url = f"http://m{len(cluster.machines)}:2380"
    request = rpc_pb2.MemberAddRequest(peerURLs=[url], isLearner=True)
    answer = call(cluster, cluster.places[0], CLUSTER + "MemberAdd", request.SerializeToString())
    return rpc_pb2.MemberAddResponse.FromString(answer).member.ID


def join(cluster: Cluster, member: NodeId) -> int:
    leader = cluster.leader()
    assert leader is not None
    return cluster.join(member, leader.known_members())


def promote(cluster: Cluster, member: NodeId) -> bool:
    request = rpc_pb2.MemberPromoteRequest(ID=member).SerializeToString()
    try:
        call(cluster, cluster.places[0], CLUSTER + "MemberPromote", request)
    except StatusError as error:
        assert error.message == errors.LearnerNotReady.TEXT
        return False
    return True


def remove(cluster: Cluster, member: NodeId) -> None:
    place = next(place for place in cluster.places if place != cluster.members[member])
    call(cluster, place, CLUSTER + "MemberRemove", rpc_pb2.MemberRemoveRequest(ID=member).SerializeToString())
    assert cluster.run_until(lambda: cluster.members[member] not in cluster.places, 5.0)


def test_three_grow_to_five_through_learners_and_nobody_of_the_first_is_left(cluster: Cluster) -> None:
    first = sorted(cluster.members)
    for _ in range(2):
        grow(cluster)
    for _ in range(3):
        leader = leader_of(cluster)
        victim = leader if leader in first else first[0]
        remove(cluster, victim)
        first.remove(victim)
        if first:
            grow(cluster)
    voters = [server.node.conf_state.voters for p in cluster.serving() if (server := p.server) is not None]
    assert len(voters[0]) == 4
    assert set(voters) == {voters[0]}
    assert all(get(cluster, place, b"k%d" % number) == b"v" for place in cluster.places for number in range(30))


def test_a_learner_that_fell_behind_is_not_promoted_until_it_has_caught_up(cluster: Cluster) -> None:
    leader_of(cluster)
    member = add_learner(cluster)
    place = join(cluster, member)
    wanted = rpc_pb2.RangeRequest(key=b"k29", serializable=True)
    assert cluster.run_until(lambda: served(cluster, place, wanted), 10.0)
    # By now it has told its name.
    cluster.run_for(2.0)
    cluster.kill(place, power=False)
    for number in range(30):
        put(cluster, 0, b"later%d" % number, b"v")
    assert not promote(cluster, member)
    cluster.start(place)
    wanted.key = b"later29"
    assert cluster.run_until(lambda: served(cluster, place, wanted), 10.0)
    assert promote(cluster, member)


def grow(cluster: Cluster) -> None:
    """Add a learner, which is not promoted before it has what the others have, and serves what is its own."""
    leader_of(cluster)
    member = add_learner(cluster)
    assert not promote(cluster, member)
    place = join(cluster, member)
    wanted = rpc_pb2.RangeRequest(key=b"k29", serializable=True)
    assert cluster.run_until(lambda: served(cluster, place, wanted), 10.0)
    wanted.serializable = False
    with pytest.raises(StatusError) as refused:
        call(cluster, place, RANGE, wanted.SerializeToString())
    assert refused.value.message == errors.NotSupportedForLearner.TEXT
    assert promote(cluster, member)
    assert get(cluster, place, b"k29") == b"v"


def served(cluster: Cluster, place: int, wanted: rpc_pb2.RangeRequest) -> bool:
    try:
        answer = call(cluster, place, RANGE, wanted.SerializeToString())
    except (StatusError, ConnectionError):
        return False
    return len(rpc_pb2.RangeResponse.FromString(answer).kvs) == 1


def test_members_come_and_go_through_a_whole_run() -> None:
    result = json.loads(sim("--seed", "14", "--seconds", "40", "--faults", "crash,isolate,members").stdout)
    assert result["violation"] == ""
    assert result["changes"] >= 10


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_bug_is_found(mutant: str) -> None:
    done = sim("--mutant", mutant, "--seeds", "20", "--jobs", "1", "--faults", ROUGH)
    assert done.returncode == 1, done.stderr


GROWING = ("--nodes", "1", "--faults", "members,isolate,crash,one-way,power,halves,slow-disk", "--jobs", "1")


@pytest.mark.parametrize("seed", ["840950891981023", "561030472407020"])
def test_a_sole_member_waits_for_the_voter_that_an_operator_who_asks_for_long_has_not_started(seed: str) -> None:
    done = sim(*GROWING, "--seconds", "8", "--seed", seed)
    assert json.loads(done.stdout)["violation"] == ""


def test_a_learner_that_refuses_its_vote_is_found_where_two_need_each_other() -> None:
    arguments = (*GROWING, "--seconds", "12")
    assert sim("--seeds", "12", *arguments).returncode == 0
    done = sim("--seeds", "40", "--mutant", "learners-refuse-their-vote", *arguments)
    assert done.returncode == 1, done.stderr
    assert "I23" in done.stderr
