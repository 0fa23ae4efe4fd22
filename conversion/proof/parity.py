"""The proof of a conversion: every byte compared, and the outputs of plain Transformers with those of the reference."""

from __future__ import annotations

import ctypes
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from hashlib import sha256
from itertools import cycle, islice
from math import sqrt
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any, Final

from hf_xlmr.conversion.checkpoint.opened_checkpoint import FairseqCheckpoint
from hf_xlmr.conversion.checkpoint.weights import Cast, Weight
from hf_xlmr.conversion.mapping.architecture import Architecture
from hf_xlmr.conversion.mapping.plan import WeightPlan
from hf_xlmr.conversion.mapping.preparation import Prepared
from hf_xlmr.conversion.output.safetensors_writer import DTYPE_NAMES
from hf_xlmr.conversion.proof.layerwise import WeightFiles, layerwise_network, tall_product
from hf_xlmr.conversion.proof.reference import EPS, Reference
from hf_xlmr.conversion.proof.tokenizer_parity import EXACT_CLASSES, TextClass, compare_tokenizers
from hf_xlmr.conversion.source.slices import FileSlice
from hf_xlmr.conversion.tokenizer_json.vocabulary import write_tokenizer
from hf_xlmr.errors import HfXlmrError, IntegrityError
from hf_xlmr.files.fsync import room_told
from hf_xlmr.files.json_files import json_object
from hf_xlmr.model.families import Task
from hf_xlmr.model.safetensors_files import TensorEntry, file_header, shards_of
from hf_xlmr.progress import SILENT, Progress, ProgressTask
from hf_xlmr.tokenizer.tokenization import ExactTokenizer

if TYPE_CHECKING:
    import torch

__all__ = [
    "Behaviour",
    "FileHashes",
    "ParityError",
    "ParityReport",
    "StepDifference",
    "compare_behaviour",
    "compare_companions",
    "exact_tokenizer",
    "verify_folder",
]

SENTENCEPIECE: Final = "sentencepiece.bpe.model"
LABELS: Final = "label/dict.txt"
TOLERANCE: Final = 2e-5  # of the largest value (at least 1): float32 rounding over many layers, far below any mistake
COARSE_TOLERANCE: Final = 1e-2  # if values that fairseq computes as it runs are kept in half precision
HASHED_AT_ONCE: Final = 1 << 23  # bytes; the interpreter is asked for between blocks, and may be busy
COMPARED_AT_ONCE: Final = 8  # weights: while some wait for files, or for the interpreter, others are compared
FIGURED_AT_ONCE: Final = 1 << 15  # numbers, which stay in the processor's cache, and are too few for several threads
PAD: Final = 1
UNK: Final = 3
NEVER_CHOSEN: Final = 1000.0  # below every bias of fairseq's
ADDED_SINCE: Final = {"position_embedding_type": "absolute"}  # fields that folders of before lack
SEED: Final = 20191105
SHOWN: Final = 8
TEXTS_PER_CLASS: Final = 400
SHORT_LENGTHS: Final = (3, 8, 12, 16)
LANGUAGE_LENGTH: Final = 8
SCRIPTS: Final = (
    "The capital of France is Paris.",
    "你好，世界",
    "नमस्ते दुनिया",
    "مرحبا بالعالم",
    "Привет, мир! Ёлка",
    "こんにちは、ガラス",
    "สวัสดีชาวโลก",
)


class ParityError(IntegrityError):
    """The output differs from the source; `where` names the first weight or step that does."""

    def __init__(self, where: str, message: str) -> None:
        """Carry `where` the difference begins."""
        self.where = where
        super().__init__(message)


@dataclass(frozen=True)
class StepDifference:
    """How far plain Transformers is from the reference at one step, over all places where fairseq defines a value."""

    name: str
    largest: float
    """The largest absolute difference."""
    relative: float
    """The same, as a part of the largest value of the step (at least 1)."""
    cosine: float
    """The cosine of all values as one vector; 1 if they agree."""


@dataclass(frozen=True)
class ParityReport:
    """What was compared, and how it came out."""

    weights_compared: int
    bytes_compared: int
    tokens: int
    largest: float
    """The largest relative difference of all steps."""
    tolerance: float
    steps: tuple[StepDifference, ...]
    tokenizer: tuple[TextClass, ...]
    """How the exported tokenizer did on each class of texts; empty if there is none."""
    source_sha256: Mapping[str, str]
    output_sha256: Mapping[str, str]
    languages: Mapping[str, float] = field(default_factory=dict)
    """Of an X-MOD: the largest relative difference with the adapters of each language."""


