"""Changing the members: the leader checks a change and takes it through the log, one after the other (thesis 4.1).

A change that arrives elsewhere goes to the leader, who alone knows who is reached and how far learners are. A check
that is passed says that the cluster will still have a majority of members that work; the errors are etcd's. What a
change does when its entry is applied, and what it is refused for then, is in `membership`.

A leader that is to leave hands leadership over first, and its successor removes it.
"""

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence

from raftkv import errors
from raftkv.config import url_problem
from raftkv.pb import log_pb2, peer_pb2, rpc_pb2
from raftkv.raft import NodeId, ProposalDropped, RaftNode, Role
from raftkv.server.leases import CallPeer
from raftkv.server.membership import Membership
from raftkv.status import Code, StatusError

logger = logging.getLogger(__name__)

PEER_CHANGE = "/raftkvpb.Peer/ChangeMembers"

RETRY_SECONDS = 0.05
POLL_SECONDS = 0.01
READY_SHARE = 0.9
"""A learner may be promoted when its log is at least so long, measured by the leader's; etcd's value."""
PROMOTE_SECONDS = 1.0
"""How often learners are looked at that are to be promoted without being asked for."""
PROMOTE_LAG = 100
"""Such a learner lacks no more entries than this."""


class Reconfiguration:
    """What one member does for changes of the members.

    Invariant: of the changes that this leader proposed at most one is not applied yet.
    """

    def __init__(
        self,
        node: RaftNode,
        membership: Membership,
        *,
        rng: random.Random,
        call_peer: CallPeer,
        connected: Callable[[NodeId], bool],
        linearizable: Callable[[], Awaitable[None]],
        hand_over: Callable[[], Awaitable[None]],
        wake: Callable[[], None],
        timeout_seconds: float,
        strict: bool = True,
        max_learners: int = 1,
    ) -> None:
        """`connected` tells whether messages reach a member; `strict`: refuse what could cost the majority."""
        self._node = node
        self._membership = membership
        self._rng = rng
        self._call_peer = call_peer
        self._connected = connected
        self._linearizable = linearizable
        self._hand_over = hand_over
        self._wake = wake
        self._timeout_seconds = timeout_seconds
        self._strict = strict
        self._max_learners = max_learners
        self._lock = asyncio.Lock()
        self._waiting: dict[int, asyncio.Future[None]] = {}
        self.promoted = 0
        """Learners promoted while this member led."""
        self.not_promoted: Counter[str] = Counter()
        """Promotions that this member, as leader, refused or could not make, by reason."""

    # What callers ask

    async def change(self, wanted: peer_pb2.MemberChange) -> peer_pb2.MemberChanged:
        """Have the leader change the members; when this returns the change is applied here, too.

        Raises:
            EtcdError: the change is refused.
            Timeout, TimeoutDueToConnectionLost: whether it was made is unknown, or there was no leader to make it.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._timeout_seconds
        while (left := deadline - loop.time()) > 0:
            leader = self._node.leader
            try:
                if leader == self._node.id:
                    return await self.change_here(wanted)
                if leader:
                    return await self._ask(leader, wanted, left)
            except errors.NotLeader:
                pass
            await asyncio.sleep(RETRY_SECONDS)
        raise errors.Timeout

    async def _ask(self, leader: NodeId, wanted: peer_pb2.MemberChange, timeout: float) -> peer_pb2.MemberChanged:
        try:
            answer = await self._call_peer(leader, PEER_CHANGE, wanted.SerializeToString(), timeout)
        except ConnectionError as error:
            raise errors.TimeoutDueToConnectionLost from error
        changed = peer_pb2.MemberChanged.FromString(answer)
        if changed.code:
            raise StatusError(Code(changed.code), changed.error)
        if self._node.id != wanted.remove.ID:
            await self._linearizable()
        return changed

    async def answer(self, wanted: peer_pb2.MemberChange) -> peer_pb2.MemberChanged:
        """Change the members for another member; an error of the change is part of the answer.

        Raises:
            NotLeader: ask another one.
        """
        try:
            return await self.change_here(wanted)
        except errors.NotLeader:
            raise
        except StatusError as error:
            return peer_pb2.MemberChanged(code=error.code, error=error.message)

    async def change_here(self, wanted: peer_pb2.MemberChange) -> peer_pb2.MemberChanged:
        """Change the members, as the leader.

        Raises:
            NotLeader: we do not lead, or not any more: nothing was proposed.
            EtcdError: the change is refused.
            Timeout: it was proposed; whether it will be made is unknown.
        """
        if not wanted.HasField("promote"):
            return await self._change(wanted)
        try:
            changed = await self._change(wanted)
        except errors.NotLeader:
            raise
        except StatusError as error:
            self.not_promoted[error.message] += 1
            raise
        self.promoted += 1
        return changed

    async def _change(self, wanted: peer_pb2.MemberChange) -> peer_pb2.MemberChanged:
        async with self._lock:
            change = await self._decided(wanted)
            if change.WhichOneof("change") == "remove" and change.remove == self._node.id:
                await self._hand_over()
                change = await self._decided(wanted)
            await self._through_the_log(change)
            members = self._membership.members
        logger.info("the members have changed (%s): %s", change.WhichOneof("change"), self._membership.conf_state)
        return peer_pb2.MemberChanged(member=change.add if change.HasField("add") else None, members=members)

    # Through the log

    async def _decided(self, wanted: peer_pb2.MemberChange) -> log_pb2.ConfChange:
        """The change to propose, in the same turn of the loop: the members are then those it was checked against."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._timeout_seconds
        while self._node.role is Role.LEADER and not self._node.may_change_conf and loop.time() < deadline:
            await asyncio.sleep(POLL_SECONDS)
        if self._node.role is not Role.LEADER:
            raise errors.NotLeader
        if not self._node.may_change_conf:
            raise errors.Timeout
        return self._decide(wanted)

    async def _through_the_log(self, change: log_pb2.ConfChange) -> None:
        change.id = self._rng.getrandbits(63) | 1
        applied: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[change.id] = applied
        try:
            self._node.propose_conf_change(change.SerializeToString())
            self._wake()
            async with asyncio.timeout(self._timeout_seconds):
                await applied
        except ProposalDropped as error:
            raise errors.NotLeader from error
        except TimeoutError as error:
            raise errors.Timeout from error
        finally:
            del self._waiting[change.id]

    def applied(self, change: log_pb2.ConfChange, error: StatusError | None) -> None:
        """A change was applied, or refused."""
        waiting = self._waiting.get(change.id)
        if waiting is None or waiting.done():
            return
        if error is None:
            waiting.set_result(None)
        else:
            waiting.set_exception(error)

    # Checks

    def _decide(self, wanted: peer_pb2.MemberChange) -> log_pb2.ConfChange:
        kind = wanted.WhichOneof("change")
        if kind == "add":
            return self._decide_add(wanted.add)
        if kind == "remove":
            return self._decide_remove(wanted.remove.ID)
        if kind == "promote":
            return self._decide_promote(wanted.promote.ID)
        if kind == "update":
            return self._decide_update(wanted.update)
        raise StatusError(Code.UNIMPLEMENTED, "raftkv: a change of the members that this member does not know")

    def _decide_add(self, request: rpc_pb2.MemberAddRequest) -> log_pb2.ConfChange:
        urls = _checked(request.peerURLs)
        voters = self._node.conf_state.voters
        if self._strict:
            after = len(voters) + (0 if request.isLearner else 1)
            # A sole member may always be given company: it is how a cluster begins to grow.
            if not request.isLearner and after > 2:
                self._check_started(voters, after)
            if after != 2:
                self._check_reached(voters, after)
        self._membership.check_urls(urls)
        if request.isLearner and len(self._node.conf_state.learners) >= self._max_learners:
            raise errors.TooManyLearners
        member = rpc_pb2.Member(ID=self._new_id(), peerURLs=urls, isLearner=request.isLearner)
        return log_pb2.ConfChange(add=member)

    def _new_id(self) -> NodeId:
        while True:
            chosen = self._rng.getrandbits(64)
            if chosen and self._membership.get(chosen) is None and not self._membership.is_removed(chosen):
                return chosen

    def _decide_remove(self, member: NodeId) -> log_pb2.ConfChange:
        if self._membership.get(member) is None:
            raise errors.MemberNotFound
        voters = self._node.conf_state.voters
        others = [voter for voter in voters if voter != member]
        if not others:
            raise errors.MemberNotEnoughStarted
        if self._strict and member in voters:
            self._check_started(others, len(others))
            # One that is down is no part of the majority that works: without it the cluster is better off.
            if self._reached(member):
                self._check_reached(others, len(others))
        return log_pb2.ConfChange(remove=member)

    def _decide_promote(self, member: NodeId) -> log_pb2.ConfChange:
        found = self._membership.get(member)
        if found is None:
            raise errors.MemberNotFound
        if not found.isLearner:
            raise errors.MemberNotLearner
        if not found.name or self._matched(member) < READY_SHARE * self._node.last_index:
            raise errors.LearnerNotReady
        if self._strict:
            # However far its log is: who is away counts from now on, and acknowledges nothing.
            if not self._reached(member):
                raise errors.LearnerNotReady
            voters = [*self._node.conf_state.voters, member]
            self._check_started(voters, len(voters))
            self._check_reached(voters, len(voters))
        return log_pb2.ConfChange(promote=member)

    def _decide_update(self, request: rpc_pb2.MemberUpdateRequest) -> log_pb2.ConfChange:
        urls = _checked(request.peerURLs)
        if self._membership.get(request.ID) is None:
            raise errors.MemberNotFound
        self._membership.check_urls(urls, request.ID)
        return log_pb2.ConfChange(update=rpc_pb2.Member(ID=request.ID, peerURLs=urls))

    def _check_started(self, voters: Sequence[NodeId], count: int) -> None:
        """See that of `count` voters a majority has started, as far as `voters` go."""
        started = sum(bool(member and member.name) for member in map(self._membership.get, voters))
        if started * 2 <= count:
            raise errors.MemberNotEnoughStarted

    def _check_reached(self, voters: Sequence[NodeId], count: int) -> None:
        """See that of `count` voters a majority is reached, as far as `voters` go."""
        if sum(map(self._reached, voters)) * 2 <= count:
            raise errors.Unhealthy

    def _reached(self, member: NodeId) -> bool:
        return member == self._node.id or self._connected(member)

    def _matched(self, member: NodeId) -> int:
        return self._node.status().match_indexes.get(member, 0)

    # Without being asked

    async def promote_learners(self) -> None:
        """Promote learners that have caught up, whenever we lead; for ever."""
        while True:
            await asyncio.sleep(PROMOTE_SECONDS)
            if self._node.role is not Role.LEADER:
                continue
            for learner in self._node.conf_state.learners:
                if self._reached(learner) and self._matched(learner) + PROMOTE_LAG >= self._node.last_index:
                    await self._promote(learner)

    async def _promote(self, learner: NodeId) -> None:
        wanted = peer_pb2.MemberChange(promote=rpc_pb2.MemberPromoteRequest(ID=learner))
        try:
            await self.change_here(wanted)
        except StatusError as error:
            logger.info("learner %x is not promoted yet: %s", learner, error.message)


def _checked(urls: Sequence[str]) -> list[str]:
    """Peer URLs, sorted as etcd does.

    Raises:
        MemberBadURLs: there is none, or one that cannot be used.
    """
    if not urls or any(url_problem(url, listen=False) for url in urls):
        raise errors.MemberBadURLs
    return sorted(urls)
