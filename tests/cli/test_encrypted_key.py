"""A key that is encrypted is refused in words, where OpenSSL would ask the terminal for its password and wait."""

import asyncio
import fcntl
import os
import pty
import subprocess
import termios
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from cli.raftctl.failure import BAD_ARGUMENTS
from raftkv.client.secure import ClientTls
from raftkv.http.tls import DialTls
from tests.cli.raftctl import raftctl
from tests.cli.test_raftkv_command import BOUND_SECONDS, COMMAND, environment
from tests.support.certificates import Authority

WORDS = "the key is encrypted; write it without a password"


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    certificate, file = Authority(tmp_path / "ca").issue("server")
    key = serialization.load_pem_private_key(file.read_bytes(), None)
    encryption = serialization.BestAvailableEncryption(b"s3cret")
    file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, encryption)
    )
    return certificate, file


def at_a_terminal(directory: Path, *arguments: str) -> tuple[int, str, str]:
    """Run raftkv where it could ask; its exit code, what it says, and what the terminal was shown."""
    ours, theirs = pty.openpty()
    try:
        process = subprocess.Popen(
            [*COMMAND, *arguments],
            cwd=directory,
            env=environment(),
            stdin=theirs,
            stdout=theirs,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(theirs, termios.TIOCSCTTY, 0),
        )
        try:
            _, said = process.communicate(timeout=BOUND_SECONDS)
        finally:
            process.kill()
            process.wait()
        os.write(theirs, b"end")
        return process.returncode, said, os.read(ours, 10_000).decode()
    finally:
        os.close(theirs)
        os.close(ours)


@pytest.mark.parametrize("prefix", ["", "peer-"])
def test_raftkv_refuses_it_at_start_and_asks_nobody(tmp_path: Path, pair: tuple[Path, Path], prefix: str) -> None:
    directory = tmp_path / "run"
    directory.mkdir()
    certificate, key = pair
    flags = [f"--{prefix}cert-file", str(certificate), f"--{prefix}key-file", str(key)]
    family = "peer" if prefix else "client"
    urls = [f"--listen-{family}-urls", "https://127.0.0.1:0"]
    urls += [
        "--advertise-client-urls" if family == "client" else "--initial-advertise-peer-urls",
        "https://127.0.0.1:1",
    ]
    code, said, shown = at_a_terminal(directory, *flags, *urls)
    assert (code, shown) == (1, "end")
    assert [line for line in said.splitlines() if line.startswith("raftkv: ")] == [
        f"raftkv: cannot use the TLS files {certificate}, {key}: {WORDS}"
    ], said
    assert not list(directory.iterdir()), "nothing was written"


def test_who_dials_refuses_it(pair: tuple[Path, Path]) -> None:
    with pytest.raises(ValueError, match=WORDS):
        DialTls(certificate=pair[0], key=pair[1]).context()


@pytest.fixture(params=["traditional", "pkcs8"])
def encrypted(pair: tuple[Path, Path], request: pytest.FixtureRequest) -> tuple[Path, Path]:
    """A key in each of the two forms, of which only one says so in its first line."""
    if request.param == "pkcs8":
        key = serialization.load_pem_private_key(pair[1].read_bytes(), b"s3cret")
        encryption = serialization.BestAvailableEncryption(b"s3cret")
        pair[1].write_bytes(
            key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
        )
    return pair


@pytest.mark.parametrize("by", ["flags", "variables", "destination"])
def test_raftctl_says_which_file_it_is_and_what_to_do(encrypted: tuple[Path, Path], by: str) -> None:
    certificate, key = map(str, encrypted)
    arguments, variables, prefix = ["--endpoints=https://127.0.0.1:1"], {}, "--"
    if by == "flags":
        arguments += ["--cert", certificate, "--key", key, "get", "x"]
    elif by == "variables":
        variables = {"RAFTCTL_CERT": certificate, "RAFTCTL_KEY": key}
        arguments += ["get", "x"]
    else:
        prefix = "--dest-"
        arguments += ["make-mirror", "127.0.0.1:2", "--dest-cert", certificate, "--dest-key", key]
        arguments += ["--dest-insecure-transport=false"]
    result = raftctl(*arguments, **variables)
    said = f"{prefix}key: {key} is encrypted; write it without a password: openssl pkey -in {key} -out NEW"
    assert (result.status, result.stdout) == (BAD_ARGUMENTS, b"")
    assert result.stderr == f"Error: {said}\n"


def test_the_python_client_says_which_file_it_is(encrypted: tuple[Path, Path]) -> None:
    with pytest.raises(OSError, match=f"the key {encrypted[1]} is encrypted"):
        asyncio.run(ClientTls(certificate=encrypted[0], key=encrypted[1]).channel("127.0.0.1:1"))
