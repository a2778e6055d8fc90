"""The command line of a member: etcd's flag names, from arguments, the environment and a YAML file.

A flag beats its environment variable (RAFTKV_ and the flag in capitals), which beats the file, which beats the
default. Every refusal is one line that names the setting and the remedy.
"""

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import click

from raftkv import ETCD_API_VERSION
from raftkv.config import Config, ConfigError, check
from raftkv.failpoints import VARIABLE
from raftkv.flag_kinds import Duration, InitialCluster, Integer, Rates, Texts, Urls
from raftkv.form import VERSION
from raftkv.security import check_tls

ENVIRONMENT_PREFIX = "RAFTKV_"

LOG_LEVELS = ("debug", "info", "warn", "error")
METRICS = ("basic", "extensive")
LOG_FORMATS = ("text", "json")


def parse(argv: Sequence[str], environ: Mapping[str, str]) -> Config:
    """Read the settings from arguments (without the program's name), environment and, if named, a file.

    Raises:
        ConfigError: a setting is unknown, malformed or contradicts another.
        click.exceptions.Exit: --help or --version was asked for and has been printed.
    """
    try:
        context = command().make_context("raftkv", [_two_dashes(argument) for argument in argv], obj=environ)
    except click.NoSuchOption as error:
        raise ConfigError(_unknown("flag", error.option_name, [f"--{name}" for name in OPTIONS])) from error
    except click.ClickException as error:
        raise ConfigError(_one_line(error)) from error
    with context:
        return _build(context)


def environment_warnings(environ: Mapping[str, str]) -> list[str]:
    """Name the variables that look like settings and are none."""
    known = {_variable(name): name for name in OPTIONS}
    # Kubernetes puts such variables in every container for a service that is called raftkv.
    foreign = re.compile(r"RAFTKV_(SERVICE_|PORT(_|$))")
    return [
        _unknown("environment variable", name, list(known)) + " (ignored)"
        for name in sorted(environ)
        if name.startswith(ENVIRONMENT_PREFIX) and name not in (*known, VARIABLE) and not foreign.match(name)
    ]


# The settings as click options


class _Option(click.Option):
    """An option of one group of the help text whose environment is the mapping in `Context.obj`."""

    def __init__(
        self, name: str, group: str, kind: click.ParamType[Any], default: object, text: str, **more: Any
    ) -> None:
        super().__init__([f"--{name}"], type=kind, help=text, envvar=_variable(name), **more)
        self.flag = name
        self.group = group
        self.documented_default = default

    def resolve_envvar_value(self, ctx: click.Context) -> str | None:
        # An empty variable counts as unset, as in etcd.
        return ctx.obj.get(_variable(self.flag)) or None

    def get_help_record(self, ctx: click.Context) -> tuple[str, str]:
        metavar = _METAVARS.get(self.flag) or self.make_metavar(ctx)
        return f"--{self.flag} {metavar}", f"{self.help}  [{self.documented_default}]"


def _switch(name: str, group: str, text: str, *, on: bool = False) -> _Option:
    """An option that is on when it is named without a value, or with `=true`; `on`: without being named, too."""
    return _Option(name, group, click.BOOL, str(on).lower(), text, is_flag=False, flag_value="true")


_METAVARS = {
    "name": "NAME",
    "data-dir": "DIR",
    "heartbeat-interval": "MS",
    "election-timeout": "MS",
    "quota-backend-bytes": "BYTES",
    "max-request-bytes": "BYTES",
    "max-txn-ops": "N",
    "audit-log-max-bytes": "BYTES",
    "audit-log-backups": "N",
    "max-concurrent-streams": "N",
    "max-learners": "N",
    "max-connections": "N",
    "max-inflight-bytes": "BYTES",
    "max-streams": "N",
    "max-watch-bytes": "BYTES",
}


def _variable(flag: str) -> str:
    return ENVIRONMENT_PREFIX + flag.upper().replace("-", "_")


_MEMBER, _CLUSTERING, _LIMITS, _LOGGING = "Member", "Clustering", "Limits", "Logging"
_MONITORING = "Monitoring"
_SECURITY = "Security"
_POSITIVE = Integer(min=1)


