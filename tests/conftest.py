"""What holds for the whole suite."""

import signal


def pytest_configure() -> None:
    """Hear what a shell that runs the suite in the background, or nohup, is deaf to: commands inherit that."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
