"""Examples of XNLI and MultiNLI, out of every form that they are published in."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Final, Literal, cast

from hf_xlmr.data.columns import JSON_LINES, PARQUET, Languages, Row, Source, find_sources
from hf_xlmr.data.text_rows import JSON_TYPES, BadRow, checked_text
from hf_xlmr.errors import InputError, printable, told_plainly

__all__ = [
    "XNLI_LABELS",
    "XNLI_LANGUAGES",
    "Unlabelled",
    "WithoutLabel",
    "XnliExample",
    "XnliInput",
    "check_order",
    "open_xnli",
]

WithoutLabel = Literal["refuse", "skip"]

XNLI_LABELS: Final = ("entailment", "neutral", "contradiction")
"""The labels in the order of their numbers in the data set `facebook/xnli`."""
XNLI_LANGUAGES: Final = (*("en", "fr", "es", "de", "el", "bg", "ru", "tr"), *("ar", "vi", "th", "zh", "hi", "sw", "ur"))
"""The languages in the order of the papers' tables."""

LABEL_OF: Final[Mapping[str, str]] = {**{label: label for label in XNLI_LABELS}, "contradictory": "contradiction"}
NO_LABEL: Final = ("-", -1)  # where annotators did not agree, in the releases of MultiNLI and SNLI, and in data sets
NUMBER: Final = re.compile(r"-?[0-9]{1,9}")
UNLABELLED: Final = (
    "the label (- or -1) says that the annotators did not agree; leave such pairs out with unlabelled='skip'"
)
NUMBERS_ALONE: Final = (
    "the label {value!r} is a number, and nothing here says what it means: data sets count from entailment (0), "
    "fairseq's RoBERTa from contradiction, and PAWS-X marks paraphrases so; give the labels in the order of their "
    "numbers, such as entailment,neutral,contradiction"
)
TWO_COLUMNS: Final = (
    "there are two columns and no header that is known: pairs without labels, as XTREME's scripts leave test data, can "
    "be neither trained on nor scored; XNLI's own test data have the labels"
)
TABULATED: Final = (".tsv", ".txt", ".csv", ".train", ".valid", ".dev", ".test")
LANGUAGE: Final = "|".join(XNLI_LANGUAGES)
NAMES: Final = (
    re.compile(r"multinli\.train\.(\w+)\.tsv"),  # the release
    re.compile(rf"(?:train|valid|dev|test)-({LANGUAGE})\.[ct]sv|en-({LANGUAGE})-translated\.[ct]sv"),  # XTREME
    re.compile(rf"({LANGUAGE})\.(?:train|valid|dev|test)"),  # XLM
)
"""What publishers call a file, and in it the language."""


@dataclass(frozen=True, slots=True)
class XnliExample:
    """Two sentences, and whether the second follows from the first."""

    place: str
    """The name of the place in messages, such as `xnli.dev.tsv, line 17`."""
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
    """The column of the language, if there is one."""
    has_numbers: bool = True
    """Whether labels that are numbers are known to be those of `facebook/xnli`."""

    @property
    def required(self) -> tuple[str, str, str]:
        return self.premise, self.hypothesis, self.label


_Pair = tuple[str | None, object, object]  # the language if it is known, premise and hypothesis

LAYOUTS: Final = (
    _Layout("sentence1", "sentence2", "gold_label"),  # XNLI's release, and MultiNLI's
    _Layout("premise", "hypo", "label"),  # XNLI's translations of MultiNLI
    _Layout("premise", "hypothesis", "label"),  # facebook/xnli
    _Layout("sentence1", "sentence2", "label", has_numbers=False),  # others: PAWS-X has these, too
)
WITHOUT_HEADER: Final = LAYOUTS[-1].required  # what the columns of a file without a header are called
COLUMNS: Final = tuple(dict.fromkeys(column for each in LAYOUTS for column in (*each.required, each.language)))


@dataclass(frozen=True)
class XnliInput:
    """The examples of an input in their order; each iteration reads the input again."""

    name: str
    sources: tuple[Source, ...]
    language: str | None = None
    unlabelled: WithoutLabel = "refuse"
    labels: tuple[str, ...] | None = None

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
                told = _stated_language(source, languages.takes_names_of(self.sources))
                names = self.labels or (source.class_names("label") if source.is_arrow else None)
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
    labels: Sequence[str] | None = None,
    split: str | None = None,
    config: str | None = None,
    revision: str | None = None,
) -> XnliInput:
    """The examples of a file, of a pattern such as `multinli.train.*.tsv`, or of a data set like `facebook/xnli`.

    A text file is a table with a header (XNLI's, MultiNLI's and XLM's, that of `facebook/xnli` and of similar data), or
    has three columns without one, the third a label, as XTREME's scripts write. Its content says whether tabs, commas
    or semicolons delimit, and whether quotes are CSV's or characters, as in XNLI's release: see `delimited`. The
    layouts of `facebook/xnli` are also read as JSON Lines, as a saved data set, as Parquet or from the Hub. `language`
    picks one of those there are, and says which it is where neither a column, nor the name of the file, nor that of the
    config does. Labels are names, or numbers (also as text) in the order of `labels`, else in that which the data set
    says, else, below `premise` or `gold_label`, in that of XNLI_LABELS. `unlabelled` says what is done with pairs whose
    annotators did not agree on one (`-`, -1): `refuse` the input, or `skip` them. Data without labels are refused.

    Raises InputError, for rows when they are reached.
    """
    check_order(labels)
    with told_plainly():
        sources = find_sources(source, split=split, config=config, revision=revision)
    for each in sources:
        if not each.is_arrow and each.kind not in (*TABULATED, *JSON_LINES):
            kinds = ", ".join((*TABULATED, *JSON_LINES))
            raise InputError(
                f"{each.path} is of no known kind; XNLI is read from {kinds} (also with .gz or .zst) and {PARQUET}"
            )
    order = None if labels is None else tuple(LABEL_OF[each] for each in labels)
    return XnliInput(str(source), sources, language, unlabelled, order)


