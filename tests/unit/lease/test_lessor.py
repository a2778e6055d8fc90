"""The time of leases, with time that the test lets pass."""

import tracemalloc

import pytest

from raftkv.lease import checkpoint_interval
from raftkv.lease.lessor import LOOK_LEASES
from tests.unit.lease.world import SLACK, World


@pytest.fixture
def world() -> World:
    return World()


def expired_at(world: World, lease_id: int, limit: float, step: float = 0.1) -> float:
    """When the lease went, within `limit` seconds."""
    end = world.now + limit
    while world.now < end:
        world.sleep(step)
        world.tick()
        if not world.exists(lease_id):
            return world.now
    raise AssertionError(f"lease {lease_id} still exists after {limit} s")


def test_a_lease_expires_at_its_time_and_not_before(world: World) -> None:
    world.grant(7, 10)
    world.put(b"k", 7)
    world.run(9.8)
    assert world.exists(7)
    assert 10 <= expired_at(world, 7, 1.0) < 10.3
    assert world.leader.store.newest(b"k") is None


def test_a_renewal_gives_all_of_the_time_again(world: World) -> None:
    world.grant(7, 10)
    world.run(9.0)
    world.renew(7)
    world.run(9.8)
    assert world.exists(7)
    assert expired_at(world, 7, 1.0) >= 19


def test_a_renewed_lease_is_not_taken_when_its_first_time_is_over(world: World) -> None:
    world.grant(7, 10)
    world.run(0.2)
    world.renew(7)
    renewed = world.now
    assert expired_at(world, 7, 12, step=0.05) >= renewed + 10


def test_a_new_leader_adds_the_election_timeout_and_never_takes(world: World) -> None:
    world.grant(7, 9)
    world.run(8.0)
    world.elect(1)
    started = world.now
    assert expired_at(world, 7, 12) >= started + 9 + SLACK


def test_a_new_leader_takes_leases_up_in_slices_and_at_once_when_asked(world: World) -> None:
    for lease_id in range(1, 11):
        world.grant(lease_id, 9)
    world.elect(1, take_up=False)
    lessor = world.leader.lessor
    world.sleep(0.9)
    assert lessor.take_up(4)
    asked = world.leader.leases.get(1)
    assert asked is not None
    assert lessor.remaining(asked) == pytest.approx(9 + SLACK)
    world.renew(2)
    world.run(9.5)
    # Those that wait do not expire, however long.
    assert len(world.leader.leases) == 10
    world.run(2)
    assert sorted(world.leader.leases.leases) == [3, 4, 5, 6]
    assert lessor.take_up(4)
    assert not lessor.take_up(4)
    started = world.now
    assert expired_at(world, 3, 12) >= started + 9 + SLACK
    assert not world.leader.leases


def test_a_leader_that_lost_its_office_lets_nothing_expire(world: World) -> None:
    world.grant(7, 10)
    old = world.leader
    old.lessor.demote()
    world.sleep(100)
    assert old.lessor.take_expired(10) == []
    assert old.lessor.take_checkpoints(10) == []


def test_a_leader_that_lost_its_office_looks_for_nothing_more(world: World) -> None:
    """It looked again every few milliseconds, until it led once more."""
    for lease_id in (7, 8):
        world.grant(lease_id, 10)
    lessor = world.leader.lessor
    while not lessor.take_expired(1):
        world.sleep(0.9)
    assert lessor.expiries_unfinished
    lessor.demote()
    assert not lessor.expiries_unfinished


def test_an_expiry_counts_only_in_the_term_in_which_it_was_decided(world: World) -> None:
    world.grant(7, 10)
    world.sleep(0.9)
    for _ in range(12):
        world.sleep(0.9)
        late = world.expiry(world.leader)
        if late is not None:
            break
    world.elect(1)
    world.renew(7)
    # Proposed anew in the next term, as a lost proposal is.
    assert late is not None
    assert world.commit(late) is None
    assert world.exists(7)


