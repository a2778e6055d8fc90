"""What holds for the whole suite."""

import os
import signal
import sys


def pytest_configure() -> None:
    """Hear what a shell that runs the suite in the background, or nohup, is deaf to: commands inherit that.

    And let Python keep what it compiles: the suite starts a thousand members and commands, a quarter of whose
    processor time would go into compiling the same modules again where the environment forbids to keep them.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False
