"""What a method was asked and how the calls ended, for metrics."""

from raftkv.histogram import Histogram
from raftkv.status import Code


class Calls:
    """Plain numbers of one method. Sizes are of messages, uncompressed and without their prefixes."""

    __slots__ = ("handled", "handling", "received", "received_bytes", "sent", "sent_bytes", "started")

    def __init__(self) -> None:
        self.started = 0
        self.handled = [0] * len(Code)
        """Calls that ended, by code; one whose client left is CANCELED."""
        self.received = 0
        self.received_bytes = 0
        self.sent = 0
        self.sent_bytes = 0
        self.handling: Histogram | None = None
        """How long handlers took, where somebody wants to know."""
