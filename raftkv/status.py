"""gRPC status codes and the one exception that carries them.

The lowest module of the house: the RPC layer turns a `StatusError` into trailers, `raftkv.errors` lists the ones etcd
knows, and the stores raise those. Nothing here knows of gRPC libraries or of etcd.
"""

from enum import IntEnum


class Code(IntEnum):
    """gRPC status codes, with the numbers of the wire (`grpc-status`)."""

    OK = 0
    CANCELED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


GO_NAMES = {code: "".join(word.capitalize() for word in code.name.split("_")) for code in Code} | {Code.OK: "OK"}
"""The codes as Go's gRPC writes them."""


class StatusError(Exception):
    """A call ends with this status; `message` reaches the client byte for byte."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.code.name}, {self.message!r})"
