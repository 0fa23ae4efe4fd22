"""The files that a conversion keeps under `fairseq/`, read as it wrote them: another dictionary gives wrong ids."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

from hf_xlmr.errors import IntegrityError
from hf_xlmr.model.folder_records import ConversionRecord

__all__ = ["read_kept"]


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
