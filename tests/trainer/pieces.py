"""A small tokenizer of sentencepiece, for families that llama.cpp's converter reads from a tokenizer.model alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.trainer.conftest import CHATML, END, PAD, SENTENCES, START

FILE = "tokenizer.model"
FAMILIES = ("gemma", "gemma2", "phi3", "ernie4_5")
# The converter names tokens of Gemma by number, and 107 is the end of a turn.
GEMMAS = ("<mask>", "<2mass>", "[@BOS@]", *(f"<unused{number}>" for number in range(99)), START, END)
PIECES = 512


def tokenizer(family: str, folder: Path) -> Any:
    """The tokenizer that transformers makes of a tokenizer.model, which is left in `folder`; turns end as ChatML's do."""
    from tokenizers import AddedToken, normalizers
    from transformers import AutoConfig, AutoTokenizer

    is_gemma = family.startswith("gemma")
    train(folder, GEMMAS if is_gemma else (PAD, START, END))
    AutoConfig.for_model(family).save_pretrained(folder)
    made: Any = AutoTokenizer.from_pretrained(folder)
    (folder / "config.json").unlink()
    if not is_gemma:
        made.backend_tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    ends = {"eos_token": END, "pad_token": "<pad>" if is_gemma else PAD, "additional_special_tokens": [START]}
    made.add_special_tokens({name: AddedToken(t, special=True) if isinstance(t, str) else t for name, t in ends.items()})
    made.chat_template = CHATML
    return made


def train(folder: Path, symbols: tuple[str, ...]) -> None:
    """Byte pairs with a piece for each byte, and for all but Gemma's with white space of its own before a text."""
    import sentencepiece

    text = folder / "sentences.txt"
    text.write_text("\n".join(f"{sentence} {number}" for number in range(50) for sentence in SENTENCES))
    gemma: dict[str, Any] = {"pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3, "add_dummy_prefix": False}
    gemma |= {"pad_piece": "<pad>", "eos_piece": "<eos>", "bos_piece": "<bos>"}
    sentencepiece.SentencePieceTrainer.train(
        input=str(text),
        model_prefix=str(folder / FILE.partition(".")[0]),
        model_type="bpe",
        vocab_size=PIECES,
        byte_fallback=True,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        user_defined_symbols=",".join(symbols),
        minloglevel=2,
        **(gemma if symbols is GEMMAS else {}),
    )
    text.unlink()
    (folder / "tokenizer.vocab").unlink()
