"""What the client raises, and how an answer becomes one of them.

ClientError
├── Refused          a definite failure: the request had no effect
├── Unavailable      a read got no answer anywhere
│   └── NotConnected no endpoint could be reached: nothing was sent, be it a read or a write
└── OutcomeUnknown   a write was sent and no definite answer came: it happened once or never; it was not repeated

When the server's error is one of etcd's, what is raised is also an instance of its class in `raftkv.errors`, so that
`except errors.Compacted` and `except Refused` both catch it, and `except OutcomeUnknown` catches a server's Timeout.
"""

from functools import lru_cache

from raftkv import errors
from raftkv.status import Code


class ClientError(Exception):
    """Base of all; `code` is the gRPC code, `message` the text of the server or of the connection."""

    def __init__(self, code: Code, message: str) -> None:
        # Not super(): the classes mixed in by `typed` take no arguments.
        Exception.__init__(self, message)
        self.code = code
        self.message = message

    def __reduce__(self) -> tuple[object, ...]:
        kind = next(
            kind for kind in (NotConnected, Unavailable, Refused, OutcomeUnknown, ClientError) if isinstance(self, kind)
        )
        return typed, (kind, self.code, self.message)


class Refused(ClientError):
    """The server said no, or the call cannot succeed; nothing changed."""


class Unavailable(ClientError):
    """A read got no answer anywhere; or, as `NotConnected`, nothing was sent at all."""


class NotConnected(Unavailable):
    """No endpoint could be reached within the dial timeout, so nothing was sent."""


class OutcomeUnknown(ClientError):
    """A write may or may not have taken effect. Read to find out; repeat it only if twice is as good as once."""


# Codes a server gives only to a request that it did not carry out.
_DEFINITE_CODES = frozenset(
    {
        Code.INVALID_ARGUMENT,
        Code.NOT_FOUND,
        Code.ALREADY_EXISTS,
        Code.PERMISSION_DENIED,
        Code.FAILED_PRECONDITION,
        Code.OUT_OF_RANGE,
        Code.UNIMPLEMENTED,
        Code.DATA_LOSS,
        Code.UNAUTHENTICATED,
    }
)
# Errors that are definite though their codes are not: RESOURCE_EXHAUSTED is also what a server says of an answer
# too large to send, after the write.
_DEFINITE_ERRORS = (errors.NoLeader, errors.NoSpace, errors.RequestTooManyRequests, errors.NoPasswordUser)


@lru_cache(maxsize=1)
def _known() -> dict[tuple[Code, str], type[errors.EtcdError]]:
    return {(kind.CODE, kind.TEXT): kind for kind in errors.EtcdError.__subclasses__()}


_mixed: dict[tuple[type[ClientError], type[errors.EtcdError]], type[ClientError]] = {}


def known(code: Code, message: str) -> type[errors.EtcdError] | None:
    """The etcd error with this code and text."""
    return _known().get((code, message))


def typed(kind: type[ClientError], code: Code, message: str) -> ClientError:
    """Make an error of `kind` that is also the etcd error it reports, if it is one."""
    etcd = known(code, message)
    if etcd is None:
        return kind(code, message)
    both = _mixed.get((kind, etcd))
    if both is None:
        both = _mixed[kind, etcd] = type(etcd.__name__, (kind, etcd), {"__doc__": etcd.TEXT})
    return both(code, message)


def definite(code: Code, message: str) -> bool:
    """Whether this answer proves that the request was not carried out."""
    return code in _DEFINITE_CODES or known(code, message) in _DEFINITE_ERRORS


def classify(code: Code, message: str, *, read: bool) -> ClientError:
    """The error for a request that was sent and ended so."""
    if read:
        unanswered = code in (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.CANCELED)
        return typed(Unavailable if unanswered else Refused, code, message)
    return typed(Refused if definite(code, message) else OutcomeUnknown, code, message)
