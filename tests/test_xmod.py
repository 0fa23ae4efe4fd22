"""X-MOD, whose layers have an adapter for each language: converted, proved in every language, and exported again."""

from __future__ import annotations

import json
import re
import shutil
import tarfile
from argparse import Namespace
from collections import OrderedDict
from dataclasses import replace
from hashlib import sha256
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from factory import HIDDEN, LAYERS, OPTIONS, Checkpoint, E, add_head, fused, of_2019, weights
from places import FIXTURES, SHARED_XMOD
from safetensors.torch import load_file, save_file

from hf_xlmr.conversion import ParityError, convert, export, inspect, open_checkpoint, to_sentence_transformers, verify
from hf_xlmr.conversion.checkpoint.parallel_parts import same_bytes
from hf_xlmr.doctor import examine
from hf_xlmr.errors import InputError, IntegrityError, UnsupportedCheckpoint, WeightsMismatch
from hf_xlmr.model.adapters import RELEASE_LANGUAGES
from hf_xlmr.model.provenance import deciding_differences
from hf_xlmr.model_shape import shape_of
from hf_xlmr.placed_loading import load_placed

XMOD = FIXTURES / "xmod"
NAMES = ("base", "prenorm", "half", "cls")
SOURCES = {**{name: XMOD / name for name in NAMES}, **({"shared": SHARED_XMOD} if SHARED_XMOD.is_dir() else {})}
TOLERANCE = 2e-5  # of hidden states, which normalization keeps small
FLAGS = ("encoder_normalize_before", "adapter_layer_norm", "adapter_reuse_layer_norm", "ln_before_adapter")
LANGUAGES = ("sw_KE", "en_XX", "zh-Hans")
ADAPTED = {
    **OPTIONS,
    "arch": "xmod_base",
    "adapter_modules": True,
    "languages": [*LANGUAGES],
    "bottleneck": 2,
    "adapter_layer_norm": False,
    "adapter_reuse_layer_norm": True,
    "ln_before_adapter": True,
}
PRE_NORM = {
    **ADAPTED,
    "encoder_normalize_before": True,
    "adapter_layer_norm": True,
    "adapter_reuse_layer_norm": False,
    "ln_before_adapter": False,
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every source converted, with its proof, in hf/NAME, and exported in fairseq/NAME."""
    folder = tmp_path_factory.mktemp("xmod")
    for name, source in SOURCES.items():
        convert(source, folder / "hf" / name)
        export(folder / "hf" / name, folder / "fairseq" / name)
    return folder


def config_in(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return config


def loaded(folder: Path) -> Any:
    """The folder as plain Transformers loads it, in float32."""
    name = config_in(folder)["architectures"][0]
    bare = {"add_pooling_layer": False} if name.endswith("Model") else {}
    return getattr(transformers, name).from_pretrained(folder, dtype=torch.float32, **bare).eval()


def adapted(
    *, norms: str = "post", languages: tuple[str, ...] = LANGUAGES, width: int = HIDDEN // 2, has_norm: bool = False
) -> OrderedDict[str, torch.Tensor]:
    """Random weights of an X-MOD under fairseq's names."""
    generator = torch.Generator().manual_seed(3)
    network = weights(norms=norms)
    for number in range(LAYERS):
        layer = f"{E}layers.{number}."
        if has_norm:
            network[f"{layer}adapter_layer_norm.weight"] = 1 + torch.randn(HIDDEN, generator=generator) * 0.3
            network[f"{layer}adapter_layer_norm.bias"] = torch.randn(HIDDEN, generator=generator) * 0.3
        for language, (name, out, into) in product(languages, (("fc1", width, HIDDEN), ("fc2", HIDDEN, width))):
            adapter = f"{layer}adapter_modules.{language}.{name}"
            network[f"{adapter}.weight"] = torch.randn(out, into, generator=generator) * 0.3
            network[f"{adapter}.bias"] = torch.randn(out, generator=generator) * 0.3
    return network


def source(folder: Path, model: OrderedDict[str, torch.Tensor] | None = None, **options: Any) -> Path:
    return Checkpoint(model=adapted() if model is None else model, options={**ADAPTED, **options}).write(folder)


# ---- what fairseq answered -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SOURCES)
def test_transformers_answers_as_fairseq_did_in_every_language_asked(name: str, made: Path) -> None:
    model, known = loaded(made / "hf" / name), np.load(SOURCES[name] / "golden.npz")
    about = json.loads((SOURCES[name] / "golden.json").read_text(encoding="utf-8"))
    is_pre_norm = model.config.pre_norm
    for index, language in product(range(len(about["texts"]) + len(about["pairs"])), about["languages"]):
        at, spoken = f"{language}.{index}", torch.tensor([model.config.languages.index(language)])
        with torch.no_grad():
            ids = torch.tensor(known[f"ids.{index}"])[None]
            answer = model(ids, lang_ids=spoken, output_hidden_states=True)
        hiddens = torch.stack(answer.hidden_states).numpy()
        compared = slice(0, -1 if is_pre_norm else None)  # fairseq lists the last layer before the norm at the end
        np.testing.assert_allclose(hiddens[compared], known[f"hiddens.{at}"][compared], rtol=0, atol=TOLERANCE)
        np.testing.assert_allclose(hiddens[-1], known[f"last.{at}"], rtol=0, atol=TOLERANCE)
        expected = known[f"head.xnli_head.{at}" if name == "cls" else f"logits.{at}"]
        logits = answer.logits[..., : expected.shape[-1]]  # rows for pieces that the dictionary lacks follow
        np.testing.assert_allclose(logits.numpy(), expected, rtol=0, atol=10 * TOLERANCE)


def test_a_batch_in_several_languages_is_fairseqs(made: Path) -> None:
    for name in NAMES:
        model, known = loaded(made / "hf" / name), np.load(XMOD / name / "golden.npz")
        about = json.loads((XMOD / name / "golden.json").read_text(encoding="utf-8"))
        ids = torch.tensor(known["batch.ids"])
        spoken = torch.tensor([model.config.languages.index(each) for each in about["batch_languages"]])
        with torch.no_grad():
            last = model.base_model(ids, attention_mask=ids.ne(1).long(), lang_ids=spoken).last_hidden_state
        np.testing.assert_allclose(last * ids.ne(1)[..., None], known["batch.last"], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    "flags", list(product((False, True), repeat=4)), ids=lambda flags: "".join("01"[f] for f in flags)
)
def test_every_layout_of_fairseqs_options_answers_as_fairseq(flags: tuple[bool, ...], tmp_path: Path) -> None:
    pre_norm, has_norm = flags[:2]
    with torch.serialization.safe_globals([Namespace]):
        state = torch.load(XMOD / "layouts" / "model.pt", weights_only=True)
    left_out = ([] if pre_norm else [f"{E}layer_norm.", f"{E}version"]) + ([] if has_norm else ["adapter_layer_norm."])
    network = {name: tensor for name, tensor in state["model"].items() if not any(part in name for part in left_out)}
    (tmp_path / "source").mkdir()
    options = Namespace(**vars(state["args"]), **dict(zip(FLAGS, flags, strict=True)))
    torch.save({"args": options, "model": network}, tmp_path / "source" / "model.pt")
    (tmp_path / "source" / "dict.txt").write_bytes((XMOD / "layouts" / "dict.txt").read_bytes())
    report = convert(tmp_path / "source", tmp_path / "out", encoder_only=True)
    assert report.parity is not None and set(report.parity["languages"]) == set(LANGUAGES)  # type: ignore[call-overload]
    model, known = loaded(tmp_path / "out"), np.load(XMOD / "layouts" / "answers.npz")
    assert tuple(model.config.languages) == LANGUAGES
    ids = torch.tensor(known["ids"])
    for number, language in enumerate(LANGUAGES):
        with torch.no_grad():
            last = model(ids, attention_mask=ids.ne(1).long(), lang_ids=torch.tensor([number] * 2)).last_hidden_state
        expected = known[".".join([*("01"[flag] for flag in flags), language])]
        scale = max(1.0, np.abs(expected).max())
        np.testing.assert_allclose(last * ids.ne(1)[..., None], expected, rtol=0, atol=TOLERANCE * scale)


# ---- the folder ------------------------------------------------------------------------------------------------------


def test_the_configuration_is_that_of_fairseqs_options(made: Path) -> None:
    base, large = (config_in(made / "hf" / name) for name in ("base", "prenorm"))
    assert base["architectures"] == ["XmodForMaskedLM"]
    assert config_in(made / "hf" / "cls")["architectures"] == ["XmodForSequenceClassification"]
    assert config_in(made / "hf" / "half")["dtype"] == "float16"
    assert (tuple(base["languages"]), tuple(large["languages"])) == (RELEASE_LANGUAGES[13], RELEASE_LANGUAGES[81])
    names = (
        *("pre_norm", "adapter_layer_norm", "adapter_reuse_layer_norm", "ln_before_adapter"),
        *("adapter_reduction_factor", "default_language"),
    )
    assert [base[name] for name in names] == [False, False, True, True, 2, "en_XX"]
    assert [large[name] for name in names] == [True, True, False, False, 4, "en_XX"]


def test_the_proof_reports_every_language(made: Path) -> None:
    record = json.loads((made / "hf" / "prenorm" / "fairseq" / "conversion.json").read_text())
    found = record["parity"]["languages"]
    assert set(found) == set(RELEASE_LANGUAGES[81])
    assert all(0 < relative < record["parity"]["tolerance"] for relative in found.values())


def test_the_proof_can_be_repeated(made: Path) -> None:
    report = verify(XMOD / "base", made / "hf" / "base", report=made / "proof.html")
    assert tuple(report.languages) == RELEASE_LANGUAGES[13]
    assert "13, each within: ar_AR" in (made / "proof.html").read_text(encoding="utf-8")
    assert verify(made / "fairseq" / "base", made / "hf" / "base").languages


@pytest.mark.parametrize("name", SOURCES)
def test_the_folder_is_healthy(name: str, made: Path) -> None:
    assert examine(made / "hf" / name).is_healthy


@pytest.mark.parametrize("name", ["base", "cls"])
def test_a_card_shows_code_that_runs(name: str, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (made / "hf" / name / "README.md").read_text(encoding="utf-8"), re.S)
    monkeypatch.chdir(made / "hf" / name)
    assert "lang_ids=language" in blocks[0]
    exec(compile(blocks[0], name, "exec"), {})  # noqa: S102  # what users copy


@pytest.mark.parametrize("name", SOURCES)
def test_the_way_back_is_bit_for_bit(name: str, made: Path) -> None:
    lost = r"encoder\.lm_head\.(?!weight).*" if name == "cls" else r"classification_heads\..*"
    with open_checkpoint(SOURCES[name]) as before, open_checkpoint(made / "fairseq" / name) as after:
        kept = [each for each in before.weights if not re.fullmatch(lost, each)]
        assert [each for each in kept if not same_bytes(before.weights[each], after.weights[each])] == []
        assert after.weights.keys() <= before.weights.keys()
        for flag in (*FLAGS, "languages", "adapter_modules"):
            assert after.options[flag] == before.options[flag], flag


@pytest.mark.parametrize("name", NAMES)
def test_these_are_the_bytes_that_fairseq_loaded_and_answered_right(name: str, made: Path) -> None:
    """Where this fails after a change, ask fairseq again: tests/fairseq_recipes/xmod_exported.py."""
    known = json.loads((XMOD / "exported.json").read_text())[name]
    assert sha256((made / "fairseq" / name / "model.pt").read_bytes()).hexdigest() == known["sha256"]
    assert known["largest"] < TOLERANCE


def test_a_card_names_every_language_and_the_hub_its_codes(made: Path) -> None:
    card = (made / "hf" / "prenorm" / "README.md").read_text(encoding="utf-8")
    assert all(f"`{language}`" in card for language in RELEASE_LANGUAGES[81])
    codes = re.findall(r"^- (\w+)$", card.partition("library_name")[0], flags=re.M)
    assert codes[0] == "multilingual" and {"sw", "zh", "no"} < {code.strip("'") for code in codes} | {"no"}
    assert "The texts went through the adapters of every language (81)." in card


def test_inspect_names_the_languages() -> None:
    assert inspect(XMOD / "base").languages == RELEASE_LANGUAGES[13]
    assert inspect(FIXTURES / "v0122").languages == ()


def test_a_folder_is_placed_on_devices(made: Path, tmp_path: Path) -> None:
    known = np.load(XMOD / "prenorm" / "golden.npz")
    shape = shape_of(made / "hf" / "prenorm")
    modules = [module for block in shape.blocks for module in block.modules]
    places = {module: "disk" if module.endswith("layer.1") else "cpu" for module in modules}
    placed = load_placed(made / "hf" / "prenorm", places, dtype="float32", offload_folder=tmp_path)
    ids, spoken = torch.tensor(known["ids.0"])[None], torch.tensor([RELEASE_LANGUAGES[81].index("sa_IN")])
    with torch.no_grad():
        last = placed.base_model(ids, lang_ids=spoken).last_hidden_state
    np.testing.assert_allclose(last.numpy(), known["last.sa_IN.0"], rtol=0, atol=TOLERANCE)


def test_an_archive_is_a_source_and_its_shape_is_known_before(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "xmod.base.13.125k.tar.gz", "w:gz") as archive:
        archive.add(XMOD / "base", "xmod.base.13.125k", filter=lambda info: info if "golden" not in info.name else None)
    convert(tmp_path / "xmod.base.13.125k.tar.gz", tmp_path / "out", verify=False)
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "out" / name).is_file()
    assert replace(shape_of(XMOD / "base"), vocabulary=219) == shape_of(tmp_path / "out")


