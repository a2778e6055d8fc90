"""A hash over the logical history: equal on all members at equal revision and compacted revision.

It is CRC-32C over the records of the revision table in order of revision: the revision (8 bytes main, 4 bytes sub), the
record's length (4 bytes, all big-endian) and the record, which is the encoded key-value or, for a deletion, `d` and the
key. Where records lie on disk, what is flushed and how far a compaction has come plays no part.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import google_crc32c

from raftkv.mvcc.backend import RECORD
from raftkv.mvcc.store import Store


class HistoryHash(NamedTuple):
    """A hash to be computed: of what lies behind the compaction and not behind `revision`."""

    revision: int
    compacted_revision: int
    compute: Callable[[], int]
    """Blocks: call it once, in a thread; the store may move on meanwhile."""


def hash_history(store: Store, revision: int = 0) -> HistoryHash:
    """Prepare the hash of the history up to a revision (0: the newest).

    The store has no compaction under way: what compaction is about to remove would still count.

    Raises:
        Compacted, FutureRev
    """
    store.check_revision(revision)
    assert not store.compacting, "wait for the compaction under way"
    last = revision if revision > 0 else store.revision
    runs = store.backend.history()
    if last < store.revision:
        runs = _up_to(runs, last)
    return HistoryHash(last, store.compacted_revision, lambda: _hash(runs))


def _hash(runs: Iterator[bytes]) -> int:
    crc = 0
    for run in runs:
        crc = google_crc32c.extend(crc, run)
    return crc


def _up_to(runs: Iterator[bytes], last: int) -> Iterator[bytes]:
    for run in runs:
        offset = 0
        while offset < len(run):
            key, length = RECORD.unpack_from(run, offset)
            if int.from_bytes(key[:8], "big") > last:
                yield run[:offset]
                return
            offset += RECORD.size + length
        yield run
