"""The file of the audit log: whole lines, in order, none lost without a word."""

import asyncio
import errno
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raftkv import auditlog
from raftkv.auditlog import AuditLog, RotatingFile


def lines(*files: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


class Thread:
    """Runs what it is given when the test says so."""

    def __init__(self) -> None:
        self.work: list[tuple[Callable[[], None], Callable[[BaseException | None], None]]] = []

    def run(self, work: Callable[[], None], done: Callable[[BaseException | None], None]) -> None:
        self.work.append((work, done))

    def step(self) -> None:
        work, done = self.work.pop(0)
        error: BaseException | None = None
        try:
            work()
        except OSError as raised:
            error = raised
        done(error)


def test_only_the_owner_may_read_it(tmp_path: Path) -> None:
    RotatingFile(str(tmp_path / "a"), max_bytes=100, backups=1).close()
    assert os.stat(tmp_path / "a").st_mode & 0o777 == 0o600


def test_files_rotate_by_size_and_the_oldest_goes(tmp_path: Path) -> None:
    path = tmp_path / "a"
    file = RotatingFile(str(path), max_bytes=10, backups=2)
    for number in range(8):
        file.append(b"%d...\n" % number)
    file.close()
    found = [(tmp_path / name).read_text().split() for name in ("a.2", "a.1", "a")]
    assert found == [["2...", "3..."], ["4...", "5..."], ["6...", "7..."]]
    assert len(list(tmp_path.iterdir())) == 3


def test_a_file_that_was_there_is_continued(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"12345678\n")
    file = RotatingFile(str(path), max_bytes=10, backups=1)
    file.append(b"new\n")
    file.close()
    assert (tmp_path / "a.1").read_bytes() == b"12345678\n"
    assert path.read_bytes() == b"new\n"


def test_without_backups_the_file_begins_anew(tmp_path: Path) -> None:
    file = RotatingFile(str(tmp_path / "a"), max_bytes=5, backups=0)
    file.append(b"one\n")
    file.append(b"two\n")
    file.close()
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a", b"two\n")]


def test_a_file_moved_away_by_something_else_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "a"
    file = RotatingFile(str(path), max_bytes=1000, backups=1)
    file.append(b"one\n")
    path.rename(tmp_path / "moved")
    file.append(b"two\n")
    file.close()
    assert (tmp_path / "moved").read_bytes() == b"one\n"
    assert path.read_bytes() == b"two\n"


def test_a_piece_that_does_not_fit_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    file = RotatingFile(str(path), max_bytes=1000, backups=1)
    file.append(b"one\n")
    real, space = os.write, [2]

    def write(number: int, data: bytes) -> int:
        if not space[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        size = min(space[0], len(data))
        space[0] -= size
        return real(number, bytes(data)[:size])

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(OSError, match="No space"):
        file.append(b"two\n")
    assert path.read_bytes() == b"one\n"
    space[0] = 100
    file.append(b"two\n")
    file.close()
    assert path.read_bytes() == b"one\ntwo\n"


def test_a_full_disk_admits_nothing_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(auditlog, "RETRY_SECONDS", 0.0)

    async def scenario() -> None:
        path = tmp_path / "a"
        file, thread = RotatingFile(str(path), max_bytes=1000, backups=1), Thread()
        log = AuditLog(file, thread.run, clock=lambda: 0.0)
        real = os.write

        def full(number: int, data: bytes) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "write", full)
        assert log.admits()
        log.add({"n": 1})
        thread.step()
        assert not log.admits()
        assert not log.admits()
        log.add({"n": 2})  # was under way
        while not thread.work:
            await asyncio.sleep(0)
        monkeypatch.setattr(os, "write", real)
        thread.step()
        assert log.admits()
        log.add({"n": 3})
        while thread.work:
            thread.step()
        await log.close()
        file.close()
        told = [line.get("n", line.get("refused")) for line in lines(path)]
        assert told == [1, 2, 2, 3], "the second 2 is how many were refused"

    with caplog.at_level(logging.WARNING):
        asyncio.run(scenario())
    assert [record.message for record in caplog.records] == [
        "the audit log cannot be written, so calls are refused until it can: [Errno 28] No space left on device",
        "the audit log is written again; 2 calls were refused meanwhile",
    ]


def test_lines_keep_their_order_while_the_disk_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auditlog, "RETRY_SECONDS", 0.0)

    async def scenario() -> None:
        path = tmp_path / "a"
        file, thread = RotatingFile(str(path), max_bytes=1000, backups=1), Thread()
        log = AuditLog(file, thread.run, clock=lambda: 0.0)
        log.add({"n": 1})
        log.add({"n": 2})
        _, done = thread.work.pop()
        done(OSError(errno.ENOSPC, "No space left on device"))
        while not thread.work:
            await asyncio.sleep(0)
        thread.step()
        file.close()
        assert [line["n"] for line in lines(path)] == [1, 2]

    asyncio.run(scenario())


def test_a_disk_that_is_stuck_admits_no_more_than_fits(tmp_path: Path) -> None:
    async def scenario() -> None:
        file, thread = RotatingFile(str(tmp_path / "a"), max_bytes=1 << 20, backups=1), Thread()
        log = AuditLog(file, thread.run, max_waiting_bytes=1000, clock=lambda: 0.0)
        admitted = 0
        while log.admits():
            log.add({"n": "x" * 100})
            admitted += 1
        assert admitted == 7
        thread.step()
        thread.step()
        assert log.admits()
        file.close()

    asyncio.run(scenario())


def test_what_cannot_be_written_at_the_end_is_in_the_members_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(auditlog, "_CLOSE_SECONDS", 0.01)

    async def scenario() -> None:
        file, thread = RotatingFile(str(tmp_path / "a"), max_bytes=1000, backups=1), Thread()
        log = AuditLog(file, thread.run, clock=lambda: 0.0)
        log.add({"n": 1})
        _, done = thread.work.pop()
        done(OSError(errno.ENOSPC, "No space left on device"))
        await log.close()
        file.close()

    asyncio.run(scenario())
    assert 'not in the audit log: {"ts":"1970-01-01T00:00:00.000000Z","n":1}' in caplog.text