def verify_folder(
    prepared: Prepared, folder: Path, *, hashes: FileHashes | None = None, progress: Progress = SILENT
) -> ParityReport:
    """Prove that `folder` holds what was prepared. Raises ParityError if they differ, IntegrityError.

    `hashes` are those of the checkpoint and the folder, if they are taken already.
    """
    if hashes is None:
        with FileHashes(prepared.checkpoint, folder) as hashes:
            return verify_folder(prepared, folder, hashes=hashes, progress=progress)
    plan = prepared.plan
    _compare_config(prepared, folder)
    _compare_index(folder)
    with progress.task("comparing bytes", total=plan.nbytes) as task:
        _compare_bytes(plan, folder, task)
    exact = exact_tokenizer(prepared)
    behaviour = compare_behaviour(prepared, folder, exact, progress=progress)
    return ParityReport(
        weights_compared=len(plan.weights),
        bytes_compared=plan.nbytes,
        tokens=behaviour.tokens,
        largest=behaviour.largest,
        tolerance=behaviour.tolerance,
        steps=behaviour.steps,
        tokenizer=() if exact is None else _compare_tokenizer(prepared, exact, folder),
        source_sha256=hashes.source,
        output_sha256=hashes.output,
        languages=behaviour.languages,
    )


class FileHashes:
    """The SHA-256 of a checkpoint's files and of a folder's files of weights, taken while other things are compared."""

    def __init__(self, checkpoint: FairseqCheckpoint, folder: Path) -> None:
        """Begin to read the files, until the block ends that this is the context of."""
        weights = (FileSlice.whole(path) for path in sorted(folder.glob("*.safetensors")))
        self._is_over, self._thread = Event(), ThreadPoolExecutor(1, thread_name_prefix="hashes")
        self._source = self._thread.submit(self._taken, checkpoint.files.checkpoint)
        self._output = self._thread.submit(self._taken, tuple(weights))

    @property
    def source(self) -> dict[str, str]:
        """Those of the checkpoint's files, by their names. Raises OSError."""
        return self._source.result()

    @property
    def output(self) -> dict[str, str]:
        """Those of the folder's files, by their names. Raises OSError."""
        return self._output.result()

    def _taken(self, parts: Iterable[FileSlice]) -> dict[str, str]:
        return {Path(part.name).name: self._sha256(part.blocks(HASHED_AT_ONCE)) for part in parts}

    def _sha256(self, blocks: Iterator[bytes]) -> str:
        summed = sha256()
        for block in blocks:
            if self._is_over.is_set():
                break
            summed.update(block)
        return summed.hexdigest()

    def __enter__(self) -> FileHashes:
        """Give this object, whose files are read until the block ends."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Stop, wherever the reading is."""
        self._is_over.set()
        self._thread.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class Behaviour:
    """How plain Transformers computes compared with the reference."""

    steps: tuple[StepDifference, ...]
    tokens: int
    tolerance: float
    languages: Mapping[str, float] = field(default_factory=dict)
    """Of an X-MOD: the largest relative difference with the adapters of each language."""

    @property
    def largest(self) -> float:
        """The largest relative difference of all steps."""
        return max(step.relative for step in self.steps)


def compare_behaviour(
    prepared: Prepared,
    folder: Path,
    exact: ExactTokenizer | None,
    *,
    has_pooler: bool = False,
    has_rows: bool = True,
    progress: Progress = SILENT,
) -> Behaviour:
    """Compare the outputs of plain Transformers for `folder` with those of the reference for what was prepared.

    `exact` is what `exact_tokenizer` gives for it; `has_pooler` says that the folder of an encoder holds a pooler,
    `has_rows` that its embedding has fairseq's rows as they are, and copies of that of `<unk>` after them. Raises
    ParityError if they depart, IntegrityError.
    """
    probes = _probes(prepared.architecture, exact)
    bare = {"add_pooling_layer": False} if prepared.architecture.task is Task.ENCODER and not has_pooler else {}
    steps, languages = _compare_behaviour(prepared, folder, probes, progress, bare=bare, has_rows=has_rows)
    tolerance = COARSE_TOLERANCE if prepared.plan.rounded else TOLERANCE
    for step in steps:
        if step.relative != step.relative:
            raise ParityError(
                step.name,
                f"at {step.name} fairseq's own outputs are not numbers (NaN): the checkpoint is broken or overflows; "
                "verify=False converts it as it is",
            )
        if not step.relative <= tolerance:
            wrong = [language for language, relative in languages.items() if not relative <= tolerance]
            raise ParityError(
                step.name,
                f"the outputs depart from fairseq's at {step.name} by {step.relative:.2e} of the largest value, and "
                f"rounding explains only {tolerance:.0e}{_of_languages(wrong, languages)}",
            )
    tokens = sum(int((probe.ids != PAD).sum()) for probe in probes)
    return Behaviour(steps, tokens=tokens, tolerance=tolerance, languages=languages)


