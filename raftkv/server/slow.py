"""What took too long, said in the log with its parts, so that one can tell a slow disk from a long queue.

Keys and sizes are named, values never: they may be secrets. Neither is any part of a request about users.
"""

import logging
from collections.abc import Callable, Iterable

from raftkv.pb import log_pb2, rpc_pb2

logger = logging.getLogger(__name__)

_KEY_BYTES = 128

Fields = dict[str, str | int]


class Slow:
    """Compares times with one threshold and logs what is over it; a batch is one line, that of its oldest request."""

    __slots__ = ("applies", "clock", "last_fsync_seconds", "threshold_seconds")

    def __init__(self, clock: Callable[[], float], threshold_seconds: float) -> None:
        """`clock` has the zero of the loop's time, which itself may stand still during a turn of the loop (uvloop)."""
        self.clock = clock
        self.threshold_seconds = threshold_seconds
        self.applies = 0
        """Batches of which some request took too long."""
        self.last_fsync_seconds = 0.0

    def applied(self, framed: bytes, *, added: float, handed_over: float, started: float) -> None:
        """Judge the oldest proposal (`raftkvpb.Batch` of one) of a batch that was applied just now."""
        now = self.clock()
        if now - added <= self.threshold_seconds:
            return
        self.applies += 1
        self._log(
            "a request took too long",
            now - added,
            {
                "queue": _ms(handed_over - added),
                "commit": _ms(started - handed_over),
                "apply": _ms(now - started),
                "last-fsync": _ms(self.last_fsync_seconds),
                **describe(log_pb2.Batch.FromString(framed).proposals[0]),
            },
        )

    def confirmed(self, reads: int, added: float) -> None:
        """Judge the wait of the oldest of some reads, which may be served now."""
        took = self.clock() - added
        if took > self.threshold_seconds:
            self._log("linearizable reads waited too long", took, {"reads": reads})

    def ranged(self, request: rpc_pb2.RangeRequest, took: float, pieces: Iterable[bytes]) -> None:
        """Judge the reading of a range, in seconds of work."""
        if took > self.threshold_seconds:
            self._log("a range took too long", took, {"key": _key(request.key), "bytes": sum(map(len, pieces))})

    def _log(self, text: str, took: float, fields: Fields) -> None:
        told: Fields = {"took": _ms(took), "expected-duration": _ms(self.threshold_seconds), **fields}
        logger.warning(text, extra={"fields": told})


def describe(proposal: log_pb2.Proposal) -> Fields:
    """Say what a proposal is about, without a value."""
    name = proposal.WhichOneof("operation") or ""
    fields: Fields = {"operation": name, "bytes": proposal.ByteSize()}
    if name == "put":
        fields["key"] = _key(proposal.put.key)
    elif name == "delete_range":
        fields["key"] = _key(proposal.delete_range.key)
    elif name == "txn":
        txn = proposal.txn
        fields |= {"compares": len(txn.compare), "success": len(txn.success), "failure": len(txn.failure)}
    return fields


def _key(key: bytes) -> str:
    text = key[:_KEY_BYTES].decode("utf-8", "backslashreplace")
    return text if len(key) <= _KEY_BYTES else text + "…"


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.1f}ms"
