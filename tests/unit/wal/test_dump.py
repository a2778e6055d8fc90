"""What `raftkv wal dump` shows."""

import io
from pathlib import Path

import pytest

from raftkv.disk import OsDisk
from raftkv.raft import Entry, EntryKind
from raftkv.wal import Wal
from raftkv.wal.dump import dump

SEGMENT = 4096


@pytest.fixture
def log(tmp_path: Path) -> Path:
    wal = Wal.create(OsDisk(), str(tmp_path), b"id", SEGMENT)
    wal.write([wal.encode((3, 0xAB, 0), [Entry(3, 1, EntryKind.NORMAL, b"short")])])
    wal.write([wal.encode(None, [Entry(3, 2, EntryKind.CONF_CHANGE, b"\0long" * 300)])])
    wal.close()
    [path] = tmp_path.glob("*.wal")
    return path


def shown(path: Path) -> tuple[list[str], str | None]:
    out = io.StringIO()
    problem = dump(str(path.parent), out)
    return out.getvalue().splitlines(), problem


def test_each_record_is_a_line(log: Path) -> None:
    lines, problem = shown(log)
    assert problem is None
    assert [line[:10].strip().isdigit() for line in lines[1:]] == [True] * 6
    assert lines[0].startswith("0000000000000000.wal segment 0 ")
    assert lines[1].endswith("state term=3 vote=ab commit=0")
    assert "entry term=3 index=1 kind=normal bytes=5" in lines[2]
    assert lines[2].endswith("'short'")
    assert "marker" in lines[3]
    assert "entry term=3 index=2 kind=conf-change bytes=1500" in lines[4]
    assert lines[4].endswith("…")
    assert max(map(len, lines)) < 200
    assert "end of segment" in lines[6]


def test_a_torn_tail_is_named_and_is_no_damage(log: Path) -> None:
    image = bytearray(log.read_bytes())
    image[1024:1536] = bytes(512)
    log.write_bytes(image)
    lines, problem = shown(log)
    assert problem is None
    assert "torn tail" in lines[-2]
    assert "index=1 " in "\n".join(lines)
    assert "index=2 " not in "\n".join(lines)


def test_damage_is_named_with_its_place(log: Path) -> None:
    image = bytearray(log.read_bytes())
    place = image.index(b"short")
    image[place] ^= 1
    log.write_bytes(image)
    lines, problem = shown(log)
    assert problem is not None
    assert log.name in problem
    assert lines[-1].endswith("damaged")


def test_a_damaged_segment_does_not_hide_the_next(log: Path) -> None:
    wal, _ = Wal.open(OsDisk(), str(log.parent), SEGMENT)
    wal.settle()
    wal.write([wal.encode(None, [Entry(3, 3, EntryKind.NORMAL, b"x" * 4000)])])
    wal.close()
    image = bytearray(log.read_bytes())
    image[image.index(b"short")] ^= 1
    log.write_bytes(image)
    lines, problem = shown(log)
    assert problem is not None
    assert log.name in problem
    assert "index=3 " in "\n".join(lines)
