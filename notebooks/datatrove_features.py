"""Features as a step of a pipeline of datatrove: reads Parquet, adds a vector to each document, writes Parquet.

    pip install 'hf-xlmr[datatrove]'
    python datatrove_features.py texts features --model xlmr-base --tasks 8

`texts` is a folder of Parquet files with the columns `text` and `id`. Each task takes its share of the files, so there
should be at least as many files as tasks. A task that is done is not done again: after a break, run the same command.
On a cluster with Slurm, replace `LocalPipelineExecutor` by `SlurmPipelineExecutor`.
"""

from __future__ import annotations

import argparse

from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.readers import ParquetReader
from datatrove.pipeline.writers import ParquetWriter

from hf_xlmr.features.datatrove import XLMRFeatures


def main() -> None:
    """Run the pipeline."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", help="a folder of Parquet files; also s3://, hf:// and so on")
    parser.add_argument("output", help="a folder, which gets a file for each task, and logs")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--tasks", type=int, default=1)
    options = parser.parse_args()
    pipeline = [
        ParquetReader(options.texts),
        XLMRFeatures(options.model, layers=-1, pool="mean"),
        ParquetWriter(options.output, expand_metadata=True),
    ]
    logs = f"{options.output}/logs"
    LocalPipelineExecutor(pipeline, tasks=options.tasks, workers=options.tasks, logging_dir=logs).run()


if __name__ == "__main__":
    main()
