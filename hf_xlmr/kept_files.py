"""The door of tokenizers that earlier versions saved: their own code imports this name."""

from __future__ import annotations

from hf_xlmr.model.folder_records import read_kept

__all__ = ["read_kept"]
