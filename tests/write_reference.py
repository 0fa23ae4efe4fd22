"""Write the reference pages from the program and its docstrings: `python tests/write_reference.py`.

Commands come from what `hf-xlmr` itself parses, and the rest from signatures and docstrings, so that a page cannot say
other than the program does. The same source gives the same bytes, whatever the terminal's width.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

from hf_xlmr.cli.command_help import EXAMPLES

CHECKOUT = Path(__file__).resolve().parent.parent
REFERENCE = CHECKOUT / "notebooks" / "reference"
PLACES = {"hf_xlmr.conversion": CHECKOUT / "conversion", "hf_xlmr": CHECKOUT / "hf_xlmr"}
# What a user's code imports: the packages' own names, and modules that the README names.
PUBLIC = (
    "hf_xlmr",
    "hf_xlmr.conversion",
    "hf_xlmr.adopting",
    "hf_xlmr.exporting",
    "hf_xlmr.conformance",
    "hf_xlmr.errors",
    "hf_xlmr.extraction",
    "hf_xlmr.bulk_extraction",
    "hf_xlmr.features.datatrove",
    "hf_xlmr.dictionary",
    "hf_xlmr.doctor",
    "hf_xlmr.model_shape",
    "hf_xlmr.sharding",
    "hf_xlmr.placed_loading",
    "hf_xlmr.pipeline",
    "hf_xlmr.progress",
    "hf_xlmr.publishing",
    "hf_xlmr.tasks.example_data",
    "hf_xlmr.tasks.xnli",
    "hf_xlmr.tasks.mlqa",
    "hf_xlmr.tasks.ner",
    "hf_xlmr.tasks.metrics",
    "hf_xlmr.tasks.results",
    "hf_xlmr.tasks.results_table",
    "hf_xlmr.tasks.results_plot",
    "hf_xlmr.tasks.results_card",
    "hf_xlmr.tasks.training",
    "hf_xlmr.tasks.evaluation",
    "hf_xlmr.tasks.launch",
)
WRITTEN = "Written by `python tests/write_reference.py`; a test holds it to the program.\n"


def main() -> None:
    """Write both pages."""
    REFERENCE.mkdir(exist_ok=True)
    for name, text in pages().items():
        (REFERENCE / name).write_text(text, encoding="utf-8")


def pages() -> dict[str, str]:
    """The pages by the names of their files."""
    return {"commands.md": commands_page(), "api.md": api_page()}


# ---- commands --------------------------------------------------------------------------------------------------------


def commands_page() -> str:
    """Each sub-command: usage, arguments and options with their defaults."""
    import typer

    from hf_xlmr.cli.program import app

    program: Any = typer.main.get_command(app)
    commands = [program.commands[name] for name in program.commands]
    links = [f"- [`hf-xlmr {each.name}`](#hf-xlmr-{each.name}): {_line(each.help)}" for each in commands]
    parts = ["# Commands", WRITTEN.strip(), _line(program.help)]
    return "\n\n".join([*parts, "\n".join(links), *map(_command, commands)]) + "\n"


def _command(command: Any) -> str:
    kinds = _kinds(command)
    shown = [each for each in command.params if each.name in kinds]
    arguments = [each for each in shown if each.param_type_name == "argument"]
    options = [each for each in shown if each.param_type_name == "option"]
    needed = [f"{each.opts[0]} {_metavar(each, kinds[each.name])}" for each in options if each.required]
    usage = " ".join(["hf-xlmr", command.name, *(each.metavar for each in arguments), *needed, "[OPTIONS]"])
    parts = [f"## hf-xlmr {command.name}", _line(command.help), f"```\n{usage}\n```"]
    if arguments:
        rows = [(f"`{each.metavar}`", _line(each.help)) for each in arguments]
        parts.append(_table(("argument", ""), rows))
    rows = [(_spelled(each, kinds[each.name]), _default(each), _line(each.help)) for each in options]
    examples = "\n".join(EXAMPLES[command.name])
    return "\n\n".join([*parts, _table(("option", "default", ""), rows), f"```\n{examples}\n```"])


def _spelled(option: Any, kind: Any) -> str:
    names = " / ".join([*option.opts, *option.secondary_opts])
    return f"`{names}`" if option.is_flag else f"`{names} {_metavar(option, kind)}`"


def _metavar(parameter: Any, kind: Any) -> str:
    """How a value is named: by the name or the choices that it was given, or by its type."""
    if parameter.metavar:
        return str(parameter.metavar)
    return {int: "N", float: "F", Path: "PATH"}.get(kind, "TEXT")


def _kinds(command: Any) -> dict[str, Any]:
    """The type of each parameter, None and list left aside."""
    found = {}
    hints = get_type_hints(command.callback)
    hints.pop("return", None)
    for name, kind in hints.items():
        (inner,) = [each for each in (get_args(kind) or (kind,)) if each is not type(None)]
        found[name] = (get_args(inner) or (inner,))[0]
    return found


def _default(option: Any) -> str:
    if option.required:
        return "required"
    value = option.default
    if option.is_flag and option.secondary_opts and value is not None:
        return f"`{option.opts[0] if value else option.secondary_opts[0]}`"
    return "" if value in (None, False, ()) else f"`{value}`"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *(tuple(cell.replace("|", "\\|") for cell in row) for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _line(text: str | None) -> str:
    return " ".join((text or "").split()).replace("<", "&lt;").replace("*", "\\*")


# ---- names -----------------------------------------------------------------------------------------------------------


def api_page() -> str:
    """Each public name: its signature as it is written, and its docstring."""
    parts = ["# Python reference", WRITTEN.strip(), "\n".join(f"- [`{name}`](#{_anchor(name)})" for name in PUBLIC)]
    for name in PUBLIC:
        module = _tree(name)
        parts += [f"## {name}", _prose(ast.get_docstring(module))]
        parts += [part for public in _exported(module) for part in _told(name, public)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _anchor(name: str) -> str:
    return name.replace(".", "")


def _path(name: str) -> Path:
    for package, folder in PLACES.items():
        if name == package or name.startswith(package + "."):
            path = folder.joinpath(*name.removeprefix(package).split(".")[1:])
            return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    raise KeyError(name)


def _tree(name: str) -> ast.Module:
    return ast.parse(_path(name).read_text(encoding="utf-8"))


def _assigned(module: ast.Module, name: str) -> Any:
    """The literal of a name at the top of a module. Raises KeyError."""
    for node in module.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return ast.literal_eval(node.value)
    raise KeyError(name)


def _exported(module: ast.Module) -> list[str]:
    return list(_assigned(module, "__all__"))


def _told(module: str, name: str) -> Iterator[str]:
    """A name where it is defined; what a package hands on is told once, under the package."""
    tree = _tree(module)
    while origin := _origin(tree, name):
        tree = _tree(origin)
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name == name:
            yield f"### {name}"
            yield from _function(node) if isinstance(node, ast.FunctionDef) else _class(node)
            return
    for node, after in zip(tree.body, [*tree.body[1:], None], strict=True):
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        if name in {each.id for target in targets for each in ast.walk(target) if isinstance(each, ast.Name)}:
            yield f"### {name}"
            yield _comment(after)
            return


def _origin(tree: ast.Module, name: str) -> str | None:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and name in {alias.name for alias in node.names}:
            return node.module
    return None


def _function(node: ast.FunctionDef) -> Iterator[str]:
    yield _code(_signature(node))
    yield _prose(ast.get_docstring(node))


def _class(node: ast.ClassDef) -> Iterator[str]:
    bases = ", ".join(ast.unparse(base) for base in node.bases)
    yield _code(f"class {node.name}({bases})" if bases else f"class {node.name}")
    yield _prose(ast.get_docstring(node))
    fields = list(_fields(node))
    if fields:
        yield "\n".join(fields)
    for each in node.body:
        if isinstance(each, ast.FunctionDef) and (each.name in ("__init__", "__call__") or each.name[0] != "_"):
            text = _prose(ast.get_docstring(each))
            is_property = any("property" in ast.unparse(one) for one in each.decorator_list)
            if is_property:
                kind = f": `{ast.unparse(each.returns)}`" if each.returns else ""
                yield f"**`{each.name}`**{kind}. {text}"
            else:
                yield _code(_signature(each, of=node.name))
                yield text


def _fields(node: ast.ClassDef) -> Iterator[str]:
    for each, after in zip(node.body, [*node.body[1:], None], strict=True):
        if isinstance(each, ast.AnnAssign) and not ast.unparse(each.target).startswith("_"):
            default = f" = {ast.unparse(each.value)}" if each.value else ""
            yield f"- `{ast.unparse(each.target)}: {ast.unparse(each.annotation)}{default}` {_comment(after)}".rstrip()


def _comment(after: ast.stmt | None) -> str:
    """The string below a field or a constant, which tells what it holds."""
    is_text = (
        isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and isinstance(after.value.value, str)
    )
    return _prose(inspect.cleandoc(after.value.value)) if is_text else ""  # type: ignore[union-attr]


def _signature(node: ast.FunctionDef, *, of: str = "") -> str:
    """As in the source, without `self`; a parameter to a line where one line is too long."""
    name = of if node.name == "__init__" else f"{of}.{node.name}" if of else node.name
    returns = f" -> {ast.unparse(node.returns)}" if node.returns and node.name != "__init__" else ""
    arguments = node.args
    if of and (arguments.posonlyargs or arguments.args):
        (arguments.posonlyargs or arguments.args).pop(0)
    whole = f"{name}({ast.unparse(arguments)}){returns}"
    if len(whole) <= 100:
        return whole
    return f"{name}(\n" + "".join(f"    {each},\n" for each in _parameters(arguments)) + f"){returns}"


def _parameters(arguments: ast.arguments) -> Iterator[str]:
    """Each as it is written."""
    ordinary = [*arguments.posonlyargs, *arguments.args]
    defaults = [None] * (len(ordinary) - len(arguments.defaults)) + list(arguments.defaults)
    yield from map(_parameter, ordinary, defaults)
    if arguments.vararg:
        yield "*" + ast.unparse(arguments.vararg)
    elif arguments.kwonlyargs:
        yield "*"
    yield from map(_parameter, arguments.kwonlyargs, arguments.kw_defaults)
    if arguments.kwarg:
        yield "**" + ast.unparse(arguments.kwarg)


def _parameter(argument: ast.arg, default: ast.expr | None) -> str:
    return ast.unparse(argument) + (f" = {ast.unparse(default)}" if default is not None else "")


def _code(text: str) -> str:
    return f"```python\n{text}\n```"


def _prose(text: str | None) -> str:
    """A docstring as Markdown: examples become blocks."""
    lines, is_code = [], False
    for line in (text or "").splitlines():
        if line.startswith(">>> ") and not is_code:
            lines.append("```pycon")
        elif is_code and not line:
            lines.append("```")
        is_code = line.startswith(">>> ") or (is_code and bool(line))
        lines.append(line)
    return "\n".join([*lines, "```"] if is_code else lines)


if __name__ == "__main__":
    main()
