"""Ask fairseq's own hub interface what code written for it asks: python interface.py FIXTURES NAME... > answers.json.

Runs under fairseq 0.12.2; a test asks XLMR the same questions and compares the answers, which belong into
tests/fixtures/interface. An answer is a value, or under `raises` the kind of the exception.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from typing import Any

import torch

T = torch.tensor
LONG = torch.full((600,), 5)
TOKENS = T([[0, 5, 6, 2], [0, 7, 2, 1]])
IDS = T([0, 5, 3, 6, 1, 7, 2, 2, 8, 2])
ROWS = T([[0, 5, 3], [6, 2, 1]])
LINE = " \u2581the xx\t\u2581a\u3000. "
ROW = T([5, 6])
BY_POSITION = (LINE, str.split, False, None, False, True)  # line_tokenizer, add_if_not_exist, consumer, ...


def dictionary(hub: Any) -> Any:
    return hub.task.source_dictionary


def encoder(hub: Any) -> Any:
    return hub.model.encoder


def layer(hub: Any, number: int = 1) -> Any:
    return encoder(hub).sentence_encoder.layers[number]


def symbols(hub: Any, ids: Any = IDS, **options: Any) -> str:
    text: str = dictionary(hub).string(ids, **options)
    return text


def line(hub: Any, **options: Any) -> Any:
    return dictionary(hub).encode_line(LINE, add_if_not_exist=False, **options)


def shown(hub: Any) -> Any:
    seen = []
    line(hub, consumer=lambda word, index: seen.append((word, index)), reverse_order=True)
    return seen


def saved(hub: Any) -> str:
    file = io.StringIO()
    dictionary(hub).save(file)
    return file.getvalue()


def head(hub: Any, *arguments: Any, **options: Any) -> Any:
    hub.register_classification_head(*arguments, **options)
    made = hub.model.classification_heads[arguments[0]]
    return made.dense.weight.shape, made.out_proj.weight.shape, made.training


def collated(values: Any, **options: Any) -> Any:
    if "fairseq" in sys.modules:
        from fairseq.data.data_utils import collate_tokens
    else:
        from hf_xlmr import collate_tokens
    return collate_tokens(values, 1, **options)


def probabilities(hub: Any, *, log_probs: bool) -> Any:
    with torch.no_grad():
        return hub.model.get_normalized_probs(hub.model(TOKENS), log_probs)[1, 1, :6]


def candidates(hub: Any) -> Any:
    """The five best rows at the mask, `<s>` and `</s>` among them, with their own probabilities."""
    tokens = torch.cat([hub.encode("The train")[:-1], T([len(dictionary(hub)) - 1]), hub.encode("at night.")[1:]])
    with torch.no_grad():
        logits = hub.model(tokens.unsqueeze(0))[0][0, (tokens == len(dictionary(hub)) - 1).nonzero()[0, 0]]
    best = logits.softmax(dim=0).topk(5)
    return best.indices, best.values


def masked(hub: Any) -> Any:
    chosen = torch.zeros_like(TOKENS, dtype=torch.bool)
    chosen[1, 1] = True
    return hub.model(TOKENS, masked_tokens=chosen, src_lengths=None)[0][:, :6]


def names(part: Any) -> Any:
    """The names of the parameters, without the decoys of 0.12.2 (`fc1_weight` beside `fc1.weight`)."""
    return sorted(name for name, _parameter in part.named_parameters() if not name.endswith(("_weight", "_bias")))


def last(states: Any) -> Any:
    """How many hidden states there are, and two values of the last; (length, batch, width)."""
    return len(states), states[-1].shape, states[-1][2, 0, :2]


DICTIONARY: dict[str, Callable[[Any], Any]] = {
    "string": symbols,
    "string of rows": lambda hub: symbols(hub, ROWS),
    "string of a list": lambda hub: symbols(hub, [0, 5, 3, 10**6, -1, 2]),
    "string of nothing": lambda hub: symbols(hub, []),
    "string of lists": lambda hub: symbols(hub, [[0, 5], [6, 2]]),
    "string of floats": lambda hub: symbols(hub, T([5.0])),
    "string of a number": lambda hub: symbols(hub, T(5)),
    "string of three dimensions": lambda hub: symbols(hub, T([[[5, 6]]])),
    "string of an id far below 0": lambda hub: symbols(hub, [-(10**6)]),
    **{
        f"string with bpe_symbol={mark!r}": lambda hub, mark=mark: symbols(hub, T([5, 3, 4, 6, 56]), bpe_symbol=mark)
        for mark in ("sentencepiece", "wordpiece", "letter", "_EOW", "silence", "subword_nmt", "@@", "@@ ", "none", "x")
    },
    **{
        f"string {kind} with {options}": lambda hub, ids=ids, options=options: symbols(hub, ids, **options)
        for kind, ids in (("of one text", IDS), ("of rows", ROWS))
        for options in (
            {"escape_unk": True},
            {"extra_symbols_to_ignore": [5, 6]},
            {"unk_string": "?"},
            {"unk_string": "?", "escape_unk": True},
            {"include_eos": True},
            {"separator": "|"},
        )
    },
    "d[-1]": lambda hub: dictionary(hub)[-1],
    "d[len(d)]": lambda hub: dictionary(hub)[len(dictionary(hub))],
    "d[-10**6]": lambda hub: dictionary(hub)[-(10**6)],
    "d[1.5]": lambda hub: dictionary(hub)[1.5],
    "d[tensor]": lambda hub: dictionary(hub)[T(5)],
    "words": lambda hub: [getattr(dictionary(hub), f"{name}_word") for name in ("bos", "pad", "eos", "unk")],
    "indices": lambda hub: [getattr(dictionary(hub), f"{name}_index") for name in ("bos", "pad", "eos", "unk")],
    "calls": lambda hub: [getattr(dictionary(hub), name)() for name in ("bos", "pad", "eos", "unk")],
    "nspecial": lambda hub: dictionary(hub).nspecial,
    "unk_string": lambda hub: [dictionary(hub).unk_string(), dictionary(hub).unk_string(escape=True)],
    "symbols": lambda hub: dictionary(hub).symbols,
    "count": lambda hub: dictionary(hub).count,
    "get_count": lambda hub: dictionary(hub).get_count(5),
    "the mapping": lambda hub: sorted(dictionary(hub).indices.items()),
    "index": lambda hub: [dictionary(hub).index(symbol) for symbol in (".", "<mask>", "nothing")],
    "index of a number": lambda hub: dictionary(hub).index(5),
    "adding what is there": lambda hub: dictionary(hub).add_symbol("<mask>", n=0),
    "save": saved,
    "in": lambda hub: [symbol in dictionary(hub) for symbol in (".", "<mask>", "nothing", 5)],
    "encode_line": line,
    "encode_line reversed": lambda hub: line(hub, reverse_order=True),
    "encode_line reversed without </s>": lambda hub: line(hub, reverse_order=True, append_eos=False),
    "encode_line by characters": lambda hub: line(hub, line_tokenizer=list),
    "encode_line shows what it finds": shown,
    "encode_line by position": lambda hub: dictionary(hub).encode_line(*BY_POSITION),
    "encode_line with another argument": lambda hub: line(hub, nonsense=1),
    "task.max_positions": lambda hub: hub.task.max_positions(),
    "task.dictionary": lambda hub: hub.task.dictionary is hub.task.target_dictionary is dictionary(hub),
    "labels": lambda hub: hub.task.label_dictionary.symbols,
    "counts of labels": lambda hub: hub.task.label_dictionary.count,
    "labels are the source": lambda hub: hub.task.label_dictionary is dictionary(hub),
    "a label": lambda hub: hub.task.label_dictionary.string(T([1 + hub.task.label_dictionary.nspecial])),
}

NETWORK: dict[str, Callable[[Any], Any]] = {
    "model.max_positions": lambda hub: hub.model.max_positions(),
    "encoder.max_positions": lambda hub: encoder(hub).max_positions(),
    "sentence_encoder.max_positions": lambda hub: encoder(hub).sentence_encoder.max_positions(),
    "args": lambda hub: [getattr(hub.model.args, name) for name in ("encoder_layers", "encoder_ffn_embed_dim", "arch")],
    "args of the encoder": lambda hub: encoder(hub).args.encoder_embed_dim,
    "an argument that nobody has": lambda hub: hub.model.args.nonsense,
    "cfg.model": lambda hub: hub.cfg.model.encoder_attention_heads,
    "supported_targets": lambda hub: sorted(hub.model.supported_targets),
    "get_targets": lambda hub: hub.model.get_targets({"target": 5}, None),
    "get_normalized_probs": lambda hub: probabilities(hub, log_probs=False),
    "get_normalized_probs in logarithms": lambda hub: probabilities(hub, log_probs=True),
    "masked tokens": masked,
    "what follows": candidates,
    "extract_features of the model": lambda hub: hub.model.extract_features(TOKENS)[0][1, 1, :3],
    "extract_features of the encoder": lambda hub: encoder(hub).extract_features(TOKENS)[0][1, :, :2],
    "hidden states": lambda hub: last(hub.model(TOKENS, return_all_hiddens=True)[1]["inner_states"]),
    "hidden states of the encoder": lambda hub: last(
        encoder(hub).extract_features(TOKENS, return_all_hiddens=True)[1]["inner_states"]
    ),
    "the encoder called": lambda hub: encoder(hub)(TOKENS)[0][1, 1, :3],
    "the encoder called for features": lambda hub: encoder(hub)(TOKENS, features_only=True)[0][1, 1, :3],
    "output_layer": lambda hub: encoder(hub).output_layer(hub.extract_features(TOKENS))[0, 1, :3],
    "lm_head called": lambda hub: encoder(hub).lm_head(hub.extract_features(TOKENS))[0, 1, :3],
    "what the sentence encoder gives": lambda hub: sorted(encoder(hub).sentence_encoder(TOKENS)),
    "encoder_out": lambda hub: encoder(hub).sentence_encoder(TOKENS)["encoder_out"][0][:, 1, :2],
    "encoder_states": lambda hub: last(
        encoder(hub).sentence_encoder(TOKENS, return_all_hiddens=True)["encoder_states"]
    ),
    "encoder_embedding": lambda hub: encoder(hub).sentence_encoder(TOKENS)["encoder_embedding"][0][:, 1, :2],
    "encoder_padding_mask": lambda hub: encoder(hub).sentence_encoder(TOKENS)["encoder_padding_mask"],
    "src_lengths": lambda hub: encoder(hub).sentence_encoder(TOKENS)["src_lengths"],
    "embed_tokens": lambda hub: encoder(hub).sentence_encoder.embed_tokens(ROW)[:, :3],
    "embed_tokens.weight": lambda hub: encoder(hub).sentence_encoder.embed_tokens.weight[5, :3],
    "embed_positions": lambda hub: encoder(hub).sentence_encoder.embed_positions(TOKENS)[:, :, 0],
    "embed_positions.weight": lambda hub: encoder(hub).sentence_encoder.embed_positions.weight[:4, 1],
    "sizes of embed_positions": lambda hub: [
        getattr(encoder(hub).sentence_encoder.embed_positions, name)
        for name in ("num_embeddings", "embedding_dim", "padding_idx", "max_positions")
    ],
    "layers": lambda hub: len(encoder(hub).sentence_encoder.layers),
    "the last layers": lambda hub: [each.fc1.bias[0] for each in encoder(hub).sentence_encoder.layers[-2:]],
    "a layer too many": lambda hub: layer(hub, 99),
    "what a layer lacks": lambda hub: layer(hub).nonsense,
    "norms": lambda hub: [
        getattr(encoder(hub).sentence_encoder, name) is None for name in ("layernorm_embedding", "layer_norm")
    ],
    **{
        f"layers[1].{name}": lambda hub, name=name: getattr(layer(hub), name).weight.flatten()[:3]
        for name in ("fc1", "fc2", "self_attn_layer_norm", "final_layer_norm")
    },
    **{
        f"layers[1].self_attn.{name}": lambda hub, name=name: getattr(layer(hub).self_attn, name).weight[0, :3]
        for name in ("q_proj", "k_proj", "v_proj", "out_proj")
    },
    "sizes of self_attn": lambda hub: [
        getattr(layer(hub).self_attn, name) for name in ("embed_dim", "num_heads", "head_dim")
    ],
    "names in a layer": lambda hub: names(layer(hub)),
    "names in the encoder": lambda hub: names(encoder(hub)),
    "lm_head": lambda hub: [
        encoder(hub).lm_head.weight[5, :3],
        encoder(hub).lm_head.bias[:3],
        encoder(hub).lm_head.dense.weight[0, :3],
        encoder(hub).lm_head.layer_norm.bias[:3],
    ],
    "disambiguate_pronoun": lambda hub: hub.disambiguate_pronoun("The _trophy_ is big, so [it] does not fit."),
}

MISTAKES: dict[str, Callable[[Any], Any]] = {
    **{
        f"{call} of {what}": lambda hub, call=call, tokens=tokens: getattr(hub, call)(tokens)
        for call in ("extract_features", "decode")
        for what, tokens in {
            "no tokens": T([]).long(),
            "a row of no tokens": T([[]]).long(),
            "a number": T(5),
            "three dimensions": T([[[0, 5, 2]]]),
            "floats": T([0.0, 5.0, 2.0]),
            "a list": [0, 5, 2],
        }.items()
    },
    "extract_features of booleans": lambda hub: hub.extract_features(T([True, False])),
    "extract_features of int16": lambda hub: hub.extract_features(T([0, 5, 2]).short()),
    "extract_features of int32": lambda hub: hub.extract_features(T([0, 5, 2]).int()).shape,
    "extract_features of an id beyond the rows": lambda hub: hub.extract_features(T([0, 10**6, 2])),
    "extract_features of an id below 0": lambda hub: hub.extract_features(T([0, -1, 2])),
    "extract_features of too many": lambda hub: hub.extract_features(LONG),
    "extract_features of too many floats": lambda hub: hub.extract_features(LONG.float()),
    "extract_features of too many ids beyond the rows": lambda hub: hub.extract_features(LONG * 10**6),
    "decode of rows": lambda hub: hub.decode(ROWS),
    "decode of an id far below 0": lambda hub: hub.decode(T([-(10**6)])),
    "decode of booleans": lambda hub: hub.decode(T([True, True])),
    "predict with no such head": lambda hub: hub.predict("nothing", T([0, 5, 2])),
    "predict with no such head, too many tokens": lambda hub: hub.predict("nothing", LONG),
    "predict with no such head, an id beyond the rows": lambda hub: hub.predict("nothing", T([0, 10**6, 2])),
    "the model with no such head": lambda hub: hub.model(TOKENS, classification_head_name="nothing"),
    "the model with a 3-D tensor": lambda hub: hub.model(T([[[0, 5, 2]]])),
    **{
        f"register_classification_head of {arguments} {options}": (
            lambda hub, arguments=arguments, options=options: head(hub, *arguments, **options)
        )
        for arguments, options in (
            (("a",), {}),
            (("a", 0), {}),
            (("a", -1), {}),
            (("a", 2.5), {}),
            (("a", "3"), {}),
            (("a", True), {}),
            (("", 2), {}),
            (("a.b", 2), {}),
            ((5, 2), {}),
            ((None, 2), {}),
            (("keys", 2), {}),
            (("training", 2), {}),
            (("b", 2), {"inner_dim": 0}),
            (("b", 2), {"inner_dim": -1}),
            (("b", 2), {"inner_dim": 2.5}),
            (("b", 2), {"inner_dim": "5"}),
            (("b", 2), {"inner_dim": 5, "nonsense": 3}),
            (("b", 2, 7), {}),
        )
    },
    **{
        f"fill_mask of {arguments!r:.40}": lambda hub, arguments=arguments: hub.fill_mask(*arguments)
        for arguments in (
            ("no mask",),
            ("<mask> <mask>",),
            (5,),
            (None,),
            (["a <mask>"],),
            ("a <mask>", 0),
            ("a <mask>", -1),
            ("a <mask>", 10**6),
            ("a <mask>", 2.0),
            ("a <mask>", "2"),
            ("a " * 600 + "<mask>",),
        )
    },
    **{
        f"encode of {texts!r}": lambda hub, texts=texts: hub.encode(*texts)
        for texts in ((5,), (None,), (["a", "b"],), (b"a",), ("a\ud800",), ("a", 5))
    },
    **{
        f"collate_tokens of {what}": lambda _hub, values=values, options=options: collated(values, **options)
        for what, values, options in (
            ("nothing", [], {}),
            ("None", None, {}),
            ("rows", [ROWS], {}),
            ("a number", [T(5)], {}),
            ("lists", [[0, 2]], {}),
            ("a generator", (row for row in [ROW]), {}),
            ("a tensor of rows", ROWS, {}),
            ("an empty text", [ROW, ROW[:0]], {}),
            ("an empty text, last token first", [ROW, ROW[:0]], {"move_eos_to_beginning": True}),
            ("an empty text, </s> first", [ROW, ROW[:0]], {"move_eos_to_beginning": True, "eos_idx": 2}),
            ("texts to a multiple of 0", [ROW], {"pad_to_multiple": 0}),
            ("texts to a multiple of 4", [ROW], {"pad_to_multiple": 4}),
        )
    },
}

QUESTIONS = {**DICTIONARY, **NETWORK, **MISTAKES}
PROBE = ("norms", "names in the encoder", "encoder_out", "encoder_states", "lm_head", "sentence_encoder.max_positions")
TASKS = (
    *("task.max_positions", "labels", "counts of labels", "labels are the source", "a label"),
    *("masked tokens", "hidden states", "what follows"),
)
ASKED = {
    "v0122": tuple(QUESTIONS),
    "v0122cls": TASKS,
    "v0122regression": ("task.max_positions", "labels are the source", "a label", "masked tokens"),
    "v0122ranking": TASKS,
    "v0122twoheads": TASKS,
    "v0122prenorm": tuple(NETWORK),
    "v0122prelayernorm": tuple(NETWORK),
    "v0122untied": (*PROBE, "what follows"),
    "v0122rare": ("what follows", "masked tokens"),
    "v0122bpe": ("what follows",),
    "v0102": ("what follows", "masked tokens"),
    "v090": ("what follows", "masked tokens"),
    "v090half": ("what follows",),
}


def plain(value: Any) -> Any:
    """An answer as JSON has it."""
    if isinstance(value, torch.Tensor):
        return plain(value.detach().tolist())
    if isinstance(value, (list, tuple, torch.Size)):
        return [plain(each) for each in value]
    return float(f"{value:.7g}") if isinstance(value, float) else value


def answer(hub: Any, question: Callable[[Any], Any]) -> Any:
    """What the hub interface says, or the kind of its exception: the first in Python's own words."""
    try:
        return {"gives": plain(question(hub))}
    except Exception as error:  # noqa: BLE001  # whatever it is, is the answer
        own = [kind.__name__ for kind in type(error).__mro__ if kind.__module__ == "builtins"]
        return {"raises": own[0]}


def main(fixtures: str, *names: str) -> None:
    from fairseq.models.roberta import XLMRModel

    answers = {}
    for name in names or ASKED:
        hub = XLMRModel.from_pretrained(f"{fixtures}/{name}", checkpoint_file="model.pt").eval()
        answers[name] = {asked: answer(hub, QUESTIONS[asked]) for asked in ASKED[name]}
    print(json.dumps(answers, ensure_ascii=False))


if __name__ == "__main__":
    main(*sys.argv[1:])
