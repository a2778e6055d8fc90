"""What LMDB holds is read when a member starts, and is not kept in its memory for that; what is removed is gone."""

import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from raftkv.mvcc import LmdbBackend
from raftkv.mvcc import backend as backend_module
from raftkv.mvcc.backend import REVISIONS
from raftkv.mvcc.store import REVISION

STATUS = Path("/proc/self/status")
RECORDS = 400
VALUE = b"v" * (100 << 10)


def mapped_bytes() -> int:
    """Pages of files that this process has in its memory."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith("RssFile"))
    return int(line.split()[1]) << 10


@pytest.mark.skipif(not STATUS.exists() or "RssFile" not in STATUS.read_text(), reason="no RssFile in /proc")
def test_what_was_scanned_at_the_start_does_not_stay_in_memory_and_can_be_read_again(tmp_path: Path) -> None:
    backend = LmdbBackend(str(tmp_path))
    backend.put_revisions({REVISION.pack(number, 0): VALUE for number in range(RECORDS)})
    flush = backend.begin_flush()
    assert flush is not None
    flush.write()
    backend.end_flush(flush)
    backend.close()

    backend = LmdbBackend(str(tmp_path))
    before = mapped_bytes()
    assert sum(len(value) for _, value in backend.scan(REVISIONS)) == RECORDS * len(VALUE)
    assert mapped_bytes() - before < RECORDS * len(VALUE) // 4
    assert backend.get(REVISIONS, REVISION.pack(7, 0)) == VALUE
    assert [key for key, _ in backend.revisions(REVISION.pack(398, 0))] == [
        REVISION.pack(398, 0),
        REVISION.pack(399, 0),
    ]
    backend.close()


def flushed(backend: LmdbBackend) -> None:
    flush = backend.begin_flush()
    assert flush is not None
    flush.write()
    backend.end_flush(flush)


@pytest.mark.parametrize("seed", range(6))
def test_removing_records_in_any_order_leaves_all_others(seed: int, tmp_path: Path) -> None:
    """In blocks that lose all they have, some, the first, the last; many at once, and such as were removed before."""
    rng = random.Random(seed)
    backend = LmdbBackend(str(tmp_path), map_bytes=1 << 30)
    expected: dict[bytes, bytes] = {}
    number = 0
    removed: list[bytes] = []
    for _ in range(8):
        for _ in range(rng.choice((0, 300))):
            number += rng.choice((1, 1, 1, 300, 1 << 20))
            key = REVISION.pack(number, rng.randrange(3))
            expected[key] = rng.randbytes(rng.choice((0, 10, 1000, 5000)))
            backend.put(REVISIONS, key, expected[key])
        backend.put(REVISIONS, REVISION.pack(number := number + 1, 0), b"one")
        expected[REVISION.pack(number, 0)] = b"one"
        keys = sorted(expected)
        begin = rng.randrange(len(keys))
        chosen = {*keys[begin : begin + rng.choice((0, 100, 1000))], *rng.sample(keys, len(keys) // 5)}
        for key in rng.sample(sorted(chosen), len(chosen)) + rng.sample(removed, len(removed) // 10):
            backend.delete(REVISIONS, key)
            removed.append(key)
            expected.pop(key, None)
        flushed(backend)
        assert dict(backend.revisions(b"")) == expected
    backend.close()
    backend = LmdbBackend(str(tmp_path), map_bytes=1 << 30)
    assert list(backend.scan(REVISIONS)) == sorted(expected.items())
    backend.close()


def test_many_removals_are_put_in_order_without_one_long_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """No sort of many: none lets go of the interpreter lock, for which the event loop would wait."""
    most = 0

    def counted(items: Iterable[Any]) -> list[Any]:
        nonlocal most
        found = sorted(items)
        most = max(most, len(found))
        return found

    monkeypatch.setattr(backend_module, "sorted", counted, raising=False)
    keys = [REVISION.pack(number, number % 2) for number in range(100_000)]
    shuffled = random.Random(1).sample(keys, len(keys))
    assert backend_module._in_order(shuffled) == keys
    assert most <= 400