def test_a_checkpoint_counts_only_in_the_term_in_which_it_was_measured(world: World) -> None:
    world.grant(7, 100)
    world.run(49, step=0.9)
    world.sleep(0.9)
    late = world.checkpoints(world.leader)
    if late is None:
        world.sleep(0.9)
        late = world.checkpoints(world.leader)
    world.elect(1)
    world.renew(7)
    assert late is not None
    world.commit(late)
    lease = world.leader.leases.get(7)
    assert lease is not None
    assert lease.known == 100


def test_an_expiry_does_not_hit_a_later_lease_of_the_same_id(world: World) -> None:
    world.grant(7, 2)
    world.run(1.9)
    world.sleep(0.5)
    expiry = world.expiry(world.leader)
    assert expiry is not None
    world.revoke(7)
    world.grant(7, 100)
    world.commit(expiry)
    assert world.exists(7)


def test_a_checkpoint_does_not_hit_a_later_lease_of_the_same_id(world: World) -> None:
    world.grant(7, 100)
    mark = world.checkpoints(world.leader, [(7, 3)])
    world.revoke(7)
    world.grant(7, 1000)
    world.commit(mark)
    lease = world.leader.leases.get(7)
    assert lease is not None
    assert lease.known == 1000


def test_elections_do_not_give_a_lease_its_time_for_ever(world: World) -> None:
    """Without checkpoints a leader every 100 s would keep a lease of 1,000 s alive for ever.

    What an election may cost is what had not been told by then: an interval, and the slack.
    """
    world.grant(7, 1000)
    elections = 0
    while world.exists(7):
        world.run(100, step=0.9)
        elections += 1
        world.elect(elections % 3)
        assert world.now < 1000 + elections * (checkpoint_interval(1000) + 2 * SLACK)
    assert world.now >= 1000


def test_a_renewal_takes_a_checkpoint_back_before_the_next_leader_reads_it(world: World) -> None:
    world.grant(7, 100)
    world.run(95, step=0.9)
    lease = world.leader.leases.get(7)
    assert lease is not None
    assert lease.remaining
    world.renew(7)
    renewed = world.now
    world.elect(1)
    assert expired_at(world, 7, 200, step=0.9) >= renewed + 100


def test_a_renewal_takes_back_a_checkpoint_that_is_under_way(world: World) -> None:
    world.grant(7, 100)
    mark = None
    while mark is None:
        world.sleep(0.9)
        mark = world.checkpoints(world.leader)
    # Measured and proposed, not applied: the state says that all is left, the log does not.
    assert world.leader.lessor.renew(7)
    renewed = world.now
    world.commit(mark)
    world.commit(world.checkpoints(world.leader, [(7, 0)]))
    world.elect(1)
    assert expired_at(world, 7, 200, step=0.9) >= renewed + 100


def test_a_lease_that_is_kept_alive_costs_no_entry(world: World) -> None:
    world.grant(7, 30)
    length = len(world.log)
    for _ in range(30):
        world.run(10, step=0.5)
        world.renew(7)
    assert len(world.log) == length


def test_a_lease_being_revoked_is_not_renewed(world: World) -> None:
    world.grant(7, 2)
    world.run(1.9)
    world.sleep(0.5)
    expiry = world.expiry(world.leader)
    assert world.leader.lessor.is_expiring(7)
    world.renew(7)
    assert world.expiry(world.leader) is None
    world.commit(expiry)
    assert not world.exists(7)
    assert not world.leader.lessor.is_expiring(7)


def test_a_revocation_of_unknown_outcome_is_proposed_again(world: World) -> None:
    world.grant(7, 2)
    world.run(1.9)
    world.sleep(0.5)
    assert world.expiry(world.leader) is not None
    world.leader.lessor.put_back([7])
    world.renew(7)
    again = world.expiry(world.leader)
    assert again is not None
    world.commit(again)
    assert not world.exists(7)


def test_a_leader_that_stood_still_does_not_count_that_time(world: World) -> None:
    world.grant(7, 10)
    world.run(5)
    world.sleep(1000)
    world.tick()
    assert world.exists(7)
    world.run(3)
    assert world.exists(7)
    world.run(2)
    assert not world.exists(7)


