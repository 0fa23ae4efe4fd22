"""Where damaged files of a folder go in, each through all that reads such a file; what comes out is for the runner."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

__all__ = ["DOORS"]

TEXTS = (
    *("", "a b", "The train leaves.", "<s> <mask> </s>", "\u2581a\u2581", "a\0b", "x" * 700, "a" * 160),
    *("\u00e9\u0301 \ufb01 \uff21", "\U0001f600" * 40, "\u4f60\u597d\uff0c\u4e16\u754c", "\u0e01\u0e33 \u1100\u1161"),
    " \t\r\n\u0085\u2028 ",
)


def through_sentencepiece(given: Path) -> None:
    """Load a model and cut texts with it: one by one and many at once, which must be the same."""
    from hf_xlmr.tokenizer.dictionary import Dictionary
    from hf_xlmr.tokenizer.tokenization import ExactTokenizer

    dictionary = Dictionary.parse(b"a 1\n\xe2\x96\x81a 1\nb 1\n", name="dict.txt")
    tokenizer = ExactTokenizer(dictionary, given / "sentencepiece.bpe.model")
    alone = [tokenizer.encode(text) for text in TEXTS]
    assert tokenizer.encode_batch(list(TEXTS)) == alone, "one by one and many at once differ"
    for text in TEXTS:
        tokenizer.spans(text)


def through_folder(given: Path) -> None:
    """Examine a folder, take its shape and its dictionary, and export it."""
    from hf_xlmr.conversion import export
    from hf_xlmr.doctor.examination import examine
    from hf_xlmr.hub_interface.loading import ModelFiles
    from hf_xlmr.model_shape import shape_of

    for read in (shape_of, examine, lambda folder: ModelFiles(folder).dictionary):
        _tolerant(read, given)
    export(given, given.parent / "out")


def through_header(given: Path) -> None:
    """Read the header of a file: what is taken, the format's own library takes and reads alike."""
    from safetensors import safe_open

    from hf_xlmr.model.fingerprint import fingerprint
    from hf_xlmr.model.safetensors_files import file_header

    path = given / "model.safetensors"
    entries = file_header(path)
    try:
        with safe_open(path, framework="np") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except Exception as error:
        if "unknown variant" in str(error):  # a type that this release of the library does not know
            return
        raise
    assert shapes == {name: entry.shape for name, entry in entries.items()}, "another reader reads it otherwise"
    fingerprint(given)
    through_folder(given)


def through_parquet(given: Path) -> None:
    """Read all rows of a file, as texts with their ids and as rows of a task."""
    from hf_xlmr.data.columns import find_sources
    from hf_xlmr.data.text_files import open_texts

    path = given / "texts.parquet"
    _tolerant(lambda file: sum(1 for _ in open_texts(file, column="text", id_column="id")), path)
    (source,) = find_sources(path)
    for _row in source.table(["text", "id", "label", "tokens"]):
        pass
    source.class_names("label")


def _tolerant(read: Callable[[Path], object], path: Path) -> None:
    """Whatever this one says of the file, others are asked too."""
    from hf_xlmr.errors import InputError, IntegrityError

    try:
        read(path)
    except (InputError, IntegrityError) as error:
        assert len(str(error).splitlines()) == 1, f"not one sentence: {error}"


DOORS: Mapping[str, Callable[[Path], None]] = {
    "sentencepiece": through_sentencepiece,
    "tokenizer.json": through_folder,
    "config.json": through_folder,
    "header": through_header,
    "parquet": through_parquet,
}
