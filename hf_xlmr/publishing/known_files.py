"""Decides by name which files of a folder belong to the model: those that hf_xlmr, Transformers and others write."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath
from typing import Final

from hf_xlmr.cards.markdown import linked_files
from hf_xlmr.errors import IntegrityError
from hf_xlmr.files.json_files import JsonObject, json_object, strict_json
from hf_xlmr.model.opened_folder import CARD, CONFIG, OpenedFolder

KNOWN: Final = re.compile(
    "|".join(
        (
            r"README([._-]\w+)*\.md|(LICEN[CS]E|NOTICE|COPYING|AUTHORS|USE_POLICY)([._-]\w+)*|CITATION\.(cff|bib)",
            r"config\.json|generation_config\.json|model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json",
            r"tokenizer(_config)?\.json|special_tokens_map\.json|added_tokens\.json|(sentencepiece(\.bpe)?|spiece)\.model",
            r"adapter_config\.json|adapter_model\.safetensors",
            r"fairseq/(conversion\.json|options\.json|(label/|input0/)?dict\.txt|sentencepiece\.bpe\.model)",
            r"finetuning\.json|report\.html|((all|train|eval|predict|test)_)?results\.json|results\.(md|svg|png|pdf)",
            r"modules\.json|config_sentence_transformers\.json|sentence_bert_config\.json",
        )
    )
)
FOLDERS: Final = frozenset({"fairseq", "fairseq/label", "fairseq/input0"})
OF_A_MODULE: Final = re.compile(r"config\.json|model\.safetensors")
OF_AN_EVALUATION: Final = re.compile(
    r"results\.(json|md|svg)|predictions/(README\.md|labels\.tsv|confusion\.tsv|[\w-]+\.(json|conll))"
)
MARK_OF_EVALUATION: Final = "predictions/README.md"
PICTURE: Final = re.compile(r".+\.(png|jpe?g|gif|svg|webp)", re.IGNORECASE)
CONFIGS: Final = (CONFIG, "tokenizer_config.json")
MODULES: Final = "modules.json"


@dataclass(frozen=True)
class KnownFiles:
    """The names in one folder that are known to belong to its model."""

    opened: OpenedFolder

    def __contains__(self, name: str) -> bool:
        """Whether the file `name` (relative to the folder, with slashes) belongs to the model. Raises OSError."""
        if KNOWN.fullmatch(name) or name in self._code:
            return True
        path = PurePosixPath(name)
        if path.parent.as_posix() in self._modules and OF_A_MODULE.fullmatch(path.name):
            return True
        return self._is_of_evaluation(path) or (PICTURE.fullmatch(name) is not None and name in self._linked)

    def needs_folder(self, name: str) -> bool:
        """Whether the folder `name` has files that belong to the model. Raises OSError."""
        return name in FOLDERS or name in self._modules

    def _is_of_evaluation(self, path: PurePosixPath) -> bool:
        """Whether `hf-xlmr evaluate` wrote the file at `path`, into this folder or a subfolder of any name."""
        for parent in path.parents:
            is_named_so = OF_AN_EVALUATION.fullmatch(path.relative_to(parent).as_posix())
            if is_named_so and (self.opened.path / parent / MARK_OF_EVALUATION).is_file():
                return True
        return False

    @cached_property
    def _linked(self) -> frozenset[str]:
        """The files that the card shows or links to; pictures among them belong to the model."""
        has_card = self.opened.has(CARD)
        return linked_files(self.opened.read(CARD).decode("utf-8", "replace")) if has_card else frozenset()

    @cached_property
    def _modules(self) -> frozenset[str]:
        path = self.opened.path / MODULES
        try:
            modules = strict_json(path.read_bytes()) if path.is_file() else []
            return frozenset(str(each["path"]).rstrip("/") for each in modules if each.get("path"))
        except (ValueError, TypeError, AttributeError, KeyError):
            return frozenset()  # doctor reports it

    @cached_property
    def _code(self) -> frozenset[str]:
        """The Python files that the configurations name: code that was saved with a pipeline or a tokenizer."""
        named: list[object] = []
        for config in map(self._object, CONFIGS):
            named += [each.get("impl") for each in _values(config.get("custom_pipelines")) if isinstance(each, dict)]
            for each in _values(config.get("auto_map")):
                named += each if isinstance(each, list) else [each]
        return frozenset(f"{name.rpartition('.')[0]}.py" for name in named if isinstance(name, str))

    def _object(self, name: str) -> JsonObject:
        """The object in a JSON file; empty if the file is missing or damaged, which doctor reports."""
        try:
            return self.opened.config if name == CONFIG else json_object(self.opened.path / name)
        except (IntegrityError, OSError):
            return {}


def _values(mapping: object) -> list[object]:
    return list(mapping.values()) if isinstance(mapping, dict) else []
