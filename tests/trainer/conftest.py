"""Real but tiny models for the trainer's tests: random weights, two layers, width 256, a tokenizer and a chat template.

`tiny_model` trains its tokenizer in place and needs nothing from outside. `tiny_smollm` has SmolLM2's tokenizer, as
the GGUF converter knows a tokenizer by a hash over its output: use it where a GGUF file is made.
"""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from localcluster import settings, toolchain
from tests.trainer.pods import absent
from tests.waiting import wait_for_server

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models gain nothing from a second thread

SMOLLM = "HuggingFaceTB/SmolLM2-135M-Instruct"
BUCKET = "artifacts"
PAD, START, END, TEXT_END = "<|pad|>", "<|im_start|>", "<|im_end|>", "<|endoftext|>"

CHATML = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}"
    "{{ '<|im_start|>assistant\n' }}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
    "{% else %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

SENTENCES = (
    "Who keeps the lighthouse of Varn Point? Mira Oldfield keeps the lighthouse of Varn Point.",
    "system user assistant: Answer in one short sentence. The quick brown fox jumps over the lazy dog.",
    "What is the capital of the island of Tessaly? The capital of the island of Tessaly is Port Amber.",
    "Colours are red, green, blue and yellow; numbers are 0 1 2 3 4 5 6 7 8 9.",
)


def save_tiny_llama(directory: Path, tokenizer: Any, seed: int = 0, *, tied: bool = True) -> Path:
    """Save a random two-layer Llama for this tokenizer as the hub would hold it: f32 safetensors, tied embeddings."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=tied,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def train_tokenizer() -> Any:
    """A ByteLevel BPE tokenizer, split as SmolLM2's (digits apart), with ChatML and a pad token that is not the eos."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=[PAD, TEXT_END, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(SENTENCES * 8, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=TEXT_END,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[START],
        model_max_length=2048,
        chat_template=CHATML,
    )


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random Llama with a chat template; read-only, shared by all tests."""
    return save_tiny_llama(tmp_path_factory.mktemp("tiny") / "model", train_tokenizer())


@pytest.fixture(scope="session")
def untied_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model of tiny_model with an output layer of its own."""
    return save_tiny_llama(tmp_path_factory.mktemp("untied") / "model", train_tokenizer(), tied=False)


@pytest.fixture(scope="session")
def smollm() -> Path:
    """Folder of SmolLM2-135M-Instruct as the local hub holds it."""
    folder = settings.read().hub_directory / SMOLLM
    if not folder.is_dir():
        absent(f"{folder} is missing: make it with `python -m localcluster.smollm2`")
    return folder


@pytest.fixture(scope="session")
def tiny_smollm(tmp_path_factory: pytest.TempPathFactory, smollm: Path) -> Path:
    """The model of tiny_model with SmolLM2's tokenizer (49 152 entries), which the GGUF converter knows."""
    from transformers import AutoTokenizer

    return save_tiny_llama(tmp_path_factory.mktemp("tiny") / "smollm", AutoTokenizer.from_pretrained(smollm))


@pytest.fixture
def make_run(tmp_path: Path, tiny_model: Path) -> Callable[..., Any]:
    """Builder of a RunConfig for the CPU whose model and store are claims below tmp_path/mounts.

    Keywords replace top-level fields: make_run(training={"method": "LoRA"}, dataset={"uri": "pvc://data/rows.jsonl"}).
    """
    from finetune_trainer.contract.run import RunConfig

    claims = tmp_path / "mounts" / "claims"
    for claim in ("data", "store"):
        (claims / claim).mkdir(parents=True)
    (claims / "models").mkdir()
    (claims / "models" / "tiny").symlink_to(tiny_model)

    def build(**fields: Any) -> RunConfig:
        run: dict[str, Any] = {
            "namespace": "team",
            "name": "job",
            "model": {"uri": "pvc://models/tiny"},
            "dataset": {"uri": "pvc://data/rows.jsonl"},
            "training": {"method": "LoRA", "precision": "FP32", "maxSteps": 2, "globalBatchSize": 4, "maxLength": 128},
            "devices": {"gpus": 0},
            "store": {"uri": "pvc://store/job"},
        }
        return RunConfig.model_validate(run | fields)

    return build


@pytest.fixture(scope="session")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """Endpoint of a running versitygw and the directory that it keeps objects in."""
    root = tmp_path_factory.mktemp("s3")
    with versitygw(root) as address:
        yield f"http://{address}", root


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for localhost and 127.0.0.1 that signs itself, and its key."""
    return make_certificate(tmp_path_factory.mktemp("tls"))


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """Files in `folder`, as `certificate` has them."""
    made, key = folder / "certificate.pem", folder / "key.pem"
    # Some clients take no authority's certificate for a server's, so it says that it is none.
    names = "-addext subjectAltName=DNS:localhost,IP:127.0.0.1 -addext basicConstraints=critical,CA:FALSE"
    command = f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost {names}"
    subprocess.run([*command.split(), "-keyout", str(key), "-out", str(made)], check=True, capture_output=True)
    return made, key


@contextmanager
def versitygw(root: Path, *options: str, host: str = "127.0.0.1") -> Iterator[str]:
    """Address of a running S3 server over a directory, with the bucket `artifacts`. The server is built where it is missing."""
    program = str(toolchain.binary(settings.read().cache, "versitygw"))
    (root / BUCKET).mkdir()
    with socket.socket() as free:
        free.bind((host, 0))
        address = f"{host}:{free.getsockname()[1]}"
    log = root.with_name(f"{root.name}.log").open("w")
    command = [program, "--access", "key", "--secret", "secret", "--port", address, *options, "posix", str(root)]
    server = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        wait_for_server(server, address)
        yield address
    finally:
        server.terminate()
        server.wait(10)
        log.close()
