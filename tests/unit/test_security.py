"""TLS settings that contradict each other are refused, in one line."""

import pytest

from raftkv.config import ConfigError
from raftkv.flags import parse
from raftkv.security import tls_warnings

SECURE = ("--listen-client-urls=https://127.0.0.1:1", "--advertise-client-urls=https://127.0.0.1:1")
PAIR = ("--cert-file=c", "--key-file=k")
PEER_PAIR = ("--peer-cert-file=c", "--peer-key-file=k")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (SECURE, "--cert-file, --key-file) must be provided for client url https://127.0.0.1:1"),
        (
            ["--listen-peer-urls=https://127.0.0.1:1"],
            "--peer-cert-file, --peer-key-file) must be provided for peer url",
        ),
        (["--listen-metrics-urls=https://127.0.0.1:1"], "must be provided for metrics url"),
        (["--cert-file=c"], "--cert-file and --key-file must both be present [key: , cert: c]"),
        (["--client-crl-file=c"], "--client-crl-file checks certificates of clients, but none are asked for"),
        (["--peer-cert-allowed-cn=a"], "set --peer-client-cert-auth, too"),
        (
            [*PEER_PAIR, "--peer-client-cert-auth", "--peer-cert-allowed-cn=a", "--peer-cert-allowed-hostname=b"],
            "mutually exclusive",
        ),
        (["--client-cert-auth"], "needs --cert-file and --key-file"),
        (["--tls-min-version=TLS1.3", "--tls-max-version=TLS1.2"], "min version (TLS1.3) is greater than max"),
        (["--tls-min-version=TLS1.1"], "--tls-min-version"),
        (["--cipher-suites=FOO"], 'unexpected TLS cipher suite "FOO"'),
        (["--tls-min-version=TLS1.3", "--cipher-suites=TLS_RSA_WITH_AES_128_CBC_SHA"], "cannot be configured"),
    ],
)
def test_refusals(arguments: list[str], words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse(arguments, {})
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_certificates_that_are_not_used_are_warned_about() -> None:
    assert "scheme of http://localhost:2379 is http" in tls_warnings(parse(PAIR, {}))[0]
    assert tls_warnings(parse([*SECURE, *PAIR], {})) == ()
    assert "--auto-tls is ignored" in tls_warnings(parse([*SECURE, *PAIR, "--auto-tls"], {}))[0]
