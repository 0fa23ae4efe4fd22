"""Examples of XNLI and MultiNLI, out of every form that they are published in."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Literal, cast

from hf_xlmr.errors import InputError, told_plainly
from hf_xlmr.tasks.rows import JSON_LINES, PARQUET, Languages, Row, Source, find_sources
from hf_xlmr.text_rows import JSON_TYPES, BadRow, checked_text

__all__ = ["XNLI_LABELS", "XNLI_LANGUAGES", "Unlabelled", "WithoutLabel", "XnliExample", "XnliInput", "open_xnli"]

WithoutLabel = Literal["refuse", "skip"]

XNLI_LABELS: Final = ("entailment", "neutral", "contradiction")
"""In the order of their numbers in the data set `facebook/xnli`."""
XNLI_LANGUAGES: Final = (
    *("en", "fr", "es", "de", "el", "bg", "ru", "tr"),
    *("ar", "vi", "th", "zh", "hi", "sw", "ur"),
)
"""In the order of the papers' tables."""

LABEL_OF: Final[Mapping[str, str]] = {**{label: label for label in XNLI_LABELS}, "contradictory": "contradiction"}
NO_LABEL: Final = ("-", -1)  # where annotators did not agree, in the releases of MultiNLI and SNLI, and in data sets
NUMBER: Final = re.compile(r"-?[0-9]{1,9}")
UNLABELLED: Final = (
    "the label (- or -1) says that the annotators did not agree; leave such pairs out with unlabelled='skip' "
    "(--on-unlabelled skip)"
)
TABULATED: Final = (".tsv", ".txt")
TRAINING_FILE: Final = re.compile(r"multinli\.train\.(\w+)\.tsv")


@dataclass(frozen=True, slots=True)
class XnliExample:
    """Two sentences, and whether the second follows from the first."""

    place: str
    """For messages, such as `xnli.dev.tsv, line 17`."""
    language: str
    premise: str
    hypothesis: str
    label: str
    """One of XNLI_LABELS."""


@dataclass(frozen=True, slots=True)
class Unlabelled:
    """A pair on whose label its annotators did not agree, which the publishers leave out of scores."""

    place: str
    language: str


@dataclass(frozen=True)
class _Layout:
    """The columns of one published form."""

    premise: str
    hypothesis: str
    label: str
    language: str = "language"
    """Of the language, where there is such a column."""

    @property
    def required(self) -> tuple[str, str, str]:
        return self.premise, self.hypothesis, self.label


_Pair = tuple[str | None, object, object]  # the language if it is told, premise and hypothesis

LAYOUTS: Final = (
    _Layout("sentence1", "sentence2", "gold_label"),  # XNLI's release, and MultiNLI's
    _Layout("premise", "hypo", "label"),  # XNLI's translations of MultiNLI
    _Layout("premise", "hypothesis", "label"),  # facebook/xnli
)
COLUMNS: Final = tuple(dict.fromkeys(column for each in LAYOUTS for column in (*each.required, each.language)))


@dataclass(frozen=True)
class XnliInput:
    """The examples of an input in their order; each iteration reads anew."""

    name: str
    sources: tuple[Source, ...]
    language: str | None = None
    unlabelled: WithoutLabel = "refuse"

    def __iter__(self) -> Iterator[XnliExample]:
        """Every example with a label, each checked when it is reached. Raises BadRow, InputError."""
        for each in self.rows():
            if isinstance(each, XnliExample):
                yield each

    def rows(self) -> Iterator[XnliExample | Unlabelled]:
        """The same, with those that are skipped for want of a label in their places."""
        languages = Languages(self.name, self.language)
        with told_plainly():
            for source in self.sources:
                told, names = _language_told(source), _label_names(source)
                for row in _rows(source):
                    for each in _examples(row, told, names, languages):
                        if isinstance(each, Unlabelled) and self.unlabelled == "refuse":
                            raise BadRow(each.place, UNLABELLED)
                        yield each
        languages.check()


def open_xnli(
    source: str | Path,
    *,
    language: str | None = None,
    unlabelled: WithoutLabel = "refuse",
    split: str | None = None,
    config: str | None = None,
    revision: str | None = None,
) -> XnliInput:
    """The examples of a file, of a pattern such as `multinli.train.*.tsv`, or of a data set like `facebook/xnli`.

    Read are XNLI's `.tsv` and `.jsonl`, tables with premise, hypo and label, and the layouts of `facebook/xnli`, for
    one language or all, as a saved data set, as Parquet or from the Hub. `language` picks one of those there are, and
    says which it is where neither a column, nor the name of the file, nor that of the config does. Labels are names, or
    numbers (also as text) in the order of XNLI_LABELS; `unlabelled` says what is done with pairs whose annotators did
    not agree on one (`-`, -1): `refuse` the input, or `skip` them.

    Raises InputError, for rows when they are reached.
    """
    with told_plainly():
        sources = find_sources(source, split=split, config=config, revision=revision)
    for each in sources:
        if not each.is_arrow and each.kind not in (*TABULATED, *JSON_LINES):
            kinds = ", ".join((*TABULATED, *JSON_LINES))
            raise InputError(
                f"{each.path} is of no known kind; XNLI is read from {kinds} (also with .gz) and {PARQUET}"
            )
    return XnliInput(str(source), sources, language, unlabelled)


