"""When a client's lease is renewed, when it is lost, and what it believes in between; in virtual time."""

import asyncio
import pickle
from collections.abc import Callable, Coroutine
from typing import Any, cast

import grpc
import pytest

from raftkv import errors
from raftkv.client import AsyncLease, LeaseLost, NotConnected, OutcomeUnknown, Refused, Unavailable
from raftkv.client.leasing import REVOKE_SECONDS, KeepAlive, keep_alive_on, keep_alive_once
from raftkv.client.login import Login
from raftkv.pb import rpc_pb2
from raftkv.status import Code
from tests.support import virtual

TTL = 9


class Server:
    """A server of one lease; `delay` of its answers in seconds, None: it does not answer."""

    def __init__(self) -> None:
        self.ttl = TTL
        self.delay: float | None = 0.0
        self.renewals: list[float] = []
        self.revoked = 0
        self.unanswered = 0
        """How many revocations to come get no answer."""
        self.lost = 0

    async def grant(self, ttl: int) -> rpc_pb2.LeaseGrantResponse:
        await asyncio.sleep(self.delay or 0.0)
        return rpc_pb2.LeaseGrantResponse(ID=7, TTL=max(ttl, 2))

    async def revoke(self, lease_id: int) -> None:
        if self.unanswered:
            self.unanswered -= 1
            raise OutcomeUnknown(Code.UNAVAILABLE, "gone")
        self.revoked += 1

    def keep_alive(self, lease_id: int) -> KeepAlive:
        return cast(KeepAlive, Renewals(self))

    def lease(self) -> AsyncLease:
        return AsyncLease(self.grant, self.revoke, self.keep_alive, TTL, lambda _: self.count_loss())

    def count_loss(self) -> None:
        self.lost += 1


