"""What a member's TLS settings mean: the rules of its ports, and how it dials the others."""

import logging
import ssl
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from raftkv.config import Config, ConfigError
from raftkv.http.tls import DialTls, Guard, Tls

logger = logging.getLogger(__name__)

VERSIONS = {"TLS1.2": ssl.TLSVersion.TLSv1_2, "TLS1.3": ssl.TLSVersion.TLSv1_3}

CIPHERS = {
    **{
        f"TLS_{long}_WITH_{cipher.replace('-', '_')}": f"{short}{openssl}"
        for long, short in (("RSA", ""), ("ECDHE_RSA", "ECDHE-RSA-"), ("ECDHE_ECDSA", "ECDHE-ECDSA-"))
        for cipher, openssl in (
            ("AES-128-CBC-SHA", "AES128-SHA"),
            ("AES-256-CBC-SHA", "AES256-SHA"),
            ("AES-128-CBC-SHA256", "AES128-SHA256"),
            ("AES-128-GCM-SHA256", "AES128-GCM-SHA256"),
            ("AES-256-GCM-SHA384", "AES256-GCM-SHA384"),
        )
    },
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256": "ECDHE-RSA-CHACHA20-POLY1305",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256": "ECDHE-ECDSA-CHACHA20-POLY1305",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305": "ECDHE-RSA-CHACHA20-POLY1305",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305": "ECDHE-ECDSA-CHACHA20-POLY1305",
}
"""OpenSSL's names of etcd's TLS 1.2 ciphers. Those with RC4 and 3DES are missing: OpenSSL has given them up."""
CIPHERS_13 = ("TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256")
"""Always on with TLS 1.3, as in etcd."""

Port = Literal["client", "peer"]


def check_tls(config: Config) -> None:
    """Check the settings that are about TLS; files are read when the member starts.

    Raises:
        ConfigError: a listener has no certificate, or settings contradict each other.
    """
    _check_versions(config)
    for flag, prefix, cert, key in (
        ("cert-file", "", config.cert_file, config.key_file),
        ("peer-cert-file", "peer-", config.peer_cert_file, config.peer_key_file),
        ("peer-client-cert-file", "peer-client-", config.peer_client_cert_file, config.peer_client_key_file),
    ):
        if bool(cert) != bool(key):
            raise ConfigError(f"--{flag} and --{prefix}key-file must both be present [key: {key}, cert: {cert}]")
    _check_rules(config)
    for urls, made, family in (
        (config.listen_client_urls, config.cert_file or config.auto_tls, "client"),
        (config.listen_metrics_urls, config.cert_file or config.auto_tls, "metrics"),
        (config.listen_peer_urls, config.peer_cert_file or config.peer_auto_tls, "peer"),
    ):
        prefix = "peer-" if family == "peer" else ""
        for url in urls:
            if _secure(url) and not made:
                raise ConfigError(
                    f"TLS key/cert (--{prefix}cert-file, --{prefix}key-file) must be provided for {family} url {url} "
                    "with HTTPS scheme"
                )


def _check_versions(config: Config) -> None:
    low, high = config.tls_min_version, config.tls_max_version
    if high and high < low:
        raise ConfigError(f"--tls-min-version: min version ({low}) is greater than max version ({high})")
    if config.cipher_suites and low == "TLS1.3":
        raise ConfigError("--cipher-suites: cipher suites cannot be configured when only TLS1.3 is enabled")
    for name in config.cipher_suites:
        if name not in CIPHERS and name not in CIPHERS_13:
            raise ConfigError(f'--cipher-suites: unexpected TLS cipher suite "{name}"')
    if config.cipher_suites and high == "TLS1.2" and not _ciphers(config):
        raise ConfigError("--cipher-suites: these are of TLS1.3 only, and --tls-max-version is TLS1.2")


def _check_rules(config: Config) -> None:
    if config.peer_cert_allowed_cn and config.peer_cert_allowed_hostname:
        raise ConfigError("--peer-cert-allowed-cn and --peer-cert-allowed-hostname are mutually exclusive")
    asks = config.client_cert_auth or config.trusted_ca_file
    peers_ask = config.peer_client_cert_auth or config.peer_trusted_ca_file
    for flag, value, asked, need in (
        ("client-crl-file", config.client_crl_file, asks, "client-cert-auth"),
        ("client-cert-allowed-hostname", config.client_cert_allowed_hostname, asks, "client-cert-auth"),
        ("peer-crl-file", config.peer_crl_file, peers_ask, "peer-client-cert-auth"),
        ("peer-cert-allowed-cn", config.peer_cert_allowed_cn, peers_ask, "peer-client-cert-auth"),
        ("peer-cert-allowed-hostname", config.peer_cert_allowed_hostname, peers_ask, "peer-client-cert-auth"),
    ):
        if value and not asked:
            raise ConfigError(f"--{flag} checks certificates of clients, but none are asked for: set --{need}, too")
    for asked, made, prefix in (
        (asks, config.cert_file, ""),
        (peers_ask, config.peer_cert_file, "peer-"),
    ):
        if asked and not made:
            raise ConfigError(
                f"certificates of clients are asked for, which needs --{prefix}cert-file and --{prefix}key-file"
            )


