"""What a proposal must be before a leader may have it."""

import asyncio

import pytest

from raftkv import errors
from raftkv.pb import log_pb2, rpc_pb2
from raftkv.server.proposals import PUT, Proposals
from raftkv.status import Code, StatusError


class Fixed:
    """A generator for one id."""

    def getrandbits(self, bits: int) -> int:
        return 7


def put(key: bytes, depth: int = 0) -> bytes:
    """An encoded PutRequest with an unknown field that nests so deeply (groups of field 100)."""
    return rpc_pb2.PutRequest(key=key).SerializeToString() + b"\xa3\x06" * depth + b"\xa4\x06" * depth


def test_a_request_that_could_not_be_read_back_from_the_log_never_gets_there() -> None:
    """It decodes by itself, but not inside an entry; applying it would stop every member, again after each restart."""
    deepest = next(depth for depth in range(1, 1000) if not decodes(put(b"k", depth + 1)))

    async def main() -> None:
        proposals = Proposals(asyncio.get_running_loop(), 1, Fixed(), timeout_seconds=5.0)  # type: ignore[arg-type]
        calls = [proposals.add(PUT, put(key, depth)) for key, depth in ((b"a", 0), (b"b", deepest), (b"c", 1))]
        entries: list[bytes] = []
        proposals.hand_over(3, 1 << 20, entries.append)
        batch = log_pb2.Batch.FromString(b"".join(entries))
        assert [proposal.put.key for proposal in batch.proposals] == [b"a", b"c"]
        with pytest.raises(StatusError) as refused:
            await calls[1]
        assert refused.value.code is Code.INTERNAL
        assert not calls[0].done()
        assert not calls[2].done()
        assert proposals.pending_bytes == len(entries[0])

    asyncio.run(main())


def test_what_a_snapshot_may_hold_is_never_proposed_again() -> None:
    """Its entry may be among those that the snapshot stands for: proposing it anew might apply it twice."""

    async def main() -> None:
        proposals = Proposals(asyncio.get_running_loop(), 1, Fixed(), timeout_seconds=5.0)  # type: ignore[arg-type]
        handed_over = proposals.add(PUT, put(b"a"))
        proposals.hand_over(3, 1 << 20, lambda _: None)
        queued = proposals.add(PUT, put(b"b"))
        proposals.entries_skipped(errors.Timeout)
        proposals.term_applied(4)
        with pytest.raises(errors.Timeout):
            await handed_over
        entries: list[bytes] = []
        proposals.hand_over(4, 1 << 20, entries.append)
        batch = log_pb2.Batch.FromString(b"".join(entries))
        assert [proposal.put.key for proposal in batch.proposals] == [b"b"]
        assert not queued.done()

    asyncio.run(main())


def decodes(request: bytes) -> bool:
    try:
        rpc_pb2.PutRequest.FromString(request)
    except Exception:
        return False
    return True


def test_what_nobody_waits_for_any_more_is_not_handed_to_a_leader() -> None:
    """After a time without a leader most of what is queued may be of clients that have given up."""

    async def main() -> None:
        proposals = Proposals(asyncio.get_running_loop(), 1, Fixed(), timeout_seconds=5.0)  # type: ignore[arg-type]
        lost = proposals.add(PUT, put(b"lost"))
        proposals.hand_over(3, 1 << 20, lambda _: None)
        queued = [proposals.add(PUT, put(key)) for key in (b"a", b"b", b"c")]
        lost.cancel()
        queued[1].cancel()
        assert len(proposals) == 4, "the one that a leader has may still be applied"
        proposals.term_applied(4)
        entries: list[bytes] = []
        proposals.hand_over(4, 1 << 20, entries.append)
        batch = log_pb2.Batch.FromString(b"".join(entries))
        assert [proposal.put.key for proposal in batch.proposals] == [b"a", b"c"]
        assert len(proposals) == 2
        assert proposals.pending_bytes == len(entries[0])

    asyncio.run(main())