def _tls_options(default: Config) -> list[_Option]:
    versions = click.Choice(["TLS1.2", "TLS1.3"])
    options = [
        _Option(f"{port}{name}", _SECURITY, click.STRING, "none", text, metavar="FILE")
        for port, who in (("", "clients"), ("peer-", "the other members"))
        for name, text in (
            ("cert-file", f"Certificate of https URLs for {who}; PEM, read anew when it changes."),
            ("key-file", "Its key, without a password."),
            ("trusted-ca-file", f"Authority of the certificates that {who} must show."),
        )
    ]
    return [
        *options,
        _switch("client-cert-auth", _SECURITY, "Clients must show a certificate; its common name is a user."),
        _Option("client-crl-file", _SECURITY, click.STRING, "none", "Revoked ones; PEM or DER.", metavar="FILE"),
        _Option("client-cert-allowed-hostname", _SECURITY, Texts(), "all", "A host name of them must be one of these."),
        _switch(
            "auto-tls", _SECURITY, "Clients: with a certificate that the member makes, and that nobody vouches for."
        ),
        _Option("peer-client-cert-file", _SECURITY, click.STRING, "none", "Shown to other members.", metavar="FILE"),
        _Option("peer-client-key-file", _SECURITY, click.STRING, "none", "Its key.", metavar="FILE"),
        _switch("peer-client-cert-auth", _SECURITY, "Other members must show a certificate."),
        _Option("peer-crl-file", _SECURITY, click.STRING, "none", "Revoked ones; PEM or DER.", metavar="FILE"),
        _Option("peer-cert-allowed-cn", _SECURITY, Texts(), "all", "Its common name must be one of these."),
        _Option("peer-cert-allowed-hostname", _SECURITY, Texts(), "all", "Or a host name of it one of these."),
        _switch("peer-auto-tls", _SECURITY, "As --auto-tls, between members."),
        _Option(
            "self-signed-cert-validity",
            _SECURITY,
            Integer(1, 100),
            default.self_signed_cert_validity,
            "Years that a certificate of --auto-tls lasts.",
        ),
        _Option("tls-min-version", _SECURITY, versions, default.tls_min_version, "Older ones are refused."),
        _Option("tls-max-version", _SECURITY, versions, "none", "Newer ones are not spoken."),
        _Option("cipher-suites", _SECURITY, Texts(), "OpenSSL's", "For TLS 1.2, by the names that etcd has for them."),
    ]


def _audit_options(default: Config) -> list[_Option]:
    return [
        _Option(
            "audit-log",
            _LOGGING,
            click.STRING,
            "none",
            "Who did what to which keys, a JSON line for each call; while it cannot be written, calls are refused.",
            metavar="FILE",
        ),
        _Option(
            "audit-log-max-bytes", _LOGGING, _POSITIVE, default.audit_log_max_bytes, "At this size it becomes FILE.1."
        ),
        _Option(
            "audit-log-backups",
            _LOGGING,
            Integer(min=0),
            default.audit_log_backups,
            "So many older ones are kept: FILE.1, the latest, FILE.2 and so on.",
        ),
    ]