def _of_languages(wrong: Sequence[str], languages: Collection[str]) -> str:
    """In which languages of an X-MOD the outputs depart; empty where it is not a question of languages."""
    if not wrong or len(wrong) == len(languages):
        return ""
    more = f" and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
    return f" (with the adapters of {', '.join(wrong[:SHOWN])}{more})"


# ---- configuration and tokenizer -------------------------------------------------------------------------------------


def _compare_config(prepared: Prepared, folder: Path) -> None:
    """Compare config.json with what was prepared, and with what fairseq fixes in its code."""
    given = json_object(folder / "config.json")
    if unknown := sorted(set(given) - set(prepared.config)):
        raise ParityError(f"config.json: {unknown[0]}", f"config.json says {unknown[0]}, which convert does not write")
    expected = {**prepared.config, "layer_norm_eps": EPS, "pad_token_id": PAD, "type_vocab_size": 1}
    for key, value in expected.items():
        if given.get(key, ADDED_SINCE.get(key)) != value:
            raise ParityError(f"config.json: {key}", f"config.json says {key} is {given.get(key)!r}, not {value!r}")


def exact_tokenizer(prepared: Prepared) -> ExactTokenizer | None:
    """The rule of fairseq itself, from the source's files; None if the source or the output has no tokenizer."""
    files = prepared.checkpoint.files
    if prepared.vocabulary.tokenizer is None or files.sentencepiece is None:
        return None
    return ExactTokenizer(prepared.vocabulary.names.with_mask(), files.sentencepiece.read())


def _compare_tokenizer(prepared: Prepared, exact: ExactTokenizer, folder: Path) -> tuple[TextClass, ...]:
    """Compare ids on generated texts. Raises ParityError if ordinary texts differ without a reason."""
    _compare_tokenizer_files(prepared, folder)
    with _quiet_transformers():
        classes = compare_tokenizers(prepared.vocabulary, exact, folder, count=TEXTS_PER_CLASS)
    for each in classes:
        if each.name in EXACT_CLASSES and each.unexplained:
            raise ParityError(
                f"tokenizer: {each.name}",
                f"the tokenizer gives other ids than fairseq for {each.unexplained} of {each.texts} texts of the class "
                f"{each.name}, such as {each.example!r:.80}",
            )
    return tuple(classes)


def _compare_tokenizer_files(prepared: Prepared, folder: Path) -> None:
    """Compare the tokenizer with what convert writes for the source; named is the first part that differs."""
    with tempfile.TemporaryDirectory() as expected:
        with room_told(Path(tempfile.gettempdir())):
            write_tokenizer(prepared.vocabulary, Path(expected), model_max_length=prepared.architecture.longest_text)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            if not (folder / name).is_file():
                raise ParityError(f"tokenizer: {name}", f"the folder lacks {name}")
            if (folder / name).read_bytes() == (Path(expected) / name).read_bytes():
                continue
            ours, theirs = json_object(Path(expected) / name), json_object(folder / name)
            parts = [part for part in {**ours, **theirs} if ours.get(part) != theirs.get(part) or part not in ours]
            if parts:
                raise ParityError(f"tokenizer: {parts[0]}", f"{name} differs from what the source says in {parts[0]}")
    for name in ("special_tokens_map.json", "added_tokens.json"):
        if (folder / name).exists():
            raise ParityError(f"tokenizer: {name}", f"the folder holds {name}, which convert does not write")


