"""fairseq's formats live here and nowhere else: from a fairseq checkpoint to a Transformers folder, proved, and back.

>>> from hf_xlmr.conversion import convert
>>> report = convert("demo", "demo-model")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hf_xlmr.conversion.checkpoint.opened_checkpoint import FairseqCheckpoint, open_checkpoint
    from hf_xlmr.conversion.converting import ConversionReport, convert
    from hf_xlmr.conversion.exporting import ExportReport, export
    from hf_xlmr.conversion.inspection import Inspection, inspect
    from hf_xlmr.conversion.proof.parity import ParityError, ParityReport
    from hf_xlmr.conversion.sentence_transformers_folder import SentenceTransformersReport, to_sentence_transformers
    from hf_xlmr.conversion.verification import verify

__all__ = [
    "ConversionReport",
    "ExportReport",
    "FairseqCheckpoint",
    "Inspection",
    "ParityError",
    "ParityReport",
    "SentenceTransformersReport",
    "convert",
    "export",
    "inspect",
    "open_checkpoint",
    "to_sentence_transformers",
    "verify",
]

_HOMES = {
    "ConversionReport": "converting",
    "ExportReport": "exporting",
    "FairseqCheckpoint": "checkpoint.opened_checkpoint",
    "Inspection": "inspection",
    "ParityError": "proof.parity",
    "ParityReport": "proof.parity",
    "SentenceTransformersReport": "sentence_transformers_folder",
    "convert": "converting",
    "export": "exporting",
    "inspect": "inspection",
    "open_checkpoint": "checkpoint.opened_checkpoint",
    "to_sentence_transformers": "sentence_transformers_folder",
    "verify": "verification",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for, so that reading a file does not import the writer."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
