"""Response headers, encoded: the same few bytes in front of every answer."""

from raftkv.mvcc.encoding import varint


class Headers:
    """Encodes `etcdserverpb.ResponseHeader` as field 1 of a response."""

    __slots__ = ("_member", "cluster_id", "member_id")

    def __init__(self, cluster_id: int, member_id: int) -> None:
        self.cluster_id = cluster_id
        self.member_id = member_id
        self._member = b"\x08" + varint(cluster_id) + b"\x10" + varint(member_id)

    def encode(self, revision: int, term: int) -> bytes:
        """Encode a header; a revision or term of 0 is left out, as protobuf does."""
        body = self._member
        if revision:
            body += b"\x18" + varint(revision)
        if term:
            body += b"\x20" + varint(term)
        return b"\x0a" + varint(len(body)) + body
