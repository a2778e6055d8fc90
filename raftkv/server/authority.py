"""How a member finds out who calls: passwords are checked before the log and off the event loop, tokens in memory.

A log-in goes through the log only to make a simple token known to all members. By the time it is applied the users may
have changed; then it gives no token, and the password is checked anew.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import TypeVar

from raftkv import errors
from raftkv.auth import AuthStore, Caller, passwords
from raftkv.auth.tokens import JwtTokens, SimpleTokens
from raftkv.pb import log_pb2
from raftkv.server.proposals import LOG_IN, Operation
from raftkv.server.worker import Blocking
from raftkv.status import Code, StatusError

T = TypeVar("T")

logger = logging.getLogger(__name__)

MAX_CHECKS = 100
"""Passwords that wait to be checked; then callers are asked to come later, for a check takes a tenth of a second."""

VERIFY_ONLY = "auth: token signing attempted with verify-only key"

Propose = Callable[[Operation, bytes], "asyncio.Future[list[bytes]]"]
Metadata = Mapping[str, str | bytes]


class Authority:
    """Checks passwords, makes tokens, and tells whose they are."""

    def __init__(
        self,
        store: AuthStore,
        tokens: SimpleTokens | JwtTokens,
        *,
        run: Blocking,
        propose: Propose,
        linearizable: Callable[[], "asyncio.Future[None]"],
        bcrypt_cost: int = passwords.DEFAULT_COST,
    ) -> None:
        """`run` is for blocking work; it may take several calls at a time."""
        self._loop = asyncio.get_running_loop()
        self._store = store
        self._tokens = tokens
        self._run = run
        self._propose = propose
        self._linearizable = linearizable
        self._cost = bcrypt_cost
        self._checks = 0
        self._nobodys_hash: bytes | None = None
        self.watchers: dict[Callable[[], None], None] = {}
        """Called when rights may have changed."""
        store.on_void = self._void
        store.on_change = self._changed

    def _void(self, user: str | None) -> None:
        if isinstance(self._tokens, SimpleTokens):
            self._tokens.void(user)

    def _changed(self) -> None:
        for changed in tuple(self.watchers):
            changed()

    # Who calls

    async def identify(self, metadata: Metadata, certificate_user: str = "") -> Caller | None:
        """Find out who calls, by the token in a call's metadata, or else by the certificate; None: by neither.

        Raises:
            InvalidAuthToken: it is nobody's, or its time is up.
            Stopped, Timeout and their kin: this member does not know the token yet, and cannot ask.
        """
        token = metadata.get("token")
        if token is None:
            token = metadata.get("authorization")
        if token is None:
            return Caller(certificate_user, self._store.revision) if certificate_user else None
        if not isinstance(token, str):
            raise errors.InvalidAuthToken
        token = token.removeprefix("Bearer ")
        if isinstance(self._tokens, JwtTokens):
            return await self._identify_jwt(self._tokens, token)
        user = self._tokens.user(token)
        if user is None and self._tokens.index(token):
            # Made elsewhere, it may not have come here yet.
            await self._linearizable()
            user = self._tokens.user(token)
        if user is None:
            raise errors.InvalidAuthToken
        return Caller(user, self._store.revision)

    async def _identify_jwt(self, tokens: JwtTokens, token: str) -> Caller:
        caller = tokens.caller(token)
        if caller is None:
            raise errors.InvalidAuthToken
        if caller.revision > self._store.revision:
            await self._linearizable()
            if caller.revision > self._store.revision:
                raise errors.InvalidAuthToken
        return caller

    # Passwords

    async def log_in(self, name: str, password: str) -> str:
        """Check a password; a token for whoever gave it.

        Raises:
            AuthNotEnabled
            AuthFailed: there is no such user, or the password is another.
            NoPasswordUser: the user cannot come by password.
            RequestTooManyRequests: many others are being checked.
        """
        await self._linearizable()
        while True:
            if not self._store.enabled:
                raise errors.AuthNotEnabled
            revision = self._store.revision
            await self._check(name, password)
            if isinstance(self._tokens, JwtTokens):
                return await self._sign(self._tokens, name, revision)
            prefix = self._tokens.new_prefix()
            request = log_pb2.LogIn(name=name, token_prefix=prefix, revision=revision)
            try:
                _, token = await self._propose(LOG_IN, request.SerializeToString())
            except errors.AuthOldRevision:
                continue
            return token.decode()

    async def _sign(self, tokens: JwtTokens, name: str, revision: int) -> str:
        if not tokens.can_sign:
            raise StatusError(Code.UNKNOWN, VERIFY_ONLY)
        return await self._blocking(lambda: tokens.sign(name, revision))

    async def _check(self, name: str, password: str) -> None:
        hashed = self._store.password_hash(name)
        if hashed is None:
            # As slow as for a user who exists: nobody learns names by the clock.
            if self._nobodys_hash is None:
                made = await self._blocking(lambda: passwords.hash_password("", self._cost))
                self._nobodys_hash = passwords.decode_hash(made)
            await self._blocking(lambda: passwords.matches(password, self._nobodys_hash or b""))
            logger.warning("a log-in of an unknown user was refused")
            raise errors.AuthFailed
        if not await self._blocking(lambda: passwords.matches(password, hashed)):
            logger.warning("a log-in of user %r with a wrong password was refused", name)
            raise errors.AuthFailed

    async def hash_password(self, password: str) -> str:
        """What goes to the log instead of a password.

        Raises:
            RequestTooManyRequests
            StatusError: it is too long.
        """
        return await self._blocking(lambda: passwords.hash_password(password, self._cost))

    async def _blocking(self, work: Callable[[], T]) -> T:
        if self._checks >= MAX_CHECKS:
            raise errors.RequestTooManyRequests
        future: asyncio.Future[T] = self._loop.create_future()
        results: list[T] = []

        def done(error: BaseException | None) -> None:
            self._checks -= 1
            if future.done():
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(results[0])

        self._checks += 1
        self._run(lambda: results.append(work()), done)
        return await future

    # What the log does

    def logged_in(self, request: log_pb2.LogIn, index: int) -> str:
        """Note the token of a log-in that is applied now.

        Raises:
            AuthNotEnabled
            AuthOldRevision: users have changed since the password was checked.
        """
        if not self._store.enabled:
            raise errors.AuthNotEnabled
        if request.revision != self._store.revision:
            raise errors.AuthOldRevision
        token = SimpleTokens.token(request.token_prefix, index)
        if isinstance(self._tokens, SimpleTokens):
            self._tokens.assign(token, request.name)
        return token
