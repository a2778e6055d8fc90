"""Compares what the lock files pin with the known holes that PyPI has (pip-audit). Exits 1 when there is one.

Where PyPI does not answer, or has no list of holes (a mirror), it says so in a line and exits 0: lint works offline.
pip-audit lives in a venv of its own, made when it is first needed (docs/decisions/0010-pip-audit-lives-apart.md).
"""

import json
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LOCK, TOOL = ROOT / "requirements.lock", ROOT / "requirements-audit.lock"
HOME = ROOT / ".venv" / "audit"
PROBE_SECONDS = 3.0
AUDIT_SECONDS = 60.0


def main() -> int:
    """Probe, install, compare."""
    problem = unanswered() or install()
    if problem:
        return skip(problem)
    # A requirement of every line is in the lock, so nothing has to be resolved.
    command = ("pip-audit", "--disable-pip", "--require-hashes", "-r", str(LOCK), "-f", "json")
    quiet = ("--progress-spinner", "off", "--timeout", "5")
    try:
        done = subprocess.run((HOME / "bin" / command[0], *command[1:], *quiet), **output(AUDIT_SECONDS))
        found = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        return skip(f"pip-audit did not end well: {error}")
    holes, unknown = judge(found)
    for line in holes:
        print(line, file=sys.stderr)
    if unknown:
        skip(f"nothing is known of {', '.join(unknown)}")
    return int(bool(holes))


def skip(why: str) -> int:
    """Say in a line that there was no audit."""
    print(f"audit skipped: {why}")
    return 0


def output(seconds: float) -> dict[str, Any]:
    """How commands are run here."""
    return {"capture_output": True, "text": True, "timeout": seconds, "cwd": ROOT}


def unanswered() -> str:
    """Why PyPI cannot say what holes there are; nothing, if it can."""
    name, _, version = LOCK.read_text().split()[0].partition("==")
    try:
        with urllib.request.urlopen(f"https://pypi.org/pypi/{name}/{version}/json", timeout=PROBE_SECONDS) as answer:
            return "" if "vulnerabilities" in json.load(answer) else "PyPI's answer says nothing of known holes"
    except (OSError, ValueError) as error:
        return f"PyPI does not say what holes are known ({error})"


def install() -> str:
    """Install pip-audit where it is not; why it could not be."""
    ready = HOME / "ready"
    if ready.exists() and ready.read_text() == TOOL.read_text():
        return ""
    pip = (HOME / "bin" / "python", "-m", "pip", "install", "--quiet", "--require-hashes", "-r", str(TOOL))
    try:
        for command in ((sys.executable, "-m", "venv", "--clear", str(HOME)), pip):
            subprocess.run(command, check=True, **output(300.0))
    except (OSError, subprocess.SubprocessError) as error:
        return f"pip-audit cannot be installed: {error}"
    ready.write_text(TOOL.read_text())
    return ""


def judge(found: dict[str, Any]) -> tuple[list[str], list[str]]:
    """A line for each hole, and the packages that PyPI does not know."""
    holes, unknown = [], []
    for package in found["dependencies"]:
        if "skip_reason" in package:
            unknown.append(package["name"])
        for hole in package.get("vulns", ()):
            names = " ".join([hole["id"], *hole.get("aliases", ())])
            fixed = ", ".join(hole["fix_versions"]) or "nothing yet"
            holes.append(f"{package['name']} {package['version']} has {names}; fixed in {fixed}: `make lock`")
    return holes, unknown


if __name__ == "__main__":
    sys.exit(main())
