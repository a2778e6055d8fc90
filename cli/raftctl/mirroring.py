"""What make-mirror does, between two clients.

The place of a mirror is the next revision of the source that the destination does not have. It moves only when a whole
revision is there. A write whose outcome is unknown is made again: it says what keys are, not how they change, and
nobody else writes them.
"""

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import TypeVar

from raftkv.client import Client, ClientError, Unavailable, Watch
from raftkv.client.requests import TXN, prefix_end
from raftkv.pb import kv_pb2, rpc_pb2
from raftkv.status import Code

T = TypeVar("T")

BATCH_BYTES = 1 << 20
"""What a txn of the first copy holds at most, but for a single larger key."""
PAUSE_SECONDS = 0.5
_SHOW_SECONDS = 0.2
_AWAY = frozenset({Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.CANCELED, Code.INTERNAL})
"""Of errors that go by when one waits."""


class Mirror:
    """Copies what begins with `prefix`, under `target` instead."""

    def __init__(self, source: Client, sink: Client, prefix: bytes, target: bytes, max_ops: int) -> None:
        self._source = source
        self._sink = sink
        self._prefix = prefix
        self._target = target
        self._max_ops = max_ops
        self._first = prefix or b"\0"
        self._end = prefix_end(prefix)
        self._next_revision = 0
        self.changes = 0
        """Puts and deletions made."""
        self._terminal = sys.stderr.isatty()
        self._shown = 0.0

    def run(self, revision: int) -> None:
        """Copy all keys (0) or begin with the changes of a revision, and follow, for ever.

        Raises:
            ClientError: one side refuses, or cannot be reached at all to begin with.
        """
        self._sink.get(self._target or b"\0", serializable=True)
        self._next_revision = revision if revision > 0 else self._copy() + 1
        with self._watch() as watch:
            for response in watch:
                for one, events in groupby(response.events, key=lambda event: event.kv.mod_revision):
                    ops = [self._op(event.kv, deleted=event.type == kv_pb2.Event.DELETE) for event in events]
                    for part in _slices(ops, self._max_ops):
                        self._write(part)
                    self._next_revision = one + 1
                    self._show()

    def _watch(self) -> Watch:
        return self._source.watch(self._first, self._end, start_revision=self._next_revision)

    def tell_place(self) -> None:
        """Say on stderr where to go on."""
        if self._next_revision:
            self._show(last=True)
            go_on = f"--rev {self._next_revision}"
            print(f"{self.changes} changes mirrored; go on with {go_on}", file=sys.stderr)

    # Keys

    def _copy(self) -> int:
        """Copy all keys as of one revision, which is returned."""
        revision, first = 0, self._first
        while True:
            request = rpc_pb2.RangeRequest(key=first, range_end=self._end, revision=revision)
            try:
                for page in self._source.pages(request):
                    revision = revision or page.header.revision
                    self._put(page.kvs)
                    self._show()
                    if page.kvs:
                        first = page.kvs[-1].key + b"\0"
                return revision
            except Unavailable:
                if not revision:
                    raise
                time.sleep(PAUSE_SECONDS)

    def _put(self, kvs: Iterable[kv_pb2.KeyValue]) -> None:
        ops: list[rpc_pb2.RequestOp] = []
        size = 0
        for kv in kvs:
            cost = len(kv.key) + len(kv.value)
            if ops and (len(ops) == self._max_ops or size + cost > BATCH_BYTES):
                self._write(ops)
                ops, size = [], 0
            ops.append(self._op(kv, deleted=False))
            size += cost
        self._write(ops)

    def _op(self, kv: kv_pb2.KeyValue, *, deleted: bool) -> rpc_pb2.RequestOp:
        key = self._target + kv.key[len(self._prefix) :]
        if deleted:
            return rpc_pb2.RequestOp(request_delete_range=rpc_pb2.DeleteRangeRequest(key=key))
        return rpc_pb2.RequestOp(request_put=rpc_pb2.PutRequest(key=key, value=kv.value))

    # Writes

    def _write(self, ops: Sequence[rpc_pb2.RequestOp]) -> None:
        if not ops:
            return
        request = rpc_pb2.TxnRequest(success=ops)
        while True:
            try:
                self._sink.call(TXN, request)
                break
            except ClientError as error:
                if error.code not in _AWAY:
                    raise
            time.sleep(PAUSE_SECONDS)
        self.changes += len(ops)

    def _show(self, *, last: bool = False) -> None:
        now = time.monotonic()
        if self._terminal and (last or now >= self._shown + _SHOW_SECONDS):
            self._shown = now
            at = f", up to revision {self._next_revision - 1}" if self._next_revision else ""
            print(f"\r{self.changes} changes mirrored{at}\x1b[K", end="\n" if last else "", file=sys.stderr, flush=True)


def _slices(ops: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (ops[at : at + size] for at in range(0, len(ops), size))
