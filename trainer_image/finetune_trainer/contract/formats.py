"""The formats of artifacts: all that is known of one without making it. Which engines serve it, the engines say.

A new one needs a value here, the module of export/ that makes and proves it, an engine's word that it serves it
(modelserve/engines), and a line in docs/artifacts.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from finetune_trainer.contract.evaluation import LLAMA_CPP

SAFETENSORS = "Safetensors"  # of the merged model, and of Full's trained weights
PEFT = "PEFT"  # of the adapter


class ArtifactFormat(StrEnum):
    GGUF = "GGUF"
    COMPRESSED_TENSORS = "CompressedTensors"
    BITS_AND_BYTES = "BitsAndBytes"


Quantization = Literal["F16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "FP8", "W4A16", "AWQ", "NF4"]


@dataclass(frozen=True)
class Format:
    """One of them. Modules are named, not imported: some need torch, or an image of their own."""

    quantizations: tuple[Quantization, ...]
    named: str  # these, as a sentence names them to somebody who has to choose: the customary first
    made_by: str  # module of export/, with `make`, `prove` and the LIMITS of its quantizations
    checked_by: str  # module of export/, with `check`: it tells before training whether the model can become one
    image: Literal["trainer", "quantizer"] = "trainer"  # that has what `made_by` needs
    needs_llama_cpp: bool = False  # its programs and its converter
    scored_by: str | None = None
    """Engine that scores it in a step of its own, on the CPU; None: scored beside the base model, by what scores that."""
    tried_by: tuple[str, ...] = ()  # commands of people who have the folder, told at the end of `finetune run`


FORMATS: dict[ArtifactFormat, Format] = {
    ArtifactFormat.COMPRESSED_TENSORS: Format(
        ("FP8", "W4A16", "AWQ"), "FP8, W4A16 or AWQ", made_by="compression", image="quantizer", checked_by="quantizable"
    ),
    ArtifactFormat.BITS_AND_BYTES: Format(("NF4",), "NF4", made_by="compression", checked_by="quantizable"),
    ArtifactFormat.GGUF: Format(
        ("F16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M"),
        "Q4_K_M, Q5_K_M, Q6_K, Q8_0 or F16",
        made_by="gguf",
        needs_llama_cpp=True,
        checked_by="convertible",
        scored_by=LLAMA_CPP,
        tried_by=("llama-server --model {folder}/{name}.gguf", "ollama create {name} --file {folder}/Modelfile"),
    ),
}
