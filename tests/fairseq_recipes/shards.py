"""Save a checkpoint again as fairseq's trainer does under --ddp-backend fully_sharded --use-sharded-state.

Real fairscale shards from real processes (gloo, no accelerator): fairseq builds the model and loads an ordinary
checkpoint into it, its layers are wrapped, and fairseq's Trainer makes what goes into the file of each rank:
model-shard0.pt, model-shard1.pt, ...
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from fairscale.nn import enable_wrap
from fairseq import checkpoint_utils, tasks, utils
from fairseq.distributed import FullyShardedDataParallel as FairseqSharded
from fairseq.distributed import fsdp_wrap
from fairseq.trainer import Trainer

LAYER_IS_WRAPPED_FROM = 1000  # --min-params-to-wrap: every layer becomes a unit of its own


def sharded_options(config: Any, rank: int, ranks: int) -> Any:
    """The saved options, as they would be had training been started fully sharded."""
    changes = {
        "ddp_backend": "fully_sharded",
        "use_sharded_state": True,
        "distributed_backend": "gloo",
        "distributed_world_size": ranks,
        "distributed_rank": rank,
    }
    for name, value in changes.items():
        config.distributed_training[name] = value
        setattr(config.model, name, value)
    config.model.min_params_to_wrap = LAYER_IS_WRAPPED_FROM
    return config


def wrap_as_fairseq(model: torch.nn.Module) -> torch.nn.Module:
    """Each layer a unit of its own, and what is left another, as fairseq's build_encoder_layer and main do.

    fairseq's own fsdp_enable_wrap leaves no way to compute without an accelerator, and wrapping while building would
    need one to initialise the weights; wrapping afterwards gives the same units.
    """
    cpu = torch.device("cpu")
    with enable_wrap(
        wrapper_cls=FairseqSharded,
        use_sharded_state=True,
        process_group=torch.distributed.group.WORLD,
        flatten_parameters=True,
        compute_device=cpu,
        state_dict_device=cpu,
    ):
        layers = model.encoder.sentence_encoder.layers
        for index, layer in enumerate(layers):
            layers[index] = fsdp_wrap(layer, min_num_params=LAYER_IS_WRAPPED_FROM)
        return fsdp_wrap(model)


def save_shard(rank: int, ranks: int, meeting: str, checkpoint: str, output: str) -> None:
    """What one rank does."""
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=ranks)
    state = checkpoint_utils.load_checkpoint_to_cpu(checkpoint)
    config = sharded_options(state["cfg"], rank, ranks)
    task = tasks.setup_task(config.task)
    model = task.build_model(config.model)
    model.load_state_dict(state["model"], strict=True, model_cfg=config.model)
    model = wrap_as_fairseq(model)

    trainer = Trainer(config, task, model, task.build_criterion(config.criterion))
    saved = utils.move_to_cpu(trainer.state_dict())
    saved["optimizer_history"] = state["optimizer_history"]
    saved["extra_state"].update(state["extra_state"])
    torch.save(saved, Path(output) / f"model{trainer.checkpoint_suffix}.pt")


def main() -> None:
    """Start the ranks and wait for them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--ranks", type=int, default=2)
    options = parser.parse_args()

    options.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        meeting = f"file://{folder}/meeting"
        arguments = (options.ranks, meeting, str(options.checkpoint), str(options.output))
        torch.multiprocessing.spawn(save_shard, args=arguments, nprocs=options.ranks)


if __name__ == "__main__":
    main()
