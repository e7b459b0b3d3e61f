"""A real Kubernetes of one node on this machine; see README.md."""

import sys

if sys.version_info < (3, 11):  # said here, before a module fails on something newer with a riddle
    sys.exit(f"localcluster needs Python 3.11 or later, this is {sys.version.split()[0]}")
