"""Extracts features of any number of texts: tokenizes in windows, computes without padding, returns them in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from enum import Enum
from functools import cache
from itertools import pairwise, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypedDict, TypeGuard, TypeVar

import numpy as np
import torch

from hf_xlmr.errors import InputError
from hf_xlmr.features.background import prefetched
from hf_xlmr.features.chunks import SHORTEST, OnLong, Window, WindowMaker, rejoined
from hf_xlmr.features.packed.encoder_weights import EncoderWeights, TextEncoder
from hf_xlmr.features.packed.int8_linear import raise_if_no_int8
from hf_xlmr.features.packed.int8_network import quality, quantized_network, sample_inputs
from hf_xlmr.features.packed.int8_quality import INT8, LEAST_COSINE, Int8Quality, TooFarFromFloat32
from hf_xlmr.features.packed.kernel_choice import remembered_kernel
from hf_xlmr.features.packed.linear_kernels import ACTIVATIONS, KERNELS, offered_kernels
from hf_xlmr.features.packed.packed_network import PackedInputs, PackedNetwork
from hf_xlmr.features.packing import PackedBatch, pack
from hf_xlmr.features.pooling import Pooling, pooled_batch, pooled_part, pooled_parts
from hf_xlmr.features.store.files import column_names
from hf_xlmr.hub_interface.languages import Languages
from hf_xlmr.model.precision import dtype_name, native_dtype, wanted_dtype, without_emulation
from hf_xlmr.progress import SILENT, Progress

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from hf_xlmr.hub_interface.xlmr import XLMR

__all__ = ["FeatureExtractor", "Features"]

Choice = TypeVar("Choice", bound=Enum)
Step = TypeVar("Step")

TOKENS_PER_WINDOW: Final = 1 << 19
TOKENS_PER_WINDOW_UNPOOLED: Final = 1 << 16  # the vector of each is kept in memory
AUTO: Final = "auto"
KEPT_BYTES: Final = 1 << 27  # the most bytes of the vectors of one text's tokens
TOKENS_PER_BATCH: Final = {"cpu": 2048, "cuda": 16384}
MOST_TOKENS: Final = 1 << 20  # in a batch: XLM-R base has 12 GB of intermediate values for so many


@dataclass(frozen=True)
class Features:
    """The features of some texts, in order."""

    layers: Mapping[int, np.ndarray | list[np.ndarray]]
    """The features by layer (0 is the embeddings): (texts, width) in float32, or unpooled (tokens, width) per text."""
    spans: list[np.ndarray] | None
    """Unpooled: the first character and the end of each text's tokens, (tokens, 2); 0, 0 for `<s>` and `</s>`."""
    rows: list[Any]
    """The number of each text, from 0, or the row that it was passed with."""
    tokens: int
    """The number of tokens that were computed."""
    cut: list[Any]
    """The numbers of the texts that were truncated, or the rows that they were passed with."""

    @property
    def texts(self) -> int:
        """The number of texts."""
        return len(self.rows)

    @property
    def truncated(self) -> int:
        """The number of texts that were truncated."""
        return len(self.cut)


class ExtractorOptions(TypedDict, total=False):
    """The options of FeatureExtractor, which describes them."""

    layers: int | Sequence[int]
    pool: Pooling | str
    emulate_dtype: bool
    tokens_per_batch: int | None
    max_length: int | None
    on_long: OnLong | str
    column: str
    language: str | None
    language_column: str | None
    kernel: str | None
    sample: Sequence[str] | None
    sample_languages: Sequence[str] | None
    least_cosine: float


