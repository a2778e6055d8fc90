"""bbolt files read: sound ones whole, all others refused."""

import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from raftkv.bbolt import DamagedFile, Database
from tests.support.bbolt_writer import PAGE, Builder, branch, bucket, inline_bucket, leaf, meta

ITEMS = [(b"key%04d" % number, b"v" * (number % 50)) for number in range(95)]


def read(path: Path, data: bytes, name: bytes = b"b") -> list[tuple[bytes, bytes]]:
    path.write_bytes(data)
    with Database(str(path)) as database:
        found = database.root.bucket(name)
        assert found is not None
        return list(found.items())


def sound(page_bytes: int = PAGE) -> bytes:
    builder = Builder(page_bytes)
    return builder.file(builder.leaf([(1, b"b", builder.bucket(ITEMS))]))


@pytest.mark.parametrize("page_bytes", [1024, 4096, 65536])
def test_branches_and_leaves(tmp_path: Path, page_bytes: int) -> None:
    assert read(tmp_path / "db", sound(page_bytes)) == ITEMS


def test_inline_and_nested_buckets(tmp_path: Path) -> None:
    builder = Builder()
    inner = builder.leaf(
        [(0, b"plain", b"1"), (1, b"within", inline_bucket(ITEMS[:3])), (1, b"zero", inline_bucket([]))]
    )
    path = tmp_path / "db"
    path.write_bytes(builder.file(builder.leaf([(1, b"outer", bucket(inner))])))
    with Database(str(path)) as database:
        outer = database.root.bucket(b"outer")
        assert outer is not None
        assert list(outer.items()) == [(b"plain", b"1")]
        assert [name for name, _ in outer.buckets()] == [b"within", b"zero"]
        within, zero = outer.bucket(b"within"), outer.bucket(b"zero")
        assert within is not None
        assert zero is not None
        assert list(within.items()) == ITEMS[:3]
        assert list(zero.items()) == []
        assert outer.bucket(b"nothing") is None
        with pytest.raises(DamagedFile, match="is none"):
            outer.bucket(b"plain")


def test_values_larger_than_a_page(tmp_path: Path) -> None:
    items = [(b"a", b"x" * 100_000), (b"b", b""), (b"c", b"y" * PAGE)]
    builder = Builder()
    assert read(tmp_path / "db", builder.file(builder.leaf([(1, b"b", builder.bucket(items))]))) == items


def test_the_newer_valid_meta_page_counts(tmp_path: Path) -> None:
    builder = Builder()
    old = builder.leaf([(1, b"b", builder.bucket([(b"age", b"old")]))])
    new = builder.leaf([(1, b"b", builder.bucket([(b"age", b"new")]))])
    rest = builder.file(new)[2 * PAGE :]
    end = builder.next_page

    def whole(first: bytes, second: bytes) -> list[tuple[bytes, bytes]]:
        return read(tmp_path / "db", first + second + rest)

    assert whole(meta(8, new, end), meta(7, old, end)) == [(b"age", b"new")]
    assert whole(meta(8, old, end), meta(9, new, end)) == [(b"age", b"new")]
    torn = bytearray(meta(9, new, end))
    torn[16 + 48] ^= 1
    assert whole(meta(8, old, end), bytes(torn)) == [(b"age", b"old")]
    assert whole(bytes(torn), meta(8, old, end)) == [(b"age", b"old")]
    with pytest.raises(DamagedFile, match="neither meta page is valid"):
        whole(bytes(torn), bytes(torn))


def test_the_second_meta_page_is_found_without_the_first(tmp_path: Path) -> None:
    for page_bytes in (512, 4096, 1 << 16):
        data = sound(page_bytes)
        assert read(tmp_path / "db", bytes(page_bytes) + data[page_bytes:]) == ITEMS


def changed(data: bytes, offset: int, form: str, *values: int) -> bytes:
    """A file with some numbers in it replaced."""
    return data[:offset] + struct.pack(form, *values) + data[offset + struct.calcsize(form) :]


