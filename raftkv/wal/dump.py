"""A log for human eyes: one line per record; damage is reported, not fatal."""

from typing import TextIO

from raftkv.disk import OsDisk
from raftkv.wal import format as fmt
from raftkv.wal.format import Record, RecordType


def dump(directory: str, out: TextIO) -> str | None:
    """Print every segment of the log in `directory`; the first problem found, or None."""
    disk = OsDisk()
    names = [name for name in disk.list(directory) if name.endswith(".wal")]
    if not names:
        return f"{directory} holds no log: give the data directory of a member"
    problem = None
    for name in names:
        problem = problem or _dump_segment(name, disk.read(f"{directory}/{name}"), out)
    return problem


def _dump_segment(name: str, data: bytes, out: TextIO) -> str | None:
    try:
        header, offset = fmt.decode_header(name, data)
    except fmt.CorruptLog as error:
        return str(error)
    term, vote, commit = header.hard_state
    out.write(
        f"{name} segment {header.sequence} chain={header.chain:08x} term={term} vote={vote:x} commit={commit} "
        f"snapshot={header.snapshot_index} identity={header.identity.hex()}\n"
    )
    chain = header.chain
    while (record := fmt.read_record(data, offset, chain)) is not None:
        out.write(f"{record.offset:10d} {_describe(record)}\n")
        offset = record.end
        if record.type is not RecordType.MARKER:
            chain = record.crc
    rest = data[offset:].strip(b"\0")
    out.write(f"{offset:10d} end of segment, {len(data) - offset} bytes free\n")
    return f"{name}: unreadable bytes at {offset}" if rest else None


def _describe(record: Record) -> str:
    if record.type is RecordType.ENTRY:
        term, index, kind, data = fmt.decode_entry(record.payload)
        return f"entry term={term} index={index} kind={kind} bytes={len(data)} crc={record.crc:08x}"
    if record.type is RecordType.STATE:
        term, vote, commit = fmt.decode_state(record.payload)
        return f"state term={term} vote={vote:x} commit={commit}"
    if record.type is RecordType.SNAPSHOT:
        index, term, _ = fmt.decode_snapshot(record.payload)
        return f"snapshot index={index} term={term}"
    return record.type.name.lower()
