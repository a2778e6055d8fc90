"""The service that the transport tests call: a handler of every kind, and what they saw."""

import asyncio
from collections.abc import AsyncIterator, Awaitable

from raftkv.rpc import App, Context, Later, Method, Requests
from raftkv.status import Code, StatusError

LIMIT = 1 << 20


class Service:
    """Handlers. `entered` is set when one that waits began, `cancelled` when one was ended from outside."""

    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.release = asyncio.Event()
        self.calls = 0
        self.address = ""
        self.context: Context | None = None
        self.promised: asyncio.Future[bytes] | None = None
        self.tasks: list[bool] = []
        """Of each call that got a promise: whether a task ran its handler."""

    async def echo(self, request: bytes, context: Context) -> bytes | list[bytes]:
        self.calls += 1
        self.context = context
        match request:
            case b"refuse":
                raise StatusError(Code.NOT_FOUND, "nothing: 100 % nö\n")
            case b"bug":
                raise ZeroDivisionError
            case b"late":
                raise TimeoutError
            case b"large":
                return b"x" * (LIMIT + 1)
            case b"wait":
                await self._wait()
        return [request[:1], request[1:]]

    async def _wait(self) -> None:
        self.entered.set()
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    def promise(self, request: bytes, context: Context) -> Awaitable[bytes] | Later:
        """Answer with a future, or with what is made of one, as handlers do that wait for the log."""
        self.tasks.append(asyncio.current_task() is not None)
        if request == b"raise":
            raise StatusError(Code.NOT_FOUND, "at once")
        loop = asyncio.get_running_loop()
        self.promised = loop.create_future()
        self.promised.add_done_callback(lambda promised: promised.cancelled() and self.cancelled.set())
        self.entered.set()
        match request:
            case b"oops":
                return b"no promise at all"  # type: ignore[return-value]
            case b"now":
                self.promised.set_result(b"now")
            case b"soon":
                loop.call_soon(self.promised.set_result, b"soon")
            case b"refuse":
                loop.call_soon(self.promised.set_exception, StatusError(Code.OUT_OF_RANGE, "later"))
            case b"made" | b"bug":
                done: asyncio.Future[None] = loop.create_future()
                loop.call_soon(done.set_result, None)
                return Later(done, lambda: [b"ma", b"de"] if request == b"made" else [b"%d" % (1 // 0)])
        return self.promised

    async def blob(self, request: bytes, context: Context) -> bytes:
        return b"x" * int(request)

    async def count(self, request: bytes, context: Context) -> AsyncIterator[bytes]:
        for number in range(int(request)):
            yield b"%d" % number
        if request == b"3":
            raise StatusError(Code.OUT_OF_RANGE, "no more")
        if request == b"4":
            raise ZeroDivisionError

    async def hold(self, requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
        await self._wait()
        yield await self.total(requests, context)

    async def total(self, requests: AsyncIterator[bytes], context: Context) -> bytes:
        return b"%d" % sum([len(request) async for request in requests])

    async def lengths(self, requests: Requests, context: Context) -> bytes:
        taken: list[bytes] = []

        def take(request: bytes) -> None:
            if request == b"refuse":
                raise StatusError(Code.NOT_FOUND, "nothing")
            taken.append(b"%d" % len(request))

        for _ in range(20):
            await asyncio.sleep(0)  # messages that come before it asks are kept
        await requests.each(take)
        return b" ".join(taken)

    async def talk(self, requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
        self.calls += 1
        try:
            async for request in requests:
                if request == b"large":
                    yield b"x" * (LIMIT + 1)
                yield request + b"!"
            yield b"bye"
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    async def forever(self, request: bytes, context: Context) -> AsyncIterator[bytes]:
        yield b"begin"
        await self._wait()

    def app(self, **options: object) -> App:
        methods = {
            "/test.Service/Echo": Method.unary(self.echo),
            "/test.Service/Promise": Method.unary(self.promise),
            "/test.Service/Blob": Method.unary(self.blob),
            "/test.Service/Count": Method.server_stream(self.count),
            "/test.Service/Total": Method.client_stream(self.total),
            "/test.Service/Lengths": Method.client_stream(self.lengths),
            "/test.Service/Talk": Method.bidi(self.talk),
            "/test.Service/Hold": Method.bidi(self.hold),
            "/test.Service/Forever": Method.server_stream(self.forever),
        }
        limits = {"max_receive_bytes": LIMIT, "max_send_bytes": LIMIT, **options}
        return App(methods, **limits)  # type: ignore[arg-type]
