"""Which artifacts a run makes, where copies of them go, and where the artifact store is."""

from __future__ import annotations

from pydantic import Field

from finetune_trainer.contract import places
from finetune_trainer.contract.fields import SecretRef, Strict
from finetune_trainer.contract.formats import FORMATS, ArtifactFormat, Format, Quantization
from finetune_trainer.contract.places import Use


class Artifact(Strict):
    name: str = Field(min_length=1, max_length=20, pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$")
    """Name of the artifact; gates, publish and serving refer to it. adapter, merged and base are taken."""
    format: ArtifactFormat
    """GGUF for llama.cpp and Ollama; CompressedTensors for vLLM; BitsAndBytes for vLLM on GPUs."""
    quantization: Quantization
    """GGUF: Q4_K_M, Q5_K_M, Q6_K, Q8_0 or F16. CompressedTensors: FP8, or 4-bit weights chosen by training rows: W4A16 (by
    GPTQ) or AWQ. BitsAndBytes: NF4."""
    imatrix: bool = False
    """Find out by training rows which weights matter most, and round those least (llama.cpp's importance matrix). Only GGUF's
    K types take it, and it takes a pass over the rows."""

    @property
    def of_format(self) -> Format:
        """What is known of all artifacts of its format."""
        return FORMATS[self.format]


class Publish(Strict):
    uri: str = Field(
        min_length=1,
        max_length=1024,
        pattern=places.pattern(Use.PUBLISH),
        description=f"Where copies go: {places.forms(Use.PUBLISH)}. Each artifact gets a folder of its name below it; in a"
        " repository of hf://, a single one lies at the root.",
    )
    secret_ref: SecretRef | None = None
    """Secret with the credentials of that place; hf:// needs one, with the key HF_TOKEN."""
    private: bool = True
    """A repository of hf:// that does not exist yet is made private, and one that is public is refused. false: it is made
    public."""
    artifacts: list[str] = Field(default_factory=lambda: ["merged"], min_length=1, max_length=20)
    """Names of the artifacts to copy: adapter, merged, or names from spec.artifacts."""


class StoreConfig(Strict):
    """The artifact store, a claim or a bucket."""

    uri: str
    endpoint: str | None = None
    region: str | None = None
