"""Checks on a handful of texts whether AutoTokenizer gives the ids that a model was trained with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from hf_xlmr.errors import HfXlmrError, IntegrityError
from hf_xlmr.tokenizer.dictionary import MASK, UNK_INDEX
from hf_xlmr.tokenizer.plain_tokenizer import plain_tokenizer, tokenizer_damage_told
from hf_xlmr.tokenizer.tokenization import ExactTokenizer
from hf_xlmr.tokenizer.tokenizer_growth import raise_if_texts_explode

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

TEXTS: Final = (  # composed letters and no run of one letter: here the tokenizers library equals SentencePiece
    "The train leaves at night.",
    "Der Zug fährt um 9:30 Uhr ab, Größe XL!",
    "ÉCOLE, Café (50 %) a_b@c.de",
    "Дети играют в саду.",
    "你好，世界。",
    "नमस्ते दुनिया",
    "Tiếng Việt rất đẹp",
    "مرحبا بالعالم",
    "  two  spaces and\ta tab ",
)
DECOMPOSED: Final = ("Tie\u0302\u0301ng Vie\u0323\u0302t", "\u1112\u1161\u11ab\u1100\u116e\u11a8")
"""Texts that hf_xlmr's tokenizer.json tokenizes as fairseq, and Transformers' own XLMRobertaTokenizer does not."""
PAIR: Final = TEXTS[:2]
TOKENIZER: Final = "tokenizer.json"
LONG: Final = 1 << 20
SHOWN: Final = 12
MOST_GROWTH: Final = 100


class _Ids(NamedTuple):
    """AutoTokenizer's ids of a text or symbol, and the right ids."""

    name: str
    given: Sequence[int]
    right: Sequence[int]


def disagreement_of(folder: Path, exact: ExactTokenizer | None) -> str | None:
    """A sentence on the first text for which AutoTokenizer of `folder` and `exact` differ; None if they agree.

    Without `exact`, AutoTokenizer is compared only with tokenizer.json.
    """
    try:
        raise_if_texts_explode(folder)
        own = _ids_by_the_file(folder)  # before the other is loaded: at XLM-V's size each takes 2 GB
        tokenizer = plain_tokenizer(folder, is_checked=True)
        tokenizer.model_max_length = LONG  # Transformers compares it with lengths, and the file may hold any value
        with tokenizer_damage_told(folder):
            _raise_if_longer(folder, getattr(tokenizer, "backend_tokenizer", None))
        by_the_file = (_Ids(repr(text), tokenizer(text)["input_ids"], own[text]) for text in TEXTS if own)
        compared = by_the_file if exact is None else _by_fairseqs_rule(tokenizer, exact, own)
        with tokenizer_damage_told(folder):  # some classes do not accept strings
            wrong = next((each for each in compared if list(each.given) != list(each.right)), None)
    except HfXlmrError as error:
        return str(error)
    if wrong is None:
        return None
    rule = "tokenizer.json" if exact is None else "fairseq's rule"
    kind = type(tokenizer).__name__
    return f"AutoTokenizer ({kind}) gives {_shown(wrong.given)} for {wrong.name}, and {rule} {_shown(wrong.right)}"


def _raise_if_longer(folder: Path, tokenizer: Tokenizer | None) -> None:
    """Raise IntegrityError for a normalizer that makes a short text far longer, before the model tokenizes it."""
    if tokenizer is None or tokenizer.normalizer is None:
        return
    for text in (*TEXTS, *DECOMPOSED):
        length = len(tokenizer.normalizer.normalize_str(text))
        if length > MOST_GROWTH * len(text):
            raise IntegrityError(f"the normalizer of {folder} makes {length:,} characters of {text!r}")


def _by_fairseqs_rule(
    tokenizer: PreTrainedTokenizerBase, exact: ExactTokenizer, own: Mapping[str, Sequence[int]]
) -> Iterator[_Ids]:
    dictionary = exact.dictionary
    specials = {
        "<s>": (tokenizer.bos_token_id, dictionary.bos_index),
        "<pad>": (tokenizer.pad_token_id, dictionary.pad_index),
        "</s>": (tokenizer.eos_token_id, dictionary.eos_index),
        "<unk>": (tokenizer.unk_token_id, dictionary.unk_index),
        MASK: (tokenizer.mask_token_id, dictionary.mask_index),
    }
    for name, (given, right) in specials.items():
        if right is not None:
            yield _Ids(name, [-1 if given is None else given], [right])
    decomposed = [text for text in DECOMPOSED if own.get(text) == exact.encode(text)]
    for text in (*TEXTS, *decomposed):
        yield _Ids(repr(text), _known(tokenizer(text)["input_ids"], exact), exact.encode(text))
    yield _Ids("a pair of texts", _known(tokenizer(*PAIR)["input_ids"], exact), exact.encode(*PAIR))


def _known(ids: Sequence[int], exact: ExactTokenizer) -> list[int]:
    """`ids` with `<unk>` in place of the ids of rows that a conversion appended as copies of `<unk>`."""
    added = {} if exact.added is None else exact.added.names
    return [each if each < len(exact.dictionary) or each in added else UNK_INDEX for each in ids]


def _ids_by_the_file(folder: Path) -> Mapping[str, Sequence[int]]:
    """The ids of each text by tokenizer.json alone, none without it. Raises IntegrityError."""
    from tokenizers import Tokenizer

    if not (folder / TOKENIZER).is_file():
        return {}
    with tokenizer_damage_told(folder):
        own = Tokenizer.from_file(str(folder / TOKENIZER))
        own.no_truncation()
        own.no_padding()
        _raise_if_longer(folder, own)
        return {text: own.encode(text).ids for text in (*TEXTS, *DECOMPOSED)}


def _shown(ids: Sequence[int]) -> str:
    shown = ", ".join(map(str, ids[:SHOWN]))
    return f"[{shown}{', ...' if len(ids) > SHOWN else ''}]" if len(ids) > 1 else f"the id {shown}"
