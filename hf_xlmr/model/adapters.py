"""X-MOD's language adapters: which languages a model has, how a layer runs them, and what config.json says of them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from hf_xlmr.errors import IntegrityError

ADAPTER_LINEARS: Final = (("fc1", "dense1", ("adapter", "hidden")), ("fc2", "dense2", ("hidden", "adapter")))
"""fairseq's name within an adapter, Transformers' name, and the shape of the weight."""
ADAPTER_NORM: Final = ("adapter_layer_norm", "output.adapter_layer_norm")
"""fairseq's name within a layer, and Transformers'."""
ENGLISH: Final = "en_XX"
"""The language of fairseq's X-MOD where none is given."""
VARIANTS: Final = ("_rom", "_zaw")  # romanized text and Zawgyi, which fairseq gives to the adapter of the language
MOST_LANGUAGES: Final = 1000
USUAL_NAME: Final = re.compile(r"[a-z]{2}_[A-Z]{2}")

_BASE_13: Final = "ar_AR en_XX fi_FI fr_XX hi_IN id_ID ka_GE ko_KR ru_RU sw_KE ta_IN th_TH vi_VN"
_ONLY_30: Final = (
    "cs_CZ eu_ES hr_HR hu_HU hy_AM it_IT lt_LT ml_IN mn_MN ms_MY pl_PL ro_RO si_LK sk_SK sq_AL sv_SE tl_XX"
)
_ONLY_60: Final = (
    "af_ZA am_ET be_BY bn_IN ca_ES cy_GB da_DK eo_EO et_EE fa_IR ga_IE gl_ES gu_IN ha_NG is_IS ku_TR la_VA lv_LV mk_MK "
    "ne_NP nl_XX no_XX ps_AF pt_XX sa_IN sd_PK sl_SI so_SO sr_RS te_IN"
)
_ONLY_75: Final = "as_IN br_FR bs_BA fy_NL gd_GB jv_ID kn_IN mg_MG mr_IN om_KE or_IN pa_IN su_ID xh_ZA yi_DE"
_ALL_81: Final = (
    "en_XX id_ID vi_VN ru_RU fa_IR sv_SE ja_XX fr_XX de_DE ro_RO ko_KR hu_HU es_XX fi_FI uk_UA da_DK pt_XX no_XX th_TH "
    "pl_PL bg_BG nl_XX zh_CN he_IL el_GR it_IT sk_SK hr_HR tr_TR ar_AR cs_CZ lt_LT hi_IN zh_TW ca_ES ms_MY sl_SI lv_LV "
    "ta_IN bn_IN et_EE az_AZ sq_AL sr_RS kk_KZ ka_GE tl_XX ur_PK is_IS hy_AM ml_IN mk_MK be_BY la_VA te_IN eu_ES gl_ES "
    "mn_MN kn_IN ne_NP sw_KE si_LK mr_IN af_ZA gu_IN cy_GB eo_EO km_KH ky_KG uz_UZ ps_AF pa_IN ga_IE ha_NG am_ET lo_LA "
    "ku_TR so_SO my_MM or_IN sa_IN"
)


def _ordered(*groups: str) -> tuple[str, ...]:
    return tuple(sorted(" ".join(groups).split()))


RELEASE_LANGUAGES: Final[Mapping[int, tuple[str, ...]]] = {
    13: _ordered(_BASE_13),
    30: _ordered(_BASE_13, _ONLY_30),
    60: _ordered(_BASE_13, _ONLY_30, _ONLY_60),
    75: _ordered(_BASE_13, _ONLY_30, _ONLY_60, _ONLY_75),
    81: tuple(_ALL_81.split()),
}
"""The languages of fairseq's X-MOD releases in their order, by how many they are (fairseq/models/xmod/model.py)."""


