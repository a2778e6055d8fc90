"""What holds for every call before its handler runs: who calls, and the caller's demand for a leader."""

from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from raftkv import errors
from raftkv.api.access import RULES, Rule, authorised, authorised_stream
from raftkv.api.slices import LARGE_KEYS
from raftkv.pb import rpc_pb2
from raftkv.rpc import Answer, Context, Framed, Incoming, Kind, Method
from raftkv.server.server import Server


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds on one request: etcd's flags and defaults, and how many keys it may read in one turn of the loop."""

    max_request_bytes: int = 1_572_864
    max_txn_ops: int = 128
    large_keys: int = LARGE_KEYS


def wants_leader(context: Context) -> bool:
    """Whether the caller would rather have an error than a member without a leader."""
    return context.metadata.get("hasleader") == "true"


def require_leader(server: Server, context: Context) -> None:
    """Refuse a caller that asks for a leader (`hasleader: true`) while this member knows none.

    Raises:
        NoLeader: no leader is known.
    """
    if not server.node.leader and wants_leader(context):
        raise errors.NoLeader


def end_without_leader(server: Server, context: Context) -> None:
    """Let a streaming call end with `NoLeader` when this member loses its leader, if the caller asks for that."""
    if context.interrupt is not None and wants_leader(context):
        context.interrupt.join(server.leader_calls)


_OF_LEARNERS = ("/etcdserverpb.Maintenance/Status", "/etcdserverpb.Maintenance/Snapshot")


def refuse_of_learner(path: str, request: bytes = b"") -> None:
    """Refuse what a learner does not serve: all but its status, its store and serializable ranges.

    Raises:
        NotSupportedForLearner
    """
    if path in _OF_LEARNERS:
        return
    try:
        served = path == "/etcdserverpb.KV/Range" and rpc_pb2.RangeRequest.FromString(request).serializable
    except DecodeError:
        served = False
    if not served:
        raise errors.NotSupportedForLearner


def guarded(server: Server, path: str, method: Method) -> Method:
    """Wrap a method so that the checks common to all calls run first.

    Raises:
        RuntimeError: there are no checks for a method of this kind with its rule; the member must not start.
    """
    handler = method.handler
    node, standing = server.node, server.standing
    auth = server.auth
    rule = RULES[path]
    # Each request of these streams is looked at by itself.
    restricted = rule not in (Rule.OPEN, Rule.EACH)

    def unary(request: bytes, context: Context) -> Awaitable[Answer]:
        # Not a coroutine of its own: it would be one more frame to wake for every call.
        if standing.learner:
            refuse_of_learner(path, request)
        if not node.leader:
            require_leader(server, context)
        if auth.enabled and restricted:
            return authorised(server, rule, handler, request, context)
        response: Awaitable[Answer] = handler(request, context)
        return response

    def bidi(requests: Incoming, context: Context) -> AsyncIterator[bytes | Framed]:
        if standing.learner:
            refuse_of_learner(path)
        require_leader(server, context)
        end_without_leader(server, context)
        responses: AsyncIterator[bytes | Framed] = handler(requests, context)
        return responses

    def stream(request: bytes, context: Context) -> AsyncIterator[bytes]:
        if standing.learner:
            refuse_of_learner(path)
        require_leader(server, context)
        if auth.enabled and restricted:
            return authorised_stream(server, rule, handler, request, context)
        responses: AsyncIterator[bytes] = handler(request, context)
        return responses

    if method.kind is Kind.BIDI and not restricted:
        return method.served_by(bidi)
    if method.kind is Kind.UNARY and rule is not Rule.EACH:
        return method.served_by(unary)
    if method.kind is Kind.SERVER_STREAM and rule is not Rule.EACH:
        return method.served_by(stream)
    raise RuntimeError(f"raftkv.api.guard cannot check {path}, a {method.kind.value} call with the rule {rule.name}")
