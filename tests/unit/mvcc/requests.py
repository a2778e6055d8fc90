"""Random requests of every kind over few keys, so that they meet."""

import random

from raftkv.pb import rpc_pb2 as pb

KEYS = [b"a", b"ab", b"b", b"c", b"d", b"\xff", b"k" * 600]
ENDS = [b"", b"", b"", b"\0", b"b", b"c", b"d", b"\xff"]
OPS = ("put", "put", "put", "delete", "range", "txn")


class Requests:
    """A reproducible stream of requests; `revision` is the newest the caller knows."""

    def __init__(self, seed: int, *, delete_ends: list[bytes] = ENDS) -> None:
        self._delete_ends = delete_ends
        self._random = random.Random(seed)
        self.revision = 1

    def chance(self, probability: float) -> bool:
        return self._random.random() < probability

    def pick(self, items: "list[bytes] | tuple[str, ...] | range") -> "bytes | str | int":
        return self._random.choice(items)  # type: ignore[return-value]

    def key(self) -> bytes:
        return self._random.choice(KEYS)

    def some_revision(self) -> int:
        return self._random.randint(0, self.revision + 1)

    def put(self) -> pb.PutRequest:
        ignore_value = self.chance(0.1)
        return pb.PutRequest(
            key=self.key(),
            value=b"" if ignore_value else self._random.randbytes(self._random.randint(0, 6)),
            prev_kv=self.chance(0.4),
            ignore_value=ignore_value,
            ignore_lease=self.chance(0.1),
            lease=77 if self.chance(0.02) else 0,
        )

    def delete(self) -> pb.DeleteRangeRequest:
        return pb.DeleteRangeRequest(
            key=self.key(), range_end=self._random.choice(self._delete_ends), prev_kv=self.chance(0.5)
        )

    def range(self) -> pb.RangeRequest:
        request = pb.RangeRequest(
            key=b"\0" if self.chance(0.3) else self.key(),
            range_end=b"\0" if self.chance(0.4) else self._random.choice(ENDS),
            limit=self._random.choice((0, 0, 1, 2, 3)),
            revision=self.some_revision() if self.chance(0.4) else 0,
            keys_only=self.chance(0.2),
            count_only=self.chance(0.1),
        )
        if self.chance(0.4):
            request.sort_target = self._random.choice(pb.RangeRequest.SortTarget.values())
            request.sort_order = self._random.choice(pb.RangeRequest.SortOrder.values())
        if self.chance(0.3):
            name = self._random.choice(("min_mod", "max_mod", "min_create", "max_create"))
            setattr(request, f"{name}_revision", self.some_revision())
        return request

    def compare(self) -> pb.Compare:
        compare = pb.Compare(
            key=self.key(),
            range_end=self._random.choice(ENDS) if self.chance(0.3) else b"",
            result=self._random.choice(pb.Compare.CompareResult.values()),
            target=self._random.choice(pb.Compare.CompareTarget.values()),
        )
        name = ("version", "create_revision", "mod_revision", "value", "lease")[compare.target]
        wanted = b"" if name == "value" else self._random.choice((0, 1, 2, self.some_revision()))
        if not self.chance(0.1):
            setattr(compare, name, wanted)
        return compare

    def txn(self, depth: int = 0) -> pb.TxnRequest:
        request = pb.TxnRequest(compare=[self.compare() for _ in range(self._random.choice((0, 1, 1, 2)))])
        for branch in (request.success, request.failure):
            for _ in range(self._random.randint(0, 3)):
                branch.append(self.op(depth))
        return request

    def op(self, depth: int) -> pb.RequestOp:
        kind = self._random.choice(OPS if depth < 2 else OPS[:-1])
        if kind == "put":
            return pb.RequestOp(request_put=self.put())
        if kind == "delete":
            return pb.RequestOp(request_delete_range=self.delete())
        if kind == "range":
            return pb.RequestOp(request_range=self.range())
        return pb.RequestOp(request_txn=self.txn(depth + 1))
