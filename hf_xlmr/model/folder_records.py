"""`fairseq/conversion.json` and `finetuning.json`, a folder's records of its making: read and written here alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Final

from hf_xlmr import __version__
from hf_xlmr.errors import InputError, IntegrityError
from hf_xlmr.files.json_files import JsonObject, object_of

CONVERSION: Final = "fairseq/conversion.json"
FINETUNING: Final = "finetuning.json"
ADOPTED: Final = "adopted"
"""The field of FINETUNING by which `adopt` says what it completed; `finetune` writes none."""
FORMAT: Final = "format"
NEWEST: Final[Mapping[str, int]] = {CONVERSION: 1, FINETUNING: 1}
"""Raised where an earlier hf_xlmr would misread what is written; a field that it may pass over raises nothing.

Records without the field were written before there were numbers, and count as 0.
"""


@dataclass(frozen=True)
class ConversionRecord:
    """What a conversion wrote down; of a folder that hf_xlmr did not convert it is empty.

    A field that an earlier hf_xlmr did not write yet has a default. Properties raise IntegrityError for damage.
    """

    path: Path
    fields: JsonObject = field(default_factory=dict)

    @classmethod
    def of(cls, folder: Path) -> ConversionRecord:
        """The record of the model folder `folder`.

        Raises IntegrityError, InputError if a newer hf_xlmr wrote it, OSError.
        """
        path = folder / CONVERSION
        return cls(path, record_fields(path.read_bytes(), path, CONVERSION) if path.is_file() else {})

    @property
    def is_there(self) -> bool:
        """Whether the folder has a record."""
        return bool(self.fields)

    @property
    def asked(self) -> JsonObject:
        """The options of the conversion by their names; none if it did not say."""
        return self._object("asked")

    @property
    def class_name(self) -> str | None:
        """The Transformers class that was written."""
        return self._text("class")

    @property
    def head(self) -> str | None:
        """The name of the converted head in fairseq, None if there is none."""
        return self._text("head")

    @property
    def left_behind(self) -> tuple[str, ...]:
        """The names of the checkpoint's weights that the folder does not hold."""
        return tuple(map(str, self._object("dropped")))

    @property
    def embedding_rows(self) -> int | None:
        """The rows of fairseq's embedding, None if the record does not say."""
        rows = self.fields.get("embedding_rows")
        if rows is not None and (type(rows) is not int or rows < 1):
            raise self._damage(f"embedding_rows is {rows!r:.40}")
        return rows

    def appended_rows(self, rows: int) -> int:
        """How many rows the conversion appended to fairseq's embedding; `rows` are those of the folder today.

        They count where the record does not hold the configuration.
        """
        written, own = (self.config or {}).get("vocab_size", rows), self.embedding_rows
        if type(written) is not int:
            raise self._damage(f"the vocab_size of its config is {written!r:.40}")
        return max(0, written - own) if own is not None else 0

    @property
    def is_verified(self) -> bool:
        """Whether the weights were proved."""
        return self.fields.get("parity") is not None

    @property
    def weights(self) -> Mapping[str, str]:
        """The SHA-256 of the weights that were proved, by the names of their files."""
        recorded = self._proved("output_sha256")
        if recorded is None:
            raise self._damage("it does not say which weights were verified")
        return recorded

    @property
    def source_weights(self) -> Mapping[str, str]:
        """The SHA-256 of the checkpoint's files that were proved; none if the record does not say."""
        return self._proved("source_sha256") or {}

    def _proved(self, files: str) -> Mapping[str, str] | None:
        parity = self.fields.get("parity")
        found = parity.get(files) if isinstance(parity, dict) else None
        return found if isinstance(found, dict) else None

    @property
    def written(self) -> Mapping[str, str]:
        """The SHA-256 of what was written next to the weights; in older records of what came from the source alone."""
        try:
            kept = {f"fairseq/{name}": known for name, known in self.source_files.items()}
            return {str(name): str(known) for name, known in {**kept, **dict(self.fields.get("written", {}))}.items()}
        except (TypeError, ValueError) as error:
            raise self._damage("it does not say which files were written") from error

    @property
    def source_sizes(self) -> Mapping[str, int]:
        """The bytes of every file of the source, by their names there."""
        try:
            return {str(name): int(told["bytes"]) for name, told in self._object("source").get("files", {}).items()}
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise self._damage("it does not say which files were read") from error

    @property
    def source_files(self) -> Mapping[str, str]:
        """The SHA-256 of the small files of the source (`dict.txt` and the like), by their names there."""
        try:
            files = self._object("source").get("files", {})
            return {str(name): str(told["sha256"]) for name, told in files.items() if "sha256" in told}
        except (AttributeError, TypeError) as error:
            raise self._damage("it does not say which files were written") from error

    @property
    def config(self) -> JsonObject | None:
        """The config.json that was written, None in older records."""
        return self._object("config") if "config" in self.fields else None

    def _object(self, name: str) -> JsonObject:
        value = self.fields.get(name, {})
        if not isinstance(value, dict):
            raise self._damage(f"{name} is not an object")
        return value

    def _text(self, name: str) -> str | None:
        value = self.fields.get(name)
        if value is not None and not isinstance(value, str):
            raise self._damage(f"{name} is {value!r:.40}")
        return value

    def _damage(self, told: str) -> IntegrityError:
        return IntegrityError(f"{self.path} is damaged: {told}")


def conversion_record_text(fields: Mapping[str, object]) -> str:
    """The content of `fairseq/conversion.json`, the same for the same `fields`, with its format number."""
    told = {FORMAT: NEWEST[CONVERSION], **fields}
    return json.dumps(told, indent=2, ensure_ascii=False, sort_keys=True, allow_nan=False) + "\n"


def read_kept(folder: Path, name: str, *, record: ConversionRecord | None = None) -> bytes:
    """The file `name` under the folder `fairseq/`, which must be the one that the record of the conversion names.

    `record` is that one, where it was read already. Raises IntegrityError, OSError.
    """
    data = (folder / name).read_bytes()
    record = record or ConversionRecord.of(folder.parent)
    recorded = record.source_files.get(name)
    if recorded is not None and sha256(data).hexdigest() != recorded:
        raise IntegrityError(
            f"{folder / name} is not the file that {record.path} describes (its SHA-256 begins with "
            f"{recorded:.12}): it was cut off or exchanged; copy it again, or convert the checkpoint again"
        )
    return data


def finetuning_record_text(fields: Mapping[str, object]) -> str:
    """The content of `finetuning.json`, with its format number."""
    return json.dumps({FORMAT: NEWEST[FINETUNING], **fields}, ensure_ascii=False, indent=2) + "\n"


def record_fields(data: bytes, path: Path, kind: str) -> JsonObject:
    """The fields of a record of that `kind` (its name in the folder), whose `data` was read from `path`.

    Raises IntegrityError, InputError where a newer hf_xlmr wrote it.
    """
    fields = object_of(data, path, has_paths=True)
    number, newest = fields.get(FORMAT, 0), NEWEST[kind]
    if type(number) is not int or number < 0:
        raise IntegrityError(f"{path} is damaged: its format is {number!r:.40}, which is not a number of hf_xlmr's")
    if number > newest:
        raise InputError(
            f"{path} has the format {number!r:.40}, and hf_xlmr {__version__} reads formats up to {newest}: a newer "
            "hf_xlmr wrote it; install that one"
        )
    return fields
