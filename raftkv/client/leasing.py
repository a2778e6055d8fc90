"""Leases that a program keeps alive, and how it learns that one is lost.

What a client may believe of a lease: it exists until its time to live has passed since the last renewal that succeeded
was *asked for*. An answer may have been on its way for long, so its arrival proves nothing about later. `Validity` is
that rule, without I/O; behind it the lease is lost, whatever the server knows.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import grpc
import grpc.aio

from raftkv import errors
from raftkv.client.errors import ClientError, NotConnected, OutcomeUnknown, Unavailable, classify
from raftkv.client.login import RENEWALS, Login, metadata
from raftkv.client.requests import LEADER_METADATA
from raftkv.pb import rpc_pb2
from raftkv.status import Code

KEEP_ALIVE_PATH = "/etcdserverpb.Lease/LeaseKeepAlive"
PAUSE_SECONDS = 0.1
"""Before a renewal that failed is tried again, elsewhere if there is an elsewhere."""
LONGEST_ATTEMPT_SECONDS = 3.0
REVOKE_SECONDS = 5.0
"""Behind which a revocation that was not answered is not asked for again."""

Connect = Callable[[], Awaitable[tuple[str, grpc.aio.Channel]]]
_Call = grpc.aio.StreamStreamCall[rpc_pb2.LeaseKeepAliveRequest, rpc_pb2.LeaseKeepAliveResponse]


class LeaseLost(ClientError):
    """The lease has expired, was revoked, or could not be renewed in time: what hung on it is gone or soon will be."""

    def __init__(self, lease_id: int) -> None:
        super().__init__(Code.NOT_FOUND, f"lease {lease_id:016x} is lost")
        self.lease_id = lease_id

    def __reduce__(self) -> tuple[object, ...]:
        return LeaseLost, (self.lease_id,)


class KeepAlive:
    """Renewals of one lease over one stream, opened anew when it breaks. One task at a time."""

    def __init__(self, connect: Connect, leave: Callable[[str], None], lease_id: int, login: Login) -> None:
        """`connect` finds an endpoint and a ready channel, `leave` hears of one that failed."""
        self._connect = connect
        self._leave = leave
        self._request = rpc_pb2.LeaseKeepAliveRequest(ID=lease_id)
        self._login = login
        self._token = ""
        self._call: _Call | None = None
        self._target = ""

    async def renew(self, seconds: float) -> rpc_pb2.LeaseKeepAliveResponse:
        """Renew once, at one endpoint; a TTL of 0 in the answer says that there is no such lease.

        Raises:
            NotConnected, Unavailable: no answer within `seconds`; the next attempt goes to another endpoint.
            Refused: the server does not let us.
        """
        try:
            async with asyncio.timeout(seconds):
                return await self._renew_logged_in()
        except grpc.aio.AioRpcError as error:
            self._break()
            raise _classified(error) from error
        except (TimeoutError, asyncio.InvalidStateError) as error:
            self._break()
            raise Unavailable(Code.DEADLINE_EXCEEDED, "a lease was not renewed in time") from error
        except BaseException:
            self._drop()
            raise

    async def _renew_logged_in(self) -> rpc_pb2.LeaseKeepAliveResponse:
        for _ in range(RENEWALS):
            try:
                return await self._renew()
            except grpc.aio.AioRpcError as error:
                if not self._login.forget(self._token, _classified(error)):
                    raise
                self._drop()
        return await self._renew()

    async def _renew(self) -> rpc_pb2.LeaseKeepAliveResponse:
        call = self._call or await self._open()
        await call.write(self._request)
        answer = await call.read()
        if not isinstance(answer, rpc_pb2.LeaseKeepAliveResponse):
            self._break()
            raise Unavailable(Code.UNAVAILABLE, "the server ended the stream")
        return answer

    async def _open(self) -> _Call:
        self._token = await self._login.token()
        self._target, channel = await self._connect()
        method = channel.stream_stream(
            KEEP_ALIVE_PATH,
            request_serializer=rpc_pb2.LeaseKeepAliveRequest.SerializeToString,
            response_deserializer=rpc_pb2.LeaseKeepAliveResponse.FromString,
        )
        self._call = method(None, metadata=(*LEADER_METADATA, *metadata(self._token)))
        return self._call

    def _break(self) -> None:
        self._drop()
        self._leave(self._target)

    def _drop(self) -> None:
        if self._call is not None:
            self._call.cancel()
            self._call = None

    def close(self) -> None:
        """End the stream; the lease lives on until its time is up."""
        self._drop()


def _classified(error: grpc.aio.AioRpcError) -> ClientError:
    return classify(Code(error.code().value[0]), error.details() or "", read=True)


class Validity:
    """Until when a lease may be relied on, in seconds of a monotonic clock.

    >>> validity = Validity(asked=100.0, ttl=9)
    >>> validity.until, validity.next_renewal
    (109.0, 103.0)
    >>> validity.renewed(asked=103.0, ttl=9), validity.until
    (True, 112.0)
    >>> validity.renewed(asked=106.0, ttl=0)
    False
    """

    def __init__(self, *, asked: float, ttl: int) -> None:
        self.until = asked + ttl
        self.next_renewal = asked + ttl / 3

    def renewed(self, *, asked: float, ttl: int) -> bool:
        """Take the answer to a renewal that was asked for then; False: the lease is gone."""
        if ttl <= 0:
            return False
        self.until = max(self.until, asked + ttl)
        self.next_renewal = asked + ttl / 3
        return True


class AsyncLease:
    """A lease, made on entering the context, kept alive inside it and revoked on leaving it.

    A third of its time after each renewal it is renewed again, at whatever endpoint answers. When it is lost, `lost`
    is set, `on_lost` is called once, and `check` raises.
    """

    def __init__(
        self,
        grant: Callable[[int], Awaitable[rpc_pb2.LeaseGrantResponse]],
        revoke: Callable[[int], Awaitable[object]],
        keep_alive: Callable[[int], KeepAlive],
        ttl: int,
        on_lost: Callable[["AsyncLease"], None] | None,
    ) -> None:
        self._grant = grant
        self._revoke = revoke
        self._keep_alive = keep_alive
        self._on_lost = on_lost
        self._wanted = ttl
        self.id = 0
        """The lease's id, once the context is entered."""
        self.ttl = 0
        """Seconds the server granted; it may be more than was asked for."""
        self.lost = asyncio.Event()
        self._validity = Validity(asked=0.0, ttl=0)
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "AsyncLease":
        """Raises: what a write raises; OutcomeUnknown: a lease that nobody renews may exist until its time is up."""
        loop = asyncio.get_running_loop()
        asked = loop.time()
        granted = await self._grant(self._wanted)
        self.id, self.ttl = granted.ID, granted.TTL
        self._validity = Validity(asked=asked, ttl=self.ttl)
        self._task = loop.create_task(self._keep())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if not self.lost.is_set():
            await self._end()

    async def _end(self) -> None:
        """Revoke it, asking again for a while: others may wait for its keys to go. Its own end comes anyway."""
        loop = asyncio.get_running_loop()
        until = min(self._validity.until, loop.time() + REVOKE_SECONDS)
        with contextlib.suppress(ClientError, errors.EtcdError):
            while True:
                try:
                    await self._revoke(self.id)
                    return
                except (Unavailable, OutcomeUnknown, errors.NoLeader):
                    if loop.time() + PAUSE_SECONDS >= until:
                        raise
                await asyncio.sleep(PAUSE_SECONDS)

    @property
    def valid_seconds(self) -> float:
        """How much longer the lease can be relied on without another renewal; 0 when it is lost."""
        if self.lost.is_set():
            return 0.0
        return max(0.0, self._validity.until - asyncio.get_running_loop().time())

    def check(self) -> None:
        """Raises: LeaseLost; also when its time is up and nobody has noticed yet."""
        if not self.valid_seconds:
            raise LeaseLost(self.id)

    async def _keep(self) -> None:
        loop = asyncio.get_running_loop()
        keep_alive = self._keep_alive(self.id)
        try:
            async with asyncio.timeout_at(self._validity.until) as limit:
                while True:
                    await asyncio.sleep(self._validity.next_renewal - loop.time())
                    asked = loop.time()
                    answer = await self._try(keep_alive)
                    if answer is None:
                        await asyncio.sleep(PAUSE_SECONDS)
                    elif not self._validity.renewed(asked=asked, ttl=answer.TTL):
                        break
                    limit.reschedule(self._validity.until)
        except TimeoutError:
            pass
        finally:
            keep_alive.close()
        self.lost.set()
        if self._on_lost is not None:
            self._on_lost(self)

    async def _try(self, keep_alive: KeepAlive) -> rpc_pb2.LeaseKeepAliveResponse | None:
        try:
            return await keep_alive.renew(min(LONGEST_ATTEMPT_SECONDS, max(1.0, self.ttl / 3)))
        except ClientError:
            return None


