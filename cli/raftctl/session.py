"""What every command shares: the global flags, a client, a printer."""

import os
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cli.raftctl import flags, golang
from cli.raftctl.failure import BAD_ARGUMENTS, BAD_CONNECTION, BAD_FEATURE, Failure

if TYPE_CHECKING:
    from cli.raftctl.printers import Printer
    from raftkv.client import AsyncClient, Client
    from raftkv.client.secure import ClientTls

C = TypeVar("C")
F = TypeVar("F", bound=Callable[..., Any])

FORMATS = ("fields", "json", "protobuf", "simple", "table")
TLS_FILES = ("cert", "key", "cacert")


@dataclass(frozen=True, slots=True)
class Setting:
    """A global flag; also RAFTCTL_… in the environment."""

    name: str
    default: str
    help: str
    short: str = ""
    metavar: str = "TEXT"

    @property
    def is_switch(self) -> bool:
        return self.default in ("true", "false")

    @property
    def is_duration(self) -> bool:
        return self.metavar == "DURATION"

    @property
    def variable(self) -> str:
        return "RAFTCTL_" + self.name.upper().replace("-", "_")


SETTINGS = (
    Setting("endpoints", "127.0.0.1:2379", "Where the members are; with commas, or repeated.", "", "HOST:PORT"),
    Setting("command-timeout", "5s", "For a command; for each page of a streamed range.", "", "DURATION"),
    Setting("dial-timeout", "2s", "To find a member that can be reached.", "", "DURATION"),
    Setting("write-out", "simple", f"Output: {', '.join(FORMATS)}.", "w", "FORM"),
    Setting("hex", "false", "Print keys and values as \\x escapes."),
    Setting("debug", "false", "Print the settings, and where an error came from."),
    Setting("user", "", "Who calls; without a password it is asked for.", "", "NAME[:PASSWORD]"),
    Setting("password", "", "The password; --user is the name alone then."),
    Setting("cacert", "", "Who vouches for https:// endpoints; PEM.", "", "FILE"),
    Setting("cert", "", "The certificate to show; PEM, with --key.", "", "FILE"),
    Setting("key", "", "Its key, without a password.", "", "FILE"),
    Setting("insecure-transport", "true", "false: endpoints without a scheme are https://."),
    Setting("insecure-skip-tls-verify", "false", "Take whatever certificate a member shows; for tests only."),
    Setting("tls-server-name", "", "The name in members' certificates, instead of the endpoint's host.", "", "NAME"),
    Setting("discovery-srv", "", "Refused: endpoints are not looked up in the DNS.", "d", "DOMAIN"),
    Setting("discovery-srv-name", "", "Refused with --discovery-srv.", "", "NAME"),
    Setting("insecure-discovery", "true", "Accepted."),
    Setting("keepalive-time", "2s", "Accepted; a member is asked for a sign of life every 10s.", "", "DURATION"),
    Setting("keepalive-timeout", "6s", "Accepted; it is given up 5s after it was asked.", "", "DURATION"),
)


def credentials(user: str, password: str) -> tuple[str, str]:
    """User and password of `NAME[:PASSWORD]` and a password; it is asked for when neither has one. None: two blanks."""
    if user and not password:
        user, given, password = user.partition(":")
        if not given:
            from cli.raftctl.passwords import ask

            password = ask("Password: ")
    return (user, password) if user and password else ("", "")


def check_tls_files(files: Mapping[str, str], prefix: str = "--") -> None:
    """Refuse paths (of TLS_FILES, by the flags' names without `prefix`) that cannot be used.

    Raises:
        Failure: a file cannot be read, a certificate or a key is alone, or the key is encrypted.
    """
    for name in TLS_FILES:
        if files[name] and not os.access(files[name], os.R_OK):
            raise Failure(f"{prefix}{name}: cannot read {files[name]}", BAD_ARGUMENTS)
    if bool(files["cert"]) != bool(files["key"]):
        raise Failure(f"{prefix}cert and {prefix}key are used together", BAD_ARGUMENTS)
    if key := files["key"]:
        from raftkv.client.secure import is_encrypted

        if is_encrypted(Path(key).read_bytes()):
            remedy = f"openssl pkey -in {shlex.quote(key)} -out NEW"
            raise Failure(f"{prefix}key: {key} is encrypted; write it without a password: {remedy}", BAD_ARGUMENTS)


def make_tls(files: Mapping[str, str], *, plain: bool, verify: bool = True, name: str = "") -> "ClientTls | None":
    """TLS with these paths (of TLS_FILES), of servers of a `name`, if not by their hosts'.

    None: nothing asks for it, and endpoints without a scheme are `plain`.
    """
    from raftkv.client.secure import ClientTls

    cert, key, ca = (Path(files[name]) if files[name] else None for name in TLS_FILES)
    if not (ca or cert or name) and verify and plain:
        return None
    return ClientTls(ca=ca, certificate=cert, key=key, server_name=name, verify=verify)


