"""Results in a model card: a section for people, and the metadata from which the Hub draws its widget."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from hf_xlmr.cards.markdown import as_code, as_text, as_yaml
from hf_xlmr.errors import InputError, printable, told_plainly
from hf_xlmr.files.atomic_write import replace_content
from hf_xlmr.tasks.kinds.registry import TASKS
from hf_xlmr.tasks.results import TaskResults
from hf_xlmr.tasks.results_table import tables_of

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

__all__ = ["card_section", "eval_results", "put_results_in_card"]

CARD: Final = "README.md"
METADATA: Final = re.compile(r"\A---\r?\n(.*?)^---[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE)
INDEX: Final = re.compile(r"^model-index:.*?(?=^[^\s#\-]|\Z)", re.DOTALL | re.MULTILINE)
DIGITS: Final = 4
Entry: TypeAlias = dict[str, Any]
"""A model of `model-index`, by which the Hub draws its widget."""


def card_section(results: TaskResults, *, dataset: str | None = None, references: bool = False) -> str:
    """The Markdown of a section with the tables and all settings, between two marks that identify it.

    `dataset` is what was scored on, else the setting `data`, else the name of the task.
    """
    name = _dataset(results, dataset)
    tables = "\n".join(table.as_markdown() for table in tables_of(results, references=references))
    settings = ", ".join(f"{as_code(key)} {as_text(value)}" for key, value in results.settings.items())
    note = f"\nEvaluated with hf_xlmr: {settings}.\n" if settings else "\nEvaluated with hf_xlmr.\n"
    begin, end = _marks(results, name)
    return f"{begin}\n## {TASKS[results.task].card.heading}: {as_text(name)}\n\n{tables}{note}{end}"


def eval_results(results: TaskResults, *, dataset: str | None = None) -> list[EvalResult]:
    """The average and every language as huggingface_hub keeps them: by the name of the data set, in percent."""
    from huggingface_hub import EvalResult

    name, facts = _dataset(results, dataset), TASKS[results.task].card
    split = results.settings.get("split")
    rows: list[tuple[str | None, Mapping[str, float]]] = [(None, results.average), *results.scores.items()]
    return [
        EvalResult(
            task_type=facts.pipeline_tag,
            task_name=facts.heading,
            dataset_type=name,
            dataset_name=f"{name} ({printable(language) if language else f'average of {len(results.scores)}'})",
            dataset_config=printable(language) if language else None,
            dataset_split=split if isinstance(split, str) else None,
            metric_type=metric,
            metric_value=round(scores[metric], DIGITS),
        )
        for language, scores in rows
        for metric in results.metrics
    ]


def put_results_in_card(
    card: str | Path, results: TaskResults, *, dataset: str | None = None, references: bool = False
) -> None:
    """Put the section and the metadata into a model card, a `README.md` or the folder that holds it.

    What an earlier call put there about the same task and data set is replaced, everything else stays as it is, byte
    for byte; the same results a second time change nothing. Raises InputError if there is no card, or if its metadata
    cannot be understood.
    """
    path = Path(card) / CARD if Path(card).is_dir() else Path(card)
    with told_plainly():
        content = path.read_bytes()
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise InputError(printable(f"{path} is not a model card: it is not UTF-8")) from error
    line_end = "\r\n" if "\r\n" in text else "\n"
    section = card_section(results, dataset=dataset, references=references).replace("\n", line_end)
    text = _with_section(text, section, _marks(results, _dataset(results, dataset)), line_end)
    text = _with_metadata(text, results, path, dataset=dataset, line_end=line_end)
    if text.encode() != content:
        with told_plainly():
            replace_content(path, text.encode())


def _dataset(results: TaskResults, dataset: str | None) -> str:
    """The name of the data that were scored; of a file without its folder, which means nothing to others."""
    name = str(dataset or results.settings.get("data") or results.task)
    return printable(Path(name).name if "*" in name or Path(name).exists() else name)


def _marks(results: TaskResults, dataset: str) -> tuple[str, str]:
    """The comments before and after the section; two hyphens would end a comment."""
    name = f"{results.task} on {dataset}".replace("--", "- -").replace(">", "")
    return f"<!-- results: {name} -->", f"<!-- end of results: {name} -->"


def _with_section(text: str, section: str, marks: tuple[str, str], line_end: str) -> str:
    begin, end = marks
    start, rest = text.find(begin), text.find(end)
    if 0 <= start < rest:
        return text[:start] + section + text[rest + len(end) :]
    gap = "" if not text else line_end if text.endswith(line_end) else 2 * line_end
    return text + gap + section + line_end


def _with_metadata(text: str, results: TaskResults, path: Path, *, dataset: str | None, line_end: str) -> str:
    """The card with its `model-index` renewed; all other lines of the metadata are left as they were written."""
    found = METADATA.match(text)
    block = found[1] if found else ""
    index = _index(block, path)
    renewed = _renewed(index, results, name=path.resolve().parent.name, dataset=dataset)
    if renewed == index:
        return text
    written = as_yaml({"model-index": renewed}, line_break=line_end)
    if INDEX.search(block):
        block = INDEX.sub(lambda _: written, block, count=1)
    else:
        block += written
    if not found:
        return f"---{line_end}{block}---{line_end}{line_end}{text}"
    return text[: found.start(1)] + block + text[found.end(1) :]


def _index(block: str, path: Path) -> list[Entry]:
    import yaml

    try:
        metadata = yaml.safe_load(block)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise InputError(printable(f"the metadata of {path} are not YAML: {error}")) from error
    if metadata is None:
        return []
    index = metadata.get("model-index", []) if isinstance(metadata, dict) else None
    is_known = isinstance(index, list) and all(
        isinstance(each, dict) and isinstance(each.get("results"), list) for each in index
    )
    if not is_known or (index and not INDEX.search(block)):
        raise InputError(f"the metadata of {path} hold a model-index that cannot be understood; fix or remove it")
    return list(index or [])


def _renewed(index: list[Entry], results: TaskResults, *, name: str, dataset: str | None) -> list[Entry]:
    """The index with `results` in the first model's list, in the place of those that they replace, else last."""
    from huggingface_hub.repocard_data import eval_results_to_model_index

    added = eval_results_to_model_index(name, eval_results(results, dataset=dataset))[0]["results"]
    replaced = {(each["task"]["type"], each["dataset"]["type"]) for each in added}
    first, *others = index or [{"name": name, "results": []}]
    is_replaced = [_kind(each) in replaced for each in first["results"]]
    place = is_replaced.index(True) if any(is_replaced) else len(is_replaced)
    kept = [each for each, is_old in zip(first["results"], is_replaced, strict=True) if not is_old]
    return [{**first, "results": [*kept[:place], *added, *kept[place:]]}, *others]


def _kind(result: object) -> tuple[object, object]:
    parts = [result.get(part) if isinstance(result, dict) else None for part in ("task", "dataset")]
    task, dataset = (part.get("type") if isinstance(part, dict) else None for part in parts)
    return task, dataset
