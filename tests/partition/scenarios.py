"""What is done to a cluster, one function a scenario. Each ends with whatever faults it likes: the caller heals.

A scenario waits for what its fault must bring about (another leader, writes that are taken), so that it cannot pass
without having happened.
"""

import contextlib
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from raftkv.client import Client, ClientError
from raftkv.client import requests as req
from raftkv.pb import rpc_pb2
from tests.partition.disks import Ext4, Small, syncs
from tests.partition.ground import ELECTION_SECONDS, PATIENCE_SECONDS, Ground, meanwhile, until
from tests.partition.messages import Messages, Weather
from tests.partition.recorder import Recorder

WRITES = 20
"""How many more writes show that the cluster serves."""


Answer = TypeVar("Answer")


def serves(recorder: Recorder, what: str) -> None:
    """Wait until more writes were acknowledged."""
    before = recorder.writes()
    until(lambda: recorder.writes() >= before + WRITES, f"writes are acknowledged {what}")


def last(timeouts: float) -> None:
    """Let a fault last some election timeouts."""
    time.sleep(timeouts * ELECTION_SECONDS)


def leader_isolated(ground: Ground, recorder: Recorder) -> None:
    """The leader hears no other member; clients reach all of them."""
    old = ground.leading()
    ground.isolate(old)
    ground.wait_other_leader(old)
    serves(recorder, "by the majority")


def minority_and_majority(ground: Ground, recorder: Recorder) -> None:
    """First the leader is with the minority, then with the majority."""
    for with_minority in (True, False):
        leader = ground.leading()
        half = len(ground.members) // 2
        others = ground.others(leader)
        minority = [leader, *others[: half - 1]] if with_minority else others[:half]
        ground.separate(minority, ground.others(*minority))
        if with_minority:
            ground.wait_other_leader(leader)
        serves(recorder, "by the majority")
        last(2)
        ground.heal()
        serves(recorder, "after the sides met")


def one_way_links(ground: Ground, recorder: Recorder) -> None:
    """The leader is not heard; then the next one does not hear."""
    for heard in (False, True):
        leader = ground.leading()
        for other in ground.others(leader):
            ground.cut(*((other, leader) if heard else (leader, other)))
        ground.wait_other_leader(leader)
        serves(recorder, "with links one way")
        ground.heal()
        serves(recorder, "after links one way")


def overlapping_majorities(ground: Ground, recorder: Recorder) -> None:
    """Each member hears a majority, no two the same one; with three members, one is between the two others."""
    size = len(ground.members)
    near = size // 4 or 1
    leader = ground.leading()
    # The leader is not the one between two that do not hear each other.
    ring = [leader, *ground.others(leader)]
    for place, member in enumerate(ring):
        for other in range(place + 1, size):
            if near < other - place < size - near or (size == 3 and (place, other) == (0, 2)):
                ground.separate([member], [ring[other]])
    last(6)
    serves(recorder, "while majorities overlap")


def flapping(ground: Ground, recorder: Recorder) -> None:
    """The leader of the moment is cut off and let in again, each time for an election timeout."""
    for _ in range(8):
        leader = ground.leading()
        ground.isolate(leader)
        last(1)
        ground.heal()
        last(1)
    serves(recorder, "after the link flapped")


def clients_cut_off_from_leader(ground: Ground, recorder: Recorder) -> None:
    """Only the clients do not reach the leader: the others pass on what they are asked."""
    leader = ground.leading()
    ground.separate_clients(leader)
    last(4)
    serves(recorder, "through the other members")


def paused_leader(ground: Ground, recorder: Recorder) -> None:
    """The leader stands still, another one is elected, and the old one wakes up and believes that it leads."""
    for _ in range(2):
        leader = ground.leading()
        ground.pause(leader)
        ground.wait_other_leader(leader)
        serves(recorder, "while a leader stands still")
        ground.wake(leader)
        serves(recorder, "after a leader woke up")


