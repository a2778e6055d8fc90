"""Compaction by itself, on a clock that the test moves."""

import asyncio
from collections.abc import Awaitable

import pytest

from raftkv import errors
from raftkv.server.compactor import ByRevision, Compactor, Periodic, schedule
from tests.support import virtual


class World:
    """A keyspace that grows by one revision a minute, and remembers when it was compacted to what."""

    def __init__(self, mode: str, retention: str) -> None:
        planned = schedule(mode, retention)
        assert planned is not None
        self.compactions: list[tuple[float, int]] = []
        self.leading = True
        self.error: errors.EtcdError | None = None
        self.frozen: int | None = None
        self._compactor = Compactor(planned, revision=self.revision, leads=lambda: self.leading, compact=self._compact)

    def revision(self) -> int:
        if self.frozen is not None:
            return self.frozen
        return 1 + round(asyncio.get_running_loop().time() / 60)

    def _compact(self, revision: int) -> Awaitable[None]:
        async def outcome() -> None:
            self.compactions.append((round(asyncio.get_running_loop().time() / 60, 1), revision))
            if self.error is not None:
                raise self.error

        return outcome()

    async def __aenter__(self) -> "World":
        self._task = asyncio.create_task(self._compactor.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()


async def minutes(count: float) -> None:
    await asyncio.sleep(count * 60 + 1)


@pytest.mark.parametrize(
    ("retention", "expected"),
    [
        ("10m", [(10, 1), (20, 10), (30, 20)]),
        ("1", [(60, 1), (120, 55), (180, 115)]),
        # More than an hour: after the first period every hour, always to what is as old as the period.
        ("2h30m", [(150, 1), (210, 55), (270, 115)]),
    ],
)
def test_a_period_of_history_is_kept(retention: str, expected: list[tuple[float, int]]) -> None:
    async def scenario() -> None:
        async with World("periodic", retention) as world:
            await minutes(expected[-1][0])
            assert world.compactions == expected

    virtual.run(scenario())


def test_a_number_of_revisions_is_kept() -> None:
    async def scenario() -> None:
        async with World("revision", "12") as world:
            await minutes(25)
            # Revision 11 at 10 minutes: nothing is old enough.
            assert world.compactions == [(15, 4), (20, 9), (25, 14)]

    virtual.run(scenario())


@pytest.mark.parametrize(("mode", "retention"), [("periodic", "5m"), ("revision", "3")])
def test_nothing_new_nothing_compacted(mode: str, retention: str) -> None:
    async def scenario() -> None:
        async with World(mode, retention) as world:
            world.frozen = 100
            await minutes(60)
            assert len(world.compactions) == 1

    virtual.run(scenario())


def test_a_new_leader_knows_what_the_revision_was() -> None:
    async def scenario() -> None:
        async with World("periodic", "10m") as world:
            world.leading = False
            await minutes(35)
            assert world.compactions == []
            world.leading = True
            await minutes(1)
            assert world.compactions == [(36, 26)]

    virtual.run(scenario())


def test_a_failure_is_repeated_at_the_next_sample_and_a_rival_counts_as_success() -> None:
    async def scenario() -> None:
        async with World("periodic", "10m") as world:
            world.error = errors.Timeout()
            await minutes(11)
            assert world.compactions == [(10, 1), (11, 1)]
            world.error = errors.Compacted()
            await minutes(10)
            assert world.compactions[2:] == [(12, 2)]

    virtual.run(scenario())


def test_what_a_retention_may_be() -> None:
    assert schedule("periodic", "0") is None
    assert schedule("revision", "0") is None
    assert schedule("periodic", "0s") is None
    assert isinstance(schedule("periodic", "8"), Periodic)
    assert isinstance(schedule("revision", "8"), ByRevision)