def compare_companions(prepared: Prepared, folder: Path) -> None:
    """Compare the source's small files with their copies, and refuse what Transformers would load next to the model.

    Raises ParityError.
    """
    for name, part in prepared.checkpoint.files.companions.items():
        copy = folder / "fairseq" / name
        if name == LABELS and not copy.is_file():
            continue  # an export's, which has it from id2label: config.json was compared with its names
        if not copy.is_file() or copy.read_bytes() != part.read():
            raise ParityError(f"fairseq/{name}", f"fairseq/{name} is not the source's own file")
    pieces, beside = prepared.checkpoint.files.sentencepiece, folder / SENTENCEPIECE
    is_wanted = pieces is not None and prepared.vocabulary.agrees_with_sentencepiece
    if beside.is_file() != is_wanted or (pieces is not None and is_wanted and beside.read_bytes() != pieces.read()):
        raise ParityError(SENTENCEPIECE, f"{SENTENCEPIECE} is not what the source says")
    for name in ("adapter_config.json", "adapter_model.safetensors", "generation_config.json"):
        if (folder / name).exists():
            raise ParityError(name, f"the folder holds {name}, which convert does not write")


# ---- bytes -----------------------------------------------------------------------------------------------------------


def _compare_bytes(plan: WeightPlan, folder: Path, task: ProgressTask) -> None:
    """Compare each weight in the shards with the plan's. Raises ParityError."""
    headers = [(path, file_header(path)) for path in sorted(folder.glob("*.safetensors"))]
    is_over = Event()
    with ThreadPoolExecutor(COMPARED_AT_ONCE, thread_name_prefix="bytes") as pool:
        jobs = [
            pool.submit(_compare_weight, name, plan.weights.get(name), entry, path, is_over)
            for path, header in headers
            for name, entry in header.items()
        ]
        try:
            for job in jobs:
                task.advance(job.result())
        finally:
            is_over.set()
            pool.shutdown(cancel_futures=True)
    if lacking := set(plan.weights).difference(*(header for _path, header in headers)):
        missing = ", ".join(sorted(lacking))
        raise ParityError(missing, f"the folder lacks {missing}")


def _compare_index(folder: Path) -> None:
    """Compare the index with the shards: Transformers goes by it."""
    path = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file() != (not path.is_file()):
        raise ParityError(path.name, f"the folder must hold either model.safetensors or shards with {path.name}")
    if not path.is_file():
        return
    told, places = shards_of(path), {}
    for shard in sorted(folder.glob("*.safetensors")):
        places.update(dict.fromkeys(file_header(shard), shard.name))
    if told != places:
        raise ParityError(path.name, f"{path.name} does not say which shard holds which weight")


def _compare_weight(name: str, planned: Weight | None, entry: TensorEntry, path: Path, is_over: Event) -> int:
    """Compare a weight in the shard at `path` with the planned one; gives its bytes. Raises ParityError.

    When `is_over` is set, nobody waits for the result any more.
    """
    if planned is None:
        raise ParityError(name, f"the folder holds {name}, which the source does not explain")
    found = (entry.dtype, list(entry.shape), entry.nbytes)
    expected = (DTYPE_NAMES[planned.dtype], list(planned.shape), planned.nbytes)
    if found != expected:
        told = "dtype {}, shape {}, {} bytes"
        raise ParityError(name, f"{name} is kept as {told.format(*found)}, not {told.format(*expected)}")
    kept = bytearray()  # a view would be compared element by element
    with path.open("rb") as file:
        file.seek(entry.start)
        for block in planned.blocks():
            if is_over.is_set():
                break
            kept = kept if len(kept) == len(block) else bytearray(len(block))
            if file.readinto(kept) != len(block) or kept != block:
                raise ParityError(name, f"{name} differs from the source")
    return entry.nbytes


# ---- behaviour -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Probe:
    """A batch of token ids, (batch, length); `through_head` compares logits too, which are large for long texts."""

    ids: torch.Tensor
    through_head: bool
    languages: tuple[str, ...] | None = None
    """That of each text in an X-MOD."""
    is_default: bool = False
    """Whether Transformers is not given the language, which is the default."""
    is_by_language: bool = False
    """Whether the texts are compared one by one, since each is in another language."""

    @property
    def parts(self) -> int:
        """How many outputs it has at a step."""
        return len(self.ids) if self.is_by_language else 1

    @cached_property
    def lengths(self) -> list[int]:
        """The tokens of each text, without padding."""
        return [int(length) for length in (self.ids != PAD).sum(1)]

    def split(self, values: torch.Tensor) -> Sequence[torch.Tensor]:
        """The values of each part, from those of all tokens without padding."""
        import torch

        return torch.split(values, self.lengths) if self.is_by_language else (values,)


