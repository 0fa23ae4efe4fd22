"""The weights of an XLM-R by name, shape and block, from a config alone: pure arithmetic, nothing is read or built."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from math import prod
from pathlib import Path
from typing import Final, NamedTuple

from hf_xlmr.errors import InputError, IntegrityError, told_plainly
from hf_xlmr.files.json_files import json_object
from hf_xlmr.model.adapters import (
    ADAPTER_LINEARS,
    ADAPTER_NORM,
    ENGLISH,
    RELEASE_LANGUAGES,
    Adapters,
    adapters_of_config,
)
from hf_xlmr.model.families import BASE_SIZES, FAMILIES, LAYER_LINEARS, PRE_NORM, XMOD, Family, Task, family_of

DTYPE_BYTES: Final = {"float32": 4, "float16": 2, "bfloat16": 2, "float64": 8}
INT8: Final = "int8"
PLANNED_BYTES: Final = {**DTYPE_BYTES, INT8: 4}
"""Also of what is not a product, where the products of layers are in int8."""
HEAD_PARTS: Final = ("dense.weight", "dense.bias", "out_proj.weight", "out_proj.bias")
"""The weights of a classification head as fairseq names them."""
CONFIG: Final = "config.json"
BUFFER_BYTES: Final = 8  # position_ids and token_type_ids are int64, whatever the dtype of the weights
POSITION_OFFSET: Final = 2  # positions begin after <pad>, which is 1 (fairseq: padding_idx + 1)
LARGEST_COUNT: Final = 1 << 31
MOST_COUNTS: Final = {"num_hidden_layers": 10_000, "num_labels": 1_000_000}
"""The most layers and labels: Transformers makes an object for each, and more take hours and all memory."""
LABELS: Final = 2  # of a classifier whose config.json names none
LM_HEAD: Final = "lm_head"


class Tensor(NamedTuple):
    """A parameter or buffer; `sizes` are its dimensions."""

    name: str
    sizes: tuple[int, ...]
    is_buffer: bool = False

    @property
    def numbers(self) -> int:
        """How many numbers it holds."""
        return prod(self.sizes)

    def nbytes(self, dtype: str) -> int:
        """Its bytes with weights of `dtype`; in int8 the matrices of layers have a scale for each row and column."""
        if dtype == INT8 and self.is_product:
            return self.numbers + PLANNED_BYTES[INT8] * sum(self.sizes)
        return self.numbers * (BUFFER_BYTES if self.is_buffer else PLANNED_BYTES[dtype])

    @property
    def is_product(self) -> bool:
        """Whether it is a matrix of a layer."""
        return ".layer." in self.name and len(self.sizes) == 2


class Block(NamedTuple):
    """What is never split between devices: `modules` are the keys of a device map, `tensors` all that is in them.

    Tensors that are tied to another one are not among them: a tied matrix counts once.
    """

    modules: tuple[str, ...]
    tensors: tuple[Tensor, ...]

    def nbytes(self, dtype: str) -> int:
        """Bytes of all tensors with weights of `dtype`."""
        return sum(tensor.nbytes(dtype) for tensor in self.tensors)


_XXL_SIZES: Final = dict(zip(BASE_SIZES, (4096, 48, 32, 16384), strict=True))
_LARGE_SIZES: Final = dict(zip(BASE_SIZES, (1024, 24, 16, 4096), strict=True))
_FAIRSEQ_BASE: Final = {"vocab_size": 250002, "max_position_embeddings": 514, "type_vocab_size": 1}
_BASE: Final = {"model_type": "xlm-roberta", "architectures": ["XLMRobertaForMaskedLM"], **_FAIRSEQ_BASE, **BASE_SIZES}
_LARGE: Final = {**_BASE, **_LARGE_SIZES}
_XL: Final = {"model_type": "xlm-roberta-xl", "architectures": ["XLMRobertaXLForMaskedLM"], **PRE_NORM.defaults}
UPDATES: Final = ("13.125k", "30.125k", "30.195k", "60.125k", "60.265k", "75.125k", "75.269k")
_XMOD_PRE_NORM: Final = {
    "pre_norm": True,
    "adapter_layer_norm": True,
    "adapter_reuse_layer_norm": False,
    "ln_before_adapter": False,
    "adapter_reduction_factor": 4,
}


def _xmod(languages: int, **fields: object) -> Mapping[str, object]:
    """X-MOD for so many languages, of base's size if `fields` do not say otherwise."""
    named = {"architectures": ["XmodForMaskedLM"], "languages": list(RELEASE_LANGUAGES[languages])}
    return {**XMOD.defaults, **_FAIRSEQ_BASE, "model_type": "xmod", "default_language": ENGLISH, **named, **fields}


