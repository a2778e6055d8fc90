"""A log for human eyes: one line per record; damage is reported, not fatal."""

from typing import TextIO

from raftkv.disk import OsDisk
from raftkv.wal import format as fmt
from raftkv.wal.format import Record, RecordType
from raftkv.wal.log import end_of_log

SHOWN_BYTES = 32
_KINDS = {0: "normal", 1: "conf-change"}


def dump(directory: str, out: TextIO) -> str | None:
    """Print every segment of the log in `directory`; the first damage found, or None. A torn tail is no damage."""
    disk = OsDisk()
    names = [name for name in disk.list(directory) if name.endswith(".wal")]
    if not names:
        return f"{directory} holds no log: give the data directory of a member"
    problem = None
    for name in names:
        try:
            _dump_segment(name, disk.read(f"{directory}/{name}"), out, last=name == names[-1])
        except fmt.CorruptLog as error:
            out.write(f"{error.offset:10d} damaged\n")
            problem = problem or str(error)
    return problem


def _dump_segment(name: str, data: bytes, out: TextIO, *, last: bool) -> None:
    header, offset = fmt.decode_header(name, data)
    term, vote, commit = header.hard_state
    out.write(
        f"{name} segment {header.sequence} chain={header.chain:08x} term={term} vote={vote:x} commit={commit} "
        f"snapshot={header.snapshot_index} identity={header.identity.hex()}\n"
    )
    group_start, chain = offset, header.chain
    while (record := fmt.read_record(data, offset, chain)) is not None:
        out.write(f"{record.offset:10d} {_describe(record)}\n")
        offset = record.end
        if record.type is RecordType.MARKER:
            group_start = offset
        else:
            chain = record.crc
    rest = len(data[group_start:].rstrip(b"\0"))
    if last and end_of_log(name, data, group_start, offset) is not None:
        out.write(f"{group_start:10d} torn tail, {rest} bytes: a write that never ended; the next start cuts it\n")
    elif rest:
        raise fmt.CorruptLog(name, offset, "a record is damaged")
    out.write(f"{group_start + rest:10d} end of segment, {len(data) - group_start - rest} bytes free\n")


def _describe(record: Record) -> str:
    if record.type is RecordType.ENTRY:
        term, index, number, data = fmt.decode_entry(record.payload)
        kind = _KINDS.get(number, number)
        return f"entry term={term} index={index} kind={kind} bytes={len(data)} crc={record.crc:08x} {_shown(data)}"
    if record.type is RecordType.STATE:
        term, vote, commit = fmt.decode_state(record.payload)
        return f"state term={term} vote={vote:x} commit={commit}"
    if record.type in (RecordType.SNAPSHOT, RecordType.RESTORE):
        index, term, _ = fmt.decode_snapshot(record.payload)
        return f"{record.type.name.lower()} index={index} term={term}"
    return "marker: its group was written whole"


def _shown(data: bytes) -> str:
    text = repr(data[:SHOWN_BYTES])[1:]
    return text if len(data) <= SHOWN_BYTES else f"{text}…"