def _options() -> list[_Option]:
    listen, advertise = Urls(listen=True), Urls(listen=False)
    default = Config()
    return [
        _Option(
            "name", _MEMBER, click.STRING, default.name, "Human name; its entry in --initial-cluster is this member."
        ),
        _Option("data-dir", _MEMBER, click.STRING, "${name}.raftkv", "Where the log and the store live."),
        _Option(
            "listen-client-urls",
            _MEMBER,
            listen,
            default.listen_client_urls[0],
            "Where to serve clients; IP or localhost.",
        ),
        _Option("listen-peer-urls", _MEMBER, listen, default.listen_peer_urls[0], "Where to serve the other members."),
        _Option(
            "heartbeat-interval", _MEMBER, _POSITIVE, default.heartbeat_interval_ms, "Milliseconds; about a round trip."
        ),
        _Option(
            "election-timeout",
            _MEMBER,
            _POSITIVE,
            default.election_timeout_ms,
            "Milliseconds; at least 5 heartbeats, ≤ 50 s.",
        ),
        _Option(
            "snapshot-count",
            _MEMBER,
            _POSITIVE,
            default.snapshot_count,
            "The log is compacted each time it has so many entries more.",
        ),
        _Option(
            "snapshot-catchup-entries",
            _MEMBER,
            Integer(min=0),
            default.snapshot_catchup_entries,
            "So many entries are kept for members that lag; others get a snapshot.",
        ),
        _Option(
            "snapshot-send-bytes-per-second",
            _MEMBER,
            _POSITIVE,
            default.snapshot_send_bytes_per_second,
            "How fast a snapshot is sent at most.",
        ),
        _Option(
            "advertise-client-urls",
            _CLUSTERING,
            advertise,
            default.advertise_client_urls[0],
            "Where clients reach this member.",
        ),
        _Option(
            "initial-advertise-peer-urls",
            _CLUSTERING,
            advertise,
            default.initial_advertise_peer_urls[0],
            "Where the other members reach this one; must equal its entry in --initial-cluster.",
        ),
        _Option(
            "initial-cluster",
            _CLUSTERING,
            InitialCluster(),
            "${name}=${initial-advertise-peer-urls}",
            "All first members; repeat a name that has several URLs.",
        ),
        _Option(
            "initial-cluster-state",
            _CLUSTERING,
            click.Choice(["new", "existing"]),
            default.initial_cluster_state,
            "Whether the cluster starts now, or runs already and this member was added to it.",
        ),
        _Option(
            "initial-cluster-token",
            _CLUSTERING,
            click.STRING,
            default.initial_cluster_token,
            "Part of the cluster's id: keeps clusters with equal URLs apart.",
        ),
        _switch(
            "force-new-cluster",
            _CLUSTERING,
            "Go on alone from this member's data: all other members are removed for good. For one start.",
        ),
        _switch(
            "strict-reconfig-check",
            _CLUSTERING,
            "Refuse changes of the members that could cost the majority.",
            on=True,
        ),
        _Option("max-learners", _CLUSTERING, _POSITIVE, default.max_learners, "Most learners at once."),
        _switch("auto-promote-learners", _CLUSTERING, "Let learners vote as soon as they have caught up."),
        _Option(
            "quota-backend-bytes",
            _LIMITS,
            Integer(-(2**63), 2**63 - 1),
            default.quota_backend_bytes,
            "Size of the store at which puts are refused and NOSPACE is raised; 0: 2 GiB, less: no bound.",
        ),
        _Option("max-request-bytes", _LIMITS, _POSITIVE, default.max_request_bytes, "Largest request of a client."),
        _Option(
            "corrupt-check-time",
            _LIMITS,
            Duration(),
            "1h",
            "How often the leader compares the members' histories; 0: never.",
        ),
        _switch(
            "experimental-initial-corrupt-check",
            _LIMITS,
            "Compare this member's history with the others' when it has started.",
            on=True,
        ),
        _Option(
            "auto-compaction-mode",
            _LIMITS,
            click.Choice(["periodic", "revision"]),
            default.auto_compaction_mode,
            "What the retention counts: time or revisions.",
        ),
        _Option(
            "auto-compaction-retention",
            _LIMITS,
            click.STRING,
            default.auto_compaction_retention,
            "History to keep: hours or a duration, or a number of revisions; 0: all of it.",
        ),
        _Option("max-txn-ops", _LIMITS, _POSITIVE, default.max_txn_ops, "Most operations in one transaction."),
        _Option(
            "max-concurrent-streams",
            _LIMITS,
            Integer(1, 2**32 - 1),
            default.max_concurrent_streams,
            "Most calls at once on one connection of a client.",
        ),
        _Option(
            "max-connections",
            _LIMITS,
            Integer(min=0),
            "what open files allow",
            "Most connections of clients; 0: as many as the limit of open files allows, less 128.",
        ),
        _Option(
            "max-inflight-bytes",
            _LIMITS,
            _POSITIVE,
            default.max_inflight_bytes,
            "Most bytes of requests under way and of answers that clients do not take; more is refused.",
        ),
        _Option(
            "max-streams",
            _LIMITS,
            _POSITIVE,
            default.max_streams,
            "Most calls of clients that stay open, of all connections together; more are refused.",
        ),
        _Option(
            "max-watch-bytes",
            _LIMITS,
            _POSITIVE,
            default.max_watch_bytes,
            "Most bytes that watchers hold, and as many again that wait for them; more watchers are refused.",
        ),
        _Option(
            "grpc-keepalive-min-time",
            _LIMITS,
            Duration(),
            "5s",
            "A client whose pings come sooner, on a connection that does nothing else, is hung up; 0s: none is.",
        ),
        _Option(
            "rate-limit",
            _LIMITS,
            Rates(),
            "none",
            "USER[/METHOD]=RATE[:BURST]: most calls a second (and at once) of a user, or of each (*), of a method or "
            "of all together: '*=500,ann/Range=20:100'. What is more is refused with ResourceExhausted.",
        ),
        _switch("enable-grpc-gateway", _LIMITS, "Serve the API as JSON at /v3/.", on=True),
        _Option("cors", _LIMITS, Texts(), ",".join(default.cors), "Origins that a browser lets use the client port."),
        _Option(
            "watch-progress-notify-interval",
            _LIMITS,
            Duration(),
            "5s",
            "How often a quiet watcher hears how far the store is, if it asked; at least 100ms.",
        ),
        _Option(
            "auth-token",
            _SECURITY,
            click.STRING,
            default.auth_token,
            "simple, or jwt,sign-method=RS256,priv-key=FILE,pub-key=FILE,ttl=5m.",
        ),
        _Option(
            "auth-token-ttl",
            _SECURITY,
            _POSITIVE,
            default.auth_token_ttl_seconds,
            "Seconds after which a simple token that is not used ends.",
        ),
        _Option(
            "bcrypt-cost",
            _SECURITY,
            Integer(4, 31),
            default.bcrypt_cost,
            "Work of hashing a password: each step doubles it.",
        ),
        *_tls_options(default),
        _Option(
            "listen-metrics-urls",
            _MONITORING,
            listen,
            "none",
            "Where to serve /metrics, /health, /livez and /readyz besides the client port.",
        ),
        _Option(
            "metrics",
            _MONITORING,
            click.Choice(METRICS),
            default.metrics,
            "extensive: with grpc_server_handling_seconds.",
        ),
        _switch("enable-pprof", _MONITORING, "Serve the stacks of all threads and tasks at /debug/stacks."),
        _Option(
            "warning-apply-duration",
            _LOGGING,
            Duration(),
            "100ms",
            "A request that takes longer is logged, with what it waited for.",
        ),
        *_audit_options(default),
        _Option("log-level", _LOGGING, click.Choice(LOG_LEVELS), default.log_level, "What is logged, to stderr."),
        _Option(
            "log-format", _LOGGING, click.Choice(LOG_FORMATS), default.log_format, "Lines for people or for machines."
        ),
    ]


