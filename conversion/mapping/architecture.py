"""What network a checkpoint holds: tensors first, options second; every reason against it at once."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from hf_xlmr.conversion.checkpoint.opened_checkpoint import FairseqCheckpoint
from hf_xlmr.conversion.checkpoint.options import Options
from hf_xlmr.conversion.checkpoint.parallel_parts import same_bytes
from hf_xlmr.conversion.checkpoint.weights import FLOAT_DTYPES, Weight
from hf_xlmr.conversion.mapping.language_adapters import ARCH_FLAGS, FoundAdapters
from hf_xlmr.errors import InputError, UnsupportedCheckpoint, WeightsMismatch
from hf_xlmr.model.adapters import Adapters
from hf_xlmr.model.families import (
    POST_NORM,
    PRE_NORM,
    PRE_NORM_WITH_EMBEDDING_NORM,
    XMOD,
    XMOD_PRE_NORM,
    Family,
    Task,
)
from hf_xlmr.model.head_kinds import HeadKind, Reading, is_multi_label, kind_of_head
from hf_xlmr.model.model_shape import HEAD_PARTS, POSITION_OFFSET

__all__ = ["Architecture", "Wanted", "beside_heads", "decide", "head_oddity", "unclear_head"]

E: Final = "encoder.sentence_encoder."
EMBEDDING: Final = E + "embed_tokens.weight"
POSITIONS: Final = E + "embed_positions.weight"
LM_HEAD: Final = "encoder.lm_head."
LM_WEIGHT: Final = LM_HEAD + "weight"

BASE: Final = (12, 768, 3072, 12)
LARGE: Final = (24, 1024, 4096, 16)
ARCHES: Final = {  # fairseq/models/roberta/model.py: layers, width, feed-forward width, attention heads
    **dict.fromkeys(("roberta", "roberta_base", "roberta_prenorm", "model_parallel_roberta"), BASE),
    **dict.fromkeys(("model_parallel_roberta_base", "model_parallel_roberta_postnorm"), BASE),
    **dict.fromkeys(("roberta_large", "model_parallel_roberta_large"), LARGE),
    "xlm": (16, 1280, 5120, 16),
    **{arch: BASE if arch.startswith("xmod_base") else LARGE for arch in ARCH_FLAGS},
}
ARCH_SIZES: Final = ("encoder_layers", "encoder_embed_dim", "encoder_ffn_embed_dim")
MOST_POSITIONS: Final = 1 << 20
MOST_LABELS: Final = 1 << 17  # each gets a name in config.json
BASE_MAX_POSITIONS: Final = 512
GLANCE_BYTES: Final = 1 << 20

ACTIVATIONS: Final = {
    "gelu": "gelu",
    "gelu_accurate": "gelu_pytorch_tanh",
    "gelu_fast": "gelu_pytorch_tanh",
    "relu": "relu",
    "tanh": "tanh",
    "linear": "linear",
}
RANKING: Final = ("sentence_ranking", "commonsense_qa")
DENSE: Final = frozenset(("dense.weight", "dense.bias"))
SPECTRAL: Final = frozenset(("out_proj.weight_orig", "out_proj.weight_u", "out_proj.weight_v"))
SHOWN_NAMES: Final = 8
ENCODER_ONLY_HINT: Final = "Only the head is at fault: encoder_only=True converts the rest."
READABLE: Final = re.compile(r"[^\s,()]([^,()]*[^\s,()])?")
NO_HEAD_HINT: Final = "Only the classification head is at fault: head='none' converts the rest, or encoder_only=True."
BESIDE_HINT: Final = "encoder_only=True leaves them behind, and so does head='none' with the masked LM."


@dataclass(frozen=True)
class Wanted:
    """What the user asked for; None leaves it to the checkpoint."""

    head: str | None = None
    encoder_only: bool = False
    attention_heads: int | None = None
    dtype: str = "auto"
    ema: bool = False

    @property
    def leaves_rest(self) -> bool:
        """Whether nothing is wanted of what is next to fairseq's encoder and its masked-LM head."""
        return self.encoder_only or self.head == "none"


