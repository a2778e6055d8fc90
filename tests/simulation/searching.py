"""Runs of `raftkv sim`; the seeds of a commit, which are new ones with every commit, so that the suite searches on."""

import json
import os
import subprocess
import sys

SHORT_SEEDS, SHORT_SECONDS = 460, 8
"""Most seeds are short: more of them meet more kinds of faults together."""
LONG_SEEDS, LONG_SECONDS = 40, 20
PARTS = 2
"""Test files, which the suite's two workers run side by side."""


def sim(*arguments: str, hash_seed: str = "0") -> "subprocess.CompletedProcess[str]":
    """Run the command."""
    environment = os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.getcwd()}
    return subprocess.run(
        [sys.executable, "-m", "raftkv", "sim", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


def commit() -> str:
    """The commit under test; without git, always the same one."""
    done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "0" * 40


def search(part: int, seeds: int, seconds: int) -> None:
    """Run one part of the commit's seeds of this length; every check must hold."""
    count = seeds // PARTS
    first = (int(commit()[:10], 16) + seconds) * 1000 + part * count
    done = sim("--seeds", str(count), "--first", str(first), "--seconds", str(seconds), "--jobs", "1")
    again = f"run one with: raftkv sim --seed N --seconds {seconds} --trace"
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{again}"
    summary = json.loads(done.stdout)
    assert summary["seeds"] == count
    assert summary["violations"] == []
    # A search that meets nothing would find nothing. Seeds differ much: of 20,000 batches drawn from 900 seeds none had
    # less than 1.4 times as many, and most two to six times.
    assert summary["elections"] > 2 * count
    assert summary["faults"] > seconds * count / 4
    assert summary["acknowledged"] > 2 * seconds * count
    assert summary["undecided"] <= count / 10