_EXAMPLES = """\b
Examples:
  raftkv
      one member: clients on http://localhost:2379, data in ./default.raftkv
  raftkv --name n1 \\
      --listen-client-urls http://0.0.0.0:2379 --advertise-client-urls http://10.0.0.1:2379 \\
      --listen-peer-urls http://0.0.0.0:2380 --initial-advertise-peer-urls http://10.0.0.1:2380 \\
      --initial-cluster n1=http://10.0.0.1:2380,n2=http://10.0.0.2:2380,n3=http://10.0.0.3:2380
      one of three members; the others differ in --name and their own URLs
  raftkv --config-file n1.yaml
      the same settings from a file
  raftkv wal dump default.raftkv
      print a stopped member's log
  raftkv sim --seeds 100
      run whole clusters under virtual time with faults, and check them"""


class _Command(click.Command):
    """Help by groups."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                groups.setdefault(getattr(param, "group", "General"), []).append(record)
        for title, records in groups.items():
            with formatter.section(title):
                formatter.write_dl(records, col_max=36)


def command() -> click.Command:
    """Build the `raftkv` command; it only parses."""
    general: list[click.Parameter] = [
        click.Option(
            ["--config-file"],
            is_eager=True,
            callback=_load_file,
            metavar="FILE",
            help="YAML with the same keys; RAFTKV_CONFIG_FILE names it too.",
        ),
        click.Option(
            ["--version"], is_flag=True, is_eager=True, callback=_print_version, help="Print versions and exit."
        ),
    ]
    return _Command(
        "raftkv",
        params=[*_options(), *general],
        help="Run one member of a raftkv cluster: an etcd v3 key-value store, replicated by Raft.\n\n"
        "Each flag can also come from the environment (RAFTKV_NAME for --name) or from a YAML file (name: …). "
        "A flag beats the environment, the environment beats the file.",
        epilog=_EXAMPLES,
        options_metavar="[FLAGS]",
        context_settings={"max_content_width": 120, "help_option_names": ["--help", "-h"]},
        add_help_option=True,
    )


OPTIONS: tuple[str, ...] = (*(option.flag for option in _options()), "config-file", "version")
"""Every flag, without its dashes."""

SWITCHES = {option.flag for option in _options() if option.type is click.BOOL}


def _print_version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        import platform

        click.echo(f"raftkv {VERSION}\netcd API {ETCD_API_VERSION}\nPython {platform.python_version()}")
        ctx.exit()


# The file


def _load_file(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    path = value or ctx.obj.get(_variable("config-file"))
    if path:
        ctx.default_map = read_file(path)


def read_file(path: str) -> dict[str, str]:
    """Read a YAML file of settings; the keys of the result are click's parameter names.

    Raises:
        ConfigError: it cannot be read, is not a mapping, or has an unknown key.
    """
    import yaml

    try:
        with open(path, encoding="utf-8") as file:
            content = yaml.safe_load(file)
    except OSError as error:
        raise ConfigError(f"cannot read --config-file {path}: {(error.strerror or str(error)).lower()}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config-file {path} is not YAML: {' '.join(str(error).split())}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"--config-file {path} must hold a mapping of settings, such as `name: n1`")
    settings = [name for name in OPTIONS if name not in ("config-file", "version")]
    values = {}
    for key, value in content.items():
        if key not in settings:
            raise ConfigError(f"--config-file {path}: {_unknown('key', str(key), settings)}")
        if value is not None:
            values[key.replace("-", "_")] = _file_value(path, key, value)
    return values


def _file_value(path: str, key: str, value: object) -> str:
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        return ",".join(value)
    if isinstance(value, bool) and key in SWITCHES:
        return str(value).lower()
    if isinstance(value, (str, int)) and not isinstance(value, bool):
        return str(value)
    raise ConfigError(f"--config-file {path}: {key} must be a text, a number or a list of texts")


def _build(context: click.Context) -> Config:
    given = {name: value for name, value in context.params.items() if value is not None}
    given = {_FIELDS.get(name, name): value for name, value in given.items() if name not in ("config_file", "version")}
    if "listen_client_urls" in given and "advertise_client_urls" not in given:
        raise ConfigError(
            "--advertise-client-urls is required when --listen-client-urls is set explicitly: "
            "name the URLs under which clients reach this member"
        )
    name = given.setdefault("name", Config().name)
    given.setdefault("data_dir", f"{name}.raftkv")
    advertised = given.setdefault("initial_advertise_peer_urls", Config().initial_advertise_peer_urls)
    given.setdefault("initial_cluster", ((name, advertised),))
    config = Config(**given)
    check(config)
    check_tls(config)
    return config


_FIELDS = {
    "auth_token_ttl": "auth_token_ttl_seconds",
    "corrupt_check_time": "corrupt_check_time_seconds",
    "experimental_initial_corrupt_check": "initial_corrupt_check",
    "heartbeat_interval": "heartbeat_interval_ms",
    "election_timeout": "election_timeout_ms",
    "grpc_keepalive_min_time": "grpc_keepalive_min_time_seconds",
    "watch_progress_notify_interval": "watch_progress_notify_interval_seconds",
    "warning_apply_duration": "warning_apply_duration_seconds",
}


# Texts


def _two_dashes(argument: str) -> str:
    """Accept `-name` for `--name`, as Go programs do."""
    return f"-{argument}" if re.match(r"-[a-z]{2}", argument) else argument


def _unknown(what: str, name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    hint = f"did you mean {close[0]}?" if close else "see `raftkv --help`"
    return f"unknown {what} {name}: {hint}"


def _one_line(error: click.ClickException) -> str:
    message = " ".join(error.format_message().split()).rstrip(".")
    if not isinstance(error, click.UsageError):
        return message
    param, ctx = getattr(error, "param", None), error.ctx
    if isinstance(param, _Option) and isinstance(error, click.BadParameter):
        source = ctx.get_parameter_source(param.name) if ctx and param.name else None
        places = {
            click.core.ParameterSource.ENVIRONMENT: f" (from {_variable(param.flag)})",
            click.core.ParameterSource.DEFAULT_MAP: " (from --config-file)",
        }
        place = places.get(source, "") if source else ""
        said, is_boolean, _ = error.message.partition(" is not a valid boolean")
        text = f"{said} is neither true nor false" if is_boolean else " ".join(error.message.split()).rstrip(".")
        return f"--{param.flag}: {text}{place}"
    if message.startswith("Got unexpected extra argument"):
        message += ": settings are flags, and the commands are `wal` and `sim`; see `raftkv --help`"
    return message[:1].lower() + message[1:]