@dataclass(frozen=True)
class Architecture:
    """The network as Transformers will build it, sizes as in the file; `layers` are fairseq's numbers of those kept."""

    family: Family
    task: Task
    head: str | None
    labels: int
    is_regression: bool
    is_multi_label: bool
    """Whether a text can have several of the classes."""
    vocabulary: int
    hidden: int
    intermediate: int
    layers: tuple[int, ...]
    attention_heads: int
    positions: int
    position_kind: str
    """learned, sinusoidal or none."""
    activation: str
    dropout: float
    attention_dropout: float
    head_dropout: float
    is_tied: bool
    scales_embedding: bool
    adapters: Adapters | None = None
    """The language adapters of X-MOD."""

    @property
    def dims(self) -> dict[str, int]:
        """The sizes under the names that the weight map uses."""
        return {
            "vocabulary": self.vocabulary,
            "hidden": self.hidden,
            "intermediate": self.intermediate,
            "positions": self.positions,
            "labels": self.labels,
            "adapter": self.adapters.width(self.hidden) if self.adapters else 0,
        }

    @property
    def languages(self) -> tuple[str, ...]:
        """The languages of its adapters, in the order of their numbers; none without adapters."""
        return self.adapters.languages if self.adapters else ()

    @property
    def longest_text(self) -> int:
        """The most tokens of a text: 512 if the table has 514 rows."""
        return self.positions - POSITION_OFFSET

    @property
    def class_name(self) -> str:
        """The Transformers class, for example XLMRobertaForMaskedLM."""
        return self.family.class_name(self.task)


def decide(checkpoint: FairseqCheckpoint, wanted: Wanted, *, reads_weights: bool = True) -> Architecture:
    """The architecture of a checkpoint; `reads_weights` False compares only the beginning of what may be tied.

    Raises UnsupportedCheckpoint with every reason, InputError where an option is wrong, WeightsMismatch where a weight
    that every RoBERTa has is not there.
    """
    if checkpoint.refused and EMBEDDING not in checkpoint.weights:
        raise UnsupportedCheckpoint(tuple(dict.fromkeys(checkpoint.refused.values())))
    facts = _Facts(checkpoint, compared_bytes=None if reads_weights else GLANCE_BYTES)
    head = _chosen_head(checkpoint, wanted)
    task = _task(checkpoint, wanted, head)
    _raise_if_unsupported(facts, task, head, wanted)
    options = checkpoint.options
    return Architecture(
        family=facts.family(),
        task=task,
        head=head,
        labels=facts.labels(head),
        is_regression=bool(options.get("regression_target")) and task is Task.SEQUENCE_CLASSIFICATION,
        is_multi_label=is_multi_label(options) and task is Task.SEQUENCE_CLASSIFICATION,
        vocabulary=facts.vocabulary,
        hidden=facts.hidden,
        intermediate=facts.intermediate,
        layers=facts.layers,
        attention_heads=facts.attention_heads(wanted) or 0,
        positions=facts.positions(),
        position_kind=facts.position_kind(),
        activation=ACTIVATIONS[facts.activation],
        dropout=_share(options, "dropout", 0.1),
        attention_dropout=_share(options, "attention_dropout", 0.1),
        head_dropout=_share(options, "pooler_dropout", 0.0),
        is_tied=task is not Task.MASKED_LM or facts.is_tied,
        scales_embedding=facts.scales_embedding,
        adapters=facts.adapters.adapters,
    )


# ---- which head ------------------------------------------------------------------------------------------------------


def _chosen_head(checkpoint: FairseqCheckpoint, wanted: Wanted) -> str | None:
    heads = checkpoint.heads
    if wanted.encoder_only and wanted.head not in (None, "none"):
        raise InputError("encoder_only=True and head= exclude each other")
    if wanted.encoder_only or wanted.head == "none" or (not heads and wanted.head is None):
        return None
    if wanted.head is not None:
        if wanted.head not in heads:
            raise InputError(f"the checkpoint has no head {wanted.head}; it has {_shown(heads) or 'none'}")
        return wanted.head
    trained = [checkpoint.options.get(key) for key in ("classification_head_name", "ranking_head_name")]
    candidates = [head for head in heads if len(heads) == 1 or head in trained]
    if len(candidates) != 1:
        raise InputError(
            f"the checkpoint has several heads ({_shown(heads)}); choose one with head='NAME', or head='none'"
        )
    return candidates[0]


