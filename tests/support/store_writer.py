"""Puts, deletes and flushes until it is killed: `python -m tests.support.store_writer DIRECTORY`.

It prints the number of puts applied before each flush, once when the flush begins and once when it is durable.
"""

import struct
import sys

from raftkv.mvcc import LmdbBackend, Store
from raftkv.pb import rpc_pb2 as pb

APPLIED = b"applied"
NUMBER = struct.Struct(">Q")
MAP_BYTES = 1 << 30
PUTS_PER_FLUSH = 300
KEYS = 1000


def key(number: int) -> bytes:
    """The key that this put writes."""
    return b"k%04d" % (number * 7919 % KEYS)


def applied(store: Store) -> int:
    """How many puts the store holds."""
    stored = store.get_meta(APPLIED)
    return 0 if stored is None else int(NUMBER.unpack(stored)[0])


def main(directory: str) -> None:
    backend = LmdbBackend(directory, map_bytes=MAP_BYTES)
    store = Store(backend)
    number = applied(store)
    while True:
        for _ in range(PUTS_PER_FLUSH):
            store.put(pb.PutRequest(key=key(number), value=b"%d " % number * 50))
            number += 1
        store.set_meta(APPLIED, NUMBER.pack(number))
        flush = store.begin_flush()
        assert flush is not None
        print(number, flush=True)
        flush.write()
        backend.end_flush(flush)
        print(number, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
