"""A second opinion that does not look at revisions or logs: is there an order that explains the answers?

One key is a register: put, get, delete and compare-and-swap. The search is that of Wing and Gong with Lowe's memory of
what was tried (a set of operations done and the value after them), each key by itself (linearizability is local). An
operation without an answer may have happened at any time since it was asked, or never.
"""

from collections.abc import Sequence
from dataclasses import dataclass

FOREVER = 1 << 62
MAX_STEPS = 300_000


@dataclass(slots=True)
class Access:
    """One operation on a register. `seen` is what it was told: a value, None for no key; for `cas` whether it swapped.

    `kind` is put, get, delete or cas; `returned` is `FOREVER` when there was no answer.
    """

    kind: str
    invoked: int
    returned: int
    value: bytes | None = None
    expected: bytes | None = None
    seen: bytes | bool | None = None


def linearizable(accesses: Sequence[Access], max_steps: int = MAX_STEPS) -> bool | None:
    """Whether the accesses of one key can be put in an order; None when it was too much work to tell."""
    accesses = sorted(accesses, key=lambda access: access.invoked)
    # What has no answer and shows nothing is of no use to the search.
    accesses = [access for access in accesses if access.returned < FOREVER or access.kind != "get"]
    everything = sum(1 << place for place, access in enumerate(accesses) if access.returned < FOREVER)
    tried: set[tuple[int, bytes | None]] = set()
    stack: list[tuple[int, bytes | None]] = [(0, None)]
    steps = 0
    while stack:
        done, value = stack.pop()
        if done & everything == everything:
            return True
        if (done, value) in tried:
            continue
        tried.add((done, value))
        steps += 1
        if steps > max_steps:
            return None
        stack += _next(accesses, done, value)
    return False


def _next(accesses: Sequence[Access], done: int, value: bytes | None) -> list[tuple[int, bytes | None]]:
    """What may come first of what is left: whatever was asked before the first answer among it."""
    found = []
    earliest = FOREVER
    place = (~done & (done + 1)).bit_length() - 1
    while place < len(accesses):
        access = accesses[place]
        if access.invoked > earliest:
            break
        if not done >> place & 1:
            earliest = min(earliest, access.returned)
            after = _effect(access, value)
            if after is not False:
                found.append((done | 1 << place, after))
        place += 1
    found.reverse()
    return found  # type: ignore[return-value]


def _effect(access: Access, value: bytes | None) -> "bytes | bool | None":
    """The value afterwards; False when the answer does not fit."""
    answered = access.returned < FOREVER
    if access.kind == "put":
        return access.value
    if access.kind == "get":
        return value if access.seen == value else False
    if access.kind == "delete":
        if answered and access.seen != (value is not None):
            return False
        return None
    swaps = value is not None and value == access.expected
    if answered and access.seen != swaps:
        return False
    return access.value if swaps else value
