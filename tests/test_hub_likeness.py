"""What code written for fairseq asks of its hub interface, asked of XLMR: real fairseq's answers and exceptions."""

from __future__ import annotations

import builtins
import copy
import json
import pickle
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from fairseq_recipes.interface import MISTAKES, QUESTIONS, plain
from places import FIXTURES

from hf_xlmr import XLMR
from hf_xlmr.conversion import convert
from hf_xlmr.conversion.mapping.weight_map import ENCODER, LM_HEAD, norms_of
from hf_xlmr.errors import InputError
from hf_xlmr.model.families import FAMILIES

ANSWERS = json.loads((FIXTURES / "interface" / "answers.json").read_text(encoding="utf-8"))
ASKED = [(name, question) for name, answers in ANSWERS.items() for question in answers]
TOLERANCE = 1e-5
OWN_KIND = {"encode_line with another argument", "d[1.5]", "the model with a 3-D tensor"}  # Python's or PyTorch's error


pytestmark = pytest.mark.usefixtures("cache_folder")


@cache
def loaded(name: str) -> XLMR:
    """A model from fairseq's own folder; questions that register heads change it."""
    return XLMR.from_pretrained(FIXTURES / name).eval()


def error_of(name: str, question: str) -> Exception | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a head of the same name is replaced
            QUESTIONS[question](loaded(name))
    except Exception as error:  # noqa: BLE001  # which one it is, is what is asked
        return error
    return None


# ---- fairseq's own answers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "question"), ASKED)
def test_fairseqs_answer_is_given(name: str, question: str) -> None:
    answer = ANSWERS[name][question]
    if "raises" not in answer:
        found = plain(QUESTIONS[question](loaded(name)))
        assert_alike(found, answer["gives"])
        return
    error = error_of(name, question)
    assert isinstance(error, getattr(builtins, answer["raises"])), repr(error)
    if question not in OWN_KIND:
        assert isinstance(error, InputError) and len(str(error).split()) > 4


def assert_alike(found: Any, expected: Any) -> None:
    """Equal, but for what float32 rounds."""
    if isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_alike(one, other)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, abs=TOLERANCE)
    else:
        assert found == expected


def test_every_mistake_was_asked_of_fairseq() -> None:
    assert MISTAKES.keys() <= ANSWERS["v0122"].keys()
    assert sum("raises" in answer for answer in ANSWERS["v0122"].values()) > 70


@pytest.mark.parametrize("name", [name for name in ANSWERS if "what follows" in ANSWERS[name]])
def test_a_candidate_without_text_drops_out_and_the_probabilities_stay(name: str) -> None:
    """Dictionary.string of fairseq drops `<s>` and `</s>` from the names alone, so that fewer rows come than asked."""
    rows, probabilities = ANSWERS[name]["what follows"]["gives"]
    text = json.loads((FIXTURES / name / "golden.json").read_text(encoding="utf-8"))["fill_mask_text"]
    symbols = [loaded(name).dictionary[row] for row in rows if row not in (0, 2)]
    found = loaded(name).fill_mask(text, topk=5)
    assert [token.strip() for _filled, _score, token in found] == [each.replace("\u2581", "") for each in symbols]
    assert [score for _filled, score, _token in found] == pytest.approx(probabilities[: len(symbols)], abs=TOLERANCE)


def test_where_only_the_end_of_the_text_is_likely_nothing_is_filled_in() -> None:
    """One row with no text, as fairseq splits an empty string."""
    (probability,) = ANSWERS["v0122untied"]["what follows"]["gives"][1][:1]
    found = loaded("v0122untied").fill_mask("The train <mask> at night.", topk=1)
    assert found == [("The train at night.", pytest.approx(probability, abs=TOLERANCE), "")]


