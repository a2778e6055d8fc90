"""The cluster of docker-compose.yml: members are taken off their network and paused by the engine, amid recorded work.

`make partition-compose`; skipped where no engine answers and none can be started.
"""

import contextlib
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from raftkv.client import Client, ClientError
from raftkv.simulation.invariants import Violation
from tests.interop.test_compose import Project, engine, project, run, settings
from tests.partition import verdict
from tests.partition.ground import until
from tests.partition.recorder import Recorder
from tests.partition.scenarios import serves
from tests.partition.verdict import Settled, Summary
from tests.support.processes import free_ports

__all__ = ["engine", "settings"]
"""Fixtures."""

SERVICES = ("a", "b", "c")


@dataclass
class Container:
    """One member, as the checks see it."""

    name: str
    endpoint: str
    data: Path
    compose: Project

    def log(self) -> str:
        """What it logged."""
        return self.compose("logs", "--no-color", self.name)


@dataclass
class Composed:
    """The cluster, and what the engine does to it."""

    compose: Project
    env: dict[str, str]
    present: list[Container]
    faults: list[tuple[int, str]] = field(default_factory=list)

    def engine(self, *arguments: str) -> str:
        self.faults.append((time.monotonic_ns(), " ".join(arguments)))
        return run("docker", *arguments, env=self.env)

    def container(self, service: str) -> str:
        return self.compose("ps", "-q", service).strip()

    def leader(self) -> str:
        """The service whose member leads."""
        found: list[str] = []

        def led() -> bool:
            for member in self.present:
                with contextlib.suppress(ClientError), Client(member.endpoint, timeout=5.0) as client:
                    status = client.status()
                    if status.leader == status.header.member_id:
                        found.append(member.name)
            return bool(found)

        until(led, "one of the members leads")
        return found[0]

    def network_of(self, service: str) -> str:
        """The only network of a member."""
        shown = "{{range $name, $_ := .NetworkSettings.Networks}}{{$name}}{{end}}"
        return run("docker", "inspect", "--format", shown, self.container(service), env=self.env).strip()


def leader_disconnected(composed: Composed, recorder: Recorder) -> None:
    """The leader is taken off the network, and comes back."""
    leader = composed.leader()
    network, container = composed.network_of(leader), composed.container(leader)
    composed.engine("network", "disconnect", "--force", network, container)
    serves(recorder, "while the leader is off the network")
    composed.engine("network", "connect", "--alias", leader, network, container)
    composed.compose.wait_healthy(*SERVICES)
    serves(recorder, "when it is back")


def leader_paused(composed: Composed, recorder: Recorder) -> None:
    """The leader stands still, and wakes up."""
    container = composed.container(composed.leader())
    try:
        composed.engine("pause", container)
        wake = ("unpause", container)
    except AssertionError as error:
        # An engine without the freezer of control groups.
        if "unable to freeze" not in str(error):
            raise
        composed.engine("kill", "--signal", "STOP", container)
        wake = ("kill", "--signal", "CONT", container)
    try:
        serves(recorder, "while the leader stands still")
    finally:
        composed.engine(*wake)
    composed.compose.wait_healthy(*SERVICES)
    serves(recorder, "when it woke up")


def run_all(composed: Composed, recorder: Recorder) -> Settled:
    """One after the other; then all agree, and end, and leave their data where the checks find it."""
    recorder.start()
    serves(recorder, "before any fault")
    leader_disconnected(composed, recorder)
    leader_paused(composed, recorder)
    recorder.stop()
    settled = verdict.settle(composed, recorder)
    composed.compose("stop")
    for member in composed.present:
        container = composed.compose("ps", "-a", "-q", member.name).strip()
        run("docker", "cp", f"{container}:/data", str(member.data), env=composed.env)
    return settled


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_compose(settings: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ports = free_ports(len(SERVICES))
    env = {**settings, **{f"RAFTKV_PORT_{name.upper()}": str(port) for name, port in zip(SERVICES, ports, strict=True)}}
    with project(env) as compose:
        compose.wait_healthy(*SERVICES)
        members = [
            Container(name, f"127.0.0.1:{port}", tmp_path / name, compose)
            for name, port in zip(SERVICES, ports, strict=True)
        ]
        composed = Composed(compose, env, members)
        summary = Summary("leader off the network, then paused, 3 members", "Docker Compose")
        recorder = Recorder([member.endpoint for member in members], summary.scenario)
        try:
            verdict.check(composed, recorder, run_all(composed, recorder), summary)
            summary.verdict = "ok"
        except (Violation, AssertionError, ClientError, subprocess.TimeoutExpired) as error:
            summary.verdict = f"{error} (kept in {verdict.keep(composed, recorder, summary)})"
        finally:
            recorder.close()
    verdict.count(summary, recorder)
    with capsys.disabled():
        print(f"\n{summary}")
    assert summary.verdict == "ok"
