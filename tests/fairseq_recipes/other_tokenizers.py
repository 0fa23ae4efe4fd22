"""Make small tokenizers that are not SentencePiece's, and keep the ids that fairseq 0.12.2 gives by each of them.

OUTPUT/NAME for gpt2, hf_byte_bpe and fastbpe: the tokenizer's files, dict.txt as fairseq-preprocess counts it, and
answers.json with texts and their ids. Needs fastBPE, subword-nmt and tokenizers 0.15 in fairseq's environment.
"""

from __future__ import annotations

import argparse
import io
import json
from argparse import Namespace
from pathlib import Path
from typing import Any

from corpus import choose, read_corpus
from fairseq.data import Dictionary
from fairseq.data.encoders import build_bpe
from golden import TEXTS
from subword_nmt.learn_bpe import learn_bpe
from tokenizers import ByteLevelBPETokenizer

LANGUAGES = "en,fr,ru"
ASKED = [TEXTS[0], TEXTS[1], "Le soleil  brille, déjà!", "trains2024 🙂", ""]


def byte_level(folder: Path, lines: list[str], names: tuple[str, str]) -> None:
    """A byte-level BPE under the two `names` (vocabulary, merges)."""
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(lines, vocab_size=400, min_frequency=2)
    for made in tokenizer.save_model(str(folder)):
        Path(made).rename(folder / names["merges" in made])


def codes(folder: Path, lines: list[str]) -> None:
    """Codes in fastBPE's form: both parts of each merge, and a count."""
    learned = io.StringIO()
    learn_bpe(io.StringIO("\n".join(lines)), learned, 150)
    merges = learned.getvalue().splitlines()[1:]
    counted = [f"{merge} {len(merges) - rank}\n" for rank, merge in enumerate(merges)]
    (folder / "bpe.codes").write_text("".join(counted), encoding="utf-8")


def encode(bpe: Any, dictionary: Dictionary, text: str) -> list[int]:
    """As RobertaHubInterface.encode does."""
    line = f"<s> {bpe.encode(text)} </s>"
    return dictionary.encode_line(line, append_eos=False, add_if_not_exist=False).tolist()


def main() -> None:
    """Write the three folders."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--corpus", type=Path, required=True)
    options = parser.parse_args()

    lines = [sentence.text for sentence in choose(read_corpus(options.corpus), languages=LANGUAGES, groups=8)]
    for name in ("gpt2", "hf_byte_bpe", "fastbpe"):
        folder = options.output / name
        folder.mkdir(parents=True)
        if name == "fastbpe":
            codes(folder, lines)
        else:
            byte_level(folder, lines, ("encoder.json", "vocab.bpe") if name == "gpt2" else ("vocab.json", "merges.txt"))
        paths = {
            "gpt2": {"gpt2_encoder_json": "encoder.json", "gpt2_vocab_bpe": "vocab.bpe"},
            "hf_byte_bpe": {"bpe_vocab": "vocab.json", "bpe_merges": "merges.txt"},
            "fastbpe": {"bpe_codes": "bpe.codes"},
        }[name]
        bpe = build_bpe(
            Namespace(bpe=name, bpe_add_prefix_space=False, **{key: str(folder / path) for key, path in paths.items()})
        )
        dictionary = Dictionary()
        for line in lines:
            dictionary.encode_line(bpe.encode(line))
        dictionary.finalize()
        dictionary.save(str(folder / "dict.txt"))
        answers = {"texts": ASKED, "ids": [encode(bpe, dictionary, text) for text in ASKED]}
        (folder / "answers.json").write_text(json.dumps(answers, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