def beside_heads(checkpoint: FairseqCheckpoint) -> Wanted:
    """What `XLMR` loads and adds the heads to: the masked LM, or the encoder if there is no LM head."""
    return Wanted(head="none") if _has_lm_head(checkpoint) else Wanted(encoder_only=True)


def _has_lm_head(checkpoint: FairseqCheckpoint) -> bool:
    return any(name.startswith(LM_HEAD) for name in checkpoint.weights)


def _task(checkpoint: FairseqCheckpoint, wanted: Wanted, head: str | None) -> Task:
    if head is not None:
        return Task.MULTIPLE_CHOICE if _is_ranking(checkpoint, head) else Task.SEQUENCE_CLASSIFICATION
    has_lm_head = _has_lm_head(checkpoint)
    if wanted.head == "none" and not has_lm_head:
        raise InputError("the checkpoint has no masked-LM head; encoder_only=True converts its encoder")
    return Task.MASKED_LM if has_lm_head and not wanted.encoder_only else Task.ENCODER


def _is_ranking(checkpoint: FairseqCheckpoint, head: str) -> bool:
    named = {str(checkpoint.options.get(key)) for key in ("task", "criterion")}
    bias = checkpoint.weights.get(f"classification_heads.{head}.out_proj.bias")
    return bool(named & set(RANKING)) and bias is not None and bias.shape == (1,)


# ---- facts: what the tensors say, and the options where tensors cannot -----------------------------------------------