class FeatureExtractor:
    """XLM-R's features of any number of texts, as `XLMR.extract_features` gives them one by one, at full speed.

    Call it on a list of texts, iterate over `stream`, or hand it to `datasets.Dataset.map(batched=True)` or
    `ray.data.Dataset.map_batches`, whose batches get a column `features`.
    """

    def __init__(
        self,
        xlmr: XLMR | TextEncoder,
        *,
        layers: int | Sequence[int] = -1,
        pool: Pooling | str = Pooling.mean,
        dtype: torch.dtype | str | None = None,
        emulate_dtype: bool = False,
        tokens_per_batch: int | None = None,
        max_length: int | None = None,
        on_long: OnLong | str = OnLong.truncate,
        column: str = "text",
        language: str | None = None,
        language_column: str | None = None,
        kernel: str | None = None,
        sample: Sequence[str] | None = None,
        sample_languages: Sequence[str] | None = None,
        least_cosine: float = LEAST_COSINE,
    ) -> None:
        """Prepare the network of `xlmr` for texts laid end to end; `xlmr` itself may be deleted afterwards.

        `from_pretrained` starts faster where nothing else needs an `XLMR`.

        `layers` are hidden states by index: 0 the embeddings, -1 the features. `dtype` is by default the model's;
        "auto" is bfloat16 if the device multiplies it natively. If the device has no instructions for a half type,
        float32 replaces it, with a warning in the log, unless `emulate_dtype`. A text may have `max_length` tokens,
        `<s>` and `</s>` included, by default the model's most. `column` is the texts' column in batches of datasets.
        `language` is that of all texts of an X-MOD that name none, such as sw_KE, by default the model's usual one, and
        `language_column` their column in batches of datasets. `kernel` names one of linear_kernels.KERNELS that the
        device can run, instead of measuring which is fastest. `dtype` "int8" multiplies 8-bit integers on a CPU, all
        else stays in float32. The first 64 texts of `sample`, by default sentences in 16 languages, determine how
        inputs are scaled, and how near the vectors are to float32's (`int8`); `sample_languages` are theirs. Language
        adapters stay in float32. Raises InputError, TooFarFromFloat32 if a cosine is below `least_cosine`.
        """
        model = xlmr if isinstance(xlmr, TextEncoder) else _encoder_of(xlmr)
        self.device = model.weights.device
        self.pooling = _member(Pooling, "pool", pool)
        self.on_long = _member(OnLong, "on_long", on_long)
        self.column = column
        self.languages = Languages.of(model.weights.adapters)
        self.language = _language(self.languages, language, language_column)
        self.language_column = language_column
        self.tokens_per_batch = _tokens_per_batch(tokens_per_batch, self.device)
        self.is_one_layer = _is_number(layers)
        self.layers = _numbers(layers, model.weights.layers + 1)
        self.int8: Int8Quality | None = None
        _raise_if_not_computed(model.weights.activation)
        if dtype == INT8:
            self.network, self.int8 = self._int8(model, sample, kernel, languages=sample_languages)
            if not self.int8.lowest >= _cosine(least_cosine):  # a NaN is refused too
                raise TooFarFromFloat32(self.int8, least_cosine)
        else:
            chosen = _dtype(model.weights, dtype, emulate=emulate_dtype)
            self.network = _network(model.weights, chosen, kernel, self.tokens_per_batch, most=max(self.layers))
        self.texts = WindowMaker(
            model.tokenizer,
            max_length=_within(max_length, "max_length", least=SHORTEST, most=model.weights.longest_text),
            on_long=self.on_long,
            most_tokens=self._most_tokens(),
            with_spans=self.is_unpooled,
            most_kept=KEPT_BYTES // (4 * self.width * len(self.layers)) if self.is_unpooled else None,
            threads=torch.get_num_threads(),
            languages=self.languages,
            language=self.language,
        )

    @classmethod
    def from_pretrained(
        cls,
        model_name_or_path: str | Path,
        checkpoint_file: str | None = None,
        *,
        revision: str | None = None,
        dtype: torch.dtype | str = torch.float32,
        device: torch.device | str | int | None = None,
        device_map: str | Mapping[str, str | int] | None = None,
        max_memory: Mapping[str | int, str | int | None] | None = None,
        progress: Progress = SILENT,
        **options: Unpack[ExtractorOptions],
    ) -> FeatureExtractor:
        """Load what `XLMR.from_pretrained` loads, for features alone: without Transformers' classes, so in less time.

        The first layers compute while the last are still read. On a CPU the embeddings stay mapped from the folder's
        files, which may not be overwritten in place meanwhile. `dtype` "auto" is what the device multiplies natively,
        as in `extract`; `options` are those of the class. Raises InputError, IntegrityError.
        """
        from hf_xlmr.hub_interface.loading import find_model
        from hf_xlmr.hub_interface.network import Placing, plan_loading

        is_int8, is_auto = dtype == INT8, dtype == AUTO
        given = torch.float32 if is_int8 or is_auto else dtype
        placing = Placing(dtype=given, device=device, device_map=device_map, max_memory=max_memory)
        files = find_model(model_name_or_path, checkpoint_file=checkpoint_file, revision=revision, progress=progress)
        plan = plan_loading(files, placing)
        wanted = native_dtype(plan.main) if is_auto else getattr(torch, plan.dtype)
        if not options.get("emulate_dtype"):
            wanted = without_emulation(wanted, plan.main)
        model = TextEncoder.of_files(files, plan_loading(files, replace(placing, dtype=wanted)))
        return cls(model, dtype=INT8 if is_int8 else None, **options)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the computation, int8 if only the layers' products are in it."""
        return torch.int8 if self.int8 else self.network.dtype

    @property
    def kernel(self) -> str:
        """The kernel that multiplies matrices: a name of linear_kernels.KERNELS."""
        return self.network.kernel

    @property
    def width(self) -> int:
        """The number of components of a vector."""
        return self.network.width

    @property
    def is_unpooled(self) -> bool:
        """Whether each token keeps its vector."""
        return self.pooling is Pooling.none

    def __call__(self, texts: Sequence[str] | Mapping[str, object], languages: Sequence[str] | None = None) -> Any:
        """The features of a list of texts, or a batch of a dataset with its features.

        `languages` are those of the texts of a list, for an X-MOD. A list gives (texts, width) in float32, unpooled a
        list of (tokens, width); several layers give a dictionary by number. A mapping of columns gives a dictionary of
        these and `features` (`features_0` and so on for several layers). Raises InputError, TextTooLong.
        """
        if isinstance(texts, Mapping):
            if languages is not None:
                raise InputError("languages= are those of a list; those of a batch are in its language_column=")
            return self._with_features(texts)
        found = _joined(list(self.windows(_sequence(texts), languages)), self)
        return found[self.layers[0]] if self.is_one_layer else found

    def stream(self, texts: Iterable[str], languages: Iterable[str] | None = None) -> Iterator[Any]:
        """Yield the features of any number of texts, one by one in order: (width,), unpooled (tokens, width).

        Several layers give a dictionary by number. Raises what `windows` raises.
        """
        for window in self.windows(_iterable(texts), languages):
            for index in range(window.texts):
                row = {number: values[index] for number, values in window.layers.items()}
                yield row[self.layers[0]] if self.is_one_layer else row

    def windows(self, texts: Iterable[str], languages: Iterable[str] | None = None) -> Iterator[Features]:
        """Yield the features of any number of texts, some thousand at a time, in order, in constant memory.

        `languages` are those of the texts, for an X-MOD; texts of a language are computed together. A thread tokenizes
        texts ahead of the computation. Raises InputError, TextTooLong, BadText for a language that the model lacks.
        """
        named = enumerate(texts) if languages is None else _with_languages(texts, languages)
        yield from self.computed(self.texts.windows(named))

    def computed(self, steps: Iterable[Window | Step]) -> Iterator[Features | Step]:
        """Yield the features of each window, and other items unchanged, in order.

        Another thread iterates over `steps`, ahead of the computation, and hands its items on; no item is used by two
        threads at once. Raises what `steps` raises.
        """
        ahead = 1 if self.device.type == "cuda" else 0
        pending: deque[_Computation | Step] = deque()
        with closing(prefetched(steps, depth=2)) as tokenized:
            for step in tokenized:
                pending.append(self._computed(step) if isinstance(step, Window) else step)
                if len(pending) > ahead:
                    yield self._finished(pending.popleft())
        while pending:
            yield self._finished(pending.popleft())

    def _finished(self, step: _Computation | Step) -> Features | Step:
        return self._features(step) if isinstance(step, _Computation) else step

    def _with_features(self, batch: Mapping[str, object]) -> dict[str, object]:
        for option, column in (("column", self.column), ("language_column", self.language_column)):
            if column is not None and column not in batch:
                raise InputError(f"the batch has no column {column!r} ({option}=); it has {', '.join(map(str, batch))}")
        languages = None if self.language_column is None else _sequence(batch[self.language_column])
        found = _joined(list(self.windows(_sequence(batch[self.column]), languages)), self)
        columns = column_names(self.layers)
        named = {columns[number]: values for number, values in found.items()}
        return {**batch, **named}

    def _most_tokens(self) -> int:
        """The most tokens of a window: fewer if the vectors of all its tokens are kept, and for several layers."""
        if self.is_unpooled or self.on_long is OnLong.split:
            return TOKENS_PER_WINDOW_UNPOOLED // len(self.layers)
        return TOKENS_PER_WINDOW

    def _int8(
        self,
        model: TextEncoder,
        sample: Sequence[str] | None,
        kernel: str | None,
        *,
        languages: Sequence[str] | None,
    ) -> tuple[PackedNetwork, Int8Quality]:
        """The network in int8, and how near its vectors of the sample are to float32's. Raises InputError."""
        raise_if_no_int8(self.device)
        if kernel not in (None, INT8):
            raise InputError(f"kernel={kernel!r:.40}: products in int8 have a kernel of their own, leave it out")
        sample = None if sample is None else _sequence(sample)
        if sample == []:
            raise InputError("sample: give at least one text, or leave it out")
        numbers = self._sample_numbers(sample, languages)
        inputs = sample_inputs(model.tokenizer, sample, self.device, languages=numbers)
        network, found, losses = quantized_network(model.weights, inputs, layers=self.layers)

        def vectors(values: torch.Tensor) -> torch.Tensor:
            return values if self.is_unpooled else pooled_batch(values, inputs.batch, self.pooling)

        cosines = [
            torch.nn.functional.cosine_similarity(vectors(exact), vectors(near)) for exact, near in found.values()
        ]
        return network, quality(losses, cosines)

    def _sample_numbers(self, sample: Sequence[str] | None, languages: Sequence[str] | None) -> list[int]:
        """The numbers of the languages of a sample, or of all its texts. Raises InputError."""
        if self.languages is None:
            return [0]
        if languages is None:
            return [self.languages.number(self.language)]
        if sample is None or len(sample) != len(languages):
            raise InputError("sample_languages: give one for each text of sample=")
        return list(map(self.languages.number, languages))

    # ---- sequences to features

    def _computed(self, window: Window) -> _Computation:
        """Start the computation of a window; on CUDA this does not wait for results."""
        size, languages = self.tokens_per_batch, window.languages
        batches = list(pack(window.lengths, tokens_per_batch=size, languages=languages))
        rows = window.tokens if self.is_unpooled else len(window.lengths)
        fetched = {number: _Fetch(rows) for number in self.layers}
        starts = window.starts
        for batch in batches:
            inputs = PackedInputs(batch, batch.of(window.ids, starts), self.device)
            for number, values in self.network.hidden_states(inputs, layers=self.layers).items():
                fetched[number].add(self._reduced(values, batch, window))
        return _Computation(window, batches, fetched)

    def _reduced(self, values: torch.Tensor, batch: PackedBatch, window: Window) -> torch.Tensor:
        """Pool `values`, (tokens, width), to (sequences, width), one vector each; unpooled, return them all."""
        if self.is_unpooled:
            return values.float()
        if not window.has_pieces(batch.texts):
            return pooled_batch(values, batch, self.pooling)
        vectors = []
        for each, (start, end) in self._places(batch):
            part = values[start + window.starts_within(each) : end - window.ends_within(each)]
            vectors.append(pooled_part(part, self.pooling))
            if window.owners[each] not in window.pieces:
                vectors[-1] = pooled_parts(vectors[-1][None], self.pooling, tokens=end - start)
        return torch.stack(vectors)

    @staticmethod
    def _places(batch: PackedBatch) -> Iterator[tuple[int, tuple[int, int]]]:
        """The sequences of a batch, each with its first token and the one after its last."""
        return zip(batch.texts.tolist(), pairwise(batch.boundaries.tolist()), strict=True)

    def _features(self, computation: _Computation) -> Features:
        """The features of a computed window, in the order of its texts."""
        window = computation.window
        spans = None if window.spans is None else [np.array(each, np.int32) for each in window.spans]
        return Features(
            layers={number: self._in_order(computation, number) for number in self.layers},
            spans=spans,
            rows=window.rows,
            tokens=window.tokens,
            cut=window.cut,
        )

    def _in_order(self, computation: _Computation, layer: int) -> Any:
        """One layer's features in the order of the texts: (texts, width), unpooled a list of (tokens, width)."""
        window, found = computation.window, computation.layers[layer].parts()
        batches = zip(computation.batches, found, strict=True)
        if self.is_unpooled:
            parts = {each: values[a:b] for batch, values in batches for each, (a, b) in self._places(batch)}
            firsts = enumerate(window.firsts.tolist())
            sequences = [window.pieces.get(number, range(first, first + 1)) for number, first in firsts]
            return [rejoined([parts[each] for each in some]).numpy() for some in sequences]
        rows = np.empty((len(window.lengths), self.width), np.float32)
        for batch, values in batches:
            rows[batch.texts] = values.numpy()
        return self._of_texts(rows, window) if window.pieces else rows

    def _of_texts(self, rows: np.ndarray, window: Window) -> np.ndarray:
        """The vectors of the texts, (texts, width), from those of their sequences."""
        vectors: np.ndarray = rows[window.firsts]
        for number, each in window.pieces.items():
            parts = torch.from_numpy(rows[each.start : each.stop])
            tokens = int(window.lengths[each.start : each.stop].sum()) - 2 * (len(each) - 1)
            vectors[number] = pooled_parts(parts, self.pooling, tokens=tokens)
        return vectors


