"""The options a checkpoint was trained with, of every era, as one plain mapping, without fairseq or omegaconf."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from hf_xlmr.conversion.checkpoint.pickles import Inert

__all__ = ["Options", "options_of"]

DEEPEST: Final = 16
MOST_VALUES: Final = 100_000  # some thousand are usual; a file may hold a list of lists of lists of itself
LONGEST_TEXT: Final = 1 << 16
LARGEST_INT: Final = 1 << 63  # larger ones fit no number and no message
SECTIONS: Final = ("model", "task", "criterion", "common", "dataset", "optimization", "checkpoint", "bpe")  # first wins

Options = Mapping[str, object]


def options_of(state: Mapping[object, object]) -> tuple[Options, str]:
    """The options in a checkpoint's top level, and how they were kept: args, cfg, omegaconf or none."""
    arguments = _Reader().plain(state.get("args"))
    if isinstance(arguments, dict) and arguments:
        return arguments, "args"
    kept = state.get("cfg")
    configuration = _Reader().plain(kept)
    if not isinstance(configuration, dict) or not configuration:
        return {}, "none"
    return _flattened(configuration), "omegaconf" if isinstance(kept, Inert) else "cfg"


def _flattened(configuration: dict[str, object]) -> dict[str, object]:
    """The sections of a `cfg` in one mapping; `_name` of the model is its arch, of others their name."""
    flat: dict[str, object] = {}
    for section in reversed(SECTIONS):
        values = configuration.get(section)
        if isinstance(values, dict):
            name = values.get("_name")
            flat |= {key: value for key, value in _without_sections(values).items() if key != "_name"}
            flat |= {_NAMED_AS[section]: name} if section in _NAMED_AS and isinstance(name, str) else {}
    return flat


def _without_sections(values: dict[str, object]) -> dict[str, object]:
    """A section with what its `transformer` holds (data2vec), named as flat options are, such as encoder_layers."""
    inner = values.get("transformer")
    if not isinstance(inner, dict):
        return values
    sections = {name: part for name in ("encoder", "quant_noise") if isinstance(part := inner.get(name), dict)}
    flat = {f"{name}_{key}": value for name, part in sections.items() for key, value in part.items()}
    return {key: value for key, value in inner.items() if not isinstance(value, dict)} | flat | values


_NAMED_AS: Final = {"model": "arch", "task": "task", "criterion": "criterion", "bpe": "bpe"}


def _is_sensible(value: object) -> bool:
    if isinstance(value, str):
        return len(value) <= LONGEST_TEXT
    return isinstance(value, float) or (isinstance(value, int) and abs(value) < LARGEST_INT)


class _Reader:
    """Turns Namespaces, omegaconf's containers and nodes, and plain containers into dicts, lists and scalars."""

    def __init__(self) -> None:
        self.left = MOST_VALUES

    def plain(self, value: object, depth: int = 0) -> object:
        self.left -= 1
        if depth > DEEPEST or self.left < 0:
            return None
        if isinstance(value, dict):
            self.left -= len(value)  # looking through it takes time, even if no key is text
            return {key: self.plain(item, depth + 1) for key, item in value.items() if isinstance(key, str)}
        if isinstance(value, (list, tuple)):
            return [self.plain(item, depth + 1) for item in value[: self.left + 1]]
        if isinstance(value, Inert):
            return self.unwrapped(value, depth)
        return value if _is_sensible(value) else None

    def unwrapped(self, value: Inert, depth: int) -> object:
        if not isinstance(value.state, dict):
            return None
        if value.type_name.startswith("omegaconf."):
            return self.plain(value.state.get("_content", value.state.get("_val")), depth + 1)
        return self.plain(value.state, depth + 1)
