"""A run as a conversation that can be read: who said what to whom, what went wrong, what clients asked and heard."""

import logging
from collections.abc import Callable, Mapping

from raftkv.raft import (
    AppendEntries,
    AppendEntriesResponse,
    Heartbeat,
    HeartbeatResponse,
    InstallSnapshot,
    Message,
    NodeId,
    Propose,
    ReadIndex,
    ReadIndexResponse,
    RequestVote,
    RequestVoteResponse,
)
from raftkv.simulation.history import History, Operation
from raftkv.simulation.scheduler import SECOND


class Trace(logging.Handler):
    """Gathers the lines of one run, in order of time."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.now: Callable[[], int] = lambda: 0
        self.names: Mapping[NodeId, int] = {}
        self.lines: list[tuple[int, int, str]] = []
        self.messages: list[tuple[int, int, int, str]] = []
        """Time (ns), sender, receiver and kind of each message."""
        self.faults: list[tuple[int, str, int, float]] = []
        """Time (ns), kind, member and length (s) of each fault."""
        self.role_changes: list[tuple[int, int, str, int]] = []
        self.commits: list[int] = []
        """When (ns) each entry was committed."""

    def say(self, line: str, when: int | None = None) -> None:
        """Add a line, of this moment unless another is given."""
        self.lines.append((self.now() if when is None else when, len(self.lines), line))

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        for member, number in self.names.items():
            text = text.replace(f"{member:x}", f"m{number}")
        self.say(f"   log  {text}")

    def message(self, message: Message) -> None:
        """Note a message as it is sent."""
        sender, to = self.names.get(message.sender, -1), self.names.get(message.to, -1)
        self.messages.append((self.now(), sender, to, type(message).__name__))
        self.say(f"m{sender} → m{to}  {describe(message)}")

    def fault(self, kind: str, member: int, seconds: float) -> None:
        """Note a fault as it begins."""
        self.faults.append((self.now(), kind, member, seconds))
        at = f" m{member}" if member >= 0 else ""
        self.say(f" fault  {kind}{at} for {seconds:.2f} s")

    def roles(self, changes: list[tuple[int, int, str, int]]) -> None:
        """Add who became what."""
        self.role_changes = changes
        for when, member, role, term in changes:
            self.say(f"m{member} is {role} in term {term}", when)

    def history(self, history: History) -> None:
        """Add what clients did."""
        for operation in history.operations:
            request = " ".join(str(operation.request).split())[:150]
            self.say(
                f"c{operation.client} → m{operation.member}  #{operation.number} {operation.kind} {request}",
                operation.invoked,
            )
            if operation.returned:
                self.say(
                    f"c{operation.client} ← m{operation.member}  #{operation.number} {_ending(operation)}",
                    operation.returned,
                )

    def text(self) -> list[str]:
        """All lines, in order."""
        return [f"{when / SECOND:11.6f}  {line}" for when, _, line in sorted(self.lines)]


def _ending(operation: Operation) -> str:
    if operation.error is not None:
        return f"{operation.error.code.name}: {operation.error.message}"
    if operation.answer is None:
        return "no answer"
    if operation.parsed is None:
        return f"{len(operation.answer)} bytes"
    return " ".join(str(operation.parsed).split())[:200]


def describe(message: Message) -> str:
    """One message in a few words."""
    name = type(message).__name__
    if isinstance(message, AppendEntries):
        last = message.prev_log_index + len(message.entries)
        what = f"entries {message.prev_log_index + 1}..{last}" if message.entries else "nothing new"
        after = f"{message.prev_log_index}/{message.prev_log_term}"
        return f"{name} term {message.term}, {what} after {after}, commit {message.commit}"
    if isinstance(message, AppendEntriesResponse):
        return f"{name} term {message.term}, {'refused' if message.rejected else 'has'} {message.index}"
    if isinstance(message, RequestVote):
        kind = "PreVote" if message.pre_vote else name
        return f"{kind} term {message.term}, log ends at {message.last_log_index}/{message.last_log_term}"
    if isinstance(message, RequestVoteResponse):
        kind = "PreVoteResponse" if message.pre_vote else name
        return f"{kind} term {message.term}, {'granted' if message.granted else 'refused'}"
    if isinstance(message, Heartbeat):
        return f"{name} term {message.term}, commit {message.commit}{_context(message.context)}"
    if isinstance(message, InstallSnapshot):
        return f"{name} term {message.term}, up to {message.metadata.index}/{message.metadata.term}"
    if isinstance(message, Propose):
        return f"{name} term {message.term}, {len(message.data)} entries"
    if isinstance(message, ReadIndexResponse):
        return f"{name} index {message.index}{_context(message.context)}"
    if isinstance(message, HeartbeatResponse | ReadIndex):
        return f"{name} term {message.term}{_context(message.context)}"
    return f"{name} term {message.term}"


def _context(context: bytes) -> str:
    return f", read {context.hex().lstrip('0')}" if context else ""
