"""One part of test_python_clients.py, with aetcd as a user has it: `aetcd_failover.py PART PORTS ARGUMENT`.

A program of its own, as aetcd_session.py is. It exits with 0 when all is as it should be.
"""

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import aetcd

TIMEOUT_SECONDS = 5
REFRESH_SECONDS = 0.3
ROUNDS = 5
FAILED = (aetcd.ClientError, aetcd.rpc.AioRpcError)


def connected(port: str) -> aetcd.Client:
    return aetcd.Client("127.0.0.1", int(port), timeout=TIMEOUT_SECONDS)


async def anywhere(ports: list[str], ask: Callable[[aetcd.Client], Awaitable[Any]]) -> Any:
    """Ask one member after another until one answers."""
    while True:
        for port in ports:
            try:
                async with connected(port) as client:
                    return await ask(client)
            except FAILED:
                continue
        await asyncio.sleep(0.1)


async def follow(ports: list[str], first: str) -> None:
    """Watch `w/` from a revision to the value "end", once beginning at each member; print what is heard."""
    await asyncio.gather(*(follow_one(ports, place, int(first)) for place in range(len(ports))))


async def follow_one(ports: list[str], watcher: int, revision: int) -> None:
    place = watcher
    while True:
        try:
            async with connected(ports[place % len(ports)]) as client:
                async for event in await client.watch_prefix(b"w/", start_revision=revision, prev_kv=True):
                    revision = event.kv.mod_revision + 1
                    values = event.kv.value.decode(), event.prev_kv.value.decode()
                    say("event", watcher, event.kv.mod_revision, *values)
                    if event.kv.value == b"end":
                        return
        except FAILED:
            say("resumed", watcher)
            place += 1
            await asyncio.sleep(0.1)


async def lease(ports: list[str], ttl: str) -> None:
    """Keep a key's lease alive until stdin ends; then it goes, not before its time."""
    granted = (await anywhere(ports, lambda client: client.lease(int(ttl)))).id
    put = (await anywhere(ports, lambda client: client.put(b"aetcd/leased", b"1", lease=granted))).header.revision
    say("held")
    ended = asyncio.ensure_future(asyncio.to_thread(sys.stdin.read))
    last = False
    while not last:
        await asyncio.wait([ended], timeout=REFRESH_SECONDS)
        last = ended.done()
        sent = time.monotonic()
        answer = await anywhere(ports, lambda client: client.refresh_lease(granted))
        assert int(ttl) == answer.TTL, "the lease was lost"
    kv = await anywhere(ports, lambda client: client.get(b"aetcd/leased"))
    assert (kv.value, kv.version, kv.create_revision) == (b"1", 1, put)
    while await anywhere(ports, lambda client: client.get(b"aetcd/leased")) is not None:
        await asyncio.sleep(0.1)
    assert time.monotonic() - sent >= int(ttl), "the lease ended early"
    assert (await anywhere(ports, lambda client: client.get_lease_info(granted))).TTL == -1


async def lock(ports: list[str], journal: str) -> None:
    """Two workers hold the lock some times each, and write into the journal when they come and go."""
    await asyncio.gather(*(hold_often(ports, place, journal) for place in range(2)))


async def hold_often(ports: list[str], place: int, journal: str) -> None:
    held = 0
    while held < ROUNDS:
        place += 1
        try:
            async with connected(ports[place % len(ports)]) as client:
                while held < ROUNDS:
                    held += await hold_once(ports, client, journal)
        except FAILED:
            await asyncio.sleep(0.1)


async def hold_once(ports: list[str], client: aetcd.Client, journal: str) -> bool:
    """Return whether the lock was held. Whatever fails, it is not held afterwards."""
    held = client.lock(b"/locks/shared", ttl=60)
    try:
        if not await held.acquire(timeout=1):
            return False
        write(journal, "in aetcd")
        await asyncio.sleep(0.05)
        write(journal, "out aetcd")
        assert await held.release()
    except FAILED:
        if held.lease is not None:
            await anywhere(ports, lambda other: revoke(other, held.lease.id))
        raise
    return True


async def revoke(client: aetcd.Client, lease_id: int) -> None:
    """End a lease, if it is there."""
    if (await client.get_lease_info(lease_id)).TTL != -1:
        await client.revoke_lease(lease_id)


def write(journal: str, line: str) -> None:
    with open(journal, "a", encoding="ascii") as file:
        file.write(line + "\n")


def say(*words: object) -> None:
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    part, members, argument = sys.argv[1:]
    asyncio.run({"follow": follow, "lease": lease, "lock": lock}[part](members.split(","), argument))
