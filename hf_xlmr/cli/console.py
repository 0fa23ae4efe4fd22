"""What the program shows on a terminal: progress bars and reports, drawn by rich."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rich.console import Console, JustifyMethod
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.progress import Progress as RichProgress
from rich.table import Table

from hf_xlmr.cli.flags import Flag, in_flags
from hf_xlmr.errors import first_of, printable
from hf_xlmr.files.json_files import JsonObject
from hf_xlmr.files.memory import device_label, format_size
from hf_xlmr.progress import ProgressTask

if TYPE_CHECKING:
    from hf_xlmr.conformance.report import Conformance
    from hf_xlmr.conversion.converting import ConversionReport
    from hf_xlmr.conversion.exporting import ExportReport
    from hf_xlmr.conversion.inspection import Inspection
    from hf_xlmr.conversion.mapping.plan import Difference
    from hf_xlmr.conversion.proof.parity import ParityReport
    from hf_xlmr.conversion.proof.tokenizer_parity import TextClass
    from hf_xlmr.conversion.sentence_transformers_folder import SentenceTransformersReport
    from hf_xlmr.doctor.examination import Diagnosis, Finding
    from hf_xlmr.exporting.runtime_card import RuntimeReport
    from hf_xlmr.features.bulk_extraction import ExtractionReport
    from hf_xlmr.features.packed.int8_quality import Int8Quality
    from hf_xlmr.placement.planner import DeviceShare, Placement
    from hf_xlmr.publishing.folder_to_push import FolderToPush
    from hf_xlmr.publishing.pushing import PushReport
    from hf_xlmr.tasks.fitting.adopting import Adoption
    from hf_xlmr.tasks.fitting.finetuned_folder import FinetuningReport
    from hf_xlmr.tasks.results_table import ResultsTable

__all__ = [
    "Bars",
    "show_conformance",
    "show_conversion",
    "show_diagnosis",
    "show_export",
    "show_extraction",
    "show_folder_to_push",
    "show_inspection",
    "show_placement",
    "show_push",
    "show_push_plan",
    "show_results",
    "show_runtime",
]

MEANINGS: Final = {"special-looking text": ": <mask> and the like, which fairseq reads as plain text"}

WIDEST: Final = 10_000  # characters: more than any table has
MOST_WEIGHTS: Final = 3  # by name, of many with one reason
MOST_NAMED: Final = 8  # files of somebody else's
COLUMNS: Final[dict[str, JustifyMethod]] = {
    "device": "left",
    "holds": "left",
    "weights": "right",
    "working room": "right",
    "memory": "right",
    "headroom": "right",
}


class _Bar:
    def __init__(self, progress: RichProgress, number: TaskID) -> None:
        self._progress = progress
        self._number = number

    def advance(self, amount: int, *, note: str = "") -> None:
        """Move the bar on."""
        self._progress.update(self._number, advance=amount, note=note)


class Bars:
    """Progress as bars on standard error: how much is done, speed and time left."""

    @contextmanager
    def task(self, label: str, *, total: int | None = None, unit: str = "bytes") -> Iterator[ProgressTask]:
        """Show a bar until the block ends."""
        done: tuple[ProgressColumn, ...] = (DownloadColumn(), TransferSpeedColumn())
        if unit != "bytes":
            done = (MofNCompleteColumn(), TextColumn(unit + " {task.fields[note]}"))
        columns = (TextColumn("{task.description:<16}"), BarColumn(), *done, TimeRemainingColumn())
        with RichProgress(*columns, console=Console(stderr=True), transient=True) as progress:
            yield _Bar(progress, progress.add_task(label, total=total, note=""))


def _show(title: str, rows: Mapping[str, str], lines: Iterable[str] = ()) -> None:
    """Print the rows that say something, with their names, and below them the lines."""
    table = _table(title)
    table.show_header = False
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        if value:
            table.add_row(name, _plain(value))
    console = Console(highlight=False)
    console.print(table)
    for line in lines:
        console.print(f"  - {_plain(line)}")


def _table(title: str) -> Table:
    return Table(title=escape(printable(title)), title_justify="left", box=None, padding=(0, 2, 0, 0))


def _plain(value: object) -> str:
    """Any value as text in which the terminal and rich find no markup."""
    return "\n".join(escape(printable(line)) for line in str(value).split("\n"))


def _size(count: int) -> str:
    amount, unit = float(count), "B"
    for unit in ("B", "KB", "MB", "GB"):
        if amount < 1000 or unit == "GB":
            break
        amount /= 1000
    return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"


def _sizes(files: Mapping[str, int], between: str = ", ") -> str:
    return between.join(f"{name} {_size(size)}" for name, size in files.items())


def _reasons(names: Mapping[str, str]) -> list[str]:
    """The weights that were left behind, by reason, with their names if they are few."""
    groups: dict[str, list[str]] = {}
    for name, reason in names.items():
        groups.setdefault(reason, []).append(name)
    return [
        f"{len(group)} weight{'s' * (len(group) != 1)} left behind: {reason} ({first_of(group, MOST_WEIGHTS)})"
        for reason, group in groups.items()
    ]


def _differences(differences: Iterable[Difference]) -> list[str]:
    """Why the output has more or fewer parameters than the checkpoint, a line for each reason."""
    return [
        f"{abs(each.parameters):,} parameters {'made' if each.parameters > 0 else 'left out'}: {each.reason} "
        f"({first_of(each.names, MOST_WEIGHTS)})"
        for each in differences
    ]


def show_conversion(report: ConversionReport) -> None:
    """Print a ConversionReport."""
    shown = {
        "class": f"{report.class_name}, {report.parameters:,} parameters, {report.dtype}",
        "checkpoint": f"{report.source_parameters:,} parameters",
        "weights": _weights(report),
        "files": _sizes(report.files),
        "proof": _proof(report.parity),
        **({"tokenizer": _tokenizer(report.parity)} if report.parity else {}),
    }
    lines = [*_differences(report.differences), *_reasons(report.dropped), *report.notes]
    _show(f"{report.source} -> {report.output}", shown, lines)


def _weights(report: ConversionReport | ExportReport) -> str:
    return f"{len(report.mapped)} mapped and {len(report.made)} made; {len(report.dropped)} left behind"


def _proof(parity: JsonObject | None) -> str:
    if parity is None:
        return "not verified (--no-verify)"
    return (
        f"{parity['weights_compared']} weights equal bit for bit ({_size(parity['bytes_compared'])}); outputs within "
        f"{parity['largest']:.1e} of fairseq's network after each of its {len(parity['steps'])} steps "
        f"({parity['tokens']} tokens)"
    )


def _tokenizer(parity: JsonObject) -> str:
    """How many generated texts of each class get other ids than in fairseq."""
    classes = parity["tokenizer"]
    if not classes:
        return "none"
    different = [
        f"{each['different']} of {each['texts']} ({each['name']}{MEANINGS.get(each['name'], '')})"
        for each in classes
        if each["different"]
    ]
    texts = sum(each["texts"] for each in classes)
    named = ", ".join(different) or "none"
    return f"{texts:,} texts of {len(classes)} classes encoded; ids that differ from fairseq's: {named}"


def show_parity(report: ParityReport) -> None:
    """Print a ParityReport."""
    classes = {each.name: f"{_class_of_texts(each)}{MEANINGS.get(each.name, '')}" for each in report.tokenizer}
    _show("verified", {"proof": _proof(asdict(report)), **classes})


def _class_of_texts(each: TextClass) -> str:
    text = f"{each.different} of {each.texts} texts get other ids"
    reasons = {"equal score": each.equal_score, "not expressible": each.limited}
    named = ", ".join(f"{reason}: {count}" for reason, count in reasons.items() if count)
    return f"{text} ({named})" if named else text


def show_export(report: ExportReport) -> None:
    """Print an ExportReport."""
    shown = {
        "model": f"{report.arch} for {report.task}, {report.parameters:,} parameters, {report.dtype}",
        "weights": _weights(report),
        "files": _sizes(report.files),
        "loaded by": ", ".join(f"fairseq {release}" for release in report.loaded_by),
    }
    lines = [*_reasons(report.dropped), *report.notes]
    _show(f"{report.source} ({report.class_name}) -> {report.output}", shown, lines)


def show_sentence_transformers(report: SentenceTransformersReport) -> None:
    """Print a SentenceTransformersReport."""
    shown = {
        "vectors": f"{report.width} wide, pooled by {report.pool}, of texts up to {report.max_length} tokens",
        "files": _sizes(report.files),
    }
    _show(f"{report.source} ({report.class_name}) -> {report.output}", shown)


def show_runtime(report: RuntimeReport) -> None:
    """Print a RuntimeReport."""
    pooled = f", pooled by {report.pool}{' and normalized' * report.normalize}" if report.pool != "none" else ""
    shown = {
        "graph": f"{report.runtime} in {report.dtype}{pooled}, of texts up to {report.max_length} tokens",
        "outputs": ", ".join(report.outputs),
        "compared": f"differs from Transformers in float32 by {report.difference:.1e} of the largest value",
        "files": _sizes(report.files),
    }
    _show(f"{report.source} ({report.class_name}) -> {report.output}", shown)


def show_conformance(found: Conformance) -> None:
    """Print a Conformance: the verdict, then each class of texts."""
    console = Console(highlight=False)
    console.print(_plain(f"{found.target} ({found.runtime}) {found.verdict}"), soft_wrap=True)
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("texts of", "texts", "differ", "refused", "largest difference", "lowest cosine"):
        is_first = heading == "texts of"
        table.add_column(heading, justify="left" if is_first else "right", no_wrap=is_first)
    for each in found.classes:
        largest = "" if each.largest is None else f"{each.largest:.1e}"
        cosine = "" if each.cosine is None else f"{each.cosine:.6f}"
        table.add_row(each.name, *map(str, (each.texts, each.different, each.refused)), largest, cosine)
    console.print(table)
    for note in found.notes:
        console.print(_plain(f"  - {note}"), soft_wrap=True)


def show_adoption(report: Adoption) -> None:
    """Print an Adoption."""
    shown = {
        "class": report.class_name,
        "labels": ", ".join(report.labels),
        "written": ", ".join(report.written),
        "removed": ", ".join(report.removed),
        "kept as it was": ", ".join(report.kept),
    }
    _show(f"{report.folder}, trained from {report.model}", shown)


def show_extraction(report: ExtractionReport) -> None:
    """Print an ExtractionReport."""
    layers = ", ".join(map(str, report.layers))
    speed = report.tokens / report.seconds if report.seconds else 0.0
    shown = {
        "texts": f"{report.rows:,}, of which {_counted_here(report)}",
        "tokens": f"{report.tokens:,} in {report.seconds:,.1f} s ({speed:,.0f} a second)",
        "cut off": f"{report.truncated:,} texts" if report.truncated else "",
        "features": f"layer {layers}, {'every token' if report.pool == 'none' else f'pooled by {report.pool}'}",
        "computed in": f"{report.dtype} on {report.device} ({report.kernel} kernel)",
        "cosine to float32": _compared(report.int8) if report.int8 else "",
    }
    _show(f"{report.source} -> {report.output}", shown)


def _compared(quality: Int8Quality) -> str:
    """The cosines of int8's vectors, on how many they were measured, and what stayed in float32."""
    found = f"mean {quality.mean:.5f}, lowest {quality.lowest:.5f}, on {quality.vectors} vectors of the first texts"
    kept = len(quality.float32_products)
    return f"{found}; {kept} products stayed in float32" if kept else found


