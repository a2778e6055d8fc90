"""The log under torn writes and flipped bits: every acknowledged group, or a refusal; never wrong data."""

import errno
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raftkv.disk import File, OsDisk
from raftkv.raft import Entry, EntryKind
from raftkv.wal import CorruptLog, Wal, WalError
from raftkv.wal.format import SECTOR_BYTES

SEGMENT = 8 << 10
Groups = list[list[Entry]]
LIMITS = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@st.composite
def groups(draw: st.DrawFn) -> Groups:
    """Groups of entries with growing terms; some rewrite the tail, as after a change of leader."""
    made: Groups = []
    last, term = 0, 1
    for _ in range(draw(st.integers(1, 6))):
        if last and draw(st.integers(0, 4)) == 0:
            last, term = draw(st.integers(0, last - 1)), term + 1
        group = []
        for size in draw(st.lists(st.sampled_from((0, 1, 30, 700, 3000)), max_size=4)):
            last += 1
            group.append(Entry(term, last, EntryKind.NORMAL, b"\xa5" * size))
        made.append(group)
    return made


def replay(made: Groups) -> list[tuple[int, int, int, bytes]]:
    log: list[tuple[int, int, int, bytes]] = []
    for group in made:
        for entry in group:
            log = [*log[: entry.index - 1], (entry.term, entry.index, int(entry.kind), entry.data)]
    return log


def write(directory: Path, made: Groups) -> list[tuple[str, int, int]]:
    """Write each group by itself; where each lies: file, start, end."""
    wal = Wal.create(OsDisk(), str(directory), b"identity", SEGMENT)
    places = []
    for number, group in enumerate(made):
        wal.write([wal.encode((number + 1, 7, 0), group)])
        path = sorted(directory.glob("*.wal"))[-1]
        end = len(path.read_bytes().rstrip(b"\0"))
        places.append((path.name, end))
    wal.close()
    found = []
    last = ("", 0)
    for name, end in places:
        found.append((name, last[1] if last[0] == name else 0, end))
        last = (name, end)
    return found


def read(directory: Path) -> tuple[list[tuple[int, int, int, bytes]], tuple[int, int, int], str | None]:
    wal, contents = Wal.open(OsDisk(), str(directory), SEGMENT)
    wal.settle()
    wal.close()
    assert contents.identity == b"identity"
    return contents.entries, contents.hard_state, contents.repaired


def test_a_log_that_is_cut_within_its_header_is_refused_or_empty(tmp_path: Path) -> None:
    """One whose header lacked but its padding made a ValueError."""
    Wal.create(OsDisk(), str(tmp_path), b"iii", SEGMENT).close()
    (path,) = tmp_path.glob("*.wal")
    data = path.read_bytes()
    found = []
    for length in range(96):
        path.write_bytes(data[:length])
        try:
            _, contents = Wal.open(OsDisk(), str(tmp_path))
        except CorruptLog:
            found.append("refused")
        else:
            assert (contents.entries, contents.repaired) == ([], None)
            found.append("empty")
    assert found == ["refused"] * 75 + ["empty"] * 21


