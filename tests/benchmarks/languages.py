"""What X-MOD's adapters cost in features without padding: tokens a second of processor time beside XLM-R.

    OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false python tests/benchmarks/languages.py [--dtype bfloat16]

Four layers of base's width with random weights, and 81 languages, read from folders as `extract` reads them. The texts
are the same for all: in XLM-R, in X-MOD in one language, and in 13 and in all 81 languages mixed. Each run computes all
texts once; the best of five in turns. An adapter is 8 % of a layer's multiplications.
"""

from __future__ import annotations

import argparse
import random
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import transformers

from hf_xlmr import FeatureExtractor
from hf_xlmr.model.adapters import RELEASE_LANGUAGES

SENTENCEPIECE = Path(__file__).parents[1] / "fixtures" / "xmod" / "base" / "sentencepiece.bpe.model"
LANGUAGES = RELEASE_LANGUAGES[81]
SIZES = {"vocab_size": 219, "max_position_embeddings": 514, "num_hidden_layers": 4, "type_vocab_size": 1}
TEXTS, TRIALS = 2048, 5


def extractor(folder: Path, network: transformers.PreTrainedModel, dtype: str) -> FeatureExtractor:
    """One over a network that was saved with the tokenizer."""
    network.save_pretrained(folder)
    shutil.copy(SENTENCEPIECE, folder)
    return FeatureExtractor.from_pretrained(folder, dtype=dtype)


def main(dtype: str) -> None:
    """Print a line for each."""
    torch.set_num_threads(1)
    chosen = random.Random(1)
    texts = ["The train leaves. " * chosen.randint(1, 3) for _ in range(TEXTS)]
    spoken = {count: [chosen.choice(LANGUAGES[:count]) for _ in texts] for count in (1, 13, 81)}
    with tempfile.TemporaryDirectory() as folder:
        plain = transformers.XLMRobertaForMaskedLM(transformers.XLMRobertaConfig(**SIZES))
        adapted = transformers.XmodForMaskedLM(transformers.XmodConfig(**SIZES, languages=list(LANGUAGES)))
        xlmr, xmod = (extractor(Path(folder, each.config.model_type), each, dtype) for each in (plain, adapted))
        runs: dict[str, Callable[[], np.ndarray]] = {"XLM-R": lambda: xlmr(texts)}
        for count, languages in spoken.items():
            runs[f"X-MOD, {count} languages"] = lambda languages=languages: xmod(texts, languages)  # type: ignore[misc]
        tokens, took = sum(len(xlmr.texts.tokenizer.ids(text)) + 2 for text in texts), dict[str, list[float]]()
        for _ in range(TRIALS):
            for name, run in runs.items():
                start = time.process_time()
                run()
                took.setdefault(name, []).append(time.process_time() - start)
    for name, seconds in took.items():
        told = f"{tokens / min(seconds):8,.0f} tokens/s, {min(seconds) / min(took['XLM-R']):.2f} times XLM-R"
        print(f"{name:22} {told} ({xmod.kernel}, {dtype})")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", default="bfloat16")
    main(parser.parse_args().dtype)
