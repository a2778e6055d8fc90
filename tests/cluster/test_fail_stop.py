"""A member whose invariants are broken stops; it does not go on serving."""

import asyncio
import random
from pathlib import Path

import pytest

from raftkv import errors
from raftkv.flags import parse
from raftkv.member import Member
from raftkv.pb import rpc_pb2
from raftkv.raft import AppendEntries, InvariantViolation
from raftkv.server.proposals import COMPACTION, PUT, Proposals
from raftkv.server.server import Server
from tests.support.processes import free_ports


def settings(directory: Path) -> list[str]:
    client, peer = (f"http://127.0.0.1:{port}" for port in free_ports(2))
    return [
        *("--data-dir", str(directory / "data"), "--listen-client-urls", client, "--advertise-client-urls", client),
        *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
    ]


def server_of(member: Member) -> Server:
    server = member._server
    assert server is not None
    return server


def test_a_message_that_breaks_an_invariant_stops_the_member(tmp_path: Path) -> None:
    async def scenario() -> None:
        member = Member(parse(settings(tmp_path), {}))
        await member.start()
        server = server_of(member)
        await server.propose(PUT, rpc_pb2.PutRequest(key=b"k").SerializeToString())
        waiting = server.propose(PUT, rpc_pb2.PutRequest(key=b"k").SerializeToString())
        server.receive(AppendEntries(99, member.member_id, server.node.term, 0, 0, [], 0))
        assert isinstance(await asyncio.wait_for(member.wait_failed(), 60), InvariantViolation)
        with pytest.raises(errors.Stopped):
            await waiting
        with pytest.raises(errors.Stopped):
            await server.propose(PUT, rpc_pb2.PutRequest(key=b"k").SerializeToString())
        with pytest.raises(errors.Stopped):
            await server.linearizable()
        await member.stop()

    asyncio.run(scenario())


def test_an_entry_that_cannot_be_applied_stops_the_member(tmp_path: Path) -> None:
    async def scenario() -> None:
        member = Member(parse(settings(tmp_path), {}))
        await member.start()
        server = server_of(member)
        await server.wait_leader()
        server.node.propose([b"\xff\xff not a batch"])
        server.wake()
        assert await asyncio.wait_for(member.wait_failed(), 60)
        await member.stop()

    asyncio.run(scenario())


@pytest.mark.parametrize("broken", ["compaction", "tick"])
def test_work_in_the_background_that_fails_stops_the_member(
    broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> bool:
        raise RuntimeError("broken on purpose")

    async def scenario() -> None:
        member = Member(parse(settings(tmp_path), {}))
        await member.start()
        server = server_of(member)
        await server.propose(PUT, rpc_pb2.PutRequest(key=b"k").SerializeToString())
        if broken == "compaction":
            monkeypatch.setattr(type(server.store), "compaction_step", fail)
            await server.propose(COMPACTION, rpc_pb2.CompactionRequest(revision=2).SerializeToString())
        else:
            monkeypatch.setattr(type(server.reads), "tick", fail)
        assert "on purpose" in str(await asyncio.wait_for(member.wait_failed(), 60))
        await member.stop()

    asyncio.run(scenario())


def test_nothing_is_taken_once_closed(tmp_path: Path) -> None:
    async def scenario() -> None:
        member = Member(parse(settings(tmp_path), {}))
        await member.start()
        server = server_of(member)
        await member.stop()
        with pytest.raises(errors.Stopped):
            await server.propose(PUT, rpc_pb2.PutRequest(key=b"k").SerializeToString())
        with pytest.raises(errors.Stopped):
            await server.linearizable()

    asyncio.run(scenario())


def test_the_queue_does_not_keep_calls_that_gave_up() -> None:
    async def scenario() -> None:
        proposals = Proposals(asyncio.get_running_loop(), 1, random.Random(1), timeout_seconds=0.0)
        waiting = [proposals.add(PUT, b"") for _ in range(2_000)]
        proposals.expire(asyncio.get_running_loop().time() + 1, errors.Timeout)
        assert not proposals.queued
        assert {type(future.exception()) for future in waiting} == {errors.Timeout}

    asyncio.run(scenario())