@LIMITS
@given(made=groups())
def test_what_was_written_is_read(made: Groups, tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = tmp_path_factory.mktemp("wal")
    write(directory, made)
    assert read(directory) == (replay(made), (len(made), 7, 0), None)


@LIMITS
@given(made=groups(), data=st.data())
def test_a_torn_last_group_is_cut_and_the_rest_is_there(
    made: Groups, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The last write never ended: any subset of its sectors is on disk, the others hold the zeros they held."""
    directory = tmp_path_factory.mktemp("wal")
    name, start, end = write(directory, made)[-1]
    path = directory / name
    image = bytearray(path.read_bytes())
    if start == 0:
        start = end  # The first group of a segment: nothing to tear without the header, which was synced before.
    sectors = range(start // SECTOR_BYTES, -(-end // SECTOR_BYTES))
    lost = [sector for sector in sectors if data.draw(st.booleans())]
    for sector in lost:
        lo, hi = max(sector * SECTOR_BYTES, start), min((sector + 1) * SECTOR_BYTES, end)
        image[lo:hi] = bytes(hi - lo)
    path.write_bytes(image)
    entries, state, repaired = read(directory)
    without = (replay(made[:-1]), (len(made) - 1, 7, 0) if len(made) > 1 else (0, 0, 0))
    whole_log = (replay(made), (len(made), 7, 0))
    assert (entries, state) == whole_log or (lost and (entries, state) == without)
    assert not (repaired and (entries, state) == whole_log)
    assert read(directory)[:2] == (entries, state), "a repaired log must stay as it was repaired"


@LIMITS
@given(made=groups(), data=st.data())
def test_a_flipped_bit_is_never_believed(
    made: Groups, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Acknowledged groups are read whole, or the log is refused and left as it is."""
    directory = tmp_path_factory.mktemp("wal")
    places = write(directory, made)
    number = data.draw(st.integers(0, len(places) - 1))
    name, start, end = places[number]
    at = data.draw(st.integers(start, end - 1))
    path = directory / name
    image = bytearray(path.read_bytes())
    image[at] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(image)
    try:
        entries, state, _ = read(directory)
    except CorruptLog:
        assert path.read_bytes() == image, "a refused log must not be touched"
        return
    if number == len(places) - 1 and (entries, state) != (replay(made), (len(made), 7, 0)):
        # Documented: when the last group's own marker is hit, the group cannot be told from one that was torn.
        assert at >= end - 40
        assert entries == replay(made[:-1])
        return
    assert (entries, state) == (replay(made), (len(made), 7, 0))


@LIMITS
@given(made=groups(), data=st.data())
def test_a_file_that_lost_its_end_is_repaired_or_refused(
    made: Groups, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Cut anywhere, at edges of groups too: the log before some group, and it stays that; or a refusal, untouched."""
    directory = tmp_path_factory.mktemp("wal")
    places = write(directory, made)
    number = data.draw(st.integers(0, len(places) - 1))
    name, start, end = places[number]
    edges = st.sampled_from([start, end - 1, end, end - end % SECTOR_BYTES])
    path = directory / name
    image = path.read_bytes()
    size = data.draw(st.one_of(edges, st.integers(start, end), st.integers(0, len(image))))
    path.write_bytes(image[:size])
    try:
        entries, state, _ = read(directory)
    except CorruptLog:
        assert path.read_bytes() == image[:size], "a refused log must not be touched"
        assert size < max(end for file, _, end in places if file == name), "nothing that was written is lost"
        return
    whole = [index for index, place in enumerate(places) if place[0] != name or place[2] <= size]
    survived = len(whole) if name == places[-1][0] else len(places)
    assert (entries, state) == (replay(made[:survived]), (survived, 7, 0) if survived else (0, 0, 0))
    assert read(directory)[:2] == (entries, state), "a repaired log must stay as it was repaired"


@pytest.mark.parametrize("size", range(0, SECTOR_BYTES, 8))
def test_a_write_is_cut_that_lost_only_the_sector_it_shares_with_the_one_before(size: int, tmp_path: Path) -> None:
    """All of its own sectors arrived, its marker too: zeros are in the part of its first sector that it begins in."""
    first, second = [Entry(1, 1, EntryKind.NORMAL, b"a" * size)], [Entry(1, 2, EntryKind.NORMAL, b"b" * 600)]
    name, start, end = write(tmp_path, [first, second])[-1]
    path = tmp_path / name
    image = bytearray(path.read_bytes())
    edge = (start // SECTOR_BYTES + 1) * SECTOR_BYTES
    assert image[edge:end].rstrip(b"\0")
    image[start:edge] = bytes(edge - start)
    path.write_bytes(image)
    entries, state, repaired = read(tmp_path)
    assert [entry[1] for entry in entries] == [1]
    assert (state, bool(repaired)) == ((1, 7, 0), True)


def test_bytes_behind_a_torn_write_never_come_back(tmp_path: Path) -> None:
    """A stale group beyond the cut must not be read after new groups have grown up to it."""
    wal = Wal.create(OsDisk(), str(tmp_path), b"identity", SEGMENT)
    wal.write([wal.encode(None, [Entry(1, 1, EntryKind.NORMAL, b"a" * 600)])])
    wal.write([wal.encode(None, [Entry(1, 2, EntryKind.NORMAL, b"b" * 1800)])])
    wal.close()
    path = next(tmp_path.glob("*.wal"))
    image = bytearray(path.read_bytes())
    end = len(image.rstrip(b"\0"))
    image[1024:1536] = bytes(512)
    path.write_bytes(image)
    wal, contents = Wal.open(OsDisk(), str(tmp_path), SEGMENT)
    wal.settle()
    assert contents.repaired
    assert [entry[1] for entry in contents.entries] == [1]
    wal.close()
    assert not path.read_bytes()[contents_end(path) : end].strip(b"\0")


def contents_end(path: Path) -> int:
    return len(path.read_bytes().rstrip(b"\0"))


class FailingDisk(OsDisk):
    """A disk whose n-th sync fails once and then claims success, as Linux does after a failed write-back."""

    def __init__(self, fail_at: int) -> None:
        super().__init__()
        self.left = fail_at

    def create(self, path: str, size: int) -> "FailingFile":  # type: ignore[override]
        return FailingFile(super().create(path, size), self)


class FailingFile:
    def __init__(self, file: object, disk: FailingDisk) -> None:
        self._file = file
        self._disk = disk

    def write(self, offset: int, data: bytes) -> None:
        self._file.write(offset, data)  # type: ignore[attr-defined]

    def sync(self) -> None:
        self._disk.left -= 1
        if self._disk.left == 0:
            raise OSError(5, "Input/output error")
        self._file.sync()  # type: ignore[attr-defined]

    def close(self) -> None:
        self._file.close()  # type: ignore[attr-defined]


def test_after_a_failed_fsync_nothing_is_ever_acknowledged(tmp_path: Path) -> None:
    wal = Wal.create(FailingDisk(fail_at=2), str(tmp_path), b"identity", SEGMENT)
    with pytest.raises(WalError, match="Input/output error"):
        wal.write([wal.encode(None, [Entry(1, 1, EntryKind.NORMAL, b"a")])])
    with pytest.raises(WalError, match="failed earlier"):
        wal.write([wal.encode(None, [Entry(1, 2, EntryKind.NORMAL, b"b")])])
    wal.close()


def test_a_missing_segment_is_refused(tmp_path: Path) -> None:
    wal = Wal.create(OsDisk(), str(tmp_path), b"identity", SEGMENT)
    for index in range(1, 12):
        wal.write([wal.encode(None, [Entry(1, index, EntryKind.NORMAL, b"x" * 3000)])])
    wal.close()
    segments = sorted(tmp_path.glob("*.wal"))
    assert len(segments) > 3
    segments[1].unlink()
    with pytest.raises(CorruptLog, match="is missing"):
        Wal.open(OsDisk(), str(tmp_path), SEGMENT)


def test_segments_are_released_only_behind_what_is_durable_elsewhere(tmp_path: Path) -> None:
    wal = Wal.create(OsDisk(), str(tmp_path), b"identity", SEGMENT)
    for index in range(1, 12):
        wal.write([wal.encode((1, 1, index), [Entry(1, index, EntryKind.NORMAL, b"x" * 3000)])])
    before = len(list(tmp_path.glob("*.wal")))
    wal.release(5)
    wal.close()
    assert len(list(tmp_path.glob("*.wal"))) < before
    wal, contents = Wal.open(OsDisk(), str(tmp_path), SEGMENT)
    wal.settle()
    wal.close()
    assert contents.entries[0][1] <= 6
    assert contents.entries[-1][1] == 11
    assert contents.hard_state == (1, 1, 11)


def test_an_entry_larger_than_what_is_left_of_a_segment_was_not_read_back(tmp_path: Path) -> None:
    """etcd 14127; also one larger than any segment."""
    wal = Wal.create(OsDisk(), str(tmp_path), b"identity", SEGMENT)
    sizes = (SEGMENT - 1000, 900, SEGMENT * 5, 10)
    for index, size in enumerate(sizes, 1):
        wal.write([wal.encode(None, [Entry(1, index, EntryKind.NORMAL, bytes([index]) * size)])])
    wal.close()
    wal, contents = Wal.open(OsDisk(), str(tmp_path), SEGMENT)
    wal.settle()
    wal.close()
    assert [(entry[1], len(entry[3])) for entry in contents.entries] == list(enumerate(sizes, 1))


class NearlyFull(OsDisk):
    """A disk without space for a whole segment."""

    left = 1 << 30

    def create(self, path: str, size: int) -> File:
        if size > self.left:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().create(path, size)


def test_a_log_goes_on_in_smaller_segments_where_there_is_no_space_for_whole_ones(tmp_path: Path) -> None:
    disk = NearlyFull()
    wal = Wal.create(disk, str(tmp_path), b"identity", SEGMENT)
    disk.left = SEGMENT // 2
    for index in range(1, 12):
        wal.write([wal.encode(None, [Entry(1, index, EntryKind.NORMAL, b"x" * 1000)])])
    disk.left, last = 0, 11
    try:
        while last < 30:
            wal.write([wal.encode(None, [Entry(1, last + 1, EntryKind.NORMAL, b"x" * 1000)])])
            last += 1
    except WalError as error:
        assert "No space left" in str(error)
    wal.close()
    wal, contents = Wal.open(OsDisk(), str(tmp_path), SEGMENT)
    wal.settle()
    wal.close()
    assert [entry[1] for entry in contents.entries] == list(range(1, last + 1))
    assert 11 <= last < 30
