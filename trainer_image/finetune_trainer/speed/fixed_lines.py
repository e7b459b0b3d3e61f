"""Lines of tokens that are all of one length, whatever rows lie on them.

What was recorded of a GPU's work (recorded_layers.py) can be started again only on tensors of the same shapes. Packed rows fill
a line nearly: the rest is filled with documents that carry no loss, and the list of the documents' ends with empty ones. A
document sees none but itself, so neither changes a number of the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import pad

FEWEST_PLACES = 8


@dataclass(frozen=True)
class Line:
    """What a micro-batch of full rows makes: its tokens, of which a document has `row` at most."""

    tokens: int
    row: int

    def filled(self, batch: dict[str, Any], ignored: int) -> dict[str, Any]:
        """A micro-batch as TRL's collator lays it end to end, with documents of token 0 up to the line's end.

        `ignored` is the label of what carries no loss. Nothing is read from a GPU for it.
        """
        ends, length = batch["cu_seq_lens_q"], batch["input_ids"].shape[1]
        missing, device, documents = self.tokens - length, ends.device, len(ends) - 1
        if missing < 0:
            raise ValueError(f"a micro-batch has {length} tokens, and its line room for {self.tokens}")
        more = places(documents + -(-missing // self.row)) - documents
        added = (length + self.row * torch.arange(1, more + 1, device=device)).clamp(max=self.tokens)
        ends = torch.cat([ends, added.to(ends.dtype)])
        place = torch.arange(missing, device=device)[None]
        filled = batch | {
            "input_ids": pad(batch["input_ids"], (0, missing)),
            "labels": pad(batch["labels"], (0, missing), value=ignored),
            "position_ids": torch.cat([batch["position_ids"], (place % self.row).to(batch["position_ids"])], dim=1),
            "cu_seq_lens_q": ends,
            "cu_seq_lens_k": ends,
            "max_length_q": self.row,
            "max_length_k": self.row,
        }
        if "seq_idx" in batch:
            number = (documents + place // self.row).to(batch["seq_idx"])
            filled["seq_idx"] = torch.cat([batch["seq_idx"], number], dim=1)
        return filled


def places(documents: int) -> int:
    """The next of 8, 12, 16, 24, 32, 48 and so on: few shapes, and at most half as many places again as there are documents.

    Attention passes by each empty place in each of its blocks of queries.
    """
    found = FEWEST_PLACES
    while found < documents:
        found = found * 3 // 2 if found & (found - 1) == 0 else found * 4 // 3
    return found