def test_doctor_reports_and_fixes_what_a_config_says_of_adapters(made: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(made / "hf" / "base", tmp_path / "hf")
    config = config_in(folder)

    def found(**fields: Any) -> list[str]:
        (folder / "config.json").write_text(json.dumps({**config, **fields}))
        return [each.name for each in examine(folder).findings]

    assert found() == []
    assert found(ln_before_adapter=False) == found(adapter_reuse_layer_norm=False) == ["training"]
    assert found(pre_norm="yes") == found(languages=["en_XX", "en_XX"]) == ["configuration"]
    assert found(default_language="xx_XX") == ["configuration"]
    assert found(languages=[*config["languages"], "de_DE"]) == ["weights"]
    assert found(pre_norm=True) == ["training", "weights"]
    assert found(default_language=None, languages=config["languages"][::-1]) == ["default_language", "languages"]
    assert "another order than when it was converted" in examine(folder).findings[1].told
    assert examine(folder, fix=True).is_healthy and config_in(folder) == config


def test_what_is_changed_since_is_not_published_as_verified(made: Path) -> None:
    config = config_in(made / "hf" / "base")
    others = {**config, "languages": config["languages"][::-1], "default_language": "sw_KE"}
    assert len(list(deciding_differences(others, config))) == 2


@pytest.mark.parametrize("name", ["base", "prenorm"])
def test_a_field_that_is_left_out_has_the_default_of_its_class(name: str, made: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(made / "hf" / name, tmp_path / "hf")
    config = config_in(folder)
    left_out = {field: value for field, value in config.items() if field != "ln_before_adapter"}
    (folder / "config.json").write_text(json.dumps(left_out))
    meant = transformers.XmodConfig.from_pretrained(folder).ln_before_adapter
    is_same = meant is config["ln_before_adapter"]
    assert is_same is (name == "base") is examine(folder).is_healthy
    told = [] if is_same else ["ln_before_adapter is True (the file lacks it), and was False"]
    assert list(deciding_differences(left_out, config)) == told


def test_sentence_transformers_gets_a_default_language(made: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(made / "hf" / "base", tmp_path / "hf")
    to_sentence_transformers(folder, tmp_path / "one")
    assert "the\nadapters of `en_XX`" in (tmp_path / "one" / "README.md").read_text(encoding="utf-8")
    (folder / "config.json").write_text(json.dumps({**config_in(folder), "default_language": None}))
    with pytest.raises(InputError, match="X-MOD without a default_language"):
        to_sentence_transformers(folder, tmp_path / "other")


# ---- names, options and damage ---------------------------------------------------------------------------------------


def test_old_spellings_are_read(tmp_path: Path) -> None:
    for number, spelled in enumerate((of_2019, fused, lambda network: of_2019(fused(network)))):
        convert(source(tmp_path / f"{number}", spelled(adapted())), tmp_path / f"{number}.hf")
        assert tuple(config_in(tmp_path / f"{number}.hf")["languages"]) == LANGUAGES


def test_untied_and_cast_models_are_proved(tmp_path: Path) -> None:
    network = adapted(norms="both", has_norm=True)
    network["encoder.lm_head.weight"] = network["encoder.lm_head.weight"] + 1
    folder = source(tmp_path / "source", network, **PRE_NORM, untie_weights_roberta=True)
    convert(folder, tmp_path / "out", dtype="bfloat16")
    assert config_in(tmp_path / "out")["tie_word_embeddings"] is False
    export(tmp_path / "out", tmp_path / "back")


@pytest.mark.parametrize("languages", [("en_XX",), ("de_DE",), ("a/b", "Ünï code", "en_XX")])
def test_odd_languages_are_languages(languages: tuple[str, ...], tmp_path: Path) -> None:
    folder = source(tmp_path / "source", adapted(languages=languages), languages=[*languages])
    report = convert(folder, tmp_path / "out")
    config = config_in(tmp_path / "out")
    assert tuple(config["languages"]) == languages
    assert config["default_language"] == ("en_XX" if "en_XX" in languages else None)
    assert any("no adapter for en_XX" in note for note in report.notes) == ("en_XX" not in languages)
    export(tmp_path / "out", tmp_path / "back")
    with open_checkpoint(tmp_path / "back") as after:
        assert after.options["languages"] == [*languages]


def test_fairseqs_order_is_that_of_the_options(tmp_path: Path) -> None:
    listed = ["zh-Hans", "sw_KE", "zh-Hans", "en_XX"]  # twice: fairseq makes one adapter, at the first place
    convert(source(tmp_path / "source", languages=listed), tmp_path / "out")
    assert config_in(tmp_path / "out")["languages"] == ["zh-Hans", "sw_KE", "en_XX"]


@pytest.mark.parametrize(
    ("listed", "told"),
    [
        (["en_XX", "sw_KE", "zh-Hans", "fr_XX"], r"without adapters \(fr_XX\)\."),
        (["en_XX", "fr_XX"], r"without adapters \(fr_XX\) and leave out \(sw_KE, zh-Hans\)\."),
        (["en_XX"], r"and leave out \(sw_KE, zh-Hans\)\."),
    ],
)
def test_languages_that_are_listed_otherwise_are_those_of_the_file(
    listed: list[str], told: str, tmp_path: Path
) -> None:
    report = convert(source(tmp_path / "source", languages=listed), tmp_path / "out")
    assert tuple(config_in(tmp_path / "out")["languages"]) == LANGUAGES
    assert any(re.search(told, note) for note in report.notes)


def test_a_language_that_fairseq_never_runs_is_told(tmp_path: Path) -> None:
    spoken = ("en_XX", "hi_IN", "hi_IN_rom")
    report = convert(source(tmp_path / "source", adapted(languages=spoken), languages=[*spoken]), tmp_path / "out")
    assert any("never runs the adapters of hi_IN_rom" in note for note in report.notes)


@pytest.mark.parametrize(
    ("network", "options", "told"),
    [
        (adapted(languages=("en.XX",)), {}, r"names that no language has \('en\.XX'\)"),
        (adapted(languages=("en_XX", "fr\nXX")), {}, r"names that no language has \('fr\\nXX'\)"),
        (adapted(languages=("",)), {}, r"names that no language has \(''\)"),
        (adapted(languages=("en_XX", "keys", "training")), {}, r"names that no language has \('keys', 'training'\)"),
        (adapted(width=10), {}, r"10 wide inside, and Transformers' have the model's width \(16\) divided"),
        (adapted(norms="pre"), PRE_NORM, "no layer norm on the embeddings"),
        (adapted(), {"adapter_modules": False}, "the options say that there are none"),
        (adapted(), {"adapter_layer_norm": True}, "adapters have a layer norm of their own, and the file holds none"),
        (adapted(has_norm=True), {}, "adapters have no layer norm of their own, and the file holds one"),
        (weights(), {}, "the options are those of an X-MOD, and the file holds none of its language adapters"),
    ],
)
def test_what_transformers_cannot_express_is_refused(
    network: OrderedDict[str, torch.Tensor], options: dict[str, Any], told: str, tmp_path: Path
) -> None:
    folder = source(tmp_path / "source", network, **options)
    with pytest.raises(UnsupportedCheckpoint, match=told):
        convert(folder, tmp_path / "out")
    assert re.search(told, "; ".join(inspect(folder).reasons))


def test_how_adapters_are_joined_comes_from_the_options_or_the_architecture(tmp_path: Path) -> None:
    silent = {name: value for name, value in ADAPTED.items() if name not in FLAGS}
    Checkpoint(model=adapted(), options=silent).write(tmp_path / "named")
    convert(tmp_path / "named", tmp_path / "out")
    assert config_in(tmp_path / "out")["ln_before_adapter"] is True
    Checkpoint(model=adapted(), options={**silent, "arch": "mine"}).write(tmp_path / "unnamed")
    with pytest.raises(UnsupportedCheckpoint, match="how language adapters are joined to the layers"):
        convert(tmp_path / "unnamed", tmp_path / "never")
    del silent["languages"]
    Checkpoint(model=adapted(), options=silent).write(tmp_path / "unlisted")
    convert(tmp_path / "unlisted", tmp_path / "as stored")
    assert tuple(config_in(tmp_path / "as stored")["languages"]) == LANGUAGES


def test_adapters_that_are_not_whole_are_named(tmp_path: Path) -> None:
    network = adapted()
    del network[f"{E}layers.1.adapter_modules.sw_KE.fc2.bias"]
    network[f"{E}layers.0.adapter_modules.en_XX.fc1.weight"] = torch.zeros(4, HIDDEN)
    network[f"{E}layers.0.adapter_modules.en_XX.fc3.weight"] = torch.zeros(4, HIDDEN)
    with pytest.raises(WeightsMismatch) as error:
        convert(source(tmp_path / "source", network), tmp_path / "out")
    for part in (
        r"missing.*layers\.1\.adapter_modules\.sw_KE\.fc2\.bias",
        r"en_XX\.fc3\.weight",
        r"en_XX\.fc1\.weight \[4",
    ):
        assert re.search(part, str(error.value), flags=re.S)


def test_an_xmod_without_its_adapters_is_an_xlmr(tmp_path: Path) -> None:
    convert(source(tmp_path / "source", weights(), adapter_modules=False), tmp_path / "out")
    assert config_in(tmp_path / "out")["model_type"] == "xlm-roberta"


def test_heads_without_english_are_ranked_in_the_language_there_is(tmp_path: Path) -> None:
    for number, languages in enumerate((("de_DE",), ("de_DE", "en_XX"))):
        network = adapted(languages=languages)
        add_head(network, "ranks", labels=1)
        folder = source(
            tmp_path / f"{number}",
            network,
            languages=[*languages],
            task="sentence_ranking",
            criterion="sentence_ranking",
        )
        assert convert(folder, tmp_path / f"{number}.hf").class_name == "XmodForMultipleChoice"


# ---- the proof finds what is wrong -----------------------------------------------------------------------------------


def test_languages_in_another_order_are_found(made: Path, tmp_path: Path) -> None:
    folder = source(tmp_path / "source")
    convert(folder, tmp_path / "out")
    config = config_in(tmp_path / "out")
    (tmp_path / "out" / "config.json").write_text(json.dumps({**config, "languages": [*reversed(LANGUAGES)]}))
    with pytest.raises(ParityError, match="languages"):
        verify(folder, tmp_path / "out")


def test_adapters_that_were_exchanged_are_found(tmp_path: Path) -> None:
    folder = source(tmp_path / "source")
    convert(folder, tmp_path / "out")
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    one, other = (f"roberta.encoder.layer.1.output.adapter_modules.{each}.dense1.weight" for each in LANGUAGES[:2])
    tensors[one], tensors[other] = tensors[other], tensors[one]
    save_file(tensors, tmp_path / "out" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ParityError, match=r"adapter_modules\.\w+\.dense1\.weight differs from the source"):
        verify(folder, tmp_path / "out")


def test_a_folder_with_a_language_too_many_is_damage(made: Path, tmp_path: Path) -> None:
    convert(source(tmp_path / "source"), tmp_path / "out")
    config = config_in(tmp_path / "out")
    for wrong in ({"languages": [*LANGUAGES, "fr_XX"]}, {"languages": ["en_XX", "en_XX"]}, {"default_language": "xx"}):
        (tmp_path / "out" / "config.json").write_text(json.dumps({**config, **wrong}))
        with pytest.raises((IntegrityError, InputError)):
            export(tmp_path / "out", tmp_path / "back")
