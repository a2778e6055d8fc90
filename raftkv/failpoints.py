"""Points at which a test lets the process die: `RAFTKV_FAILPOINTS=name=exit,other=exit`.

`exit` kills the process on the spot, as kill -9 does. docs/formats.md lists the points; nobody checks the names.
"""

import os
import signal

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


def failpoint(name: str) -> None:
    """Die here, if this point is armed."""
    if name in _ARMED:
        os.kill(os.getpid(), signal.SIGKILL)
