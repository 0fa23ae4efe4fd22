"""The model card that a converted folder carries, from the facts of its conversion."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import islice
from operator import methodcaller
from string import Template
from typing import Final

from hf_xlmr.cards.card_check import faults_of_metadata
from hf_xlmr.cards.markdown import as_code, as_text, as_yaml
from hf_xlmr.cards.spoken_languages import about_languages, example_language, language_number, spoken_by
from hf_xlmr.conversion.output.export_files import DICTIONARY, SENTENCEPIECE
from hf_xlmr.conversion.tokenizer_json.vocabulary import Vocabulary
from hf_xlmr.errors import InputError
from hf_xlmr.files.json_files import JsonObject
from hf_xlmr.files.own_names import RELEASE_NAMES
from hf_xlmr.hub.licences import OTHER
from hf_xlmr.tokenizer.dictionary import FILLER, MASK, SPECIAL_SYMBOLS

__all__ = ["CardMetadata", "card_of", "checked_metadata"]


@dataclass(frozen=True)
class CardMetadata:
    """What a checkpoint does not say about its model; the card leaves out what the user does not say either."""

    languages: tuple[str, ...] = ()
    licence: str | None = None


# As the cards of FacebookAI/xlm-roberta-* list the 100 languages; romanized and other scripts share a code
LANGUAGES: Final = (
    "multilingual af am ar as az be bg bn br bs ca cs cy da de el en eo es et eu fa fi fr fy ga gd gl gu ha he hi "
    "hr hu hy id is it ja jv ka kk km kn ko ku ky la lo lt lv mg mk ml mn mr ms my ne nl no om or pa pl ps pt ro "
    "ru sa sd si sk sl so sq sr su sv sw ta te th tl tr ug uk ur uz vi xh yi zh"
)
OF_RELEASES: Final = CardMetadata(languages=tuple(LANGUAGES.split()), licence="mit")
TWINS: Final = {  # releases that are on the Hub already; the two v0 are not
    "xlmr.base": "FacebookAI/xlm-roberta-base",
    "xlmr.large": "FacebookAI/xlm-roberta-large",
    "xlmr.xl": "facebook/xlm-roberta-xl",
    "xlmr.xxl": "facebook/xlm-roberta-xxl",
    **{name: f"facebook/{name.replace('.', '-')}" for name in RELEASE_NAMES if name.startswith("xmod")},
}
RELEASE: Final = "release"
OTHER_LICENCE: Final = (
    "the licence other needs a name: convert without licence='other', and write license, license_name and license_link "
    "into the metadata of README.md"
)
KEPT: Final = {DICTIONARY: "the dictionary", SENTENCEPIECE: "the SentencePiece model"}
MOST_LABELS: Final = 20
TOKENIZER_COLUMNS: Final = (
    "| generated texts | number | with other ids than fairseq's | of those, with a cut of the same score |\n"
    "|---|---|---|---|"
)
PARITY_STEPS: Final = "| | largest difference | of the largest value |\n|---|---|---|\n"


@dataclass(frozen=True)
class _Usage:
    """How a class is used: the Hub's name for it, Transformers' loader, and what is done with its output."""

    pipeline: str
    loader: str
    text: str = "The train leaves."
    arguments: str = ""
    input: str = "**batch"
    shown: str = "model({input}).logits.shape"


USAGES: Final[Mapping[str, _Usage]] = {
    "ForMaskedLM": _Usage(
        "fill-mask",
        "AutoModelForMaskedLM",
        text=f"The train {MASK} at night.",
        shown="tokenizer.decode(model({input}).logits[batch.input_ids == tokenizer.mask_token_id].argmax(-1))",
    ),
    "ForSequenceClassification": _Usage(
        "text-classification",
        "AutoModelForSequenceClassification",
        shown="{{model.config.id2label[n]: value for n, value in enumerate(model({input}).logits[0].tolist())}}",
    ),
    "ForMultipleChoice": _Usage(
        "multiple-choice", "AutoModelForMultipleChoice", input="**{name: rows[None] for name, rows in batch.items()}"
    ),
    "Model": _Usage(
        "feature-extraction",
        "AutoModel",
        arguments=", add_pooling_layer=False",
        shown="model({input}).last_hidden_state.shape",
    ),
}


def checked_metadata(languages: Sequence[str], licence: str | None) -> CardMetadata:
    """What a user says of a model, for its card. Raises InputError for what the Hub would not take."""
    if licence == OTHER:
        raise InputError(OTHER_LICENCE)
    if odd := faults_of_metadata({"language": list(languages), "license": licence}):
        raise InputError("; ".join(odd))
    return CardMetadata(tuple(dict.fromkeys(languages)), licence)


def card_of(
    record: JsonObject,
    config: Mapping[str, object],
    *,
    vocabulary: Vocabulary,
    stated: CardMetadata,
) -> str:
    """The text of `README.md`; `record` is what conversion.json holds, `stated` what the user says of the model."""
    template = Template((files("hf_xlmr.conversion") / "templates" / "card.md").read_text(encoding="utf-8"))
    usage = next(usage for ending, usage in USAGES.items() if record["class"].endswith(ending))
    parity = record["parity"]
    return template.substitute(
        metadata=_metadata(record, config, usage, stated),
        title=as_text(record["source"]["name"]),
        version=record["hf_xlmr"],
        class_name=record["class"],
        layers=config["num_hidden_layers"],
        hidden=config["hidden_size"],
        heads=config["num_attention_heads"],
        vocabulary=config["vocab_size"],
        parameters=f"{record['parameters']:,}",
        dtype=record["dtype"],
        transformers=_in_transformers(usage, vocabulary, example_language(config)),
        pooler=_pooler(usage),
        interface=_interface(vocabulary, example_language(config)),
        fairseq_class="XMODModel" if spoken_by(config) else "RobertaModel",
        origin=_origin(record["source"]),
        sources=_sources(record["source"]["files"], parity),
        unhashed="" if parity else "; the weights have none, because the conversion was not verified",
        parity=_parity(parity, record["asked"]["dtype"]),
        dictionary=_bullets(list(_dictionary(vocabulary)), ""),
        tokenizer=_tokenizer(vocabulary, parity),
        notes=_bullets([as_text(note) for note in record["notes"]], "Nothing unusual."),
        head=_head(record, config),
        languages=about_languages(config),
        made=_bullets([f"{as_code(name)}, {as_text(what)}" for name, what in record["made"].items()], "Nothing."),
        kept=_kept(record["source"]["files"]),
        dropped=_listed({reason: name for name, reason in record["dropped"].items()}),
    )


# ---- metadata, from which the Hub draws its page ---------------------------------------------------------------------


def _metadata(record: JsonObject, config: Mapping[str, object], usage: _Usage, stated: CardMetadata) -> str:
    is_release = record["source"]["kind"] == RELEASE
    known = OF_RELEASES if is_release else CardMetadata()
    fields = {
        "language": list(stated.languages or _codes(spoken_by(config)) or known.languages),
        "license": stated.licence or known.licence,
        "library_name": "transformers",
        "pipeline_tag": usage.pipeline,
        "base_model": TWINS.get(record["source"]["name"]) if is_release else None,
        "tags": list(dict.fromkeys(["xlm-roberta", str(config["model_type"]), "fairseq", "hf_xlmr"])),
    }
    given = {name: value for name, value in fields.items() if value}
    return as_yaml(given)


def _codes(languages: Sequence[str]) -> tuple[str, ...]:
    """The codes of languages such as `sw_KE`, as far as the Hub knows them."""
    codes = sorted({name.partition("_")[0] for name in languages} & set(LANGUAGES.split()))
    return (*LANGUAGES.split()[: len(codes) > 1], *codes)


# ---- use -------------------------------------------------------------------------------------------------------------


def _in_transformers(usage: _Usage, vocabulary: Vocabulary, language: str | None) -> str:
    load = f'model = {usage.loader}.from_pretrained("."{usage.arguments}).eval()'
    if vocabulary.tokenizer is None:
        return f"from transformers import {usage.loader}\n\n{load}"
    has_mask = vocabulary.mask_index is not None or MASK not in usage.text
    text, shown = (usage.text, usage.shown) if has_mask else (_Usage.text, _Usage.shown)
    given = usage.input
    if language is not None:
        load += f"\n{language_number(language)}"
        given += ", lang_ids=language"
    return (
        f"import torch\nfrom transformers import {usage.loader}, AutoTokenizer\n\n"
        f'tokenizer = AutoTokenizer.from_pretrained(".")\n{load}\n'
        f'batch = tokenizer("{text}", return_tensors="pt")\n'
        f"with torch.no_grad():\n    print({shown.format(input=given)})"
    )


def _pooler(usage: _Usage) -> str:
    if usage.arguments:
        return (
            "Without `add_pooling_layer=False`, Transformers adds a pooler with random weights; fairseq has no pooler."
        )
    return (
        "For features, load `AutoModel` with `add_pooling_layer=False`: otherwise it adds a pooler with random weights."
    )


def _interface(vocabulary: Vocabulary, language: str | None) -> str:
    lines = ["from hf_xlmr import XLMR", "", 'xlmr = XLMR.from_pretrained(".").eval()']
    if vocabulary.tokenizer is not None:
        spoken = "" if language is None else f", lang_id=[{json.dumps(language)}]"
        features = f"print(tokens, xlmr.extract_features(tokens{spoken}).shape)"
        lines += ['tokens = xlmr.encode("Hello world!")', features]
    return "\n".join(lines)


def _head(record: JsonObject, config: JsonObject) -> str:
    """A sentence about the classification head and its labels; empty if there is none."""
    if record["head"] is None:
        return ""
    named = f"\nIts head is called {as_code(record['head'])}"
    if config.get("problem_type") == "regression":
        return f"{named} and gives one number."
    labels = config.get("id2label") or {}
    if not labels:
        return f"{named} and gives each choice a number."
    shown = [as_code(label) for label in islice(labels.values(), MOST_LABELS)]
    more = f" and {len(labels) - MOST_LABELS:,} more (`config.json`)" if len(labels) > MOST_LABELS else ""
    return f"{named}, and its labels are, in order, {', '.join(shown)}{more}."


def _kept(described: Mapping[str, object]) -> str:
    kept = [words for name, words in KEPT.items() if name in described]
    return f"{', '.join(kept)} and the options of the checkpoint" if kept else "the options of the checkpoint"


# ---- origin and proof ------------------------------------------------------------------------------------------------


def _origin(source: Mapping[str, object]) -> str:
    form = f"{source['kind']}; container: {source['container']}, options: {source['options_kept_as']}"
    return f"{as_code(source['name'])} ({form})."


def _sources(described: Mapping[str, JsonObject], parity: JsonObject | None) -> str:
    """A table of the files that were read and of those that hold the weights now."""
    hashes = dict(parity["source_sha256"]) if parity else {}
    rows = [
        f"| {as_code(name, in_table=True)} | {facts['bytes']:,} | {_hash(facts.get('sha256') or hashes.get(name))} |"
        for name, facts in described.items()
    ]
    written = dict(parity["output_sha256"]) if parity else {}
    rows += [f"| here: {as_code(name, in_table=True)} | | {_hash(digest)} |" for name, digest in written.items()]
    return "\n".join(["| file | bytes | SHA-256 |", "|---|---|---|", *rows])


def _hash(digest: object) -> str:
    return f"`{digest}`" if digest else "not taken"


def _parity(parity: JsonObject | None, dtype: str) -> str:
    if parity is None:
        return "The conversion was not verified."
    spoken = parity.get("languages") or {}
    by_language = f" The texts went through the adapters of every language ({len(spoken)})." if spoken else ""
    cast = "" if dtype == "auto" else f", cast to {dtype},"
    rows = [f"| {step['name']} | {step['largest']:.1e} | {step['relative']:.1e} |" for step in parity["steps"]]
    steps = "\n".join(rows)
    return (
        f"All {parity['weights_compared']} weights equal the source's{cast} bit for bit. The outputs of plain\n"
        "Transformers were compared with those of a second implementation of fairseq's network: they differ by at\n"
        f"most {parity['largest']:.1e} of the largest value, over {parity['tokens']} tokens "
        f"({parity['tolerance']:.0e} was allowed).{by_language}\n\n{PARITY_STEPS}{steps}"
    )


# ---- dictionary and tokenizer ----------------------------------------------------------------------------------------


def _dictionary(vocabulary: Vocabulary) -> Iterator[str]:
    """What the ids mean, a sentence each."""
    names = vocabulary.names
    yield f"{len(names):,} names, of which {len(SPECIAL_SYMBOLS)} are special symbols; ids are fairseq's."
    if vocabulary.agrees_with_sentencepiece:
        yield "They are in the order of the SentencePiece model, as in the released XLM-R."
    elif vocabulary.tokenizer is not None:
        yield "They are not in the order of the SentencePiece model: `tokenizer.json` lists them in fairseq's order."
    if vocabulary.mask_index is None:
        yield f"There is no `{MASK}`."
    else:
        yield f"`{MASK}` has the id {vocabulary.mask_index}."
    fillers = sum(map(methodcaller("startswith", FILLER), names.symbols))
    if fillers:
        yield f"{_counted(fillers, 'filler word')} (`{FILLER}0000` and so on)."
    else:
        yield "No filler words."
    if vocabulary.rows > len(names):
        yield f"Further rows of the embedding, without a name: {vocabulary.rows - len(names)}."
    if vocabulary.extra_unk_rows:
        yield (
            f"The dictionary lacks {_counted(vocabulary.extra_unk_rows, 'piece')} of the SentencePiece model. Their "
            f"rows, after fairseq's {_counted(vocabulary.rows, 'row')}, copy the row of `<unk>`, and are never "
            "predicted."
        )
    else:
        yield "No rows were appended to fairseq's."


def _tokenizer(vocabulary: Vocabulary, parity: JsonObject | None) -> str:
    """How far the folder's tokenizer is fairseq's."""
    if vocabulary.tokenizer is None:
        return "None was written."
    mask = "`<unk>`" if vocabulary.mask_index is None else "`<unk>` and `<mask>`"
    general = (
        "`tokenizer.json` gives fairseq's ids, but for four things that Transformers does otherwise;\n"
        "`hf_xlmr.XLMRTokenizer` always gives fairseq's.\n\n"
        f"- `<s>`, `</s>`, `<pad>`, {mask} in a text become special symbols; fairseq reads them as plain text.\n"
        '- An empty second text (`tokenizer("a", "")`) does not make a pair.\n'
        "- Long texts are not truncated unless you pass `truncation=True`.\n"
        "- If several cuts of a text have the same score, as in emphatic repeats (`sooooo`, `hahaha`), it may choose\n"
        "  another cut than fairseq"
    )
    if not parity or not parity.get("tokenizer"):
        return f"{general}."
    classes = parity["tokenizer"]
    equal, texts = sum(each.get("equal_score", 0) for each in classes), sum(each["texts"] for each in classes)
    ties = f": in {equal} of the {texts:,} texts below."
    rows = [
        f"| {each['name']} | {each['texts']} | {each['different']} | {each.get('equal_score', '')} |"
        for each in classes
    ]
    return "\n".join([general + ties, "", TOKENIZER_COLUMNS, *rows])


def _listed(reasons: Mapping[str, str]) -> str:
    lines = [f"{as_text(reason)} (for example {as_code(name)})" for reason, name in sorted(reasons.items())]
    return _bullets(lines, "Every weight of the file was used.")


def _bullets(lines: Sequence[str], otherwise: str) -> str:
    return "\n".join(f"- {line}" for line in lines) if lines else otherwise


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