async def _renew_until(keep_alive: KeepAlive, deadline: float) -> rpc_pb2.LeaseKeepAliveResponse:
    loop = asyncio.get_running_loop()
    while True:
        try:
            return await keep_alive.renew(min(deadline - loop.time(), LONGEST_ATTEMPT_SECONDS))
        except Unavailable as error:
            if isinstance(error, NotConnected) or loop.time() + PAUSE_SECONDS >= deadline:
                raise
            await asyncio.sleep(PAUSE_SECONDS)


async def keep_alive_once(keep_alive: KeepAlive, timeout: float) -> rpc_pb2.LeaseKeepAliveResponse:
    """Renew a lease once, at whatever endpoint answers within `timeout` seconds.

    Raises:
        NotConnected, Unavailable, Refused
        LeaseNotFound: there is no such lease (also an instance of Refused).
    """
    try:
        answer = await _renew_until(keep_alive, asyncio.get_running_loop().time() + timeout)
    finally:
        keep_alive.close()
    if answer.TTL <= 0:
        raise classify(errors.LeaseNotFound.CODE, errors.LeaseNotFound.TEXT, read=True)
    return answer


async def keep_alive_on(keep_alive: KeepAlive, timeout: float) -> AsyncIterator[rpc_pb2.LeaseKeepAliveResponse]:
    """Renew a lease at a third of its time after each renewal; ends when it is gone, or its time is up.

    Raises:
        NotConnected, Unavailable, Refused: of the first renewal, within `timeout` seconds.
    """
    loop = asyncio.get_running_loop()
    try:
        asked = loop.time()
        answer = await _renew_until(keep_alive, asked + timeout)
        validity = Validity(asked=asked, ttl=answer.TTL)
        while validity.renewed(asked=asked, ttl=answer.TTL):
            yield answer
            await asyncio.sleep(validity.next_renewal - loop.time())
            again: rpc_pb2.LeaseKeepAliveResponse | None = None
            while again is None:
                asked = loop.time()
                if asked >= validity.until:
                    return
                try:
                    again = await keep_alive.renew(min(LONGEST_ATTEMPT_SECONDS, validity.until - asked))
                except ClientError:
                    await asyncio.sleep(PAUSE_SECONDS)
            answer = again
    finally:
        keep_alive.close()
