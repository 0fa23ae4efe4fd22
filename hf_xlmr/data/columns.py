"""Where the data of tasks are, and the rows of them that have columns."""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hf_xlmr.data.arrow_texts import BATCH_ROWS, AnyDataSet, arrow_rows, hub_data_set, open_parquet, saved_data_set
from hf_xlmr.data.delimited import Fields, delimited
from hf_xlmr.data.text_files import PACKED, is_hub_name, kind_name, text_lines
from hf_xlmr.data.text_rows import BadRow, json_object
from hf_xlmr.errors import InputError, printable
from hf_xlmr.files.digests import sha256_of
from hf_xlmr.files.json_files import strict_json
from hf_xlmr.hub.hub_errors import HubRefusal, told_by_the_hub

__all__ = ["JSON_LINES", "PARQUET", "Languages", "Row", "Source", "find_sources", "identity_of"]

JSON_LINES: Final = (".jsonl", ".ndjson", ".json")  # the last as `Dataset.to_json` writes it
PARQUET: Final = ".parquet"
DATA_SET_MARKS: Final = ("dataset_dict.json", "state.json")


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a table, or one object of JSON."""

    place: str
    """The name of the place in messages, such as `xnli.dev.tsv, line 17`."""
    values: Mapping[str, object]
    """The values by column; of Arrow only the columns that were asked for."""


@dataclass(frozen=True)
class Source:
    """One file, or one data set."""

    name: str
    """The name in messages."""
    path: Path
    """The name of a data set of the Hub."""
    data: AnyDataSet | None = None
    """The data set, if it is one."""

    @property
    def kind(self) -> str:
        """The ending of a file, that before `.gz` or `.zst` if it has one; empty for a data set."""
        return "" if self.is_data_set else kind_name(self.path)

    @property
    def is_data_set(self) -> bool:
        """Whether it is not a file."""
        return self.data is not None

    @property
    def is_arrow(self) -> bool:
        """Whether its rows are those of Arrow."""
        return self.is_data_set or self.kind == PARQUET

    @property
    def base_name(self) -> str:
        """What the publisher called it: the name of the file without `.gz` or `.zst`, or the config of the data set."""
        if self.data is not None:
            return str(self.data.config_name or "")
        return self.path.stem if self.path.suffix.lower() in PACKED else self.path.name

    def lines(self) -> Iterator[tuple[str, str]]:
        """Every line of a text file, less its end, and its place. Raises BadRow, OSError."""
        return text_lines(self.path, self.name)

    def fields(self, is_first: Callable[[Sequence[str]], bool]) -> Iterator[Fields]:
        """The fields of every record of a text file, as `delimited` finds them. Raises BadRow, OSError."""
        if self.path.is_file():
            return delimited(self.lines, is_first=is_first)
        held = list(self.lines())  # of a pipe, which cannot be read twice
        return delimited(lambda: iter(held), is_first=is_first)

    def objects(self) -> Iterator[Row]:
        """Every object of JSON Lines. Raises BadRow, OSError."""
        for place, line in self.lines():
            if line and not line.isspace():
                yield Row(place, json_object(line, place))

    def table(self, columns: Iterable[str]) -> Iterator[Row]:
        """Every row of Arrow, with those of the `columns` that there are. Raises BadRow, InputError, OSError."""
        if self.data is not None:
            yield from self._rows_of_data_set(self.data, columns)
            return
        with open_parquet(self.path) as file:
            found = [name for name in columns if name in file.schema_arrow.names]
            batches = file.iter_batches(batch_size=BATCH_ROWS, columns=found, use_threads=False)
            yield from self._rows(batches, found, file.schema_arrow.names)

    def _rows_of_data_set(self, data: AnyDataSet, columns: Iterable[str]) -> Iterator[Row]:
        # some data sets of the Hub show their columns only in their rows
        names = list(data.features or next(iter(data), ()))
        found = [name for name in columns if name in names]
        chosen = data.select_columns(found).with_format("arrow") if found else data
        yield from self._rows(chosen.iter(batch_size=BATCH_ROWS), found, names)

    def _rows(self, batches: Iterable[object], found: list[str], names: list[str]) -> Iterator[Row]:
        if not found:
            raise BadRow(self.name, f"the columns are {', '.join(map(repr, names))}, of which none is known")
        if twice := [name for name in found if names.count(name) > 1]:
            raise BadRow(self.name, f"there are several columns {twice[0]!r}")
        for place, values in arrow_rows(self.name, batches, found):
            yield Row(place, dict(zip(found, values, strict=True)))

    def class_names(self, column: str) -> tuple[str, ...] | None:
        """What the numbers in a column of Arrow mean, alone or in lists, if `datasets` knows it. Raises BadRow."""
        feature = self._features().get(column)
        if isinstance(feature, dict) and "feature" in feature:
            feature = feature["feature"]
        if isinstance(feature, list) and feature:  # as older versions write lists
            feature = feature[0]
        names = feature.get("names") if isinstance(feature, dict) else None
        if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
            raise BadRow(self.name, f"what datasets wrote about the column {column!r} is damaged")
        return None if names is None else tuple(names)

    def _features(self) -> Mapping[str, object]:
        """Those of `datasets`, in the form in which it writes them."""
        if self.data is not None:
            return {} if self.data.features is None else dict(self.data.features.to_dict())
        with open_parquet(self.path) as file:
            written = (file.schema_arrow.metadata or {}).get(b"huggingface", b"{}")
        try:
            features = strict_json(written).get("info", {}).get("features", {})
            return dict(features)
        except (ValueError, AttributeError, TypeError) as error:
            raise BadRow(self.name, f"what datasets wrote about the columns is damaged: {error}") from error


def find_sources(
    source: str | Path, *, split: str | None = None, config: str | None = None, revision: str | None = None
) -> tuple[Source, ...]:
    """The files that `source` names: one, those of a pattern in the order of their names, or a data set.

    A folder is what `Dataset.save_to_disk` wrote. What is not here, and looks like `owner/name`, is streamed from the
    Hub; it alone has `config` and `revision`, and data sets alone a `split`. Raises InputError.
    """
    path, asked = Path(source), {"split": split, "config": config, "revision": revision}
    if path.is_dir():
        return (_saved(path, asked),)
    paths = _files_of(path)
    if not paths and is_hub_name(str(source)):
        return (Source(str(source), path, hub_data_set(str(source), split, config=config, revision=revision)),)
    if not paths:
        raise InputError(f"{source} does not exist")
    if given := [name for name, value in asked.items() if value]:
        raise InputError(f"{source} is not a data set, so it has no {' or '.join(given)}")
    if folders := [each for each in paths if each.is_dir()]:
        raise InputError(f"{folders[0]} is a folder; {source} must name files alone")
    return tuple(Source(each.name if len(paths) == 1 else str(each), each) for each in paths)


def _files_of(path: Path) -> list[Path]:
    """The file, those of a data set, or those of a pattern."""
    if _is_saved(path):
        return sorted(each for each in path.rglob("*") if each.is_file())
    return [path] if path.exists() else [Path(each) for each in sorted(glob.glob(str(path)))]  # noqa: PTH207


def identity_of(source: str) -> tuple[object, ...] | None:
    """What tells the content of `source` from any other, wherever it is; None if only reading it would tell.

    That is the SHA-256 of each file, with its name and its folder's, which can say a language; of a data set on the Hub
    its commit. Raises InputError, OSError.
    """
    if files := _files_of(Path(source)):
        if not all(each.is_file() for each in files):
            return None  # a pipe, or a folder, which will be refused
        return tuple((each.parent.name, each.name, sha256_of(each)) for each in files)
    if not is_hub_name(source):
        return None
    from huggingface_hub import HfApi

    with suppress(HubRefusal), told_by_the_hub(source):
        commit = HfApi().dataset_info(source).sha
        return None if commit is None else (source, commit)
    return None


def _is_saved(folder: Path) -> bool:
    return any((folder / mark).is_file() for mark in DATA_SET_MARKS)


def _saved(folder: Path, asked: Mapping[str, str | None]) -> Source:
    if not _is_saved(folder):
        raise InputError(f"{folder} holds no data set; name the file in it that is meant, or a pattern of several")
    if asked["config"] or asked["revision"]:
        raise InputError(f"{folder} is a data set on this disk, so it has no config or revision")
    return Source(folder.name, folder, saved_data_set(folder, asked["split"]))


class Languages:
    """Which rows are of the language that was asked for, and of which language a row is that does not say.

    Letters of names are small, so that `EN` and `en` are one language in scores and tables.
    """

    def __init__(self, name: str, wanted: str | None) -> None:
        """Take the `wanted` language, None for all, and what messages call the input."""
        self._name, self._wanted = name, wanted and wanted.lower()
        self._found: dict[str, int] = {}

    def takes_names_of(self, sources: Sequence[Source]) -> bool:
        """Whether names of files say a language: of several they pick, of a single one the user knows better."""
        return self._wanted is None or len(sources) > 1

    def of(self, place: str, told: str | None) -> str:
        """The language of the row at `place`, which may name it. Raises BadRow if nothing does."""
        language = (told or self._wanted or "").lower()
        if not language:
            raise BadRow(place, "nothing here says which language this is: give the language (en=FILE)")
        self._found[language] = self._found.get(language, 0) + 1
        return language

    def is_wanted(self, language: str) -> bool:
        """Whether rows of `language` were asked for."""
        return self._wanted in (None, language)

    def check(self) -> None:
        """Raise InputError if no row was of the language that was asked for, or there was no row at all."""
        if not self._found:
            raise InputError(printable(f"{self._name} holds no examples"))
        if self._wanted is not None and self._wanted not in self._found:
            found = ", ".join(self._found)
            raise InputError(printable(f"{self._name} holds no examples of {self._wanted!r}; it has {found}"))
