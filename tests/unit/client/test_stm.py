"""Transactions of the clients, on etcd and raftkv: what they see, and when they run again."""

import asyncio
import threading
from collections.abc import Iterator

import pytest

from raftkv.client import AsyncClient, AsyncTransaction, Client, OutcomeUnknown, Transaction
from raftkv.client.stm import Attempt, commit
from raftkv.pb import rpc_pb2
from raftkv.status import Code
from tests.cli.servers import KINDS, serve

ACCOUNTS = 4
START = 100


@pytest.fixture(scope="module", params=KINDS)
def live(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serve(request.param, tmp_path_factory.mktemp("server")) as endpoint:
        yield endpoint


def test_reads_never_change_and_own_writes_are_seen(live: str) -> None:
    async def main() -> None:
        runs = 0

        async with AsyncClient(live) as client:
            await client.put("a", "1")
            await client.put("b", "1")

            async def body(stm: AsyncTransaction) -> list[bytes | None]:
                nonlocal runs
                runs += 1
                first = await stm.get("a")
                if runs == 1:
                    await client.put("b", "2")
                seen = [first, await stm.get("b"), await stm.get("none")]
                stm.put("b", "own")
                stm.delete("a")
                return [*seen, await stm.get("b"), await stm.get("a")]

            # The first run read b as it was before, so it must not commit.
            assert await client.stm(body) == [b"1", b"2", None, b"own", None]
            assert runs == 2
            kv = await client.get("b")
            assert kv is not None
            assert kv.value == b"own"
            assert await client.get("a") is None

    asyncio.run(main())


def test_what_only_reads_is_of_one_revision(live: str) -> None:
    async def main() -> None:
        async with AsyncClient(live) as client:
            await client.put("r1", "old")
            await client.put("r2", "old")

            async def body(stm: AsyncTransaction) -> tuple[bytes | None, bytes | None]:
                first = await stm.get("r1")
                await client.put("r1", "new")
                await client.put("r2", "new")
                return first, await stm.get("r2")

            assert await client.stm(body) == (b"old", b"old")

    asyncio.run(main())


def test_a_revision_compacted_meanwhile_is_given_up(live: str) -> None:
    runs = 0
    with Client(live) as client:
        client.put("c1", "1")

        def body(stm: Transaction) -> bytes | None:
            nonlocal runs
            runs += 1
            stm.get("c1")
            if runs == 1:
                client.compact(client.put("c2", "2").header.revision)
            return stm.get("c2")

        assert client.stm(body) == b"2"
    assert runs == 2


def test_an_exception_writes_nothing(live: str) -> None:
    def body(stm: Transaction) -> None:
        stm.put("never", "x")
        raise LookupError

    with Client(live) as client:
        with pytest.raises(LookupError):
            client.stm(body)
        assert client.get("never") is None


def balance(stm_value: bytes | None) -> int:
    assert stm_value is not None
    return int(stm_value)


def test_transfers_keep_the_sum(live: str) -> None:
    async def main() -> None:
        async def transfer(stm: AsyncTransaction, source: int, target: int) -> None:
            have, got = balance(await stm.get(f"acc/{source}")), balance(await stm.get(f"acc/{target}"))
            stm.put(f"acc/{source}", str(have - 1))
            stm.put(f"acc/{target}", str(got + 1))

        async def work(client: AsyncClient, number: int) -> None:
            for step in range(15):
                source, target = (number + step) % ACCOUNTS, (number + step * step + 1) % ACCOUNTS
                if source != target:
                    await client.stm(lambda stm, s=source, t=target: transfer(stm, s, t))  # type: ignore[misc]

        async def audit(client: AsyncClient) -> int:
            async def body(stm: AsyncTransaction) -> int:
                return sum([balance(await stm.get(f"acc/{number}")) for number in range(ACCOUNTS)])

            return await client.stm(body)

        async with AsyncClient(live) as client:
            for number in range(ACCOUNTS):
                await client.put(f"acc/{number}", str(START))
            tasks = [asyncio.create_task(work(client, number)) for number in range(6)]
            while not all(task.done() for task in tasks):
                assert await audit(client) == ACCOUNTS * START
            await asyncio.gather(*tasks)
            assert await audit(client) == ACCOUNTS * START

    asyncio.run(main())


def test_threads_count_without_losing_one(live: str) -> None:
    def count() -> None:
        def body(stm: Transaction) -> None:
            stm.put("counter", str(int(stm.get("counter") or 0) + 1))

        for _ in range(10):
            client.stm(body)

    with Client(live) as client:
        threads = [threading.Thread(target=count) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        kv = client.get("counter")
        assert kv is not None
        assert kv.value == b"40"


def test_a_commit_of_unknown_outcome_is_not_tried_again() -> None:
    sent: list[rpc_pb2.TxnRequest] = []

    class Broken:
        async def txn(self, request: rpc_pb2.TxnRequest) -> rpc_pb2.TxnResponse:
            sent.append(request)
            raise OutcomeUnknown(Code.UNAVAILABLE, "gone")

    attempt = Attempt()
    attempt.put(b"k", b"v", 0)
    with pytest.raises(OutcomeUnknown):
        asyncio.run(commit(Broken(), attempt))  # type: ignore[arg-type]
    assert len(sent) == 1
