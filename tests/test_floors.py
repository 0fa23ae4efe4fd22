"""Imports only go downstairs, nothing heavy is imported at the top, and nothing anywhere can run what a file says."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from places import CHECKOUT

# From the cellar up; modules of one floor do not know each other. A new module is given its floor here.
FLOORS = (
    ("hf_xlmr.pipeline",),
    ("hf_xlmr.registration",),
    (
        "hf_xlmr",
        "hf_xlmr.errors",
        "hf_xlmr.cli.flags",
        "hf_xlmr.model.head_kinds",
        "hf_xlmr.progress",
        "hf_xlmr.conversion.source.slices",
        "hf_xlmr.conversion.checkpoint.templates",
    ),
    (
        "hf_xlmr.data.arrow_files",
        "hf_xlmr.files.fsync",
        "hf_xlmr.files.json_files",
        "hf_xlmr.files.locks",
        "hf_xlmr.files.own_names",
        "hf_xlmr.data.parquet_pages",
        "hf_xlmr.data.text_rows",
        "hf_xlmr.tokenizer.plain_tokenizer",
    ),
    ("hf_xlmr.data.arrow_texts", "hf_xlmr.model.safetensors_files"),
    (
        *(
            "hf_xlmr.hub_interface.batching",
            "hf_xlmr.files.cache_folder",
            "hf_xlmr.tokenizer.dictionary",
            "hf_xlmr.files.memory",
            "hf_xlmr.model.model_shape",
        ),
        *(
            "hf_xlmr.features.linear_kernels",
            "hf_xlmr.features.background",
            "hf_xlmr.features.packing",
            "hf_xlmr.model.precision",
            "hf_xlmr.features.processes",
        ),
        *(
            "hf_xlmr.features.feature_files",
            "hf_xlmr.model.fingerprint",
            "hf_xlmr.tokenizer.sentencepiece_model",
            "hf_xlmr.data.text_files",
        ),
        *("hf_xlmr.tasks", "hf_xlmr.tasks.metrics", "hf_xlmr.hub_interface.module_view"),
        *("hf_xlmr.tasks.fitting.appended_rows", "hf_xlmr.data.delimited", "hf_xlmr.tasks.example_data"),
        *("hf_xlmr.tasks.launch", "hf_xlmr.tasks.output.published"),
        *("hf_xlmr.hub.licences", "hf_xlmr.cards.markdown"),
        *(
            "hf_xlmr.hub.hub_errors",
            "hf_xlmr.files.json_edits",
            "hf_xlmr.hub.interruptible",
            "hf_xlmr.doctor.other_loaders",
            "hf_xlmr.files.atomic_write",
            "hf_xlmr.publishing.secret_files",
            "hf_xlmr.features.shard_records",
        ),
    ),
    (
        *(
            "hf_xlmr.cards.card_check",
            "hf_xlmr.tokenizer.dictionary_kinds",
            "hf_xlmr.files.digests",
            "hf_xlmr.model.folder_records",
        ),
        *(
            "hf_xlmr.publishing.known_files",
            "hf_xlmr.tasks.fitting.devices",
            "hf_xlmr.conversion.output.sentence_transformers_card",
        ),
        *("hf_xlmr.tokenizer.added_tokens", "hf_xlmr.model.plain_config"),
        *(
            "hf_xlmr.cli.console",
            "hf_xlmr.hub_interface.encoder",
            "hf_xlmr.features.kernel_choice",
            "hf_xlmr.features.packed_network",
            "hf_xlmr.features.pooling",
        ),
        *(
            "hf_xlmr.features.shard_writer",
            "hf_xlmr.placement.planner",
            "hf_xlmr.model.stored_weights",
            "hf_xlmr.data.columns",
        ),
    ),
    (
        *(
            "hf_xlmr.cli.command_output",
            "hf_xlmr.conversion.proof.layerwise",
            "hf_xlmr.features.feature_store",
            "hf_xlmr.model.fairseq_files",
        ),
        "hf_xlmr.model.provenance",
        *("hf_xlmr.tasks.mlqa", "hf_xlmr.tasks.ner", "hf_xlmr.tasks.xnli"),
    ),
    ("hf_xlmr.tasks.fitting.recipes", "hf_xlmr.tasks.results", "hf_xlmr.tokenizer.tokenization"),
    ("hf_xlmr.tasks.results_table", "hf_xlmr.tokenizer.tokenizer_agreement", "hf_xlmr.tasks.encoding.task_data"),
    ("hf_xlmr.tasks.output.prediction_files", "hf_xlmr.tasks.results_card", "hf_xlmr.tasks.results_plot"),
    ("hf_xlmr.tasks.fitting.finetuned_card", "hf_xlmr.tasks.output.results_files"),
    (
        *(
            "hf_xlmr.hub_interface.alignment",
            "hf_xlmr.placement.placed_loading",
            "hf_xlmr.hub_interface.task",
            "hf_xlmr.tokenizer.transformers_tokenizer",
        ),
        *(
            "hf_xlmr.conversion.source.release_hashes",
            "hf_xlmr.features.chunks",
            "hf_xlmr.tasks.fitting.adapters",
            "hf_xlmr.tasks.encoding.encoding",
            "hf_xlmr.tasks.fitting.trainer_progress",
        ),
    ),
    (
        *("hf_xlmr.conversion.checkpoint.pickles", "hf_xlmr.conversion.source.releases", "hf_xlmr.files.staging"),
        *(
            "hf_xlmr.conversion.tokenizer_json.charsmap",
            "hf_xlmr.conversion.source.other_formats",
            "hf_xlmr.conversion.mapping.weight_map",
        ),
    ),
    (
        *(
            "hf_xlmr.conversion.checkpoint.containers",
            "hf_xlmr.conversion.checkpoint.options",
            "hf_xlmr.conversion.source.sources",
        ),
        "hf_xlmr.conversion.tokenizer_json.tokenizer_parts",
    ),
    ("hf_xlmr.conversion.checkpoint.weights", "hf_xlmr.conversion.tokenizer_json.vocabulary"),
    (
        *(
            "hf_xlmr.conversion.checkpoint.legacy_names",
            "hf_xlmr.conversion.checkpoint.parallel_parts",
            "hf_xlmr.conversion.output.safetensors_writer",
        ),
        *(
            "hf_xlmr.conversion.checkpoint.model_folder",
            "hf_xlmr.conversion.proof.reference",
            "hf_xlmr.conversion.output.torch_writer",
        ),
    ),
    ("hf_xlmr.conversion.checkpoint.opened_checkpoint", "hf_xlmr.conversion.sentence_transformers_folder"),
    ("hf_xlmr.conversion.mapping.architecture",),
    ("hf_xlmr.conversion.output.export_files", "hf_xlmr.conversion.mapping.config", "hf_xlmr.conversion.mapping.plan"),
    (
        *(
            "hf_xlmr.conversion.output.card",
            "hf_xlmr.conversion.mapping.preparation",
            "hf_xlmr.conversion.proof.tokenizer_parity",
        ),
        "hf_xlmr.conversion.mapping.export_plan",
    ),
    ("hf_xlmr.conversion.proof.parity",),
    ("hf_xlmr.conversion.proof.html_report", "hf_xlmr.conversion.converting", "hf_xlmr.conversion.exporting"),
    ("hf_xlmr.conversion.export_parity", "hf_xlmr.conversion.inspection", "hf_xlmr.conversion.preview"),
    ("hf_xlmr.conversion.cache", "hf_xlmr.conversion.verification"),
    ("hf_xlmr.conversion",),
    ("hf_xlmr.doctor.folder_facts", "hf_xlmr.hub_interface.loading", "hf_xlmr.tasks.encoding.question_answering"),
    (
        *(
            "hf_xlmr.doctor.examination",
            "hf_xlmr.hub_interface.network",
            "hf_xlmr.tasks.output.evaluation_folder",
            "hf_xlmr.tasks.fitting.finetuned_folder",
        ),
        *("hf_xlmr.tasks.fitting.task_models", "hf_xlmr.tasks.encoding.task_steps"),
    ),
    ("hf_xlmr.publishing.folder_to_push", "hf_xlmr.hub_interface.xlmr", "hf_xlmr.tasks.evaluation"),
    ("hf_xlmr.features.extraction", "hf_xlmr.publishing.hub_repository", "hf_xlmr.tasks.training"),
    (
        *("hf_xlmr.features.bulk_extraction", "hf_xlmr.publishing.hub_upload", "hf_xlmr.cli.task_commands"),
        "hf_xlmr.cli.sentence_transformers_command",
    ),
    ("hf_xlmr.publishing.pushing",),
    ("hf_xlmr.cli.publish_commands",),
    ("hf_xlmr.cli.program",),
)
FLOOR_OF = {module: number for number, floor in enumerate(FLOORS) for module in floor}
MAY_IMPORT_AT_THE_TOP = {
    "hf_xlmr.cli.program": {"typer"},
    "hf_xlmr.cli.command_output": {"typer"},
    "hf_xlmr.cli.console": {"rich"},
    "hf_xlmr.hub_interface.encoder": {"torch"},
    "hf_xlmr.features.extraction": {"numpy", "torch"},
    "hf_xlmr.hub_interface.xlmr": {"torch"},
    "hf_xlmr.features.kernel_choice": {"torch"},
    "hf_xlmr.features.linear_kernels": {"torch"},
    "hf_xlmr.hub_interface.network": {"torch"},
    "hf_xlmr.features.packed_network": {"torch"},
    "hf_xlmr.pipeline": {"torch", "transformers"},
    "hf_xlmr.features.pooling": {"torch"},
    "hf_xlmr.model.precision": {"torch"},
    "hf_xlmr.cli.publish_commands": {"typer"},
    "hf_xlmr.cli.sentence_transformers_command": {"typer"},
    "hf_xlmr.cli.task_commands": {"typer"},
    "hf_xlmr.tasks.fitting.trainer_progress": {"transformers"},
    "hf_xlmr.tokenizer.transformers_tokenizer": {"transformers"},
    "hf_xlmr.hub_interface.module_view": {"torch"},
}
# the doors through which a fairseq source comes in, and two that stage a folder as the converter does
MAY_CONVERT = {
    *("hf_xlmr.cli.program", "hf_xlmr.hub_interface.loading", "hf_xlmr.cli.sentence_transformers_command"),
    "hf_xlmr.tasks.output.evaluation_folder",
}
MAY_PRINT = {
    *(
        "hf_xlmr.cli.program",
        "hf_xlmr.cli.command_output",
        "hf_xlmr.cli.console",
        "hf_xlmr.cli.publish_commands",
        "hf_xlmr.cli.task_commands",
    ),
    "hf_xlmr.cli.sentence_transformers_command",
}
RUNS_CODE_OF_FILES = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "runpy"}
ALSO_NEVER = {"fairseq", "fairscale", "omegaconf", "hydra"}
RUNS_CODE_OF_TEXT = {"eval", "exec", "compile", "__import__"}
LOADERS = {("torch", "load"), ("np", "load"), ("numpy", "load"), ("torch.jit", "load"), ("joblib", "load")}


PACKAGES = {"hf_xlmr": "hf_xlmr", "hf_xlmr/tasks": "hf_xlmr.tasks", "conversion": "hf_xlmr.conversion"}


def sources() -> dict[str, Path]:
    found = {}
    for folder, package in PACKAGES.items():
        for path in sorted((CHECKOUT / folder).glob("*.py")):
            found[package if path.stem == "__init__" else f"{package}.{path.stem}"] = path
    return found


SOURCES = sources()
EVERY_MODULE = pytest.mark.parametrize("module", SOURCES)


class Import(NamedTuple):
    """One import of a module: where it stands, and whether it runs when the module is imported."""

    name: str
    line: int
    is_at_the_top: bool


def tree_of(module: str) -> ast.Module:
    return ast.parse(SOURCES[module].read_text(encoding="utf-8"))


def imports_in(module: str) -> list[Import]:
    return list(imports_under(tree_of(module), package=module.rpartition(".")[0], is_at_the_top=True))


def imports_under(node: ast.AST, *, package: str, is_at_the_top: bool) -> Iterator[Import]:
    """Every import that can run: all but those that only type checkers read."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            continue
        if isinstance(child, (ast.Import, ast.ImportFrom)):
            for name in imported(child, package):
                yield Import(name, child.lineno, is_at_the_top)
        is_function = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        yield from imports_under(child, package=package, is_at_the_top=is_at_the_top and not is_function)