def test_expiry_comes_in_slices_of_keys(world: World) -> None:
    for lease_id in range(1, 31):
        world.grant(lease_id, 2)
        for number in range(9):
            world.put(b"%d-%d" % (lease_id, number), lease_id)
    world.run(1.5)
    world.sleep(1.0)
    slices = []
    while ids := world.leader.lessor.take_expired(50):
        slices.append(ids)
    assert [len(ids) for ids in slices] == [5] * 6
    assert sorted(lease_id for ids in slices for lease_id in ids) == list(range(1, 31))


def test_a_lease_larger_than_a_slice_expires_alone(world: World) -> None:
    world.grant(1, 2)
    world.grant(2, 2)
    for number in range(60):
        world.put(b"%d" % number, 1)
    world.run(1.5)
    world.sleep(1.0)
    assert world.leader.lessor.take_expired(50) == [1]
    assert world.leader.lessor.take_expired(50) == [2]


@pytest.mark.parametrize("kind", ["expiries", "checkpoints"])
def test_a_look_at_leases_that_were_renewed_is_bounded(world: World, kind: str) -> None:
    lessor = world.leader.lessor
    # A short one has no checkpoints; half of a long one's time passes before its first.
    ttl, comes_up = (8, 8.0) if kind == "expiries" else (100, 50.0)
    for lease_id in range(1, 2 * LOOK_LEASES + 1):
        world.grant(lease_id, ttl)
    world.run(comes_up - 3, step=0.5)
    for lease_id in range(1, 2 * LOOK_LEASES + 1):
        lessor.renew(lease_id)
    world.run(2.5, step=0.5)
    world.sleep(0.9)
    unfinished = []
    for _ in range(3):
        assert not lessor.take_expired(1000)
        assert not lessor.take_checkpoints(1000)
        unfinished.append((lessor.expiries_unfinished, lessor.checkpoints_unfinished))
    assert unfinished == [(kind == "expiries", kind == "checkpoints"), (False, False), (False, False)]


def test_leases_revoked_long_before_their_time_leave_nothing() -> None:
    member = World(1).leader
    tracemalloc.start()
    try:
        for lease_id in range(1, 20_001):
            member.leases.grant(lease_id, 1_000_000)
            member.leases.revoke(lease_id)
        assert tracemalloc.get_traced_memory()[0] < 1 << 20
    finally:
        tracemalloc.stop()
    member.leases.grant(7, 2)
    member.time += 0.9
    assert not member.lessor.take_expired(10)
    for _ in range(2):
        member.time += 0.9
        taken = member.lessor.take_expired(10)
    assert taken == [7]


def test_remaining_time_is_told_and_never_below_zero(world: World) -> None:
    world.grant(7, 10)
    world.sleep(0.5)
    lease = world.leader.leases.get(7)
    assert lease is not None
    assert world.leader.lessor.remaining(lease) == pytest.approx(9.5)
    for _ in range(20):
        world.sleep(0.9)
        assert world.leader.lessor.remaining(lease) >= 0


def test_leases_are_listed_soonest_first_at_the_leader(world: World) -> None:
    for lease_id, ttl in ((1, 30), (2, 10), (3, 20)):
        world.grant(lease_id, ttl)
    soonest_first = world.leader.lessor.soonest_first()
    world.revoke(3)
    world.grant(4, 15)
    assert soonest_first() == [2, 3, 1]
    assert world.leader.lessor.soonest_first()() == [2, 4, 1]
    world.renew(2)
    follower = world.members[1]
    world.catch_up(follower)
    assert follower.lessor.soonest_first()() == [1, 2, 4]


@pytest.mark.parametrize(("known", "seconds"), [(2, 0), (9, 0), (10, 5), (60, 30), (120, 60), (9_000_000_000, 60)])
def test_the_interval_of_checkpoints_is_half_of_what_is_left(known: int, seconds: float) -> None:
    assert checkpoint_interval(known) == seconds
