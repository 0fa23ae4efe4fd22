"""The sizes told from a config are those of the model that Transformers builds from it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from factory import Checkpoint, add_head, weights
from places import RUNS_RANKERS

from hf_xlmr.conversion import convert
from hf_xlmr.conversion.preview import preview_config
from hf_xlmr.errors import InputError, IntegrityError
from hf_xlmr.files.own_names import RELEASE_NAMES
from hf_xlmr.hub_interface.languages import Languages
from hf_xlmr.model.model_shape import shape_of_folder
from hf_xlmr.model.plain_config import plain_config
from hf_xlmr.model_shape import DTYPE_BYTES, ModelShape, Task, shape_of, shape_of_config

FAMILIES = {
    "xlm-roberta": "XLMRoberta",
    "xlm-roberta-xl": "XLMRobertaXL",
    "roberta-prelayernorm": "RobertaPreLayerNorm",
    "xmod": "Xmod",
}
SIZES = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 12,
    "num_attention_heads": 4,
    "max_position_embeddings": 20,
    "type_vocab_size": 1,
}
EVERY_CLASS = [(kind, task) for kind in FAMILIES for task in Task]
MANY_LABELS = {"id2label": {str(number): f"label {number}" for number in range(5)}}


def config_of(kind: str, task: Task, **more: Any) -> dict[str, Any]:
    spoken = {"default_language": "en_XX"} if kind == "xmod" else {}
    return {"model_type": kind, "architectures": [FAMILIES[kind] + task.value], **SIZES, **spoken, **more}


def built(config: dict[str, Any], dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    """What Transformers builds, without memory."""
    fields = {name: value for name, value in config.items() if name not in ("model_type", "architectures")}
    name = config["architectures"][0]
    family = next(each for each in sorted(FAMILIES.values(), key=len, reverse=True) if name.startswith(each))
    with torch.device("meta"):
        model: torch.nn.Module = getattr(transformers, name)(getattr(transformers, f"{family}Config")(**fields))
        if name == "XLMRobertaForMultipleChoice" and not RUNS_RANKERS:
            model.roberta = transformers.XLMRobertaModel(model.config)  # with the pooler that its head reads
    model.tie_weights()  # type: ignore[operator]
    return model.to(dtype)


def held(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    """Every parameter and buffer, but not the second names of tied ones."""
    found = (*model.named_parameters(remove_duplicate=False), *model.named_buffers())
    return {name: tuple(each.shape) for name, each in found if name not in model.all_tied_weights_keys}  # type: ignore[operator]


def named(shape: ModelShape) -> dict[str, tuple[int, ...]]:
    return {tensor.name: tensor.sizes for tensor in shape.tensors}


@pytest.mark.parametrize(("kind", "task"), EVERY_CLASS)
@pytest.mark.parametrize("more", [{}, MANY_LABELS, {"tie_word_embeddings": False}], ids=["plain", "labels", "untied"])
def test_names_and_shapes_are_those_of_the_class(kind: str, task: Task, more: dict[str, Any]) -> None:
    config = config_of(kind, task, **more)
    shape, model = shape_of_config(config), built(config)
    assert shape.class_name == type(model).__name__
    assert named(shape) == held(model)
    assert set(shape.tied_tensors) == set(model.all_tied_weights_keys)  # type: ignore[arg-type]


@pytest.mark.parametrize(("kind", "task"), EVERY_CLASS)
@pytest.mark.parametrize("dtype", DTYPE_BYTES)
def test_bytes_are_those_of_the_class(kind: str, task: Task, dtype: str) -> None:
    config = config_of(kind, task)
    model = built(config, getattr(torch, dtype))
    expected = sum(each.nbytes for each in (*model.parameters(), *model.buffers()))
    assert shape_of_config(config).nbytes(dtype) == expected


@pytest.mark.parametrize("task", Task)
@pytest.mark.parametrize("has_own_norm", [False, True])
@pytest.mark.parametrize("pre_norm", [False, True])
def test_both_layouts_of_xmod_have_the_adapters_of_every_language(
    task: Task, pre_norm: bool, has_own_norm: bool
) -> None:
    layout = {"pre_norm": pre_norm, "adapter_layer_norm": has_own_norm, "adapter_reduction_factor": 3}
    config = config_of("xmod", task, **layout, languages=["zh-Hans", "en_XX", "a/b"])
    assert named(shape_of_config(config)) == held(built(config))


@pytest.mark.parametrize(
    "wrong",
    [
        *({"languages": value} for value in ([], "en_XX", ["en_XX", "en_XX"], ["en.XX"], [""], [1], None)),
        *({"adapter_reduction_factor": value} for value in (0, 17, 2.0, "2", None, True)),
        *({name: 1} for name in ("adapter_layer_norm", "adapter_reuse_layer_norm", "ln_before_adapter")),
        *({"default_language": value} for value in ("de_DE", 0)),
    ],
    ids=str,
)
def test_adapters_that_nobody_can_mean_are_damage(wrong: dict[str, Any]) -> None:
    with pytest.raises(IntegrityError, match=next(iter(wrong))):
        shape_of_config(config_of("xmod", Task.ENCODER, **wrong))


def test_a_language_has_the_number_that_transformers_gives_it() -> None:
    languages = Languages.of(shape_of("xmod.base.13.125k").adapters)
    assert languages is not None
    assert languages.names[languages.number("sw_KE")] == "sw_KE"
    assert languages.number("hi_IN_rom") == languages.number("hi_IN")
    assert languages.number(None) == languages.number("en_XX") == 1
    with pytest.raises(InputError, match=r"no language 'xx_XX'; it has ar_AR, en_XX, .*, vi_VN"):
        languages.number("xx_XX")


def test_the_large_releases_have_the_parameters_that_are_known() -> None:
    assert shape_of("xlmr.xl").parameters == 3_482_741_760
    assert shape_of("xlmr.xxl").parameters == 10_712_994_816


@pytest.mark.parametrize("name", RELEASE_NAMES)
def test_every_release_is_known_and_is_what_transformers_builds(name: str) -> None:
    shape = shape_of(name)
    sizes = {
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.attention_heads,
        "max_position_embeddings": shape.positions,
        "type_vocab_size": 1,
        **({"pre_norm": shape.family.norms_first, **shape.adapters.fields} if shape.adapters else {}),
    }
    model = built({"model_type": shape.model_type, "architectures": [shape.class_name], **sizes})
    assert shape.parameters == sum(each.numel() for each in model.parameters())


@pytest.mark.parametrize("kind", FAMILIES)
def test_what_a_config_leaves_unsaid_is_what_transformers_takes(kind: str) -> None:
    config = {"model_type": kind, "architectures": [f"{FAMILIES[kind]}ForMaskedLM"]}
    assert named(shape_of_config(config)) == held(built(config))


def test_a_pooler_can_be_left_out() -> None:
    config = config_of("xlm-roberta-xl", Task.ENCODER)
    names = set(named(shape_of_config(config))) - set(named(shape_of_config(config).without_pooler()))
    assert names == {"pooler.dense.weight", "pooler.dense.bias"}


@pytest.mark.parametrize("norms", ["post", "pre", "both"])
def test_a_checkpoint_of_fairseqs_has_the_shape_that_it_will_have_as_a_folder(tmp_path: Path, norms: str) -> None:
    made = weights(norms=norms)
    add_head(made, "mnli", labels=5)
    source = Checkpoint(model=made).write(tmp_path / "source")
    convert(source, tmp_path / "folder", verify=False)
    written = json.loads((tmp_path / "folder" / "config.json").read_text())
    assert shape_of_config(preview_config(source)) == shape_of_config(written)
    assert shape_of(source) == shape_of(tmp_path / "folder") == shape_of(tmp_path / "folder" / "config.json")


def test_the_demo_has_a_shape() -> None:
    assert (shape_of("demo").class_name, shape_of("demo").layers) == ("XLMRobertaForMaskedLM", 4)


@pytest.mark.parametrize(
    ("change", "error", "told"),
    [
        ({"model_type": "bert"}, InputError, "model_type is bert"),
        ({"architectures": ["XLMRobertaForEverything"]}, InputError, "XLMRobertaForEverything"),
        ({"hidden_size": "16"}, IntegrityError, "hidden_size is '16'"),
        ({"num_hidden_layers": 10**9}, IntegrityError, "num_hidden_layers"),
        ({"dtype": "int8"}, InputError, "int8"),
        ({"add_cross_attention": True}, InputError, "cross-attention"),
    ],
)
def test_what_is_no_such_model_is_refused(change: dict[str, Any], error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        shape_of_config({**config_of("xlm-roberta", Task.MASKED_LM), **change})


@pytest.mark.parametrize("labels", [{"num_labels": 10**12}, {"num_labels": 1_000_001, "id2label": {"0": "a"}}])
def test_labels_without_number_are_one_sentence_before_transformers_makes_them(
    labels: dict[str, Any], tmp_path: Path
) -> None:
    config = {**config_of("xlm-roberta", Task.SEQUENCE_CLASSIFICATION), **labels}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    for read in (shape_of_folder, plain_config):
        with pytest.raises(
            IntegrityError, match=r"/config.json is damaged: num_labels is 1\d+, .* from 1 to 1,000,000"
        ):
            read(tmp_path)  # type: ignore[operator]


def test_a_damaged_config_is_told(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(IntegrityError, match=r"config\.json is damaged"):
        shape_of(tmp_path)


def test_planning_a_folder_imports_nothing_heavy(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config_of("xlm-roberta", Task.MASKED_LM)))
    code = (
        "import sys; from hf_xlmr.model_shape import shape_of; from hf_xlmr.sharding import plan_placement\n"
        f"plan_placement(shape_of({str(tmp_path)!r}), max_memory={{0: '1GiB'}})\n"
        "print({'torch', 'transformers', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.strip() == "set()"