def _probes(architecture: Architecture, exact: ExactTokenizer | None) -> tuple[_Probe, ...]:
    """A fixed padded batch of unequal lengths, one text of the longest length, and one for each language of an X-MOD.

    The batch holds ids from all over the vocabulary and, if there is a tokenizer, sentences in several scripts and
    a pair.
    """
    import torch

    generator = torch.Generator().manual_seed(SEED)
    longest = architecture.longest_text

    def row(length: int) -> torch.Tensor:
        ids = torch.randint(3, architecture.vocabulary, (min(length, longest),), generator=generator)
        ids[0], ids[-1] = 0, 2
        return ids

    rows = [row(length) for length in SHORT_LENGTHS]
    rows[-1][3:5] = 2  # `</s> </s>`, as between the sentences of a pair
    if exact is not None:
        texts = [*((text,) for text in SCRIPTS), SCRIPTS[1:3]]
        encoded = [torch.tensor(exact.encode(*text)) for text in texts]
        rows += [ids[: min(longest, SHORT_LENGTHS[-1])] for ids in encoded if ids.max() < architecture.vocabulary]
    short = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD)
    probes = _Probe(short, through_head=True), _Probe(row(longest).unsqueeze(0), through_head=False)
    if architecture.adapters is None:
        return probes
    spoken = _Probe(torch.stack([row(LANGUAGE_LENGTH) for _ in architecture.languages]), through_head=False)
    return tuple(_in_languages([*probes, spoken], architecture))


def _in_languages(probes: Sequence[_Probe], architecture: Architecture) -> Iterator[_Probe]:
    """The probes in the languages of an X-MOD: many in one batch, one of which nothing is said, and each by itself.

    Transformers' class for multiple choice takes one language for all texts.
    """
    many, one, each = probes
    languages, adapters = architecture.languages, architecture.adapters
    default = None if adapters is None else adapters.default
    is_choice, alone, has_default = (
        architecture.task is Task.MULTIPLE_CHOICE,
        default or languages[-1],
        default is not None,
    )
    mixed = (alone,) * len(many.ids) if is_choice else tuple(islice(cycle(languages), len(many.ids)))
    yield replace(many, languages=mixed, is_default=is_choice and has_default)
    yield replace(one, languages=(alone,), is_default=has_default)
    yield replace(each, languages=languages, is_by_language=True)


def _compare_behaviour(
    prepared: Prepared,
    folder: Path,
    probes: Sequence[_Probe],
    progress: Progress,
    *,
    bare: Mapping[str, object],
    has_rows: bool,
) -> tuple[tuple[StepDifference, ...], dict[str, float]]:
    """The differences at each step, the larger one of all probes, and the largest for each language."""
    import torch

    checkpoint, architecture = prepared.checkpoint, prepared.architecture
    reference = Reference(
        checkpoint.raw,
        {**_joining(architecture), **checkpoint.options},
        attention_heads=architecture.attention_heads,
        layers=architecture.layers,
        rounded=_rounding(prepared.plan),
    )
    if has_rows:
        _compare_embedding(reference, folder)
    has_lm_head = architecture.task is Task.MASKED_LM
    through_heads = sum(probe.through_head for probe in probes) * (has_lm_head or architecture.head is not None)
    parts = sum(probe.parts for probe in probes)
    total = parts * (len(architecture.layers) + 2) + through_heads  # and the embeddings and the features
    figures: dict[str, list[_Figures]] = {}
    with torch.no_grad(), progress.task("comparing outputs", total=total, unit="steps") as task:
        theirs = _transformers_steps(folder, architecture, probes, bare)
        texts = [ids[ids != PAD] for probe in probes for ids in probe.ids]
        first = sum(len(probe.ids) for probe in probes if probe.through_head)
        languages = [language for probe in probes for language in probe.languages or ()] or None
        steps = reference.steps(
            texts, head=architecture.head, has_lm_head=has_lm_head, through_head=first, languages=languages
        )
        for step in steps:
            outputs, start = theirs.get(step.name, ()), 0  # none for the last layer, whose values are the features
            if step.first == 0:
                _give_memory_back()
                task.advance(len(outputs) or parts)
                figures |= {step.name: [_Figures() for _ in outputs]} if outputs else {}
            for found, probe in zip(figures.get(step.name, ()), outputs, strict=True):
                other = probe.columns(step.first, step.first + step.values.shape[-1])
                found.add(step.values[start : start + len(other)], other)
                start += len(other)
    differences = {name: [each.difference(name) for each in found] for name, found in figures.items()}
    largest = tuple(max(found, key=_severity) for found in differences.values())
    return largest, _by_language(differences, architecture.languages, parts)


