"""What the clients of one process have under way, all together, and how much of it there may be."""

import resource
import sys

from raftkv.http.turns import Turns

UNBOUNDED = 1 << 62
OWN_FILES = 128
"""Open files that are not connections of clients: the log, the store, other members."""


class Load:
    """Plain numbers, which several servers and applications share, and whose turn it is.

    `bytes` counts messages that arrive or are worked on, and answers that wait for a client to take them; one that
    leaves at once does not count. `streams` counts what stays open: calls that stream, and requests of any kind that
    had not arrived whole when they began.
    """

    __slots__ = (
        "bytes",
        "connections",
        "max_bytes",
        "max_connections",
        "max_streams",
        "refused_calls",
        "refused_connections",
        "streams",
        "turns",
    )

    def __init__(
        self, max_bytes: int = UNBOUNDED, max_connections: int = UNBOUNDED, max_streams: int = UNBOUNDED
    ) -> None:
        self.bytes = 0
        self.connections = 0
        self.streams = 0
        self.max_bytes = max_bytes
        self.max_connections = max_connections
        self.max_streams = max_streams
        self.refused_calls = 0
        self.refused_connections = 0
        self.turns = Turns()


def connections_allowed() -> int:
    """How many connections of clients the limit of open files allows."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else max(soft - OWN_FILES, 16)