def _language_told(source: Source) -> str | None:
    """The language of all rows, where the name of the file, its folder, or the config tells it."""
    if found := TRAINING_FILE.fullmatch(source.base_name):
        return found[1]
    name = source.base_name if source.is_data_set else source.path.parent.name
    return name if source.is_arrow and name in XNLI_LANGUAGES else None


def _label_names(source: Source) -> Sequence[str]:
    """What the numbers of labels mean: what the data set says, else what they mean in `facebook/xnli`."""
    return (source.class_names("label") if source.is_arrow else None) or XNLI_LABELS


def _rows(source: Source) -> Iterator[Row]:
    if source.is_arrow:
        return source.table(COLUMNS)
    return source.objects() if source.kind in JSON_LINES else _tabulated(source)


def _tabulated(source: Source) -> Iterator[Row]:
    """Rows below a header, less blank lines; a quotation mark is a character like any other, as in the releases."""
    lines = source.lines()
    top, names = next(lines, (source.name, ""))
    header = names.split("\t")
    if twice := [name for name, count in Counter(header).items() if count > 1 and name in COLUMNS]:
        raise BadRow(top, f"there are several columns {twice[0]!r}")
    for place, line in lines:
        if not line:
            continue
        fields = line.split("\t")
        if len(fields) != len(header):
            raise BadRow(place, f"{len(fields)} fields are below a header of {len(header)}")
        yield Row(place, dict(zip(header, fields, strict=True)))


# ---- rows to examples ------------------------------------------------------------------------------------------------


def _examples(
    row: Row, told: str | None, names: Sequence[str], languages: Languages
) -> Iterator[XnliExample | Unlabelled]:
    layout = _layout(row.place, row.values)
    premise, hypothesis, label = (row.values[column] for column in layout.required)
    if isinstance(premise, dict):
        pairs: Iterator[_Pair] = _translations(row.place, premise, hypothesis)
    else:
        pairs = iter([(_language(row, layout) or told, premise, hypothesis)])
    for named, *texts in pairs:
        language = languages.of(row.place, named)
        if languages.is_wanted(language):
            first, second = map(partial(checked_text, row.place), texts)
            found = _label(row.place, label, names)
            yield XnliExample(row.place, language, first, second, found) if found else Unlabelled(row.place, language)


def _language(row: Row, layout: _Layout) -> str | None:
    named = row.values.get(layout.language)
    return None if named is None else checked_text(row.place, named, what="the language")


def _layout(place: str, columns: Collection[str]) -> _Layout:
    for layout in LAYOUTS:
        if all(column in columns for column in layout.required):
            return layout
    known = ", or ".join(" ".join(layout.required) for layout in LAYOUTS)
    raise BadRow(place, f"the columns are {' '.join(columns) or 'none'}; needed are {known}")


def _translations(place: str, premise: Mapping[str, object], hypothesis: object) -> Iterator[_Pair]:
    """Premise and hypothesis in each language; those of the hypothesis can be two lists."""
    if not isinstance(hypothesis, dict):
        raise BadRow(place, "the premise is in several languages, the hypothesis is not")
    if hypothesis.keys() == {"language", "translation"}:
        hypothesis = _by_language(place, hypothesis["language"], hypothesis["translation"])
    for language, text in premise.items():
        if hypothesis.get(language) is None:
            raise BadRow(place, f"the hypothesis is missing in {language!r}")
        yield language, text, hypothesis[language]


def _by_language(place: str, languages: object, translations: object) -> dict[str, object]:
    """Two lists of the same length as one object, each of its texts checked when it is reached. Raises BadRow."""
    for name, value in (("language", languages), ("translation", translations)):
        if not isinstance(value, list):
            kind = JSON_TYPES.get(type(value), type(value).__name__)
            raise BadRow(place, f"{name!r} of the hypothesis is {kind}, not a list")
    listed, texts = cast("list[object]", languages), cast("list[object]", translations)
    if len(listed) != len(texts):
        raise BadRow(place, f"{len(texts)} translations of the hypothesis are in {len(listed)} languages")
    named = [checked_text(place, each, what="a language") for each in listed]
    return dict(zip(named, texts, strict=True))


def _label(place: str, value: object, names: Sequence[str]) -> str | None:
    """The label, None for none that annotators agreed on. Raises BadRow."""
    number = int(value) if isinstance(value, str) and NUMBER.fullmatch(value) else value
    if type(number) is not bool and number in NO_LABEL:
        return None
    named = names[number] if type(number) is int and 0 <= number < len(names) else value
    if isinstance(named, str) and named in LABEL_OF:
        return LABEL_OF[named]
    numbers = ", ".join(f"{label} ({number})" for number, label in enumerate(names))
    raise BadRow(place, f"the label {value!r} is unknown; there are {numbers}")
