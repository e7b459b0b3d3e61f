"""The chart's schema takes the images that its values name, and of a profile those that it may change, and no others: `make
crds` writes them into it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import yaml

from finetune_operator.platforms import Images


def render(values: str, schema: str) -> str:
    """Text of values.schema.json, all but its images as it was. An image that is empty in values.yaml may stay so."""
    found = json.loads(schema)
    images = yaml.safe_load(values)["images"]
    kinds = {True: {"$ref": "#/definitions/image"}, False: {"type": "string"}}
    found["properties"]["images"]["properties"] = {name: kinds[bool(image)] for name, image in images.items()}
    of_profiles = found["properties"]["profiles"]["additionalProperties"]["properties"]["images"]
    of_profiles["properties"] = dict.fromkeys(Images.model_fields, kinds[True])
    return json.dumps(found, indent=2) + "\n"


if __name__ == "__main__":
    for chart in map(Path, sys.argv[1:]):
        schema = chart / "values.schema.json"
        schema.write_text(render((chart / "values.yaml").read_text(), schema.read_text()))
