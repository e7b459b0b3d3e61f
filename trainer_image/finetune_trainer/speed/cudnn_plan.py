"""One attention of cuDNN's, made for lines of one form: both directions as graphs of its frontend.

Documents are told by offsets: where the numbers of each begin, for queries, for keys and values, and for the statistics that
the forward pass leaves for the backward pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Form:
    """What a plan is made for. Without offsets `documents` is 1, and `longest` and `tokens` are that one's tokens."""

    documents: int
    longest: int
    tokens: int
    heads: int
    groups: int
    dim: int
    window: int | None
    scale: float
    dtype: torch.dtype
    device: int
    offsets: bool


def version() -> int:
    """cuDNN's own, as 91900. Raises ImportError or RuntimeError where it or its frontend is not there."""
    found: int = _library().backend_version()
    return found


def _library() -> Any:
    import cudnn  # nvidia-cudnn-frontend; cuDNN itself comes with torch

    return cudnn


@lru_cache
def _handle(_device: int) -> Any:
    """One for each device. It belongs to the device that is the current one when it is made."""
    return _library().create_handle()


class CudnnPlan:
    """Both directions by cuDNN. Raises RuntimeError where it has no kernels for a form, KeyError for numbers not of 16 bits."""

    def __init__(self, form: Form) -> None:
        self._form, self._cudnn = form, _library()
        with torch.cuda.device(form.device):
            self._handle = _handle(form.device)
            self._there, self._into = self._forward_graph()
            self._back, self._onto = self._backward_graph()

    def forward(self, q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        out, statistics = torch.empty_like(q), q.new_empty(*q.shape[:2], 1, dtype=torch.float32)
        self._execute(self._there, self._into, (q, k, v, out, statistics, *offsets, lengths))
        return out, statistics

    def backward(
        self, given: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, statistics: Tensor, offsets: Tensor, lengths: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        found = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        self._execute(self._back, self._onto, (q, k, v, out, statistics, *offsets, lengths, given, *found))
        return found

    def _execute(self, graph: Any, names: list[int | None], tensors: tuple[Tensor, ...]) -> None:
        """`names` are the graph's, in the tensors' order; None for what it has no use for."""
        room = torch.empty(max(1, graph.get_workspace_size()), dtype=torch.uint8, device=tensors[0].device)
        self._cudnn.set_stream(self._handle, torch.cuda.current_stream(self._form.device).cuda_stream)
        told = {name: tensor for name, tensor in zip(names, tensors, strict=True) if name is not None}
        graph.execute(told, room, handle=self._handle)

    def _forward_graph(self) -> tuple[Any, list[int | None]]:
        form, graph = self._form, self._new()
        line = _Line(graph, self._cudnn, form)
        q, k, v = line.numbers(form.heads, 0), line.numbers(form.groups, 1), line.numbers(form.groups, 1)
        out, statistics = graph.sdpa(q=q, k=k, v=v, generate_stats=True, attn_scale=form.scale, **self._mask(line))
        line.as_output(out, form.heads, 0)
        line.as_output(statistics, form.heads, 2).set_data_type(self._cudnn.data_type.FLOAT)
        return self._built(graph, [q, k, v, out, statistics, *line.offsets, line.lengths])

    def _backward_graph(self) -> tuple[Any, list[int | None]]:
        form, graph = self._form, self._new()
        line = _Line(graph, self._cudnn, form)
        q, k, v = line.numbers(form.heads, 0), line.numbers(form.groups, 1), line.numbers(form.groups, 1)
        out, given, statistics = line.numbers(form.heads, 0), line.numbers(form.heads, 0), line.numbers(form.heads, 2)
        room = {"max_total_seq_len_q": form.tokens, "max_total_seq_len_kv": form.tokens} if form.offsets else {}
        found = graph.sdpa_backward(
            q=q, k=k, v=v, o=out, dO=given, stats=statistics, attn_scale=form.scale, **self._mask(line), **room
        )
        for gradient, heads, kind in zip(found, (form.heads, form.groups, form.groups), (0, 1, 1), strict=True):
            line.as_output(gradient, heads, kind)
        return self._built(graph, [q, k, v, out, statistics, *line.offsets, line.lengths, given, *found])

    def _new(self) -> Any:
        kinds = self._cudnn.data_type
        number = {torch.bfloat16: kinds.BFLOAT16, torch.float16: kinds.HALF}[self._form.dtype]  # others would be read as these
        types = {"io_data_type": number, "intermediate_data_type": kinds.FLOAT, "compute_data_type": kinds.FLOAT}
        return self._cudnn.pygraph(handle=self._handle, **types)

    def _built(self, graph: Any, named: list[Any]) -> tuple[Any, list[int | None]]:
        graph.validate()
        graph.build_operation_graph()
        graph.create_execution_plans([self._cudnn.heur_mode.A])
        graph.check_support()
        graph.build_plans()
        return graph, [None if one is None else one.get_uid() for one in named]

    def _mask(self, line: _Line) -> dict[str, Any]:
        """Tokens see themselves and those before them, within their document and their window."""
        mask = {"diagonal_alignment": self._cudnn.diagonal_alignment.TOP_LEFT, "diagonal_band_right_bound": 0}
        if self._form.window:
            mask["diagonal_band_left_bound"] = self._form.window
        if line.lengths is not None:
            mask |= {"use_padding_mask": True, "seq_len_q": line.lengths, "seq_len_kv": line.lengths}
        return mask


class _Line:
    """The tensors of a graph that lie along a line of documents: (documents, heads, tokens, numbers) to cuDNN."""

    def __init__(self, graph: Any, cudnn: Any, form: Form) -> None:
        self._graph, self._cudnn, self._form = graph, cudnn, form
        kinds = cudnn.data_type
        self.offsets: list[Any] = (
            [self._list(form.documents + 1, kinds.INT64) for _ in range(3)] if form.offsets else [None] * 3
        )
        self.lengths = self._list(form.documents, kinds.INT32) if form.offsets else None

    def numbers(self, heads: int, kind: int) -> Any:
        """Queries (0) and keys (1) have a head's numbers each, statistics (2) one in float32."""
        dim, stride = self._shape(heads, kind)
        typed = {"data_type": self._cudnn.data_type.FLOAT} if kind == 2 else {}
        made = self._graph.tensor(dim=dim, stride=stride, **typed)
        return made if self.offsets[kind] is None else made.set_ragged_offset(self.offsets[kind])

    def as_output(self, made: Any, heads: int, kind: int) -> Any:
        dim, stride = self._shape(heads, kind)
        made.set_output(True).set_dim(dim).set_stride(stride)
        return made if self.offsets[kind] is None else made.set_ragged_offset(self.offsets[kind])

    def _shape(self, heads: int, kind: int) -> tuple[list[int], list[int]]:
        wide, form = 1 if kind == 2 else self._form.dim, self._form
        return [form.documents, heads, form.longest, wide], [form.longest * heads * wide, wide, heads * wide, 1]

    def _list(self, count: int, kind: Any) -> Any:
        return self._graph.tensor(dim=[count, 1, 1, 1], stride=[1, 1, 1, 1], data_type=kind)