class _Facts:
    """What one checkpoint says of itself."""

    def __init__(self, checkpoint: FairseqCheckpoint, *, compared_bytes: int | None) -> None:
        self.checkpoint = checkpoint
        self.compared_bytes = compared_bytes
        self.weights = checkpoint.weights
        self.options = checkpoint.options
        self.numbers = _layer_numbers(checkpoint.weights)
        self._require([EMBEDDING])
        self.vocabulary, self.hidden = self._matrix(EMBEDDING)
        self.layers = _kept_layers(self.numbers, checkpoint.options)
        if not _of_layers(self, "fc1.weight"):
            raise WeightsMismatch(missing=[f"{E}layers.{number}.fc1.weight" for number in self.layers or (0,)])
        self.intermediate = self._matrix(_of_layers(self, "fc1.weight")[0])[0]
        self.activation = str(self.options.get("activation_fn") or "gelu")
        self.pooler_activation = str(self.options.get("pooler_activation_fn") or "tanh")
        self.scales_embedding = self.options.get("no_scale_embedding") is False
        self.adapters = FoundAdapters(self.weights, self.options, self.hidden)

    def _require(self, names: list[str]) -> None:
        missing = [name for name in names if name not in self.weights]
        if missing:
            raise WeightsMismatch(missing=missing)

    def _matrix(self, name: str) -> tuple[int, int]:
        shape = self.weights[name].shape
        if len(shape) != 2:
            raise WeightsMismatch(wrong_shape=[f"{name} {list(shape)}, expected a matrix"])
        return shape[0], shape[1]

    def has(self, name: str) -> bool:
        return any(f"{E}{name}.{part}" in self.weights for part in ("weight", "bias"))

    def labels(self, head: str | None) -> int:
        """The classes of a head, 0 without one. Raises WeightsMismatch."""
        if head is None:
            return 0
        name = f"classification_heads.{head}.out_proj.bias"
        self._require([name])
        shape = self.weights[name].shape
        if len(shape) != 1 or shape[0] > MOST_LABELS:
            raise WeightsMismatch(wrong_shape=[f"{name} {list(shape)}, expected a vector of at most {MOST_LABELS}"])
        return shape[0]

    def family(self) -> Family:
        """The family that has these norms; `norm_reason` says why none has them."""
        if self.adapters.in_file:
            return XMOD_PRE_NORM if self.has("layer_norm") else XMOD
        if not self.has("layer_norm"):
            return POST_NORM
        return PRE_NORM_WITH_EMBEDDING_NORM if self.has("layernorm_embedding") else PRE_NORM

    def norm_reason(self) -> str | None:
        if self.has("layer_norm"):
            if self.adapters.in_file and not self.has("layernorm_embedding"):
                return "there is no layer norm on the embeddings, which Transformers' X-MOD always has"
            return None
        if not self.has("layernorm_embedding"):
            return "there is neither a layer norm on the embeddings nor one at the end"
        # Before 2021-02 the option meant nothing: the encoder was post-norm whatever it said (fairseq 0.10.2,
        # transformer_sentence_encoder.py). The spelling of the embedding norm dates the checkpoint.
        if self.options.get("encoder_normalize_before") is True and not self.checkpoint.has_old_embedding_norm:
            return "pre-norm layers without a layer norm at the end (model_parallel_roberta_v1)"
        return None

    def attention_heads(self, wanted: Wanted) -> int | None:
        """Heads per layer, None if nothing says. Raises InputError if the wish is not what the options say."""
        given = self.options.get("encoder_attention_heads")
        if not isinstance(given, int) or isinstance(given, bool):
            given = self._heads_of_arch()
        if given is None or wanted.attention_heads in (None, given):
            return wanted.attention_heads if given is None else given
        raise InputError(f"the options say {given:.40g} attention heads, not {wanted.attention_heads}")

    def _heads_of_arch(self) -> int | None:
        """The heads of the arch that the options name, if all its sizes that the options do not change are here."""
        arch = ARCHES.get(str(self.options.get("arch")))
        if arch is None:
            return None
        found = (len(self.numbers), self.hidden, self.intermediate)
        told = [self.options.get(key) for key in ARCH_SIZES]
        fits = all(size is not None or one == other for size, one, other in zip(told, arch, found, strict=False))
        return arch[-1] if fits else None

    def position_kind(self) -> str:
        """One of learned (also if the table is missing), sinusoidal and none."""
        if POSITIONS in self.weights:
            return "learned"
        if self.options.get("no_token_positional_embeddings") is True:
            return "none"
        return "sinusoidal" if self.options.get("encoder_learned_pos") is False else "learned"

    def positions(self) -> int:
        """Rows of the position table: the longest text plus two. Raises WeightsMismatch, InputError."""
        if POSITIONS in self.weights:
            rows = self._matrix(POSITIONS)[0]
            if rows <= POSITION_OFFSET:
                raise WeightsMismatch(
                    wrong_shape=[f"{POSITIONS} has {rows} rows, and the first {POSITION_OFFSET} hold no text"]
                )
            return rows
        longest = self.options.get("max_positions") or self.options.get("tokens_per_sample") or BASE_MAX_POSITIONS
        if not isinstance(longest, int) or not 0 < longest <= MOST_POSITIONS:
            raise InputError("the option max_positions is not a sensible length of texts")
        return longest + POSITION_OFFSET

    @cached_property
    def is_tied(self) -> bool:
        """Whether the LM head's matrix is the embedding: by value, since storages are shared only sometimes."""
        if self.scales_embedding or self.options.get("untie_weights_roberta") is True:
            return False
        head = self.weights.get(LM_WEIGHT)
        return head is None or same_bytes(self.weights[EMBEDDING], head, at_most=self.compared_bytes)


def _layer_numbers(weights: Mapping[str, Weight]) -> tuple[int, ...]:
    found = {int(hit[1]) for name in weights if (hit := re.match(re.escape(E) + r"layers\.([0-9]{1,4})\.", name))}
    return tuple(sorted(found))


