"""Build the site of the guides, notebooks, commands and names: `python notebooks/site/build_site.py` (extra `docs`).

The pages are the files that GitHub shows. Notebooks and an example of each command are run, for their outputs. Links
are turned to where the pages are in the site; a link that leads nowhere is an error.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Mapping
from pathlib import Path

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parent.parent
BUILD = CHECKOUT / "build"
NOTEBOOKS = sorted((CHECKOUT / "notebooks").glob("*.ipynb"))
REFERENCE = CHECKOUT / "notebooks" / "reference"
CODE = re.compile(r"`[^`]+`")
SECTION = "\n## hf-xlmr "

PAGES: Mapping[str, Path] = {
    **{f"guide/{page.name}": page for page in sorted((CHECKOUT / "notebooks" / "guide").glob("*.md"))},
    **{f"notebooks/{page.stem}.md": page for page in NOTEBOOKS},
    "readme.md": CHECKOUT / "README.md",
    "commands/index.md": REFERENCE / "commands.md",
    "api.md": REFERENCE / "api.md",
    "results.md": CHECKOUT / "tests" / "benchmarks" / "RESULTS.md",
    "changelog.md": CHECKOUT / "CHANGELOG.md",
    "contributing.md": CHECKOUT / "CONTRIBUTING.md",
    "demo-card.md": CHECKOUT / "tests" / "fixtures" / "demo-card.md",
    "example-data.md": CHECKOUT / "hf_xlmr" / "tasks" / "examples" / "README.md",
}
START = "guide/start.md"  # is the index, too

# What the page of each command shows, in this order, in a folder that holds nothing but TEXTS.
TEXTS = "The train leaves.\nДети играют.\n你好，世界\n"
SHOWN: Mapping[str, str] = {
    "inspect": "hf-xlmr inspect demo",
    "convert": "hf-xlmr convert demo my-model --language en --license mit",
    "verify": "hf-xlmr verify demo my-model --report report.html",
    "export": "hf-xlmr export my-model for-fairseq",
    "plan": "hf-xlmr plan xlmr.xxl --max-memory 0=24GiB,1=24GiB,cpu=64GiB --dtype bfloat16",
    "extract": "hf-xlmr extract my-model texts.txt features --pool mean",
    "finetune": "hf-xlmr finetune xnli --model my-model --train demo --eval demo --output my-xnli --max-steps 20",
    "evaluate": "hf-xlmr evaluate xnli --model my-xnli --data demo --references",
    "adopt": "hf-xlmr adopt my-trained --from my-model",
    "doctor": "hf-xlmr doctor my-model",
    "to-sentence-transformers": "hf-xlmr to-sentence-transformers my-model my-sentence-model",
    "to-onnx": "hf-xlmr to-onnx my-model my-onnx-model --pool mean",
    "to-openvino": "hf-xlmr to-openvino my-model my-openvino-model",
    "verify-runtime": "hf-xlmr verify-runtime my-model my-sentence-model",
    "push": "hf-xlmr push my-model me/my-model --dry-run",
}


def main() -> None:
    """Write the sources with every output, and the site from them."""
    source = BUILD / "docs-source"
    assemble(source, outputs=printed(), notebooks=run_notebooks(source.with_name("docs-notebooks")))
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--quiet",
        "--clean",
        "-f",
        str(HERE / "mkdocs.yml"),
    ]
    subprocess.run(command, check=True)
    print("build/docs is complete; to read it with its search: python -m http.server --directory build/docs")


def assemble(folder: Path, *, outputs: Mapping[str, str], notebooks: Mapping[str, str]) -> None:
    """Write the sources of the site to `folder`: `outputs` by command, and the Markdown of `notebooks` by name."""
    shutil.rmtree(folder, ignore_errors=True)
    for name, page in PAGES.items():
        text = notebooks.get(page.stem, f"# {page.stem}\n") if page in NOTEBOOKS else page.read_text(encoding="utf-8")
        if name == "commands/index.md":
            text, *sections = text.split(SECTION)
            for section in sections:
                command = section.split("\n", 1)[0]
                body = command_page(section, command, outputs.get(command, ""))
                write(folder, f"commands/{command}.md", body, page)
            text = re.sub(r"\(#hf-xlmr-([\w-]+)\)", r"(\1.md)", text)
        write(folder, name, text, page)
    write(folder, "index.md", PAGES[START].read_text(encoding="utf-8"), PAGES[START])
    (folder / START).unlink()
    shutil.copyfile(HERE / "site.css", folder / "site.css")
    for page in NOTEBOOKS:
        if (pictures := BUILD / "docs-notebooks" / f"{page.stem}_files").is_dir():
            shutil.copytree(pictures, folder / "notebooks" / pictures.name)


def command_page(section: str, command: str, output: str) -> str:
    """The page of a command: its part of the reference, and what an example prints."""
    shown = f"\n## What it prints\n\n```\n$ {SHOWN[command]}\n{output}```\n" if output else ""
    examples = re.sub(r"\n```\n(hf-xlmr [^`]*?|zcat [^`]*?)\n```\n?$", r"\n## Examples\n\n```\n\1\n```\n", section)
    return f"# hf-xlmr {examples}{shown}"


def write(folder: Path, name: str, text: str, page: Path) -> None:
    """Write a page whose links work in the site."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    parts = re.split(r"(^```.*?^```$)", text, flags=re.S | re.M)  # every other one is a block of code
    parts[::2] = [_for_site(part, name, page, folder) for part in parts[::2]]
    path.write_text("".join(parts), encoding="utf-8")


