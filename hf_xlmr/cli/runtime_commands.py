"""The sub-commands about what others run: folders for sentence-transformers, ONNX and OpenVINO, and their proof."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from hf_xlmr.cli.command_help import add_command
from hf_xlmr.cli.command_output import AsJson, Quiet, Verbose, called_with, print_result, progress_of_command
from hf_xlmr.cli.values import decimal, one_of
from hf_xlmr.errors import IntegrityError

__all__ = ["register"]

Output = Annotated[Path, typer.Argument(metavar="OUTPUT", help="The folder to create; it appears when it is complete.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace OUTPUT once the new folder is complete.")]
ModelDir = Annotated[Path, typer.Argument(metavar="MODEL_DIR", help="A Transformers folder, converted or not.")]
Pool = Annotated[
    str,
    one_of(
        *("mean", "cls", "max", "none"),
        about="How the graph makes one vector of those of a text's tokens, as in extract; with none it answers as the "
        "folder's class does.",
    ),
]
Dtype = Annotated[
    str,
    one_of(
        *("float32", "float16", "int8"),
        about="What the graph computes in, int8 in products with weights; for OpenVINO what its weights are stored in.",
    ),
]
Normalize = Annotated[bool, typer.Option("--normalize", help="Divide each pooled vector by its length, in the graph.")]
EncoderOnly = Annotated[
    bool, typer.Option("--encoder-only", help="Leave the head out: the graph answers with the vector of every token.")
]


def register(app: typer.Typer) -> None:
    """Add the sub-commands to the program."""
    add_command(app, to_sentence_transformers)
    add_command(app, _runtime_command("to_onnx", "ONNX Runtime"))
    add_command(app, _runtime_command("to_openvino", "OpenVINO"))
    add_command(app, verify_runtime)


def to_sentence_transformers(
    model_dir: Annotated[
        Path, typer.Argument(metavar="MODEL_DIR", help="A Transformers folder of an encoder or a masked LM.")
    ],
    output: Output,
    pool: Annotated[
        str, one_of("mean", "cls", "max", about="How the vectors of a text's tokens become one vector, as in extract.")
    ] = "mean",
    onnx_backend: Annotated[
        bool,
        typer.Option(
            "--onnx-backend",
            help="Write settings that sentence-transformers' ONNX backend takes too; PyTorch then adds a random "
            "pooler, on which no vector rests.",
        ),
    ] = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Make a folder that sentence-transformers loads, with the same vectors as extract, from a Transformers folder."""
    from hf_xlmr.cli.console import show_sentence_transformers
    from hf_xlmr.conversion import to_sentence_transformers as run

    report = run(model_dir, output, pool=pool, onnx_backend=onnx_backend, overwrite=overwrite)
    print_result(report, show_sentence_transformers, as_json=as_json, quiet=quiet)


def _runtime_command(name: str, runtime: str) -> Callable[..., None]:
    def command(
        model_dir: ModelDir,
        output: Output,
        dtype: Dtype = "float32",
        pool: Pool = "none",
        normalize: Normalize = False,
        encoder_only: EncoderOnly = False,
        overwrite: Overwrite = False,
        as_json: AsJson = False,
        quiet: Quiet = False,
        verbose: Verbose = False,
    ) -> None:
        given = locals()
        from hf_xlmr import exporting
        from hf_xlmr.cli.console import show_runtime

        print_result(called_with(getattr(exporting, name), given), show_runtime, as_json=as_json, quiet=quiet)

    command.__name__ = name
    command.__doc__ = f"Make a folder that {runtime} runs, from a Transformers folder, and compare what it computes."
    return command


def verify_runtime(
    model_dir: ModelDir,
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET",
            help="A folder or file of ONNX, OpenVINO, CTranslate2, sentence-transformers or Transformers, or the "
            "address of a server, such as http://localhost:8080.",
        ),
    ],
    texts: Annotated[
        str | None, typer.Option("--texts", metavar="FILE", help="Your own texts, which are compared, too.")
    ] = None,
    pool: Annotated[
        str | None,
        one_of(
            *("mean", "cls", "max"),
            about="How TARGET should make one vector of those of a text's tokens.",
            usual="as the graph says, or mean",
        ),
    ] = None,
    normalize: Annotated[
        bool | None,
        typer.Option(
            "--normalize/--no-normalize",
            help="Whether its vectors should have the length 1.",
            show_default="as the interface or the folder says",
        ),
    ] = None,
    tolerance: Annotated[
        float, decimal(about="The largest difference that is right, as a share of the answer's largest value.")
    ] = 1e-5,
    timeout: Annotated[float, decimal(about="Seconds after which a server's answer is not waited for.")] = 60.0,
    report: Annotated[
        Path | None, typer.Option("--report", metavar="FILE", help="Write the comparison as an HTML page.")
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Compare what a runtime answers with fairseq's answers, and name its fault; the exit code is 1 if it differs."""
    given = locals()
    from hf_xlmr.cli.console import show_conformance
    from hf_xlmr.conformance import compare

    found = called_with(compare, given, progress=progress_of_command(shown=not quiet))
    print_result(found, show_conformance, as_json=as_json, quiet=quiet)
    if not found.agrees:
        raise typer.Exit(IntegrityError.exit_code)
