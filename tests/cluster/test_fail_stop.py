"""A member whose invariants are broken stops; it does not go on serving."""

import asyncio
from pathlib import Path

import pytest

from raftkv import errors
from raftkv.flags import parse
from raftkv.member import Member
from raftkv.pb import rpc_pb2
from raftkv.raft import AppendEntries, InvariantViolation
from raftkv.server.proposals import PUT
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
        assert isinstance(await asyncio.wait_for(member.wait_failed(), 5), InvariantViolation)
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
        assert await asyncio.wait_for(member.wait_failed(), 5)
        await member.stop()

    asyncio.run(scenario())
