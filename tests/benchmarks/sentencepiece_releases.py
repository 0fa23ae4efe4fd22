"""How many emphatic texts two releases of SentencePiece cut otherwise, over one model.

    python tests/benchmarks/sentencepiece_releases.py texts MODEL > texts.json
    python tests/benchmarks/sentencepiece_releases.py pieces MODEL texts.json > 0.2.3.json   # in each environment
    python tests/benchmarks/sentencepiece_releases.py compare 0.1.86.json 0.2.3.json ...

It runs on Python 3.7 too, for which the releases of 2019 have wheels. The texts are words of the model's own vocabulary
with a letter or a mark repeated, as people write for emphasis.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

COUNT = 4000
MARKS = ("!", "?", ".", "...", "ha", "haha", "o", "a", "e", "u", "hmm", "no", "xo", "-", "=")


def texts_of(model: str) -> list[str]:
    """COUNT texts of some words, of which one is emphatic."""
    processor = loaded(model)
    pieces = [processor.id_to_piece(number) for number in range(3, processor.get_piece_size())]
    words = [piece[1:] for piece in pieces if piece.startswith("\u2581") and piece[1:].isalpha()]
    chance = random.Random(0)

    def text() -> str:
        chosen = [chance.choice(words) for _ in range(chance.randint(1, 5))]
        mark = chance.choice((*MARKS, chosen[-1][-1]))
        return " ".join(chosen) + chance.choice(("", " ")) + mark * chance.randint(4, 24)

    return [text() for _ in range(COUNT)]


def loaded(model: str) -> Any:
    """A processor, by the calls that every release has."""
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor()
    processor.Load(model)
    return processor


def main() -> None:
    """Run one of the three steps."""
    step, *given = sys.argv[1:]
    if step == "texts":
        print(json.dumps(texts_of(given[0])))
    elif step == "pieces":
        processor = loaded(given[0])
        print(json.dumps([processor.EncodeAsPieces(text) for text in json.loads(Path(given[1]).read_text())]))
    else:
        cuts = {Path(name).stem: json.loads(Path(name).read_text()) for name in given}
        for one, ours in cuts.items():
            counts = [str(sum(a != b for a, b in zip(ours, theirs))) for theirs in cuts.values()]  # noqa: B905 - 3.7
            print("| {} | {} |".format(one, " | ".join(counts)))


if __name__ == "__main__":
    main()
