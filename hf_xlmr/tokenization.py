"""Exact fairseq tokenization: SentencePiece cuts the text, the dictionary gives the ids."""

from __future__ import annotations

import os
import re
from array import array
from pathlib import Path
from typing import Any

from hf_xlmr.dictionary import Dictionary
from hf_xlmr.errors import IntegrityError
from hf_xlmr.sentencepiece_model import ModelType, SentencePieceModel

__all__ = ["ExactTokenizer"]

WHITE_SPACE = re.compile(r"\s+")
REPEATS = re.compile(r"(.)\1\1|(..)\2\2|(...)\3\3|(.{4,6}?)\4\4")


class ExactTokenizer:
    """What fairseq's hub interface answers to `encode`, id for id; special strings in a text are plain text."""

    def __init__(self, dictionary: Dictionary, model: bytes | str | os.PathLike[str]) -> None:
        """Join `dictionary` and a SentencePiece `model`, its bytes or its path. Raises OSError, IntegrityError."""
        self.dictionary = dictionary
        self.processor = _processor(model if isinstance(model, bytes) else Path(model).read_bytes())
        self._ties: TieBreaker | None = None

    def pieces(self, text: str) -> list[str]:
        """The strings that are looked up in the dictionary.

        fairseq.data.encoders.sentencepiece_bpe joins SentencePiece's pieces with spaces and fairseq.tokenizer splits
        them again at white space: a piece like U+0085 vanishes here.
        """
        joined = " ".join(self._segments(text))
        return [piece for piece in WHITE_SPACE.split(joined) if piece]

    def ids(self, text: str) -> list[int]:
        """The ids of `text` alone, without `<s>` and `</s>`."""
        return [self.dictionary.index(piece) for piece in self.pieces(text)]

    def encode(self, sentence: str, *more: str, no_separator: bool = False) -> list[int]:
        """`<s> sentence </s>`, and for each further sentence `</s> sentence </s>` (without the first `</s>` on demand).

        As fairseq.models.roberta.hub_interface.RobertaHubInterface.encode.
        """
        bos, eos = self.dictionary.bos_index, self.dictionary.eos_index
        encoded = [bos, *self.ids(sentence), eos]
        for further in more:
            encoded += [] if no_separator else [eos]
            encoded += [*self.ids(further), eos]
        return encoded

    def _segments(self, text: str) -> list[str]:
        """SentencePiece's pieces, ties decided as in fairseq's time; only repeats make ties."""
        segments: list[str] = self.processor.encode(text, out_type=str)
        if not REPEATS.search("".join(segments)):
            return segments
        if self._ties is None:
            data = self.processor.serialized_model_proto()
            self._ties = TieBreaker(SentencePieceModel.parse(data, name="the SentencePiece model"))
        return self._ties.segments(self.processor.normalize(text)) if self._ties.applies else segments


class TieBreaker:
    """The best path as SentencePiece up to 0.2.1 found it (unigram_model.cc, Model::EncodeOptimized).

    `aaaaaa` can be cut into the same pieces in several orders, all with the same score. Those versions compared a
    candidate in double precision with a score kept in single precision, and rounding decided; 0.2.2 and later
    compare in single precision and decide otherwise.
    """

    def __init__(self, model: SentencePieceModel) -> None:
        """Take the scores of `model`."""
        self.applies = model.model_type is ModelType.UNIGRAM and not model.byte_fallback
        self.scores = model.reachable_scores()
        self.longest = max(map(len, self.scores), default=0)
        self.unk_score = model.lowest_score - model.UNK_PENALTY

    def segments(self, text: str) -> list[str]:
        """The pieces of the normalized `text`, runs of unknown characters joined."""
        starts, known = self._best_path(text)
        cuts: list[int] = []
        end = len(text)
        while end > 0:
            if not (cuts and not known[end] and not known[cuts[-1]]):
                cuts.append(end)
            end = starts[end]
        cuts.reverse()
        return [text[start:stop] for start, stop in zip([0, *cuts], cuts, strict=False)]

    def _best_path(self, text: str) -> tuple[array[int], bytearray]:
        """For each position the start of the best last piece, and whether it is one SentencePiece knows."""
        best = array("f", bytes(4 * (len(text) + 1)))  # single precision: what is stored is rounded
        starts, known = array("l", [-1]) * (len(text) + 1), bytearray(len(text) + 1)
        for start in range(len(text)):
            till_here = best[start]
            for end in range(start + 1, min(start + self.longest, len(text)) + 1):
                score = self.scores.get(text[start:end])
                if score is not None and (starts[end] < 0 or score + till_here > best[end]):
                    best[end], starts[end], known[end] = score + till_here, start, True
            if text[start] not in self.scores:
                _add_unknown(best, starts, known, start=start, score=self.unk_score + till_here)
        return starts, known


def _add_unknown(best: array[float], starts: array[int], known: bytearray, *, start: int, score: float) -> None:
    """Offer an unknown character at `start`; SentencePiece rounds its score before it compares."""
    rounded = array("f", [score])[0]
    if starts[start + 1] < 0 or rounded > best[start + 1]:
        best[start + 1], starts[start + 1], known[start + 1] = rounded, start, False


def _processor(model: bytes) -> Any:
    """A SentencePiece processor. Raises IntegrityError."""
    from sentencepiece import SentencePieceProcessor

    try:
        return SentencePieceProcessor(model_proto=model)
    except RuntimeError as error:
        raise IntegrityError(f"SentencePiece does not accept the model: {error}") from None