class Session:
    """The global flags of one run. A flag beats its variable, which beats the default."""

    def __init__(self) -> None:
        self._given: dict[str, list[str]] = {}
        self._asked: tuple[str, str] | None = None

    def give(self, name: str, value: str) -> None:
        """Take a flag, wherever it stood; only --endpoints adds up."""
        if name == "endpoints":
            self._given.setdefault(name, []).append(value)
        else:
            self._given[name] = [value]

    def value(self, name: str) -> str:
        """A setting's text.

        Raises:
            Failure: its variable cannot be parsed.
        """
        setting = next(setting for setting in SETTINGS if setting.name == name)
        if name in self._given:
            return ",".join(self._given[name])
        text = os.environ.get(setting.variable, "")
        if not text:
            return setting.default
        try:
            if setting.is_switch:
                golang.parse_bool(text)
            elif setting.is_duration:
                golang.parse_duration(text)
        except ValueError as error:
            raise Failure(f'invalid value "{text}" for {setting.variable}: {error}') from error
        return text

    def on(self, name: str) -> bool:
        """Whether a switch is on."""
        return golang.parse_bool(self.value(name))

    def seconds(self, name: str) -> float:
        """A duration."""
        return golang.parse_duration(self.value(name))

    @property
    def endpoints(self) -> list[str]:
        """As they were written."""
        return [one.strip() for one in self.value("endpoints").split(",") if one.strip()]

    def client(self, endpoints: list[str] | None = None) -> "Client":
        """Make a client; it connects when it is used.

        Raises:
            Failure: settings that do not work.
        """
        self._prepare()
        # Imported only now: it is the slow part of the start.
        from raftkv.client import Client

        return self._make(Client, self.endpoints if endpoints is None else endpoints, self._credentials(), self.tls())

    def client_elsewhere(self, endpoints: list[str], credentials: tuple[str, str], tls: "ClientTls | None") -> "Client":
        """The same for another cluster, with a user and password and TLS of its own."""
        self._prepare()
        from raftkv.client import Client

        return self._make(Client, endpoints, credentials, tls)

    def async_client(self, endpoints: list[str] | None = None) -> "AsyncClient":
        """The same for asyncio."""
        self._prepare()
        from raftkv.client import AsyncClient

        return self._make(
            AsyncClient, self.endpoints if endpoints is None else endpoints, self._credentials(), self.tls()
        )

    def _prepare(self) -> None:
        self._refuse()
        if self.on("debug"):
            self._tell()

    def _make(
        self, kind: Callable[..., C], endpoints: list[str], credentials: tuple[str, str], tls: "ClientTls | None"
    ) -> C:
        if not endpoints:
            raise Failure("etcdclient: no available endpoints", BAD_CONNECTION)
        timeout, dial_timeout = self.seconds("command-timeout"), self.seconds("dial-timeout")
        user, password = credentials
        try:
            return kind(
                endpoints,
                timeout=timeout,
                dial_timeout=min(timeout, dial_timeout),
                user=user,
                password=password,
                tls=tls,
            )
        except ValueError as error:
            raise Failure(str(error), BAD_ARGUMENTS) from error

    def tls(self) -> "ClientTls | None":
        """How to speak TLS; None: only to https:// endpoints, with the authorities that gRPC trusts."""
        verify = not self.on("insecure-skip-tls-verify")
        name = self.value("tls-server-name")
        return make_tls(self._tls_files(), plain=self.on("insecure-transport"), verify=verify, name=name)

    def _tls_files(self) -> dict[str, str]:
        return {name: self.value(name) for name in TLS_FILES}

    def _credentials(self) -> tuple[str, str]:
        """User and password; as in etcdctl, one without the other is none. A password is asked for only once."""
        if self._asked is None:
            self._asked = credentials(self.value("user"), self.value("password"))
        return self._asked

    def _refuse(self) -> None:
        for name in TLS_FILES:
            if self._given.get(name) == [""]:
                raise Failure(f"empty string is passed to --{name} option", BAD_ARGUMENTS)
        check_tls_files(self._tls_files())
        if self.value("discovery-srv"):
            raise Failure("--discovery-srv is not supported: name the members with --endpoints", BAD_ARGUMENTS)

    def _tell(self) -> None:
        for setting in sorted(SETTINGS, key=lambda setting: setting.name):
            value = self.value(setting.name)
            secret = value and setting.name in ("password", "user")
            print(f"{setting.variable}={'***' if secret else value}", file=sys.stderr)

    def reasons(self, unreached: str) -> tuple[str, ...]:
        """Why endpoints that this message names could not be reached, a line for each of which it can be told."""
        from cli.raftctl.unreached import reasons

        return reasons(unreached, self.endpoints, self.tls())

    def printer(self) -> "Printer":
        """The printer of --write-out.

        Raises:
            Failure: there is none.
        """
        form = self.value("write-out")
        if form not in FORMATS:
            raise Failure("unsupported output format", BAD_FEATURE)
        from cli.raftctl.printers import make_printer

        return make_printer(form, hexadecimal=self.on("hex"))


def _take(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    assert parameter.name is not None
    name = parameter.name.replace("_", "-")
    taken = context.find_root().ensure_object(Session)
    if isinstance(parameter, click.Option) and parameter.multiple:
        for one in value:
            taken.give(name, one)
    elif value is not None:
        taken.give(name, str(value).lower() if isinstance(value, bool) else value)


def _checked_duration(text: str) -> str:
    golang.parse_duration(text)
    return text


_DURATION_TEXT = flags.GoType("duration", _checked_duration)


def _option(setting: Setting) -> click.Option:
    names = [f"--{setting.name}", *([f"-{setting.short}"] if setting.short else [])]
    off = setting.default in ("", "false")
    shown = setting.help if off else f"{setting.help}  [default: {setting.default}]"
    common: dict[str, Any] = {"expose_value": False, "callback": _take, "help": shown, "default": None}
    if setting.is_switch:
        return click.Option(names, is_flag=True, **common)
    kind = _DURATION_TEXT if setting.is_duration else click.STRING
    return click.Option(names, metavar=setting.metavar, type=kind, multiple=setting.name == "endpoints", **common)


def global_options(command: F) -> F:
    """Accept the global flags here: etcdctl takes them before and after the command's name."""
    # Decorators list parameters from the last to the first.
    known = command.__dict__.setdefault("__click_params__", [])
    known[:0] = [_option(setting) for setting in reversed(SETTINGS)]
    return command


def session() -> Session:
    """The session of the running command."""
    return click.get_current_context().find_root().ensure_object(Session)
