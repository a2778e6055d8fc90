"""TLS contexts, made here alone: for every listener, and for what a member dials.

Files are looked at in each handshake: what was replaced counts from the next connection on. While new files cannot be
used (a key that is written after its certificate, say) those read before go on. That is not so for a revocation list:
as long as it cannot be read, no certificate is taken.
"""

import asyncio
import logging
import ssl
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

_Stamp = tuple[tuple[int, int, int] | None, ...]


class Refused(Exception):
    """The other side's certificate does not let it in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """The rules of a port. Certificates and keys are PEM files, the revocation list is PEM or DER."""

    certificate: Path
    key: Path
    client_ca: Path | None = None
    """Only clients with a certificate of this authority get in."""
    client_certificates: bool = False
    """Clients need a certificate, also without `client_ca`: of an authority the system trusts then."""
    revoked: Path | None = None
    allowed_names: tuple[str, ...] = ()
    """Common names; others are refused."""
    allowed_hosts: tuple[str, ...] = ()
    """One of them must be among the host names or addresses of a client's certificate."""
    names_are_users: bool = False
    """The common name of a certificate says which user calls."""
    minimum: ssl.TLSVersion = ssl.TLSVersion.TLSv1_2
    maximum: ssl.TLSVersion | None = None
    ciphers: tuple[str, ...] = ()
    """For TLS 1.2, in OpenSSL's names."""

    @property
    def asks(self) -> bool:
        """Whether clients must show a certificate."""
        return self.client_ca is not None or self.client_certificates

    def context(self) -> ssl.SSLContext:
        """What a listener shakes hands with.

        Raises:
            ValueError: a file is missing or not PEM.
        """
        # Not create_default_context: from Python 3.13 on that refuses certificates which etcd and older Pythons take.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.set_alpn_protocols(["h2", "http/1.1"])
        # A session that goes on would pass by the checks of the certificate.
        context.options |= ssl.OP_NO_TICKET
        context.num_tickets = 0
        _set_protocol(context, self.minimum, self.maximum, self.ciphers)
        load(context, self.certificate, self.key, self.client_ca)
        if self.asks:
            if self.client_ca is None:
                context.load_default_certs(ssl.Purpose.CLIENT_AUTH)
            context.verify_mode = ssl.CERT_REQUIRED
        return context


