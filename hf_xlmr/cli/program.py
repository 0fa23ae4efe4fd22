"""The program `hf-xlmr`: each sub-command parses its options, calls one function, prints, and sets the exit code."""

from __future__ import annotations

import atexit
import io
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn, TextIO
from urllib.parse import urlsplit

import typer

from hf_xlmr import __version__
from hf_xlmr.cli import publish_commands, runtime_commands, task_commands
from hf_xlmr.cli.command_help import Program, add_command
from hf_xlmr.cli.command_output import (
    LOGGER,
    AsJson,
    Quiet,
    Verbose,
    called_with,
    is_verbose,
    print_result,
    progress_of_command,
)
from hf_xlmr.cli.flags import Flag, flags_of, in_flags
from hf_xlmr.cli.values import decimal, one_of, whole
from hf_xlmr.errors import HfXlmrError, InputError, in_words, printable
from hf_xlmr.features.processes import is_first_of_all
from hf_xlmr.placement.planner import DEFAULT_TOKENS

if TYPE_CHECKING:
    from hf_xlmr.features.bulk_extraction import ExtractionReport

__all__ = ["app", "main"]

WIDEST_HELP = 120

app = typer.Typer(
    name="hf-xlmr",
    cls=Program,
    help="fairseq XLM-R checkpoints, exactly, in Hugging Face Transformers: no fairseq, no pickle run.",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": WIDEST_HELP},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

SOURCE_HELP = (
    "A folder with model.pt and dict.txt, a .pt file, a .tar, .tar.gz or .tgz archive, a release name "
    "(xlmr.base, xlmr.large, xlmr.xl, xlmr.xxl, xlmr.base.v0, xlmr.large.v0, xmod.base, ...), or demo."
)


STORED_DTYPES = ("auto", "float32", "float16", "bfloat16")
COMPUTED_DTYPES = (*STORED_DTYPES, "int8")


DATA_HELP = "The folder with dict.txt and label/dict.txt, if they are not next to the checkpoint (a data-bin)."

Source = Annotated[str, typer.Argument(metavar="SOURCE", help=SOURCE_HELP)]
Data = Annotated[Path | None, typer.Option("--data", metavar="DIR", help=DATA_HELP)]
Ema = Annotated[bool, typer.Option("--ema", help="Take the moving average of the weights (--store-ema of fairseq).")]
AttentionHeads = Annotated[
    int | None,
    whole("--attention-heads", least=1, about="Heads per layer, if the checkpoint has no options that say it."),
]


Output = Annotated[Path, typer.Argument(metavar="OUTPUT", help="The folder to create; it appears when it is complete.")]
StoredDtype = Annotated[str, one_of(*STORED_DTYPES, about="The type of the weights; auto keeps each as it is stored.")]
MaxShardSize = Annotated[str, typer.Option(help="The size of the largest weights file, such as 5GB or 500MB.")]
Head = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="The classification head to convert; none converts the masked LM."),
]
EncoderOnly = Annotated[bool, typer.Option("--encoder-only", help="Convert the encoder without any head.")]
Languages = Annotated[
    list[str] | None,
    typer.Option("--language", metavar="CODE", help="For the model card, such as de. May be given several times."),
]
Licence = Annotated[
    str | None, typer.Option("--license", metavar="ID", help="For the model card, such as mit or apache-2.0.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace OUTPUT once the new folder is complete.")]
Verify = Annotated[
    bool, typer.Option("--verify/--no-verify", help="Compare every weight and the outputs before OUTPUT appears.")
]


