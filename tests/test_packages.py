"""Imports go one way between packages, nothing heavy is imported at the top, and nothing can run what a file says."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest
from places import CHECKOUT

# From the bottom up: each package may import those above it in this list, never those below it.
PACKAGES = (
    *("errors", "progress", "files", "hub", "model", "tokenizer", "placement", "cards", "data"),
    *("conversion.source", "conversion.checkpoint", "conversion.tokenizer_json", "conversion.mapping"),
    *("conversion.output", "conversion.proof", "conversion"),
    *("exporting", "hub_interface", "features", "conformance", "tasks", "doctor", "publishing", "pipeline", "cli"),
)
# the public import paths: what they give lives in the packages, and nothing inside imports it through them
DOORS = {
    *(
        "hf_xlmr",
        "hf_xlmr.adopting",
        "hf_xlmr.bulk_extraction",
        "hf_xlmr.dictionary",
        "hf_xlmr.extraction",
        "hf_xlmr.kept_files",
    ),
    *("hf_xlmr.model_shape", "hf_xlmr.placed_loading", "hf_xlmr.sharding", "hf_xlmr.tokenization"),
    *("hf_xlmr.kept_files", "hf_xlmr.transformers_tokenizer", "hf_xlmr.__main__"),
}
MOST_MODULES = 15
MAY_IMPORT_AT_THE_TOP = {
    "hf_xlmr.cli": {"typer"},
    "hf_xlmr.cli.command_help": {"typer"},
    "hf_xlmr.cli.interrupts": {"typer"},
    "hf_xlmr.cli.command_output": {"typer"},
    "hf_xlmr.cli.progress_lines": {"typer"},
    "hf_xlmr.cli.console": {"rich"},
    "hf_xlmr.cli.program": {"typer"},
    "hf_xlmr.cli.publish_commands": {"typer"},
    "hf_xlmr.cli.runtime_commands": {"typer"},
    "hf_xlmr.cli.task_commands": {"typer"},
    "hf_xlmr.cli.values": {"typer"},
    "hf_xlmr.extraction": {"numpy", "torch"},  # the door of the next
    "hf_xlmr.transformers_tokenizer": {"transformers"},
    "hf_xlmr.conformance.comparison": {"numpy"},
    "hf_xlmr.conformance.diagnosis": {"numpy"},
    "hf_xlmr.conformance.faults": {"numpy"},  # by targets
    "hf_xlmr.conformance.own_network": {"numpy", "torch"},
    "hf_xlmr.conformance.precisions": {"torch"},
    "hf_xlmr.conformance.runtimes": {"numpy"},
    "hf_xlmr.conformance.servers": {"numpy"},
    "hf_xlmr.conformance.targets": {"numpy"},
    "hf_xlmr.exporting": {"torch"},  # by the next
    "hf_xlmr.exporting.runtime_folder": {"torch"},
    "hf_xlmr.features.chunks": {"numpy"},
    "hf_xlmr.features.datatrove": {"datatrove"},
    "hf_xlmr.features.extraction": {"numpy", "torch"},
    "hf_xlmr.features.packed.kernel_choice": {"torch"},
    "hf_xlmr.features.packed.int8_linear": {"torch"},
    "hf_xlmr.features.packed.int8_network": {"numpy", "torch"},
    "hf_xlmr.features.packed.linear_kernels": {"torch"},
    "hf_xlmr.features.packed.packed_network": {"numpy", "torch"},
    "hf_xlmr.features.packing": {"numpy"},
    "hf_xlmr.features.pooling": {"torch"},
    "hf_xlmr.hub_interface.encoder": {"torch"},
    "hf_xlmr.hub_interface.module_view": {"torch"},
    "hf_xlmr.hub_interface.network": {"torch"},
    "hf_xlmr.hub_interface.xlmr": {"torch"},
    "hf_xlmr.model.precision": {"torch"},
    "hf_xlmr.pipeline": {"torch", "transformers"},
    "hf_xlmr.tasks.fitting.trainer_progress": {"transformers"},
    "hf_xlmr.tokenizer.transformers_tokenizer": {"transformers"},
}
MAY_CONVERT = {"hf_xlmr.cli", "hf_xlmr.hub_interface.loading", "hf_xlmr.model_shape"}  # where a fairseq source comes in
RUNS_CODE_OF_FILES = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "runpy"}
ALSO_NEVER = {"fairseq", "fairscale", "omegaconf", "hydra"}
RUNS_CODE_OF_TEXT = {"eval", "exec", "compile", "__import__"}
MAY_TOUCH = {  # what cannot be avoided; the reason is beside each
    ("hf_xlmr.hub.interruptible", "huggingface_hub.utils._xet"),
    ("hf_xlmr.features.packed.linear_kernels", "_reorder_linear_weight"),
    ("hf_xlmr.features.packed.linear_kernels", "_linear_pointwise"),
    ("hf_xlmr.tasks.fitting.devices", "_n_gpu"),
    ("hf_xlmr.cli.publish_commands", "_exit"),  # of `os`, and public
    ("hf_xlmr.cli.program", "_exit"),
}
OF_NAMED_TUPLES = {"_replace", "_asdict", "_fields", "_make"}  # public all the same
REFLECTION = {"__bases__", "__base__", "__subclasses__", "__globals__", "__code__", "__closure__"}
LOADERS = {("torch", "load"), ("np", "load"), ("numpy", "load"), ("torch.jit", "load"), ("joblib", "load")}


def sources() -> dict[str, Path]:
    found = {}
    for folder, package in (("hf_xlmr", "hf_xlmr"), ("conversion", "hf_xlmr.conversion")):
        for path in sorted((CHECKOUT / folder).rglob("*.py")):
            inside = path.relative_to(CHECKOUT / folder).with_suffix("").parts
            found[".".join([package, *(part for part in inside if part != "__init__")])] = path
    return found


SOURCES = sources()
EVERY_MODULE = pytest.mark.parametrize("module", SOURCES)


class Import(NamedTuple):
    """One import of a module: where it stands, and whether it runs when the module is imported."""

    name: str
    line: int
    is_at_the_top: bool


@cache
def tree_of(module: str) -> ast.Module:
    return ast.parse(SOURCES[module].read_text(encoding="utf-8"))


@cache
def imports_in(module: str) -> list[Import]:
    return list(imports_under(tree_of(module), package=module.rpartition(".")[0], is_at_the_top=True))


def imports_under(node: ast.AST, *, package: str, is_at_the_top: bool) -> Iterator[Import]:
    """Every import that can run: all but those that only type checkers read, and modules that a string names."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            continue
        if isinstance(child, (ast.Import, ast.ImportFrom)):
            for name in imported(child, package):
                yield Import(name, child.lineno, is_at_the_top)
        if isinstance(child, ast.Constant) and child.value in SOURCES and child.value not in ("hf_xlmr", CONVERSION):
            yield Import(child.value, child.lineno, is_at_the_top=False)
        is_function = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        yield from imports_under(child, package=package, is_at_the_top=is_at_the_top and not is_function)


