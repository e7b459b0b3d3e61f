"""Layers whose work is recorded give the losses and gradients of layers that are not, whatever lies on the line.

CUDA graphs need a GPU: here what is recorded is done again by Python, on the same tensors at the same addresses.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.trainer.speed.test_acceleration import SHAPE, adapted
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from finetune_trainer.data.tokenized import IGNORED
from finetune_trainer.speed import recorded_layers
from finetune_trainer.speed.acceleration import fused_layers
from finetune_trainer.speed.attention import by_mask, register
from finetune_trainer.speed.fixed_lines import Line, places
from finetune_trainer.speed.fused_lora import fuse
from finetune_trainer.speed.recorded_layers import RecordedLayers

LINE = Line(tokens=64, row=32)
FULL, SHORT, MANY = (32, 20, 12), (9, 30), (4,) * 15


class DoneAgain:
    """Records nothing and does all again; `recorded` counts the works."""

    def __init__(self) -> None:
        self.recorded = 0

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        self.recorded += 1
        work()
        return work


def on_a_line(lengths: tuple[int, ...]) -> dict[str, Any]:
    """Documents end to end, as TRL's collator lays them."""
    ends = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    ids = torch.arange(int(ends[-1])) * 7 % 101
    positions = torch.cat([torch.arange(n) for n in lengths])
    return {
        "input_ids": ids[None],
        "labels": torch.where(positions == 0, IGNORED, ids)[None],
        "position_ids": positions[None],
        "seq_idx": torch.repeat_interleave(torch.arange(len(lengths), dtype=torch.int32), torch.tensor(lengths))[None],
        "cu_seq_lens_q": ends,
        "cu_seq_lens_k": ends,
        "max_length_q": max(lengths),
        "max_length_k": max(lengths),
    }


def filled(batch: dict[str, Any]) -> dict[str, Any]:
    return LINE.filled(batch, IGNORED)


def network() -> Any:
    torch.manual_seed(0)
    model = adapted(LlamaForCausalLM(LlamaConfig(**(SHAPE | {"attn_implementation": register(by_mask)}))))
    assert fuse(model) == 14
    return model.train()


def layers_of(model: Any) -> list[nn.Module]:
    return fused_layers(model, 14)


def loss_of(model: Any, batch: dict[str, Any]) -> Tensor:
    logits = model(**{k: v for k, v in batch.items() if k != "labels"}, use_cache=False).logits
    wanted: Tensor = batch["labels"][0, 1:]
    loss: Tensor = nn.functional.cross_entropy(logits[0, :-1], wanted, reduction="sum")
    return loss


def gradients_over(model: Any, lines: list[dict[str, Any]]) -> tuple[list[float], dict[str, Tensor]]:
    """The loss of each micro-batch, and the gradients of all together."""
    model.zero_grad()
    losses = []
    for line in lines:
        loss = loss_of(model, line)
        loss.backward()
        losses.append(loss.item())
    return losses, {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}


