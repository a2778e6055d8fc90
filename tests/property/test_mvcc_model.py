"""The store against a model that keeps every revision whole, through flushes, compactions and crashes."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from raftkv.mvcc import LmdbBackend, Part, Store, validate
from raftkv.pb import rpc_pb2 as pb
from raftkv.status import StatusError
from tests.unit.mvcc.model import Model, ModelError
from tests.unit.mvcc.requests import Requests

SEEDS = range(40)
STEPS = 120
APPLIED = b"test-applied"
_WRITES = (pb.TxnRequest, pb.CompactionRequest)


class Pair:
    """A store and a model that get the same requests; the log of writes allows to replay after a crash."""

    def __init__(self, path: Path, seed: int) -> None:
        self.path = str(path)
        self.requests = Requests(seed)
        self.model = Model()
        self.log: list[pb.TxnRequest | pb.CompactionRequest] = []
        self.streams: list[tuple[pb.RangeResponse, int, list[bytes], Iterator[Part]]] = []
        self.open()

    def open(self) -> None:
        self.backend = LmdbBackend(self.path, map_bytes=1 << 30)
        self.store = Store(self.backend)

    def write(self, request: "pb.TxnRequest | pb.CompactionRequest") -> "pb.TxnResponse | None":
        self.log.append(request)
        try:
            if isinstance(request, pb.TxnRequest):
                return pb.TxnResponse.FromString(self.store.txn(request))
            self.store.compact(request.revision)
            return None
        finally:
            self.store.set_meta(APPLIED, b"%d" % len(self.log))

    def txn(self, request: pb.TxnRequest) -> None:
        try:
            expected: pb.TxnResponse | str = self.model.txn(request)
        except ModelError as error:
            expected = str(error)
        try:
            found: pb.TxnResponse | str | None = self.write(request)
        except StatusError as error:
            found = type(error).__name__
        # Of several errors each may tell another; which one is told, the comparison with etcd decides.
        assert found == expected or (isinstance(found, str) and isinstance(expected, str))
        assert self.store.revision == self.model.revision

    def read(self, request: pb.RangeRequest) -> None:
        try:
            expected: pb.RangeResponse | str = self.model.range(request)
        except ModelError as error:
            expected = str(error)
        try:
            found: pb.RangeResponse | str = pb.RangeResponse.FromString(b"".join(self.store.range(request)))
        except StatusError as error:
            found = type(error).__name__
        assert found == expected

    def open_stream(self) -> None:
        """Begin to read everything at some revision; the answer it must have is that of this moment."""
        revision = self.requests.pick(range(self.model.revision + 1))
        request = pb.RangeRequest(key=b"\0", range_end=b"\0", revision=revision, limit=self.requests.pick(range(4)))
        try:
            expected = self.model.range(request)
        except ModelError:
            return
        self.streams.append((expected, revision or self.model.revision, [], self.store.range_stream(request, 20)))

    def advance_stream(self) -> None:
        """Take one part of the oldest stream; a stream ends whole, or because compaction overtook it."""
        expected, revision, bodies, stream = self.streams[0]
        try:
            part = next(stream)
        except StatusError as error:
            assert type(error).__name__ == "Compacted"
            assert revision < self.model.compacted
            self.streams.pop(0)
            return
        bodies.append(part.body)
        if part.last:
            assert pb.RangeResponse.FromString(b"".join(bodies)) == expected
            self.streams.pop(0)

    def flush(self) -> None:
        flush = self.store.begin_flush()
        if flush is not None:
            flush.write()
            self.backend.end_flush(flush)

    def crash(self, *, during_flush: bool) -> None:
        """Lose what was not flushed; the log has it."""
        if during_flush:
            flush = self.store.begin_flush()
            if flush is not None:
                flush.write()
        revision = self.store.revision
        self.streams.clear()
        self.backend.close()
        self.open()
        applied = int(self.store.get_meta(APPLIED) or b"0")
        log, self.log = self.log, self.log[:applied]
        for request in log[applied:]:
            try:
                self.write(request)
            except StatusError:
                continue
        assert self.store.revision == revision == self.model.revision

    def compact(self) -> None:
        revision = self.requests.some_revision()
        try:
            self.model.compact(revision)
        except ModelError as error:
            with pytest.raises(StatusError) as caught:
                self.write(pb.CompactionRequest(revision=revision))
            assert type(caught.value).__name__ == str(error)
        else:
            self.write(pb.CompactionRequest(revision=revision))
        if self.requests.chance(0.7):
            for _ in range(3):
                self.store.compaction_step(2)

    def step(self) -> None:
        requests = self.requests
        requests.revision = self.model.revision
        if requests.chance(0.55):
            self._write()
        else:
            self.read(requests.range())
        if requests.chance(0.1):
            self.open_stream()
        if self.streams and requests.chance(0.5):
            self.advance_stream()
        if requests.chance(0.1):
            self.flush()
        if requests.chance(0.04):
            self.compact()
        if requests.chance(0.04):
            self.crash(during_flush=requests.chance(0.5))

    def _write(self) -> None:
        request = self.requests.txn() if self.requests.chance(0.5) else pb.TxnRequest(success=[self.requests.op(9)])
        try:
            validate.check_txn(request, 128)
        except StatusError:
            return
        self.txn(request)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_store_answers_as_the_model_does(seed: int, tmp_path: Path) -> None:
    pair = Pair(tmp_path / "store", seed)
    for _ in range(STEPS):
        pair.step()
    while pair.store.compaction_step():
        pass
    pair.crash(during_flush=True)
    for revision in range(pair.model.revision + 1):
        pair.read(pb.RangeRequest(key=b"\0", range_end=b"\0", revision=revision))
    pair.backend.close()
