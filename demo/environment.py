"""The demo's environment: $CLUSTER and $VALUES, as `make demo` is called with them. No other module of it reads any."""

from __future__ import annotations

import os


def wanted_cluster() -> str:
    """Which cluster was asked for; empty: the demo chooses."""
    return os.environ.get("CLUSTER", "")


def values_file() -> str | None:
    """The chart's values for the cluster of the present kubeconfig: where its images are."""
    return os.environ.get("VALUES")
