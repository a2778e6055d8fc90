"""What TLS settings mean; those that contradict each other are refused, in one line."""

import ssl
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509

from raftkv.config import ConfigError
from raftkv.flags import parse
from raftkv.http.tls import DialTls, Tls
from raftkv.security import CIPHERS, dial_tls, listener_tls, needs_own, own_files, tls_warnings
from raftkv.selfsigned import ensure

SECURE = ("--listen-client-urls=https://127.0.0.1:1", "--advertise-client-urls=https://127.0.0.1:1")
PAIR = ("--cert-file=c", "--key-file=k")
RSA_CIPHER = "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"
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
        (["--cert-file=", "--key-file=k"], "--cert-file and --key-file must both be present [key: k, cert: ]"),
        (["--peer-cert-file=c"], "--peer-cert-file and --peer-key-file must both be present [key: , cert: c]"),
        (["--peer-client-cert-file=c"], "--peer-client-cert-file and --peer-client-key-file must both be present"),
        (["--client-cert-allowed-hostname=h"], "--client-cert-allowed-hostname checks certificates of clients"),
        (["--peer-crl-file=c"], "--peer-crl-file checks certificates of clients, but none are asked for"),
        (["--peer-cert-allowed-hostname=h"], "--peer-cert-allowed-hostname checks certificates of clients"),
        ([*PAIR, "--client-cert-auth", "--peer-crl-file=c"], "--peer-crl-file checks certificates of clients"),
        ([*PEER_PAIR, "--peer-client-cert-auth", "--client-crl-file=c"], "--client-crl-file checks certificates"),
        (["--client-cert-auth"], "needs --cert-file and --key-file"),
        (["--trusted-ca-file=a"], "needs --cert-file and --key-file"),
        (["--peer-client-cert-auth"], "needs --peer-cert-file and --peer-key-file"),
        (["--peer-trusted-ca-file=a"], "needs --peer-cert-file and --peer-key-file"),
        (["--tls-max-version=TLS1.2", "--cipher-suites=TLS_AES_128_GCM_SHA256"], "these are of TLS1.3 only"),
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


@pytest.mark.parametrize(
    "arguments",
    [
        [*PAIR, "--trusted-ca-file=a", "--client-crl-file=c", "--client-cert-allowed-hostname=h"],
        [*PAIR, "--client-cert-auth", "--client-crl-file=c"],
        [*PEER_PAIR, "--peer-trusted-ca-file=a", "--peer-crl-file=c", "--peer-cert-allowed-cn=a"],
        [*PEER_PAIR, "--peer-client-cert-auth", "--peer-cert-allowed-hostname=h"],
        ["--tls-min-version=TLS1.3"],
        ["--tls-min-version=TLS1.2", "--tls-max-version=TLS1.2"],
        ["--tls-max-version=TLS1.2", f"--cipher-suites={RSA_CIPHER},TLS_AES_128_GCM_SHA256"],
        ["--cipher-suites=TLS_AES_128_GCM_SHA256"],
        [*SECURE, "--auto-tls"],
        ["--listen-metrics-urls=https://127.0.0.1:1", *PAIR],
        ["--listen-peer-urls=https://127.0.0.1:1", "--peer-auto-tls"],
    ],
)
def test_what_goes_together(arguments: list[str]) -> None:
    parse(arguments, {})


RULES = (
    *PAIR,
    *("--trusted-ca-file=ca", "--client-cert-auth", "--client-crl-file=crl", "--client-cert-allowed-hostname=h1,h2"),
    *("--peer-cert-file=pc", "--peer-key-file=pk", "--peer-trusted-ca-file=pca", "--peer-client-cert-auth"),
    *("--peer-crl-file=pcrl", "--peer-client-cert-file=pcc", "--peer-client-key-file=pck"),
    *("--tls-max-version=TLS1.2", f"--cipher-suites={RSA_CIPHER}"),
)
V12, V13 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3


def test_every_rule_of_the_flags_reaches_its_port() -> None:
    """No flag that closes a port may be lost on the way to it, on whichever listener."""
    config = parse([*RULES, "--peer-cert-allowed-cn=n1"], {})
    client = Tls(
        certificate=Path("c"),
        key=Path("k"),
        client_ca=Path("ca"),
        client_certificates=True,
        revoked=Path("crl"),
        allowed_hosts=("h1", "h2"),
        names_are_users=True,
        minimum=V12,
        maximum=V12,
        ciphers=(CIPHERS[RSA_CIPHER],),
    )
    peer = Tls(
        certificate=Path("pc"),
        key=Path("pk"),
        client_ca=Path("pca"),
        client_certificates=True,
        revoked=Path("pcrl"),
        allowed_names=("n1",),
        minimum=V12,
        maximum=V12,
        ciphers=(CIPHERS[RSA_CIPHER],),
    )
    assert listener_tls(config, "client", "https://x:1") == client
    assert listener_tls(config, "peer", "https://x:1") == peer
    assert listener_tls(config, "client", "http://x:1") is None
    assert listener_tls(config, "peer", "http://x:1") is None
    config = parse([*RULES, "--peer-cert-allowed-hostname=n2"], {})
    assert listener_tls(config, "peer", "https://x:1") == replace(peer, allowed_names=(), allowed_hosts=("n2",))
    config = parse([*PAIR, "--trusted-ca-file=ca", *PEER_PAIR], {})
    asking = Tls(certificate=Path("c"), key=Path("k"), client_ca=Path("ca"))
    assert listener_tls(config, "client", "https://x:1") == asking
    assert listener_tls(config, "peer", "https://x:1") == Tls(certificate=Path("c"), key=Path("k"))


