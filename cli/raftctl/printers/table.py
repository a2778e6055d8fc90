"""-w table: boxed columns, for lists."""

from collections.abc import Sequence

from cli.raftctl.printers import (
    HashKV,
    Health,
    Printer,
    Snapshot,
    Status,
    member_rows,
    snapshot_row,
    status_rows,
    write_line,
)
from raftkv.pb import rpc_pb2


class Table(Printer):
    """Cells to the right, headings in the middle."""

    form = "table"

    def members(self, response: rpc_pb2.MemberListResponse) -> None:
        _print(("ID", "STATUS", "NAME", "PEER ADDRS", "CLIENT ADDRS", "IS LEARNER"), list(member_rows(response)))

    def statuses(self, statuses: Sequence[Status]) -> None:
        names = ("ENDPOINT", "ID", "VERSION", "DB SIZE", "IS LEADER", "IS LEARNER")
        _print((*names, "RAFT TERM", "RAFT INDEX", "RAFT APPLIED INDEX", "ERRORS"), list(status_rows(statuses)))

    def healths(self, healths: Sequence[Health]) -> None:
        rows = [(one.endpoint, str(not one.error).lower(), one.took, one.error) for one in healths]
        _print(("ENDPOINT", "HEALTH", "TOOK", "ERROR"), rows)

    def snapshot(self, found: Snapshot) -> None:
        _print(("HASH", "REVISION", "TOTAL KEYS", "TOTAL SIZE"), [snapshot_row(found)])

    def hashes(self, hashes: Sequence[HashKV]) -> None:
        _print(("ENDPOINT", "HASH"), [(one.endpoint, str(one.answer.hash)) for one in hashes])


def _print(names: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(names, *rows, strict=True)]
    line = "+" + "+".join("-" * (width + 2) for width in widths) + "+"
    headings = (_center(name, width) for name, width in zip(names, widths, strict=True))
    table = [line, "|" + "|".join(f" {heading} " for heading in headings) + "|", line]
    table += ["|" + "|".join(f" {cell:>{size}} " for cell, size in zip(row, widths, strict=True)) + "|" for row in rows]
    for text in (*table, line):
        write_line(text)


def _center(text: str, width: int) -> str:
    left = (width - len(text)) // 2
    return " " * left + text + " " * (width - len(text) - left)
