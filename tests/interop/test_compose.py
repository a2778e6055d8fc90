"""docker-compose.yml on a real engine: three members lose their leader and none of the data; five come up as well."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(900)

ROOT = Path(__file__).resolve().parents[2]
DEFAULT_BASE = "python:3.12-slim"
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
ENGINE_SECONDS = 30.0
HEALTHY_SECONDS = 240.0
PATIENT = ("--command-timeout", "80s", "--dial-timeout", "80s")


def run(*command: str, env: Mapping[str, str] | None = None, seconds: float = 300.0) -> str:
    """What a command prints; an AssertionError with all its output when it fails."""
    done = subprocess.run(
        command, cwd=ROOT, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=seconds
    )
    assert done.returncode == 0, f"{' '.join(command)}: {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def answers(*command: str, env: Mapping[str, str] | None = None) -> bool:
    """Whether a command is there and succeeds."""
    try:
        run(*command, env=env, seconds=30.0)
    except (AssertionError, OSError, subprocess.TimeoutExpired):
        return False
    return True


@contextlib.contextmanager
def private_engine() -> Iterator[dict[str, str]]:
    """An engine of our own: no docker0, no firewall rules, its data in a temporary directory; gone afterwards."""
    if os.geteuid() != 0 or shutil.which("dockerd") is None:
        pytest.skip("no Docker engine answers, and none can be started: that takes root and dockerd")
    with tempfile.TemporaryDirectory(prefix="raftkv-engine-", ignore_cleanup_errors=True) as directory:
        socket, log = f"unix://{directory}/docker.sock", Path(directory, "log")
        command = [
            *("dockerd", "--host", socket, "--bridge", "none", "--iptables=false", "--ip6tables=false"),
            "--ip-forward=false",
            *("--data-root", f"{directory}/data", "--exec-root", f"{directory}/exec"),
            *("--pidfile", f"{directory}/pid"),
        ]
        with log.open("wb") as output:
            engine = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
        try:
            env = {**os.environ, "DOCKER_HOST": socket}
            deadline = time.monotonic() + ENGINE_SECONDS
            while not answers("docker", "info", env=env) or not answers("docker", "ps", env=env):
                if engine.poll() is not None or time.monotonic() > deadline:
                    pytest.skip(f"no Docker engine answers, and ours does not start: {log.read_text()[-300:].strip()}")
                time.sleep(0.2)
            yield env
        finally:
            engine.terminate()
            try:
                engine.wait(60)
            except subprocess.TimeoutExpired:
                engine.kill()
                engine.wait()
            # An engine that never ran with a host network leaves none; any other leaves this one mounted.
            subprocess.run(("umount", f"{directory}/exec/netns/default"), capture_output=True, check=False)


@pytest.fixture(scope="module")
def engine() -> Iterator[dict[str, str]]:
    """The environment in which `docker` reaches an engine."""
    if shutil.which("docker") is None:
        pytest.skip("no docker command")
    if answers("docker", "ps"):
        yield dict(os.environ)
    else:
        with private_engine() as env:
            yield env


def root_file_system() -> Path:
    """A Debian with Python as a tar file, made once per machine; it trusts whom this machine trusts."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "raftkv"
    ready = cache / "bookworm-python.tar"
    if not ready.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            root, unfinished = Path(scratch, "root"), Path(scratch, "tar")
            include = "--include=python3,python3-venv,ca-certificates"
            run("debootstrap", "--variant=minbase", include, "bookworm", str(root), seconds=600.0)
            if CERTIFICATES.exists():
                shutil.copyfile(CERTIFICATES, root / CERTIFICATES.relative_to("/"))
            run("tar", "-C", str(root), "--exclude=./var/cache/apt/archives/*.deb", "-cf", str(unfinished), ".")
            unfinished.rename(ready)
    return ready


def base_image(env: Mapping[str, str]) -> str:
    """An image with Python: the usual one where it is or can only be pulled, else Debian's."""
    if "BASE_IMAGE" in os.environ:
        return os.environ["BASE_IMAGE"]
    if answers("docker", "image", "inspect", DEFAULT_BASE, env=env):
        return DEFAULT_BASE
    if os.geteuid() != 0 or shutil.which("debootstrap") is None:
        return DEFAULT_BASE
    run("docker", "import", str(root_file_system()), "raftkv-test-base", env=env)
    return "raftkv-test-base"


@pytest.fixture(scope="module")
def settings(engine: dict[str, str]) -> Iterator[dict[str, str]]:
    """The environment for compose: an image of this tree, ports that the kernel chooses."""
    image = f"raftkv-test:{uuid.uuid4().hex[:12]}"
    argument = f"BASE_IMAGE={base_image(engine)}"
    run("docker", "build", "--network", "host", "-t", image, "--build-arg", argument, ".", env=engine, seconds=600.0)
    ports = {f"RAFTKV_PORT_{letter}": "0" for letter in "ABCDE"}
    try:
        with tempfile.TemporaryDirectory() as certificates:
            run(sys.executable, "scripts/certs.py", "--directory", certificates)
            yield {**engine, **ports, "RAFTKV_IMAGE": image, "RAFTKV_CERTS": certificates}
    finally:
        run("docker", "rmi", "--force", image, env=engine)