@pytest.mark.parametrize("name", ["v0122twoheads", "v0122cls"])
def test_the_inner_model_gives_fairseqs_values(name: str) -> None:
    xlmr = loaded(name)
    arrays = np.load(FIXTURES / name / "golden.npz")
    heads = json.loads((FIXTURES / name / "golden.json").read_text(encoding="utf-8"))["heads"]
    assert sorted(xlmr.model.classification_heads) == sorted(heads) and heads
    tokens = torch.from_numpy(arrays["ids.0"]).unsqueeze(0)
    features, extra = xlmr.model(tokens, features_only=True, return_all_hiddens=True)
    alike(features, arrays["last.0"])
    for state, expected in zip(extra["inner_states"] or [], arrays["hiddens.0"], strict=True):
        alike(state.transpose(0, 1), expected)
    alike(xlmr.model(tokens)[0], arrays["logits.0"])
    chosen = torch.zeros_like(tokens, dtype=torch.bool)
    chosen[0, 1:3] = True
    alike(xlmr.model(tokens, masked_tokens=chosen)[0], arrays["logits.0"][0, 1:3])
    for head in heads:
        expected = arrays[f"head.{head}.0"]
        alike(xlmr.model(tokens, classification_head_name=head)[0], expected)
        alike(xlmr.predict(head, tokens), torch.from_numpy(expected).log_softmax(dim=-1).numpy())


def alike(found: torch.Tensor, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=0, atol=TOLERANCE)


# ---- rows that the conversion appended -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["v0102", "v0122"])
def test_rows_that_conversion_appended_are_no_tokens_of_fairseqs(name: str, tmp_path: Path) -> None:
    """These dictionaries lack pieces of SentencePiece's, so the converted embedding has more rows than fairseq's."""
    xlmr = XLMR.from_pretrained(convert(FIXTURES / name, tmp_path / "model", verify=False).output).eval()
    golden = json.loads((FIXTURES / name / "golden.json").read_text(encoding="utf-8"))
    rows = golden["dictionary_size"]
    assert xlmr.model.network.config.vocab_size > rows == xlmr.files.embedding_rows == len(xlmr.dictionary)
    with np.load(FIXTURES / name / "golden.npz") as arrays:
        for number, texts in enumerate([*([text] for text in golden["texts"]), *golden["pairs"]]):
            tokens = xlmr.encode(*texts)
            assert tokens.tolist() == arrays[f"ids.{number}"].tolist()
            expected = arrays[f"logits.{number}"]
            found = xlmr.model(tokens.unsqueeze(0))[0].detach().numpy()
            assert found.shape == expected.shape and found.shape[-1] == rows
            np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)
    with pytest.raises(IndexError, match=f"{rows} rows"):
        xlmr.extract_features(torch.tensor([0, rows, 2]))
    assert len(xlmr.fill_mask("<mask>", topk=rows)) >= rows - 2
    with pytest.raises(RuntimeError, match=f"to {rows}"):
        xlmr.fill_mask("<mask>", topk=rows + 1)


# ---- views -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["v0122", "v0122prenorm", "v0122prelayernorm"])
def test_views_follow_the_map_of_weights(name: str) -> None:
    """fairseq's name leads to the very parameter that the converter writes under Transformers' name."""
    model = loaded(name).model
    ours = dict(model.encoder.named_parameters("encoder"))
    theirs = dict(model.network.named_parameters(remove_duplicate=False))
    family = FAMILIES[model.network.config.model_type]
    slots = {"base": f"{family.base}.", "layer": "1"}
    for row in (*ENCODER, *norms_of(family), *LM_HEAD):
        for part in ("weight", "bias"):
            slots["part"] = part
            assert ours[row.fairseq.format_map(slots)] is theirs[row.transformers.format_map(slots)]


def test_views_copy_nothing_and_list_no_weight_twice() -> None:
    xlmr = XLMR.from_pretrained(FIXTURES / "v0122").eval()
    names = list(xlmr.state_dict())
    view = xlmr.model.encoder.sentence_encoder
    assert not [name for name in names if "sentence_encoder" in name] and list(xlmr.state_dict()) == names
    assert view.layers[0].fc1 is xlmr.model.layers[0].intermediate.dense
    assert {id(each) for each in view.parameters()} <= {id(each) for each in xlmr.parameters()}
    tokens = torch.tensor([0, 5, 6, 2])
    before = xlmr.extract_features(tokens)
    with torch.no_grad():
        view.layers[-1].fc2.bias.add_(1)
    assert not torch.equal(xlmr.extract_features(tokens), before)
    view.layers[0].train()
    assert xlmr.model.layers[0].training and not xlmr.model.layers[1].training
    view.layers[0].eval().requires_grad_(requires_grad=False)
    frozen = {name for name, each in xlmr.model.named_parameters() if not each.requires_grad}
    assert frozen and all(".layer.0." in name for name in frozen)
    half = xlmr.half().model.encoder
    assert half.lm_head.weight.dtype == half.sentence_encoder.layers[1].self_attn.q_proj.weight.dtype == torch.float16