def convert(
    source: Source,
    output: Output,
    data: Data = None,
    dtype: StoredDtype = "auto",
    max_shard_size: MaxShardSize = "5GB",
    head: Head = None,
    encoder_only: EncoderOnly = False,
    attention_heads: AttentionHeads = None,
    ema: Ema = False,
    languages: Languages = None,
    licence: Licence = None,
    overwrite: Overwrite = False,
    verify: Verify = True,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Convert a fairseq XLM-R checkpoint into a folder that Transformers loads."""
    given = locals()
    from hf_xlmr.cli.console import show_conversion
    from hf_xlmr.conversion import convert as run

    progress = progress_of_command(shown=not quiet)
    report = called_with(run, given, languages=languages or (), progress=progress)
    print_result(report, show_conversion, as_json=as_json, quiet=quiet)


def inspect(
    source: Source,
    data: Data = None,
    ema: Ema = False,
    attention_heads: AttentionHeads = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Report what a checkpoint holds and what it would become, without reading its tensors."""
    from hf_xlmr.cli.console import show_inspection
    from hf_xlmr.conversion import inspect as run

    inspection = run(
        source, data=data, ema=ema, attention_heads=attention_heads, progress=progress_of_command(shown=True)
    )
    print_result(inspection, partial(show_inspection, flags=_flags()), as_json=as_json)


Folder = Annotated[
    Path,
    typer.Argument(
        metavar="OUTPUT",
        help="The folder that convert made from SOURCE, or from which SOURCE was exported; in either order.",
    ),
]
Report = Annotated[Path | None, typer.Option("--report", metavar="FILE", help="Write the proof as an HTML page.")]
Record = Annotated[
    bool, typer.Option("--record", help="Record the proof in OUTPUT, if it was converted with --no-verify.")
]


def verify(
    source: Source,
    folder: Folder,
    data: Data = None,
    report: Report = None,
    record: Record = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Prove that a converted folder equals its checkpoint, or that an exported checkpoint equals its folder."""
    from hf_xlmr.cli.console import show_parity
    from hf_xlmr.conversion import verify as run

    found = run(source, folder, data=data, report=report, record=record, progress=progress_of_command(shown=not quiet))
    print_result(found, show_parity, as_json=as_json, quiet=quiet)


ModelDir = Annotated[Path, typer.Argument(metavar="MODEL_DIR", help="A Transformers folder, fine-tuned or not.")]


def export(
    model_dir: ModelDir,
    output: Output,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Export a Transformers folder into a checkpoint that fairseq loads."""
    from hf_xlmr.cli.console import show_export
    from hf_xlmr.conversion import export as run

    report = run(model_dir, output, overwrite=overwrite, progress=progress_of_command(shown=not quiet))
    print_result(report, show_export, as_json=as_json, quiet=quiet)


Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="A folder with config.json, or what convert takes as SOURCE.")
]
MaxMemory = Annotated[
    str | None,
    typer.Option(
        metavar="DEVICES",
        help="Such as 0=24GiB,1=24GiB,cpu=64GiB,disk=unlimited.",
        show_default="what GPUs, memory and disk of this machine have free",
    ),
]
PlannedDtype = Annotated[
    str,
    one_of(
        *COMPUTED_DTYPES,
        about="The type of the weights; auto is the type in which they are stored (of a release by its name, which is "
        "not read: float32), int8 what extract computes in on a CPU.",
    ),
]
Tokens = Annotated[int, whole(least=1, about="Tokens of a batch, padding included.")]


