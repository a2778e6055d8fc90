"""What the benchmark itself asks of a member, apart from the load: gRPC calls whose bytes it can count."""

from collections.abc import Iterator

import grpc

from raftkv.pb import rpc_pb2 as pb

PUT = "/etcdserverpb.KV/Put"
RANGE = "/etcdserverpb.KV/Range"
TXN = "/etcdserverpb.KV/Txn"
GRANT = "/etcdserverpb.Lease/LeaseGrant"
KEEP_ALIVE = "/etcdserverpb.Lease/LeaseKeepAlive"
COMPACT = "/etcdserverpb.KV/Compact"
STATUS = "/etcdserverpb.Maintenance/Status"
SNAPSHOT = "/etcdserverpb.Maintenance/Snapshot"
DEFRAGMENT = "/etcdserverpb.Maintenance/Defragment"

FRAME_HEAD_BYTES = 5
"""A gRPC message on the wire begins with a flag and its length."""


def frame(message: bytes) -> bytes:
    """Return a message as it stands in an HTTP/2 body, uncompressed."""
    return b"\0" + len(message).to_bytes(4, "big") + message


class Connection:
    """A channel to one member. Calls raise `grpc.RpcError`."""

    def __init__(self, endpoint: str) -> None:
        self._channel = grpc.insecure_channel(endpoint, options=[("grpc.max_receive_message_length", -1)])

    def call(self, path: str, request: bytes, timeout: float = 30.0) -> bytes:
        """Return the answer as it was sent."""
        answer: bytes = self._channel.unary_unary(path, bytes, bytes)(request, timeout=timeout)
        return answer

    def stream(self, path: str, request: bytes, timeout: float) -> Iterator[bytes]:
        """Yield the answers of a call that has several."""
        yield from self._channel.unary_stream(path, bytes, bytes)(request, timeout=timeout)

    def status(self) -> pb.StatusResponse:
        """Return what the member says of itself."""
        return pb.StatusResponse.FromString(self.call(STATUS, b"", timeout=2.0))

    def range(self, request: pb.RangeRequest) -> pb.RangeResponse:
        """Return the answer to a Range."""
        return pb.RangeResponse.FromString(self.call(RANGE, request.SerializeToString()))

    def revision(self) -> int:
        """Return the store's revision after all that was acknowledged: that of a linearizable read."""
        return self.range(pb.RangeRequest(key=b"/", count_only=True)).header.revision

    def close(self) -> None:
        """Hang up."""
        self._channel.close()
