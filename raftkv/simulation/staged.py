"""Faults in several acts: histories that need a few things to go wrong in turn, upon which single faults come too
seldom. Each has happened to somebody: leaders that last no longer than a message, a leader that wakes up and still
believes in itself, a candidate nobody hears of, a write that is replaced while a disk is busy with it.
"""

import random
from collections.abc import Callable

from raftkv.raft import AppendEntriesResponse, Message, Role
from raftkv.simulation.cluster import Cluster

KINDS = ("short-reigns", "lost-campaign", "sleeping-leader", "replaced-write")
"""Names of the methods of `Staged`."""

Links = list[tuple[int, int]]
Later = Callable[..., None]
"""Calls something after some seconds, unless all faults have ended by then."""


class Staged:
    """The acts of each fault. A method plans them and returns the member that it is about; -1: no single one."""

    def __init__(self, cluster: Cluster, later: Later) -> None:
        self._cluster = cluster
        self._later = later
        options = cluster.options
        self._election = options.heartbeat_ms * options.election_ticks / 1000
        self._latency = options.weather.latency
        self._trip = self._latency + options.weather.jitter

    def _leader(self) -> int:
        leader = self._cluster.leader()
        return -1 if leader is None else leader.machine.number

    def _links(self, number: int, *, besides: int = -1, inwards: bool = True) -> Links:
        """All links between a member and the others, but one of them."""
        others = [place for place in self._cluster.places if place not in (number, besides)]
        out = [(number, other) for other in others]
        return out + [(other, number) for other in others] if inwards else out

    def _cut(self, links: Links, seconds: float) -> None:
        self._cluster.network.cut(links)
        self._later(seconds, self._cluster.network.mend, links)

    def short_reigns(self, rng: random.Random, seconds: float) -> int:
        """Whoever is elected is cut off at once, or with the first answer to what it sends, or loses its power: what
        leaders of several terms have left at one index competes (figure 3.7 of the thesis)."""
        cluster = self._cluster
        places = cluster.members
        waiting: set[int] = set()

        def cut(number: int) -> None:
            self._cut(self._links(number), self._election * (1.5 + 2 * rng.random()))

        def elected(number: int) -> None:
            chance = rng.random()
            waiting.clear()
            if chance < 0.5:
                cut(number)
            elif chance < 0.9:
                waiting.add(number)
            else:
                self._later(rng.random() * 4 * self._trip, cluster.kill_and_restart, number, 0.02)

        def answered(message: Message) -> None:
            if waiting and type(message) is AppendEntriesResponse and not message.rejected:
                number = places[message.to]
                if number in waiting:
                    waiting.discard(number)
                    self._later(self._trip + rng.random() * self._latency, cut, number)

        def end() -> None:
            if cluster.on_leader is elected:
                cluster.on_leader = cluster.on_message = None

        cluster.on_leader, cluster.on_message = elected, answered
        self._later(max(seconds, 12 * self._election), end)
        leader = self._leader()
        if leader >= 0:
            elected(leader)
        return -1

    def lost_campaign(self, rng: random.Random, seconds: float) -> int:
        """Somebody is told to take over, and nobody hears that it wants to: it comes back with a term of its own."""
        leader = self._cluster.leader()
        if leader is None or leader.server is None:
            return -1
        server = leader.server
        member, number = rng.choice(sorted(self._cluster.members.items()))

        def transfer() -> None:
            if server.node.role is Role.LEADER and not server.failed.done():
                server.node.transfer_leader(member)
                server.wake()

        self._cut(self._links(number, inwards=False), self._election * (0.1 + rng.random()))
        leader.loop.run_in(transfer)
        return number

    def sleeping_leader(self, rng: random.Random, seconds: float) -> int:
        """The leader stands still until the others have another one, wakes up and hears nobody but clients."""
        leader = self._cluster.leader()
        if leader is None:
            return -1
        number = leader.machine.number
        asleep = self._election * (2.5 + 2.5 * rng.random())
        leader.loop.pause()
        # What it promises when it wakes has time to be broken before it hears of the others.
        self._cut(self._links(number), asleep + 2 * self._election + 2 * rng.random())
        self._later(asleep, leader.loop.resume)
        return number

    def replaced_write(self, rng: random.Random, seconds: float) -> int:
        """Entries that only one follower got are replaced while its disk still writes them: the leader, whose disk is
        as slow, loses its power and with it the entries; the others elect a new one."""
        cluster, election = self._cluster, self._election
        number = self._leader()
        if number < 0 or len(cluster.places) < 2:
            return -1
        follower = rng.choice([place for place in cluster.places if place != number])
        alone = 0.1 + election * (0.4 + 0.5 * rng.random())
        elected = alone + election * (2.0 + rng.random())
        written = elected + election * (0.3 + 0.5 * rng.random())
        now = cluster.scheduler.now
        for place, until in ((number, alone + election), (follower, written)):
            cluster.machines[place].stall_until = now + int(until * 1_000_000_000)
        self._cut(self._links(number, besides=follower), alone)
        self._cut(self._links(follower, besides=number), elected)
        self._later(alone, self._lose, number)
        self._later(alone, self._cut, [(number, follower), (follower, number)], elected - alone)
        self._later(written - 0.001, self._set_speed, follower, 0.3 * election)
        self._later(written + election, self._set_speed, follower, 0.0008)
        return follower

    def _lose(self, number: int) -> None:
        self._cluster.machines[number].stall_until = 0
        self._cluster.kill_and_restart(number, 0.02)

    def _set_speed(self, number: int, sync_seconds: float) -> None:
        self._cluster.machines[number].sync_seconds = sync_seconds
