"""What language adapters an X-MOD checkpoint holds: tensors first, options second, and every reason against them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from hf_xlmr.conversion.checkpoint.options import Options
from hf_xlmr.conversion.checkpoint.weights import Weight
from hf_xlmr.model.adapters import ENGLISH, MOST_LANGUAGES, Adapters, fairseq_language, is_language

__all__ = ["ARCH_FLAGS", "JOINING", "FoundAdapters"]

IN_LAYER: Final = re.compile(
    r"encoder\.sentence_encoder\.layers\.[0-9]{1,4}\.adapter_(modules|layer_norm)\.(.*)", re.DOTALL
)
ADAPTER: Final = re.compile(r"(.*)\.(fc1|fc2)\.(weight|bias)", re.DOTALL)
REUSES, ADDS, OWN_NORM = JOINING = ("adapter_reuse_layer_norm", "ln_before_adapter", "adapter_layer_norm")
"""fairseq's options about how an adapter is joined to its layer."""
ARCH_FLAGS: Final = {  # fairseq/models/xmod/model.py: what the options of JOINING are where a training does not say
    **dict.fromkeys(("xmod_base_13", "xmod_base_30", "xmod_base_60", "xmod_base_75", "xmod_base"), (True, True, False)),
    "xmod_large_prenorm": (False, False, True),
}
SHOWN: Final = 8


@dataclass(frozen=True)
class FoundAdapters:
    """The adapters of one checkpoint, of which there may be none."""

    weights: Mapping[str, Weight]
    options: Options
    hidden: int

    @cached_property
    def in_file(self) -> tuple[str, ...]:
        """The languages of the tensors, in the file's order."""
        parts = [hit[2] for name in self.weights if (hit := IN_LAYER.fullmatch(name)) and hit[1] == "modules"]
        return tuple(dict.fromkeys(hit[1] for part in parts if (hit := ADAPTER.fullmatch(part))))

    @cached_property
    def listed(self) -> tuple[str, ...]:
        """The languages of the options; none if they list none."""
        given = self.options.get("languages")
        return tuple(dict.fromkeys(map(str, given))) if isinstance(given, list) else ()

    @property
    def adapters(self) -> Adapters | None:
        """The adapters, None if there are none; right only if there are no `reasons`."""
        if not self.in_file:
            return None
        is_listed = set(self.listed) == set(self.in_file)
        return Adapters(
            languages=self.listed if is_listed else self.in_file,
            reduction=self._reduction or 1,
            has_own_norm=self._has_norm,
            reuses_norm=self._flag(REUSES) or False,
            adds_to_normalized=self._flag(ADDS) or False,
            default=ENGLISH if ENGLISH in self.in_file else None,
        )

    def reasons(self) -> Iterator[str]:
        """Why Transformers' X-MOD is not this network."""
        if not self.in_file:
            if self._is_told:
                yield "the options are those of an X-MOD, and the file holds none of its language adapters"
            return
        if self.options.get("adapter_modules") is False:
            yield "there are language adapters, and the options say that there are none (adapter_modules)"
        if odd := [name for name in self.in_file if not is_language(name)]:
            yield f"languages have names that no language has ({', '.join(f'{name!r:.40}' for name in odd[:SHOWN])})"
        if len(self.in_file) > MOST_LANGUAGES:
            yield f"there are {len(self.in_file)} languages, and hf_xlmr takes at most {MOST_LANGUAGES}"
        if self._reduction is None and self._width:
            yield (
                f"the language adapters are {self._width} wide inside, and Transformers' have the model's width "
                f"({self.hidden}) divided by a whole number"
            )
        yield from self._reasons_of_joining()

    def _reasons_of_joining(self) -> Iterator[str]:
        if OWN_NORM in self.options and bool(self.options[OWN_NORM]) != self._has_norm:
            told, found = ("have a", "none") if self.options[OWN_NORM] else ("have no", "one")
            yield f"by the options the language adapters {told} layer norm of their own, and the file holds {found}"
        unsaid = [name for name in (REUSES, ADDS) if self._flag(name) is None]
        if unsaid and not (unsaid == [REUSES] and self._has_norm):
            yield f"the options do not say how language adapters are joined to the layers ({', '.join(unsaid)})"

    def notes(self) -> Iterator[str]:
        """What a person should know of the languages."""
        if not self.in_file:
            return
        if self.listed and set(self.listed) != set(self.in_file):
            yield (
                "The languages are those that the file has adapters for. Its options list others"
                f"{_named(' without adapters', self.listed, self.in_file)}"
                f"{_named(' and leave out', self.in_file, self.listed)}."
            )
        if ENGLISH not in self.in_file:
            yield (
                f"There is no adapter for {ENGLISH}, which fairseq takes where no language is given: Transformers "
                "needs lang_ids, or set_default_language."
            )
        if hidden := [name for name in self.in_file if fairseq_language(name) != name]:
            yield f"fairseq never runs the adapters of {', '.join(hidden[:SHOWN])}: it takes those names for others."

    # ---- facts

    @property
    def _is_told(self) -> bool:
        is_named = str(self.options.get("arch")) in ARCH_FLAGS
        told = self.options.get("adapter_modules", is_named)
        return told is True and self.options.get("languages") != []

    @cached_property
    def _has_norm(self) -> bool:
        return any((hit := IN_LAYER.fullmatch(name)) and hit[1] == "layer_norm" for name in self.weights)

    @cached_property
    def _width(self) -> int:
        """The width of the first adapter, 0 if it is not a matrix; that all have it is for the map to see."""
        shapes = [
            weight.shape for name, weight in self.weights.items() if IN_LAYER.fullmatch(name) and ".fc1.w" in name
        ]
        return shapes[0][0] if shapes and len(shapes[0]) == 2 else 0

    @cached_property
    def _reduction(self) -> int | None:
        """The whole number by which the width was divided; the options' where several fit."""
        told = self.options.get("bottleneck")
        factors = [told] if type(told) is int and 0 < told <= self.hidden else []
        factors += [self.hidden // self._width] if 0 < self._width <= self.hidden else []
        return next((factor for factor in factors if self.hidden // factor == self._width), None)

    def _flag(self, name: str) -> bool | None:
        """An option of `JOINING`, None if nothing says it.

        fairseq reads a missing `ln_before_adapter` as False where the others are given (transformer_layer_xmod.py).
        """
        if name in self.options:
            return bool(self.options[name])
        flags = ARCH_FLAGS.get(str(self.options.get("arch")))
        if flags is not None:
            return flags[JOINING.index(name)]
        return False if name == ADDS and (REUSES in self.options or OWN_NORM in self.options) else None


def _named(words: str, some: tuple[str, ...], others: tuple[str, ...]) -> str:
    """The names of `some` that are not in `others`, after `words`; empty if there are none."""
    names = [name for name in some if name not in set(others)]
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{words} ({', '.join(names[:SHOWN])}{more})" if names else ""
