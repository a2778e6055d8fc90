"""Who may call what, once callers must say who they are: the rule of every RPC, in one table.

What is not in it is refused: a member whose RPC has no rule does not start. Where a right depends on keys, the rule is
applied at the moment in which the request takes effect, by the handler that reads or by the log (`raftkv.auth.rules`),
for what holds when a call begins may not hold any more when its turn comes.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from enum import Enum
from typing import Any

from raftkv import errors
from raftkv.auth import Caller
from raftkv.auth.caller import NOBODY
from raftkv.rpc import Answer, Context, close
from raftkv.server.proposals import Operation
from raftkv.server.server import Server


class Rule(Enum):
    """What a caller needs."""

    OPEN = "nothing"
    USER = "to be a user"
    RANGES = "the right to read or write all keys that the request touches, where it takes effect"
    EACH = "as RANGES, asked anew for each request of the stream"
    ROOT = "the role root"
    ROOT_APPLIED = "the role root, when the log applies it"
    ROOT_TO_CHANGE = "as ROOT_APPLIED, but to be a user for what changes nothing"
    OWN = "the role root, or to ask about oneself"


def _of(service: str, **rules: Rule) -> dict[str, Rule]:
    return {f"/{service}/{name}": rule for name, rule in rules.items()}


RULES: dict[str, Rule] = {
    **_of(
        "etcdserverpb.KV",
        Range=Rule.RANGES,
        RangeStream=Rule.RANGES,
        Put=Rule.RANGES,
        DeleteRange=Rule.RANGES,
        Txn=Rule.RANGES,
        Compact=Rule.ROOT_APPLIED,
    ),
    **_of("etcdserverpb.Watch", Watch=Rule.EACH),
    **_of(
        "etcdserverpb.Lease",
        LeaseGrant=Rule.USER,
        LeaseRevoke=Rule.RANGES,
        LeaseKeepAlive=Rule.EACH,
        LeaseTimeToLive=Rule.RANGES,
        LeaseLeases=Rule.RANGES,
    ),
    **_of(
        "etcdserverpb.Cluster",
        MemberList=Rule.USER,
        MemberAdd=Rule.ROOT,
        MemberRemove=Rule.ROOT,
        MemberUpdate=Rule.ROOT,
        MemberPromote=Rule.ROOT,
    ),
    **_of(
        "etcdserverpb.Maintenance",
        Alarm=Rule.ROOT_TO_CHANGE,
        Status=Rule.USER,
        Defragment=Rule.ROOT,
        Downgrade=Rule.ROOT,
        Hash=Rule.ROOT,
        HashKV=Rule.ROOT,
        Snapshot=Rule.ROOT,
        MoveLeader=Rule.ROOT,
    ),
    **_of(
        "etcdserverpb.Auth",
        Authenticate=Rule.OPEN,
        AuthEnable=Rule.ROOT_APPLIED,
        AuthDisable=Rule.ROOT_APPLIED,
        # Who does not know whether to log in asks this first.
        AuthStatus=Rule.OPEN,
        UserAdd=Rule.ROOT_APPLIED,
        UserGet=Rule.OWN,
        UserList=Rule.ROOT,
        UserDelete=Rule.ROOT_APPLIED,
        UserChangePassword=Rule.ROOT_APPLIED,
        UserGrantRole=Rule.ROOT_APPLIED,
        UserRevokeRole=Rule.ROOT_APPLIED,
        RoleAdd=Rule.ROOT_APPLIED,
        RoleGet=Rule.OWN,
        RoleList=Rule.ROOT,
        RoleDelete=Rule.ROOT_APPLIED,
        RoleGrantPermission=Rule.ROOT_APPLIED,
        RoleRevokePermission=Rule.ROOT_APPLIED,
    ),
    **_of("v3lockpb.Lock", Lock=Rule.RANGES, Unlock=Rule.RANGES),
    **_of(
        "v3electionpb.Election",
        Campaign=Rule.RANGES,
        Proclaim=Rule.RANGES,
        Leader=Rule.RANGES,
        Observe=Rule.RANGES,
        Resign=Rule.RANGES,
    ),
    # What a load balancer asks, and what the .proto files say anyway.
    **_of("grpc.health.v1.Health", Check=Rule.OPEN, Watch=Rule.OPEN, List=Rule.OPEN),
    **_of("grpc.reflection.v1.ServerReflection", ServerReflectionInfo=Rule.OPEN),
    **_of("grpc.reflection.v1alpha.ServerReflection", ServerReflectionInfo=Rule.OPEN),
}


def check_rules(paths: Iterable[str]) -> None:
    """See that every RPC has its rule.

    Raises:
        RuntimeError: one has not; the member must not start.
    """
    missing = sorted(set(paths) - RULES.keys())
    if missing:
        raise RuntimeError(f"raftkv.api.access has no rule that says who may call {', '.join(missing)}")


def caller(context: Context) -> Caller:
    """Who calls, as far as that was found out."""
    found: Caller | None = context.caller
    return NOBODY if found is None else found


async def authorised(
    server: Server,
    rule: Rule,
    handler: Callable[[bytes, Context], Awaitable[Answer]],
    request: bytes,
    context: Context,
) -> Answer:
    """Run a unary handler for a caller who is found out first.

    What was refused because users or roles had changed meanwhile had no effect, and is asked again.
    """
    await admit(server, rule, context)
    while True:
        try:
            return await handler(request, context)
        except errors.AuthOldRevision:
            await identify_again(server, context)


async def authorised_stream(
    server: Server,
    rule: Rule,
    handler: Callable[[Any, Context], AsyncIterator[bytes]],
    request: bytes,
    context: Context,
) -> AsyncIterator[bytes]:
    """The same for a handler whose answers stream; it is not run twice."""
    await admit(server, rule, context)
    responses = handler(request, context)
    try:
        async for response in responses:
            yield response
    finally:
        await close(responses)


async def admit(server: Server, rule: Rule, context: Context) -> None:
    """Find out who calls, and refuse at once whom this member can tell to be refused.

    Raises:
        InvalidAuthToken, UserEmpty, AuthOldRevision, PermissionDenied
    """
    context.caller = await server.authority.identify(context.metadata, context.certificate_user)
    if not server.auth.enabled:
        return
    if rule is Rule.ROOT:
        server.auth.check_root(caller(context))
    elif not caller(context).user:
        raise errors.UserEmpty
    elif rule is Rule.USER:
        await check_user(server, caller(context))


async def check_user(server: Server, who: Caller) -> None:
    """See that a caller is a user still: tokens that are signed, and certificates, outlive those whom they name.

    Raises:
        UserEmpty, AuthOldRevision, PermissionDenied
    """
    try:
        server.auth.check_user(who)
    except errors.PermissionDenied:
        # This member may not have heard of the user yet.
        await server.linearizable()
        server.auth.check_user(who)


async def identify_again(server: Server, context: Context) -> None:
    """Find out anew who calls, for what was found is void.

    Raises:
        AuthOldRevision: the token itself says an old revision.
        InvalidAuthToken
    """
    before = caller(context)
    context.caller = await server.authority.identify(context.metadata, context.certificate_user)
    if caller(context).revision <= before.revision:
        raise errors.AuthOldRevision


async def propose(server: Server, operation: Operation, request: bytes, context: Context) -> list[bytes]:
    """Propose for a call that waits for more than that; again if users or roles have changed meanwhile."""
    while True:
        try:
            return await server.propose(operation, request, context.caller)
        except errors.AuthOldRevision:
            await identify_again(server, context)