def tls_warnings(config: Config) -> tuple[str, ...]:
    """What is allowed but probably not meant, one line each."""
    found = [
        f"--listen-{family}-urls: the scheme of {url} is http while certificates are given; they are not used there"
        for family, urls, made in (
            ("client", config.listen_client_urls, config.cert_file or config.auto_tls),
            ("peer", config.listen_peer_urls, config.peer_cert_file or config.peer_auto_tls),
        )
        for url in urls
        if made and not _secure(url)
    ]
    for prefix, made, automatic in (
        ("", config.cert_file, config.auto_tls),
        ("peer-", config.peer_cert_file, config.peer_auto_tls),
    ):
        if made and automatic:
            found.append(f"--{prefix}auto-tls is ignored: there is a --{prefix}cert-file")
    return tuple(found)


def needs_own(config: Config, port: Port) -> bool:
    """Whether a port's certificate is one that the member makes for itself."""
    if port == "client":
        urls = (*config.listen_client_urls, *config.listen_metrics_urls)
        return config.auto_tls and not config.cert_file and any(map(_secure, urls))
    return config.peer_auto_tls and not config.peer_cert_file and any(map(_secure, config.listen_peer_urls))


def own_files(config: Config, port: Port) -> tuple[Path, Path]:
    """Where a certificate is that the member makes for itself, and its key."""
    directory = Path(config.data_dir) / "fixtures" / port
    return directory / "cert.pem", directory / "key.pem"


def listener_tls(config: Config, port: Port, url: str) -> Tls | None:
    """The rules of a listener; None: it is not secured."""
    if not _secure(url):
        return None
    low, high, ciphers = _protocol(config)
    if port == "client":
        own = own_files(config, "client")
        return Tls(
            certificate=_path(config.cert_file) or own[0],
            key=_path(config.key_file) or own[1],
            client_ca=_path(config.trusted_ca_file),
            client_certificates=config.client_cert_auth,
            revoked=_path(config.client_crl_file),
            allowed_hosts=config.client_cert_allowed_hostname,
            names_are_users=config.client_cert_auth,
            minimum=low,
            maximum=high,
            ciphers=ciphers,
        )
    own = own_files(config, "peer")
    return Tls(
        certificate=_path(config.peer_cert_file) or own[0],
        key=_path(config.peer_key_file) or own[1],
        client_ca=_path(config.peer_trusted_ca_file),
        client_certificates=config.peer_client_cert_auth,
        revoked=_path(config.peer_crl_file),
        allowed_names=config.peer_cert_allowed_cn,
        allowed_hosts=config.peer_cert_allowed_hostname,
        minimum=low,
        maximum=high,
        ciphers=ciphers,
    )


def check_files(config: Config) -> None:
    """Find out that a file cannot be used before anything is bound or written.

    Raises:
        ValueError: which, and why.
    """
    client_urls = (*config.listen_client_urls, *config.listen_metrics_urls)
    listeners: list[tuple[Port, tuple[str, ...]]] = [("client", client_urls), ("peer", config.listen_peer_urls)]
    for port, urls in listeners:
        for url in () if needs_own(config, port) else urls:
            rules = listener_tls(config, port, url)
            if rules is not None:
                Guard(rules)
    if config.peer_cert_file or config.peer_client_cert_file or config.peer_trusted_ca_file:
        dial_tls(config).context()


def make_files(config: Config) -> None:
    """Make the certificates that a member makes for itself, where there is none that is current.

    Raises:
        OSError: it cannot be written.
    """
    client_urls = (*config.listen_client_urls, *config.listen_metrics_urls, *config.advertise_client_urls)
    peer_urls = (*config.listen_peer_urls, *config.initial_advertise_peer_urls)
    ports: list[tuple[Port, tuple[str, ...]]] = [("client", client_urls), ("peer", peer_urls)]
    for port, urls in ports:
        if needs_own(config, port):
            from raftkv.selfsigned import ensure

            certificate, key = own_files(config, port)
            hosts = [urlsplit(url).hostname or "" for url in urls]
            if ensure(certificate, key, hosts, years=config.self_signed_cert_validity):
                logger.info("made %s, which nobody vouches for: clients must not verify it", certificate)


def dial_tls(config: Config) -> DialTls:
    """How the other members are dialled where their URL is https."""
    low, high, ciphers = _protocol(config)
    return DialTls(
        certificate=_path(config.peer_client_cert_file or config.peer_cert_file),
        key=_path(config.peer_client_key_file or config.peer_key_file),
        ca=_path(config.peer_trusted_ca_file),
        verify=not needs_own(config, "peer"),
        minimum=low,
        maximum=high,
        ciphers=ciphers,
    )


def _protocol(config: Config) -> tuple[ssl.TLSVersion, ssl.TLSVersion | None, tuple[str, ...]]:
    ciphers = _ciphers(config)
    # TLS 1.2 without a cipher would be no TLS 1.2 at all.
    low = "TLS1.3" if config.cipher_suites and not ciphers else config.tls_min_version
    return VERSIONS[low], VERSIONS.get(config.tls_max_version), ciphers


def _ciphers(config: Config) -> tuple[str, ...]:
    return tuple(CIPHERS[name] for name in config.cipher_suites if name in CIPHERS)


def _path(name: str) -> Path | None:
    return Path(name) if name else None


def _secure(url: str) -> bool:
    return urlsplit(url).scheme == "https"
