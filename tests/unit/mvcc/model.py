"""The etcd keyspace as a dictionary per revision: slow, obvious, and independent of the store."""

from raftkv.pb import kv_pb2, rpc_pb2

KV = kv_pb2.KeyValue
Space = dict[bytes, KV]


class ModelError(Exception):
    """Named like the error of `raftkv.errors`."""


class Model:
    """Every revision's whole keyspace."""

    def __init__(self) -> None:
        self.spaces: list[Space] = [{}, {}]
        self.compacted = -1
        self._wrote = False

    @property
    def revision(self) -> int:
        return len(self.spaces) - 1

    def range(
        self, request: rpc_pb2.RangeRequest, space: Space | None = None, revision: int = 0
    ) -> rpc_pb2.RangeResponse:
        if request.revision > self.revision:
            raise ModelError("FutureRev")
        if 0 < request.revision < self.compacted:
            raise ModelError("Compacted")
        if 0 < request.revision < (revision or self.revision):
            space = self.spaces[request.revision]
        elif space is None:
            space = self.spaces[-1]
        kvs = [space[key] for key in sorted(space) if _inside(key, request.key, request.range_end)]
        response = rpc_pb2.RangeResponse(count=len(kvs))
        if request.count_only:
            return response
        bounds = ((request.min_mod_revision, request.max_mod_revision, "mod_revision"),) + (
            (request.min_create_revision, request.max_create_revision, "create_revision"),
        )
        for low, high, name in bounds:
            kvs = [kv for kv in kvs if low <= getattr(kv, name) and (not high or getattr(kv, name) <= high)]
        fields = ("key", "version", "create_revision", "mod_revision", "value")
        whole = request.sort_order or request.limit <= 0
        if not (whole or any(low or high for low, high, _ in bounds)):
            kvs = kvs[: request.limit + 1]
        if request.sort_target or request.sort_order == rpc_pb2.RangeRequest.DESCEND:
            kvs.sort(
                key=lambda kv: getattr(kv, fields[request.sort_target]),
                reverse=request.sort_order == rpc_pb2.RangeRequest.DESCEND,
            )
        response.more = 0 < request.limit < len(kvs)
        for kv in kvs[: request.limit] if request.limit > 0 else kvs:
            response.kvs.add().CopyFrom(kv)
            if request.keys_only:
                response.kvs[-1].value = b""
        return response

    def txn(self, request: rpc_pb2.TxnRequest) -> rpc_pb2.TxnResponse:
        before = self.spaces[-1]
        space = dict(before)
        self._wrote = False
        response = self._txn(request, before, space)
        if self._wrote:
            self.spaces.append(space)
        return response

    def _txn(self, request: rpc_pb2.TxnRequest, before: Space, space: Space) -> rpc_pb2.TxnResponse:
        succeeded = all(_holds(compare, before) for compare in request.compare)
        response = rpc_pb2.TxnResponse(succeeded=succeeded)
        for op in request.success if succeeded else request.failure:
            answer = response.responses.add()
            if op.HasField("request_put"):
                answer.response_put.CopyFrom(self._put(op.request_put, before, space))
                answer.response_put.header.revision = self.revision + 1
            elif op.HasField("request_delete_range"):
                answer.response_delete_range.CopyFrom(self._delete(op.request_delete_range, space))
                answer.response_delete_range.header.revision = self.revision + self._wrote
            elif op.HasField("request_range"):
                now = self.revision + self._wrote
                answer.response_range.CopyFrom(self.range(op.request_range, space, now))
                answer.response_range.header.revision = now
            else:
                answer.response_txn.CopyFrom(self._txn(op.request_txn, before, space))
                answer.response_txn.header.SetInParent()
        return response

    def _put(self, request: rpc_pb2.PutRequest, before: Space, space: Space) -> rpc_pb2.PutResponse:
        old = space.get(request.key)
        if request.key not in before and (request.ignore_value or request.ignore_lease):
            raise ModelError("KeyNotFound")
        if request.lease:
            raise ModelError("LeaseNotFound")
        response = rpc_pb2.PutResponse()
        if request.prev_kv and old is not None:
            response.prev_kv.CopyFrom(old)
        self._wrote = True
        space[request.key] = KV(
            key=request.key,
            create_revision=old.create_revision if old is not None else self.revision + 1,
            mod_revision=self.revision + 1,
            version=old.version + 1 if old is not None else 1,
            value=old.value if request.ignore_value and old is not None else request.value,
        )
        return response

    def _delete(self, request: rpc_pb2.DeleteRangeRequest, space: Space) -> rpc_pb2.DeleteRangeResponse:
        keys = [key for key in sorted(space) if _inside(key, request.key, request.range_end)]
        response = rpc_pb2.DeleteRangeResponse(deleted=len(keys))
        self._wrote = self._wrote or bool(keys)
        for key in keys:
            kv = space.pop(key)
            if request.prev_kv:
                response.prev_kvs.append(kv)
        return response

    def compact(self, revision: int) -> None:
        if revision <= self.compacted:
            raise ModelError("Compacted")
        if revision > self.revision:
            raise ModelError("FutureRev")
        self.compacted = revision


def _inside(key: bytes, first: bytes, end: bytes) -> bool:
    if not end:
        return key == first
    if end == b"\0":
        return first == b"\0" or key >= first
    return first <= key < end


def _holds(compare: rpc_pb2.Compare, space: Space) -> bool:
    found = [space[key] for key in space if _inside(key, compare.key, compare.range_end)]
    if not found and compare.target == rpc_pb2.Compare.VALUE:
        return False
    name = ("version", "create_revision", "mod_revision", "value", "lease")[compare.target]
    wanted = getattr(compare, name)
    tests = {0: lambda a: a == wanted, 1: lambda a: a > wanted, 2: lambda a: a < wanted, 3: lambda a: a != wanted}
    return all(tests[compare.result](getattr(kv, name)) for kv in found or [KV()])
