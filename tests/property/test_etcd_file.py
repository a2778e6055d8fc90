"""A snapshot of etcd with bits flipped, or cut: refused in so many words, or read right; never anything else."""

import hashlib
import struct
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raftkv.offline import EtcdFile, OfflineError, range_of_file
from raftkv.offline.etcd_file import LeaseRecord, Record
from raftkv.pb import kv_pb2, rpc_pb2
from tests.support.bbolt_writer import Builder, inline_bucket

T = TypeVar("T")
State = tuple[list[Record], list[LeaseRecord], int]
SETTINGS = settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.data_too_large]
)


def revision(main: int, sub: int, mark: bytes = b"") -> bytes:
    return struct.pack(">Q1sQ", main, b"_", sub) + mark


def varint(value: int) -> bytes:
    return bytes([value & 127 | 128, value >> 7]) if value > 127 else bytes([value])


def database(extra: list[tuple[bytes, bytes]] | None = None) -> bytes:
    """A file as etcd writes it: 60 keys, one in three updated, one in four deleted again."""
    keys: dict[bytes, tuple[int, int]] = {}
    items: list[tuple[bytes, bytes]] = []
    for main in range(2, 122):
        key = b"key%02d" % ((main * 7) % 60)
        if main % 4 == 0 and key in keys:
            items.append((revision(main, 0, b"t"), kv_pb2.KeyValue(key=key).SerializeToString()))
            del keys[key]
            continue
        create, version = keys.get(key, (main, 0))
        keys[key] = create, version + 1
        kv = kv_pb2.KeyValue(key=key, create_revision=create, mod_revision=main, version=version + 1, value=b"v" * main)
        kv.lease = 7 if main % 5 == 0 else 0
        items.append((revision(main, main % 2), kv.SerializeToString()))
    builder = Builder()
    meta = inline_bucket([(b"finishedCompactRev", revision(3, 0)), (b"scheduledCompactRev", revision(5, 0))])
    lease = inline_bucket([(struct.pack(">q", 7), b"\x08\x07\x10" + varint(500) + b"\x18\x05")])
    elements = [(1, b"key", builder.bucket(items + (extra or []))), (1, b"lease", lease), (1, b"meta", meta)]
    return builder.file(builder.leaf(elements))


def signed(data: bytes) -> bytes:
    return data + hashlib.sha256(data).digest()


def state(path: Path, data: bytes, *, skip_hash_check: bool = False) -> State:
    path.write_bytes(data)
    with EtcdFile(str(path), skip_hash_check=skip_hash_check) as file:
        return list(file.records()), file.leases, file.compacted_revision


SOUND = database()


def test_a_sound_file(tmp_path: Path) -> None:
    records, leases, compacted = state(tmp_path / "s", signed(SOUND))
    assert len(records) == 120
    assert leases == [LeaseRecord(7, 500, 5)]
    assert compacted == 5


places = st.lists(st.tuples(st.integers(0, len(SOUND) + 31), st.integers(0, 7)), min_size=1, max_size=4, unique=True)


def flipped(data: bytes, bits: list[tuple[int, int]]) -> bytes:
    damaged = bytearray(data)
    for place, bit in bits:
        damaged[place % len(data)] ^= 1 << bit
    return bytes(damaged)


@SETTINGS
@given(places)
def test_a_flipped_bit_is_found(tmp_path: Path, bits: list[tuple[int, int]]) -> None:
    with pytest.raises(OfflineError):
        state(tmp_path / "s", flipped(signed(SOUND), bits))


@SETTINGS
@given(st.integers(0, len(SOUND) + 31), st.booleans())
def test_a_truncated_file_is_found(tmp_path: Path, length: int, skip_hash_check: bool) -> None:
    if skip_hash_check:
        length = min(length, len(SOUND) - 1)
    with pytest.raises(OfflineError):
        state(tmp_path / "s", signed(SOUND)[:length], skip_hash_check=skip_hash_check)


def refused_or(work: Callable[[], T]) -> T | None:
    try:
        return work()
    except OfflineError:
        return None


