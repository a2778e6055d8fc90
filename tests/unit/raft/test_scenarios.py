"""Scripts replayed against a group of cores; the file is the expectation.

A line that begins with `>` is a command; what the nodes say and do follows, up to the next command or comment (`#`).
Read the difference before you run `pytest tests/unit/raft --rewrite-scenarios`.

    group SIZE [setting=value …]       start nodes 1 to SIZE
    elect NODE                         let it campaign, then deliver everything
    campaign NODE                      let it campaign, deliver nothing
    tick NODE COUNT                    let time pass for one node
    propose NODE TEXT                  propose, deliver nothing
    read NODE NAME                     ask for a read index, deliver nothing
    transfer NODE TO                   hand leadership over, deliver nothing
    sync NODE                          what it owes its disk becomes durable
    deliver [A-B …]                    sync and deliver until nothing moves; links A-B lose everything, both ways
    drop                               lose everything that is under way
    crash NODE                         lose what was not synced, and start again
    logs                               print every log: term of each entry, | after the last committed one
"""

from pathlib import Path

import pytest

from raftkv.raft import (
    AppendEntries,
    AppendEntriesResponse,
    Heartbeat,
    HeartbeatResponse,
    InstallSnapshot,
    Message,
    ProposalDropped,
    Propose,
    ReadIndex,
    ReadIndexResponse,
    RequestVote,
    RequestVoteResponse,
)
from tests.unit.raft.group import Group

FILES = sorted((Path(__file__).parent / "scenarios").glob("*.txt"))


class Script:
    """Runs commands and writes down what happens."""

    def __init__(self) -> None:
        self.group = Group(1)
        self.out: list[str] = []
        self._roles: dict[int, str] = {}
        self._answered = 0

    def run(self, text: str) -> str:
        lines = []
        for line in text.splitlines():
            if line.startswith(">"):
                self.out = []
                name, *words = line[1:].split()
                getattr(self, name)(*words)
                self._changes()
                lines += [line, *self.out]
            elif line.startswith("#") or not line:
                lines.append(line)
        return "\n".join(lines) + "\n"

    def start(self, size: str, *settings: str) -> None:
        pairs = (setting.split("=") for setting in settings)
        self.group = Group(int(size), **{name: int(value) for name, value in pairs})
        self._roles = dict.fromkeys(self.group.nodes, "follower, term 0, leader nobody")

    def elect(self, node: str) -> None:
        self.campaign(node)
        self.deliver()

    def campaign(self, node: str) -> None:
        self.group.nodes[int(node)].campaign()
        self.group.take(int(node))

    def tick(self, node: str, count: str) -> None:
        for _ in range(int(count)):
            self.group.tick(int(node))

    def propose(self, node: str, text: str) -> None:
        try:
            self.group.nodes[int(node)].propose([text.encode()])
        except ProposalDropped as error:
            self.out.append(f"  dropped: {error}")
        self.group.take(int(node))

    def read(self, node: str, name: str) -> None:
        try:
            self.group.read(int(node), name.encode())
        except ProposalDropped as error:
            self.out.append(f"  dropped: {error}")

    def transfer(self, node: str, to: str) -> None:
        self.group.nodes[int(node)].transfer_leader(int(to))
        self.group.take(int(node))

    def sync(self, node: str) -> None:
        self.group.sync(int(node))

    def drop(self) -> None:
        for message in self.group.network:
            self.out.append(f"  {tell(message)}  lost")
        self.group.network.clear()

    def crash(self, node: str) -> None:
        self.group.crash(int(node))

    def deliver(self, *links: str) -> None:
        cut = [{int(node) for node in link.split("-")} for link in links]

        def lost(message: Message) -> bool:
            gone = {message.sender, message.to} in cut
            self.out.append(f"  {tell(message)}{'  lost' if gone else ''}")
            return gone

        self.group.settle(lost)

    def logs(self) -> None:
        for number, node in self.group.nodes.items():
            entries = node.log.slice(1, node.last_index + 1)
            terms = [f"{e.term}{'|' if e.index == node.commit_index else ''}" for e in entries]
            self.out.append(f"  log of {number}: {' '.join(terms)}")

    def _changes(self) -> None:
        for number, node in self.group.nodes.items():
            state = f"{node.role.value}, term {node.term}, leader {node.leader or 'nobody'}"
            if self._roles.get(number) != state:
                self._roles[number] = state
                self.out.append(f"  {number} is {state}")
        for number, state in self.group.answers[self._answered :]:
            self.out.append(f"  {number} may read {state.context.decode()} at {state.index}")
        self._answered = len(self.group.answers)


def tell(message: Message) -> str:
    """One message, as a line of a conversation."""
    match message:
        case RequestVote():
            ask = "would you vote for me" if message.pre_vote else "vote for me"
            text = f"{ask}: log ends {message.last_log_index}/{message.last_log_term}"
            text += ", the leader asked me to" if message.transfer else ""
        case RequestVoteResponse():
            text = ("I would" if message.pre_vote else "yes") if message.granted else "no"
        case AppendEntries():
            entries = " ".join(
                f"{e.index}/{e.term}" + (f"={e.data.decode()}" if e.data else "") for e in message.entries
            )
            text = f"after {message.prev_log_index}/{message.prev_log_term} append [{entries}], commit {message.commit}"
        case AppendEntriesResponse(rejected=True):
            text = f"refused after {message.index}, try {message.hint_index}/{message.hint_term}"
        case AppendEntriesResponse():
            text = f"I have up to {message.index}"
        case Heartbeat() | HeartbeatResponse():
            text = "heartbeat" if isinstance(message, Heartbeat) else "still here"
            text += f" for reads {int.from_bytes(message.context, 'big')}" if message.context else ""
        case Propose():
            text = f"please propose {b' '.join(message.data).decode()}"
        case ReadIndex():
            text = f"where may I read {message.context.decode()}"
        case ReadIndexResponse():
            text = f"read {message.context.decode()} at {message.index}"
        case InstallSnapshot():
            text = f"take the snapshot at {message.metadata.index}"
        case _:
            text = "start an election now"
    return f"{message.sender} → {message.to}  [{message.term}] {text}"


def replay(text: str) -> str:
    script = Script()
    lines = []
    for line in text.splitlines():
        if line.startswith("> group"):
            script.start(*line.split()[2:])
            lines.append(line)
        elif line.startswith(">"):
            lines += script.run(line).splitlines()
        elif line.startswith("#") or not line:
            lines.append(line)
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_scenario(path: Path, request: pytest.FixtureRequest) -> None:
    text = path.read_text(encoding="utf-8")
    played = replay(text)
    if request.config.getoption("--rewrite-scenarios", default=False):
        path.write_text(played, encoding="utf-8")
    assert played == text


def test_there_are_scenarios() -> None:
    assert len(FILES) >= 10
