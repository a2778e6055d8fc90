"""What calls leave in the audit log, however they end."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, cast

import pytest

from raftkv.api import audit
from raftkv.api.audit import NOT_WRITTEN, audited
from raftkv.auditlog import AuditLog
from raftkv.pb import rpc_pb2 as pb
from raftkv.rpc import Context, Method
from raftkv.status import Code, StatusError

PUT, WATCH, RANGES = "/etcdserverpb.KV/Put", "/etcdserverpb.Watch/Watch", "/etcdserverpb.KV/RangeStream"


class Log:
    """Keeps what is recorded; `writable` says whether more may begin."""

    def __init__(self) -> None:
        self.writable = True
        self.told: list[dict[str, Any]] = []

    def admits(self) -> bool:
        return self.writable

    def add(self, record: dict[str, Any]) -> None:
        self.told.append(record)

    def said(self, *fields: str) -> list[tuple[Any, ...]]:
        return [tuple(line.get(field) for field in fields) for line in self.told]


class Call:
    """A call under way: says whether it was closed."""

    def __init__(self, problem: BaseException | None = None) -> None:
        self.problem = problem
        self.begun = 0
        self.closed = 0

    async def unary(self, request: bytes, context: Context) -> bytes:
        self.begun += 1
        if self.problem is not None:
            raise self.problem
        return b""

    async def stream(self, request: Any, context: Context) -> AsyncIterator[bytes]:
        self.begun += 1
        try:
            yield b"1"
            if self.problem is not None:
                raise self.problem
            yield b"2"
        finally:
            self.closed += 1


def context(deadline: float | None = None) -> Context:
    return Context([], ("10.0.0.1", 5), deadline)


def wrapped(path: str, method: Method, log: Log) -> Callable[..., Any]:
    return audited(path, method, cast(AuditLog, log), lambda: 7).handler


@pytest.mark.parametrize(
    ("problem", "late", "code"),
    [
        (None, False, "OK"),
        (StatusError(Code.PERMISSION_DENIED, "no"), False, "PermissionDenied"),
        (RuntimeError("a bug"), False, "Internal"),
        (asyncio.CancelledError(), False, "Canceled"),
        (asyncio.CancelledError(), True, "DeadlineExceeded"),
    ],
)
@pytest.mark.parametrize("kind", ["unary", "server stream", "bidi"])
def test_how_a_call_ends_is_recorded(kind: str, problem: BaseException | None, late: bool, code: str) -> None:
    async def scenario() -> None:
        log, call = Log(), Call(problem)
        now = asyncio.get_running_loop().time()
        where = context(now - 1 if late else now + 1000)
        try:
            if kind == "unary":
                await wrapped(PUT, Method.unary(call.unary), log)(b"", where)
            else:
                make, path = (Method.bidi, WATCH) if kind == "bidi" else (Method.server_stream, RANGES)
                assert [one async for one in wrapped(path, make(call.stream), log)(b"", where)] == [b"1", b"2"]
        except BaseException as error:
            assert error is problem
        else:
            assert problem is None
        if kind == "unary":
            assert log.said("code") == [(code,)]
        else:
            assert log.said("stage", "code") == [("begin", None), ("end", code)]
            assert call.closed == 1

    asyncio.run(scenario())


def test_a_client_that_leaves_a_stream_ends_it_with_a_line() -> None:
    async def scenario() -> None:
        log, call = Log(), Call()
        answers = wrapped(RANGES, Method.server_stream(call.stream), log)(b"", context())
        assert await anext(answers) == b"1"
        with pytest.raises(asyncio.CancelledError):
            await answers.athrow(asyncio.CancelledError())
        assert call.closed == 1, "at once, and not when somebody collects it"
        assert log.said("stage", "code") == [("begin", None), ("end", "Canceled")]

    asyncio.run(scenario())


def test_a_kind_that_cannot_be_recorded_keeps_the_member_from_starting() -> None:
    with pytest.raises(RuntimeError, match="cannot record"):
        wrapped(PUT, Method.client_stream(Call().unary), Log())


@pytest.mark.parametrize("kind", ["unary", "server stream", "bidi"])
def test_nothing_begins_that_cannot_be_recorded(kind: str) -> None:
    async def scenario() -> None:
        log, call = Log(), Call()
        log.writable = False
        if kind == "unary":
            begun = wrapped(PUT, Method.unary(call.unary), log)(b"", context())
        else:
            make, path = (Method.bidi, WATCH) if kind == "bidi" else (Method.server_stream, RANGES)
            begun = anext(wrapped(path, make(call.stream), log)(b"", context()))
        with pytest.raises(StatusError) as refused:
            await begun
        assert refused.value is NOT_WRITTEN
        assert call.begun == 0
        assert not log.told

    asyncio.run(scenario())


def noting(log: Log) -> Callable[[Any, Code], None]:
    """What a stream is given to note its messages."""
    where = context()
    wrapped(WATCH, Method.bidi(Call().stream), log)(b"", where)
    assert where.note is not None
    return where.note


def test_no_watcher_and_no_first_renewal_begins_that_cannot_be_recorded() -> None:
    log = Log()
    note = noting(log)
    renewal, watcher = pb.LeaseKeepAliveRequest(ID=5), pb.WatchRequest(create_request={"key": b"k"})
    note(renewal, Code.OK)
    log.writable = False
    note(renewal, Code.OK)
    for message in (pb.LeaseKeepAliveRequest(ID=6), watcher):
        with pytest.raises(StatusError) as refused:
            note(message, Code.OK)
        assert refused.value is NOT_WRITTEN
    note(watcher, Code.PERMISSION_DENIED)
    log.writable = True
    note(pb.LeaseKeepAliveRequest(ID=6), Code.OK)
    assert [(line["request"], line["code"], line["revision"]) for line in log.told] == [
        ({"ID": 5}, "OK", 7),
        ({"create_request": {"key": "k"}}, "PermissionDenied", 7),
        ({"ID": 6}, "OK", 7),
    ], "the renewal that was refused is recorded when it succeeds"


def test_of_leases_without_end_some_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "_LEASES_REMEMBERED", 3)
    log = Log()
    note = noting(log)
    for _ in range(2):
        for lease in range(1, 6):
            note(pb.LeaseKeepAliveRequest(ID=lease), Code.OK)
    assert [line["request"]["ID"] for line in log.told] == [1, 2, 3, 4, 5, 4, 5]
