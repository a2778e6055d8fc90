"""Why an endpoint could not be reached: the gRPC library does not say, so it is tried once more, by hand."""

import contextlib
import socket
import ssl
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from raftkv.client.requests import SECURED, targets

if TYPE_CHECKING:
    from raftkv.client.secure import ClientTls

SECONDS = 1.0
"""For each step of one try."""
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0"
_TLS_ALERT = 0x15


def reasons(unreached: str, endpoints: Iterable[str], tls: "ClientTls | None") -> tuple[str, ...]:
    """A line for each of the endpoints that is named in the text and of which it can be told what is in the way."""
    named = unreached.replace(",", "").split()
    addresses = [address for address in targets(endpoints, secured=tls is not None) if address in named]
    with ThreadPoolExecutor(max_workers=16) as pool:
        found = pool.map(lambda address: _reason(address, tls), addresses)
        return tuple(f"{address}: {reason}" for address, reason in zip(addresses, found, strict=True) if reason)


def _reason(address: str, tls: "ClientTls | None") -> str:
    secured = address.startswith(SECURED)
    host, _, port = address.removeprefix(SECURED).rpartition(":")
    if address.startswith("unix:"):
        return ""
    try:
        with socket.create_connection((host.strip("[]"), int(port)), SECONDS) as connection:
            return _shaken(connection, host.strip("[]"), tls) if secured else _plain(connection)
    except OSError as error:
        return _text(error)
    except ValueError as error:
        return str(error)


def _plain(connection: socket.socket) -> str:
    connection.sendall(_PREFACE)
    first = b""
    with contextlib.suppress(ConnectionError):
        first = connection.recv(1)
    if first and first[0] != _TLS_ALERT:
        return ""
    return f"it hangs up; if it speaks TLS, write {SECURED}"


def _shaken(connection: socket.socket, host: str, tls: "ClientTls | None") -> str:
    from raftkv.http.tls import DialTls

    if tls is None:
        context = DialTls().context()
    else:
        context = DialTls(certificate=tls.certificate, key=tls.key, ca=tls.ca, verify=tls.verify).context()
    name = tls.server_name if tls is not None and tls.server_name else host
    with context.wrap_socket(connection, server_hostname=name) as secured:
        secured.sendall(_PREFACE)
        # With TLS 1.3 a certificate is judged after the handshake has ended for us.
        if secured.recv(1):
            return ""
    shown = tls is not None and tls.certificate is not None
    return "it hangs up: it may not take " + ("--cert" if shown else "whoever has no certificate (--cert, --key)")


def _text(error: OSError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        words = (error.reason or str(error)).replace("_", " ").lower()
        return {
            "wrong version number": "it does not speak TLS: write http://",
            "record layer failure": "it does not speak TLS: write http://",
        }.get(words, words)
    if isinstance(error, TimeoutError):
        return "no answer"
    return (error.strerror or str(error)).lower()