@dataclass(frozen=True)
class Adapters:
    """The adapters of every layer, one for each language, and how they are joined to it.

    A layer adds `adapter(y)` to x or to y, where y is x, or x normalized.
    """

    languages: tuple[str, ...]
    """In the order of their numbers, which Transformers' `lang_ids` are."""
    reduction: int
    """An adapter is so many times narrower than the model: its width is `hidden // reduction`."""
    has_own_norm: bool
    """Whether y is x by a layer norm that only the adapters have (`adapter_layer_norm`)."""
    reuses_norm: bool
    """Whether, without a norm of their own, y is x by the norm of the feed-forward (`adapter_reuse_layer_norm`)."""
    adds_to_normalized: bool
    """Whether the adapter is added to y and not to x (`ln_before_adapter`)."""
    default: str | None = None
    """The language of texts of which nothing says it; None if it has to be said."""

    def width(self, hidden: int) -> int:
        """The numbers between the two products of an adapter, in a model of that width."""
        return hidden // self.reduction

    @property
    def fields(self) -> dict[str, object]:
        """What config.json says of them, but for `pre_norm`."""
        return {
            "adapter_layer_norm": self.has_own_norm,
            "adapter_reduction_factor": self.reduction,
            "adapter_reuse_layer_norm": self.reuses_norm,
            "default_language": self.default,
            "languages": list(self.languages),
            "ln_before_adapter": self.adds_to_normalized,
        }


def fairseq_language(name: str) -> str:
    """The adapter that fairseq's X-MOD runs for a language: romanized text has that of its language."""
    for ending in VARIANTS:
        name = name.replace(ending, "")
    return name


def is_language(name: str) -> bool:
    """Whether a name can be that of one of PyTorch's modules, and of a language."""
    if USUAL_NAME.fullmatch(name):
        return True
    is_plain = bool(name) and "." not in name and name.isprintable() and name == name.strip()
    return is_plain and not _is_of_modules(name)


def _is_of_modules(name: str) -> bool:
    """Whether PyTorch's modules have something else by this name, such as `keys`."""
    from torch.nn import ModuleDict

    return hasattr(ModuleDict(), name)


def are_languages(value: object) -> bool:
    """Whether a value is a list of names that differ, and that PyTorch can have for modules."""
    if not isinstance(value, (list, tuple)) or not 1 <= len(value) <= MOST_LANGUAGES:
        return False
    is_named = all(isinstance(name, str) and is_language(name) for name in value)
    return is_named and len(set(value)) == len(value)


def adapters_of_config(config: Mapping[str, object], *, hidden: int, name: str = "config.json") -> Adapters:
    """The adapters that a config.json of X-MOD describes, which messages call `name`. Raises IntegrityError."""
    if faults := list(_faults(config, hidden)):
        raise IntegrityError(f"{name} is damaged: {'; '.join(faults)}")
    return Adapters(
        languages=tuple(config["languages"]),  # type: ignore[arg-type]
        reduction=config["adapter_reduction_factor"],  # type: ignore[arg-type]
        has_own_norm=config["adapter_layer_norm"] is True,
        reuses_norm=config["adapter_reuse_layer_norm"] is True,
        adds_to_normalized=config["ln_before_adapter"] is True,
        default=config.get("default_language"),  # type: ignore[arg-type]
    )


def _faults(config: Mapping[str, object], hidden: int) -> Iterator[str]:
    languages, factor, default = (
        config.get(name) for name in ("languages", "adapter_reduction_factor", "default_language")
    )
    if not are_languages(languages):
        yield f"languages is {languages!r:.80}, which is not a list of different names that modules can have"
    elif default is not None and default not in languages:  # type: ignore[operator]
        yield f"default_language is {default!r:.40}, which is not one of languages"
    if type(factor) is not int or not 1 <= factor <= hidden:
        yield f"adapter_reduction_factor is {factor!r:.40}, which is not a whole number from 1 to the width"
    for name in ("adapter_layer_norm", "adapter_reuse_layer_norm", "ln_before_adapter"):
        if not isinstance(config.get(name), bool):
            yield f"{name} is {config.get(name)!r:.40}, which is not true or false"