class _Computation(NamedTuple):
    """A window, its batches, and the layers that are being copied to the host."""

    window: Window
    batches: list[PackedBatch]
    layers: dict[int, _Fetch]


class _Fetch:
    """The rows of a layer, batch by batch, which are copied to the host while the device computes the next batch."""

    def __init__(self, rows: int) -> None:
        """Expect `rows` rows of all batches together."""
        self._rows = rows
        self._parts: list[torch.Tensor] = []
        self._rest: torch.Tensor | None = None
        self._event: torch.cuda.Event | None = None

    def add(self, values: torch.Tensor) -> None:
        """Begin to copy the rows of the next batch, (rows, width) in float32."""
        self._parts.append(self._copied(values) if values.is_cuda else values)

    def parts(self) -> list[torch.Tensor]:
        """Wait for the copies and return the rows of each batch."""
        if self._event is not None:
            self._event.synchronize()
        return self._parts

    def _copied(self, values: torch.Tensor) -> torch.Tensor:
        if self._rest is None:
            self._rest = torch.empty(self._rows, values.shape[-1], pin_memory=True)
        part, self._rest = self._rest.tensor_split([len(values)])
        stream = _copying_stream(values.device)
        stream.wait_stream(torch.cuda.current_stream(values.device))
        with torch.cuda.stream(stream):
            part.copy_(values, non_blocking=True)
            self._event = stream.record_event()
        values.record_stream(stream)  # its memory is used again only after the copy
        return part