def plan(
    model: Model,
    max_memory: MaxMemory = None,
    dtype: PlannedDtype = "auto",
    tokens: Tokens = DEFAULT_TOKENS,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Report which layer would go on which device; if the model does not fit (exit code 2), what would fit."""
    from hf_xlmr.cli.console import show_placement
    from hf_xlmr.conversion.preview import shape_of
    from hf_xlmr.files.memory import available_memory, parse_max_memory
    from hf_xlmr.placement.planner import lay_out

    memory = available_memory() if max_memory is None else parse_max_memory(max_memory)
    placement = lay_out(shape_of(model), max_memory=memory, dtype=dtype, tokens=tokens)
    print_result(placement, show_placement, as_json=as_json)
    if not placement.fits:
        raise typer.Exit(InputError.exit_code)


AnyModel = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="A Transformers folder, an id on the Hub, or what convert takes as SOURCE."),
]
Texts = Annotated[
    str,
    typer.Argument(
        metavar="INPUT",
        help="Texts: .txt (one per line), .jsonl, .csv, .tsv, .parquet, also as .gz or .zst, a folder or 'pattern*' of "
        "these, a URL (hf://, s3://, https://), a saved data set, an id of one on the Hub, or - for standard input.",
    ),
]
FeaturesDir = Annotated[Path, typer.Argument(metavar="OUTPUT", help="The folder of features to make.")]
Column = Annotated[str, typer.Option(metavar="NAME", help="The column of the texts.")]
IdColumn = Annotated[str | None, typer.Option(metavar="NAME", help="A column to copy into the output, as id.")]
Language = Annotated[
    str | None,
    typer.Option(
        metavar="CODE",
        help="For X-MOD: the language of all texts, such as sw_KE.",
        show_default="the model's, or en_XX",
    ),
]
LanguageColumn = Annotated[
    str | None, typer.Option(metavar="NAME", help="For X-MOD: a column that names the language of each text.")
]
Split = Annotated[str | None, typer.Option(metavar="NAME", help="The split of a data set, such as train.")]
Config = Annotated[
    str | None, typer.Option(metavar="NAME", help="The configuration of a data set on the Hub, such as de.")
]
MaxRowSize = Annotated[
    str, typer.Option(metavar="SIZE", help="A longer line or value is refused, and its place named.")
]
Layers = Annotated[
    str,
    typer.Option(metavar="LIST", help="The layers to write, such as -1 (the features) or 0,6,12; 0 is the embeddings."),
]
Pooling = Annotated[
    str,
    one_of(
        "mean",
        "cls",
        "max",
        "none",
        about="How the vectors of a text's tokens become one vector; none keeps the vector of every token.",
    ),
]
ComputeDtype = Annotated[
    str,
    one_of(
        *COMPUTED_DTYPES,
        about="The type to compute in; auto is bfloat16 if the hardware multiplies it natively, else float32. int8 is "
        "for CPUs: it is compared with float32 on the first 64 texts.",
    ),
]
LeastCosine = Annotated[
    float,
    decimal(least=-1, most=1, about="With int8: the lowest cosine to float32 that a vector of these texts may have."),
]
EmulateDtype = Annotated[
    bool,
    typer.Option(
        "--emulate-dtype",
        help="Compute in --dtype even if the processor has no instructions for it, which takes many times as long "
        "as float32, the default on such processors.",
    ),
]
TokensPerBatch = Annotated[
    int | None, whole(least=1, about="Tokens of a batch.", usual="2048 on a CPU, 16384 on a GPU")
]
MaxLength = Annotated[
    int | None, whole(least=3, about="Tokens of a text.", usual="the most that the model takes, such as 512")
]
LongTexts = Annotated[
    str, one_of("truncate", "split", "error", about="Whether longer texts are truncated, split, or an error.")
]
FeaturesFormat = Annotated[str, one_of("parquet", "npy", flag="--format", about="The format of the output files.")]
FeaturesDtype = Annotated[str, one_of("float32", "float16", about="The type of the features in the files.")]
RowsPerShard = Annotated[
    int | None,
    whole(
        least=1,
        about="Texts in each output file, which are lost if the run is killed while they are computed.",
        usual="8192 on a GPU; on a CPU fewer the larger the model is: base 512, large 128, XL 16; with --resume those "
        "of the run",
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="The device to compute on, such as cpu or cuda:1.", show_default="the GPU, if there is one"
    ),
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue an OUTPUT that is not finished.")]
OverwriteFeatures = Annotated[
    bool, typer.Option("--overwrite", help="Replace an OUTPUT of an earlier run, once the first text was read.")
]
RayAddress = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        help="Compute with the actors of a Ray: local starts one on this machine, auto is the cluster of RAY_ADDRESS "
        "or of this machine; or an address such as 10.0.0.1:6379. All nodes must share INPUT and OUTPUT.",
    ),
]
Actors = Annotated[
    int | None,
    whole(
        least=1,
        about="With --ray: the copies of the model.",
        usual="as many as there is room for; without GPUs and --cpus-per-actor one on each machine",
    ),
]
GpusPerActor = Annotated[int | None, whole(least=0, about="With --ray: the GPUs of each.", usual="1 if there are any")]
CpusPerActor = Annotated[
    int | None, whole(least=1, about="With --ray: the threads of each.", usual="the most that all can have")
]


def extract(
    model: AnyModel,
    source: Texts,
    output: FeaturesDir,
    column: Column = "text",
    id_column: IdColumn = None,
    language: Language = None,
    language_column: LanguageColumn = None,
    split: Split = None,
    config: Config = None,
    max_row_size: MaxRowSize = "16MB",
    layers: Layers = "-1",
    pool: Pooling = "mean",
    dtype: ComputeDtype = "auto",
    least_cosine: LeastCosine = 0.99,
    emulate_dtype: EmulateDtype = False,
    tokens_per_batch: TokensPerBatch = None,
    max_length: MaxLength = None,
    on_long: LongTexts = "truncate",
    file_format: FeaturesFormat = "parquet",
    store_dtype: FeaturesDtype = "float32",
    rows_per_shard: RowsPerShard = None,
    device: Device = None,
    resume: Resume = False,
    overwrite: OverwriteFeatures = False,
    ray: RayAddress = None,
    actors: Actors = None,
    gpus_per_actor: GpusPerActor = None,
    cpus_per_actor: CpusPerActor = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Write the features of any number of texts, computed without padding; on many devices under torchrun or Ray."""
    given = locals()
    from hf_xlmr.cli.console import show_extraction
    from hf_xlmr.features.bulk_extraction import ExtractionOptions

    options = called_with(ExtractionOptions, given, layers=_numbers(layers))
    is_first = is_first_of_all()  # one of several processes prints
    shown = progress_of_command(shown=is_first and not quiet)
    report = called_with(_extract_with(given), given, options=options, progress=shown)
    if is_first:
        print_result(report, show_extraction, as_json=as_json, quiet=quiet)


def _extract_with(given: Mapping[str, object]) -> Callable[..., ExtractionReport]:
    """The function that extracts, for these options: on Ray, or in this process. Raises InputError."""
    from hf_xlmr.features.bulk_extraction import extract as run
    from hf_xlmr.features.on_ray import RayCluster, extract_on_ray

    of_ray = ("actors", "gpus_per_actor", "cpus_per_actor")
    if given["ray"] is None:
        if unused := [name for name in of_ray if given[name] is not None]:
            raise InputError(f"{unused[0]}={given[unused[0]]} is for actors of Ray: give ray=local or an address, too")
        return run
    if "RANK" in os.environ:
        raise InputError(f"ray={given['ray']}: Ray starts its processes itself; run the command without torchrun")
    return partial(extract_on_ray, cluster=called_with(RayCluster, given, address=given["ray"]))


for command in (convert, inspect, verify, export, plan, extract):
    add_command(app, command)
task_commands.register(app)
publish_commands.register(app)
runtime_commands.register(app)


def _numbers(text: str) -> tuple[int, ...]:
    """The numbers of a list such as 0,6,-1. Raises InputError."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"--layers {text}: give numbers with commas between, such as -1 or 0,6,12") from None


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"hf-xlmr {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
    verbose: Verbose = False,
) -> None:
    pass


def _check_endpoint() -> None:
    """Raise InputError for an HF_ENDPOINT that makes the import of huggingface_hub fail."""
    endpoint = os.environ.get("HF_ENDPOINT", "")
    try:
        urlsplit(endpoint)
    except ValueError:
        raise InputError(
            f"HF_ENDPOINT ({endpoint:.200}) is not an address: unset it, or set it to an address"
        ) from None


def _is_out_of_memory(error: MemoryError | RuntimeError) -> bool:
    """Whether memory ran out, for which PyTorch raises a RuntimeError, and on GPUs another class.

    On CPUs nothing but the message says so.
    """
    is_of_a_gpu = type(error).__name__ == "OutOfMemoryError"
    return isinstance(error, MemoryError) or is_of_a_gpu or "can't allocate memory" in str(error)


def main() -> NoReturn:
    """Run the program. The exit code is 0 for success, 2 for what the user can fix, 1 for damage."""
    _open_standard_streams()
    try:
        with _log_shown():
            _check_endpoint()
            app()
    except HfXlmrError as error:
        _end(in_flags(str(error), _flags()), error.exit_code)
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        _end("this machine has too little memory for that", 1)
    except BrokenPipeError:  # the reader of the output has ended
        _silence(sys.stdout)
        sys.exit(1)
    except OSError as error:
        _end_if_silenced()
        plain = in_words(error)
        _end(str(plain), plain.exit_code)
    except SystemExit:  # the end of every command
        _end_if_silenced()
        raise
    sys.exit(0)


def run() -> NoReturn:
    """`main` for a process of its own, which then ends without taking all modules down: PyTorch's take a second.

    What others have registered for the end runs, and the output is flushed.
    """
    codes: list[int] = []
    atexit.register(_leave, codes)  # the first that is registered is the last that is called
    try:
        main()
    except SystemExit as end:
        codes += [end.code] if isinstance(end.code, int) else []
        raise


def _leave(codes: list[int]) -> None:
    for code in codes:  # none if the program did not end by itself
        with suppress(OSError, ValueError):  # then Python tells that the output cannot be flushed
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)


def _flags() -> dict[str, Flag]:
    """The options by their names in the library, those of the command that runs before all others."""
    return flags_of(app, next((word for word in sys.argv[1:] if not word.startswith("-")), None))


class _Warnings(logging.Handler):
    """Prints warnings of the library in the form of the program's errors."""

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError):
            typer.echo(f"hf-xlmr: {in_flags(printable(record.getMessage()), _flags())}", err=True)