def imported(node: ast.Import | ast.ImportFrom, package: str) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
        return
    assert node.level == 0, f"line {node.lineno}: a relative import hides where it goes (in {package})"
    for alias in node.names:
        whole = f"{node.module}.{alias.name}"
        yield whole if whole in SOURCES else str(node.module)


def test_every_module_has_a_floor() -> None:
    assert FLOOR_OF.keys() == SOURCES.keys()
    assert sum(map(len, FLOORS)) == len(FLOOR_OF), "a module has two floors"


@EVERY_MODULE
def test_imports_only_go_down(module: str) -> None:
    ours = [each for each in imports_in(module) if each.name.split(".")[0] == "hf_xlmr"]
    unknown = [each for each in ours if each.name not in FLOOR_OF]
    assert not unknown
    up = [f"line {each.line} imports {each.name}" for each in ours if FLOOR_OF[each.name] >= FLOOR_OF[module]]
    assert not up


@pytest.mark.parametrize(
    "module", [name for name in SOURCES if not name.startswith("hf_xlmr.conversion") and name not in MAY_CONVERT]
)
def test_what_runs_a_converted_model_knows_nothing_of_converting(module: str) -> None:
    """fairseq's formats live in conversion/ and nowhere else."""
    assert not [each for each in imports_in(module) if each.name.startswith("hf_xlmr.conversion")]


