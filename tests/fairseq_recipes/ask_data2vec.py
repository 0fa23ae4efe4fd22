"""Ask the text model of fairseq's examples/data2vec, and keep its answers (fairseq 0.12.2).

Reads FOLDER/model.pt, dict.txt and sentencepiece.bpe.model, and writes answers.npz beside them: the ids of each text
and the hidden states, in eval mode, in float32. The hub interface cannot run it, as it has no masked-LM head.
"""

from __future__ import annotations

import argparse
from argparse import Namespace
from pathlib import Path

import numpy as np
import torch
from fairseq.checkpoint_utils import load_checkpoint_to_cpu
from fairseq.data.encoders import build_bpe
from fairseq.tasks import setup_task
from fairseq.utils import import_user_module
from golden import TEXTS


def main() -> None:
    """Write answers.npz for one folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("user_dir", help="fairseq's examples/data2vec")
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()

    import_user_module(Namespace(user_dir=options.user_dir))
    folder = options.folder.resolve()
    state = load_checkpoint_to_cpu(str(folder / "model.pt"), {"data": str(folder)})
    task = setup_task(state["cfg"].task)
    model = task.build_model(state["cfg"].model).eval()
    model.encoder.target_model = None  # which loading asks for, and 0.12.2's class lacks
    model.load_state_dict(state["model"])
    bpe = build_bpe(Namespace(bpe="sentencepiece", sentencepiece_model=str(folder / "sentencepiece.bpe.model")))
    arrays = {}
    with torch.no_grad():
        for index, text in enumerate(TEXTS[:6]):
            line = f"<s> {bpe.encode(text)} </s>"
            ids = task.source_dictionary.encode_line(line, append_eos=False, add_if_not_exist=False).long()
            last, extra = model(ids.unsqueeze(0), features_only=True, return_all_hiddens=True)
            hiddens = [state.transpose(0, 1) for state in extra["inner_states"]]
            arrays.update({f"ids.{index}": ids, f"last.{index}": last, f"hiddens.{index}": torch.stack(hiddens)})
    np.savez_compressed(str(folder / "answers.npz"), **{name: value.numpy() for name, value in arrays.items()})


if __name__ == "__main__":
    main()
