"""Tokens that were added to a tokenizer after fairseq: texts with one are tokenized as AutoTokenizer does."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from hf_xlmr.errors import InputError, IntegrityError
from hf_xlmr.files.json_edits import field_of
from hf_xlmr.files.json_files import json_object
from hf_xlmr.tokenizer.dictionary import MASK, SPECIAL_SYMBOLS, Dictionary, fillers
from hf_xlmr.tokenizer.plain_tokenizer import plain_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FAIRSEQS: Final = frozenset({*SPECIAL_SYMBOLS, MASK})
TOKENIZER: Final = "tokenizer.json"
SETTINGS: Final = ("tokenizer_config.json", "special_tokens_map.json")
OLD: Final = "added_tokens.json"  # written by Transformers up to 4.33
OF_A_LIST: Final = ("additional_special_tokens", "extra_special_tokens")
UNREACHABLE: Final = "{} (as text it is cut into other pieces)"  # no piece of a text holds a space
WORD: Final = "\u2581"


class CutText(NamedTuple):
    """A tokenized text with an added token: its ids without `<s>` and `</s>`, and their spans in the text."""

    ids: list[int]
    spans: list[tuple[int, int]]


class AddedTokens:
    """The tokens that a folder's tokenizer has beyond fairseq's, and the tokenization of texts with them."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Read the added tokens of `tokenizer`."""
        added = tokenizer.get_added_tokens_decoder()
        self.names: Mapping[int, str] = {
            number: added[number].content
            for number in sorted(added)
            if added[number].content not in FAIRSEQS
            and number >= len(SPECIAL_SYMBOLS)  # CamemBERT has other names there
        }
        """The names of added tokens by their ids."""
        self.spelled: Mapping[int, str] = {number: str(tokenizer.id_to_token(number)) for number in self.names}
        """The texts that the tokens are decoded to, by their ids; U+2581 is a space."""
        self._tokens = [added[number] for number in self.names]
        self._tokenizer = _without_fairseqs(tokenizer)

    @classmethod
    def of(cls, folder: Path, *, rows: int) -> AddedTokens | None:
        """The added tokens of the tokenizer that AutoTokenizer makes of `folder`, None if it has only fairseq's.

        Raises InputError for ids beyond the `rows` of the embedding, and for a tokenizer of another kind;
        IntegrityError.
        """
        if not names_added_tokens(folder):
            return None
        backend = getattr(plain_tokenizer(folder), "backend_tokenizer", None)
        if backend is None:
            raise InputError(f"{folder} has added tokens, and its tokenizer is not one of the tokenizers library")
        added = cls(backend)
        if beyond := [name for number, name in added.names.items() if number >= rows]:
            raise InputError(
                f"{folder}: the tokenizer has {', '.join(map(repr, beyond[:3]))} beyond the {rows} rows of the "
                "embedding: model.resize_token_embeddings(len(tokenizer)) makes rows for them, then train and save it"
            )
        return added if added.names else None

    def cut(self, texts: Sequence[str], normalize: Callable[[list[str]], list[str]]) -> Iterator[tuple[int, CutText]]:
        """Yield the number and tokenization of each text with an added token; `normalize` is SentencePiece's."""
        for number in self._candidates(texts, normalize):
            encoding = self._tokenizer.encode(texts[number], add_special_tokens=False)
            if not self.names.keys().isdisjoint(encoding.ids):
                yield number, CutText(list(encoding.ids), list(encoding.offsets))

    def as_json(self) -> str:
        """All that the tokenization of a text with an added token depends on."""
        return str(self._tokenizer.to_str())

    def extended(self, dictionary: Dictionary) -> Dictionary:
        """`dictionary` with the added tokens at their ids; rows without a name are named madeupword0000, ..."""
        symbols = list(dictionary.symbols)
        spare = fillers(dictionary)
        symbols += [next(spare) for _ in range(len(symbols), max(self.names) + 1)]
        for number, name in self.names.items():
            if number >= len(dictionary):
                symbols[number] = name
        counts = dictionary.counts and (*dictionary.counts, *[0] * (len(symbols) - len(dictionary)))
        return Dictionary.of(symbols, counts=counts)

    def _candidates(self, texts: Sequence[str], normalize: Callable[[list[str]], list[str]]) -> list[int]:
        """The numbers of the texts that contain a token's letters, before or after normalization."""
        if not any(token.normalized for token in self._tokens):
            return [number for number, text in enumerate(texts) if any(self._finder.encode(text).ids)]
        if "" in self._cores:
            return list(range(len(texts)))
        normal = normalize(list(texts))
        pairs = enumerate(zip(texts, normal, strict=True))
        return [number for number, pair in pairs if any(any(self._finder.encode(each).ids) for each in pair)]

    @cached_property
    def _cores(self) -> set[str]:
        """The letters of the tokens that match normalized text."""
        normalizer = self._tokenizer.normalizer
        contents = [token.content for token in self._tokens if token.normalized]
        normal = [each if normalizer is None else normalizer.normalize_str(each) for each in contents]
        return {each.replace(" ", WORD).strip(WORD) for each in normal}

    @cached_property
    def _finder(self) -> Tokenizer:
        """A tokenizer that gives the id 0 for everything except the letters of added tokens."""
        from tokenizers import AddedToken, Tokenizer
        from tokenizers.models import WordLevel

        finder = Tokenizer(WordLevel({"": 0}, unk_token=""))
        contents = {token.content for token in self._tokens} | self._cores
        finder.add_tokens([AddedToken(each, normalized=False) for each in sorted(contents) if each])
        return finder


def _without_fairseqs(tokenizer: Tokenizer) -> Tokenizer:
    """A copy of `tokenizer` without fairseq's special symbols among its added tokens: in a text they are plain text."""
    from tokenizers import Tokenizer

    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = [each for each in content["added_tokens"] if each["content"] not in FAIRSEQS]
    content |= {"truncation": None, "padding": None, "post_processor": None}
    model = content["model"]
    if isinstance(model["vocab"], list):
        names = ((UNREACHABLE.format(name) if name in FAIRSEQS else name, score) for name, score in model["vocab"])
        model["vocab"] = list(names)
    return Tokenizer.from_str(json.dumps(content, ensure_ascii=False))


def names_added_tokens(folder: Path) -> bool:
    """Whether any file of a tokenizer names a token that fairseq does not have. Raises IntegrityError, OSError.

    This is quick: it reads only the part of tokenizer.json before the vocabulary.
    """
    try:
        return any(name not in FAIRSEQS for name in _named(folder))
    except RecursionError as error:
        raise IntegrityError(f"the tokenizer's files in {folder} are damaged: they are nested too deeply") from error


def _named(folder: Path) -> Iterator[str]:
    if (folder / TOKENIZER).is_file():
        yield from _contents(_value(folder / TOKENIZER, "added_tokens"))
    if (folder / OLD).is_file():
        yield from map(str, json_object(folder / OLD))
    for path in (folder / name for name in SETTINGS):
        for field, value in (json_object(path) if path.is_file() else {}).items():
            if field in OF_A_LIST or field == "added_tokens_decoder" or field.endswith("_token"):
                yield from _contents(value)


def _contents(value: object) -> Iterator[str]:
    """Yield the tokens that a field names: strings, objects with a content, lists or tables of these."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict) and isinstance(value.get("content"), str):
        yield value["content"]
    elif isinstance(value, (dict, list)):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _contents(each)


def _value(path: Path, field: str) -> object:
    try:
        return field_of(path.read_text(encoding="utf-8"), field)
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"{path} is damaged: {error}") from error
