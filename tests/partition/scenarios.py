"""What is done to a cluster, one function a scenario. Each ends with whatever faults it likes: the caller heals.

A scenario waits for what its fault must bring about (another leader, writes that are taken), so that it cannot pass
without having happened.
"""

import time
from collections.abc import Callable

from tests.partition.ground import ELECTION_SECONDS, Ground, until
from tests.partition.recorder import Recorder

WRITES = 20
"""How many more writes show that the cluster serves."""

Scenario = Callable[[Ground, Recorder], None]


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
    ground.separate([old], ground.others(old))
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
        ground.separate([leader], ground.others(leader))
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
        ground.note(f"start {number}")
        ground.members[number].start()
        ground.wait_ready(ground.members[number])


def all_killed(ground: Ground, recorder: Recorder) -> None:
    """All members are killed at once, twice, amid writes."""
    for _ in range(2):
        for number in ground.numbers:
            ground.kill_member(number)
        ground.note("start all")
        ground.start()
        serves(recorder, "after all were killed")


SCENARIOS: dict[str, Scenario] = {
    "leader isolated": leader_isolated,
    "minority and majority": minority_and_majority,
    "one-way links": one_way_links,
    "overlapping majorities": overlapping_majorities,
    "flapping": flapping,
    "clients cut off from the leader": clients_cut_off_from_leader,
    "paused leader": paused_leader,
    "rolling kills": rolling_kills,
    "all killed": all_killed,
}
