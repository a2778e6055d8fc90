"""What a member can be told, and what contradicts itself. Where the settings come from: `raftkv.flags`."""

import re
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import urlsplit

from raftkv.duration import parse_duration
from raftkv.rates import Rate

MAX_ELECTION_TIMEOUT_MS = 50_000
RECOMMENDED_REQUEST_BYTES = 10 << 20
RECOMMENDED_QUOTA_BYTES = 8 << 30
MIN_WATCH_PROGRESS_SECONDS = 0.1

DEFAULT_PEER_URLS = ("http://localhost:2380",)
DEFAULT_TOKEN = "etcd-cluster"

Members = tuple[tuple[str, tuple[str, ...]], ...]
"""Name and peer URLs of every member."""


class ConfigError(Exception):
    """A setting is refused; the message is one line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The settings of one member, checked and complete. URLs are written `http://host:port`; port 0 lets the system
    choose, in listen URLs only."""

    name: str = "default"
    data_dir: str = "default.raftkv"
    listen_client_urls: tuple[str, ...] = ("http://localhost:2379",)
    advertise_client_urls: tuple[str, ...] = ("http://localhost:2379",)
    listen_peer_urls: tuple[str, ...] = DEFAULT_PEER_URLS
    initial_advertise_peer_urls: tuple[str, ...] = DEFAULT_PEER_URLS
    listen_metrics_urls: tuple[str, ...] = ()
    metrics: str = "basic"
    enable_pprof: bool = False
    enable_grpc_gateway: bool = True
    cors: tuple[str, ...] = ("*",)
    initial_cluster: Members = (("default", DEFAULT_PEER_URLS),)
    initial_cluster_token: str = DEFAULT_TOKEN
    initial_cluster_state: str = "new"
    force_new_cluster: bool = False
    strict_reconfig_check: bool = True
    max_learners: int = 1
    auto_promote_learners: bool = False
    heartbeat_interval_ms: int = 100
    election_timeout_ms: int = 1000
    quota_backend_bytes: int = 0
    snapshot_count: int = 10_000
    snapshot_catchup_entries: int = 5_000
    snapshot_send_bytes_per_second: int = 64 << 20
    max_request_bytes: int = 1_572_864
    max_txn_ops: int = 128
    corrupt_check_time_seconds: float = 3600.0
    initial_corrupt_check: bool = True
    auto_compaction_mode: str = "periodic"
    auto_compaction_retention: str = "0"
    max_concurrent_streams: int = 2**32 - 1
    max_connections: int = 0
    max_inflight_bytes: int = 1 << 30
    max_streams: int = 1 << 16
    max_watch_bytes: int = 1 << 30
    grpc_keepalive_min_time_seconds: float = 5.0
    rate_limit: tuple[Rate, ...] = ()
    watch_progress_notify_interval_seconds: float = 5.0
    auth_token: str = "simple"
    auth_token_ttl_seconds: int = 300
    bcrypt_cost: int = 10
    warning_apply_duration_seconds: float = 0.1
    audit_log: str = ""
    audit_log_max_bytes: int = 100 << 20
    audit_log_backups: int = 10
    cert_file: str = ""
    key_file: str = ""
    trusted_ca_file: str = ""
    client_cert_auth: bool = False
    client_crl_file: str = ""
    client_cert_allowed_hostname: tuple[str, ...] = ()
    auto_tls: bool = False
    peer_cert_file: str = ""
    peer_key_file: str = ""
    peer_client_cert_file: str = ""
    peer_client_key_file: str = ""
    peer_trusted_ca_file: str = ""
    peer_client_cert_auth: bool = False
    peer_crl_file: str = ""
    peer_cert_allowed_cn: tuple[str, ...] = ()
    peer_cert_allowed_hostname: tuple[str, ...] = ()
    peer_auto_tls: bool = False
    self_signed_cert_validity: int = 1
    tls_min_version: str = "TLS1.2"
    tls_max_version: str = ""
    cipher_suites: tuple[str, ...] = ()
    log_level: str = "info"
    log_format: str = "text"

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is allowed but probably not meant, one line each."""
        found = []
        members = len(self.initial_cluster)
        if members % 2 == 0:
            found.append(
                f"the cluster has {members} members, an even number: it survives the loss of {(members - 1) // 2}, no "
                f"more than {members - 1} members would, and each write needs one more acknowledgement; prefer "
                f"{members - 1} or {members + 1}"
            )
        if self.max_request_bytes > RECOMMENDED_REQUEST_BYTES:
            found.append(
                f"--max-request-bytes {self.max_request_bytes} is above the recommended limit of "
                f"{RECOMMENDED_REQUEST_BYTES}: large requests delay heartbeats"
            )
        if self.quota_backend_bytes > RECOMMENDED_QUOTA_BYTES:
            found.append(
                f"--quota-backend-bytes {self.quota_backend_bytes} is above the recommended limit of "
                f"{RECOMMENDED_QUOTA_BYTES}: snapshots and restarts take long"
            )
        return tuple(found)


def check(config: Config) -> None:
    """Check what holds for every start.

    Raises:
        ConfigError: two settings contradict each other, or one cannot be meant.
    """
    _check_names(config)
    _check_times(config)
    _check_retention(config)


def _check_names(config: Config) -> None:
    for flag, value in (
        ("name", config.name),
        ("data-dir", config.data_dir),
        ("initial-cluster-token", config.initial_cluster_token),
    ):
        if not value.strip():
            raise ConfigError(f"--{flag} must not be empty")
    if re.search(r"[,=]", config.name):
        raise ConfigError(f"--name {config.name!r} must not contain ',' or '=': --initial-cluster could not name it")


def _check_times(config: Config) -> None:
    heartbeat, election = config.heartbeat_interval_ms, config.election_timeout_ms
    if 5 * heartbeat > election:
        raise ConfigError(
            f"--election-timeout[{election}ms] should be at least as 5 times as --heartbeat-interval[{heartbeat}ms]"
        )
    if election > MAX_ELECTION_TIMEOUT_MS:
        raise ConfigError(
            f"--election-timeout[{election}ms] is too long, and should be set less than {MAX_ELECTION_TIMEOUT_MS}ms"
        )
    if config.watch_progress_notify_interval_seconds < MIN_WATCH_PROGRESS_SECONDS:
        raise ConfigError("--watch-progress-notify-interval must be at least 100ms")


def _check_retention(config: Config) -> None:
    retention = config.auto_compaction_retention
    if retention.isascii() and retention.isdigit():
        return
    if config.auto_compaction_mode == "revision":
        raise ConfigError(f"--auto-compaction-retention: {retention!r} is not a number of revisions")
    try:
        parse_duration(retention)
    except ValueError as error:
        raise ConfigError(f"--auto-compaction-retention: {error}, nor a number of hours") from error


def check_first_start(config: Config) -> None:
    """Check what the first start of a member needs: later ones know from their data who the members are.

    Raises:
        ConfigError: the initial cluster does not have this member, or under other URLs.
    """
    members = dict(config.initial_cluster)
    if config.name not in members:
        raise ConfigError(
            f'couldn\'t find local name "{config.name}" in the initial cluster configuration '
            f"({', '.join(members)}): set --name to one of these, or add {config.name} to --initial-cluster"
        )
    advertised = ",".join(config.initial_advertise_peer_urls)
    for url in members[config.name]:
        if url not in config.initial_advertise_peer_urls:
            raise ConfigError(
                f"--initial-cluster has {config.name}={url} but missing from --initial-advertise-peer-urls={advertised}"
            )
    for url in config.initial_advertise_peer_urls:
        if url not in members[config.name]:
            raise ConfigError(
                f"--initial-advertise-peer-urls has {url} but missing from "
                f"--initial-cluster={config.name}={','.join(members[config.name])}"
            )


def url_problem(url: str, *, listen: bool) -> str | None:
    """Say what is wrong with a URL, or None. A listen URL needs an IP address or localhost, since names may move."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        return f"{url} is not a URL: {error}"
    problem = None
    if not url:
        problem = "no valid URLs given"
    elif parts.scheme not in ("http", "https"):
        problem = f"URL scheme must be http or https: {url} (unix sockets are not supported)"
    elif port is None:
        problem = f'URL address does not have the form "host:port": {url}'
    elif parts.path or parts.query or parts.fragment:
        problem = f"URL must not contain a path: {url}"
    elif "@" in parts.netloc:
        problem = f"URL must not contain a user: {url}"
    elif not host and not listen:
        problem = f'URL must be "host:port" (unexpected empty host ({url}))'
    elif listen and host and host != "localhost" and not _is_ip(host):
        problem = f"expected IP in URL for binding ({url})"
    return problem


def _is_ip(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
