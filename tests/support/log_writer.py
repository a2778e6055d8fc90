"""Appends to a log until it is killed: `python -m tests.support.log_writer DIRECTORY FIRST_INDEX SEED`.

Each number on its standard output is the last index of a write that was acknowledged.
"""

import random
import sys

from raftkv.disk import OsDisk
from raftkv.raft import Entry, EntryKind
from raftkv.wal import Wal

SEGMENT_BYTES = 64 << 10


def value(index: int) -> bytes:
    """What the entry of this index holds, whoever writes it."""
    return random.Random(index).randbytes(index * 7919 % 3000)


def main(directory: str, first: int, seed: int) -> None:
    if first == 1:
        wal = Wal.create(OsDisk(), directory, b"identity", SEGMENT_BYTES)
    else:
        wal, _ = Wal.open(OsDisk(), directory, SEGMENT_BYTES)
        wal.settle()
    rng = random.Random(seed)
    while True:
        count = rng.randint(1, 4)
        entries = [Entry(1, index, EntryKind.NORMAL, value(index)) for index in range(first, first + count)]
        wal.write([wal.encode((1, 1, first - 1), entries)])
        first += count
        print(first - 1, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
