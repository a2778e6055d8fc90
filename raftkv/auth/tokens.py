"""Tokens: what a caller shows instead of its password.

Simple tokens are random letters that every member learns through the log and keeps in memory for a while. JSON web
tokens say themselves who their owner is and at which auth revision they were made, under a signature. What signs them
is imported where they are in use: it would take a seventh of every member's start.
"""

import logging
import secrets
import string
from collections.abc import Callable
from typing import Any

from raftkv.auth.caller import Caller
from raftkv.duration import parse_duration

logger = logging.getLogger(__name__)

Clock = Callable[[], float]

PREFIX_LETTERS = 16
DEFAULT_JWT_TTL_SECONDS = 300.0
METHODS = (
    *("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    *("ES256", "ES384", "ES512", "EdDSA", "HS256", "HS384", "HS512"),
)

_SIGNATURE_ALONE: Any = {f"verify_{claim}": False for claim in ("aud", "exp", "iat", "iss", "jti", "nbf", "sub")}
"""Times are compared with a clock that is handed in; what others are free to say in a token, they may."""

INVALID_OPTIONS = "auth: invalid auth options"


class TokenError(Exception):
    """The setting of --auth-token is refused; the message is one line."""


class SimpleTokens:
    """The simple tokens one member knows. Times are seconds of `clock`.

    Invariant: tokens stand in the order in which they expire, since each use puts one at the end.
    """

    def __init__(self, ttl_seconds: float, clock: Clock) -> None:
        """A token is forgotten when it was not used for `ttl_seconds`."""
        self._ttl = ttl_seconds
        self._clock = clock
        self._tokens: dict[str, tuple[str, float]] = {}

    def __len__(self) -> int:
        return len(self._tokens)

    @staticmethod
    def new_prefix() -> str:
        """Letters nobody can guess."""
        return "".join(secrets.choice(string.ascii_letters) for _ in range(PREFIX_LETTERS))

    @staticmethod
    def token(prefix: str, index: int) -> str:
        """The token of a log-in applied at this index."""
        return f"{prefix}.{index}"

    @staticmethod
    def index(token: str) -> int:
        """Where in the log a token was made; 0: this is no simple token."""
        prefix, _, index = token.partition(".")
        return int(index) if prefix and index.isascii() and index.isdecimal() and len(index) < 20 else 0

    def assign(self, token: str, user: str) -> None:
        """Take note of a new token."""
        self._forget_expired()
        self._tokens[token] = user, self._clock() + self._ttl

    def user(self, token: str) -> str | None:
        """Whose token it is, and has it for some time more; None: nobody's."""
        self._forget_expired()
        found = self._tokens.pop(token, None)
        if found is None:
            return None
        self._tokens[token] = found[0], self._clock() + self._ttl
        return found[0]

    def void(self, user: str | None) -> None:
        """Forget the tokens of a user; None: all."""
        if user is None:
            self._tokens.clear()
        else:
            self._tokens = {token: one for token, one in self._tokens.items() if one[0] != user}

    def _forget_expired(self) -> None:
        now = self._clock()
        while self._tokens:
            token, (_, until) = next(iter(self._tokens.items()))
            if until > now:
                return
            del self._tokens[token]


class JwtTokens:
    """Signs and checks JSON web tokens with the claims `username`, `revision` and `exp`."""

    def __init__(self, *, method: str, private: bytes | None, public: bytes, ttl_seconds: float, now: Clock) -> None:
        """Keys are PEM, or the secret of an HS method as both. `now` is wall clock: seconds since 1970."""
        self._method = method
        self._private = private
        self._public = public
        self._ttl = ttl_seconds
        self._now = now

    @property
    def can_sign(self) -> bool:
        """Whether there is a private key; else others make the tokens."""
        return self._private is not None

    def sign(self, user: str, revision: int) -> str:
        """Make a token. Blocks for some milliseconds."""
        import jwt

        assert self._private is not None, "can_sign comes first"
        claims = {"username": user, "revision": revision, "exp": int(self._now() + self._ttl)}
        return jwt.encode(claims, self._private, algorithm=self._method)

    def caller(self, token: str) -> Caller | None:
        """Whose token it is; None: it is not one of ours, or its time is up."""
        import jwt

        try:
            claims = jwt.decode(token, self._public, algorithms=[self._method], options=_SIGNATURE_ALONE)
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
            return None
        if not self._in_time(claims):
            return None
        user, revision = claims.get("username"), claims.get("revision")
        if not isinstance(user, str) or not user or isinstance(revision, bool):
            return None
        if isinstance(revision, float) and revision.is_integer():
            revision = int(revision)
        if not isinstance(revision, int) or not 0 < revision < 1 << 64:
            return None
        return Caller(user, revision)

    def _in_time(self, claims: dict[str, Any]) -> bool:
        """Whether a token is of this time; without a word about it, it always is."""
        now = self._now()
        ends, begins = claims.get("exp", now + 1), claims.get("nbf", now)
        if isinstance(ends, bool) or isinstance(begins, bool):
            return False
        return isinstance(ends, (int, float)) and isinstance(begins, (int, float)) and begins <= now < ends


def parse(setting: str, *, ttl_seconds: float, clock: Clock, now: Clock) -> SimpleTokens | JwtTokens:
    """Make what `--auth-token` asks for: `simple`, or `jwt,pub-key=FILE,priv-key=FILE,sign-method=M,ttl=10m`.

    Raises:
        TokenError
    """
    kind, *pairs = setting.split(",")
    options: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or name in options:
            raise TokenError(f"{INVALID_OPTIONS}: {pair!r} is not one name=value")
        options[name] = value
    if kind == "simple":
        return SimpleTokens(ttl_seconds, clock)
    if kind != "jwt":
        raise TokenError(f"{INVALID_OPTIONS}: {kind!r} is neither simple nor jwt")
    return _jwt(options, now)


def _jwt(options: dict[str, str], now: Clock) -> JwtTokens:
    import jwt

    unknown = set(options) - {"pub-key", "priv-key", "sign-method", "ttl"}
    if unknown:
        logger.warning("--auth-token: jwt has no option %s", min(unknown))
    method = options.get("sign-method", "")
    if method not in METHODS:
        raise TokenError(f"{INVALID_OPTIONS}: auth: invalid auth signature method {method!r}; use {', '.join(METHODS)}")
    try:
        ttl = parse_duration(options["ttl"]) if "ttl" in options else DEFAULT_JWT_TTL_SECONDS
    except ValueError as error:
        raise TokenError(f"{INVALID_OPTIONS}: ttl: {error}") from error
    if ttl <= 0:
        raise TokenError(f"{INVALID_OPTIONS}: ttl must be positive")
    private, public = (_read(options.get(name)) for name in ("priv-key", "pub-key"))
    try:
        found = _keys(method, private, public)
        tokens = JwtTokens(method=method, private=found[0], public=found[1], ttl_seconds=ttl, now=now)
        # A key of another kind than the method's is found now, not at the first caller.
        if tokens.can_sign and tokens.caller(tokens.sign("probe", 1)) is None:
            raise TokenError(f"{INVALID_OPTIONS}: auth: public and private keys don't match")
    except (jwt.PyJWTError, ValueError, TypeError) as error:
        raise TokenError(f"{INVALID_OPTIONS}: {' '.join(str(error).split())}") from error
    return tokens


def _read(path: str | None) -> bytes | None:
    if not path:
        return None
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise TokenError(f"{INVALID_OPTIONS}: cannot read {path}: {error.strerror or error}") from error


def _keys(method: str, private: bytes | None, public: bytes | None) -> tuple[bytes | None, bytes]:
    """Private and public key; the public one follows from the private one."""
    if method.startswith("HS"):
        if not private:
            raise TokenError(f"{INVALID_OPTIONS}: auth: missing key data")
        return private, private
    from cryptography.hazmat.primitives import serialization

    if private is None:
        if public is None:
            raise TokenError(f"{INVALID_OPTIONS}: auth: missing key data")
        serialization.load_pem_public_key(public)
        return None, public
    if public is None:
        key = serialization.load_pem_private_key(private, password=None)
        form = serialization.PublicFormat.SubjectPublicKeyInfo
        public = key.public_key().public_bytes(serialization.Encoding.PEM, form)
    return private, public
