"""config.json as Transformers' configuration, without what would have code fetched or run for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from hf_xlmr.errors import HfXlmrError, InputError, IntegrityError
from hf_xlmr.files.json_files import json_object
from hf_xlmr.model.adapters import are_languages
from hf_xlmr.model.model_shape import CONFIG, count_of

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig

ADAPTER: Final = "adapter_config.json"
ATTENTIONS: Final = (None, "eager", "sdpa")
"""What Transformers and PyTorch compute themselves; other names may stand for a repository of native code."""
PIPELINE: Final = "pipeline.XLMRFeatureExtractionPipeline"
TOKENIZER: Final = "transformers_tokenizer.XLMRTokenizer"
REACHING: Final[Mapping[str, str]] = {
    "attn_implementation": "names the code of the attention, which may be a repository of the Hub",
    "_attn_implementation": "names the code of the attention, which may be a repository of the Hub",
    "_attn_implementation_internal": "names the code of the attention, which may be a repository of the Hub",
    "experts_implementation": "names code for layers that XLM-R does not have",
    "_experts_implementation": "names code for layers that XLM-R does not have",
    "_experts_implementation_internal": "names code for layers that XLM-R does not have",
    "auto_map": "names Python files to run, which may be of another repository",
    "custom_pipelines": "names Python files to run, which may be of another repository",
    "quantization_config": "has weights quantized by code of another package, which may come from the Hub",
    "fusion_config": "has Transformers replace layers",
    "distributed_config": "has Transformers spread the model over processes",
    "per_layer_config": "gives single layers other sizes",
    "use_kernels": "has layers replaced by code of the Hub",
    "kernel_config": "has layers replaced by code of the Hub",
    "configuration_files": "names another file to read as config.json",
    "transformers_weights": "names another file to read as the weights",
}
"""Fields of config.json by which Transformers fetches or runs code or reads other files, and what each does."""
FIELDS: Final[Mapping[str, tuple[str, Callable[[object], bool]]]] = {
    "layer_norm_eps": (
        "a number of 0 or more",
        lambda value: isinstance(value, int | float) and not isinstance(value, bool) and value >= 0,
    ),
    "hidden_act": ("a name", lambda value: isinstance(value, str)),
    "pad_token_id": ("a whole number or null", lambda value: value is None or type(value) is int),
    "languages": ("a list of different names that modules can have", are_languages),
    **dict.fromkeys(
        ("pre_norm", "adapter_layer_norm", "adapter_reuse_layer_norm", "ln_before_adapter"),
        ("true or false", lambda value: isinstance(value, bool)),
    ),
}
"""What must hold of a field that changes the answers.

Transformers 5.0 takes anything, later releases check some.
"""


def plain_config(
    folder: Path,
    *,
    attention: str = "sdpa",
    read: Mapping[str, object] | None = None,
    fields: Mapping[str, object] = MappingProxyType({}),
) -> PreTrainedConfig:
    """The configuration in `folder` with `fields` set and the fields of `REACHING` left out.

    Attention is computed by `attention`, whatever the file says. `read` is the file, where it was read already.
    Raises IntegrityError for a file that Transformers cannot use.
    """
    import transformers

    given = read_fields(folder, read=read)
    model_type = given.pop("model_type", None)
    with config_damage_told(folder / CONFIG):
        config: PreTrainedConfig = transformers.AutoConfig.for_model(
            str(model_type), **{**given, **fields, "name_or_path": str(folder), "attn_implementation": attention}
        )
    return config


def read_fields(folder: Path, *, read: Mapping[str, object] | None = None) -> dict[str, Any]:
    """The fields of config.json in `folder` but those of `REACHING`, once those of `FIELDS` hold.

    `read` is the file, where it was read already. Raises IntegrityError.
    """
    read = json_object(folder / CONFIG) if read is None else read
    given = {name: value for name, value in read.items() if name not in REACHING}
    for name, (what, holds) in FIELDS.items():
        if name in given and not holds(given[name]):
            raise IntegrityError(f"{folder / CONFIG} is damaged: {name} is {given[name]!r:.40}, which is not {what}")
    if given.get("num_labels") is not None:
        count_of(given, "num_labels", name=str(folder / CONFIG))
    return given


def reaching_fields(config: Mapping[str, object]) -> dict[str, str]:
    """The fields of config.json or tokenizer_config.json that are set to something of others, each with what it does.

    The pipeline and the tokenizer of hf_xlmr, which saved folders carry, are not of others.
    """
    return {
        name: does
        for name, does in REACHING.items()
        if config.get(name) not in (None, False, {}, [], "") and not _is_known(name, config[name])
    }


def _is_known(name: str, value: object) -> bool:
    """Whether what a field names is PyTorch's, Transformers' or hf_xlmr's."""
    if "implementation" in name:
        return all(each in ATTENTIONS for each in (value.values() if isinstance(value, dict) else [value]))
    if name == "custom_pipelines":
        return isinstance(value, dict) and all(
            isinstance(v, dict) and v.get("impl") == PIPELINE for v in value.values()
        )
    return name == "auto_map" and value == {"AutoTokenizer": [TOKENIZER, None]}


def raise_if_adapter(folder: Path) -> None:
    """Raise InputError for a folder whose model is not all of what Transformers would load from it."""
    if (folder / ADAPTER).is_file():
        raise InputError(
            f"{folder} holds an adapter ({ADAPTER}), which Transformers adds to the model if peft is installed: "
            "merge it into the weights (merge_and_unload, then save_pretrained), or take its files out of the folder"
        )


def raise_if_without_pooler(model: nn.Module) -> None:
    """Raise InputError for a class that this Transformers builds without the pooler which its head reads.

    Transformers 5.0 to 5.13 do so with XLMRobertaForMultipleChoice, whose forward pass then fails.
    """
    import transformers

    name = type(model).__name__
    if name.endswith("ForMultipleChoice") and getattr(model.base_model, "pooler", None) is None:
        raise InputError(
            f"Transformers {transformers.__version__} builds {name} without the layer before its output, and does not "
            "run it: install transformers 5.14 or newer"
        )


@contextmanager
def config_damage_told(path: Path) -> Iterator[None]:
    """Name config.json if Transformers cannot use it, for which it raises a dozen kinds of errors."""
    try:
        yield
    except (HfXlmrError, OSError):
        raise
    except Exception as error:
        reason = " ".join(str(error).split())
        raise IntegrityError(f"{path} is damaged: Transformers cannot build the model from it ({reason})") from error
