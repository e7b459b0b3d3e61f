"""All layers of a model as two pieces of recorded work, one for each direction: CUDA graphs.

A layer starts some forty kernels, one by one, from Python. With few tokens in a micro-batch the GPU is done with them before
the next is there: it waits for half of its time. Recorded, all layers' kernels are started by one call. Shapes must then be
the same each time (fixed_lines.py), and what layers read and write lies at fixed addresses: inputs are copied there, gradients
copied from there.

Each layer's own forward is replaced. The first to the last but one only note what they are told; the last has the work of all
done. Whether that is the same is watched for one pass: something between the layers would be left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from finetune_trainer.speed.fixed_lines import Line

MOST_RECORDS = 8  # of lines with other numbers of documents; each takes some memory of its own
Told = list[tuple[tuple[Any, ...], dict[str, Any]]]  # arguments of each layer beside the hidden states


class Pass(Enum):
    """What becomes of the layers in the pass at work."""

    PLAIN = auto()
    WATCHED = auto()
    TOGETHER = auto()


class Recorder(Protocol):
    """Notes what work does on a device, to do it again on the same tensors."""

    def record(self, work: Callable[[], None]) -> Callable[[], None]: ...


class CudaGraphs:
    """Recording by CUDA graphs. They share their memory, so one must be at an end before another begins."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        graph = torch.cuda.CUDAGraph()
        # Other threads, as the one that pins the batches' memory, go on meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            work()
        return graph.replay


@dataclass
class Recorded:
    """The layers' work over one shape of inputs."""

    inputs: list[Tensor]  # hidden states first
    output: Tensor
    output_gradient: Tensor
    gradients: Tensor  # of all trained weights, one after the other
    input_gradient: Tensor | None
    forward: Callable[[], None]
    backward: Callable[[], None]


