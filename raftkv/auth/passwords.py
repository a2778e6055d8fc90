"""Passwords, kept as bcrypt hashes. All of this takes a tenth of a second of a processor, so it belongs in a thread."""

import base64

import bcrypt

from raftkv.status import Code, StatusError

DEFAULT_COST = 10
MAX_BYTES = 72
"""bcrypt sees no more of a password."""


def hash_password(password: str, cost: int) -> str:
    """The hash of a password in base64, as requests carry it to the log. Blocks.

    Raises:
        StatusError: it is longer than bcrypt can tell from others, in the words of Go's bcrypt; or it has a NUL, and
            bcrypt takes "a" and "a\\0a" for the same.
    """
    encoded = password.encode()
    if b"\0" in encoded:
        raise StatusError(Code.INVALID_ARGUMENT, "raftkv: a password must not contain a NUL")
    if len(encoded) > MAX_BYTES:
        raise StatusError(Code.UNKNOWN, f"bcrypt: password length exceeds {MAX_BYTES} bytes")
    return base64.b64encode(bcrypt.hashpw(encoded, bcrypt.gensalt(cost))).decode()


def decode_hash(hashed: str) -> bytes:
    """The hash that is stored."""
    return base64.b64decode(hashed)


def matches(password: str, hashed: bytes) -> bool:
    """Whether a password is the one that was hashed. Blocks."""
    encoded = password.encode()
    if len(encoded) > MAX_BYTES or b"\0" in encoded:
        return False
    return bcrypt.checkpw(encoded, hashed)
