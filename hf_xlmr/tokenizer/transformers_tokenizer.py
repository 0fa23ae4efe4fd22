"""fairseq's exact tokenization as a tokenizer of Transformers, for Trainer and its collators.

No part of a text becomes a special symbol, and decomposed text, odd white space and ties give fairseq's ids. The
tokenizer runs SentencePiece, so it has no offsets and no word_ids; the folder's tokenizer.json has those.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from transformers import PreTrainedTokenizer

from hf_xlmr.errors import InputError
from hf_xlmr.model.folder_records import read_kept
from hf_xlmr.tokenizer.added_tokens import names_added_tokens
from hf_xlmr.tokenizer.dictionary import BOS, EOS, MASK, PAD, UNK, Dictionary
from hf_xlmr.tokenizer.tokenization import ExactTokenizer, text_of_symbols

SPECIAL_TOKENS: Final = {
    "bos_token": BOS,
    "cls_token": BOS,
    "eos_token": EOS,
    "sep_token": EOS,
    "unk_token": UNK,
    "pad_token": PAD,
}
OF_OTHER_TOKENIZERS: Final = ("added_tokens_decoder", "tokenizer_file", "special_tokens_pattern", "backend")


class XLMRTokenizer(PreTrainedTokenizer):
    """A tokenizer with the interface of Transformers and the ids of fairseq's `encode`.

    `from_pretrained` accepts any folder that `hf-xlmr convert` or `save_pretrained` wrote; both keep fairseq's files
    under `fairseq/`.
    """

    vocab_files_names = {  # noqa: RUF012  # as in the base class
        "dictionary_file": "fairseq/dict.txt",
        "vocab_file": "fairseq/sentencepiece.bpe.model",
        "tokenizer_file": "tokenizer.json",  # read only to find added tokens
    }
    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012  # as in the base class
    _auto_class = "AutoTokenizer"  # save_pretrained records how AutoTokenizer finds this class

    def __init__(self, dictionary_file: str | None = None, vocab_file: str | None = None, **options: object) -> None:
        """Load fairseq's dict.txt and SentencePiece model; `options` are those of any tokenizer of Transformers.

        `<mask>` is added as fairseq's masked_lm tasks add it, unless `options` name special tokens without it. Raises
        InputError, IntegrityError, OSError.
        """
        if dictionary_file is None or vocab_file is None:
            raise InputError(
                "fairseq's dict.txt and SentencePiece model are needed: name a folder that hf-xlmr convert made (they "
                "are under fairseq/), or pass dictionary_file= and vocab_file=."
            )
        _raise_if_added(options.get("tokenizer_file"))
        given = {"dictionary_file": Path(dictionary_file), "vocab_file": Path(vocab_file)}
        self._files = {kind: read_kept(path.parent, path.name) for kind, path in given.items()}
        dictionary = Dictionary.parse(self._files["dictionary_file"], name=str(dictionary_file))
        if MASK in dictionary or "mask_token" in options or "unk_token" not in options:
            dictionary, options = dictionary.with_mask(), {**options, "mask_token": MASK}
        self.exact = ExactTokenizer(dictionary, self._files["vocab_file"])
        for name in OF_OTHER_TOKENIZERS:
            options.pop(name, None)
        settings = {**options, **SPECIAL_TOKENS, "token_type_ids_pattern": "all_zeros"}
        super().__init__(**settings)  # type: ignore[no-untyped-call]

    @property
    def vocab_size(self) -> int:
        """The number of rows of the dictionary, `<mask>` included."""
        return len(self.exact.dictionary)

    def __len__(self) -> int:
        return self.vocab_size

    def get_vocab(self) -> dict[str, int]:
        """A dictionary from every symbol to fairseq's id."""
        return {symbol: self._convert_token_to_id(symbol) for symbol in self.exact.dictionary.symbols}

    def add_tokens(self, new_tokens: Any, special_tokens: bool = False) -> int:
        """Raise InputError for tokens that fairseq's vocabulary lacks, since it cannot grow."""
        given = new_tokens if isinstance(new_tokens, (list, tuple)) else [new_tokens]
        strange = [str(token) for token in given if str(token) not in self.exact.dictionary]
        if strange:
            raise InputError(
                f"{', '.join(strange)}: fairseq's vocabulary cannot grow. Use AutoTokenizer.from_pretrained for the "
                "folder's tokenizer.json, which can."
            )
        return super().add_tokens(new_tokens, special_tokens=special_tokens)

    def tokenize(self, text: str, pair: str | None = None, add_special_tokens: bool = False, **_: object) -> list[str]:
        """The pieces of `text` by fairseq's tokenization; names of special symbols in it stay text."""
        if not isinstance(text, str):
            raise InputError(f"A text is needed, not {type(text).__name__}: {text!r:.60}")
        pieces = self.exact.pieces(text) + (self.exact.pieces(pair) if pair is not None else [])
        return [str(self.bos_token), *pieces, str(self.eos_token)] if add_special_tokens else pieces

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """The ids with special symbols: `<s> A </s>`, or `<s> A </s></s> B </s>`."""
        return self.exact.framed([token_ids_0] if token_ids_1 is None else [token_ids_0, token_ids_1])

    def get_special_tokens_mask(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None, already_has_special_tokens: bool = False
    ) -> list[int]:
        """A mask: 1 for `<s>` and `</s>` that are added, 0 for pieces; for whole sequences, 1 at every special id."""
        if already_has_special_tokens:
            return list(super().get_special_tokens_mask(token_ids_0, token_ids_1, already_has_special_tokens=True))
        mask = [1, *(0 for _ in token_ids_0), 1]
        return mask if token_ids_1 is None else [*mask, 1, *(0 for _ in token_ids_1), 1]

    def convert_tokens_to_string(self, tokens: Sequence[str]) -> str:
        """The text of pieces, as fairseq decodes them."""
        return text_of_symbols(" ".join(tokens))

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Write fairseq's two files, byte for byte, to the paths that `from_pretrained` reads."""
        written = []
        for kind in self._files:
            name = self.vocab_files_names[kind]
            path = Path(save_directory) / name
            if filename_prefix:
                path = path.with_name(f"{filename_prefix}-{path.name}")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self._files[kind])
            written.append(str(path))
        return tuple(written)

    def _convert_token_to_id(self, token: str) -> int:
        dictionary = self.exact.dictionary
        fixed = {PAD: dictionary.pad_index, UNK: dictionary.unk_index}
        return fixed[token] if token in fixed else dictionary.index(token)

    def _convert_id_to_token(self, index: int) -> str:
        symbols = self.exact.dictionary.symbols
        return symbols[index] if 0 <= index < len(symbols) else UNK


def _raise_if_added(tokenizer_file: object) -> None:
    """Raise InputError if the folder of a tokenizer.json has tokens that fairseq does not."""
    if tokenizer_file and names_added_tokens(Path(str(tokenizer_file)).parent):
        raise InputError(
            f"{Path(str(tokenizer_file)).parent} has added tokens, and fairseq's vocabulary cannot grow: use "
            "AutoTokenizer or XLMR, which support them"
        )