def _counted_here(report: ExtractionReport) -> str:
    """How many texts a process computed, of its share."""
    found = f"{report.texts:,} were computed now" if report.shards else "none was left to compute"
    return found if report.processes == 1 else f"{found} by the first of {report.processes} processes"


def show_inspection(inspection: Inspection, flags: Mapping[str, Flag]) -> None:
    """Print an Inspection, arguments in its sentences as `flags`."""
    shown = {
        "becomes": inspection.class_name or "nothing: " + in_flags("; ".join(inspection.reasons), flags),
        "network": _network(inspection),
        "weights": f"{inspection.weights} of the network ({inspection.parameters:,} parameters; "
        f"{_counted(inspection.dtypes)})",
        "output": "none" if inspection.output_parameters is None else f"{inspection.output_parameters:,} parameters",
        "container": f"{inspection.container}, options kept as {inspection.options_kept_as}",
        "dictionary": _dictionary(inspection),
        "languages": ", ".join(inspection.languages),
        "classification heads": ", ".join(inspection.heads) or "none",
        "labels": ", ".join(inspection.labels),
        "moving average": "there is one; --ema takes it" if inspection.has_moving_average else "",
        "files": _sizes(inspection.files, "\n"),
    }
    kind = [inspection.dictionary_kind] if inspection.dictionary_kind else []
    lines = [*_differences(inspection.differences), *_reasons(inspection.dropped), *kind]
    _show(f"{inspection.source} ({inspection.kind})", shown, lines)


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def _network(inspection: Inspection) -> str:
    if inspection.class_name is None:
        return "unknown"
    return (
        f"{inspection.layers} layers of width {inspection.hidden_size}, {inspection.attention_heads} attention heads, "
        f"texts of up to {inspection.longest_text} tokens"
    )


