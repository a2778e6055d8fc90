"""A snapshot that does not arrive is sent again, later each time, and the log is kept for it meanwhile."""

import asyncio
from collections.abc import Awaitable, Callable
from itertools import pairwise
from pathlib import Path

from raftkv.mvcc import LmdbBackend
from raftkv.raft import InstallSnapshot
from raftkv.server.snapshot_transfer import HOLD_SECONDS, RETRY_SECONDS, Transfers
from raftkv.server.snapshots import Copy
from tests.support import virtual
from tests.unit.server.test_known_bugs import Thread
from tests.unit.server.test_snapshots import NEW, copy_of, make_store

PEER = 2


class Sender:
    """Transfers of one member to a peer that fails so often."""

    def __init__(self, directory: Path, failures: int) -> None:
        make_store(directory, NEW, 5)
        copy = copy_of(directory)
        self.message = InstallSnapshot(1, PEER, 5, copy.metadata)
        copy.close()
        self.backend = LmdbBackend(str(directory / "store"))
        self.failures = failures
        self.matched: int | None = 0
        self.reported: list[tuple[float, bool]] = []
        self.ended = asyncio.Event()
        self.transfers = Transfers(
            str(directory),
            backend=lambda: self.backend,
            install=lambda *_: asyncio.Future(),
            report=self._report,
            send=self._send,
            matched=lambda peer: self.matched if peer == PEER else None,
            run=Thread().run,
        )

    def _report(self, peer: int, ok: bool) -> None:
        assert peer == PEER
        self.reported.append((asyncio.get_running_loop().time(), ok))
        self.ended.set()

    async def _send(self, message: InstallSnapshot, copy: Copy, read: Callable[[int, int], Awaitable[bytes]]) -> None:
        assert message.metadata.index == NEW
        await read(0, 100)
        if self.failures:
            self.failures -= 1
            raise ConnectionError("the peer went away")

    async def transfer(self) -> None:
        """As Raft does: ask, and ask again when it was told of the outcome."""
        self.ended.clear()
        self.transfers.send(self.message)
        # Asked twice, it is sent once.
        self.transfers.send(self.message)
        await self.ended.wait()

    async def close(self) -> None:
        await self.transfers.close()
        self.backend.close()


def test_it_is_begun_anew_after_pauses_that_grow(tmp_path: Path) -> None:
    async def scenario() -> None:
        sender = Sender(tmp_path, failures=7)
        for _ in range(8):
            await sender.transfer()
        times = [0.0, *(time for time, _ in sender.reported)]
        pauses = [later - earlier for earlier, later in pairwise(times)]
        first, longest = RETRY_SECONDS
        assert [round(pause) for pause in pauses] == [first, 2, 4, 8, 16, longest, longest, 0]
        assert [ok for _, ok in sender.reported] == [False] * 7 + [True]
        # After it has arrived the next failure waits as little as the first.
        sender.failures = 1
        await sender.transfer()
        assert round(sender.reported[-1][0] - sender.reported[-2][0]) == first
        assert list((tmp_path / "snapshot.sending").iterdir()) == []
        times = sender.transfers.sent[PEER]
        assert (times.successes, times.failures, times.under_way, sum(times.seconds.counts)) == (1, 8, 0, 1)
        await sender.close()

    virtual.run(scenario())


def test_the_log_is_kept_until_the_peer_has_what_lies_behind_or_was_given_time_enough(tmp_path: Path) -> None:
    async def scenario() -> None:
        sender = Sender(tmp_path, failures=1)
        asking = asyncio.ensure_future(sender.transfer())
        await asyncio.sleep(0)
        assert sender.transfers.holding
        await asking
        assert not sender.transfers.holding
        await sender.transfer()
        sender.matched = NEW
        assert sender.transfers.holding
        sender.matched = NEW + 1
        assert not sender.transfers.holding
        await sender.transfer()
        sender.matched = NEW
        await asyncio.sleep(HOLD_SECONDS / 2)
        assert sender.transfers.holding
        await asyncio.sleep(HOLD_SECONDS)
        assert not sender.transfers.holding
        await sender.close()

    virtual.run(scenario())