@cache
def _copying_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream that copies from `device` to the host."""
    make: Any = torch.cuda.Stream
    stream: torch.cuda.Stream = make(device)
    return stream


def _joined(windows: Sequence[Features], extractor: FeatureExtractor) -> dict[int, Any]:
    """The features of several windows, by layer."""
    is_pooled = not extractor.is_unpooled
    empty = np.zeros((0, extractor.width), dtype=np.float32)
    joined: dict[int, Any] = {}
    for number in extractor.layers:
        parts: list[Any] = [window.layers[number] for window in windows]
        joined[number] = np.concatenate(parts or [empty]) if is_pooled else [row for part in parts for row in part]
    return joined


def _iterable(texts: Iterable[str]) -> Iterable[str]:
    """`texts` as a sequence. Raises InputError for one text and for a table."""
    if isinstance(texts, (str, bytes)):
        raise InputError("give a list of texts, not one text")
    has_columns = hasattr(texts, "columns") or hasattr(texts, "column_names") or isinstance(texts, Mapping)
    if has_columns or not isinstance(texts, Iterable):
        raise InputError(
            f"give a sequence of texts, or a dictionary of columns, not {type(texts).__name__}; of a table give the "
            "column of the texts"
        )
    return texts


def _with_languages(texts: Iterable[str], languages: Iterable[str]) -> Iterator[tuple[int, str, str]]:
    """The number, the text and the language of each text. Raises InputError if there are more of one than of others."""
    if isinstance(languages, str):
        raise InputError(f"languages={languages!r:.40}: give one for each text; language= is for all")
    ends = object()
    for number, (text, language) in enumerate(zip_longest(texts, languages, fillvalue=ends)):
        if text is ends or language is ends:
            raise InputError(
                f"{'texts' if text is ends else 'languages'} end after {number}: give a language for each text"
            )
        yield number, text, language  # type: ignore[misc]


def _sequence(texts: Any) -> list[str]:
    """`values` as a list; columns of pyarrow are accepted too. Raises InputError."""
    if isinstance(texts, (set, frozenset)):
        raise InputError("give a list of texts: a set has no order")
    to_list = getattr(_iterable(texts), "to_pylist", None)
    return list(texts if to_list is None else to_list())


# ---- options ---------------------------------------------------------------------------------------------------------


def _encoder_of(xlmr: XLMR) -> TextEncoder:
    """The encoder and the tokenizer of `xlmr`. Raises InputError."""
    weights = EncoderWeights.of_network(xlmr.model.base, device=xlmr.device, longest_text=xlmr.max_positions)
    return TextEncoder(weights, xlmr.tokenizer)


def _language(languages: Languages | None, language: str | None, column: str | None) -> str | None:
    """The language of texts that name none, by the name of its adapter; None if there is none. Raises InputError."""
    given = {name: each for name, each in {"language": language, "language_column": column}.items() if each is not None}
    if languages is None and given:
        told = ", ".join(f"{name}={each!r:.40}" for name, each in given.items())
        raise InputError(f"{told}: this model is not an X-MOD and has no languages: leave it out")
    if languages is None or (language is None and languages.usual is None):
        return None
    return languages.name(language)


def _dtype(weights: EncoderWeights, dtype: torch.dtype | str | None, *, emulate: bool) -> torch.dtype:
    """The dtype of the computation. Raises InputError."""
    wanted = weights.dtype if dtype is None else wanted_dtype(dtype, weights.device)
    return wanted if emulate else without_emulation(wanted, weights.device)


def _raise_if_not_computed(activation: str) -> None:
    known = [name for name in ACTIVATIONS if name != "none"]
    if activation not in known:
        raise InputError(f"hidden_act is {activation!r:.40}: features are computed with {', '.join(known)}")


def _cosine(value: object) -> float:
    """`value`, the lowest cosine that is allowed. Raises InputError."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not -1 <= value <= 1:
        raise InputError(f"least_cosine={value!r:.40}: give a number from -1 to 1")
    return value