@EVERY_MODULE
def test_only_the_standard_library_is_imported_at_the_top(module: str) -> None:
    allowed = {*sys.stdlib_module_names, "hf_xlmr"} | MAY_IMPORT_AT_THE_TOP.get(module, set())
    tops = [each for each in imports_in(module) if each.is_at_the_top]
    assert not [each for each in tops if each.name.split(".")[0] not in allowed]


def test_importing_everything_imports_nothing_heavy(tmp_path: Path) -> None:
    """The same, asked of Python itself."""
    light = [name for name in SOURCES if name not in MAY_IMPORT_AT_THE_TOP]
    code = (
        "import importlib, os, sys, warnings\n"
        "before = dict(os.environ), list(warnings.filters)\n"
        f"for name in {light!r}: importlib.import_module(name)\n"
        "assert (dict(os.environ), list(warnings.filters)) == before\n"
        "tops = {name.split('.')[0] for name in sys.modules} - {*sys.stdlib_module_names, 'hf_xlmr'}\n"
        "print(sorted(tops))"
    )
    bare, done = (
        subprocess.run([sys.executable, "-c", each], capture_output=True, text=True, check=True, cwd=tmp_path)
        for each in (code.replace(repr(light), "[]"), code)
    )
    assert done.stdout == bare.stdout


