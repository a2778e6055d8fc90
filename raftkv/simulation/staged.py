"""Faults in several acts: histories that need a few things to go wrong in turn, upon which single faults come too
seldom. Each has happened to somebody: leaders that last no longer than a message, a leader that wakes up and still
believes in itself, a candidate nobody hears of, a write that is replaced while a disk is busy with it, a change of the
members that half of them have not heard of.
"""

import random
from collections.abc import Callable, Sequence
from functools import partial

from raftkv.pb import peer_pb2, rpc_pb2
from raftkv.raft import AppendEntriesResponse, EntryKind, Message, NodeId, RaftNode, Role
from raftkv.server.server import Server
from raftkv.simulation.cluster import Cluster
from raftkv.simulation.machine import Process
from raftkv.simulation.options import TORN

KINDS = ("short-reigns", "lost-campaign", "sleeping-leader", "replaced-write", TORN)
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
        self._heartbeat = options.heartbeat_ms / 1000
        self._latency = options.weather.latency
        self._trip = self._latency + options.weather.jitter
        self._behind: list[Server] = []

    def heal(self) -> None:
        """Let everybody apply what is committed."""
        for server in self._behind:
            server.turn_work = self._cluster.options.turn_work
        self._behind.clear()

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
        """The leader stands still until the others have another one, wakes up and hears nobody but clients; and, at
        times, what it was answered right before it fell asleep."""
        leader = self._cluster.leader()
        if leader is None:
            return -1
        number = leader.machine.number
        asleep = self._election * (2.5 + 2.5 * rng.random())
        if rng.random() < 0.5:
            inwards = [(place, number) for place in self._cluster.places if place != number]
            woken = asleep + self._election * (0.05 + 0.6 * rng.random())
            now = self._cluster.scheduler.now
            self._cluster.network.hold(inwards, now + int((self._heartbeat + woken) * 1_000_000_000))
            self._later(self._heartbeat, self._cluster.network.release, inwards)
            self._later(self._heartbeat, self._fall_asleep, leader, asleep, rng.random())
            return number
        self._fall_asleep(leader, asleep, rng.random())
        return number

    def _fall_asleep(self, leader: Process, asleep: float, dice: float) -> None:
        if leader.loop.dead:
            return
        number = leader.machine.number
        leader.loop.pause()
        # What it promises when it wakes has time to be broken before it hears of the others.
        self._cut(self._links(number), asleep + 2 * self._election + 2 * dice)
        self._later(asleep, leader.loop.resume)

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

    def torn_change(self, rng: random.Random, seconds: float) -> int:
        """Two changes of the members are asked for at once; as soon as a leader has applied what it has of them it is
        parted from the rest, with no more than it now needs: the rest may not know of the changes, or has not come to
        apply them."""
        cluster = self._cluster
        leader = cluster.leader()
        if leader is None or leader.server is None:
            return -1
        before = {process.machine.number: _voters(process) for process in cluster.processes()}
        others = [place for place in cluster.places if place != leader.machine.number]
        if others and rng.random() < 0.6:
            self._fall_behind(rng.choice(others))

        def sent(message: Message) -> None:
            number = cluster.members[message.sender]
            process = cluster.process(number)
            if process is not None and process.server is not None and _changed(process.server.node, before.get(number)):
                end()
                self._tear(rng, process)

        def end() -> None:
            if cluster.on_message is sent:
                cluster.on_message = None

        cluster.on_message = sent
        self._later(max(seconds, 20 * self._election), end)
        changes = self._two_changes(rng, leader.server.node)
        leader.loop.run_in(partial(_ask, leader, changes))
        return leader.machine.number

    def _two_changes(self, rng: random.Random, leader: RaftNode) -> list[peer_pb2.MemberChange]:
        """Two fewer, or two more."""
        others = [voter for voter in leader.conf_state.voters if voter != leader.id]
        if len(others) >= 4 and rng.random() < 0.7:
            removals = (rpc_pb2.MemberRemoveRequest(ID=member) for member in rng.sample(others, 2))
            return [peer_pb2.MemberChange(remove=removal) for removal in removals]
        first = len(self._cluster.machines)
        urls = (f"http://m{place}:2380" for place in (first, first + 1))
        return [peer_pb2.MemberChange(add=rpc_pb2.MemberAddRequest(peerURLs=[url])) for url in urls]

    def _tear(self, rng: random.Random, process: Process) -> None:
        """Part a leader from all that it does not need; those that were added are on its side, and start there."""
        cluster, number, voters = self._cluster, process.machine.number, _voters(process)
        new = [voter for voter in voters if voter not in cluster.members]
        coming = range(len(cluster.machines), len(cluster.machines) + len(new))
        there = [place for place in map(cluster.members.get, voters) if place is not None and place != number]
        rng.shuffle(there)
        side = {number, *there[: max(0, len(voters) // 2 - len(new))], *coming}
        places = [*cluster.places, *coming]
        links = [(one, other) for one in places for other in places if (one in side) != (other in side)]
        self._cut(links, self._election * (5 + 5 * rng.random()))
        for member in new:
            cluster.join(member, process.known_members())

    def _fall_behind(self, number: int) -> None:
        """Let a member apply nothing for a while, as if what came before were a lot; all else of it goes on."""
        process = self._cluster.process(number)
        if process is None or process.server is None:
            return
        process.server.turn_work = 0
        self._behind.append(process.server)

    def _lose(self, number: int) -> None:
        self._cluster.machines[number].stall_until = 0
        self._cluster.kill_and_restart(number, 0.02)

    def _set_speed(self, number: int, sync_seconds: float) -> None:
        self._cluster.machines[number].sync_seconds = sync_seconds


def _ask(process: Process, changes: Sequence[peer_pb2.MemberChange]) -> None:
    """Have a member make changes, all at once; whatever becomes of them."""
    server = process.server
    if server is not None and not server.failed.done():
        for change in changes:
            asked = process.loop.create_task(server.reconfiguration.change(change))
            asked.add_done_callback(lambda done: done.cancelled() or done.exception())


def _voters(process: Process) -> tuple[NodeId, ...]:
    return () if process.server is None else process.server.node.conf_state.voters


def _changed(leader: RaftNode, before: tuple[NodeId, ...] | None) -> bool:
    """Whether a leader has other voters than before, and no change in its log that it has not applied."""
    log = leader.log
    return (
        leader.role is Role.LEADER
        and before is not None
        and leader.conf_state.voters != before
        and not any(entry.kind is EntryKind.CONF_CHANGE for entry in log.slice(log.applied + 1, log.last_index + 1))
    )
