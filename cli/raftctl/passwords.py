"""Passwords, asked for without showing them."""

from getpass import GetPassWarning, getpass
from warnings import catch_warnings, simplefilter


def ask(prompt: str) -> str:
    """Ask at the terminal; without one, a line of standard input."""
    with catch_warnings():
        # Without a terminal there is nobody who could look over one's shoulder.
        simplefilter("ignore", GetPassWarning)
        try:
            return getpass(prompt)
        except EOFError:
            return ""