CONVERSION = "hf_xlmr.conversion"  # as a string it names the place of the templates


def imported(node: ast.Import | ast.ImportFrom, package: str) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
        return
    assert node.level == 0, f"line {node.lineno}: a relative import hides where it goes (in {package})"
    for alias in node.names:
        whole = f"{node.module}.{alias.name}"
        yield whole if whole in SOURCES else str(node.module)


def ours(module: str) -> list[Import]:
    return [each for each in imports_in(module) if each.name.split(".")[0] == "hf_xlmr"]


def package_of(module: str) -> str:
    """The longest name in PACKAGES that holds the module."""
    inside = module.removeprefix("hf_xlmr.")
    found = [each for each in PACKAGES if inside == each or inside.startswith(f"{each}.")]
    assert found, f"{module} is in no package of the list: give it a room there"
    return max(found, key=len)


@EVERY_MODULE
def test_imports_go_one_way_between_packages(module: str) -> None:
    if module in DOORS:
        return
    place = PACKAGES.index(package_of(module))
    known = [each for each in ours(module) if each.name != "hf_xlmr"]  # which has __version__
    assert not [each for each in known if each.name not in SOURCES]
    assert not [each for each in known if each.name in DOORS], "the packages import from each other, not through doors"
    up = [f"line {each.line} imports {each.name}" for each in known if PACKAGES.index(package_of(each.name)) > place]
    assert not up