def test_members_are_dialled_by_the_flags() -> None:
    dialled = DialTls(certificate=Path("pcc"), key=Path("pck"), ca=Path("pca"), minimum=V12, maximum=V12)
    assert dial_tls(parse(RULES, {})) == replace(dialled, ciphers=(CIPHERS[RSA_CIPHER],))
    assert dial_tls(parse(PEER_PAIR, {})) == DialTls(certificate=Path("c"), key=Path("k"))
    assert dial_tls(parse(["--tls-min-version=TLS1.3"], {})) == DialTls(minimum=V13)
    automatic = parse(["--listen-peer-urls=https://127.0.0.1:1", "--peer-auto-tls"], {})
    assert dial_tls(automatic) == DialTls(verify=False)
    # Ciphers of TLS 1.3 alone are a wish for TLS 1.3 alone.
    assert dial_tls(parse(["--cipher-suites=TLS_AES_128_GCM_SHA256"], {})) == DialTls(minimum=V13)


def test_whose_certificate_is_made() -> None:
    metrics = ("--listen-metrics-urls=https://127.0.0.1:1",)
    peer = ("--listen-peer-urls=https://127.0.0.1:1", "--peer-auto-tls")
    for arguments, made in (
        ([], ()),
        ([*SECURE, "--auto-tls"], ("client",)),
        ([*metrics, "--auto-tls"], ("client",)),
        (["--auto-tls", "--peer-auto-tls"], ()),
        ([*SECURE, *PAIR], ()),
        ([*SECURE, *PAIR, "--auto-tls"], ()),
        (peer, ("peer",)),
        ([*peer, *PEER_PAIR], ()),
        ([peer[0], *PEER_PAIR], ()),
    ):
        config = parse(arguments, {})
        assert tuple(port for port in ("client", "peer") if needs_own(config, port)) == made  # type: ignore[arg-type]
    config = parse([*SECURE, "--auto-tls", *peer, "--data-dir=/d"], {})
    for port in ("client", "peer"):
        files = Path(f"/d/fixtures/{port}/cert.pem"), Path(f"/d/fixtures/{port}/key.pem")
        assert own_files(config, port) == files  # type: ignore[arg-type]
        assert listener_tls(config, port, "https://x:1") == Tls(certificate=files[0], key=files[1])  # type: ignore[arg-type]


def test_certificates_that_are_not_used_are_warned_about() -> None:
    assert "scheme of http://localhost:2379 is http" in tls_warnings(parse(PAIR, {}))[0]
    assert tls_warnings(parse([*SECURE, *PAIR], {})) == ()
    assert "--auto-tls is ignored" in tls_warnings(parse([*SECURE, *PAIR, "--auto-tls"], {}))[0]
    peer = parse([*PEER_PAIR, "--peer-auto-tls"], {})
    assert [words.split()[0] for words in tls_warnings(peer)] == ["--listen-peer-urls:", "--peer-auto-tls"]
    assert "scheme of http://localhost:2380 is http" in tls_warnings(peer)[0]


def test_members_with_a_certificate_of_an_authority_are_verified_whatever_else_is_asked_for() -> None:
    config = parse(["--listen-peer-urls=https://127.0.0.1:1", *PEER_PAIR, "--peer-auto-tls"], {})
    assert dial_tls(config).verify
    assert not dial_tls(parse(["--listen-peer-urls=https://127.0.0.1:1", "--peer-auto-tls"], {})).verify


def test_only_the_owner_may_read_a_key_that_was_made(tmp_path: Path) -> None:
    certificate, key = tmp_path / "made" / "cert.pem", tmp_path / "made" / "key.pem"
    assert ensure(certificate, key, ["localhost"], years=1)
    assert key.stat().st_mode & 0o777 == 0o600
    assert certificate.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("years", [1, 3])
def test_a_certificate_that_was_made_is_good_for_so_many_years(tmp_path: Path, years: int) -> None:
    config = parse([*SECURE, "--auto-tls", f"--self-signed-cert-validity={years}"], {})
    certificate = tmp_path / "cert.pem"
    assert ensure(certificate, tmp_path / "key.pem", ["localhost"], years=config.self_signed_cert_validity)
    made = x509.load_pem_x509_certificate(certificate.read_bytes())
    assert (made.not_valid_after_utc - made.not_valid_before_utc).days // 365 == years


def test_the_lifetime_of_tokens_is_a_flag() -> None:
    assert parse([], {}).auth_token_ttl_seconds == 300
    assert parse(["--auth-token-ttl=7"], {}).auth_token_ttl_seconds == 7
