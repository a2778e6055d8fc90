"""What LMDB holds is read when a member starts, and is not kept in its memory for that."""

from pathlib import Path

import pytest

from raftkv.mvcc import LmdbBackend
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
