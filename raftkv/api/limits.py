"""Calls that are one too many are refused: `--rate-limit`."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Self

from raftkv import errors
from raftkv.api.access import RULES, caller
from raftkv.rates import EVERY, Exceeded, Rate, Rates
from raftkv.rpc import Answer, Context, Framed, Incoming, Kind, Method, close
from raftkv.server.server import Server
from raftkv.status import Code, StatusError

APART = ("LeaseKeepAlive", "LeaseRevoke")
"""Not counted among all methods: who lets them wait loses leases."""

URGENT = (
    "/etcdserverpb.Lease/LeaseKeepAlive",
    "/etcdserverpb.Lease/LeaseRevoke",
    "/grpc.health.v1.Health/Check",
)
"""Begun even while too much is in flight: they are small, and what they are for must not be lost."""


def check_rates(rates: Iterable[Rate]) -> None:
    """See that every rule is about a method that there is.

    Raises:
        ValueError: one is not.
    """
    known = {path.rpartition("/")[2] for path in RULES}
    for rate in rates:
        if rate.method not in known and rate.method != EVERY:
            raise ValueError(f"there is no method {rate.method}; methods are named as in the API: Put, Range, Txn, …")


def limited(server: Server, path: str, method: Method, rates: Rates) -> Method:
    """Wrap a method so that its calls are counted; who calls must have been found out, where users matter.

    Of a call whose requests stream each request counts, and not its beginning.
    """
    name = path.rpartition("/")[2]
    if not rates.matter(name):
        return method
    handler = method.handler

    def unary(request: bytes, context: Context) -> Awaitable[Answer]:
        count(rates, name, context)
        response: Awaitable[Answer] = handler(request, context)
        return response

    def stream(request: bytes, context: Context) -> AsyncIterator[bytes]:
        count(rates, name, context)
        responses: AsyncIterator[bytes] = handler(request, context)
        return responses

    async def bidi(requests: Incoming, context: Context) -> AsyncIterator[bytes | Framed]:
        await _identify(server, context)
        counted = _Counted(requests, lambda: count(rates, name, context))
        responses = handler(counted, context)
        try:
            async for response in responses:
                yield response
        finally:
            await close(responses)

    if method.kind is Kind.UNARY:
        return method.served_by(unary)
    if method.kind is Kind.SERVER_STREAM:
        return method.served_by(stream)
    if method.kind is Kind.BIDI:
        return method.served_by(bidi)
    raise RuntimeError(f"raftkv.api.limits cannot count {path}, a {method.kind.value} call")


def count(rates: Rates, method: str, context: Context) -> None:
    """Count a call of whoever makes it.

    Raises:
        StatusError: RESOURCE_EXHAUSTED, it is one too many.
    """
    user = caller(context).user or context.certificate_user
    # Callers without a name are told apart by their machines.
    who = user or context.peer.rpartition(":")[0]
    try:
        rates.take(user, who, method)
    except Exceeded as error:
        rate = error.rate
        what = "calls" if rate.method == EVERY else f"calls of {rate.method}"
        text = f"raftkv: rate limit exceeded: {what} of {who} are limited to {rate.per_second:g} a second"
        raise StatusError(Code.RESOURCE_EXHAUSTED, f"{text}; try again in {error.seconds:.3f}s") from None


async def _identify(server: Server, context: Context) -> None:
    """Find out who calls where each request is looked at by itself later; who is nobody is refused then."""
    if server.auth.enabled:
        try:
            context.caller = await server.authority.identify(context.metadata, context.certificate_user)
        except errors.EtcdError:
            context.caller = None


class _Counted:
    """The requests of a call, each of which counts."""

    def __init__(self, requests: Incoming, taken: Callable[[], None]) -> None:
        self._requests = requests
        self._taken = taken

    def more(self) -> bool:
        return self._requests.more()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        request = await anext(self._requests)
        self._taken()
        return request