class Project:
    """One `docker compose` project."""

    def __init__(self, env: dict[str, str], *flags: str) -> None:
        self._env = env
        tool = ["docker", "compose"] if answers("docker", "compose", "version", env=env) else ["docker-compose"]
        if shutil.which(tool[0]) is None:
            pytest.skip("neither the compose plugin nor docker-compose")
        self._command = [*tool, "-p", f"raftkv-test-{uuid.uuid4().hex[:8]}", *flags]

    def __call__(self, *arguments: str) -> str:
        return run(*self._command, *arguments, env=self._env)

    def raftctl(self, service: str, *arguments: str) -> str:
        """raftctl inside one container."""
        return self("exec", "-T", service, "raftctl", *PATIENT, *arguments)

    def health(self, service: str) -> str:
        """What the engine's health check says of one container."""
        container = self("ps", "-q", service).strip()
        return run("docker", "inspect", "--format", "{{.State.Health.Status}}", container, env=self._env).strip()

    def wait_healthy(self, *services: str) -> None:
        """Wait until every named container is healthy."""
        deadline = time.monotonic() + HEALTHY_SECONDS
        while (states := {service: self.health(service) for service in services}) != dict.fromkeys(services, "healthy"):
            assert time.monotonic() < deadline, f"{states}\n{self('logs', '--tail=20')}"
            time.sleep(0.5)

    def leader(self, *services: str) -> str:
        """The service whose member leads."""
        deadline = time.monotonic() + HEALTHY_SECONDS
        while time.monotonic() < deadline:
            for service in services:
                (answer,) = json.loads(self.raftctl(service, "endpoint", "status", "-w", "json"))
                if answer["Status"]["header"]["member_id"] == answer["Status"]["leader"]:
                    return service
        raise AssertionError("no leader")


@contextlib.contextmanager
def project(env: dict[str, str], *flags: str) -> Iterator[Project]:
    """A project that is up; its containers, networks and volumes are gone afterwards."""
    compose = Project(env, *flags)
    try:
        compose("up", "-d", "--no-build")
        yield compose
    finally:
        compose("down", "-v", "-t", "10")


def test_three_members_serve_on_when_the_leader_stops(settings: dict[str, str]) -> None:
    services = ("a", "b", "c")
    with project(settings) as compose:
        compose.wait_healthy(*services)
        assert len(compose("ps", "-q").split()) == 3
        assert compose.raftctl("a", "put", "/registry/hello", "world") == "OK\n"
        with pytest.raises(AssertionError, match="Read-only file system"):
            compose("exec", "-T", "a", "touch", "/opt/raftkv/x")
        leader = compose.leader(*services)
        others = [service for service in services if service != leader]
        compose("stop", leader)
        for service in others:
            assert compose.raftctl(service, "get", "/registry/hello") == "/registry/hello\nworld\n"
        assert compose.raftctl(others[0], "put", "/registry/hello", "again") == "OK\n"
        compose("start", leader)
        compose.wait_healthy(leader)
        assert compose.raftctl(leader, "get", "/registry/hello") == "/registry/hello\nagain\n"
        # Everything at once, and new containers on the old volumes: what was written is on disk.
        compose("up", "-d", "--no-build", "--force-recreate")
        compose.wait_healthy(*services)
        assert compose.raftctl("a", "get", "/registry/hello") == "/registry/hello\nagain\n"


def test_five_members_with_a_profile(settings: dict[str, str]) -> None:
    services = tuple(f"five-{letter}" for letter in "abcde")
    with project(settings, "--profile", "five") as compose:
        compose.wait_healthy(*services)
        assert len(compose("ps", "-q").split()) == 5
        assert len(compose.raftctl("five-a", "member", "list").splitlines()) == 5
        compose("stop", "five-a", "five-b")
        assert compose.raftctl("five-c", "put", "k", "v") == "OK\n"
        assert compose.raftctl("five-e", "get", "k") == "k\nv\n"


def test_three_members_with_tls(settings: dict[str, str]) -> None:
    """Not by the health check, which a busy machine fails: a patient client tells as much."""
    with project(settings, "--profile", "tls") as compose:
        assert compose.raftctl("tls-a", "put", "k", "v") == "OK\n"
        for service in ("tls-a", "tls-b", "tls-c"):
            endpoint = ("--endpoints", f"https://{service}:2379")
            assert compose.raftctl("tls-a", *endpoint, "get", "k") == "k\nv\n"
        for stranger in (["--endpoints", "http://localhost:2379"], ["--cert", "", "--key", ""]):
            with pytest.raises(AssertionError):
                compose.raftctl("tls-a", *stranger, "--command-timeout", "2s", "get", "k")
        with pytest.raises(AssertionError, match="Read-only file system"):
            compose("exec", "-T", "tls-a", "touch", "/opt/raftkv/x")


def test_members_do_not_run_as_root(settings: dict[str, str]) -> None:
    command = ("docker", "run", "--rm", "--network", "none", settings["RAFTKV_IMAGE"], "id", "-u")
    assert run(*command, env=settings).strip() != "0"
