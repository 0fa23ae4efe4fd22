"""hf_xlmr's own answers in any setting: the right ones, and those that a known fault would give."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch import nn

from hf_xlmr.conformance.precisions import PRECISIONS
from hf_xlmr.conformance.setting import Setting
from hf_xlmr.hub_interface.loading import ModelFiles
from hf_xlmr.model.families import Task
from hf_xlmr.model.model_shape import POSITION_OFFSET
from hf_xlmr.placement.placed_loading import load_whole
from hf_xlmr.tokenizer.dictionary import PAD_INDEX

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["TOKENS", "VECTOR", "Answer", "OwnNetwork", "Row"]

Answer = dict[str, np.ndarray]
"""What a runtime gives for a text, by kind: `tokens` (tokens, width), `vector` (width,), or outputs of a head."""
TOKENS: Final = "tokens"
VECTOR: Final = "vector"
FEW_TOKENS: Final = 8  # shorter texts are computed together
CHEAP: Final = 8192  # tokens times width: so are texts that are smaller, whose padding costs less than one more pass
TOKENS_AT_ONCE: Final = 2048
HEAD_OUTPUTS: Final = ("logits", "start_logits", "end_logits")


@dataclass(frozen=True, eq=False)
class Row:
    """The ids of a text, and where it was in its batch."""

    ids: Sequence[int]
    before: int = 0
    """The tokens of the texts before it."""
    padding: int = 0
    """The tokens by which it is shorter than the longest."""

    @staticmethod
    def batch(rows: Sequence[Sequence[int]]) -> list[Row]:
        """The rows of a batch; a text without tokens has one, since networks compute nothing of nothing."""
        longest = max(map(len, rows))
        before = [0, *accumulate(map(len, rows))]
        return [Row(ids or [0], start, longest - len(ids)) for ids, start in zip(rows, before, strict=False)]


class OwnNetwork:
    """The network of a model folder in float32 on the CPU, which computes answers in any setting."""

    def __init__(self, files: ModelFiles) -> None:
        """Load it. Raises InputError, IntegrityError."""
        self.model: Any = load_whole(files.folder, device="cpu", dtype="float32", attention="eager", shape=files.shape)
        self.family = files.shape.family
        self.width = files.shape.hidden
        self._has_plain_head = files.shape.task is not Task.MULTIPLE_CHOICE  # which takes several texts as one
        self._lowered: dict[str, Any] = {}

    @property
    def base(self) -> Any:
        """The encoder without a head."""
        return self.model.base_model

    @property
    def eps(self) -> float:
        """Of the layer norms."""
        return float(self.base.config.layer_norm_eps)

    def answers(self, batches: Sequence[Sequence[Row]], setting: Setting, *, with_head: bool) -> list[list[Answer]]:
        """The answers for batches of texts; those of a head if `with_head`.

        Each has `tokens` (of all rows that pooling reads, padding after the text's own) and the head's outputs.
        """
        model = self._in_precision(setting.precision)
        with_head = with_head and self._has_plain_head
        with ExitStack() as changed, torch.inference_mode():
            for change in self._changes(setting, model):
                changed.enter_context(change)
            single = [rows for rows in batches if setting.batching == "alone" or len(rows) == 1]
            found = self._alone(model, [row for rows in single for row in rows], setting, with_head)
            for rows in batches:
                if id(rows[0]) not in found:
                    run = self._packed if setting.batching == "packed" else self._computed
                    found |= zip(map(id, rows), run(model, rows, setting, with_head), strict=True)
            return [[found[id(row)] for row in rows] for rows in batches]

    def _in_precision(self, precision: str) -> Any:
        """The model, or a copy of it in a lower precision; the last copy is kept."""
        if precision == "float32":
            return self.model
        if precision not in self._lowered:
            self._lowered = {precision: PRECISIONS[precision](copy.deepcopy(self.model))}
        return self._lowered[precision]

    # ---- one pass ----------------------------------------------------------------------------------------------------

    def _alone(self, model: Any, rows: Sequence[Row], setting: Setting, with_head: bool) -> dict[int, Answer]:
        """The answers, by `id`, for texts that do not see each other; those of about one length computed together."""
        rows = sorted(rows, key=lambda row: len(row.ids))
        alone, few = setting.having({"batching": "alone"}), max(FEW_TOKENS, CHEAP // self.width)
        found: dict[int, Answer] = {}
        while rows:
            longest = max(len(rows[0].ids) * 5 // 4, few)
            sizes = [(len(row.ids), row) for row in rows if len(row.ids) <= longest]
            most = TOKENS_AT_ONCE if setting.precision == "float32" else 0  # others round by what is computed together
            some = [row for count, (size, row) in enumerate(sizes, 1) if count == 1 or count * size <= most]
            rows = rows[len(some) :]
            for row, each in zip(some, self._computed(model, some, alone, with_head), strict=True):
                found[id(row)] = {**each, TOKENS: each[TOKENS][: len(row.ids)]}
        return found

    def _computed(self, model: Any, rows: Sequence[Row], setting: Setting, with_head: bool) -> list[Answer]:
        """The answers for a batch that is padded on the right."""
        longest = max(len(row.ids) for row in rows)
        ids = torch.tensor([[*row.ids, *[PAD_INDEX] * (longest - len(row.ids))] for row in rows])
        is_text = torch.arange(longest) < torch.tensor([[len(row.ids)] for row in rows])
        mask = is_text if setting.batching in ("alone", "padded") else torch.ones_like(is_text)
        places = torch.stack([self._positions(row, setting, longest) for row in rows])
        if setting.batching != "attended and counted":
            places = torch.where(is_text, places, PAD_INDEX)
        hidden, outputs = self._run(model, ids, mask, places, self._token_types(ids, setting), with_head)
        found: list[Answer] = []
        for number, row in enumerate(rows):
            of_head = {name: _of_text(name, each[number], len(row.ids)) for name, each in outputs.items()}
            found.append({TOKENS: hidden[number], **of_head})
        return found

    def _packed(self, model: Any, rows: Sequence[Row], setting: Setting, _with_head: bool) -> list[Answer]:
        """The answers for a batch that is laid end to end and attends to all of it, without those of a head."""
        ids = torch.tensor([[each for row in rows for each in row.ids]])
        places = torch.cat([self._positions(row, setting, len(row.ids)) for row in rows])
        types = self._token_types(ids, setting)
        hidden, _ = self._run(model, ids, torch.ones_like(ids), places[None], types, with_head=False)
        ends = np.cumsum([len(row.ids) for row in rows])
        return [{TOKENS: each} for each in np.split(hidden[0], ends[:-1])]

    def _run(
        self,
        model: Any,
        ids: torch.Tensor,
        mask: torch.Tensor,
        places: torch.Tensor,
        types: torch.Tensor,
        with_head: bool,
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        held: list[torch.Tensor] = []
        hook = model.base_model.register_forward_hook(lambda _module, _given, made: held.append(made[0]))
        try:
            run = model if with_head else model.base_model
            made = run(
                input_ids=ids,
                attention_mask=mask.long(),
                position_ids=places.clamp(0, model.config.max_position_embeddings - 1),
                token_type_ids=types,
            )
        finally:
            hook.remove()
        outputs = {name: made[name].float().numpy() for name in HEAD_OUTPUTS if with_head and name in made}
        return held[0].float().numpy(), outputs

    @staticmethod
    def _positions(row: Row, setting: Setting, longest: int) -> torch.Tensor:
        first = POSITION_OFFSET if setting.first_position is None else setting.first_position
        if setting.positions == "over the batch":
            first += row.before
        elif setting.positions == "after padding":
            first += row.padding
        is_padding = torch.tensor([each == PAD_INDEX for each in row.ids] + [False] * (longest - len(row.ids)))
        return torch.where(is_padding, PAD_INDEX, first - 1 + (~is_padding).cumsum(dim=0))  # a <pad> typed in a text

    def _token_types(self, ids: torch.Tensor, setting: Setting) -> torch.Tensor:
        if setting.token_types == "pairs":
            ends = torch.eq(ids, self.model.config.eos_token_id).long()  # what follows the first is of the second text
            return ((ends.cumsum(dim=1) - ends) > 0).long()
        return torch.full_like(ids, int(setting.token_types == "second"))

    # ---- faults ------------------------------------------------------------------------------------------------------

    def _changes(self, setting: Setting, model: PreTrainedModel) -> Iterator[Any]:
        """What makes the network compute as the setting says, as contexts."""
        base: Any = model.base_model
        if setting.activation is not None:
            yield _with_attribute(base, "intermediate_act_fn", _activation(setting.activation))
        if setting.eps is not None:
            yield _with_eps(base, setting.eps)
        if setting.final_norm != "once" and self.family.final_norm is not None:
            yield _applied(base.get_submodule(self.family.final_norm), setting.final_norm)
        if setting.embedding_norm != "once" and self.family.embedding_norm is not None:
            yield _applied(base.get_submodule(self.family.embedding_norm), setting.embedding_norm)
        if setting.token_types == "none":
            yield _with_zeros(base.embeddings.token_type_embeddings.weight)
        for layer in list(base.encoder.layer)[len(base.encoder.layer) - setting.skipped_layers :]:
            yield _skipped(layer)


def _of_text(name: str, values: np.ndarray, tokens: int) -> np.ndarray:
    """Outputs of one text without its padding; the logits of a whole text, (labels,), stay."""
    return values if name == "logits" and values.ndim == 1 else values[:tokens]


def _activation(name: str) -> Callable[[torch.Tensor], torch.Tensor]:
    from transformers.activations import ACT2FN

    found: Callable[[torch.Tensor], torch.Tensor] = ACT2FN[name]
    return found


@contextmanager
def _with_attribute(model: nn.Module, name: str, value: object) -> Iterator[None]:
    modules = [module for module in model.modules() if hasattr(module, name)]
    usual = [getattr(module, name) for module in modules]
    for module in modules:
        setattr(module, name, value)
    try:
        yield
    finally:
        for module, each in zip(modules, usual, strict=True):
            setattr(module, name, each)


@contextmanager
def _with_eps(model: nn.Module, eps: float) -> Iterator[None]:
    norms = [module for module in model.modules() if isinstance(module, nn.LayerNorm)]
    usual = [norm.eps for norm in norms]
    for norm in norms:
        norm.eps = eps
    try:
        yield
    finally:
        for norm, each in zip(norms, usual, strict=True):
            norm.eps = each


@contextmanager
def _hooked(module: nn.Module, hook: Callable[..., Any]) -> Iterator[None]:
    handle = module.register_forward_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _applied(norm: nn.Module, times: str) -> Any:
    """A norm that is left out, or applied twice."""

    def never(_norm: nn.Module, given: tuple[Any, ...], options: dict[str, Any], _made: object) -> Any:
        return given[0] if given else next(iter(options.values()))

    return _hooked(norm, (lambda norm, _given, _options, made: norm.forward(made)) if times == "twice" else never)


def _skipped(layer: nn.Module) -> Any:
    """A layer that gives what it takes."""

    def unchanged(_layer: nn.Module, given: tuple[Any, ...], options: dict[str, Any], made: Any) -> Any:
        before = given[0] if given else options["hidden_states"]
        return (before, *made[1:]) if isinstance(made, tuple) else before

    return _hooked(layer, unchanged)


@contextmanager
def _with_zeros(weight: torch.Tensor) -> Iterator[None]:
    usual = weight.clone()
    weight.data.zero_()
    try:
        yield
    finally:
        weight.data.copy_(usual)