def _network(
    weights: EncoderWeights, dtype: torch.dtype, kernel: str | None, tokens: int, *, most: int
) -> PackedNetwork:
    """The network for packed batches, up to layer `most`. Raises InputError."""
    offered = offered_kernels(dtype, weights.device)
    if kernel not in (None, *offered):
        is_known = kernel in [*KERNELS]  # a damaged manifest may name what cannot be looked up in a mapping
        why = f"the processor cannot run it in {dtype_name(dtype)}; " if is_known else ""
        raise InputError(f"kernel={kernel!r:.40}: {why}give one of {', '.join(offered)}")
    chosen = kernel or remembered_kernel(
        weights.hidden,
        weights.intermediate,
        tokens=tokens,
        dtype=dtype,
        device=weights.device,
        activation=weights.activation,
    )
    return PackedNetwork(weights, dtype=dtype, kernel=chosen, most=most)


def _member(choices: type[Choice], option: str, value: Choice | str) -> Choice:
    """The member of `choices` with this value. Raises InputError."""
    try:
        return choices(value)
    except ValueError:
        known = ", ".join(str(each.value) for each in choices)
        raise InputError(f"{option}={value!r:.40}: give one of {known}") from None


def _within(value: int | None, option: str, *, least: int, most: int) -> int:
    """`value`, or `most` for None. Raises InputError."""
    if value is None:
        return most
    if not _is_number(value) or not least <= value <= most:
        raise InputError(f"{option}={value}: give a number from {least} to {most}")
    return value


