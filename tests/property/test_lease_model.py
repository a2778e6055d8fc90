"""Leases through elections, stale leaders, late entries and renewals, at random: never early, always in the end."""

import random

import pytest

from raftkv.pb import log_pb2
from tests.unit.lease.world import SLACK, Member, World

SEEDS = range(60)
STEPS = 250
TTLS = (2, 5, 9, 12, 40, 300)


class Client:
    """What the clients were promised, and what they know of keys: the oracle.

    A promise counts from when it was asked for, in seconds of the world's clock.
    """

    def __init__(self) -> None:
        self.until: dict[int, float] = {}
        self.ttl: dict[int, int] = {}
        self.keys: dict[bytes, int] = {}


class Run:
    """One random history; consensus is honest, everything else is late, repeated or out of office."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.world = World()
        self.client = Client()
        self.late: list[log_pb2.Proposal] = []
        self.renewals: list[tuple[int, int, float]] = []
        self.next_id = 1

    def step(self) -> None:
        actions = [self.pass_time] * 6 + [self.tick] * 5 + [self.ask_renewal] * 3 + [self.promise] * 3
        actions += [self.grant, self.grant, self.put, self.put, self.delete, self.revoke, self.elect]
        actions += [self.stale_leader, self.late_entry, self.take_up]
        self.rng.choice(actions)()
        self.check()

    def some(self) -> int:
        return self.rng.choice(sorted(self.client.until) or [1])

    def pass_time(self) -> None:
        self.world.sleep(self.rng.choice((0.1, 0.5, 0.9, 0.9, 3.0)))

    def tick(self) -> None:
        """The leader proposes; now and then the entry comes late, or never."""
        world = self.world
        for proposal in (world.expiry(world.leader, 4), world.checkpoints(world.leader)):
            if proposal is None:
                continue
            if self.rng.random() < 0.3:
                self.late.append(proposal)
                world.leader.lessor.put_back(proposal.lease_expiry.ids)
                world.leader.lessor.checkpoints_failed(told.ID for told in proposal.lease_checkpoints.checkpoints)
            else:
                # The log keeps the order in which a leader proposed.
                self.late_entries()
                world.commit(proposal)

    def late_entry(self) -> None:
        if self.late:
            self.world.commit(self.late.pop(0))

    def late_entries(self) -> None:
        while self.late:
            self.late_entry()

    def stale_leader(self) -> None:
        """Someone who still believes that it leads decides something; its entry is proposed anew in this term."""
        member: Member = self.rng.choice(self.world.members)
        if member is self.world.leader or not member.lessor.term:
            return
        for proposal in (self.world.expiry(member), self.world.checkpoints(member)):
            if proposal is not None:
                self.world.commit(proposal)

    def elect(self) -> None:
        self.renewals = [one for one in self.renewals if self.rng.random() < 0.5]
        self.world.elect(self.rng.randrange(3), take_up=self.rng.random() < 0.5)

    def take_up(self) -> None:
        self.world.leader.lessor.take_up(self.rng.randint(1, 3))

    def grant(self) -> None:
        lease_id = self.rng.choice((self.next_id, self.rng.randint(1, 8)))
        asked, ttl = self.world.now, self.rng.choice(TTLS)
        if self.world.grant(lease_id, ttl) is None:
            self.client.until[lease_id] = asked + ttl
            self.client.ttl[lease_id] = ttl
            self.next_id += 1
            # A renewal of the old lease says nothing of the new one.
            self.renewals = [one for one in self.renewals if one[0] != lease_id]

    def put(self) -> None:
        key, lease_id = b"%d" % self.rng.randrange(12), self.rng.choice((0, self.some(), self.some()))
        if self.world.put(key, lease_id) is None:
            self.client.keys[key] = lease_id

    def delete(self) -> None:
        key = b"%d" % self.rng.randrange(12)
        self.world.delete(key)
        self.client.keys.pop(key, None)

    def revoke(self) -> None:
        lease_id = self.some()
        if self.rng.random() < 0.4 and self.world.revoke(lease_id) is None:
            self.forget(lease_id)

    def forget(self, lease_id: int) -> None:
        self.client.until.pop(lease_id, None)
        self.client.keys = {key: lease for key, lease in self.client.keys.items() if lease != lease_id}

    def ask_renewal(self) -> None:
        """The leader notes a renewal; the promise comes later, or never."""
        world, lease_id = self.world, self.some()
        lessor = world.leader.lessor
        if world.leader.leases.exists(lease_id) and not lessor.is_expiring(lease_id):
            if lessor.renew(lease_id):
                self.late_entries()
                world.commit(world.checkpoints(world.leader, [(lease_id, 0)]))
            self.renewals.append((lease_id, lessor.term, world.now))

    def promise(self) -> None:
        """Leadership is confirmed: what was noted in this very term, and still exists, is promised."""
        for lease_id, term, asked in self.renewals:
            if term == self.world.term and self.world.exists(lease_id):
                until = asked + self.client.ttl[lease_id]
                self.client.until[lease_id] = max(until, self.client.until.get(lease_id, 0.0))
        self.renewals = []

    def check(self) -> None:
        """Never early, and keys live exactly as long as their leases."""
        world = self.world
        for lease_id, until in list(self.client.until.items()):
            if not world.exists(lease_id):
                assert world.now >= until, f"lease {lease_id} went at {world.now}, promised until {until}"
                self.forget(lease_id)
        for key, lease_id in self.client.keys.items():
            assert world.leader.store.newest(key) is not None
            assert not lease_id or key in world.keys(lease_id)
        attached = {key for lease in world.leader.leases.leases.values() for key in lease.keys or ()}
        assert attached == {key for key, lease_id in self.client.keys.items() if lease_id}

    def finish(self) -> None:
        """With a stable leader everything goes when its time has come, on every member."""
        world = self.world
        world.elect(0)
        end = world.now + max(TTLS) + SLACK + 2
        while world.now < end:
            world.sleep(0.5)
            world.tick()
            self.check()
        assert not world.leader.leases
        for member in world.members:
            world.catch_up(member)
            assert not member.leases
            assert member.store.select((b"", None)) == world.leader.store.select((b"", None))


@pytest.mark.parametrize("seed", SEEDS)
def test_no_lease_goes_early_and_all_go_in_the_end(seed: int) -> None:
    run = Run(seed)
    for _ in range(STEPS):
        run.step()
    run.finish()
