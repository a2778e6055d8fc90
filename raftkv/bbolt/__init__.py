"""Reading files of bbolt, the B+ tree under etcd: read-only, page by page, and trusting nothing.

A file may have been damaged or made to do harm. Whatever it says is checked before it is followed: what is returned was
well-formed, anything else is `DamagedFile`. Only the meta pages have a checksum; that keys and values are those that
were written is for a hash over the whole file to say.
"""

from raftkv.bbolt.database import Bucket, Database
from raftkv.bbolt.pages import DamagedFile

__all__ = ["Bucket", "DamagedFile", "Database"]
