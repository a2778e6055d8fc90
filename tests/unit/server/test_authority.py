"""Passwords and tokens at one member: what is checked where, by a store of the test's own."""

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import cast

import pytest

from raftkv import errors
from raftkv.auth import AuthStore, Caller, passwords
from raftkv.auth.tokens import JwtTokens, SimpleTokens
from raftkv.pb import log_pb2
from raftkv.server import authority as module
from raftkv.server.authority import Authority

KEY = b"a secret of at least sixty-four bytes, as the longest of the methods wants"


class World:
    """A store at revision 7 with one user, and work that waits until the test does it."""

    def __init__(self, tokens: SimpleTokens | JwtTokens) -> None:
        hashed = passwords.decode_hash(passwords.hash_password("right", 4))
        self.store = SimpleNamespace(enabled=True, revision=7, password_hash={"ann": hashed}.get)
        self.work: list[tuple[Callable[[], None], Callable[[BaseException | None], None]]] = []
        self.authority = Authority(
            cast(AuthStore, self.store),
            tokens,
            run=lambda work, done: self.work.append((work, done)),
            propose=self.propose,
            linearizable=self.caught_up,
            bcrypt_cost=4,
        )

    def caught_up(self) -> "asyncio.Future[None]":
        done = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done

    def propose(self, *arguments: object) -> "asyncio.Future[tuple[int, bytes]]":
        raise AssertionError("nothing is proposed")

    async def checks(self, name: str) -> int:
        """How many passwords are hashed or compared until a log-in is refused."""
        asked, done = asyncio.create_task(self.authority.log_in(name, "wrong")), 0
        while not asked.done():
            await asyncio.sleep(0)
            while self.work:
                work, told = self.work.pop(0)
                work()
                told(None)
                done += 1
        assert isinstance(asked.exception(), errors.AuthFailed)
        return done


def simple() -> SimpleTokens:
    return SimpleTokens(300.0, lambda: 0.0)


def test_a_password_is_compared_for_nobody_too() -> None:
    async def scenario() -> None:
        world = World(simple())
        await world.checks("nobody")
        assert await world.checks("nobody") == await world.checks("ann") == 1

    asyncio.run(scenario())


def test_so_many_passwords_wait_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_CHECKS", 2)

    async def scenario() -> None:
        world = World(simple())
        waiting = [asyncio.create_task(world.authority.log_in("ann", "wrong")) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(errors.RequestTooManyRequests):
            await asyncio.wait_for(world.authority.log_in("ann", "wrong"), 90)
        for work, told in world.work:
            work()
            told(None)
        assert all(isinstance(one, errors.AuthFailed) for one in await asyncio.gather(*waiting, return_exceptions=True))

    asyncio.run(scenario())


def test_a_log_in_from_before_users_changed_is_none() -> None:
    async def scenario() -> None:
        world = World(simple())
        with pytest.raises(errors.AuthOldRevision):
            world.authority.logged_in(log_pb2.LogIn(name="ann", token_prefix="p", revision=6), 5)
        assert world.authority.logged_in(log_pb2.LogIn(name="ann", token_prefix="p", revision=7), 5) == "p.5"

    asyncio.run(scenario())


def test_a_token_of_a_revision_that_never_was_is_nobodys() -> None:
    async def scenario() -> None:
        tokens = JwtTokens(method="HS256", private=KEY, public=KEY, ttl_seconds=300, now=lambda: 1000.0)
        world = World(tokens)
        assert await world.authority.identify({"token": tokens.sign("ann", 7)}) == Caller("ann", 7)
        with pytest.raises(errors.InvalidAuthToken):
            await world.authority.identify({"token": tokens.sign("ann", 8)})

    asyncio.run(scenario())
