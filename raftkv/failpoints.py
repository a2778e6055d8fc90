"""Points at which a test lets the process die: `RAFTKV_FAILPOINTS=name=exit,other=exit`.

`exit` kills the process on the spot, as kill -9 does. docs/formats.md lists the points; nobody checks the names. The
simulation has processes of its own: it arms all points with a function, which may raise.
"""

import os
import signal
from collections.abc import Callable

VARIABLE = "RAFTKV_FAILPOINTS"


def parse(text: str) -> frozenset[str]:
    """Names of the armed points.

    Raises:
        ValueError: an item is not `name=exit`.
    """
    armed = set()
    for item in filter(None, text.split(",")):
        name, _, action = item.partition("=")
        if not name or action != "exit":
            raise ValueError(f"{VARIABLE}: {item!r} is not of the form name=exit")
        armed.add(name)
    return frozenset(armed)


_ARMED = parse(os.environ.get(VARIABLE, ""))


_reached: Callable[[str], None] | None = None


def arm(reached: Callable[[str], None]) -> None:
    """Have a function called with the name of every point that is reached."""
    global _reached
    _reached = reached


def disarm() -> None:
    """Undo `arm`."""
    global _reached
    _reached = None


def failpoint(name: str) -> None:
    """Die here, if this point is armed."""
    if _reached is not None:
        _reached(name)
    if name in _ARMED:
        os.kill(os.getpid(), signal.SIGKILL)
