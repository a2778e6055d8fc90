"""What the client raises.

ClientError
├── Refused          the server answered: the request had no effect, or a read failed; `code` and `message` are its
├── Unavailable      no endpoint could be reached: nothing was sent
└── OutcomeUnknown   a write was sent and its answer was lost: it may have happened, once; it was not repeated
"""

from raftkv.status import Code


class ClientError(Exception):
    """Base; `code` is the gRPC code, `message` the text."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class Refused(ClientError):
    """A definite failure."""


class Unavailable(ClientError):
    """No endpoint answered; a write was not sent, or a read was tried everywhere."""


class OutcomeUnknown(ClientError):
    """A write may or may not have taken effect. Read to find out; repeat it only if that is harmless."""


_AMBIGUOUS = frozenset({Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.CANCELED, Code.UNKNOWN, Code.INTERNAL})
_NEVER_SENT = ("failed to connect to all addresses", "connection refused", "no leader")
_RETRY_READ = frozenset({Code.UNAVAILABLE})


def never_sent(code: Code, message: str) -> bool:
    """Whether this failure proves that the request reached no server's log."""
    text = message.lower()
    return code is Code.UNAVAILABLE and any(words in text for words in _NEVER_SENT)


def may_retry(code: Code, message: str, *, read: bool) -> bool:
    """Whether the same request may be sent to another endpoint."""
    return never_sent(code, message) or (read and code in _RETRY_READ)


def classify(code: Code, message: str, *, read: bool) -> ClientError:
    """The error to raise for a call that ended so and is not retried."""
    if never_sent(code, message):
        return Unavailable(code, message)
    if code in _AMBIGUOUS and not read:
        return OutcomeUnknown(code, message)
    return (Unavailable if code is Code.UNAVAILABLE else Refused)(code, message)
