"""One scenario of test_aetcd.py, with aetcd as a user has it: `aetcd_session.py SCENARIO PORT,PORT,PORT`.

A program of its own: aetcd registers the same protobuf messages as raftkv does, and one process can hold only one of
them. Nothing of raftkv is imported here. It prints nothing and exits with 0 when all is as it should be.
"""

import asyncio
import contextlib
import sys

import aetcd


async def put_and_get(clients: list[aetcd.Client]) -> None:
    first, second, third = clients
    put = await first.put(b"k", b"\x00\xff binary")
    found = await second.get(b"k")
    assert (found.key, found.value, found.version, found.lease) == (b"k", b"\x00\xff binary", 1, 0)
    assert found.create_revision == found.mod_revision == put.header.revision
    again = await third.put(b"k", b"two", prev_kv=True)
    assert again.prev_kv.value == b"\x00\xff binary"
    found = await first.get(b"k")
    assert (found.value, found.version, found.create_revision) == (b"two", 2, put.header.revision)
    assert await second.get(b"missing") is None
    assert (await first.get(b"k", serializable=True)) is not None
    assert len({client_answer.header.cluster_id for client_answer in (put, again)}) == 1


async def ranges_and_deletes(clients: list[aetcd.Client]) -> None:
    first, second, third = clients
    for number in range(20):
        await clients[number % 3].put(f"r/{number:02d}".encode(), str(number).encode())
    found = await second.get_prefix(b"r/")
    assert [kv.key for kv in found] == [f"r/{number:02d}".encode() for number in range(20)]
    found = await third.get_prefix(b"r/", sort_order="descend", sort_target="value")
    assert found[0].value == b"9"
    found = await first.get_prefix(b"r/", keys_only=True)
    assert {kv.value for kv in found} == {b""}
    found = await first.get_range(b"r/05", b"r/08")
    assert [kv.value for kv in found] == [b"5", b"6", b"7"]
    assert len(await second.get_all()) >= 20
    deleted = await third.delete(b"r/00", prev_kv=True)
    assert deleted.prev_kv.value == b"0"
    assert await third.delete(b"r/00") is None
    assert (await first.delete_range(b"r/01", b"r/03")).deleted == 2
    assert (await first.delete_prefix(b"r/", prev_kv=True)).deleted == 17
    assert not await second.get_prefix(b"r/")


async def transactions(clients: list[aetcd.Client]) -> None:
    first, second, _ = clients
    t = first.transactions
    new = [t.version(b"t") == 0]
    succeeded, _ = await first.transaction(new, success=[t.put(b"t", b"one")], failure=[t.get(b"t")])
    assert succeeded
    succeeded, answers = await second.transaction(new, success=[t.put(b"t", b"two")], failure=[t.get(b"t")])
    assert not succeeded
    [[(value, _)]] = answers
    assert value == b"one"
    mod = (await first.get(b"t")).mod_revision
    compare = [t.value(b"t") == b"one", t.mod(b"t") < mod + 1, t.create(b"t") > mod - 1, t.value(b"t") != b"x"]
    nested = t.txn(compare=[t.version(b"t") > 5], success=[], failure=[t.put(b"t/nested", b"1")])
    succeeded, _ = await first.transaction(compare, [t.put(b"t/2", b"2"), nested, t.delete(b"t")], [])
    assert succeeded
    assert await second.get(b"t") is None
    one, two = await second.get(b"t/2"), await second.get(b"t/nested")
    assert one.mod_revision == two.mod_revision == mod + 1
    assert await first.replace(b"t/2", b"2", b"3")
    assert not await second.replace(b"t/2", b"2", b"4")
    with contextlib.suppress(aetcd.ClientError):
        await first.transaction([], success=[t.put(b"d", b"1"), t.put(b"d", b"2")], failure=[])
        raise AssertionError("the same key was put twice in one transaction")


async def concurrent_increments(clients: list[aetcd.Client]) -> None:
    """Ten writers add to one counter by compare and swap, through all members; none is lost, none counts twice."""
    await clients[0].put(b"counter", b"0")

    async def add(client: aetcd.Client) -> None:
        for _ in range(10):
            while True:
                value = (await client.get(b"counter")).value
                if await client.replace(b"counter", value, str(int(value) + 1).encode()):
                    break

    await asyncio.gather(*(add(clients[number % 3]) for number in range(10)))
    counter = await clients[0].get(b"counter")
    assert (counter.value, counter.version) == (b"100", 101)


