"""The demo's environment: $CLUSTER and $VALUES, as `make demo` is called with them. No other module of it reads any."""

from __future__ import annotations

import os


def wants_current_cluster() -> bool:
    """Whether the cluster is that of the present kubeconfig, instead of one made for the demo."""
    return os.environ.get("CLUSTER") == "current"


def values_file() -> str | None:
    """The chart's values for such a cluster: where its images are."""
    return os.environ.get("VALUES")