def _kept_layers(numbers: tuple[int, ...], options: Options) -> tuple[int, ...]:
    """The layers that fairseq builds; its --encoder-layers-to-keep prunes on load what the file still holds."""
    kept = options.get("encoder_layers_to_keep") or options.get("decoder_layers_to_keep")  # 0.9.0 moved it there
    if not isinstance(kept, str) or not re.fullmatch(r"[0-9]{1,4}(,[0-9]{1,4})*", kept):
        return numbers
    chosen = tuple(sorted({int(each) for each in kept.split(",")}))
    return chosen if len(chosen) < len(numbers) and set(chosen) <= set(numbers) else numbers


def _share(options: Options, name: str, default: float) -> float:
    """A dropout. Raises InputError if the option is none."""
    value = options.get(name)
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return default
    if not 0 <= value <= 1:
        raise InputError(f"the option {name} is not between 0 and 1")
    return float(value)


# ---- reasons against -------------------------------------------------------------------------------------------------


def _raise_if_unsupported(facts: _Facts, task: Task, head: str | None, wanted: Wanted) -> None:
    of_encoder = [*_encoder_reasons(facts, wanted)]
    of_head = [*_head_reasons(facts, head, wanted)] if head is not None else []
    has_lm_head = f"{LM_HEAD}dense.weight" in facts.weights
    of_lm_head = [*_lm_head_reasons(facts)] if task is Task.MASKED_LM or (of_head and has_lm_head) else []
    beside = [*_beside_reasons(facts, wanted)]
    reasons = [*of_encoder, *(of_lm_head if task is Task.MASKED_LM else of_head), *beside]
    if reasons:
        of_heads = ENCODER_ONLY_HINT if of_lm_head or not has_lm_head else NO_HEAD_HINT
        hint = BESIDE_HINT if beside else of_heads
        raise UnsupportedCheckpoint(reasons, hint="" if of_encoder else hint)


def _beside_reasons(facts: _Facts, wanted: Wanted) -> Iterator[str]:
    names = facts.checkpoint.beside
    if names and not wanted.leaves_rest:
        more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
        yield (
            "there are weights outside the encoder that neither fairseq's model nor a project known to hf_xlmr has "
            f"({_shown(names[:SHOWN_NAMES])}{more})"
        )


def _encoder_reasons(facts: _Facts, wanted: Wanted) -> Iterator[str]:
    yield from dict.fromkeys(facts.checkpoint.refused.values())
    if reason := facts.norm_reason():
        yield reason
    yield from facts.adapters.reasons()
    if facts.activation not in ACTIVATIONS:
        yield f"the activation {facts.activation}"
    if facts.layers == facts.numbers and facts.numbers != tuple(range(len(facts.numbers))):
        yield f"layers are missing (there are {', '.join(map(str, facts.numbers))})"
    yield from _head_count_reasons(facts, wanted)
    yield from _shape_reasons(facts)
    yield from _dtype_reasons(facts)


def _head_count_reasons(facts: _Facts, wanted: Wanted) -> Iterator[str]:
    heads = facts.attention_heads(wanted)
    if heads is None and facts.checkpoint.contradictions:
        yield (
            f"the options are those of another network ({'; '.join(facts.checkpoint.contradictions)}), so that nothing "
            "says the number of attention heads (attention_heads=N does, and the options are left out)"
        )
    elif heads is None:
        yield "the options do not say the number of attention heads (attention_heads=N does; base has 12, large 16)"
    elif heads < 1 or facts.hidden % heads:
        yield f"{heads:.40g} attention heads do not divide the width {facts.hidden}"


def _shape_reasons(facts: _Facts) -> Iterator[str]:
    queries = {facts.weights[name].shape for name in _of_layers(facts, "self_attn.q_proj.weight")}
    if any(len(shape) == 2 and shape[0] != facts.hidden and shape[1] == facts.hidden for shape in queries):
        yield "attention heads were pruned (AdaPrune), and Transformers keeps none of the shapes"
    shapes = {facts.weights[name].shape for name in _of_layers(facts, "fc1.weight")}
    widths = {shape[0] for shape in shapes if len(shape) == 2}
    if len(widths) > 1:
        yield f"the feed-forward layers differ in width ({', '.join(map(str, sorted(widths)))})"


