"""How a client speaks TLS."""

from dataclasses import dataclass
from pathlib import Path

import grpc
import grpc.aio

from raftkv.client.requests import CHANNEL_OPTIONS


def is_encrypted(key: bytes) -> bool:
    """Whether a private key in PEM wants a password. gRPC could not ask for it, and would only fail to connect."""
    return b"-----BEGIN ENCRYPTED PRIVATE KEY-----" in key or b"Proc-Type: 4,ENCRYPTED" in key


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientTls:
    """Whom a client trusts and what it shows; files are PEM, and read for each connection that is made anew."""

    ca: Path | None = None
    """Who vouches for servers; None: the authorities that gRPC trusts."""
    certificate: Path | None = None
    key: Path | None = None
    server_name: str = ""
    """The name that servers' certificates must have, instead of the endpoint's host."""
    verify: bool = True
    """False: whatever certificate a server shows is taken. Whoever sits between can then read and change all."""

    async def channel(self, address: str) -> grpc.aio.Channel:
        """A channel to host:port.

        Raises:
            OSError: a file cannot be read, the key is encrypted; or, unverified, nobody is there.
        """
        files = (self.ca, self.key, self.certificate)
        roots, key, chain = (path.read_bytes() if path else None for path in files)
        if key and is_encrypted(key):
            raise OSError(f"the key {self.key} is encrypted; write it without a password")
        name = self.server_name
        if not self.verify:
            from raftkv.http.tls import DialTls, pinned

            host, _, port = address.rpartition(":")
            # gRPC always verifies: it is to expect what is shown now.
            try:
                context = DialTls(certificate=self.certificate, key=self.key, verify=False).context()
            except ValueError as error:
                raise OSError(str(error)) from error
            roots, name = await pinned(host.strip("[]"), int(port), context)
        options: list[tuple[str, int | str]] = [*CHANNEL_OPTIONS]
        if name:
            options.append(("grpc.ssl_target_name_override", name))
        return grpc.aio.secure_channel(address, grpc.ssl_channel_credentials(roots, key, chain), options=options)