def rolling_kills(ground: Ground, recorder: Recorder) -> None:
    """Each member in turn is killed, the others go on, and it comes back."""
    for number in ground.numbers:
        ground.kill_member(number)
        serves(recorder, f"without m{number}")
        ground.start_member(number)


def all_killed(ground: Ground, recorder: Recorder) -> None:
    """All members are killed at once, twice, amid writes."""
    for _ in range(2):
        for number in ground.numbers:
            ground.kill_member(number)
        ground.note("start all")
        ground.start()
        serves(recorder, "after all were killed")


def messages_in_any_order(ground: Ground, recorder: Recorder) -> None:
    """Messages between members come twice, late, overtaken or never; leaders are cut off until votes did, too."""
    network = ground.network
    assert isinstance(network, Messages)

    def came_twice() -> bool:
        leader = ground.leading()
        ground.isolate(leader)
        ground.wait_other_leader(leader)
        serves(recorder, "by the majority")
        ground.heal()
        serves(recorder, "after the leader came back")
        return all(network.counts["doubled", kind] for kind in DOUBLED) and network.count("overtaken") > OVERTAKEN

    # An election has few messages: on a busy machine it takes a while until one of each kind came twice.
    until(came_twice, f"messages of all kinds come twice: {DOUBLED}", 4 * PATIENCE_SECONDS)
    assert min(map(network.count, ("late", "lost"))) > WRITES, network.kind


DOUBLED = (
    *("append_entries", "append_entries_response", "heartbeat", "heartbeat_response"),
    *("request_vote", "request_vote_response", "read_index", "read_index_response"),
)
"""Kinds of messages of which some must have come twice, or the scenario has not happened."""
OVERTAKEN = 1000
"""And so many must have been overtaken."""


# Membership, snapshots, compaction


def members_change(ground: Ground, recorder: Recorder) -> None:
    """A leader that is cut off adds nobody; the others do; then the old leader is removed, the new member cut off."""
    old = ground.leading()
    ground.isolate(old)
    with contextlib.suppress(ClientError), Client(ground.members[old].endpoint, timeout=1.0) as client:
        client.member_add(["http://127.0.0.1:1"])
        raise AssertionError("a leader without a majority added a member")
    ground.wait_other_leader(old)
    rest = ",".join(ground.members[number].endpoint for number in ground.others(old))
    with Client(rest, timeout=10.0) as client:
        answer = insist(lambda: client.member_add([ground.newcomer.peer_url], learner=True), "a learner is added")
        added = ground.newcomer_joins(
            ",".join(f"{one.name or ground.newcomer.name}={url}" for one in answer.members for url in one.peerURLs)
        )
        insist(lambda: client.member_promote(answer.member.ID), "the learner is promoted")
        ground.wait_ready(ground.members[added])
        serves(recorder, "with the new member")
        ground.heal()
        serves(recorder, "after the old leader is back")
        ground.isolate(added)
        (removed,) = (one.ID for one in answer.members if one.name == ground.members[old].name)
        insist(lambda: client.member_remove(removed), "the old leader is removed")
        ground.removed.add(old)
        ground.members[old].kill()
        serves(recorder, "without the old leader")


def insist(attempt: Callable[[], Answer], what: str) -> Answer:
    """Ask again until it is granted; that it was granted before counts as well."""
    found: list[Answer] = []

    def granted() -> bool:
        with contextlib.suppress(ClientError):
            found.append(attempt())
        return bool(found)

    until(granted, what)
    return found[0]


def few_entries(ground: Ground, directory: Path) -> None:
    """All members but the first give up their log soon, so that who was away needs a snapshot."""
    for member in ground.members[1:]:
        member.set_flag("--snapshot-count", "20")