@contextmanager
def _log_shown() -> Iterator[None]:
    """Print warnings of the library, and with `--verbose` all that it logs, and where it refused."""
    usual, handler = LOGGER.level, _Warnings()
    LOGGER.addHandler(handler)
    try:
        yield
    except HfXlmrError as error:
        if is_verbose():  # without what libraries said before: it may hold what must not be shown
            typer.echo("".join(traceback.format_exception(error, chain=False)), err=True)
        raise
    finally:
        LOGGER.removeHandler(handler)
        LOGGER.setLevel(usual)


def _open_standard_streams() -> None:
    """Open closed standard streams: else an output file would get their number, and what a library prints."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    sys.stdout = sys.stdout or Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - open until the end
    sys.stderr = sys.stderr or Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names of files and weights may hold what a terminal cannot show
            stream.reconfigure(errors="backslashreplace")


def _end(sentence: str, code: int) -> NoReturn:
    """Print why the program ends, if standard error can be written, and end it."""
    with suppress(OSError):
        typer.echo(f"hf-xlmr: {printable(sentence)}", err=True)
    for stream in (sys.stdout, sys.stderr):
        _silence(stream)
    sys.exit(code)


def _end_if_silenced() -> None:
    if _silence(sys.stdout):
        _end("standard output cannot be written: write to a disk that has room", InputError.exit_code)


def _silence(stream: TextIO) -> bool:
    """Whether a stream cannot be written; its buffer is then dropped, else Python would write it on exit and fail."""
    try:
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return True
    return False
