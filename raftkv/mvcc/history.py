"""The past in revision order, in slices: what a reader that is behind is given of it."""

from contextlib import closing
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from raftkv.mvcc.store import Store


class Record(NamedTuple):
    """One change of one key; `chunk` is the new version, of a deletion only key and mod revision."""

    main: int
    sub: int
    deleted: bool
    key: bytes
    chunk: bytes


class Slice(NamedTuple):
    """Every change of the revisions from `first` to `last`, in order."""

    first: int
    last: int
    records: list[Record]


def read_slice(store: "Store", first: int, *, max_bytes: int, max_revisions: int) -> Slice:
    """Read whole revisions from `first` on, until one of the bounds is reached.

    `first` lies at or above the compacted revision: below it changes are missing.
    """
    records: list[Record] = []
    size = 0
    with closing(store.changes_from(first)) as found:
        for record in found:
            enough = size >= max_bytes or record.main - first >= max_revisions
            if enough and records and record.main != records[-1].main:
                return Slice(first, records[-1].main, records)
            records.append(record)
            size += len(record.chunk)
    return Slice(first, store.revision, records)
