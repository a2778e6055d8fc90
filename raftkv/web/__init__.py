"""What an operator reaches with curl: health, version, metrics, stacks; and the front of all plain HTTP on a port."""

from raftkv.web.checks import Checks
from raftkv.web.front import Front, client_pages, metrics_pages

__all__ = ["Checks", "Front", "client_pages", "metrics_pages"]
