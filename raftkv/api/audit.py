"""Who did what: every call of the API as a line of the audit log, with its outcome.

A unary call is one line, written when it has ended. A stream is a line when it begins, one for each watcher it asks for
or cancels and for each lease it first renews, and one when it ends.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from itertools import islice
from typing import Any

from google.protobuf.message import Message

from raftkv.api.access import caller
from raftkv.api.naming import Fields, named, named_by, request_type
from raftkv.auditlog import AuditLog
from raftkv.pb import rpc_pb2
from raftkv.rpc import Answer, Context, Framed, Incoming, Kind, Method, close
from raftkv.status import GO_NAMES, Code, StatusError

AUDITED = ("/etcdserverpb.", "/v3lockpb.", "/v3electionpb.")
"""Health checks and reflection touch nothing of anybody's."""
_LEASES_REMEMBERED = 4096
_HEAD_BYTES = 64
"""A header is shorter."""

NOT_WRITTEN = StatusError(Code.UNAVAILABLE, "raftkv: the audit log cannot be written, so nothing is begun")


def audited(path: str, method: Method, log: AuditLog, revision: Callable[[], int]) -> Method:
    """Wrap a method so that its calls are recorded; `revision` is the store's, for streams.

    Raises:
        RuntimeError: how to record a method of this kind is not known; the member must not start.
    """
    if not path.startswith(AUDITED):
        return method
    kind = request_type(path)
    handler = method.handler

    def unary(request: bytes, context: Context) -> Awaitable[Answer]:
        return _unary(_Record(path, log, context), kind, handler, request)

    def server_stream(request: bytes, context: Context) -> AsyncIterator[bytes]:
        record = _Record(path, log, context)
        return _stream(record, named(kind, request), revision(), handler, request)

    def bidi(requests: Incoming, context: Context) -> AsyncIterator[bytes | Framed]:
        record = _Record(path, log, context)
        context.note = _Notes(record, revision)
        return _stream(record, {}, revision(), handler, requests)

    if method.kind is Kind.UNARY:
        return method.served_by(unary)
    if method.kind is Kind.SERVER_STREAM:
        return method.served_by(server_stream)
    if method.kind is Kind.BIDI:
        return method.served_by(bidi)
    raise RuntimeError(f"raftkv.api.audit cannot record {path}, a {method.kind.value} call")


class _Record:
    """The lines of one call."""

    __slots__ = ("_log", "context", "path")

    def __init__(self, path: str, log: AuditLog, context: Context) -> None:
        self.path = path
        self._log = log
        self.context = context

    def begin(self) -> None:
        """Raises: StatusError; no line could be kept."""
        if not self._log.admits():
            raise NOT_WRITTEN

    def add(self, fields: Fields, **more: object) -> None:
        context = self.context
        who: Fields = {"method": self.path, "remote": context.peer}
        if caller(context).user:
            who["user"] = caller(context).user
        if context.certificate_user:
            who["certificate"] = context.certificate_user
        self._log.add({**who, **({"request": fields} if fields else {}), **more})


class _Notes:
    """What a stream is asked while it lasts. A lease is noted when it is first renewed: the rest is a heartbeat."""

    __slots__ = ("_leases", "_record", "_revision")

    def __init__(self, record: _Record, revision: Callable[[], int]) -> None:
        self._record = record
        self._revision = revision
        self._leases: set[int] = set()

    def __call__(self, request: Message, code: Code) -> None:
        """Note one message of the stream and what became of it.

        Raises:
            StatusError: no line could be kept.
        """
        if isinstance(request, rpc_pb2.LeaseKeepAliveRequest) and code is Code.OK:
            if request.ID in self._leases:
                return
            self._record.begin()
            if len(self._leases) < _LEASES_REMEMBERED:
                self._leases.add(request.ID)
        elif code is Code.OK:
            self._record.begin()
        self._record.add(named_by(request), stage="message", revision=self._revision(), code=GO_NAMES[code])


async def _unary(
    record: _Record, kind: type[Message], handler: Callable[[bytes, Context], Awaitable[Any]], request: bytes
) -> Answer:
    record.begin()
    code = Code.INTERNAL
    more: Fields = {}
    try:
        response: Answer = await handler(request, record.context)
        code, more = Code.OK, answered(record.path, response)
        return response
    except BaseException as error:
        code = _code(error, record.context)
        raise
    finally:
        record.add(named(kind, request), code=GO_NAMES[code], **more)


async def _stream(
    record: _Record, fields: Fields, revision: int, handler: Callable[[Any, Context], AsyncIterator[Any]], request: Any
) -> AsyncIterator[Any]:
    record.begin()
    record.add(fields, stage="begin", revision=revision)
    code = Code.INTERNAL
    try:
        responses = handler(request, record.context)
        try:
            async for response in responses:
                yield response
        finally:
            await close(responses)
        code = Code.OK
    except BaseException as error:
        code = _code(error, record.context)
        raise
    finally:
        record.add(fields, stage="end", code=GO_NAMES[code])


def _code(error: BaseException, context: Context) -> Code:
    """How a call ended that this error ended."""
    if isinstance(error, StatusError):
        return error.code
    if not isinstance(error, (asyncio.CancelledError, GeneratorExit)):
        return Code.INTERNAL
    late = context.deadline is not None and asyncio.get_running_loop().time() >= context.deadline
    return Code.DEADLINE_EXCEEDED if late else Code.CANCELED


def answered(path: str, response: Answer) -> Fields:
    """What the first fields of an answer say: the revision; of a transaction which way it went, of a grant its id."""
    pieces = (response,) if isinstance(response, bytes) else islice(response, 2)
    head = b"".join(piece[:_HEAD_BYTES] for piece in pieces)
    if head[:1] != b"\x0a":
        return {}
    end = 2 + head[1]
    told: Fields = {}
    revision = rpc_pb2.ResponseHeader.FromString(head[2:end]).revision
    if revision:
        told["revision"] = revision
    # The second field of both: a truth value, and a number.
    if path == "/etcdserverpb.KV/Txn":
        told["succeeded"] = head[end : end + 2] == b"\x10\x01"
    elif path == "/etcdserverpb.Lease/LeaseGrant":
        told["ID"] = rpc_pb2.LeaseGrantResponse.FromString(head).ID
    return told
