"""The languages of an X-MOD: every layer has an adapter for each of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from hf_xlmr.errors import (
    InputAttributeError,
    InputError,
    InputIndexError,
    InputKeyError,
    InputRuntimeError,
    InputTypeError,
)
from hf_xlmr.model.adapters import ENGLISH, Adapters, adapters_of_config, fairseq_language
from hf_xlmr.model.families import XMOD

if TYPE_CHECKING:
    import torch

OF_CODES: Final[Mapping[str, str]] = {"zh": "zh_cn"}  # where a model can have several languages of a code
HOW_TO_SAY: Final = "give a list of languages, one for each row, such as ['sw_KE', 'en_XX']"


class UnknownLanguage(InputKeyError):
    """A language that a model has no adapter for."""

    def __init__(self, name: str, known: Sequence[str]) -> None:
        """Carry the name, and those that there are."""
        self.name, self.known = name, tuple(known)
        super().__init__(f"the model has no language {name!r:.40}; it has {', '.join(known)}")


@dataclass(frozen=True)
class Languages:
    """The names in the order of their numbers, which `lang_ids` of Transformers holds."""

    names: tuple[str, ...]
    usual: str | None
    """The language of texts that name none; None if each must."""

    @classmethod
    def of(cls, adapters: Adapters | None) -> Languages | None:
        """Those of a model with `adapters`; None for one without. Usual is its default, or as in fairseq en_XX."""
        if adapters is None:
            return None
        english = ENGLISH if ENGLISH in adapters.languages else None
        return cls(adapters.languages, adapters.default or english)

    def number(self, name: str | None) -> int:
        """The number of a language, or for None of the usual one; `_rom` and `_zaw` are dropped, as in fairseq.

        Raises UnknownLanguage, a KeyError, and another KeyError if there is no usual one.
        """
        if name is None and self.usual is None:
            raise InputKeyError(f"there is no usual language, so each text must name its own: {', '.join(self.names)}")
        known = str(self.usual) if name is None else fairseq_language(name)
        if known not in self.names:
            raise UnknownLanguage(known if name is None else name, self.names)
        return self.names.index(known)

    def name(self, name: str | None) -> str:
        """The name of the adapter for a language. Raises what `number` raises."""
        return self.names[self.number(name)]

    def numbers(self, lang_id: Iterable[str] | None, *, rows: int) -> list[int]:
        """The number of each row's language, all the usual one for None.

        Raises InputError, of the kind that fairseq raises: RuntimeError for another number of rows.
        """
        if lang_id is None:
            return [self.number(None)] * rows
        if isinstance(lang_id, str):
            raise InputRuntimeError(f"lang_id={lang_id!r:.40} is one text: {HOW_TO_SAY}")
        if not isinstance(lang_id, Iterable):
            raise InputTypeError(f"lang_id={lang_id!r:.40}: {HOW_TO_SAY}")
        names = list(lang_id)
        if not names:
            raise InputIndexError(f"lang_id is empty: {HOW_TO_SAY}")
        if odd := [each for each in names if not isinstance(each, str)]:
            raise InputAttributeError(f"lang_id holds {odd[0]!r:.40}: {HOW_TO_SAY}")
        if len(names) != rows:
            raise InputRuntimeError(f"lang_id has {len(names)} languages, and there are {rows} rows: {HOW_TO_SAY}")
        return [self.number(each) for each in names]

    def of_code(self, code: str) -> str:
        """The language for a code of data sets, such as sw_KE for sw: by its whole name, else by what precedes `_`.

        Raises UnknownLanguage, InputError if it could be several.
        """
        found = self._of_code(code.lower())
        if not found:
            raise UnknownLanguage(code, self.names)
        if len(found) > 1:
            raise InputError(f"the language {code!r:.40} could be {' or '.join(found)}: call the data by one of these")
        return found[0]

    def has_code(self, code: str) -> bool:
        """Whether there is a language for a code."""
        return bool(self._of_code(code.lower()))

    def _of_code(self, code: str) -> list[str]:
        small = {name.lower(): name for name in self.names}
        whole = [small[name] for name in (code, OF_CODES.get(code, "")) if name in small]
        return whole[:1] or [name for each, name in small.items() if each.partition("_")[0] == code]


def adapters_of_network(network: Any) -> Adapters | None:
    """The language adapters that the config of a Transformers `network` says; None if its class has none."""
    config = network.config
    if config.model_type != XMOD.model_type:
        return None
    return adapters_of_config({name: getattr(config, name) for name in XMOD.defaults}, hidden=config.hidden_size)


def let_adapters_autocast(network: torch.nn.Module) -> None:
    """Let the language adapters of `network`, if it has any, give the dtype that they take.

    Transformers writes what they give into a tensor of that dtype, which fails under autocast: norms give float32
    there, and products a half type.
    """
    for module in network.modules():
        for adapter in getattr(module, "adapter_modules", {}).values():
            adapter.register_forward_hook(_in_dtype_of_input)


def _in_dtype_of_input(_adapter: object, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
    return output.to(args[0].dtype)
