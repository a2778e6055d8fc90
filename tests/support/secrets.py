"""What no log line may hold: the secrets that tests use, and what looks like one."""

import re

MARKED = ("s3cret", "correct horse")
"""Values, passwords and tokens of tests have one of these in them, where it matters."""
_SHAPED = re.compile(
    r"-----BEGIN|"  # a key or a certificate
    r"\beyJ[\w-]{10,}\.[\w-]+\.|"  # a JSON web token
    r"\b[A-Za-z]{16}\.\d+\b|"  # a simple token
    r"\$2[aby]\$\d\d\$"  # a hash of a password
)


def secret_in(text: str) -> str | None:
    """The first line with a secret in it, or None."""
    for line in text.splitlines():
        if any(mark in line for mark in MARKED) or _SHAPED.search(line):
            return line
    return None