def _tokens_per_batch(tokens: int | None, device: torch.device) -> int:
    """`tokens`, or the device's default for None. Raises InputError."""
    if tokens is None:
        return TOKENS_PER_BATCH.get(device.type, TOKENS_PER_BATCH["cpu"])
    if not _is_number(tokens) or not 1 <= tokens <= MOST_TOKENS:
        raise InputError(f"tokens_per_batch={tokens!s:.40}: give a number of tokens from 1 to {MOST_TOKENS:,}")
    return tokens


def _is_number(value: object) -> TypeGuard[int]:
    """Whether `value` is an integer, also NumPy's, but not a bool."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _numbers(layers: int | Sequence[int], count: int) -> tuple[int, ...]:
    """The numbers of `layers`, counted from 0, in the same order. Raises InputError."""
    given = (layers,) if _is_number(layers) else tuple(layers) if isinstance(layers, Sequence) else ()
    if not given or any(not _is_number(each) or not -count <= each < count for each in given):
        shown = ",".join(map(str, given)) if given else repr(layers)
        raise InputError(f"layers={shown}: the hidden states are numbered 0 (embeddings) to {count - 1} (features)")
    numbers = tuple(int(each) % count for each in given)
    if len(set(numbers)) < len(numbers):
        raise InputError(f"layers={layers}: the same layer is named twice")
    return numbers
