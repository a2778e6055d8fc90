"""Certificates for development: an authority, and what servers, members and clients show. `make certs`.

A directory that is made here is closed to other users of this machine. The keys in it, but for the authority's, are
readable: containers whose user has another number are given them one by one (docker-compose.yml). An authority that is
there goes on.
"""

import argparse
import datetime
import sys
from collections.abc import Iterable
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

DAYS = 825
"""Some systems refuse a server's certificate that lasts longer."""
HOSTS = ("localhost", "127.0.0.1", "::1", "tls-a", "tls-b", "tls-c")
SERVER, CLIENT = ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH
Key = ec.EllipticCurvePrivateKey


def main() -> int:
    """Write what is missing of the authority, and the rest anew."""
    parser = argparse.ArgumentParser(prog="make certs ARGS=…", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--directory", type=Path, default=Path("certs"), help="where to (default: certs)")
    parser.add_argument(
        "--hosts", default=",".join(HOSTS), help="names and addresses of the servers (default: %(default)s)"
    )
    parser.add_argument("--user", default="root", help="whose name is on client.pem, or '' (default: %(default)s)")
    options = parser.parse_args()
    hosts = [host for host in options.hosts.split(",") if host]
    write_all(options.directory, hosts, options.user)
    directory = options.directory
    print(f"{directory}/ has ca, server, peer and client certificates. For example:")
    print("  docker compose --profile tls up --build")
    flags = f"--cacert {directory}/ca.pem --cert {directory}/client.pem --key {directory}/client.key"
    print(f"  raftctl --endpoints https://localhost:2379 {flags} put hello world")
    return 0


def write_all(directory: Path, hosts: Iterable[str], user: str) -> None:
    """Make all certificates: `ca`, `server`, `peer`, `client`, each NAME.pem with NAME.key.

    Raises:
        OSError: a file cannot be written.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    names = [_general(host) for host in hosts]
    authority = _authority(directory)
    _issue(directory, "server", authority, "raftkv server", names, (SERVER, CLIENT))
    _issue(directory, "peer", authority, "raftkv peer", names, (SERVER, CLIENT))
    _issue(directory, "client", authority, user, [], (CLIENT,))


def _authority(directory: Path) -> tuple[x509.Certificate, Key]:
    certificate, key_file = directory / "ca.pem", directory / "ca.key"
    if certificate.exists() and key_file.exists():
        known = serialization.load_pem_private_key(key_file.read_bytes(), None)
        assert isinstance(known, Key), "it was made here"
        return x509.load_pem_x509_certificate(certificate.read_bytes()), known
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "raftkv development authority")])
    signs = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    builder = _builder(name, name, key).add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    made = builder.add_extension(signs, critical=True).sign(key, hashes.SHA256())
    _write(directory, "ca", made, key)
    return made, key


def _issue(
    directory: Path,
    file: str,
    authority: tuple[x509.Certificate, Key],
    common_name: str,
    names: list[x509.GeneralName],
    uses: tuple[x509.ObjectIdentifier, ...],
) -> None:
    issuer, issuer_key = authority
    key = ec.generate_private_key(ec.SECP256R1())
    subject = [x509.NameAttribute(NameOID.COMMON_NAME, common_name)] if common_name else []
    builder = _builder(x509.Name(subject), issuer.subject, key)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage(uses), critical=False)
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    known = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key())
    _write(directory, file, builder.add_extension(known, critical=False).sign(issuer_key, hashes.SHA256()), key)


def _builder(subject: x509.Name, issuer: x509.Name, key: Key) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(days=DAYS))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _write(directory: Path, name: str, certificate: x509.Certificate, key: Key) -> None:
    plain = serialization.NoEncryption()
    secret = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    key_file = directory / f"{name}.key"
    key_file.unlink(missing_ok=True)
    key_file.touch(0o600)
    key_file.write_bytes(secret)
    closed = not directory.stat().st_mode & 0o077
    if closed and name != "ca":
        key_file.chmod(0o644)
    (directory / f"{name}.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))


def _general(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        return x509.DNSName(host)


if __name__ == "__main__":
    sys.exit(main())