@EVERY_MODULE
def test_nothing_can_run_what_a_file_says(module: str) -> None:
    imports = {each.name.split(".")[0]: each.line for each in imports_in(module)}
    assert not imports.keys() & (RUNS_CODE_OF_FILES | ALSO_NEVER)
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.Name):
            assert node.id not in RUNS_CODE_OF_TEXT, f"line {node.lineno}"
        if isinstance(node, ast.Attribute):
            assert (ast.unparse(node.value), node.attr) not in LOADERS, f"line {node.lineno}"
        if isinstance(node, ast.keyword):
            assert node.arg not in ("allow_pickle", "weights_only"), f"line {node.value.lineno}"
            is_off = isinstance(node.value, ast.Constant) and node.value.value is False
            assert node.arg != "trust_remote_code" or is_off, f"line {node.value.lineno}"


@EVERY_MODULE
def test_the_library_is_silent(module: str) -> None:
    if module in MAY_PRINT:
        return
    for node in ast.walk(tree_of(module)):
        assert not (isinstance(node, ast.Name) and node.id == "print"), f"line {node.lineno}"
        assert not (isinstance(node, ast.Attribute) and ast.unparse(node) in ("sys.stdout", "sys.stderr"))


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import torch", [("torch", True)]),
        ("def f():\n    import torch", [("torch", False)]),
        ("class A:\n    import torch", [("torch", True)]),
        ("try:\n    from torch.nn import Linear\nexcept ImportError:\n    pass", [("torch.nn", True)]),
        ("if TYPE_CHECKING:\n    import torch", []),
        ("from hf_xlmr import errors, __version__", [("hf_xlmr.errors", True), ("hf_xlmr", True)]),
    ],
)
def test_this_test_sees_imports(code: str, expected: list[tuple[str, bool]]) -> None:
    found = imports_under(ast.parse(code), package="", is_at_the_top=True)
    assert [(each.name, each.is_at_the_top) for each in found] == expected
