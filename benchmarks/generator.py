"""Load generators that are processes of their own: they are given a plan, and say as JSON what they saw."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TypeVar

from benchmarks.engines import ROOT
from benchmarks.load import CheckFailed

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

RUN_SECONDS_MAX = 120.0
BUSY_MAX = 0.8
"""A generator that uses more of a processor is the bottleneck itself."""


P = TypeVar("P")


class Wrong(Exception):
    """An answer or an event is missing, or not what it should be."""


def generate(module: str, plan: "DataclassInstance") -> dict[str, Any]:
    """Run a module with a plan and return its outcome.

    Raises:
        CheckFailed: it found something missing or wrong, or does not end.
    """
    command = [sys.executable, "-m", module, json.dumps(asdict(plan))]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=RUN_SECONDS_MAX, check=False)
    except subprocess.TimeoutExpired as error:
        raise CheckFailed(f"{module} did not end in {RUN_SECONDS_MAX:.0f} s") from error
    if done.returncode != 0:
        raise CheckFailed(done.stderr.strip() or f"{module} failed with {done.returncode}")
    outcome: dict[str, Any] = json.loads(done.stdout)
    return outcome


def play(text: str, plan: Callable[..., P], run: "Callable[[P], DataclassInstance]") -> int:
    """Be such a process: run a plan given as JSON and print the outcome, or on stderr what was wrong; the exit code."""
    try:
        outcome = run(plan(**json.loads(text)))
    except (Wrong, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(asdict(outcome)))
    return 0
