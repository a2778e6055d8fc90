"""Who a call is counted for."""

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import cast

import pytest

from raftkv import errors
from raftkv.api.limits import limited
from raftkv.auth import Caller
from raftkv.rates import Rates, parse_rate
from raftkv.rpc import Context, Method
from raftkv.server.server import Server
from raftkv.status import Code, StatusError

PUT = "/etcdserverpb.KV/Put"


async def handler(request: bytes, context: Context) -> bytes:
    return b"done"


def context(address: str, *, user: str = "", certificate: str = "") -> Context:
    made = Context([], (address, 5), None, certificate)
    made.caller = Caller(user, 1) if user else None
    return made


def test_a_caller_is_its_user_or_else_its_certificate_or_else_its_address() -> None:
    rates = Rates([parse_rate("*=1e-6:1")], lambda: 0.0)
    method = limited(cast(Server, None), PUT, Method.unary(handler), rates)

    async def call(context: Context) -> bool:
        try:
            return bool(await method.handler(b"", context) == b"done")
        except StatusError as error:
            assert error.code is Code.RESOURCE_EXHAUSTED
            return False

    async def scenario() -> None:
        for first, second in (
            (context("10.0.0.1", user="ann"), context("10.0.0.2", user="ann", certificate="x")),
            (context("10.0.0.1", certificate="bob"), context("10.0.0.3", certificate="bob")),
            (context("10.0.0.1"), context("10.0.0.1")),
            (context("::1"), context("::1")),
            (context("10.0.0.4"), Context([], ("10.0.0.4", 6), None, "")),
        ):
            assert await call(first)
            assert not await call(second)
        assert await call(context("10.0.0.2"))

    asyncio.run(scenario())


def test_a_method_without_a_rule_stays_as_it_is() -> None:
    method = Method.unary(handler)
    for path, rule in ((PUT, "*/Range=1"), ("/etcdserverpb.Lease/LeaseRevoke", "*=1")):
        rates = Rates([parse_rate(rule)], lambda: 0.0, ("LeaseRevoke",))
        assert limited(cast(Server, None), path, method, rates) is method


def test_a_stream_of_answers_counts_once() -> None:
    async def answers(request: bytes, context: Context) -> AsyncIterator[bytes]:
        yield b"1"
        yield b"2"

    rates = Rates([parse_rate("*=1e-6:1")], lambda: 0.0)
    method = limited(cast(Server, None), "/etcdserverpb.KV/RangeStream", Method.server_stream(answers), rates)

    async def scenario() -> None:
        assert [one async for one in method.handler(b"", context("h"))] == [b"1", b"2"]
        with pytest.raises(StatusError):
            method.handler(b"", context("h"))

    asyncio.run(scenario())


@pytest.mark.parametrize("known", [True, False])
def test_each_request_of_a_stream_counts_for_who_calls_or_for_its_address(known: bool) -> None:
    """Who cannot be found out is refused by the handler, and counts meanwhile as its machine."""

    class Authority:
        async def identify(self, metadata: object, certificate_user: str) -> Caller:
            if not known:
                raise errors.InvalidAuthToken
            return Caller("ann", 1)

    async def each(requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
        async for request in requests:
            yield request

    async def requests() -> AsyncIterator[bytes]:
        for _ in range(5):
            yield b"x"

    async def scenario() -> None:
        server = SimpleNamespace(auth=SimpleNamespace(enabled=True), authority=Authority())
        rates = Rates([parse_rate("*=1e-6:2")], lambda: 0.0)
        method = limited(cast(Server, server), "/etcdserverpb.Watch/Watch", Method.bidi(each), rates)
        answers = method.handler(requests(), context("10.0.0.1"))
        assert [await anext(answers), await anext(answers)] == [b"x", b"x"]
        with pytest.raises(StatusError, match="of ann are" if known else "of 10.0.0.1 are"):
            await anext(answers)

    asyncio.run(scenario())


def test_a_kind_that_cannot_be_counted_keeps_the_member_from_starting() -> None:
    rates = Rates([parse_rate("*=1")], lambda: 0.0)
    with pytest.raises(RuntimeError, match="cannot count"):
        limited(cast(Server, None), PUT, Method.client_stream(handler), rates)
