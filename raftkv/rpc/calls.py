"""What a method was asked and how the calls ended, for metrics."""

from collections import Counter
from collections.abc import Mapping

from raftkv.histogram import Histogram
from raftkv.status import Code

_CODES = len(Code)


class Calls:
    """Plain numbers of one method. Sizes are of messages, uncompressed and without their prefixes."""

    __slots__ = ("handled", "handling", "received", "received_bytes", "sent", "sent_bytes", "started")

    def __init__(self) -> None:
        self.started = 0
        self.handled = [0] * _CODES
        """Calls that ended, by code; one whose client left is CANCELED."""
        self.received = 0
        self.received_bytes = 0
        self.sent = 0
        self.sent_bytes = 0
        self.handling: Histogram | None = None
        """How long handlers took, where somebody wants to know."""


class Said:
    """What calls said in one of their headers. Clients choose the values, so only the first few are told apart."""

    __slots__ = ("_header", "counts")

    UNKNOWN = b"unknown"
    MAX_VALUES = 64
    MAX_BYTES = 64

    def __init__(self, header: bytes) -> None:
        """`header` is a lower-case name."""
        self._header = header
        self.counts: Counter[tuple[bool, bytes]] = Counter()
        """By whether the call was unary, and the value; `UNKNOWN` stands for no value, and for all later ones."""

    def count(self, headers: Mapping[bytes, bytes], unary: bool) -> None:
        """Count a call."""
        seen = unary, headers.get(self._header, self.UNKNOWN)
        if seen not in self.counts and (len(self.counts) >= self.MAX_VALUES or len(seen[1]) > self.MAX_BYTES):
            seen = unary, self.UNKNOWN
        self.counts[seen] += 1