def test_no_imports_go_in_a_circle() -> None:
    """Modules of one package neither; a package's own page may import its modules, so they do not import it."""
    graph = {
        module: {each.name for each in ours(module)} - {"hf_xlmr", module} for module in SOURCES if module != "hf_xlmr"
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle: {' imports '.join(error.args[1][::-1])}")


def test_every_package_of_the_list_is_there() -> None:
    assert {package_of(module) for module in SOURCES if module not in DOORS} == set(PACKAGES)


def test_no_folder_has_more_modules_than_a_reader_can_hold() -> None:
    folders = {path.parent for path in SOURCES.values()}
    counts = {folder: len([*folder.glob("*.py")]) - 1 for folder in folders}  # without __init__.py
    assert not {str(folder): count for folder, count in counts.items() if count > MOST_MODULES}


def test_names_that_packages_give_are_in_modules_that_are_there() -> None:
    """`hf_xlmr` and `hf_xlmr.conversion` import what is asked for when it is asked for, by a table of names."""
    for package in ("hf_xlmr", CONVERSION):
        module = __import__(package, fromlist=["_HOMES"])
        assert {f"{package}.{home}" for home in module._HOMES.values()} <= SOURCES.keys()
        assert set(module._HOMES) == set(module.__all__) - {"__version__"}


@pytest.mark.parametrize("module", [name for name in SOURCES if not name.startswith(CONVERSION)])
def test_what_runs_a_converted_model_knows_nothing_of_converting(module: str) -> None:
    """fairseq's formats live in conversion/ and nowhere else."""
    if any(module == each or module.startswith(f"{each}.") for each in MAY_CONVERT):
        return
    assert not [each for each in imports_in(module) if each.name.startswith(CONVERSION)]


@EVERY_MODULE
def test_only_the_standard_library_is_imported_at_the_top(module: str) -> None:
    allowed = {*sys.stdlib_module_names, "hf_xlmr"} | MAY_IMPORT_AT_THE_TOP.get(module, set())
    tops = [each for each in imports_in(module) if each.is_at_the_top]
    assert not [each for each in tops if each.name.split(".")[0] not in allowed]


def test_importing_everything_imports_nothing_heavy(tmp_path: Path) -> None:
    """The same, asked of Python itself."""
    in_a_heavy_package = {"hf_xlmr.cli.flags", "hf_xlmr.__main__", "hf_xlmr.exporting.runtime_card"}
    light = [name for name in SOURCES if name not in {*MAY_IMPORT_AT_THE_TOP, *in_a_heavy_package}]
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


def private(name: str) -> bool:
    return any(part.startswith("_") and not part.endswith("__") for part in name.split("."))


def private_names(module: str, tree: ast.Module) -> Iterator[str]:
    """What a module takes of another library that is not public, by import, attribute, or name in a string."""
    own = {node.name for node in ast.walk(tree) if isinstance(node, (ast.ClassDef, ast.FunctionDef))}
    own |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and is_own(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and str(node.module).partition(".")[0] != "hf_xlmr":
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.Attribute):
            is_theirs = node.attr not in own | OF_NAMED_TUPLES and not is_own(node)
            names = [node.attr] if is_theirs or node.attr in REFLECTION else []
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "attr")):
            names = [str(each.value) for each in node.args if isinstance(each, ast.Constant)]
        elif isinstance(node, ast.Subscript) and ast.unparse(node.value) == "sys.modules":
            names = ["_sys_modules"]
        else:
            continue
        yield from (name for name in names if (private(name) or name in REFLECTION) and (module, name) not in MAY_TOUCH)


def is_own(node: ast.Attribute) -> bool:
    return isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")


@EVERY_MODULE
def test_nothing_private_of_another_library_is_touched(module: str) -> None:
    assert not list(private_names(module, tree_of(module)))


@pytest.mark.parametrize(
    "code",
    [
        "from huggingface_hub._commit_api import CommitOperationAdd",
        "from torch import _C",
        "import torch._dynamo",
        "def f(addition): return addition._should_ignore",
        "x = Error.__bases__[0]",
        "sys.modules['a'] = b",
        "getattr(addition, '_should_ignore', None)",
        "importlib.import_module('huggingface_hub.utils._http')",
    ],
)
def test_this_test_sees_what_is_private(code: str) -> None:
    assert list(private_names("hf_xlmr.errors", ast.parse(code)))


@EVERY_MODULE
def test_the_library_is_silent(module: str) -> None:
    if module.startswith("hf_xlmr.cli"):
        return
    for node in ast.walk(tree_of(module)):
        assert not (isinstance(node, ast.Name) and node.id == "print"), f"line {node.lineno}"
        assert not (isinstance(node, ast.Attribute) and ast.unparse(node) in ("sys.stdout", "sys.stderr"))


FLAG = re.compile(r"(?<![\w-])--[a-z][\w-]*")
# what somebody types into another program, or chose for fairseq's; everything else is an argument, such as `head=`
OTHER_FLAGS = {
    "--add-bias-kv": "fairseq's",
    "--config_file": "accelerate's",
    "--encoder-layers-to-keep": "fairseq's",
    "--force": "of `hf auth login`",
    "--store-ema": "fairseq's",
}


@pytest.mark.parametrize("module", [name for name in SOURCES if not f"{name}.".startswith("hf_xlmr.cli.")])
def test_the_library_names_no_options_of_the_program(module: str) -> None:
    """Its callers write Python; `hf_xlmr.cli.flags` puts the options into what the program prints."""
    found = [(line, flag) for line, text in texts_in(module) for flag in FLAG.findall(text)]
    assert not [f"line {line} names {flag}" for line, flag in found if flag not in OTHER_FLAGS]


def texts_in(module: str) -> Iterator[tuple[int, str]]:
    """Every string with its line, `x` for what an f-string puts in: `--{name}` names a flag, too."""
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value
        if isinstance(node, ast.JoinedStr):
            yield (
                node.lineno,
                "".join(str(each.value) if isinstance(each, ast.Constant) else "x" for each in node.values),
            )


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