def _dictionary(inspection: Inspection) -> str:
    if inspection.dictionary_symbols is None:
        return "missing"
    symbols, rows = inspection.dictionary_symbols, inspection.embedding_rows
    return f"{symbols:,} symbols for {rows:,} rows, <mask> is {inspection.mask_id}"


def show_placement(placement: Placement) -> None:
    """Print a Placement."""
    console = Console(highlight=False)
    title = f"{placement.model}, {placement.parameters:,} parameters, {placement.dtype}, {placement.tokens} tokens"
    table = _table(title)
    for heading, side in COLUMNS.items():
        table.add_column(heading, justify=side, no_wrap=heading != "holds", overflow="fold")
    for share in placement.shares:
        sizes = (share.weights, share.activations + share.visitors, share.budget, share.headroom)
        table.add_row(device_label(share.device), _parts(share), *map(format_size, sizes))
    console.print(table)
    for line in (placement.told(), *placement.suggestions):
        console.print(_plain(line), soft_wrap=True)


def _parts(share: DeviceShare) -> str:
    """The modules of a device, its layers as a range."""
    layers = share.layers
    ends = sorted({layers[0], layers[-1]}) if layers else []
    names = [name.rpartition(".")[2] for name in share.modules if not name.rpartition(".")[2].isdecimal()]
    shown = [f"layers {'-'.join(map(str, ends))}"] * bool(ends) + names
    return ", ".join(shown) or "nothing"