RELEASE_CONFIGS: Final[Mapping[str, Mapping[str, object]]] = {
    "xlmr.base": _BASE,
    "xlmr.base.v0": _BASE,
    "xlmr.large": _LARGE,
    "xlmr.large.v0": _LARGE,
    "xlmr.xl": _XL,
    "xlmr.xxl": {**_XL, **_XXL_SIZES},
    "xmod.base": _xmod(81),
    "xmod.large.prenorm": _xmod(81, **_LARGE_SIZES, **_XMOD_PRE_NORM),
    **{f"xmod.base.{name}": _xmod(int(name[:2])) for name in UPDATES},
}


@dataclass(frozen=True)
class ModelShape:
    """A network of one of the families, by its sizes; everything else follows from them."""

    family: Family
    """In its layout."""
    task: Task
    vocabulary: int
    hidden: int
    intermediate: int
    layers: int
    attention_heads: int
    positions: int
    """Rows of the position table: the longest text plus two."""
    token_types: int
    labels: int
    is_tied: bool
    """Whether the language-model head's matrix is the embedding."""
    has_pooler: bool
    dtype: str
    """What the weights are stored in."""
    adapters: Adapters | None = None
    """The language adapters of X-MOD."""

    @property
    def model_type(self) -> str:
        """The model_type of config.json."""
        return self.family.model_type

    @property
    def class_name(self) -> str:
        """The Transformers class, for example XLMRobertaForMaskedLM."""
        return self.family.class_name(self.task)

    @property
    def base(self) -> str:
        """What is before the encoder's names: empty, or `roberta.` and the like."""
        return self.family.base_prefix(self.task)

    @property
    def base_of_heads(self) -> str:
        """What is before the encoder's names in the classes of this family that have a head."""
        return f"{self.family.base}."

    @property
    def longest_text(self) -> int:
        """In tokens."""
        return self.positions - POSITION_OFFSET

    @property
    def has_lm_head(self) -> bool:
        """Whether it answers with a score for every word of the vocabulary."""
        return self.task in (Task.MASKED_LM, Task.CAUSAL_LM)

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """Everything, in the order in which it is computed: embeddings, each layer, then what follows the layers.

        A tied head belongs to the first block: it is the embedding again. Nothing may follow the layers; the last
        block is then empty.
        """
        return (self._first_block(), *(self._layer(number) for number in range(self.layers)), self._last_block())

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Every parameter and buffer, a tied one once."""
        return tuple(tensor for block in self.blocks for tensor in block.tensors)

    @property
    def parameters(self) -> int:
        """How many numbers were trained; a tied matrix counts once."""
        return sum(tensor.numbers for tensor in self.tensors if not tensor.is_buffer)

    @property
    def tied_tensors(self) -> tuple[str, ...]:
        """Names that stand for a tensor of another name."""
        return (f"{LM_HEAD}.decoder.weight", f"{LM_HEAD}.decoder.bias") if self.has_lm_head and self.is_tied else ()

    def tied_to(self, name: str) -> str:
        """The tensor that a name of `tied_tensors` stands for."""
        return f"{LM_HEAD}.bias" if name.endswith(".bias") else f"{self.base}embeddings.word_embeddings.weight"

    def nbytes(self, dtype: str) -> int:
        """Bytes of all parameters and buffers with weights of `dtype`."""
        return sum(block.nbytes(dtype) for block in self.blocks)

    def without_pooler(self) -> ModelShape:
        """The same without a pooler, as `add_pooling_layer=False` builds it."""
        return replace(self, has_pooler=False)

    def _first_block(self) -> Block:
        prefix = f"{self.base}embeddings."
        rows = {
            "word_embeddings": self.vocabulary,
            "position_embeddings": self.positions,
            "token_type_embeddings": self.token_types,
        }
        tensors = [Tensor(f"{prefix}{name}.weight", (count, self.hidden)) for name, count in rows.items()]
        if self.family.embedding_norm:
            tensors += self._norm(self.base + self.family.embedding_norm)
        tensors += [
            Tensor(f"{prefix}{name}", (1, self.positions), is_buffer=True)
            for name in ("position_ids", "token_type_ids")
        ]
        modules: tuple[str, ...] = (f"{self.base}embeddings",)
        if self.has_lm_head and self.is_tied:
            modules, tensors = (*modules, LM_HEAD), [*tensors, *self._lm_head()]
        return Block(modules, tuple(tensors))

    def _layer(self, number: int) -> Block:
        prefix = f"{self.base}encoder.layer.{number}"
        sizes = {"hidden": self.hidden, "intermediate": self.intermediate}
        tensors: list[Tensor] = []
        for _, name, (out, into) in LAYER_LINEARS:
            tensors += _linear(f"{prefix}.{name}", sizes[out], sizes[into])
        tensors += [each for name in self.family.layer_norms.values() for each in self._norm(f"{prefix}.{name}")]
        return Block((prefix,), (*tensors, *self._adapters(prefix)))

    def _adapters(self, prefix: str) -> Iterator[Tensor]:
        if self.adapters is None:
            return
        sizes = {"hidden": self.hidden, "adapter": self.adapters.width(self.hidden)}
        if self.adapters.has_own_norm:
            yield from self._norm(f"{prefix}.{ADAPTER_NORM[1]}")
        for language in self.adapters.languages:
            for _, name, (out, into) in ADAPTER_LINEARS:
                yield from _linear(f"{prefix}.output.adapter_modules.{language}.{name}", sizes[out], sizes[into])

    def _last_block(self) -> Block:
        parts: dict[str, tuple[Tensor, ...]] = {}
        if self.family.final_norm:
            name = self.base + self.family.final_norm
            parts[name] = tuple(self._norm(name))
        if self.has_pooler:
            pooler = f"{self.base}pooler"
            parts[pooler] = tuple(_linear(f"{pooler}.dense", self.hidden, self.hidden))
        parts |= self._head()
        return Block(tuple(parts), tuple(tensor for tensors in parts.values() for tensor in tensors))

    def _head(self) -> dict[str, tuple[Tensor, ...]]:
        """What follows the encoder, by module; a tied language-model head is with the embeddings."""
        hidden = self.hidden
        if self.has_lm_head and not self.is_tied:
            return {LM_HEAD: tuple(self._lm_head())}
        if self.task is Task.SEQUENCE_CLASSIFICATION:
            dense = _linear("classifier.dense", hidden, hidden)
            return {"classifier": (*dense, *_linear("classifier.out_proj", self.labels, hidden))}
        if self.task is Task.TOKEN_CLASSIFICATION:
            return {"classifier": tuple(_linear("classifier", self.labels, hidden))}
        if self.task is Task.MULTIPLE_CHOICE:
            return {"classifier": tuple(_linear("classifier", 1, hidden))}
        if self.task is Task.QUESTION_ANSWERING:
            return {"qa_outputs": tuple(_linear("qa_outputs", self.labels, hidden))}
        return {}

    def _lm_head(self) -> Iterator[Tensor]:
        yield Tensor(f"{LM_HEAD}.bias", (self.vocabulary,))
        yield from _linear(f"{LM_HEAD}.dense", self.hidden, self.hidden)
        yield from self._norm(f"{LM_HEAD}.layer_norm")
        if not self.is_tied:
            yield from _linear(f"{LM_HEAD}.decoder", self.vocabulary, self.hidden)

    def _norm(self, name: str) -> Iterator[Tensor]:
        yield Tensor(f"{name}.weight", (self.hidden,))
        yield Tensor(f"{name}.bias", (self.hidden,))


def _linear(name: str, out: int, into: int) -> Iterator[Tensor]:
    yield Tensor(f"{name}.weight", (out, into))
    yield Tensor(f"{name}.bias", (out,))


# ---- where a shape comes from ----------------------------------------------------------------------------------------


def config_file(model: str | Path) -> Path:
    """Where the `config.json` of a Transformers folder is, given the folder or the file itself."""
    path = Path(model)
    return path if path.name == CONFIG else path / CONFIG


def shape_of_folder(folder: str | Path) -> ModelShape:
    """The shape that the `config.json` of a Transformers folder describes. Raises InputError, IntegrityError."""
    with told_plainly():
        path = config_file(folder)
        return shape_of_config(json_object(path), name=str(path))


def shape_of_config(config: Mapping[str, object], *, name: str = CONFIG) -> ModelShape:
    """The shape that a `config.json` describes, with Transformers' defaults for what it does not say.

    `name` is what messages call it.
    Raises InputError if the model is of another family or class, IntegrityError if a size is not a number.
    """
    family = family_of(config)
    if family is None:
        known = ", ".join(FAMILIES)
        raise InputError(f"{name}: the model_type is {config.get('model_type')!s:.40}; hf-xlmr plans {known}")
    task = _task(config, family, name)
    given = {**family.defaults, "tie_word_embeddings": True, **config}
    count = partial(count_of, given, name=name)
    return ModelShape(
        family=family,
        task=task,
        vocabulary=count("vocab_size"),
        hidden=count("hidden_size"),
        intermediate=count("intermediate_size"),
        layers=count("num_hidden_layers"),
        attention_heads=count("num_attention_heads"),
        positions=count("max_position_embeddings"),
        token_types=count("type_vocab_size"),
        labels=label_count(given, name=name),
        is_tied=given["tie_word_embeddings"] is True,
        has_pooler=task in (Task.ENCODER, Task.MULTIPLE_CHOICE),
        dtype=_dtype(given, name),
        adapters=adapters_of_config(given, hidden=count("hidden_size"), name=name) if family.has_adapters else None,
    )


def _task(config: Mapping[str, object], family: Family, file: str) -> Task:
    """The task of the class that the config names, the bare encoder where it names none. Raises InputError."""
    names = config.get("architectures") or [family.class_name(Task.ENCODER)]
    name = str(names[0]) if isinstance(names, list) else str(names)
    tasks = {family.class_name(task): task for task in Task}
    if name not in tasks:
        raise InputError(f"{file} names the class {name:.60}; of this family hf-xlmr plans {', '.join(tasks)}")
    if config.get("add_cross_attention"):
        raise InputError(f"{file} asks for cross-attention, which XLM-R does not have (add_cross_attention)")
    return tasks[name]


def count_of(config: Mapping[str, object], field: str, *, name: str = CONFIG) -> int:
    """A size in `config`, within what it can be. Raises IntegrityError, which calls the file `name`."""
    value, most = config.get(field), MOST_COUNTS.get(field, LARGEST_COUNT)
    if type(value) is not int or not 1 <= value <= most:
        raise IntegrityError(f"{name} is damaged: {field} is {value!r:.40}, not a whole number from 1 to {most:,}")
    return value


def label_count(config: Mapping[str, object], *, name: str = CONFIG) -> int:
    """The classes of a classifier: the names of id2label, else num_labels. Raises IntegrityError."""
    said = LABELS if config.get("num_labels") is None else count_of(config, "num_labels", name=name)
    names = config.get("id2label")
    if not isinstance(names, dict) or not names:
        return said
    return count_of({"num_labels": len(names)}, "num_labels", name=name)


def _dtype(config: Mapping[str, object], file: str) -> str:
    """The stored dtype; float32 if the config does not say, the default of XLM-R."""
    stored = str(config.get("dtype") or config.get("torch_dtype") or "float32")
    if stored not in DTYPE_BYTES:
        raise InputError(f"{file}: the weights are stored as {stored:.40}; hf-xlmr plans {', '.join(DTYPE_BYTES)}")
    return stored
