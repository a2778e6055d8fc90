"""Somebody who changes the members all through a run, and what the log says of who they are.

A cluster grows by two through learners, or voters at once, and shrinks again by whoever it hits, the leader as often as
not; those that are added take new machines, so that in a long run nobody is left who was there at first. The operator
knows no more than the cluster tells: after a change of unknown outcome it asks who the members are.
"""

import asyncio
import random
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import count, islice
from typing import TypeVar

from google.protobuf.message import Message

from raftkv.pb import log_pb2, rpc_pb2
from raftkv.raft import Entry, EntryKind, NodeId
from raftkv.simulation.cluster import Cluster
from raftkv.simulation.history import UNKNOWN_CODES
from raftkv.simulation.invariants import Violation
from raftkv.simulation.machine import Process
from raftkv.status import StatusError

_CLUSTER = "/etcdserverpb.Cluster/"
_ENDPOINT = -251
MORE = 2
"""By how many voters a cluster grows before it shrinks again."""
PAUSE_SECONDS = 1.0
TWO_AT_ONCE = 0.3
SETTLE_SECONDS = 8.0
"""When a change of unknown outcome can be made no more."""

A = TypeVar("A", bound=Message)
Members = Sequence[rpc_pb2.Member]


class Operator:
    """Changes the members until `stop`; then sees that all members run, and ends."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._rng = random.Random(f"{cluster.options.seed}/operator")
        self._caller = cluster.caller(_ENDPOINT)
        self._growing = True
        self._stopping = False
        self._known: set[NodeId] = set(cluster.members)
        self.changes = 0
        """Changes that were made for certain."""
        self.refused = 0

    def stop(self) -> None:
        """Change nothing any more."""
        self._stopping = True

    async def run(self) -> None:
        """Go on until the end."""
        while not self._stopping:
            await asyncio.sleep(self._rng.expovariate(1 / PAUSE_SECONDS))
            members = await self._running()
            if members is not None:
                # Two things at once, as two operators would have it, are for the leader to put in order.
                changes = 2 if self._rng.random() < TWO_AT_ONCE else 1
                await asyncio.gather(*(self._change(members, number) for number in range(changes)))
        await asyncio.sleep(SETTLE_SECONDS)
        while await self._running() is None:
            await asyncio.sleep(PAUSE_SECONDS)

    # What it asks

    async def _call(self, name: str, request: Message, answer: type[A], *, timeout: float = 6.0) -> A | None:
        """Ask any member; None: refused, or nobody knows what came of it."""
        number = self._cluster.any_place(self._rng)
        process = partial(self._cluster.process, number)
        try:
            encoded = await self._caller.call(number, process, _CLUSTER + name, [request.SerializeToString()], timeout)
        except StatusError as error:
            self.refused += error.code not in UNKNOWN_CODES
            return None
        except ConnectionError:
            return None
        return answer.FromString(encoded)

    async def _list(self, *, linearizable: bool) -> Members | None:
        request = rpc_pb2.MemberListRequest(linearizable=linearizable)
        listed = await self._call("MemberList", request, rpc_pb2.MemberListResponse, timeout=2.0)
        return None if listed is None else listed.members

    async def _running(self) -> Members | None:
        """The members, if all of them were started; if not, one more is."""
        members = await self._list(linearizable=True)
        if members is None:
            # There may be no majority without the one to be started: then whoever has heard of it can tell.
            for _ in self._cluster.places:
                known = await self._list(linearizable=False)
                if known is not None and await self._start_added(known):
                    break
            return None
        return None if await self._start_added(members) else members

    async def _start_added(self, members: Members) -> bool:
        """Start who was added and has no machine yet; whether there is one."""
        added = next((member for member in members if member.ID not in self._cluster.members), None)
        if added is None:
            return False
        promoted = added.isLearner and self._rng.random() < 0.5 and await self._promote(added.ID)
        if added.ID in self._cluster.members:
            return True
        if promoted:
            self._cluster.fail(f"I10: learner {added.ID:x} votes and has never started")
        told = [process for process in self._cluster.processes() if _knows(process, added.ID)]
        if told:
            self._cluster.join(added.ID, self._rng.choice(told).known_members())
        return True

    def start_everybody(self) -> None:
        """Start who was added, each second until `stop`: in a cluster of which all is well all members run."""
        for process in self._cluster.processes():
            known = process.known_members()
            for member in known.members:
                if member.ID not in self._cluster.members:
                    self._cluster.join(member.ID, known)
        if not self._stopping:
            self._cluster.scheduler.after(1.0, self.start_everybody)

    # What it changes

    async def _change(self, members: Members, number: int) -> None:
        """Change something; `number` tells changes apart that are asked for together."""
        voters = [member.ID for member in members if not member.isLearner]
        learners = [member.ID for member in members if member.isLearner]
        least = self._cluster.options.nodes
        if len(voters) >= least + MORE:
            self._growing = False
        elif len(voters) <= least:
            self._growing = True
        if learners and self._rng.random() < 0.9:
            await self._promote(learners[0])
        elif self._growing and not learners:
            # As long as it is not known that a place is taken, it is tried again.
            taken = {url for member in members for url in member.peerURLs}
            places = (f"http://m{place}:2380" for place in count(len(self._cluster.machines)))
            free = islice((url for url in places if url not in taken), number, None)
            await self._add(next(free), learner=self._rng.random() < (0.4 if number else 0.8))
        else:
            await self._remove(self._victim([*learners, *voters]))

    async def _promote(self, member: NodeId) -> bool:
        request = rpc_pb2.MemberPromoteRequest(ID=member)
        promoted = await self._call("MemberPromote", request, rpc_pb2.MemberPromoteResponse)
        self.changes += promoted is not None
        return promoted is not None

    async def _add(self, url: str, *, learner: bool) -> None:
        request = rpc_pb2.MemberAddRequest(peerURLs=[url], isLearner=learner)
        added = await self._call("MemberAdd", request, rpc_pb2.MemberAddResponse)
        if added is not None:
            self.changes += 1
            if added.member.ID in self._known:
                self._cluster.fail(f"I10: the id {added.member.ID:x} is given a second time")
            self._known.add(added.member.ID)

    def _victim(self, members: Sequence[NodeId]) -> NodeId:
        leader = self._cluster.leader()
        if leader is not None and leader.server is not None and self._rng.random() < 0.5:
            return leader.server.node.id
        return self._rng.choice(members)

    async def _remove(self, member: NodeId) -> None:
        removed = await self._call("MemberRemove", rpc_pb2.MemberRemoveRequest(ID=member), rpc_pb2.MemberRemoveResponse)
        self.changes += removed is not None


def _knows(process: Process, member: NodeId) -> bool:
    return process.server is not None and process.server.membership.get(member) is not None


class Roll:
    """Who the members are, by the log alone: a model of `raftkv.server.membership`."""

    def __init__(self, founders: Iterable[NodeId]) -> None:
        self.voters = set(founders)
        self.learners: set[NodeId] = set()
        self._gone: set[NodeId] = set()
        self._urls: dict[NodeId, frozenset[str]] = {}

    def apply(self, entry: Entry) -> None:
        """Take the next entry of the log; a change that cannot be made leaves everything as it was.

        Raises:
            Violation: an id has been a member's before.
        """
        if entry.kind is not EntryKind.CONF_CHANGE or not entry.data:
            return
        change = log_pb2.ConfChange.FromString(entry.data)
        kind = change.WhichOneof("change")
        if kind == "add":
            self._add(change.add, entry.index)
        elif kind == "promote" and change.promote in self.learners:
            self.learners.discard(change.promote)
            self.voters.add(change.promote)
        elif kind == "remove" and self.voters != {change.remove} and change.remove in self.voters | self.learners:
            self.voters.discard(change.remove)
            self.learners.discard(change.remove)
            self._urls.pop(change.remove, None)
            self._gone.add(change.remove)

    def _add(self, member: rpc_pb2.Member, index: int) -> None:
        if member.ID in self.voters | self.learners | self._gone:
            raise Violation(f"I10: entry {index} gives the id {member.ID:x} a second time")
        urls = frozenset(member.peerURLs)
        if any(urls & others for others in self._urls.values()):
            return
        self._urls[member.ID] = urls
        (self.learners if member.isLearner else self.voters).add(member.ID)
