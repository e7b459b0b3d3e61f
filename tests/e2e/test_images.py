"""Images are made of what they are made of, and of nothing else."""

from __future__ import annotations

import pytest
from demo.installation import Installation
from localcluster import reproducible, settings


@pytest.mark.usefixtures("installation")
def test_operator_image_twice(installation: Installation) -> None:
    """Built twice from nothing, the operator's image has the same digest: reproducible.py names files where it doesn't."""
    digests = reproducible.built_twice(settings.read(), ["operator"])
    print(digests)
    assert digests["operator"][0] == digests["operator"][1]
    assert installation.operator_image.partition("finetune/operator:")[2]
