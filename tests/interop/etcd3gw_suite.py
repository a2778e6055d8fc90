"""etcd3gw's own tests of a server, as its wheel ships them, against a member: `etcd3gw_suite.py PORT`.

Their base class comes from oslotest, a test framework of OpenStack's that they use nothing else of: unittest's stands
in for it. Nothing of raftkv is imported here. It exits with 0 when every test ran and passed.
"""

import os
import sys
import types
import unittest

MODULE = "etcd3gw.tests.test_etcd3gw"
"""Those that ask a server; the rest of its tests talk to mocks."""


def provide_base_class() -> None:
    package, base = types.ModuleType("oslotest"), types.ModuleType("oslotest.base")
    base.BaseTestCase = unittest.TestCase  # type: ignore[attr-defined]
    package.base = base  # type: ignore[attr-defined]
    sys.modules |= {"oslotest": package, "oslotest.base": base}


def main(port: str) -> int:
    # Their names for where etcd is; read when the tests are imported, which skip what cannot be asked.
    os.environ |= {"TOOZ_TEST_HTTP_URL": f"http://127.0.0.1:{port}", "TOOZ_TEST_ETCD_PORT": port}
    provide_base_class()
    suite = unittest.defaultTestLoader.loadTestsFromName(MODULE)
    result = unittest.TextTestRunner().run(suite)
    return 0 if result.wasSuccessful() and not result.skipped and result.testsRun else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