@dataclass(frozen=True, slots=True, kw_only=True)
class DialTls:
    """How other members are dialled."""

    certificate: Path | None = None
    key: Path | None = None
    ca: Path | None = None
    """Who vouches for them; None: the authorities the system trusts."""
    verify: bool = True
    minimum: ssl.TLSVersion = ssl.TLSVersion.TLSv1_2
    maximum: ssl.TLSVersion | None = None
    ciphers: tuple[str, ...] = ()

    def context(self) -> ssl.SSLContext:
        """What a connection that begins here shakes hands with.

        Raises:
            ValueError: a file is missing or not PEM.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.set_alpn_protocols(["h2"])
        if not self.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        elif self.ca is None:
            context.load_default_certs(ssl.Purpose.SERVER_AUTH)
        _set_protocol(context, self.minimum, self.maximum, self.ciphers)
        load(context, self.certificate, self.key, self.ca)
        return context


def _set_protocol(
    context: ssl.SSLContext, minimum: ssl.TLSVersion, maximum: ssl.TLSVersion | None, ciphers: Sequence[str]
) -> None:
    context.minimum_version = minimum
    if maximum is not None:
        context.maximum_version = maximum
    if ciphers:
        try:
            context.set_ciphers(":".join(ciphers))
        except ssl.SSLError as error:
            raise ValueError(f"no cipher of {', '.join(ciphers)} is known to {ssl.OPENSSL_VERSION}") from error


def load(context: ssl.SSLContext, certificate: Path | None, key: Path | None, ca: Path | None) -> None:
    """Read files into a context.

    Raises:
        ValueError: one is missing or not PEM, or key and certificate do not fit.
    """
    try:
        if certificate is not None:
            context.load_cert_chain(certificate, key, password=_no_password)
        if ca is not None:
            context.load_verify_locations(ca)
    except (OSError, ValueError) as error:
        # ssl.SSLError is an OSError; neither says which file it was.
        named = ", ".join(str(path) for path in (certificate, key, ca) if path is not None)
        problem = _problem(error, certificate, key, ca)
        raise ValueError(f"cannot use the TLS files {named}: {problem}") from error


def _problem(error: Exception, certificate: Path | None, key: Path | None, ca: Path | None) -> str:
    """What is wrong with which file, where that can be told."""
    for path, kind in ((certificate, "certificate"), (key, "key"), (ca, "certificate")):
        if path is None:
            continue
        try:
            data = path.read_bytes()
        except OSError as unread:
            return f"{path}: {(unread.strerror or str(unread)).lower()}"
        if f"{kind.upper()}-----".encode() not in data:
            return f"{path} has no {kind} in PEM"
    if isinstance(error, ssl.SSLError) and error.reason == "KEY_VALUES_MISMATCH":
        return f"{key} is not the key of {certificate}"
    return str(error)


def _no_password() -> str:
    raise ValueError("the key is encrypted; write it without a password")


class Guard:
    """Lets clients in by the rules of a port, and by the files as they are now."""

    def __init__(self, tls: Tls) -> None:
        """Read the files.

        Raises:
            ValueError: one is missing or cannot be used.
        """
        self._tls = tls
        self._files = [path for path in (tls.certificate, tls.key, tls.client_ca) if path is not None]
        self._stamp = stamp(self._files)
        self.context = self._current = tls.context()
        """For `create_server`: each handshake goes on with the context of the newest files."""
        self._revocations = None if tls.revoked is None else Revocations(tls.revoked)
        # mypy's stubs know the callback for sockets only.
        self.context.sni_callback = self._renew

    def _renew(self, connection: Any, name: str | None, context: ssl.SSLContext) -> None:
        found = stamp(self._files)
        if found != self._stamp:
            self._stamp = found
            try:
                self._current = self._tls.context()
            except ValueError as error:
                logger.warning("%s; those read before go on", error)
            else:
                logger.info("the TLS files %s were read anew", ", ".join(map(str, self._files)))
        connection.context = self._current

    def admit(self, connection: ssl.SSLObject) -> str:
        """Judge whom a finished handshake brought; the user its certificate names, if that counts, or nothing.

        Raises:
            Refused
        """
        if not self._tls.asks:
            return ""
        certificate = connection.getpeercert()
        if not certificate:
            raise Refused("there is no client certificate")
        if connection.session_reused:
            raise Refused("a session that was resumed shows no certificate")
        if self._revocations is not None:
            self._revocations.check(int(str(certificate["serialNumber"]), 16))
        name = common_name(certificate)
        if self._tls.allowed_names and name not in self._tls.allowed_names:
            raise Refused(f"client certificate authentication failed: the name {name!r} is not allowed")
        hosts = self._tls.allowed_hosts
        if hosts and not any(is_for(certificate, host) for host in hosts):
            raise Refused(f"client certificate authentication failed: it is not for {' or '.join(hosts)}")
        return name if self._tls.names_are_users else ""


class Revocations:
    """The numbers of certificates that count no more. As in etcd only the number is compared, not who issued it."""

    def __init__(self, path: Path) -> None:
        """Read the list.

        Raises:
            ValueError: there is none in the file.
        """
        self._path = path
        self._stamp = stamp([path])
        self._numbers = self._read()

    def check(self, number: int) -> None:
        """See that a certificate was not revoked.

        Raises:
            Refused: it was, or the list cannot be read.
        """
        found = stamp([self._path])
        if found != self._stamp:
            try:
                self._numbers = self._read()
            except ValueError as error:
                raise Refused(str(error)) from error
            self._stamp = found
        if number in self._numbers:
            raise Refused(f"certificate serial {number:x} revoked")

    def _read(self) -> frozenset[int]:
        from cryptography import x509

        try:
            data = self._path.read_bytes()
            pem = data.lstrip().startswith(b"-----BEGIN")
            revoked = x509.load_pem_x509_crl(data) if pem else x509.load_der_x509_crl(data)
            return frozenset(entry.serial_number for entry in revoked)
        except OSError as error:
            problem = (
                f"cannot read the certificate revocation list {self._path}: {(error.strerror or str(error)).lower()}"
            )
            raise ValueError(problem) from error
        except (ValueError, x509.InvalidVersion) as error:
            raise ValueError(f"{self._path} is no certificate revocation list in PEM or DER") from error


def stamp(files: Iterable[Path]) -> _Stamp:
    """What changes when one of the files does."""
    return tuple(map(_stamp, files))


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def common_name(certificate: Mapping[str, Any]) -> str:
    """The subject's common name, of several the last."""
    names = [value for part in certificate.get("subject", ()) for kind, value in part if kind == "commonName"]
    return str(names[-1]) if names else ""


def is_for(certificate: Mapping[str, Any], host: str) -> bool:
    """Whether a host's name or address is among the certificate's alternative names; `*` is one label, the first."""
    names = certificate.get("subjectAltName", ())
    try:
        address = ip_address(host)
    except ValueError:
        known = {str(name).lower().rstrip(".") for kind, name in names if kind == "DNS"}
        host = host.lower().rstrip(".")
        return host in known or f"*.{host.partition('.')[2]}" in known
    return any(kind == "IP Address" and ip_address(str(name)) == address for kind, name in names)


async def pinned(host: str, port: int, context: ssl.SSLContext) -> tuple[bytes, str]:
    """What a listener shows now, as PEM, and a name that it is for.

    Raises:
        OSError: nobody is there, or the handshake fails.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding
    from cryptography.x509.oid import NameOID

    _, writer = await asyncio.open_connection(host, port, ssl=context)
    try:
        shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    finally:
        writer.close()
    certificate = x509.load_der_x509_certificate(shown)
    names = [str(found.value) for found in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    try:
        known = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        pass
    else:
        addresses = map(str, known.get_values_for_type(x509.IPAddress))
        names = [*known.get_values_for_type(x509.DNSName), *addresses, *names]
    return certificate.public_bytes(Encoding.PEM), names[0].replace("*", "any") if names else host