def check_order(labels: Sequence[str] | None) -> None:
    """Raise InputError if `labels` are not the three of XNLI in some order."""
    if labels is not None and sorted(LABEL_OF.get(each, each) for each in labels) != sorted(XNLI_LABELS):
        given = ", ".join(labels)
        raise InputError(printable(f"the labels of XNLI are {', '.join(XNLI_LABELS)}, in some order, not {given:.80}"))


def _stated_language(source: Source, takes_name: bool) -> str | None:
    """The language of all rows, if the name of the file (if that is taken), its folder, or the config says it."""
    for each in NAMES if takes_name and not source.is_arrow else ():
        if found := each.fullmatch(source.base_name):
            return str(found[1] or found[2])
    name = source.base_name if source.is_data_set else source.path.parent.name
    return name if source.is_arrow and name in XNLI_LANGUAGES else None


def _rows(source: Source) -> Iterator[Row]:
    if source.is_arrow:
        return source.table(COLUMNS)
    return source.objects() if source.kind in JSON_LINES else _tabulated(source)


def _tabulated(source: Source) -> Iterator[Row]:
    records = source.fields(_is_first)
    top, first = next(records, (None, []))
    if top is None:
        _refuse_unknown(source)
        return
    header = first if _layout_of(first) else list(WITHOUT_HEADER)
    if twice := [name for name, count in Counter(header).items() if count > 1 and name in COLUMNS]:
        raise BadRow(top, f"there are several columns {twice[0]!r}")
    if header is not first:
        records = chain([(top, first)], records)
    why = "are below a header of" if header is first else "are here, and in the first line"
    for place, fields in records:
        if len(fields) != len(header):
            raise BadRow(place, f"{len(fields)} fields {why} {len(header)}")
        yield Row(place, dict(zip(header, fields, strict=True)))


def _is_first(fields: Sequence[str]) -> bool:
    """Whether a file can begin so: with a header, or with a pair and its label."""
    label = fields[-1].strip() if len(fields) == len(WITHOUT_HEADER) else ""
    is_label = label in (*LABEL_OF, *NO_LABEL) or NUMBER.fullmatch(label) is not None
    return is_label or _layout_of(fields) is not None


def _refuse_unknown(source: Source) -> None:
    """Raise BadRow for the first line that is not blank, if there is one."""
    place, line = next(((place, line) for place, line in source.lines() if line), ("", ""))
    if not line:
        return
    columns = line.split("\t")
    if len(columns) == len(WITHOUT_HEADER) - 1 and not _missing_label(columns):
        raise BadRow(place, TWO_COLUMNS)
    raise BadRow(place, _why_no_layout(columns))


# ---- rows to examples ------------------------------------------------------------------------------------------------


def _examples(
    row: Row, told: str | None, names: Sequence[str] | None, languages: Languages
) -> Iterator[XnliExample | Unlabelled]:
    layout = _layout_of(row.values)
    if layout is None:
        raise BadRow(row.place, _why_no_layout(row.values))
    premise, hypothesis, label = (row.values[column] for column in layout.required)
    if isinstance(premise, dict):
        pairs: Iterator[_Pair] = _translations(row.place, premise, hypothesis)
    else:
        pairs = iter([(_language(row, layout) or told, premise, hypothesis)])
    for named, *texts in pairs:
        language = languages.of(row.place, named)
        if languages.is_wanted(language):
            first, second = map(partial(checked_text, row.place), texts)
            found = _label(row.place, label, names or (XNLI_LABELS if layout.has_numbers else None))
            yield XnliExample(row.place, language, first, second, found) if found else Unlabelled(row.place, language)


def _language(row: Row, layout: _Layout) -> str | None:
    named = row.values.get(layout.language)
    return None if named is None else checked_text(row.place, named, what="the language")


def _layout_of(columns: Collection[str]) -> _Layout | None:
    return next((each for each in LAYOUTS if all(column in columns for column in each.required)), None)


def _missing_label(columns: Collection[str]) -> str | None:
    """The name that the column of labels would have, if the other two columns are there."""
    return next((each.label for each in LAYOUTS if each.premise in columns and each.hypothesis in columns), None)


def _why_no_layout(columns: Collection[str]) -> str:
    if label := _missing_label(columns):
        return f"the pairs have no labels ({label}), so they can be neither trained on nor scored"
    known = ", or ".join(" ".join(layout.required) for layout in LAYOUTS)
    found = " ".join(columns)[:200] or "none"
    return f"the columns are {found}; needed are {known}, or, without a header, three, of which the last is a label"


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


def _label(place: str, value: object, names: Sequence[str] | None) -> str | None:
    """The label, None for one that annotators did not agree on. Raises BadRow."""
    found = value.strip() if isinstance(value, str) else value
    number = int(found) if isinstance(found, str) and NUMBER.fullmatch(found) else found
    if type(number) is not bool and number in NO_LABEL:
        return None
    if type(number) is int and names is None:
        raise BadRow(place, NUMBERS_ALONE.format(value=value))
    names = names or XNLI_LABELS
    named = names[number] if type(number) is int and 0 <= number < len(names) else found
    if isinstance(named, str) and named in LABEL_OF:
        return LABEL_OF[named]
    numbers = ", ".join(f"{label} ({number})" for number, label in enumerate(names))
    raise BadRow(place, f"the label {value!r} is unknown; there are {numbers}")