def _joining(architecture: Architecture) -> dict[str, object]:
    """How adapters are joined to the layers, for options that leave it to fairseq's architecture."""
    return architecture.adapters.fields if architecture.adapters is not None else {}


def _by_language(
    differences: Mapping[str, Sequence[StepDifference]], languages: Sequence[str], parts: int
) -> dict[str, float]:
    """The largest difference of each language, whose parts are the last of every step that all texts go through."""
    steps = [found[-len(languages) :] for found in differences.values() if len(found) == parts]
    by_language = zip(languages, zip(*steps, strict=True), strict=True) if languages else ()
    return {language: max(found, key=_severity).relative for language, found in by_language}


def _compare_embedding(reference: Reference, folder: Path) -> None:
    """Compare every row of the embedding with fairseq's, since texts reach only some.

    Rows after fairseq's own must be copies of that of `<unk>`, and the LM head must never choose them.
    """
    files = WeightFiles.of(folder)
    (name,) = (name for name in files.places if name.endswith("embeddings.word_embeddings.weight"))
    embedding = files.reader(name)
    unknown = embedding.band(UNK, UNK + 1)
    first = 0
    for band in reference.embedding_bands():
        theirs = embedding.band(first, first + len(band))
        if not _has_same_bits(band, theirs) and not band.float().allclose(
            theirs.float(), rtol=COARSE_TOLERANCE, atol=TOLERANCE, equal_nan=True
        ):
            raise ParityError("embeddings", f"the embedding departs from fairseq's in the rows from {first} on")
        first += len(band)
    if not bool((embedding.band(first, embedding.height()) == unknown).all()):
        raise ParityError("embeddings", f"the rows from {first} on are not copies of that of <unk>")
    if embedding.height() > first and "lm_head.bias" in files.places:
        bias = files.reader("lm_head.bias").band(0, embedding.height())
        if float(bias[first:].max()) > float(bias[:first].min()) - NEVER_CHOSEN:
            raise ParityError("lm_head.bias", f"the LM head could choose the rows from {first} on, which fairseq lacks")