def show_results(tables: Iterable[ResultsTable]) -> None:
    """Print ResultsTables; one that is wider than the terminal with its columns as rows."""
    console = Console(highlight=False)
    for number, each in enumerate(tables):
        if number:
            console.print()
        table = _results(each)
        needed = console.measure(table, options=console.options.update(max_width=WIDEST)).maximum
        console.print(table if needed <= console.width else _results(each.turned, is_folded=True))
        for note in each.notes:
            console.print(_plain(note), style="dim")


def _results(shown: ResultsTable, *, is_folded: bool = False) -> Table:
    table = _table(shown.title)
    for number, heading in enumerate(shown.columns):
        table.add_column(_plain(heading), justify="right" if number else "left", no_wrap=not is_folded, overflow="fold")
    for row in shown.rows:
        table.add_row(*map(_plain, row))
    if shown.published:
        table.add_row()
        table.add_row("published", style="dim")
    for row in shown.published:
        table.add_row(*map(_plain, row), style="dim italic")
    return table


def show_finetuning(report: FinetuningReport) -> None:
    """Print a FinetuningReport."""
    losses = list(report.losses.items())
    shown_losses = [
        f"{loss:.4f} at step {step:,}" for step, loss in (losses[:1] + losses[-1:] if losses[1:] else losses)
    ]
    shown = {
        "class": f"{report.class_name}, {report.parameters:,} parameters; {_trained(report)}",
        "trained on": ", ".join(f"{language} ({count:,})" for language, count in report.trained_on.items()),
        "left out": report.left_out,
        "steps": f"{report.steps:,} ({report.mode})",
        "loss": ", then ".join(shown_losses),
    }
    _show(f"{report.model} -> {report.output}", shown)


def _trained(report: FinetuningReport) -> str:
    if report.trainable == report.parameters:
        return "all were trained"
    adapters = " of adapters, now merged, and the head" if report.settings.get("lora") else " of them"
    return f"{report.trainable:,}{adapters} were trained"