def _of_layers(facts: _Facts, ending: str) -> list[str]:
    names = [f"{E}layers.{number}.{ending}" for number in facts.layers]
    return [name for name in names if name in facts.weights]


def _dtype_reasons(facts: _Facts) -> Iterator[str]:
    odd = sorted({weight.dtype for weight in facts.weights.values()} - set(FLOAT_DTYPES))
    if odd:
        yield f"weights are kept as {', '.join(odd)}"


def _lm_head_reasons(facts: _Facts) -> Iterator[str]:
    if any(name.startswith("encoder.regression_head.") for name in facts.checkpoint.dropped):
        yield "the masked-LM head of data2vec was never trained"
    if facts.activation != "gelu" and facts.activation in ACTIVATIONS:
        yield f"the masked-LM head uses {facts.activation}, and Transformers' always uses exact GELU"
    is_untied = facts.options.get("untie_weights_roberta") is True or facts.scales_embedding
    if facts.options and not is_untied and not facts.is_tied:
        yield "the masked-LM head differs from the embeddings, although the options say that they are one"


def _shown(names: Iterable[str]) -> str:
    """Names of weights or heads; an empty name, or one with spaces at its ends, is in quotes."""
    return ", ".join(f"{name:.80}" if READABLE.fullmatch(name) else f"{name!r:.80}" for name in names)


def _head_reasons(facts: _Facts, named: str, wanted: Wanted) -> Iterator[str]:
    head = _shown([named])
    oddity = head_oddity(facts.checkpoint.parts_of_heads[named])
    if oddity:
        yield f"the head {head} {oddity}"
        return
    reading = _reading(facts.checkpoint, named)
    if reading.kind is HeadKind.TOKEN:
        yield (
            f"the head {head} reads every token ({reading.reason}), and for tokens Transformers has one linear layer "
            "where this head has two, with an activation between them (XLMR answers as fairseq's code does)"
        )
    elif reading.kind is HeadKind.UNCLEAR and wanted.head != named:
        yield (
            f"nothing says whether the head {head} reads the first token, as Transformers' class does, or every token "
            f"({reading.reason}); head={named!r} says that it is the first"
        )
    if facts.pooler_activation != "tanh":
        yield f"the classification head uses {facts.pooler_activation}, and Transformers' always uses tanh"
    dense = facts.weights.get(f"classification_heads.{named}.dense.weight")
    if dense is not None and dense.shape != (facts.hidden, facts.hidden):
        yield f"the classification head is {list(dense.shape)} inside, not square, as Transformers' is"


def _reading(checkpoint: FairseqCheckpoint, head: str) -> Reading:
    """What a head reads; options that are another network's are asked too, since a task may be right all the same."""
    return kind_of_head(head, {**checkpoint.all_options, **checkpoint.options}, heads=checkpoint.heads)


def unclear_head(checkpoint: FairseqCheckpoint, head: str) -> str | None:
    """Why it is unclear what a head reads, None if something says."""
    reading = _reading(checkpoint, head)
    return reading.reason if reading.kind is HeadKind.UNCLEAR else None


def head_oddity(parts: Collection[str]) -> str | None:
    """Why the weights of a head are not those of fairseq's RobertaClassificationHead; None if they are.

    A single part that is missing is damage, not another head, and is not spoken of here.
    """
    unknown = sorted(set(parts) - {*HEAD_PARTS, *SPECTRAL})
    if unknown:
        shown = _shown(unknown[:SHOWN_NAMES])
        return f"is of code that fairseq does not have ({shown}), so that nothing says what it computes"
    if DENSE.isdisjoint(parts) or not any(part.startswith("out_proj.weight") for part in parts):
        return f"has one layer where fairseq's has two ({_shown(sorted(parts))}), and nothing says what it reads"
    if SPECTRAL & set(parts) and not set(parts) >= SPECTRAL:
        return f"is normalised by its spectrum in another way than fairseq's: it has {_shown(sorted(parts))}"
    return None
