"""A model's folder as merge will write it, without its numbers: each weight is a hole in a file of the right length.

What a converter reads before it reads numbers (configuration, tokenizer, names, types and shapes) is all there.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from finetune_trainer.export.server_files import add_sentencepiece, make_readable

WEIGHTS = "model.safetensors"


def write(model_folder: Path, folder: Path) -> Path:
    """Write the skeleton of the model whose configuration and tokenizer lie in `model_folder`; needs no room to speak of."""
    from transformers import AutoTokenizer

    from finetune_trainer.model.outline import outline

    network = outline(model_folder)
    network.config.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"architectures": [type(network).__name__], "dtype": "bfloat16"}  # as save_pretrained of a model adds them
    (folder / "config.json").write_text(json.dumps(config))
    AutoTokenizer.from_pretrained(model_folder).save_pretrained(folder)
    make_readable(folder)
    add_sentencepiece(model_folder, folder)
    _write_holes(_saved(network), folder / WEIGHTS)
    return folder


def _saved(network: Any) -> dict[str, Any]:
    """Weights on the meta device by the names under which transformers saves them, tied ones once."""
    from transformers.core_model_loading import revert_weight_conversion

    tied = set(network.all_tied_weights_keys)
    own = {name: weight for name, weight in network.state_dict().items() if name not in tied}
    saved: dict[str, Any] = revert_weight_conversion(network, own)
    return saved


def _write_holes(weights: dict[str, Any], file: Path) -> None:
    """A safetensors file in BF16: a header, and nothing written where the numbers would be."""
    header, end = {}, 0
    for name, weight in weights.items():
        begin, end = end, end + 2 * weight.numel()
        header[name] = {"dtype": "BF16", "shape": list(weight.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + end)