def show_diagnosis(diagnosis: Diagnosis) -> None:
    """Print a Diagnosis: what was fixed, then what is left, each with its fix."""
    console = Console(highlight=False)
    state = f"{len(diagnosis.findings)} to fix" if diagnosis.findings else "healthy"
    table = _table(f"{diagnosis.folder}: {state}")
    for heading in ("what", "is", "fix"):
        table.add_column(heading, overflow="fold", style="bold" if heading == "what" else None)
    for finding in diagnosis.mended:
        table.add_row(*map(_plain, (finding.name, finding.told, "fixed now")))
    for path in diagnosis.kept:
        table.add_row(*map(_plain, ("kept", path.name, "the file as it was before")))
    for finding in diagnosis.findings:
        fix = f"{finding.mend}{' (--fix does it)' if finding.is_safe else ''}"
        table.add_row(*map(_plain, (finding.name, finding.told, fix)))
    for note in diagnosis.notes:
        table.add_row(*map(_plain, ("note", note, "")))
    table.show_header = bool(diagnosis.mended or diagnosis.findings)
    console.print(table)


def show_push_plan(report: PushReport) -> None:
    """Print a PushReport before anything is sent."""
    kind = "private" if report.is_private else "public by default" if report.is_new else "public"
    branch = "" if report.branch == "main" else f", branch {report.branch}"
    proposed = ", as a pull request" if report.is_proposed else ""
    title = f"{report.folder} -> {report.repo_id} ({'new, ' if report.is_new else ''}{kind}{branch}{proposed})"
    shown = {
        "weights": report.standing.value,
        "as converted": _held(report.held, (*report.sent, *report.unchanged)),
        "to send": _files_with_sizes(report.sent),
        "there already": _files_with_sizes(report.unchanged).partition("\n")[0],
        "to delete": "\n".join(report.deleted),
        "stays there": first_of([*map(printable, report.stays)], MOST_NAMED),
        "not asked for": _unknown(report.unknown),
        "left out": _left_out(report.left_out),
        "doctor": _faults(report.folder, report.findings),
        "notes": "\n".join(report.notes),
    }
    _show(title, shown)


def show_folder_to_push(looked: FolderToPush) -> None:
    """Print a FolderToPush if the Hub could not be asked."""
    shown = {
        "weights": looked.standing.value,
        "as converted": _held(looked.held, looked.files),
        "files": _files_with_sizes({name: file.size for name, file in looked.files.items()}),
        "not asked for": _unknown(looked.unknown),
        "left out": _left_out(looked.left_out),
        "doctor": _faults(looked.path, looked.findings),
        "notes": "\n".join(looked.notes),
    }
    _show(f"{looked.path} (the folder alone: the Hub was not asked)", shown)


def _left_out(names: Mapping[str, str]) -> str:
    return "\n".join(f"{printable(name)}: {why}" for name, why in names.items())


def _held(held: Collection[str], files: Iterable[str]) -> str:
    """What was compared with the record of the conversion, and what was not."""
    if not held:
        return ""
    others = [name for name in files if name not in held]
    part = " (of config.json what answers rest on)" if "config.json" in held else ""
    return f"{len(held)} files{part}; not compared: {', '.join(others) or 'none'}"


def _unknown(files: Mapping[str, int]) -> str:
    """The files that are not known to belong to a model, and how to send them."""
    if not files:
        return ""
    named = "\n".join(f"  {printable(name)} {_size(size)}" for name, size in files.items())
    return f"not known to belong to a model; --include NAME sends it\n{named}"


def _files_with_sizes(files: Mapping[str, int]) -> str:
    if not files:
        return ""
    total = f"{len(files)} file{'s' * (len(files) != 1)}, {_size(sum(files.values()))}"
    return "\n".join([total, *(f"  {name} {_size(size)}" for name, size in files.items())])


def _faults(folder: Path, findings: Sequence[Finding]) -> str:
    """How many faults there are, and the command that reports them."""
    if not findings:
        return ""
    names = ", ".join(finding.name for finding in findings)
    return f"{len(findings)} to fix ({names}); hf-xlmr doctor {printable(str(folder))} says how"


def show_push(report: PushReport, *, is_dry_run: bool) -> None:
    """Print how a push ended, with the address."""
    if report.commit is not None and not report.sent and not report.deleted:
        text = f"nothing to send, all is there: {report.address}"
    elif is_dry_run and report.is_proposed:
        text = f"nothing was sent (--dry-run); the pull request would be among {report.address}"
    elif is_dry_run:
        text = f"nothing was sent (--dry-run); the model would be at {report.address}"
    else:
        text = f"published: {report.address}"
    Console(highlight=False).print(_plain(text), soft_wrap=True)
