"""The etcd services, one thin module each: decode, check, call the server, encode.

`services(server, limits)` is the method table of the client port, `peer_methods` what members ask of each other.
"""

from raftkv.api.access import check_rules
from raftkv.api.audit import audited
from raftkv.api.guard import Limits
from raftkv.api.limits import APART, URGENT, check_rates
from raftkv.api.services import peer_methods, services

__all__ = ["APART", "URGENT", "Limits", "audited", "check_rates", "check_rules", "peer_methods", "services"]