class RecordedLayers:
    """The layers of one model. Passes that do not train, and those over other numbers of tokens, are as they were."""

    def __init__(self, layers: Sequence[nn.Module], line: Line, recorder: Recorder) -> None:
        self.line = line  # to fill micro-batches up to
        self._layers, self._recorder = list(layers), recorder
        self._plain: list[Callable[..., Any]] = [layer.forward for layer in layers]
        self._weights = [p for layer in layers for p in layer.parameters() if p.requires_grad]
        self._records: dict[Any, Recorded] = {}
        self._buffers: dict[Any, Tensor] = {}
        self._addresses: list[int] = []
        self._watched, self._pass = False, Pass.PLAIN
        self._entered: Any = None  # the hidden states that the next layer must get
        self._told: Told = []
        self._accumulated: Tensor | None = None  # the memory of all weights' gradients in the step at work
        self._open = False  # between the two directions
        for index, layer in enumerate(layers):
            layer.forward = partial(self._forward, index)

    def leave(self, why: str) -> None:
        """Put the layers' own forwards back."""
        print(f"the layers' work is not recorded: {why}", flush=True)
        self.forget()
        for layer, plain in zip(self._layers, self._plain, strict=True):
            layer.forward = plain

    def forget(self) -> None:
        """Give back the memory of all records, which nothing else could take. What is done next is recorded anew."""
        self._records.clear()
        self._buffers.clear()
        self._accumulated = None

    def _forward(self, index: int, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        if index == 0:
            self._begin(hidden)
        if self._pass is Pass.PLAIN:
            return self._plain[index](hidden, *args, **kwargs)
        if self._pass is Pass.WATCHED:
            return self._watch(index, hidden, args, kwargs)
        if hidden is not self._entered:
            raise RuntimeError("something stands between the layers that was not there in the first pass")
        self._told.append((args, kwargs))
        return hidden if len(self._told) < len(self._layers) else self._together(hidden)

    def _begin(self, hidden: Tensor) -> None:
        trains = torch.is_grad_enabled() and self._layers[0].training and hidden.shape[:2] == (1, self.line.tokens)
        self._pass = Pass.PLAIN if not trains else Pass.TOGETHER if self._watched else Pass.WATCHED
        self._entered, self._told = None if self._pass is Pass.PLAIN else hidden, []

    def _watch(self, index: int, hidden: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One layer of the first pass, by itself: it must get what the one before gave."""
        out = self._plain[index](hidden, *args, **kwargs)
        alike = isinstance(out, Tensor) and out.shape == hidden.shape and out.dtype == hidden.dtype
        if hidden is not self._entered or not alike:
            self.leave("something stands between them")
        self._watched = index == len(self._layers) - 1
        self._entered = None if self._watched else out
        return out

    def _together(self, hidden: Tensor) -> Any:
        told, self._told, self._entered = self._told, [], None
        leaves, form = pytree.tree_flatten(told)
        tensors = {id(leaf): leaf for leaf in leaves if isinstance(leaf, Tensor)}
        order = {number: place for place, number in enumerate(tensors, 1)}
        given, places = [hidden, *tensors.values()], [order.get(id(leaf)) for leaf in leaves]
        shapes = ((tensor.shape, tensor.dtype) for tensor in given)
        try:
            key = (hidden.requires_grad, *shapes, *places, *(_value(leaf) for leaf in leaves if not isinstance(leaf, Tensor)))
            record = self._record_for(key, given, lambda inputs: _with(leaves, places, inputs, form))
        except RuntimeError as error:
            short = error if isinstance(error, torch.OutOfMemoryError) else error.__context__
            if isinstance(short, torch.OutOfMemoryError):
                raise short from error
            self.leave(str(error).partition("\n")[0])
            return self._run(hidden, told)
        if self._open:
            raise RuntimeError("the recorded layers were asked again before their gradients were")
        self._open = True
        for buffer, tensor in zip(record.inputs, given, strict=True):
            buffer.data.copy_(tensor.detach())
        return _Replayed.apply(self, record, hidden, *self._weights)  # type: ignore[no-untyped-call]

    def _record_for(self, key: Any, given: Sequence[Tensor], told_of: Callable[[Sequence[Tensor]], Told]) -> Recorded:
        """The record of this key, made where there is none. The longest unused makes room."""
        if any(tensor.requires_grad for tensor in given[1:]):
            raise RuntimeError("more than the hidden states has a gradient")
        addresses = [weight.data_ptr() for weight in self._weights]
        if addresses != self._addresses:
            self._records.clear()
            self._addresses = addresses
        record = self._records.pop(key, None)
        if record is None:
            if len(self._records) == MOST_RECORDS:
                del self._records[next(iter(self._records))]
            record = self._record(given, told_of)
        self._records[key] = record
        return record

    def _run(self, hidden: Tensor, told: Told) -> Any:
        for plain, (args, kwargs) in zip(self._plain, told, strict=True):
            hidden = plain(hidden, *args, **kwargs)
        return hidden

    def _record(self, given: Sequence[Tensor], told_of: Callable[[Sequence[Tensor]], Told]) -> Recorded:
        """Both directions over inputs like those that are given."""
        hidden = given[0]
        inputs = [self._buffer(place, like).detach() for place, like in enumerate(given)]
        for buffer, tensor in zip(inputs, given, strict=True):
            buffer.copy_(tensor.detach())
        inputs[0].requires_grad_(hidden.requires_grad)
        output, output_gradient = self._buffer("output", hidden), self._buffer("output gradient", hidden)
        input_gradient = self._buffer("input gradient", hidden) if hidden.requires_grad else None
        wanted = [*self._weights, *([inputs[0]] if hidden.requires_grad else [])]
        first, size = self._weights[0], sum(weight.numel() for weight in self._weights)
        gradients = self._buffer("gradients", first, (size,))
        told, made = told_of(inputs), list[Tensor]()

        def forward() -> None:
            with torch.enable_grad():
                made.append(self._run(inputs[0], told))
            output.copy_(made[0].detach())

        def backward() -> None:
            with torch.autocast(hidden.device.type, enabled=False):
                found = list(torch.autograd.grad(made.pop(), wanted, output_gradient))
            if input_gradient is not None:
                input_gradient.copy_(found.pop())
            torch.cat([gradient.reshape(-1) for gradient in found], out=gradients)

        cached = torch.is_autocast_cache_enabled()
        torch.set_autocast_cache_enabled(False)  # a cast made in one recording would be missing in the next
        try:
            both = self._recorder.record(forward), self._recorder.record(backward)
        finally:
            torch.set_autocast_cache_enabled(cached)
        return Recorded(inputs, output, output_gradient, gradients, input_gradient, *both)

    def _buffer(self, place: int | str, like: Tensor, shape: tuple[int, ...] | None = None) -> Tensor:
        """A tensor that stays, shared by all records that want one such."""
        key = (place, shape or like.shape, like.dtype)
        if key not in self._buffers:
            self._buffers[key] = torch.empty(key[1], dtype=like.dtype, device=like.device)
        return self._buffers[key]

    def gradients(self, found: Tensor) -> list[Tensor] | list[None]:
        """The gradient of each weight out of all of them; none where they went on top of those of earlier micro-batches."""
        self._open = False
        if self._accumulated is not None and self._all_within(self._accumulated):
            self._accumulated.add_(found)
            return [None for _ in self._weights]
        self._accumulated = None  # its memory can be had again
        self._accumulated = found.clone()
        parts = self._accumulated.split([weight.numel() for weight in self._weights])
        return [part.view(weight.shape) for part, weight in zip(parts, self._weights, strict=True)]

    def _all_within(self, accumulated: Tensor) -> bool:
        """Whether the weights' gradients lie in this memory, one after the other: autograd may have put them elsewhere."""
        at = accumulated.data_ptr()
        for weight in self._weights:
            if weight.grad is None or weight.grad.data_ptr() != at:
                return False
            at += weight.numel() * accumulated.element_size()
        return True


class _Replayed(torch.autograd.Function):
    """Hidden states through the layers, and back; the gradients of all trained weights come as one piece of memory."""

    @staticmethod
    def forward(ctx: Any, layers: RecordedLayers, record: Recorded, *_: Tensor) -> Tensor:
        ctx.layers, ctx.record = layers, record
        record.forward()
        return record.output.detach()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        record: Recorded = ctx.record
        record.output_gradient.copy_(gradients[0])
        record.backward()
        of_input = None if record.input_gradient is None else record.input_gradient.clone()
        return (None, None, of_input, *ctx.layers.gradients(record.gradients))


def _value(told: Any) -> Any:
    """What a layer is told that is no tensor: told again, it is the same."""
    if told is not None and not isinstance(told, bool | int | float | str):
        raise RuntimeError(f"they are told a {type(told).__name__}")
    return told


def _with(leaves: Sequence[Any], places: Sequence[int | None], inputs: Sequence[Tensor], form: Any) -> Told:
    """What layers are told, each tensor replaced by the one of its place."""
    told = [leaf if place is None else inputs[place] for leaf, place in zip(leaves, places, strict=True)]
    return pytree.tree_unflatten(told, form)  # type: ignore[no-any-return]
