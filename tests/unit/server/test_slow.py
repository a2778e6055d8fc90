"""What took too long is said with its parts, and without a value."""

import asyncio
import json
import logging
import random
from typing import Any

import pytest

from raftkv.logs import JsonFormatter, TextFormatter
from raftkv.pb import log_pb2, rpc_pb2
from raftkv.server import proposals as p
from raftkv.server.slow import Slow, describe

SECRET = b"hunter2"


class Clock:
    """Stands for the event loop where only its time is asked."""

    def __init__(self) -> None:
        self.now = 100.0

    def time(self) -> float:
        return self.now

    def create_future(self) -> Any:
        return asyncio.Future()


def told(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [record.fields for record in caplog.records]  # type: ignore[attr-defined]


def test_the_oldest_of_a_batch_is_named_with_its_parts(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        clock = Clock()
        slow = Slow(clock.time, 0.1)
        proposals = p.Proposals(clock, 1, random.Random(1), timeout_seconds=7.0)  # type: ignore[arg-type]
        batches: list[bytes] = []
        for key in (b"first", b"second"):
            proposals.add(p.PUT, rpc_pb2.PutRequest(key=key, value=SECRET).SerializeToString())
            clock.now += 0.01
        clock.now += 0.02
        proposals.hand_over(1, 1 << 20, batches.append)
        clock.now += 0.2
        started = clock.now
        slow.last_fsync_seconds = 0.15
        for proposal in log_pb2.Batch.FromString(batches[0]).proposals:
            proposals.resolve(proposal.id, [b""])
        clock.now += 0.005
        proposals.report(slow, started)
        proposals.report(slow, started)
        assert slow.applies == 1

    with caplog.at_level(logging.WARNING):
        asyncio.run(scenario())
    assert told(caplog) == [
        {
            "took": "245.0ms",
            "expected-duration": "100.0ms",
            "queue": "40.0ms",
            "commit": "200.0ms",
            "apply": "5.0ms",
            "last-fsync": "150.0ms",
            "operation": "put",
            "bytes": told(caplog)[0]["bytes"],
            "key": "first",
        }
    ]


def test_what_is_fast_enough_is_not_named(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    slow = Slow(clock.time, 0.1)
    framed = p.encode_proposal(1, p.PUT, rpc_pb2.PutRequest(key=b"k").SerializeToString())
    slow.applied(framed, added=clock.now - 0.1, handed_over=clock.now, started=clock.now)
    slow.confirmed(1, clock.now - 0.1)
    slow.ranged(rpc_pb2.RangeRequest(key=b"k"), 0.1, [])
    assert not caplog.records
    assert not slow.applies


def test_slow_reads_are_named(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    slow = Slow(clock.time, 0.1)
    slow.confirmed(3, clock.now - 0.5)
    slow.ranged(rpc_pb2.RangeRequest(key=b"\xff" * 1000), 0.25, [SECRET, SECRET])
    waited, ranged = told(caplog)
    assert waited == {"took": "500.0ms", "expected-duration": "100.0ms", "reads": 3}
    assert (ranged["took"], ranged["bytes"], len(ranged["key"])) == ("250.0ms", 14, 4 * 128 + 1)


def secrets() -> list[log_pb2.Proposal]:
    put = rpc_pb2.PutRequest(key=b"k", value=SECRET)
    txn = rpc_pb2.TxnRequest(
        compare=[rpc_pb2.Compare(key=b"k", value=SECRET)],
        success=[rpc_pb2.RequestOp(request_put=put)],
        failure=[rpc_pb2.RequestOp(request_put=put)],
    )
    return [log_pb2.Proposal(put=put), log_pb2.Proposal(txn=txn)]


@pytest.mark.parametrize("formatter", [JsonFormatter(), TextFormatter()], ids=["json", "text"])
def test_no_line_holds_a_value(formatter: logging.Formatter) -> None:
    for proposal in secrets():
        record = logging.makeLogRecord({"name": "slow", "msg": "slow", "fields": describe(proposal)})
        assert SECRET.decode() not in formatter.format(record)
        assert '"bytes": ' in formatter.format(record) or "bytes=" in formatter.format(record)


def test_a_key_cannot_forge_a_line() -> None:
    fields = describe(log_pb2.Proposal(put=rpc_pb2.PutRequest(key=b'a"\n2026 error')))
    record = logging.makeLogRecord({"name": "slow", "msg": "slow", "fields": fields})
    assert "\n" not in TextFormatter().format(record)
    assert json.loads(JsonFormatter().format(record))["key"] == 'a"\n2026 error'
