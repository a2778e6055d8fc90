"""Asking a file of etcd as one asks a server: the same requests, the same answers."""

from raftkv.mvcc import Store
from raftkv.mvcc.interval import interval
from raftkv.offline.conversion import convert
from raftkv.offline.errors import OfflineError
from raftkv.offline.etcd_file import EtcdFile
from raftkv.offline.memory import MemoryBackend
from raftkv.pb import rpc_pb2
from raftkv.status import StatusError


def range_of_file(file: EtcdFile, request: rpc_pb2.RangeRequest) -> rpc_pb2.RangeResponse:
    """Answer a range from a file; of the header only the revision is known.

    The file is read once, and only what lies in the interval is kept.

    Raises:
        OfflineError: the file is damaged; the revision is compacted or in the future.
    """
    backend = MemoryBackend()
    convert(file, backend, interval(request.key, request.range_end))
    store = Store(backend)
    try:
        body = b"".join(store.range(request))
    except StatusError as error:
        raise OfflineError(error.message) from error
    response = rpc_pb2.RangeResponse.FromString(body)
    response.header.revision = store.revision
    return response
