"""Features of many texts on many GPUs or machines, with Ray Data.

    pip install 'hf-xlmr[ray]'
    python ray_features.py texts.parquet features --model xlmr-base --actors 8 --gpus-per-actor 1

reads the texts of a Parquet file, of a folder of them, or of a JSON Lines file (`.jsonl`, one object a line), gives
each its vector, and writes a folder of Parquet files: the columns that were there, and `features`, float32. From a
CPU of two cores to a cluster only the two numbers change: `--actors` is how many copies of the model compute at once,
`--gpus-per-actor` and `--cpus-per-actor` what each of them has. Try it with `--model demo`.

What Ray does here: it cuts the rows into blocks, starts the actors (processes that load the model once and keep it),
hands each a batch of rows whenever it is free, and writes blocks as they come, so that neither the texts nor the
features need to fit into memory. Blocks are written in the order in which they are finished: let rows have a column
that says which they are, as `id`. A block whose process dies is computed again; a run that was stopped starts again,
in another folder.

`--model` is whatever `XLMR.from_pretrained` takes, and every machine has to reach it: a folder that all of them share,
or the name of a repository. Convert a fairseq checkpoint before (`hf-xlmr convert`), or each machine does so itself.
Where RAY_ADDRESS names a cluster the work is done there, else on this machine. Reading and writing need a CPU that no
actor holds: with none, Ray would wait for one without end, so that is refused. Ray's usage statistics are off unless
RAY_USAGE_STATS_ENABLED says otherwise.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import pyarrow as pa
import ray

from hf_xlmr import XLMR, FeatureExtractor


class AddFeatures:
    """An actor: a model that is loaded once, and gives batch after batch its features."""

    def __init__(self, *, model: str, column: str, device: str, dtype: str | None) -> None:
        """Load the model onto the device that Ray has set aside for this actor."""
        self.column = column
        self.extract = FeatureExtractor(XLMR.from_pretrained(model, device=device).eval(), dtype=dtype)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """The rows with their features, a list of fixed length, which everything that reads Parquet understands."""
        vectors = self.extract(batch[self.column].to_pylist())
        features = pa.FixedSizeListArray.from_arrays(vectors.ravel(), self.extract.width)
        return batch.append_column("features", features)


def read(texts: str) -> ray.data.Dataset:
    """The rows of Parquet or of JSON Lines."""
    reader = ray.data.read_json if texts.endswith((".jsonl", ".jsonl.gz")) else ray.data.read_parquet
    return reader(texts)


def start_ray(cpus: int) -> None:
    """On the cluster of RAY_ADDRESS, or on this machine, where reading and writing share the actors' CPUs."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # else a Ray that is started reports to its makers
    if "RAY_ADDRESS" not in os.environ:
        ray.init(num_cpus=max(cpus + 1, os.cpu_count() or 1), include_dashboard=False)
        return
    ray.init()
    if ray.cluster_resources().get("CPU", 0) < cpus + 1:
        raise SystemExit(f"the actors want {cpus} CPUs and reading one more: fewer --actors or --cpus-per-actor")


def main() -> None:
    """Read, compute, write."""
    options = parsed_options()
    try:
        start_ray(options.actors * options.cpus_per_actor)
        read(options.texts).map_batches(
            AddFeatures,
            fn_constructor_kwargs={
                "model": options.model,
                "column": options.column,
                "device": "cuda" if options.gpus_per_actor else "cpu",
                "dtype": options.dtype,
            },
            batch_format="pyarrow",
            batch_size=options.batch_size,
            compute=ray.data.ActorPoolStrategy(size=options.actors),
            num_gpus=options.gpus_per_actor,
            num_cpus=options.cpus_per_actor,
        ).write_parquet(options.output)
    finally:
        ray.shutdown()


def parsed_options() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", help="Parquet, a folder of it, or .jsonl; also s3://, gs:// and so on")
    parser.add_argument("output", help="a new folder")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--column", default="text", help="of the texts (default: text)")
    parser.add_argument("--actors", type=int, default=1, help="models that compute at once (default: 1)")
    parser.add_argument("--gpus-per-actor", type=int, default=0, choices=(0, 1), help="default: 0, on the CPU")
    parser.add_argument("--cpus-per-actor", type=int, default=1, help="threads of each (default: 1)")
    parser.add_argument("--batch-size", type=int, default=1024, help="texts handed to an actor at once (default: 1024)")
    parser.add_argument("--dtype", help="float32, bfloat16 or auto (default: that of the model)")
    options = parser.parse_args()
    if Path(options.output).exists():
        parser.error(f"{options.output} exists; rows of two runs would be mixed there")
    return options


if __name__ == "__main__":
    main()
