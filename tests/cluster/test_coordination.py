"""Elections and transactions on three members whose leader is killed: every leader is heard of, no money is lost."""

import asyncio
import contextlib
import random
from collections.abc import Iterator

import pytest

from raftkv.client import AsyncClient, AsyncTransaction, ClientError, OutcomeUnknown
from tests.support.processes import Cluster, cluster

BOUND_SECONDS = 300.0
END = b"end"
ACCOUNTS = 4
START = 100


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("coordination"), 3) as running:
        yield running


def endpoints(three: Cluster, first: int) -> list[str]:
    """All, beginning with one."""
    own = [member.endpoint for member in three.members]
    return [*own[first % 3 :], *own[: first % 3]]


async def kill_the_leader(three: Cluster, killed: asyncio.Event) -> None:
    leader = await asyncio.to_thread(three.leader)
    leader.kill()
    leader.start()
    killed.set()
    # The next one is killed when all are there again.
    await asyncio.to_thread(three.wait_ready, leader)


async def lead(three: Cluster, number: int, killed: asyncio.Event, elected: list[tuple[int, bytes]]) -> None:
    """Be elected, also after the kill, and each time note the token and what was said."""
    async with AsyncClient(endpoints(three, number), timeout=20.0) as client:
        rounds = 0
        while rounds < 2 or not killed.is_set():
            value = b"%d: %d" % (number, rounds)
            try:
                async with client.election("post", ttl=20) as election:
                    await election.campaign(value)
                    elected.append((election.token, value))
                    await asyncio.sleep(0.05)
                    rounds += 1
            except ClientError:
                # What it was elected to, it gave up; or nobody knows.
                await asyncio.sleep(0.1)


async def listen(client: AsyncClient, began: asyncio.Event) -> list[tuple[int, bytes]]:
    """Token and value of every leader that is told, up to the last."""
    heard: list[tuple[int, bytes]] = []
    async for told in client.election("post").observe():
        if told.kv.value == END:
            return heard
        if told.kv.value == b"begin":
            began.set()
        else:
            heard.append((told.kv.create_revision, told.kv.value))
    raise AssertionError("no more is told")


def test_observers_of_every_member_hear_of_every_leader_in_order(three: Cluster) -> None:
    async def main() -> None:
        elected: list[tuple[int, bytes]] = []
        async with contextlib.AsyncExitStack() as stack, asyncio.timeout(BOUND_SECONDS), asyncio.TaskGroup() as group:
            clients = [
                await stack.enter_async_context(AsyncClient(endpoints(three, number), timeout=20.0))
                for number in range(3)
            ]
            began = [asyncio.Event() for _ in clients]
            ears = [group.create_task(listen(client, event)) for client, event in zip(clients, began, strict=True)]
            async with clients[0].election("post") as election:
                await election.campaign(b"begin")
                for event in began:
                    await event.wait()
            killed = asyncio.Event()
            leaders = [asyncio.create_task(lead(three, number, killed, elected)) for number in range(4)]
            while len(elected) < 4:
                await asyncio.sleep(0.05)
            await kill_the_leader(three, killed)
            await asyncio.gather(*leaders)
            async with clients[0].election("post") as election:
                await election.campaign(END)
                heard = [await ear for ear in ears]
        tokens = [token for token, _ in elected]
        assert tokens == sorted(set(tokens))
        for each in heard:
            assert each == heard[0]
            assert each == sorted(set(each))
            # Whoever was elected and did not know it is heard of, too.
            assert set(elected) <= set(each)

    asyncio.run(main())


async def move_money(three: Cluster, number: int, killed: asyncio.Event, moved: list[int]) -> None:
    choose = random.Random(number)
    async with AsyncClient(endpoints(three, number), timeout=20.0) as client:
        left = 10
        while left or not killed.is_set():
            left = max(0, left - 1)
            source, target = choose.sample(range(ACCOUNTS), 2)
            amount = choose.randrange(1, 5)

            async def body(
                stm: AsyncTransaction, source: int = source, target: int = target, amount: int = amount
            ) -> None:
                have, got = await balance(stm, source), await balance(stm, target)
                stm.put(f"account/{source}", str(have - amount))
                stm.put(f"account/{target}", str(got + amount))

            with contextlib.suppress(ClientError):
                await client.stm(body)
                moved.append(amount)


async def balance(stm: AsyncTransaction, number: int) -> int:
    value = await stm.get(f"account/{number}")
    assert value is not None
    return int(value)


async def total(stm: AsyncTransaction) -> int:
    return sum([await balance(stm, number) for number in range(ACCOUNTS)])


def test_transfers_keep_the_sum_through_a_kill(three: Cluster) -> None:
    async def main() -> None:
        moved: list[int] = []
        killed = asyncio.Event()
        async with AsyncClient(three.endpoints, timeout=20.0) as client, asyncio.timeout(BOUND_SECONDS):
            for number in range(ACCOUNTS):
                await client.put(f"account/{number}", str(START))
            workers = [asyncio.create_task(move_money(three, number, killed, moved)) for number in range(5)]
            while len(moved) < 10:
                await asyncio.sleep(0.05)
            await kill_the_leader(three, killed)
            while not all(worker.done() for worker in workers):
                with contextlib.suppress(ClientError):
                    assert await client.stm(total) == ACCOUNTS * START
                await asyncio.sleep(0.05)
            await asyncio.gather(*workers)
            assert await client.stm(total) == ACCOUNTS * START
            assert len(moved) >= 30

    asyncio.run(main())


def test_a_counter_counts_each_commit_once_through_a_kill(three: Cluster) -> None:
    """Only what nobody knows may be missing, and nothing is counted twice."""

    async def main() -> None:
        known, unknown = 0, 0
        killed = asyncio.Event()

        async def count(stm: AsyncTransaction) -> None:
            stm.put("counter", str(int(await stm.get("counter") or 0) + 1))

        async def work(number: int) -> None:
            nonlocal known, unknown
            async with AsyncClient(endpoints(three, number), timeout=20.0) as client:
                left = 10
                while left or not killed.is_set():
                    left = max(0, left - 1)
                    try:
                        await client.stm(count)
                        known += 1
                    except OutcomeUnknown:
                        unknown += 1
                    except ClientError:
                        # It was refused, or nothing was written.
                        continue

        async with AsyncClient(three.endpoints, timeout=20.0) as client, asyncio.timeout(BOUND_SECONDS):
            workers = [asyncio.create_task(work(number)) for number in range(4)]
            while known < 10:
                await asyncio.sleep(0.05)
            await kill_the_leader(three, killed)
            await asyncio.gather(*workers)
            kv = await client.get("counter")
            assert kv is not None
            assert known <= int(kv.value) <= known + unknown

    asyncio.run(main())