@settings(SETTINGS, max_examples=400)
@given(st.lists(st.tuples(st.integers(0, len(SOUND) - 1), st.integers(0, 7)), min_size=1, max_size=8))
def test_without_a_hash_damage_is_refused_or_well_formed(tmp_path: Path, bits: list[tuple[int, int]]) -> None:
    """What no checksum covers can be wrong; that it is made of versions of keys, in order, can not."""
    path = tmp_path / "s"
    found = refused_or(lambda: state(path, flipped(SOUND, bits), skip_hash_check=True))
    if found is None:
        return
    records, _, _ = found
    places = [(record.main, record.sub) for record in records]
    assert places == sorted(set(places))
    assert all(record.kv.key for record in records)
    with EtcdFile(str(path), skip_hash_check=True) as file:
        everything = rpc_pb2.RangeRequest(key=b"\0", range_end=b"\0")
        refused_or(lambda: range_of_file(file, everything))
        refused_or(file.summary)


@settings(SETTINGS, max_examples=200)
@given(st.integers(3, len(SOUND) // 4096 - 1), st.data())
def test_numbers_replaced_in_the_heads_of_pages(tmp_path: Path, page: int, data: st.DataObject) -> None:
    """Not bits at random, but what leads elsewhere: sizes, places, pages, at their edges."""
    offset = page * 4096 + data.draw(st.integers(0, 30)) * 4
    number = data.draw(st.sampled_from([0, 1, 2, page, page + 1, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF]))
    damaged = SOUND[:offset] + struct.pack("<I", number) + SOUND[offset + 4 :]
    refused_or(lambda: state(tmp_path / "s", signed(damaged)))


STRANGE: dict[str, tuple[bytes, bytes]] = {
    "no separator": (struct.pack(">Q1sQ", 200, b"-", 0), b""),
    "too short": (b"\0\0\0\0\0\0\0\xff", b""),
    "another mark": (revision(200, 0, b"x"), b""),
    "negative": (struct.pack(">Q1sQ", 1 << 63, b"_", 0), b""),
    "sub beyond bounds": (revision(200, 1 << 32), b""),
    "no message": (revision(200, 0), b"\xff\xff"),
    "of another revision": (
        revision(200, 0),
        kv_pb2.KeyValue(key=b"a", create_revision=3, mod_revision=199, version=1).SerializeToString(),
    ),
    "created later": (
        revision(200, 0),
        kv_pb2.KeyValue(key=b"a", create_revision=201, mod_revision=200, version=1).SerializeToString(),
    ),
    "no version": (
        revision(200, 0),
        kv_pb2.KeyValue(key=b"a", create_revision=20, mod_revision=200).SerializeToString(),
    ),
    "a tombstone of nothing": (revision(200, 0, b"t"), b""),
}


@pytest.mark.parametrize("name", STRANGE)
def test_a_record_that_etcd_would_not_write(tmp_path: Path, name: str) -> None:
    with pytest.raises(OfflineError, match="is damaged: "):
        state(tmp_path / "s", signed(database([STRANGE[name]])))


def test_a_revision_twice(tmp_path: Path) -> None:
    kv = kv_pb2.KeyValue(key=b"a", create_revision=200, mod_revision=200, version=1).SerializeToString()
    twice = [(revision(200, 0), kv), (revision(200, 0, b"t"), kv_pb2.KeyValue(key=b"a").SerializeToString())]
    with pytest.raises(OfflineError, match="is there twice"):
        state(tmp_path / "s", signed(database(twice)))


def test_a_bumped_file_has_a_revision_without_a_key(tmp_path: Path) -> None:
    """etcdutl writes an empty record at the bumped revision."""
    path = tmp_path / "s"
    path.write_bytes(signed(database([(revision(1_000_000, 0), b"")])))
    with EtcdFile(str(path)) as file:
        answer = range_of_file(file, rpc_pb2.RangeRequest(key=b"\0", range_end=b"\0", count_only=True))
    assert answer.header.revision == 1_000_000
    assert answer.count > 30