def snapshot_installed(ground: Ground, recorder: Recorder) -> None:
    """A follower that was away is sent a snapshot; it is cut off in the middle, and sent it again."""
    lead_without(ground, 0)
    leader = ground.leading()
    away = ground.others(0, leader)[0]
    # What waits in a connection would still arrive after a mere cut.
    ground.kill_member(away)
    with Client(ground.members[leader].endpoint, timeout=10.0) as client:
        for number in range(8):
            insist(lambda number=number: client.put(f"large/{number}", bytes(1 << 20)), "a large value is taken")
        # It may have got more than was committed when it went, but nothing that comes after these.
        known = client.status().raftIndex
    for number in ground.others(0, away):
        until(lambda number=number: first_entry(ground, number) > known, "the log begins behind the follower's")
    serves(recorder, "without one member")
    receiving = ground.members[away].data / "snapshot.receiving"
    ground.note(f"start {away}")
    ground.members[away].start()

    def installed() -> bool:
        # A leader that has the whole log, after an election, needs no snapshot.
        return INSTALLED in ground.members[away].log() or ground.leading() == 0

    until(lambda: receiving.exists() or installed(), "a snapshot is received", pause=0.001)
    ground.isolate(away)
    serves(recorder, "while a snapshot is held up")
    ground.heal()
    until(installed, "the snapshot is installed")


INSTALLED = "goes on from a snapshot"


def first_entry(ground: Ground, number: int) -> int:
    """Behind which index the log of a member begins, as it says itself."""
    return int(([0] + re.findall(r"the log begins behind (\d+)", ground.members[number].log()))[-1])


def lead_without(ground: Ground, unwanted: int) -> None:
    """Have another one lead."""

    def moved() -> bool:
        leader = ground.leading()
        if leader == unwanted:
            target = ground.others(unwanted)[0]
            with contextlib.suppress(ClientError), Client(ground.members[target].endpoint, timeout=2.0) as other:
                member = other.status().header.member_id
                with Client(ground.members[leader].endpoint, timeout=2.0) as client:
                    client.call(req.MOVE_LEADER, rpc_pb2.MoveLeaderRequest(targetID=member))
        return leader != unwanted

    until(moved, f"m{unwanted} does not lead")


def compaction_goes_on(ground: Ground, recorder: Recorder) -> None:
    """History is given up ten times a second, at all members, while leaders are cut off and come back."""
    with compacting(ground, recorder):
        for _ in range(2):
            leader = ground.leading()
            ground.isolate(leader)
            ground.wait_other_leader(leader)
            serves(recorder, "while history is given up")
            ground.heal()
            serves(recorder, "after the leader came back")


@contextlib.contextmanager
def compacting(ground: Ground, recorder: Recorder) -> Iterator[None]:
    """Ask one member after another to give history up."""

    def compact(done: threading.Event) -> None:
        turn = 0
        while not done.wait(0.1):
            turn += 1
            with contextlib.suppress(ClientError), Client(ground.present[turn % 3].endpoint, timeout=0.5) as client:
                client.compact(max(1, recorder.revision - 15), physical=True)

    with meanwhile(compact):
        yield


# Disks