def test_what_a_view_lacks_is_told_with_what_to_use() -> None:
    encoder = loaded("v0122").model.encoder
    with pytest.raises(AttributeError, match=r"xlmr\.model\.layers\[1\]"):
        encoder.sentence_encoder.layers[1].register_forward_hook(print)
    with pytest.raises(AttributeError, match=r"xlmr\.model\.network"):
        encoder.state_dict()
    with pytest.raises(AttributeError, match="cannot be set"):
        encoder.sentence_encoder.layers = []
    with pytest.raises(TypeError, match=r"xlmr\.model\.layers\[0\]"):
        encoder.sentence_encoder.layers[0](torch.zeros(1, 1, 16))
    with pytest.raises(NotImplementedError, match="inputs_embeds"):
        encoder.extract_features(torch.tensor([[0, 2]]), token_embeddings=torch.zeros(1, 2, 16))
    with pytest.raises(AttributeError, match="encoder_layers"):
        _ = loaded("v0122").args.nonsense
    assert not hasattr(encoder, "nonsense") and getattr(loaded("v0122").cfg, "bpe", None) is None
    assert copy.deepcopy(loaded("v0122").args) == loaded("v0122").args


def test_a_view_is_not_copied_but_the_model_is() -> None:
    """A copied view would compute with the weights of the model that it was made of."""
    model, tokens = XLMR.from_pretrained(FIXTURES / "v0122").eval().model, torch.tensor([[0, 5, 6, 2]])
    for view in (model.encoder, model.encoder.lm_head, model.encoder.sentence_encoder.layers[0]):
        for refused in (copy.deepcopy, pickle.dumps):
            with pytest.raises(TypeError, match=r"copy\.deepcopy\(xlmr\.model\)\.encoder"):
                refused(view)
    copied, before = copy.deepcopy(model).encoder, model.encoder(tokens)[0]
    with torch.no_grad():
        copied.sentence_encoder.layers[0].fc1.weight.zero_()
    assert torch.equal(model.encoder(tokens)[0], before) and not torch.equal(copied(tokens)[0], before)


def test_views_of_layers_count_from_the_end() -> None:
    model = loaded("v0122").model
    layers = model.encoder.sentence_encoder.layers
    assert [each.fc1 for each in (layers[-2], layers[-1])] == [each.intermediate.dense for each in model.layers[-2:]]
    assert [each.fc1 for each in layers[::-1]] == [each.intermediate.dense for each in reversed(model.layers)]
    with pytest.raises(IndexError, match="no layer -3"):
        _ = layers[-3]


def test_bpe_keeps_white_space_that_only_encode_line_splits_at() -> None:
    """As fairseq 0.12.2 answers for this checkpoint."""
    xlmr = loaded("v0122")
    assert xlmr.bpe.encode("a\u0085b") == "\u2581 a \x85 b"
    assert xlmr.bpe.encode("a\u3000b \u2028c") == "\u2581 a \u2581 b \u2581 c"
    line = xlmr.task.source_dictionary.encode_line(xlmr.bpe.encode("a\u0085b"), append_eos=False)
    assert line.tolist() == xlmr.encode("a\u0085b")[1:-1].tolist()
    assert pickle.loads(pickle.dumps(xlmr.bpe)).encode("a\u0085b") == "\u2581 a \x85 b"


@pytest.mark.parametrize("name", ["v0122", "v0122prenorm", "v0122prelayernorm"])
def test_views_of_an_offloaded_model_compute(name: str) -> None:
    spread = XLMR.from_pretrained(FIXTURES / name, device_map={"": "disk"}).eval().model.encoder
    whole = loaded(name).model.encoder
    tokens = torch.tensor([[0, 5, 6, 2], [0, 7, 2, 1]])
    assert torch.equal(spread(tokens)[0], whole(tokens)[0])
    for part in ("embed_tokens", "embed_positions"):
        found, expected = (getattr(each.sentence_encoder, part)(tokens) for each in (spread, whole))
        assert torch.equal(found, expected)


