"""How many texts the exported `tokenizer.json` cuts otherwise than fairseq's rule, over XLM-R's vocabulary.

    python tests/benchmarks/exported_tokenizer.py VOCABULARY_FOLDER [LINES]

The texts are the emphatic ones of sentencepiece_releases.py, and the lines of a file of ordinary text if one is given.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from sentencepiece_releases import texts_of
from transformers import AutoTokenizer

from hf_xlmr import ExactTokenizer
from hf_xlmr.conversion.tokenizer_json.vocabulary import build_vocabulary, write_tokenizer
from hf_xlmr.tokenizer.dictionary import Dictionary
from hf_xlmr.tokenizer.sentencepiece_model import SentencePieceModel

ROWS = 250_002


def main() -> None:
    """Print a line for each kind of text."""
    folder, lines = Path(sys.argv[1]), sys.argv[2:]
    model, dictionary = folder / "sentencepiece.bpe.model", (folder / "dict.txt").read_bytes()
    names = Dictionary.parse(dictionary, expected_rows=ROWS, name="dict.txt")
    exact = ExactTokenizer(names.with_mask(), model)
    vocabulary = build_vocabulary(names, SentencePieceModel.parse(model.read_bytes(), name=model.name), rows=ROWS)
    kinds = {"emphatic": texts_of(str(model))}
    if lines:
        kinds["ordinary"] = Path(lines[0]).read_text(encoding="utf-8").splitlines()
    with tempfile.TemporaryDirectory() as made:
        write_tokenizer(vocabulary, Path(made), model_max_length=512)
        exported = AutoTokenizer.from_pretrained(made)
        for kind, texts in kinds.items():
            ids = exported(texts)["input_ids"]
            differ = sum(one != other for one, other in zip(ids, exact.encode_batch(texts), strict=True))
            print(f"{kind}: {differ} of {len(texts)}")


if __name__ == "__main__":
    main()