def slow_disks(ground: Ground, recorder: Recorder) -> None:
    """The leader's syncs take longer than an election timeout; then a majority's take a while."""
    leader = ground.leading()
    ground.note(f"slow syncs {leader}")
    with syncs(ground.members[leader], f"delay_exit={int(1.5 * ELECTION_SECONDS * 1e6)}"):
        serves(recorder, "while the leader's disk hardly moves")
    with contextlib.ExitStack() as stack:
        for number in ground.numbers[: len(ground.numbers) // 2 + 1]:
            ground.note(f"slow syncs {number}")
            stack.enter_context(syncs(ground.members[number], "delay_exit=100000"))
        serves(recorder, "while disks are slow")


def failing_disk(ground: Ground, recorder: Recorder) -> None:
    """A sync of the leader fails: it ends by itself, and acknowledges nothing more."""
    leader = ground.leading()
    ground.note(f"failing syncs {leader}")
    with syncs(ground.members[leader], "error=EIO"):
        until(lambda: not ground.members[leader].running(), "a member whose disk fails ends")
    ground.wait_other_leader(leader)
    serves(recorder, "without the member whose disk failed")
    ground.start_member(leader)


def small_disk(ground: Ground, directory: Path) -> None:
    """The last member has a small disk of its own."""
    ground.small = Small(directory)
    ground.move_disk(ground.numbers[-1], ground.small.place)


def full_disk(ground: Ground, recorder: Recorder) -> None:
    """A member's disk has little space left: puts are refused. Then none at all. Then there is space again."""
    small, number = ground.small, ground.numbers[-1]
    assert small is not None
    with Client(ground.endpoints, timeout=5.0) as client:
        ground.note(f"little space {number}")
        small.fill(16 << 20)
        until(lambda: bool(alarms(client)), "the alarm of a full disk")
        ground.note(f"no space {number}")
        small.fill(0)
        last(4)
        ground.note(f"space {number}")
        small.empty()
        if not ground.members[number].running():
            ground.start_member(number)

        def disarmed() -> bool:
            for one in alarms(client):
                disarm = rpc_pb2.AlarmRequest(
                    action=rpc_pb2.AlarmRequest.DEACTIVATE, memberID=one.memberID, alarm=one.alarm
                )
                with contextlib.suppress(ClientError):
                    client.call(req.ALARM, disarm)
            with contextlib.suppress(ClientError):
                client.put("space", "")
                return True
            return False

        until(disarmed, "a put is taken when there is space again")
    serves(recorder, "after the disk was full")


def alarms(client: Client) -> list[rpc_pb2.AlarmMember]:
    with contextlib.suppress(ClientError):
        return list(client.call(req.ALARM, rpc_pb2.AlarmRequest(action=rpc_pb2.AlarmRequest.GET)).alarms)
    return []


def ext4(ground: Ground, directory: Path) -> None:
    """All members keep their data on a disk that loses what was not synced."""
    ground.ext4 = Ext4(directory)
    for number in ground.numbers:
        ground.move_disk(number, ground.ext4.place)


def power_cut(ground: Ground, recorder: Recorder) -> None:
    """All members lose their power at once, twice, amid writes."""
    for _ in range(2):
        ground.cut_power()
        ground.note("start all")
        ground.start()
        serves(recorder, "after a power cut")


@dataclass(frozen=True)
class Scenario:
    """What is done, and to what kind of cluster. `beside` is the other fault that clusters of five have meanwhile."""

    run: Callable[[Ground, Recorder], None]
    beside: str
    prepare: Callable[[Ground, Path], None] = lambda *_: None
    delay_seconds: float = 0.0
    weather: Weather | None = None


SCENARIOS: dict[str, Scenario] = {
    "leader isolated": Scenario(leader_isolated, "lost packets"),
    "minority and majority": Scenario(minority_and_majority, "a starved member"),
    "one-way links": Scenario(one_way_links, "a slow disk"),
    "overlapping majorities": Scenario(overlapping_majorities, "kills"),
    "flapping": Scenario(flapping, "lost packets"),
    "clients cut off from the leader": Scenario(clients_cut_off_from_leader, "a slow disk"),
    "paused leader": Scenario(paused_leader, "lost packets"),
    "rolling kills": Scenario(rolling_kills, "a starved member"),
    "all killed": Scenario(all_killed, "lost packets"),
    "members change": Scenario(members_change, "a starved member"),
    "snapshot installed": Scenario(snapshot_installed, "lost packets", few_entries),
    "compaction": Scenario(compaction_goes_on, "kills"),
    "slow links": Scenario(leader_isolated, "kills", delay_seconds=0.02),
    "messages in any order": Scenario(messages_in_any_order, "kills", weather=Weather()),
    "slow disks": Scenario(slow_disks, "lost packets"),
    "failing disk": Scenario(failing_disk, "a starved member"),
    "full disk": Scenario(full_disk, "lost packets", small_disk),
    "power cut": Scenario(power_cut, "lost packets", ext4),
}
