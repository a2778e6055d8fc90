"""Runs raftctl, and etcdctl, as a user does."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tests.support import secrets

ROOT = Path(__file__).parents[2]
BOUND_SECONDS = 180
PATIENT = ("--command-timeout", "60s", "--dial-timeout", "30s")
"""Flags of both tools, for what a live server is asked."""


class Result(NamedTuple):
    """How a command ended."""

    status: int
    stdout: bytes
    stderr: str


def environment(**variables: str) -> dict[str, str]:
    """This one without either tool's variables, and without what hides that output is not flushed."""
    foreign = ("RAFTCTL_", "ETCDCTL_", "PYTHONUNBUFFERED")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    return kept | {"PYTHONPATH": str(ROOT)} | variables


def run(command: Sequence[str], stdin: bytes = b"", **variables: str) -> Result:
    done = subprocess.run(
        command, input=stdin, capture_output=True, env=environment(**variables), timeout=BOUND_SECONDS, check=False
    )
    return Result(done.returncode, done.stdout, done.stderr.decode())


def raftctl(*arguments: str, stdin: bytes = b"", **variables: str) -> Result:
    secrets.check_marks(arguments)
    result = run([sys.executable, "-m", "cli.raftctl", *arguments], stdin, **variables)
    secrets.look("raftctl", result.stderr)
    return result


def etcdctl(*arguments: str, stdin: bytes = b"", **variables: str) -> Result:
    return run(["etcdctl", *arguments], stdin, ETCDCTL_API="3", **variables)