def one_leaf(count: int = 3) -> tuple[bytes, int]:
    """A file with one page of keys in its bucket, and where that lies."""
    builder = Builder()
    place = builder.next_page
    return builder.file(builder.leaf([(1, b"b", builder.bucket(ITEMS[:count]))])), place * PAGE


REFUSED: dict[str, tuple[Callable[[bytes, int], bytes], str]] = {
    "another page": (lambda data, at: changed(data, at, "<Q", 9), "says that it is page 9"),
    "a meta page": (lambda data, at: changed(data, at + 8, "<H", 4), "is of kind 0x4"),
    "a free list": (lambda data, at: changed(data, at + 8, "<H", 0x10), "is of kind 0x10"),
    "too many elements": (lambda data, at: changed(data, at + 10, "<H", 0xFFFF), "no room"),
    "more elements than data": (lambda data, at: changed(data, at + 10, "<H", 200), "outside of its place"),
    "overflow": (lambda data, at: changed(data, at + 12, "<I", 0xFFFFFFFF), "beyond the end"),
    "kind of element": (lambda data, at: changed(data, at + 16, "<I", 6), "unknown kind"),
    "position": (lambda data, at: changed(data, at + 20, "<I", 0xFFFFFFFF), "outside of its place"),
    "position before the data": (lambda data, at: changed(data, at + 20, "<I", 0), "outside of its place"),
    "key size": (lambda data, at: changed(data, at + 24, "<I", 0xFFFFFFF0), "outside of its place"),
    "value size": (lambda data, at: changed(data, at + 28, "<I", 4090), "outside of its place"),
    "order": (lambda data, at: data[: at + 64] + b"z" + data[at + 65 :], "out of order"),
    "end of file": (lambda data, at: data[:-1], "truncated"),
    "nothing": (lambda data, at: b"", "neither meta page"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(tmp_path: Path, name: str) -> None:
    damage, words = REFUSED[name]
    data, at = one_leaf()
    assert read(tmp_path / "db", data) == ITEMS[:3]
    with pytest.raises(DamagedFile, match=words):
        read(tmp_path / "db", damage(data, at))


def trap(make: Callable[[Builder], int]) -> bytes:
    """A file whose bucket has its root where `make` says."""
    builder = Builder()
    root = make(builder)
    return builder.file(builder.leaf([(1, b"b", bucket(root))]))


TRAPS: dict[str, tuple[Callable[[Builder], int], str]] = {
    "a branch that is its own child": (lambda builder: builder.branch([(b"a", builder.next_page)]), "twice"),
    "two branches in a circle": (
        lambda builder: builder.branch([(b"a", builder.branch([(b"a", builder.next_page + 1)]))]),
        "twice",
    ),
    "a leaf many times": (lambda builder: builder.branch([(b"a", builder.leaf([]))] * 200), "twice"),
    "the meta page": (lambda builder: 1, "does not exist"),
    "beyond the end": (lambda builder: 1 << 40, "does not exist"),
    "the free list": (lambda builder: 2, "is of kind 0x10"),
}


@pytest.mark.parametrize("name", TRAPS)
def test_traps(tmp_path: Path, name: str) -> None:
    make, words = TRAPS[name]
    with pytest.raises(DamagedFile, match=words):
        read(tmp_path / "db", trap(make))


def test_a_deep_tree_needs_no_stack(tmp_path: Path) -> None:
    def tower(builder: Builder) -> int:
        place = builder.leaf([(0, *ITEMS[0])])
        for _ in range(3000):
            place = builder.branch([(b"a", place)])
        return place

    assert read(tmp_path / "db", trap(tower)) == ITEMS[:1]


def test_an_inline_bucket_that_is_none(tmp_path: Path) -> None:
    for value in (b"", bucket(0), bucket(0, branch(0, [])), bucket(0, leaf(0, [(0, b"a", b"b")], pad=False)[:20])):
        builder = Builder()
        with pytest.raises(DamagedFile):
            read(tmp_path / "db", builder.file(builder.leaf([(1, b"b", value)])))
