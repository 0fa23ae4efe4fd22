"""The model card of a fine-tuned folder: what it was trained from and on, its labels, and how to load it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from hf_xlmr.cards.card_check import card_fields
from hf_xlmr.cards.markdown import as_code, as_text, as_yaml
from hf_xlmr.cards.spoken_languages import about_languages, example_language, language_number
from hf_xlmr.files.json_files import JsonObject, json_object
from hf_xlmr.hub.hub_errors import hub_utils
from hf_xlmr.tasks.kinds.registry import TASKS
from hf_xlmr.tasks.kinds.task import Use

if TYPE_CHECKING:
    from hf_xlmr.tasks.fitting.finetuned_folder import FinetuningReport

USE: Final = """## Use

The code runs in this folder, without hf_xlmr; from elsewhere, replace `"."` by the path of the folder or its id on the
Hub.

```python
{block}
```
"""
CARD: Final = """---
{metadata}---

# {model}, fine-tuned for {task}

`{class_name}`, trained from {origin} by `hf-xlmr finetune` ({mode}) for {steps:,} {unit}
on examples in {languages}.{adapters}{spoken}

| | |
|---|---|
{settings}

{use}{labels}
{tokenized}
"""
ADAPTERS: Final = (
    " Adapters (LoRA) were trained and merged into the weights: the folder loads like any other model, without peft."
)
TOKENIZED: Final = (
    "{}`hf_xlmr.XLMRTokenizer` gives the tokens of fairseq, and so does the folder's `tokenizer.json`, except for\n"
    "special symbols that are typed in a text. `fairseq/` holds the dictionary and the SentencePiece model."
)
BLOCK: Final = """import torch
from transformers import {loader}, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(".")
model = {loader}.from_pretrained(".").eval(){language}
batch = tokenizer({texts}, return_tensors="pt")
with torch.no_grad():
    output = model(**batch{given})
{shown}"""


ADOPTED: Final = """---
{metadata}---

# {name}

`{class_name}`, trained from {origin} by a script of its author. `hf-xlmr adopt` added what {origin} has of
fairseq: the dictionary, the SentencePiece model and the options.{spoken}

{use}{labels}
{tokenized}
"""


USES: Final[Mapping[str, Use]] = {
    "ForSequenceClassification": Use(
        pipeline_tag="text-classification", texts='"The train leaves at night."', shown="print(output.logits)"
    ),
    "ForTokenClassification": TASKS["ner"].card,
    "ForQuestionAnswering": TASKS["mlqa"].card,
    "ForMaskedLM": Use(
        pipeline_tag="fill-mask",
        texts='"The train leaves at <mask>."',
        shown="place = batch.input_ids[0].tolist().index(tokenizer.mask_token_id)\n"
        "print(tokenizer.decode(output.logits[0, place].argmax()))",
    ),
}
OF_AN_ENCODER: Final = Use(
    pipeline_tag="feature-extraction", texts='"The train leaves at night."', shown="print(output.last_hidden_state)"
)


def adopted_card(folder: Path, source: Path, *, model: str, class_name: str) -> str:
    """The text of `README.md` for a folder of the class `class_name` that its author trained from the one in `source`.

    `model` is how the user named that.
    """
    origin, config = card_fields(source), json_object(folder / "config.json")
    base = base_model_of(model, origin)
    ending = next((each for each in USES if class_name.endswith(each)), "")
    use = USES.get(ending, OF_AN_ENCODER)
    return ADOPTED.format(
        metadata=_metadata(use.pipeline_tag, {**origin, "base_model": base}, str(config["model_type"])),
        name=as_text(folder.resolve().name),
        class_name=class_name,
        origin=as_code(base) if base == model else as_text(Path(model).name),
        spoken=about_languages(config),
        use=_usage(folder, config, f"AutoModel{ending}", use),
        labels=_labels(config) if "Classification" in ending else "",
        tokenized=TOKENIZED.format(""),
    )


def finetuned_card(folder: Path, source: Path, report: FinetuningReport) -> str:
    """The text of `README.md`, without scores, for the finished `folder`, which was trained from the one in `source`.

    Languages, licence and base model come from the card of `source`; what that card does not have is left out.
    """
    origin, facts, model = card_fields(source), TASKS[report.task].card, report.model
    base, config = base_model_of(model, origin), json_object(folder / "config.json")
    loader = f"AutoModel{TASKS[report.task].recipe.class_ending}"
    rows = [f"| {as_text(name.replace('_', ' '))} | {as_text(value)} |" for name, value in report.settings.items()]
    return CARD.format(
        metadata=_metadata(facts.pipeline_tag, {**origin, "base_model": base}, str(config["model_type"])),
        model=as_text(Path(model).name),
        task=facts.name,
        class_name=report.class_name,
        origin=as_code(base) if base == model else as_text(Path(model).name),
        mode=report.mode,
        steps=report.steps,
        unit="step" if report.steps == 1 else "steps",
        languages=", ".join(f"{as_text(language)} ({count:,})" for language, count in report.trained_on.items()),
        adapters=ADAPTERS if report.settings.get("lora") else "",
        spoken=about_languages(config),
        settings="\n".join(rows),
        use=_usage(folder, config, loader, facts),
        labels=_labels(config),
        tokenized=TOKENIZED.format("The training texts were tokenized as in fairseq. "),
    )


def base_model_of(model: str, origin: Mapping[str, object]) -> object:
    """The id on the Hub of the model that was trained, else the base model that its card names, or None."""
    from huggingface_hub.errors import HFValidationError

    if Path(model).exists() or model.count("/") != 1:
        return origin.get("base_model")
    try:
        hub_utils().validate_repo_id(model)
    except HFValidationError:
        return origin.get("base_model")
    return model


def _metadata(pipeline_tag: str, fields_of_card: Mapping[str, object], model_type: str) -> str:
    fields = {
        **{name: fields_of_card.get(name) for name in ("language", "license", "license_name", "license_link")},
        "library_name": "transformers",
        "pipeline_tag": pipeline_tag,
        "base_model": fields_of_card.get("base_model"),  # from which the Hub concludes that this is a fine-tuned model
        "tags": list(dict.fromkeys(["xlm-roberta", model_type, "fairseq", "hf_xlmr"])),
    }
    given = {name: value for name, value in fields.items() if value}
    return as_yaml(given)


def _usage(folder: Path, config: JsonObject, loader: str, use: Use) -> str:
    """The code that uses the folder; if there are no tokenizer files, the code that loads it."""
    if not (folder / "tokenizer.json").is_file():
        return USE.format(block=f'from transformers import {loader}\n\nmodel = {loader}.from_pretrained(".").eval()')
    language = example_language(config)
    spoken, given = ("", "") if language is None else (f"\n{language_number(language)}", ", lang_ids=language")
    block = BLOCK.format(loader=loader, texts=use.texts, shown=use.shown, language=spoken, given=given)
    return USE.format(block=block)


def _labels(config: JsonObject) -> str:
    """A paragraph with the names of the classes; empty if there are none."""
    named = sorted((config.get("id2label") or {}).items(), key=lambda each: int(each[0]))
    listed = ", ".join(f"{number} {as_text(name)}" for number, name in named)
    return f"\nLabels, by the number of the output: {listed}.\n" if named else ""