async def compaction(clients: list[aetcd.Client]) -> None:
    first, second, _ = clients
    for number in range(3):
        put = await first.put(b"c", str(number).encode())
    await first.compact(put.header.revision, physical=True)
    for revision, words in ((put.header.revision, "has been compacted"), (1 << 40, "future revision")):
        try:
            await second.compact(revision)
        except aetcd.ClientError as error:
            assert words in str(error), error
        else:
            raise AssertionError(f"compaction at {revision} was accepted")
    assert (await second.get(b"c")).value == b"2"


async def status_and_members(clients: list[aetcd.Client]) -> None:
    await clients[0].put(b"s", b"1")
    # An election between two answers is no fault, and there are not many of them.
    for _ in range(5):
        found = [await client.status() for client in clients]
        if len({(status.leader.id, status.raft_term) for status in found}) == 1:
            break
    else:
        raise AssertionError("they follow different leaders")
    for client, status in zip(clients, found, strict=True):
        assert status.version == "3.6.0"
        assert status.db_size > 0
        members = [member async for member in client.members()]
        assert len(members) == 3
        assert all(len(member.peer_urls) == len(member.client_urls) == 1 for member in members)
        assert sorted(member.name for member in members) == ["m0", "m1", "m2"]


async def watches(clients: list[aetcd.Client]) -> None:
    """Written through one member, heard through the others: live, from the past, filtered, with previous values."""
    first, second, third = clients
    start = (await first.put(b"w/k", b"0")).header.revision
    live = await second.watch_prefix(b"w/", prev_kv=True)
    past = await third.watch(b"w/k", start_revision=start)
    deletions = await third.watch_prefix(b"w/", kind=aetcd.EventKind.DELETE)
    for number in range(1, 30):
        await first.put(b"w/k", str(number).encode())
    await first.delete(b"w/k")

    async def take(watch: aetcd.rtypes.Watch, count: int) -> list[aetcd.rtypes.Event]:
        events = aiter(watch)
        return [await anext(events) for _ in range(count)]

    heard = await take(live, 30)
    assert [event.kv.value for event in heard] == [str(number).encode() for number in range(1, 30)] + [b""]
    assert [event.prev_kv.value for event in heard] == [str(number).encode() for number in range(30)]
    assert [event.kv.mod_revision for event in await take(past, 31)] == list(range(start, start + 31))
    [gone] = await take(deletions, 1)
    assert (gone.kind, gone.kv.key, gone.kv.mod_revision) == (aetcd.EventKind.DELETE, b"w/k", start + 30)
    for watch in (live, past, deletions):
        await watch.cancel()


async def leases(clients: list[aetcd.Client]) -> None:
    """Granted by one member, renewed and asked for at the others; its keys go with it, everywhere."""
    first, second, third = clients
    lease = await first.lease(60)
    await second.put(b"l/a", b"1", lease=lease)
    await third.put(b"l/b", b"2", lease=lease.id)
    assert await lease.granted_ttl() == 60
    assert 0 < await lease.remaining_ttl() <= 60
    assert sorted(await lease.keys()) == [b"l/a", b"l/b"]
    for client in clients:
        info = await client.get_lease_info(lease.id)
        assert (info.grantedTTL, 0 < info.TTL <= 60) == (60, True)
        assert (await client.refresh_lease(lease.id)).TTL == 60
    assert (await second.get(b"l/a")).lease == lease.id
    await lease.revoke()
    # A linearizable read at any member shows that both are gone.
    for client in clients:
        assert not await client.get_prefix(b"l/")
        assert (await client.get_lease_info(lease.id)).TTL == -1


async def locks(clients: list[aetcd.Client]) -> None:
    """Nine holders through three members, one at a time."""
    inside = 0
    turns = []

    async def work(number: int) -> None:
        nonlocal inside
        async with clients[number % 3].lock(b"lock", ttl=30) as lock:
            inside += 1
            assert inside == 1
            assert await lock.is_acquired()
            turns.append(number)
            await asyncio.sleep(0.02)
            inside -= 1

    await asyncio.gather(*map(work, range(9)))
    assert sorted(turns) == list(range(9))


SCENARIOS = (
    put_and_get,
    ranges_and_deletes,
    transactions,
    concurrent_increments,
    compaction,
    watches,
    leases,
    locks,
    status_and_members,
)


async def main(name: str, ports: str) -> None:
    [scenario] = [scenario for scenario in SCENARIOS if scenario.__name__ == name]
    async with contextlib.AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(aetcd.Client("127.0.0.1", int(port), timeout=60))
            for port in ports.split(",")
        ]
        await scenario(clients)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