class Renewals:
    """What `KeepAlive` promises, without a network."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.closed = False

    async def renew(self, seconds: float) -> rpc_pb2.LeaseKeepAliveResponse:
        assert not self.closed
        server = self._server
        server.renewals.append(asyncio.get_running_loop().time())
        try:
            async with asyncio.timeout(seconds):
                # What was sent arrives when the network is back.
                while server.delay is None:
                    await asyncio.sleep(0.1)
                await asyncio.sleep(server.delay)
        except TimeoutError as error:
            raise Unavailable(Code.DEADLINE_EXCEEDED, "no answer") from error
        return rpc_pb2.LeaseKeepAliveResponse(ID=7, TTL=server.ttl)

    def close(self) -> None:
        self.closed = True


def scenario(test: Callable[[Server], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    def run() -> None:
        async def main() -> None:
            await test(Server())

        virtual.run(main())

    run.__name__ = test.__name__
    return run


def now() -> float:
    return asyncio.get_running_loop().time()


@scenario
async def test_a_lease_is_renewed_at_thirds_and_revoked_at_the_end(server: Server) -> None:
    async with server.lease() as lease:
        assert (lease.id, lease.ttl) == (7, TTL)
        await asyncio.sleep(10)
        lease.check()
        assert server.renewals == [3.0, 6.0, 9.0]
    assert (server.revoked, server.lost) == (1, 0)
    await asyncio.sleep(20)
    assert len(server.renewals) == 3


@scenario
async def test_a_lease_that_is_gone_is_lost_at_once(server: Server) -> None:
    async with server.lease() as lease:
        server.ttl = 0
        await lease.lost.wait()
        assert now() == 3.0
        assert lease.valid_seconds == 0
        with pytest.raises(LeaseLost) as lost:
            lease.check()
        assert lost.value.lease_id == 7
    assert (server.revoked, server.lost) == (0, 1)


@scenario
async def test_without_answers_it_is_lost_when_its_time_is_up(server: Server) -> None:
    async with server.lease() as lease:
        await asyncio.sleep(4)
        server.delay = None
        await lease.lost.wait()
        # The last renewal that was answered was asked for at 3.
        assert now() == pytest.approx(3 + TTL)
        assert len(server.renewals) == 3


@scenario
async def test_its_time_counts_from_the_question_not_from_the_answer(server: Server) -> None:
    server.delay = 2.5
    async with server.lease() as lease:
        assert now() == 2.5
        assert lease.valid_seconds == pytest.approx(TTL - 2.5)
        await asyncio.sleep(4)
        # Asked at 3, answered at 5.5.
        assert lease.valid_seconds == pytest.approx(3 + TTL - 6.5)


@scenario
async def test_check_knows_before_the_task_does(server: Server) -> None:
    async with server.lease() as lease:
        server.delay = None
        await asyncio.sleep(TTL - 0.001)
        lease.check()
        # A process that stood still until long after.
        cast(Any, asyncio.get_running_loop())._virtual.now += 100
        assert not lease.lost.is_set()
        with pytest.raises(LeaseLost):
            lease.check()


@scenario
async def test_a_pause_of_the_network_is_survived(server: Server) -> None:
    async with server.lease() as lease:
        for _ in range(5):
            server.delay = None
            await asyncio.sleep(3.5)
            server.delay = 0.0
            await asyncio.sleep(4)
        lease.check()
    assert not server.lost


@scenario
async def test_following_ends_when_the_lease_does(server: Server) -> None:
    answers = keep_alive_on(server.keep_alive(7), 5.0)
    assert (await anext(answers)).TTL == TTL
    assert (await anext(answers)).TTL == TTL
    assert now() == 3.0
    server.ttl = 0
    assert await anext(answers, None) is None
    assert now() == 6.0


@scenario
async def test_following_ends_when_nobody_answers_in_time(server: Server) -> None:
    answers = keep_alive_on(server.keep_alive(7), 5.0)
    await anext(answers)
    server.delay = None
    assert await anext(answers, None) is None
    assert now() == pytest.approx(TTL, abs=0.2)


@scenario
async def test_following_fails_when_nobody_ever_answers(server: Server) -> None:
    server.delay = None
    with pytest.raises(Unavailable):
        await anext(keep_alive_on(server.keep_alive(7), 5.0))
    assert now() == pytest.approx(5.0, abs=0.2)


@scenario
async def test_renewing_once_tries_until_the_time_is_up(server: Server) -> None:
    server.delay = None
    asyncio.get_running_loop().call_later(4.0, setattr, server, "delay", 0.0)
    assert (await keep_alive_once(server.keep_alive(7), 8.0)).TTL == TTL
    server.ttl = 0
    with pytest.raises(errors.LeaseNotFound) as missing:
        await keep_alive_once(server.keep_alive(7), 8.0)
    assert isinstance(missing.value, Refused)


def test_a_lost_lease_can_be_pickled() -> None:
    again = pickle.loads(pickle.dumps(LeaseLost(7)))
    assert (again.lease_id, str(again)) == (7, "lease 0000000000000007 is lost")


def test_without_endpoints_there_is_no_connection() -> None:
    async def nowhere() -> tuple[str, grpc.aio.Channel]:
        raise NotConnected(Code.UNAVAILABLE, "nobody there")

    async def nobody() -> str:
        raise AssertionError("without a user there is nothing to log in with")

    async def main() -> None:
        with pytest.raises(NotConnected):
            await keep_alive_once(KeepAlive(nowhere, lambda _: None, 7, Login("", nobody)), 5.0)

    virtual.run(main())


@pytest.mark.parametrize(("unanswered", "revoked"), [(3, 1), (10**6, 0)])
def test_a_revocation_is_asked_for_until_it_is_answered_or_no_longer_worth_it(unanswered: int, revoked: int) -> None:
    server = Server()
    server.unanswered = unanswered

    async def main() -> float:
        async with server.lease():
            pass
        return asyncio.get_running_loop().time()

    assert virtual.run(main()) <= REVOKE_SECONDS
    assert server.revoked == revoked