def _has_same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors hold the same bits, which is seen many times faster than that their numbers are close."""
    import torch

    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    return torch.equal(*(each.reshape(-1).view(torch.uint8) for each in (one, other)))


def _severity(step: StepDifference) -> float:
    """What differences are ordered by: one that is not a number is the worst."""
    return step.relative if step.relative == step.relative else float("inf")


def _give_memory_back() -> None:
    """Let the C library return what was freed: glibc keeps gigabytes of it once matrices have come and gone."""
    with suppress(AttributeError, OSError):  # other C libraries have no such call, and no such habit
        ctypes.CDLL(None).malloc_trim(0)


def _rounding(plan: WeightPlan) -> Callable[[Weight], Weight]:
    """What a cast did to each weight, for the reference to do as well."""
    dtypes = {weight.dtype for weight in plan.weights.values() if isinstance(weight, Cast)}
    if not dtypes:
        return lambda weight: weight
    (dtype,) = dtypes
    return lambda weight: Cast.to(dtype, weight, name="a weight")


@dataclass(frozen=True)
class _Output:
    """What Transformers gives for one probe at one step, (tokens without padding, width) or (texts, labels)."""

    columns: Callable[[int, int], torch.Tensor]
    """Those from one number to before another; logits are computed when they are asked for."""


def _transformers_steps(
    folder: Path, architecture: Architecture, probes: Sequence[_Probe], bare: Mapping[str, object]
) -> dict[str, list[_Output]]:
    """Hidden states and outputs of the folder as plain Transformers loads it, each layer when it is used."""
    steps: dict[str, list[_Output]] = defaultdict(list)
    hidden = ["embeddings", *(f"layer {number}" for number in architecture.layers[:-1]), "features"]
    with _quiet_transformers():
        network = _network(folder, architecture, bare)
        for layer in network.base_model.encoder.layer:
            layer.register_forward_hook(lambda *_: _give_memory_back())  # a gigabyte after ten layers of XL's
        for probe in probes:
            output, logits = _answer(network, architecture, probe)
            for name, values in zip(hidden, output.hidden_states, strict=True):
                steps[name] += map(_kept, probe.split(values[probe.ids != PAD]))
            if probe.through_head and architecture.task is Task.MASKED_LM:
                steps["logits"].append(logits)
            elif probe.through_head and architecture.head is not None:
                steps[f"head {architecture.head}"].append(_kept(output.logits))
    return steps


def _kept(values: torch.Tensor) -> _Output:
    return _Output(lambda first, last: values[:, first:last])


def _answer(network: Any, architecture: Architecture, probe: _Probe) -> tuple[Any, _Output]:
    """Transformers' output for a probe, of the encoder alone if it goes through no head, and the logits.

    The product before the logits is put off, unless Transformers computes with its result.
    """
    is_choice = architecture.task is Task.MULTIPLE_CHOICE and probe.through_head
    given, real = probe.ids.unsqueeze(1) if is_choice else probe.ids, probe.ids != PAD
    called = partial(
        network if probe.through_head else network.base_model,
        given,
        attention_mask=(given != PAD).long(),
        output_hidden_states=True,
        **_lang_ids(architecture, probe),
    )
    product = tall_product(network) if probe.through_head else None
    if product is not None:
        product.is_postponed = True
        output = called()
        if output.logits is product.stand_in:
            return output, _Output(partial(product.band, product.values[real]))
        product.is_postponed = False
    output = called()
    return output, _kept(output.logits[real] if architecture.task is Task.MASKED_LM and probe.through_head else real)


def _lang_ids(architecture: Architecture, probe: _Probe) -> dict[str, torch.Tensor]:
    """The numbers of the languages, where Transformers is given them."""
    import torch

    if probe.languages is None or probe.is_default:
        return {}
    is_choice = architecture.task is Task.MULTIPLE_CHOICE and probe.through_head
    spoken = probe.languages[:1] if is_choice else probe.languages
    return {"lang_ids": torch.tensor([architecture.languages.index(language) for language in spoken])}


def _network(folder: Path, architecture: Architecture, bare: Mapping[str, object]) -> Any:
    """Transformers' network. Raises IntegrityError if Transformers refuses the folder."""
    try:
        return layerwise_network(folder, architecture.class_name, **bare)
    except HfXlmrError:
        raise
    except Exception as error:  # Transformers, huggingface_hub and safetensors each have their own errors
        told = str(error).strip().splitlines() or [type(error).__name__]
        raise IntegrityError(f"Transformers does not load {folder}: {told[0]}") from error


class _Figures:
    """What makes a StepDifference, gathered from one part of the values after another."""

    def __init__(self) -> None:
        """Begin with no values."""
        import torch

        self._largest = torch.zeros(2)  # difference and value; NaN if there is one
        self._products = torch.zeros(3, dtype=torch.float64)  # ours and ours, theirs and theirs, ours and theirs

    def add(self, ours: torch.Tensor, theirs: torch.Tensor) -> None:
        """Add values of both sides, (rows, width) each."""
        import torch

        step = max(1, FIGURED_AT_ONCE // max(1, ours.shape[1]))
        for one, other in zip(torch.split(ours, step), torch.split(theirs, step), strict=True):
            largest = torch.stack([(one - other).abs().max(), one.abs().max()])
            self._largest = torch.maximum(self._largest, largest)
            a, b = one.double().flatten(), other.double().flatten()
            self._products += torch.stack([(a * a).sum(), (b * b).sum(), (a * b).sum()])  # dot() calls all threads

    def difference(self, name: str) -> StepDifference:
        """The difference at the step `name`."""
        (largest, largest_value), (ours, theirs, product) = self._largest.tolist(), self._products.tolist()
        return StepDifference(
            name=name,
            largest=largest,
            relative=largest / max(1.0, largest_value),
            cosine=product / max(sqrt(ours * theirs), sys.float_info.min),
        )


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Transformers and accelerate without loading bar and advice, and as they were afterwards."""
    import logging

    from transformers.utils import logging as theirs

    bar: Any = theirs
    loggers = {name: logging.getLogger(name) for name in ("transformers", "accelerate")}
    levels = {name: logger.level for name, logger in loggers.items()}
    had_bar = theirs.is_progress_bar_enabled()
    bar.disable_progress_bar()
    for logger in loggers.values():
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for name, logger in loggers.items():
            logger.setLevel(levels[name])
        if had_bar:
            bar.enable_progress_bar()
