"""Sentences with tagged names, as CoNLL and WikiANN publish them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Final

from hf_xlmr.data.columns import JSON_LINES, Languages, Row, Source, find_sources
from hf_xlmr.data.text_rows import JSON_TYPES, BadRow, checked_text, why_no_column
from hf_xlmr.errors import InputError, printable, told_plainly

__all__ = ["NerExample", "NerInput", "check_tags", "open_ner"]

DOCUMENT_MARK: Final = "-DOCSTART-"  # a line of CoNLL that is not a word
TAG: Final = re.compile(r"O|[BIESLU]-\S+")
WIKIANN_LANGUAGE: Final = re.compile(r"(?:[a-z]{2,3}(?:-[a-z]+)*|simple):")
COLUMNS: Final = ("tokens", "ner_tags", "langs")
FEWEST_COLUMNS: Final = 2
NUMBERED: Final = ("number", "word", "tag")  # the first columns of GermEval 2014 and Universal NER
JUDGED: Final = 20  # sentences by which a file is judged
CONLL_U: Final = 10  # columns
NAMES: Final[tuple[tuple[re.Pattern[str], Mapping[str, str]], ...]] = (
    (re.compile(r"(eng|deu|esp|ned)\.(?:train|dev|test[ab]?)"), {"eng": "en", "deu": "de", "esp": "es", "ned": "nl"}),
    (re.compile(r"(?:train|dev|test)-([a-z]{2,3})\.tsv"), {}),  # XTREME
)
"""What publishers call a file, and in it the language: as it is, or as it is next to it."""
WITHOUT_TAGS: Final = "; test data whose tags were taken out, as XTREME's scripts do, cannot be scored"
NUMBERS_ALONE: Final = (
    "tags are numbers, and nothing says what they mean; give the labels in their order with labels=, such as "
    "O,B-PER,I-PER"
)

Line = tuple[str, list[str]]  # its place, and its columns


@dataclass(frozen=True, slots=True)
class NerExample:
    """A sentence in words, each with its tag."""

    place: str
    """The name of the place where it begins, in messages, such as `eng.testa, line 17`."""
    language: str
    tokens: tuple[str, ...]
    tags: tuple[str, ...]
    """The tag of each word, such as `B-PER`, `I-PER` and `O`."""


@dataclass(frozen=True)
class NerInput:
    """The sentences of an input in their order; each iteration reads the input again."""

    name: str
    sources: tuple[Source, ...]
    language: str | None = None
    labels: tuple[str, ...] | None = None

    def __iter__(self) -> Iterator[NerExample]:
        """Every sentence, each checked when it is reached. Raises BadRow, InputError."""
        languages = Languages(self.name, self.language)
        with told_plainly():
            for source in self.sources:
                takes_name = languages.takes_names_of(self.sources)
                for place, told, tokens, tags in _sentences(source, self.labels, takes_name=takes_name):
                    language = languages.of(place, told)
                    if languages.is_wanted(language):
                        yield NerExample(place, language, tuple(tokens), tuple(tags))
        languages.check()


def open_ner(
    source: str | Path,
    *,
    language: str | None = None,
    labels: Sequence[str] | None = None,
    split: str | None = None,
    config: str | None = None,
    revision: str | None = None,
) -> NerInput:
    """The sentences of a file, of a pattern of files, or of a data set with `tokens` and `ner_tags`.

    A file has a word per line and a blank line after each sentence: CoNLL's columns at tabs or spaces, of which the
    first is the word and the last its tag (as in XTREME's files), WikiANN's `lang:word`, a tab and the tag, or, if the
    first column counts the words of each sentence from 1, the word in the second and its tag in the third, as in
    GermEval 2014 and Universal NER. A comment (`# ...`) may be before a sentence. Quotation marks are words like any
    other. `.jsonl`, `.json` and `.parquet` are read as data sets are. `language` picks one of those that the input
    says, and says which it is where it says none. `labels` are all tags there may be, in the order of their numbers
    where `ner_tags` are numbers without names.

    Raises InputError, for sentences when they are reached.
    """
    check_tags(labels or ())
    with told_plainly():
        sources = find_sources(source, split=split, config=config, revision=revision)
    return NerInput(str(source), sources, language, None if labels is None else tuple(labels))


def check_tags(labels: Sequence[str]) -> None:
    """Raise InputError if `labels` are not tags, or one of them has two numbers."""
    if odd := [each for each in labels if not TAG.fullmatch(each)]:
        raise InputError(printable(f"labels= holds {odd[0]!r:.80}, not a tag of entities; give such as O,B-PER,I-PER"))
    if twice := [each for each, count in Counter(labels).items() if count > 1]:
        raise InputError(printable(f"labels= holds {twice[0]!r:.80} more than once"))


Sentence = tuple[str, "str | None", Sequence[str], Sequence[str]]  # place, language if it is known, words, tags


def _sentences(source: Source, labels: tuple[str, ...] | None, *, takes_name: bool) -> Iterator[Sentence]:
    is_table = source.is_arrow or source.kind in JSON_LINES
    for place, told, tokens, tags in _tabular(source, labels) if is_table else _in_columns(source, takes_name):
        for number, tag in enumerate(tags):
            if tag not in labels if labels else not TAG.fullmatch(tag):
                known = ", ".join(labels or ("O", "B-TYPE", "I-TYPE"))
                raise BadRow(place, f"the label {tag!r} of word {number + 1} is unknown; there are {known}")
        yield place, told, tokens, tags


# ---- a word per line -------------------------------------------------------------------------------------------------


def _in_columns(source: Source, takes_name: bool) -> Iterator[Sentence]:
    paragraphs = _paragraphs(source)
    first = list(islice(paragraphs, JUDGED))
    if not first:
        return
    rest = chain(first, paragraphs)
    if _is_wikiann(first[0]):
        yield from map(_wikiann_sentence, rest)
        return
    told = _language_of_name(source.base_name) if takes_name else None
    width, is_numbered = len(_columns(first[0][0][1])), _is_numbered(first)
    for lines in rest:
        yield _conll_sentence([(place, _columns(line)) for place, line in lines], told, width, is_numbered=is_numbered)


def _language_of_name(name: str) -> str | None:
    for pattern, languages in NAMES:
        if found := pattern.fullmatch(name):
            return languages.get(found[1], found[1])
    return None


def _is_numbered(paragraphs: Iterable[Sequence[tuple[str, str]]]) -> bool:
    """Whether the first column counts words and the third holds tags, up to the first sentence of several words."""
    for lines in paragraphs:
        for number, (_, line) in enumerate(lines, 1):
            columns = _columns(line)
            if len(columns) < len(NUMBERED) or columns[0] != str(number) or not TAG.fullmatch(columns[2]):
                return False
        if len(lines) > 1:
            return True
    return False


def _columns(line: str) -> list[str]:
    """The columns between tabs, or else between spaces; a word may hold other white space."""
    if "\t" in line:
        return [column.strip(" ") for column in line.split("\t")]
    return [column for column in line.split(" ") if column]


def _paragraphs(source: Source) -> Iterator[list[tuple[str, str]]]:
    """Runs of lines that are neither blank nor the mark of a document, which no blank line follows in CoNLL-2002."""
    lines: list[tuple[str, str]] = []
    for place, line in source.lines():
        if line.strip() and _columns(line)[0] != DOCUMENT_MARK:
            if lines or not _is_comment(line):
                lines.append((place, line))
        elif lines:
            yield lines
            lines = []
    if lines:
        yield lines


def _is_comment(line: str) -> bool:
    """Whether a line before a sentence is about it (`# text = ...`), and no word `#` with its tag."""
    columns = _columns(line)
    return line.startswith(("# ", "#\t")) and (columns[2:3] == ["="] or not TAG.fullmatch(columns[-1]))


def _is_wikiann(lines: Iterable[tuple[str, str]]) -> bool:
    """Whether all words of a sentence begin with a language, which distinguishes WikiANN's form from CoNLL's."""
    found = [WIKIANN_LANGUAGE.match(line) for _, line in lines if line.count("\t") == 1]
    return bool(found) and all(found)


def _wikiann_sentence(lines: Sequence[tuple[str, str]]) -> Sentence:
    told, tokens, tags = "", [], []
    for place, line in lines:
        word, tab, tag = line.partition("\t")
        language, colon, token = word.partition(":")
        if not (tab and colon and WIKIANN_LANGUAGE.match(word)) or "\t" in tag:
            raise BadRow(place, f"here is {line!r}, where WikiANN has lang:word, a tab and the tag")
        if told not in ("", language):
            raise BadRow(place, f"the sentence begins in {told!r}, this word is in {language!r}")
        told = language
        tokens.append(token)
        tags.append(tag.strip())
    return lines[0][0], told, tokens, tags


def _conll_sentence(rows: Sequence[Line], told: str | None, width: int, *, is_numbered: bool) -> Sentence:
    if width < FEWEST_COLUMNS:
        raise BadRow(rows[0][0], f"there is one column, {rows[0][1][0]!r}; needed are a word and its tag{WITHOUT_TAGS}")
    for place, columns in rows:
        if len(columns) != width:
            raise BadRow(place, f"the number of columns is {len(columns)}, and {width} in the lines before")
    if width == CONLL_U and rows[0][1][0] == "1" and not is_numbered:
        raise BadRow(rows[0][0], "this is CoNLL-U, whose ten columns hold no names; tags of words are not a task here")
    word, tag = (1, 2) if is_numbered else (0, -1)
    for number, (place, columns) in enumerate(rows if is_numbered else (), 1):
        if columns[0] != str(number):
            raise BadRow(place, f"the first column counts words elsewhere; it is {columns[0]!r} here, not {number}")
    return rows[0][0], told, [columns[word] for _, columns in rows], [columns[tag] for _, columns in rows]


# ---- columns of lists ------------------------------------------------------------------------------------------------


def _tabular(source: Source, labels: tuple[str, ...] | None) -> Iterator[Sentence]:
    names = labels or (source.class_names("ner_tags") if source.is_arrow else None)
    for row in source.table(COLUMNS) if source.is_arrow else source.objects():
        tokens, tags = _list(row, "tokens"), _list(row, "ner_tags")
        if len(tokens) != len(tags):
            raise BadRow(row.place, f"{len(tokens)} words have {len(tags)} tags")
        words = [checked_text(row.place, each, what="a word") for each in tokens]
        yield row.place, _stated_language(row), words, [_tag(row.place, each, names) for each in tags]


def _list(row: Row, name: str) -> list[object]:
    if name not in row.values:
        raise BadRow(row.place, why_no_column(name, row.values))
    value = row.values[name]
    if not isinstance(value, list):
        raise BadRow(row.place, f"{name!r} is {JSON_TYPES.get(type(value), type(value).__name__)}, not a list")
    return value


def _stated_language(row: Row) -> str | None:
    if not row.values.get("langs"):
        return None
    told = {checked_text(row.place, each, what="a language") for each in _list(row, "langs")}
    if len(told) > 1:
        raise BadRow(row.place, f"one sentence is in several languages: {', '.join(sorted(told))}")
    return told.pop()


def _tag(place: str, value: object, names: tuple[str, ...] | None) -> str:
    if isinstance(value, str):
        return value
    if type(value) is not int:
        raise BadRow(
            place, f"a tag is {JSON_TYPES.get(type(value), type(value).__name__)}, not a string or a whole number"
        )
    if names is None:
        raise BadRow(place, NUMBERS_ALONE)
    if not 0 <= value < len(names):
        raise BadRow(place, f"the label {value} is unknown; there are {len(names)}, from 0: {', '.join(names)}")
    return names[value]
