"""What the server promises of itself, with a disk that the test holds in its hand."""

import asyncio
import random
from collections.abc import Callable
from pathlib import Path

from raftkv.disk import OsDisk
from raftkv.mvcc import Store
from raftkv.offline.memory import MemoryBackend
from raftkv.pb import rpc_pb2
from raftkv.raft import AppendEntries, Config, Entry, EntryKind, HardState, Message, RaftNode
from raftkv.server.headers import Headers
from raftkv.server.membership import Membership
from raftkv.server.server import Server
from raftkv.wal import Wal


def test_a_member_that_failed_acknowledges_nothing_when_its_disk_comes_back(tmp_path: Path) -> None:
    async def scenario() -> None:
        sent: list[Message] = []
        writes: list[tuple[Callable[[], None], Callable[[BaseException | None], None]]] = []
        store = Store(MemoryBackend())
        membership = Membership(store)
        membership.bootstrap([rpc_pb2.Member(ID=number) for number in (1, 2, 3)])
        rng = random.Random(1)
        server = Server(
            node=RaftNode(Config(id=1, random=rng), membership.conf_state, HardState(), []),
            wal=Wal.create(OsDisk(), str(tmp_path / "wal"), b""),
            store=store,
            membership=membership,
            headers=Headers(1, 1),
            send=sent.extend,
            call_peer=lambda *_: asyncio.Future(),
            run_wal=lambda work, done: writes.append((work, done)),
            run_flush=lambda work, done: None,
            rng=rng,
            tick_seconds=1.0,
            election_ticks=10,
        )
        server.receive(AppendEntries(2, 1, 1, 0, 0, [Entry(1, 1, EntryKind.NORMAL, b"")], 0))
        await asyncio.sleep(0)
        ((work, done),) = writes
        work()
        server.fail(OSError("the store cannot be written"))
        done(None)
        await asyncio.sleep(0)
        assert sent == []

    asyncio.run(scenario())
