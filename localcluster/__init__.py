"""A real Kubernetes of one node on this machine; see README.md."""

import sys

# Said here, before a module fails on something newer with a riddle.
if sys.version_info < (3, 11):  # noqa: UP036 - the package is run from a checkout, so no installer checks this
    sys.exit(f"localcluster needs Python 3.11 or later, this is {sys.version.split()[0]}")