def test_a_model_without_an_lm_head_says_so(tmp_path: Path) -> None:
    folder = convert(FIXTURES / "v0122", tmp_path / "model", encoder_only=True, verify=False).output
    xlmr = XLMR.from_pretrained(folder).eval()
    tokens = torch.tensor([[0, 5, 2]])
    with pytest.raises(AttributeError, match="no LM head"):
        xlmr.model(tokens)
    assert not hasattr(xlmr.model.encoder, "lm_head")
    alike(xlmr.model(tokens, features_only=True)[0], loaded("v0122").extract_features(tokens).detach().numpy())


# ---- the dictionary --------------------------------------------------------------------------------------------------


def test_the_dictionary_is_read_only(tmp_path: Path) -> None:
    dictionary = loaded("v0122").dictionary
    for change in (
        lambda: dictionary.add_symbol("new"),
        lambda: dictionary.add_symbol(".", overwrite=True),
        lambda: dictionary.encode_line("a new", add_if_not_exist=True),
        lambda: dictionary.finalize(),
    ):
        with pytest.raises(AttributeError, match="read-only"):
            change()
    assert dictionary.encode_line(". a", add_if_not_exist=True).tolist() == [5, 6, 2]
    assert list(dictionary) == dictionary.symbols and dictionary.indices["."] == 5
    dictionary.save(tmp_path / "new" / "dict.txt")
    given = (FIXTURES / "v0122" / "dict.txt").read_text(encoding="utf-8")
    assert (tmp_path / "new" / "dict.txt").read_text(encoding="utf-8") == given + "<mask> 1\n"


# ---- folders that AutoTokenizer and AutoModel saved ------------------------------------------------------------------


def saved_by_transformers(name: str, folder: Path) -> XLMR:
    """The model of a folder with what save_pretrained writes, and nothing of fairseq's."""
    converted = convert(FIXTURES / name, folder / "model", verify=False).output
    transformers.AutoTokenizer.from_pretrained(converted).save_pretrained(folder / "saved")
    transformers.AutoModelForMaskedLM.from_pretrained(converted).save_pretrained(folder / "saved")
    (folder / "saved" / "sentencepiece.bpe.model").unlink(missing_ok=True)
    return XLMR.from_pretrained(folder / "saved").eval()


@pytest.mark.parametrize("name", ["v0122", "v0102", "v0122prenorm", "v0122rare"])
def test_tokenizer_json_is_enough_to_decode(name: str, tmp_path: Path) -> None:
    xlmr, whole = saved_by_transformers(name, tmp_path), loaded(name)
    rows = len(whole.dictionary)
    assert xlmr.dictionary.symbols[:rows] == whole.dictionary.symbols, "madeupword0000 too, which no text can spell"
    golden = json.loads((FIXTURES / name / "golden.json").read_text(encoding="utf-8"))
    with np.load(FIXTURES / name / "golden.npz") as arrays:
        for number, text in enumerate(golden["decode"]):
            assert xlmr.decode(torch.from_numpy(arrays[f"ids.{number}"])) == text
    assert xlmr.bpe.decode("\u2581a b") == "ab"
    for refused in (lambda: xlmr.encode("a"), lambda: xlmr.encode_batch(["a"]), lambda: xlmr.bpe.encode("a")):
        with pytest.raises(InputError, match=r"copy fairseq/ \(or sentencepiece\.bpe\.model\)"):
            refused()
    with pytest.raises(AttributeError, match=r"dict\.txt"):
        _ = xlmr.dictionary.count


def test_a_bpe_tokenizer_is_told_plainly(tmp_path: Path) -> None:
    xlmr = saved_by_transformers("v0122bpe", tmp_path)
    with pytest.raises(InputError, match=r"BPE tokenizer.*[Cc]opy fairseq/"):
        _ = xlmr.dictionary
