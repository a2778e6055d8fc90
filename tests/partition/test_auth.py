"""Users are switched on and off while the network is cut and clients write: no member ends with other users or keys."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from raftkv import errors
from raftkv.client import AsyncClient, Client, ClientError, access
from raftkv.pb import rpc_pb2 as pb
from tests.cluster.test_auth import PASSWORD, hashes, set_up, stored
from tests.partition.ground import Ground, ground, until

SURE_SECONDS = 240.0


async def surely(work: Callable[[], Awaitable[object]]) -> None:
    """Do it again until it is known to be done. All that is asked here may be done twice."""
    async with asyncio.timeout(SURE_SECONDS):
        while True:
            try:
                await work()
                return
            except errors.RoleAlreadyExist:
                return
            except ClientError:
                await asyncio.sleep(0.1)


async def write(running: Ground, user: str, name: str, done: asyncio.Event, outcomes: set[str]) -> None:
    """Write through each member in turn, whatever becomes of it."""
    login = {"user": user, "password": PASSWORD} if user else {}
    number = 0
    while not done.is_set():
        member = running.members[number % len(running.members)]
        async with AsyncClient(member.endpoint, timeout=1.0, dial_timeout=1.0, **login) as client:  # type: ignore[arg-type]
            for _ in range(60):
                number += 1
                try:
                    await client.put(f"/{name}/{number % 10}", str(number))
                    outcomes.add(f"{user or 'nobody'} wrote /{name}")
                except ClientError as error:
                    outcomes.add(f"{user or 'nobody'}: {error}")
                    await asyncio.sleep(0)
                if done.is_set():
                    break


async def change(running: Ground, turns: int) -> None:
    """Cut off the leader, then one that follows, and so on; change users and switch while it is away."""
    async with AsyncClient(running.endpoints, user="root", password=PASSWORD, timeout=3.0) as root:
        for turn in range(turns):
            leader = await asyncio.to_thread(running.leading)
            away = leader if turn % 2 == 0 else running.others(leader)[0]
            running.separate([away], running.others(away))
            role = pb.AuthRoleAddRequest(name=f"role {turn}")
            await surely(lambda role=role: root.call(access.ROLE_ADD, role))
            await surely(lambda: root.call(access.AUTH_DISABLE, pb.AuthDisableRequest()))
            await surely(lambda: root.put("by anyone", "x"))
            if turn % 2:
                running.heal()
            await surely(lambda: root.call(access.AUTH_ENABLE, pb.AuthEnableRequest()))
            running.heal()
            await surely(lambda: root.put("turn", "x"))


@pytest.mark.timeout(900)
@pytest.mark.parametrize("turns", [2, pytest.param(12, marks=pytest.mark.soak)])
def test_enabled_and_disabled_in_partitions_no_member_differs(tmp_path: Path, turns: int) -> None:
    outcomes: set[str] = set()

    async def main() -> None:
        done = asyncio.Event()
        who = (("ann", "ann"), ("ann", "bob"), ("", "no"))
        writers = [asyncio.create_task(write(running, user, name, done, outcomes)) for user, name in who]
        try:
            await change(running, turns)
        finally:
            done.set()
            await asyncio.gather(*writers)

    with ground(tmp_path, 3) as running:
        with Client(running.endpoints, timeout=20.0) as client:
            set_up(client)
        running.credentials = {"user": "root", "password": PASSWORD}
        asyncio.run(main())

        def answers() -> bool:
            with contextlib.suppress(ClientError):
                return bool(hashes(root, running.members))
            return False

        with Client(running.endpoints, user="root", password=PASSWORD, timeout=20.0) as root:
            until(answers, "every member answers root")
            assert len(hashes(root, running.members)) == 1
        running.stop()
        states = [stored(member) for member in running.members]
        assert states[0] == states[1] == states[2]
    assert "ann wrote /ann" in outcomes
    assert f"ann: {errors.PermissionDenied.TEXT}" in outcomes
    assert f"nobody: {errors.UserEmpty.TEXT}" in outcomes
