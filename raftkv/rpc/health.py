"""grpc.health.v1: the standard health service, for the whole server (the empty service name)."""

import asyncio
from collections.abc import AsyncIterator, Callable

from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2

from raftkv.rpc.method import Context, Method
from raftkv.status import Code, StatusError

_Response = health_pb2.HealthCheckResponse
POLL_SECONDS = 1.0


def methods(serving: Callable[[], bool]) -> dict[str, Method]:
    """Build the service; `serving` says whether calls can be served now."""

    def state() -> int:
        return int(_Response.SERVING if serving() else _Response.NOT_SERVING)

    async def check(request: bytes, context: Context) -> bytes:
        if _service(request):
            raise StatusError(Code.NOT_FOUND, "unknown service")
        return bytes(_Response(status=state()).SerializeToString())

    async def list_all(request: bytes, context: Context) -> bytes:
        return bytes(health_pb2.HealthListResponse(statuses={"": _Response(status=state())}).SerializeToString())

    async def watch(request: bytes, context: Context) -> AsyncIterator[bytes]:
        known = not _service(request)
        last = None
        while True:
            current = state() if known else int(_Response.SERVICE_UNKNOWN)
            if current != last:
                last = current
                yield _Response(status=current).SerializeToString()
            await asyncio.sleep(POLL_SECONDS)

    prefix = "/grpc.health.v1.Health/"
    return {
        prefix + "Check": Method.unary(check),
        prefix + "List": Method.unary(list_all),
        prefix + "Watch": Method.server_stream(watch),
    }


def _service(request: bytes) -> str:
    try:
        return str(health_pb2.HealthCheckRequest.FromString(request).service)
    except DecodeError as error:
        raise StatusError(Code.INTERNAL, f"grpc: error unmarshalling request: {error}") from error
