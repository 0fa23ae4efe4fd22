"""A model folder's network with the head of a task: its own, one that fairseq trained, or a new one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from hf_xlmr.errors import InputError, WeightsMismatch, told_plainly
from hf_xlmr.hub_interface.languages import let_adapters_autocast
from hf_xlmr.hub_interface.loading import ModelFiles
from hf_xlmr.model.head_kinds import HeadKind, kind_of_head
from hf_xlmr.model.model_shape import HEAD_PARTS
from hf_xlmr.model.plain_config import plain_config, raise_if_adapter
from hf_xlmr.tasks.encoding.encoding import label_ids
from hf_xlmr.tasks.kinds.task import AnyTask, Recipe
from hf_xlmr.tokenizer.dictionary import FILLER, SPECIAL_SYMBOLS
from hf_xlmr.tokenizer.plain_tokenizer import quiet_transformers

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

OF_OTHER_HEADS: Final = ("lm_head.", "classifier.", "qa_outputs.", "pooler.")
OF_ADAPTERS: Final = ("adapter_modules", "adapter_layer_norm")
WIDE: Final = 2048  # from this width on a model is one of the XL kind: XL has 2560, XXL 4096, large 1024
SHORTEST: Final = 8  # what two sentences need to say anything: their marks, and two tokens each
WITHOUT_HEAD: Final = "convert it with encoder_only=True to train a new one"


@dataclass(frozen=True)
class TaskHead:
    """The head that a model has for a task."""

    labels: tuple[str, ...] | None
    """The labels by number; None if the task has none."""
    weights: Mapping[str, torch.Tensor] | None = None
    """The weights of fairseq's head by their names; None if the head is the folder's own, or new."""
    is_new: bool = False


def longest_text(files: ModelFiles, wanted: int | None, default: int) -> int:
    """The most tokens of a text: what is `wanted`, else the `default` as far as the model goes. Raises InputError."""
    most = files.shape.longest_text
    if wanted is None:
        return min(default, most)
    if not SHORTEST <= wanted <= most:
        raise InputError(f"max_length={wanted}: {files.name} takes texts of {SHORTEST} to {most} tokens")
    return wanted


def is_wide(files: ModelFiles) -> bool:
    """Whether the model is of the XL kind, which is trained more carefully."""
    return files.shape.hidden >= WIDE


def head_of(files: ModelFiles, task: AnyTask, *, name: str | None = None) -> TaskHead | None:
    """The head for the task that `files` have, `name` if fairseq's checkpoint has several; None for none.

    Raises InputError for a head whose classes are not those of the task.
    """
    if files.class_name.endswith(task.recipe.class_ending):
        if name is not None and name != files.head_name:
            raise InputError(f"head={name!r:.80}: the head of {files.name} was called {files.head_name}")
        return TaskHead(_labels(files, task, count=None))
    heads = files.heads() if task.recipe.is_fairseqs else {}
    if not heads:
        if name is not None:
            raise InputError(f"head={name!r:.80}: {files.name} has no classification head")
        return None
    picked = _picked(heads, name)
    weights = heads[picked]
    reading = kind_of_head(picked, files.options, heads=list(heads))
    if reading.kind is HeadKind.TOKEN:
        raise InputError(f"the head {picked} of {files.name} classifies every token ({reading.reason}); {WITHOUT_HEAD}")
    activation = files.options.get("pooler_activation_fn") or "tanh"
    if activation != "tanh":
        raise InputError(
            f"the head {picked} of {files.name} uses {activation!s:.40}, and Transformers' always uses tanh; "
            f"{WITHOUT_HEAD}"
        )
    if set(weights) != set(HEAD_PARTS):
        raise InputError(f"the head {picked} is not a classifier: it has {', '.join(sorted(weights))}")
    return TaskHead(_labels(files, task, count=len(weights["out_proj.weight"])), weights)


def _picked(heads: Mapping[str, object], name: str | None) -> str:
    if name is None and len(heads) == 1:
        return next(iter(heads))
    if name in heads:
        return str(name)
    asked = "choose one with head=" if name is None else f"head={name!r:.80} is none of them"
    raise InputError(f"the checkpoint has the heads {', '.join(heads)}; {asked}")


def _labels(files: ModelFiles, task: AnyTask, *, count: int | None) -> tuple[str, ...] | None:
    """The names of the classes in the order of their numbers. Raises InputError if they are not the task's.

    For the folder's own head config.json names them; for the `count` classes of fairseq's, its dictionary of labels.
    """
    if not task.recipe.has_classes:
        return None
    if count is None:
        names = _names_by_number(files.config.get("id2label"))
    else:
        listed = () if files.labels is None else files.labels.symbols[len(SPECIAL_SYMBOLS) :]
        more = [name for name in listed[count:] if not name.startswith(FILLER)]
        names = () if more or len(listed) < count else listed[:count]
    if not names or names[0].startswith("LABEL_"):
        raise InputError(
            f"the classes of {files.name} have no names: put them into id2label of its config.json, in the order in "
            "which it was trained (for a checkpoint of fairseq's, give its label/dict.txt)"
        )
    if task.recipe.labels and set(names) != set(task.recipe.labels):
        raise InputError(
            f"{files.name} is a classifier of {', '.join(map(repr, names))}; the task {task.name} has "
            f"{', '.join(task.recipe.labels)}. Give the model that it was made from, or convert with encoder_only=True"
        )
    return names


def _names_by_number(names: object) -> tuple[str, ...]:
    """The names in id2label by their numbers; none if it numbers nothing."""
    try:
        numbered = {int(number): str(name) for number, name in dict(names or {}).items()}  # type: ignore[call-overload]
        return tuple(numbered[number] for number in range(len(numbered)))
    except (KeyError, TypeError, ValueError):
        return ()


def load_network(files: ModelFiles, recipe: Recipe, head: TaskHead) -> PreTrainedModel:
    """The Transformers network of the task in float32, with `head`; a new one is drawn by torch's random numbers.

    Raises WeightsMismatch with all weights that are missing, unknown or of another shape, InputError, IntegrityError.
    """
    import torch
    import transformers

    with told_plainly(), files.named():
        loader = getattr(transformers, f"AutoModel{recipe.class_ending}")
        raise_if_adapter(files.folder)
        named = {} if head.labels is None else _named(head.labels)
        network: PreTrainedModel
        with quiet_transformers():
            network, loading = loader.from_pretrained(
                files.folder,
                config=plain_config(files.folder, fields=named),
                dtype=torch.float32,
                output_loading_info=True,
                local_files_only=True,
                use_safetensors=True,
            )
        is_made = head.is_new or head.weights is not None
        _raise_if_unbalanced(loading, made=f"{recipe.head}." if is_made else None)
        if head.weights is not None:
            _fill(network, head.weights)
        let_adapters_autocast(network)
    return network


def freeze_language_adapters(network: PreTrainedModel) -> None:
    """Train no language adapter of an X-MOD, nor the norm that only they have."""
    for name, weight in network.named_parameters():
        if any(f".{part}." in name for part in OF_ADAPTERS):
            weight.requires_grad = False


def _named(labels: Sequence[str]) -> dict[str, object]:
    numbers = label_ids(labels)
    return {"num_labels": len(labels), "label2id": numbers, "id2label": {v: k for k, v in numbers.items()}}


def _raise_if_unbalanced(loading: Mapping[str, Iterable[object]], *, made: str | None) -> None:
    """Raise WeightsMismatch if anything but the head that is `made` would be drawn at random."""
    of_kinds = (sorted(map(str, loading[f"{kind}_keys"])) for kind in ("missing", "unexpected", "mismatched"))
    missing, unexpected, wrong = of_kinds
    missing = [name for name in missing if made is None or not name.startswith(made)]
    unexpected = [name for name in unexpected if not _is_of_another_head(name)]
    if missing or unexpected or wrong:
        raise WeightsMismatch(missing=missing, unexpected=unexpected, wrong_shape=wrong)


def _is_of_another_head(name: str) -> bool:
    bare = name.split(".", 1)[1] if name.split(".", 1)[0].startswith("roberta") else name
    return bare.startswith(OF_OTHER_HEADS) or bare.endswith("position_ids")


def _fill(network: PreTrainedModel, weights: Mapping[str, torch.Tensor]) -> None:
    """Put the weights of fairseq's head into Transformers' classifier, whose parts have the same names."""
    import torch

    parameters = dict(network.get_submodule("classifier").named_parameters())
    wrong = [name for name in HEAD_PARTS if parameters[name].shape != weights[name].shape]
    if wrong:
        told = [f"{name} {list(weights[name].shape)}, expected {list(parameters[name].shape)}" for name in wrong]
        raise WeightsMismatch(wrong_shape=told)
    with torch.no_grad():
        for name in HEAD_PARTS:
            parameters[name].copy_(weights[name])