def assert_alike(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, gradient in one.items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(other[name], gradient, rtol=1e-4, atol=1e-6, msg=f"{{}} in {name}".format)


def recorded(model: Any, recorder: Any = None) -> DoneAgain:
    """The model with its layers recorded, the pass in which they are watched behind it."""
    recorder = recorder or DoneAgain()
    RecordedLayers(layers_of(model), LINE, recorder)
    gradients_over(model, [filled(on_a_line(FULL))])
    return recorder  # type: ignore[no-any-return]


def test_losses_and_gradients_are_those_of_plain_layers() -> None:
    """Several micro-batches of a step, with more and with fewer documents, each shape recorded once."""
    model = network()
    plain = gradients_over(model, [on_a_line(lengths) for lengths in (FULL, SHORT, FULL, MANY)])
    recorder = recorded(model)

    for _ in range(2):
        found = gradients_over(model, [filled(on_a_line(lengths)) for lengths in (FULL, SHORT, FULL, MANY)])

        assert found[0] == pytest.approx(plain[0], rel=1e-5)
        assert_alike(plain[1], found[1])
    assert recorder.recorded == 4  # both directions, of lines with 8 places and with 16


def test_hidden_states_that_are_trained_get_their_gradient() -> None:
    """Embeddings that are trained beside the adapters."""
    model = network()
    model.get_input_embeddings().weight.requires_grad_(True)
    plain = gradients_over(model, [on_a_line(SHORT)])
    recorded(model)
    found = gradients_over(model, [filled(on_a_line(SHORT))])
    padding = next(name for name in plain[1] if "embed_tokens" in name)
    assert_alike(plain[1], found[1])
    assert found[1][padding].abs().sum() > 0


def test_weights_that_change_are_seen() -> None:
    """In place, as optimizers do; and put elsewhere, which makes what was recorded worthless."""
    model = network()
    recorder = recorded(model)
    line = filled(on_a_line(FULL))
    gradients_over(model, [line])
    for move in (lambda p: p.data.mul_(2), lambda p: setattr(p, "data", p.data * 2)):
        for parameter in model.parameters():
            if parameter.requires_grad:
                move(parameter)
        found = gradients_over(model, [line])
        other = network()
        other.load_state_dict(model.state_dict())
        assert_alike(gradients_over(other, [line])[1], found[1])
    assert recorder.recorded == 4


def test_passes_that_do_not_train_and_other_lengths_are_as_they_were() -> None:
    model = network()
    batch = on_a_line(FULL[:2])
    with torch.no_grad():
        want = loss_of(model, batch)
    recorder = recorded(model)
    line = filled(batch)
    with torch.no_grad():
        torch.testing.assert_close(loss_of(model, batch), want)
        torch.testing.assert_close(loss_of(model, line), want)
    torch.testing.assert_close(loss_of(model, batch), want)
    assert recorder.recorded == 0


def test_few_records_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that was not used for the longest goes."""
    monkeypatch.setattr(recorded_layers, "MOST_RECORDS", 3)
    model = network()
    recorder = recorded(model)
    made = []
    for documents in (1, 9, 13, 1, 17, 1, 9):
        gradients_over(model, [filled(on_a_line((2,) * documents))])
        made.append(recorder.recorded // 2)
    assert made == [1, 2, 3, 3, 4, 4, 5]


def test_memory_is_given_back_and_the_work_recorded_anew() -> None:
    model = network()
    recorder = DoneAgain()
    layers = RecordedLayers(layers_of(model), LINE, recorder)
    line = filled(on_a_line(FULL))
    plain = gradients_over(model, [line])
    for _ in range(2):
        assert_alike(plain[1], gradients_over(model, [line])[1])
        layers.forget()
        assert not layers._records
        assert not layers._buffers
    assert recorder.recorded == 4


def test_something_between_the_layers_leaves_them_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    model = network()
    first, _ = layers_of(model)
    first.register_forward_hook(lambda _, __, out: out * 1.5)
    plain = gradients_over(model, [on_a_line(FULL)])
    recorder = recorded(model)
    found = gradients_over(model, [filled(on_a_line(FULL))])
    assert_alike(plain[1], found[1])
    assert recorder.recorded == 0
    assert "not recorded: something stands between them" in capsys.readouterr().out


def test_something_that_comes_between_them_later_is_an_error() -> None:
    model = network()
    recorded(model)
    layers_of(model)[0].register_forward_hook(lambda _, __, out: out * 1.5)
    with pytest.raises(RuntimeError, match="stands between the layers"):
        gradients_over(model, [filled(on_a_line(FULL))])


def test_a_second_pass_before_the_first_one_s_gradients_is_an_error() -> None:
    """Both would read what the second has left."""
    model = network()
    recorded(model)
    line = filled(on_a_line(FULL))
    loss_of(model, line)
    with pytest.raises(RuntimeError, match="asked again before their gradients"):
        loss_of(model, line)


class Refuses(DoneAgain):
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self._error = error

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        try:
            raise self._error
        except torch.OutOfMemoryError:
            raise RuntimeError("operation failed due to a previous error during capture")  # noqa: B904 - as torch does


def test_work_that_can_t_be_recorded_is_done_as_before(capsys: pytest.CaptureFixture[str]) -> None:
    model = network()
    plain = gradients_over(model, [on_a_line(FULL)])
    recorded(model, Refuses(RuntimeError("operation not permitted when stream is capturing\nmore")))
    for _ in range(2):
        assert_alike(plain[1], gradients_over(model, [filled(on_a_line(FULL))])[1])
    assert capsys.readouterr().out == "the layers' work is not recorded: operation not permitted when stream is capturing\n"


def test_too_little_memory_for_a_recording_is_told_as_that() -> None:
    """A smaller micro-batch then follows, which plain layers could hide."""
    model = network()
    recorded(model, Refuses(torch.OutOfMemoryError("CUDA out of memory")))
    with pytest.raises(torch.OutOfMemoryError):
        gradients_over(model, [filled(on_a_line(FULL))])


# ── The line ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_line_is_filled_with_documents_of_their_own() -> None:
    found = filled(on_a_line((5, 7)))
    assert found["input_ids"].shape == found["labels"].shape == found["position_ids"].shape == (1, 64)
    assert found["cu_seq_lens_q"].tolist() == [0, 5, 12, 44, 64, 64, 64, 64, 64]
    assert found["cu_seq_lens_q"].dtype is torch.int32
    assert (found["max_length_q"], found["max_length_k"]) == (32, 32)
    assert found["position_ids"][0, 12:46].tolist() == [*range(32), 0, 1]
    assert found["seq_idx"][0, [0, 11, 12, 43, 44]].tolist() == [0, 1, 2, 2, 3]
    assert set(found["labels"][0, 12:].tolist()) == {IGNORED}


def test_a_full_line_gets_places_alone() -> None:
    batch = on_a_line((32, 32))
    found = filled(batch)
    assert found["input_ids"].tolist() == batch["input_ids"].tolist()
    assert found["cu_seq_lens_k"].tolist() == [0, 32, *[64] * 7]


def test_more_than_a_line_holds_is_an_error() -> None:
    with pytest.raises(ValueError, match="67 tokens, and its line room for 64"):
        filled(on_a_line((32, 32, 3)))


@pytest.mark.parametrize(
    ("documents", "found"), [(1, 8), (8, 8), (9, 12), (12, 12), (13, 16), (17, 24), (25, 32), (33, 48), (49, 64), (513, 768)]
)
def test_places_come_in_few_numbers(documents: int, found: int) -> None:
    assert places(documents) == found