def _for_site(prose: str, name: str, page: Path, folder: Path) -> str:
    def turned(link: re.Match[str]) -> str:
        target, mark, anchor = link[1].partition("#")
        return f"]({_place(target, name, page, folder)}{mark}{anchor})"

    prose = re.sub(r"\]\((?!https?:|mailto:|#)([^)\s]+)\)", turned, prose)
    prose = re.sub(r"^\|.*$", lambda row: CODE.sub(_pipes, row[0]), prose, flags=re.M)
    # lists: Python's Markdown wants four spaces where GitHub's takes two, and an empty line before the first item
    prose = re.sub(r"^ {2,3}(?=\S)", "    ", prose, flags=re.M)
    return re.sub(r"^((?![-|#>]|\d\.|\s).+)\n(?=(?:- |1\. ))", r"\1\n\n", prose, flags=re.M)


def _pipes(code: re.Match[str]) -> str:
    """Code in a table: GitHub wants its pipes escaped, Python's Markdown does not."""
    return code[0].replace("\\|", "|")


def _place(target: str, name: str, page: Path, folder: Path) -> str:
    """Where a page or a file of the checkout is, seen from the page `name`; files are copied. Raises ValueError."""
    here = Path(name).parent
    if page.suffix == ".ipynb" and target.startswith(f"{page.stem}_files/"):
        return target
    meant = (page.parent / target).resolve()
    for other, source in PAGES.items():
        if source == meant:
            return os.path.relpath("index.md" if other == START else other, here)
    if target in {f"{command}.md" for command in SHOWN}:
        return target
    if meant.is_file():
        copied = Path("files", meant.relative_to(CHECKOUT))
        (folder / copied).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(meant, folder / copied)
        return os.path.relpath(copied, here)
    raise ValueError(f"{page} links to {target}, which is not there")


def printed() -> dict[str, str]:
    """What each command of SHOWN prints."""
    program = Path(sysconfig.get_path("scripts")) / "hf-xlmr"
    environment = {**os.environ, "COLUMNS": "80", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment.pop("HF_TOKEN", None)
    found = {}
    with tempfile.TemporaryDirectory() as work:
        Path(work, "texts.txt").write_text(TEXTS, encoding="utf-8")
        for command, line in SHOWN.items():
            if command == "adopt":  # what a Trainer saves is weights and configuration
                for name in ("config.json", "model.safetensors"):
                    Path(work, "my-trained").mkdir(exist_ok=True)
                    shutil.copyfile(Path(work, "my-xnli", name), Path(work, "my-trained", name))
            done = subprocess.run(
                [program, *line.split()[1:]], cwd=work, env=environment, capture_output=True, text=True, check=False
            )
            if done.returncode and command != "push":  # which says that there is no token
                raise RuntimeError(f"{line}: {done.stderr}")
            found[command] = "".join(f"{each.rstrip()}\n" for each in done.stdout.splitlines())
    return found


def run_notebooks(folder: Path) -> dict[str, str]:
    """The Markdown of each notebook with its outputs; figures are written to `folder`, as NAME_files."""
    import nbformat
    from nbclient import NotebookClient
    from nbconvert import MarkdownExporter

    shutil.rmtree(folder, ignore_errors=True)
    found = {}
    for page in NOTEBOOKS:
        notebook = nbformat.read(page, as_version=4)
        with tempfile.TemporaryDirectory() as work:
            client = NotebookClient(notebook, kernel_name="python3", resources={"metadata": {"path": work}})
            client.execute(env={**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"})
        resources = {"unique_key": page.stem, "output_files_dir": f"{page.stem}_files"}
        text, kept = MarkdownExporter().from_notebook_node(notebook, resources=resources)
        for name, content in kept["outputs"].items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        found[page.stem] = text
    return found


if __name__ == "__main__":
    main()
