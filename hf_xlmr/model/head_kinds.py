"""What a classification head reads, `<s>` alone or every token: the weights are alike, the options and names differ."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from enum import Enum
from typing import Final, NamedTuple


class HeadKind(Enum):
    """What a head reads; the value says it in words."""

    SENTENCE = "the first token"
    TOKEN = "every token"
    UNCLEAR = "the first token or every token"


class Reading(NamedTuple):
    """The kind of one head, and why it is taken for that."""

    kind: HeadKind
    reason: str


def _words(name: str) -> frozenset[str]:
    """The words of `sequence_tagging_head` or `SequenceTaggingHead`, in lower case."""
    return frozenset(word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name))


TASK_OPTIONS: Final = ("task", "criterion")
HEAD_OPTIONS: Final = ("classification_head_name", "ranking_head_name", "tagging_head_name")
TOKEN_OPTIONS: Final = ("classify_per_token", "per_token", "sequence_tagging", "token_classification", "token_level")
"""Flags of forks in which fairseq's own task can tag."""
MULTI_LABEL_OPTIONS: Final = ("multilabel", "multi_label", "is_multilabel")

# fairseq's RobertaClassificationHead reads <s> alone (fairseq/models/roberta/model.py), and these are its tasks
SENTENCE_TASKS: Final = ("sentence_prediction", "sentence_prediction_adapters", "sentence_ranking", "commonsense_qa")
NEUTRAL_TASKS: Final = (  # also fairseq's own, none of which trains a head
    *("masked_lm", "multilingual_masked_lm", "cross_lingual_lm", "legacy_masked_lm", "legacy_masked_lm_loss"),
    *("span_masked_lm", "language_modeling", "cross_entropy", "label_smoothed_cross_entropy", "model", "wsc"),
)
SURE_SENTENCE_WORDS: Final = _words(
    "sentence sentences nli xnli mnli snli anli qnli wnli rte cola sst mrpc qqp sts stsb glue superglue paws pawsx "
    "boolq copa multirc imdb sentiment similarity paraphrase entailment intent topic document"
)
"""Words that say by themselves that a head reads `<s>`."""
SENTENCE_WORDS: Final = SURE_SENTENCE_WORDS | _words("classification classifier cls ranking pair review")
"""Words that say it in the name of a task; names of heads for every token have them too."""
TOKEN_WORDS: Final = _words(
    "tag tags tagger tagging token tokens labeling labelling seqlabel word words span spans squad korquad mrc mlqa "
    "xquad tydiqa qa extractive answering ner entity entities conll wikiann panx wnut ontonotes masakhaner chunk "
    "chunks pos upos xpos udpos postag chunker chunking srl crf slot slots deprel bio iob bioes iobes bilou bies bmes "
    "segmentation cws dependency parser parsing punctuation punct casing truecasing capitalization capitalisation "
    "diacritics"
)
GLUED_TOKEN_WORDS: Final = (
    *("tagging", "tagger", "squad", "tokenclass", "tokenlevel", "answering", "conll", "wikiann", "punctuat", "upos"),
    *("truecas", "recas", "chunking"),
)
"""Words that also count inside other words, as in `seqtagging`."""


def kind_of_head(name: str, options: Mapping[str, object], *, heads: Collection[str] = ()) -> Reading:
    """What the head `name` reads; `options` are the checkpoint's, `heads` the names of all its heads.

    The task and the criterion speak of the head that was trained; for any other, and where they are silent, its name
    does. A head is `UNCLEAR` where they contradict each other, and where neither of them says it.
    """
    told = {key: str(options[key]) for key in TASK_OPTIONS if isinstance(options.get(key), str) and options[key]}
    kinds = {key: _kind_of_task(value) for key, value in told.items()}
    said = {
        kind: "the " + " and the ".join(f"{key} {told[key]:.80}" for key in told if kinds[key] is kind)
        for kind in HeadKind
    }
    by_name, was_trained = _kind_of_words(name, SURE_SENTENCE_WORDS), _was_trained(name, options, heads)
    flag = next((key for key in TOKEN_OPTIONS if options.get(key) is True), None)
    if was_trained and flag is not None:
        return Reading(HeadKind.TOKEN, f"the option {flag}")
    if was_trained and HeadKind.TOKEN in kinds.values():
        return Reading(HeadKind.TOKEN, said[HeadKind.TOKEN])
    if was_trained and HeadKind.SENTENCE in kinds.values():
        if by_name is HeadKind.TOKEN:
            return Reading(HeadKind.UNCLEAR, f"its name contradicts {said[HeadKind.SENTENCE]}")
        return Reading(HeadKind.SENTENCE, said[HeadKind.SENTENCE])
    if by_name is not None:
        return Reading(by_name, "its name")
    for kind in (HeadKind.UNCLEAR, HeadKind.TOKEN):
        if kind in kinds.values():
            return Reading(HeadKind.UNCLEAR, f"{said[kind]} is not fairseq's, and its name is silent")
    if HeadKind.SENTENCE in kinds.values():
        return Reading(HeadKind.SENTENCE, "fairseq's own class")
    return Reading(HeadKind.UNCLEAR, "neither the options nor its name say it")


def is_multi_label(options: Mapping[str, object]) -> bool:
    """Whether a text can have several of the classes, each with its own probability."""
    told = " ".join(str(options.get(key) or "") for key in TASK_OPTIONS).lower()
    is_told = re.search(r"multi[_-]?label|binary[_-]cross[_-]entropy|(?<![a-z])bce(?![a-z])", told) is not None
    return is_told or any(options.get(key) is True for key in MULTI_LABEL_OPTIONS)


def _was_trained(name: str, options: Mapping[str, object], heads: Collection[str]) -> bool:
    """Whether the task speaks of this head: the one that the options name, or the only one, or one of equals."""
    given = [options.get(key) for key in HEAD_OPTIONS]
    trained = [head for head in given if isinstance(head, str) and head in heads]
    return len(heads) < 2 or not trained or name in trained


def _kind_of_task(name: str) -> HeadKind | None:
    """The kind of head that the task `name` trains: None if it has no head, UNCLEAR if fairseq has no such task."""
    if name in SENTENCE_TASKS:
        return HeadKind.SENTENCE
    return None if name in NEUTRAL_TASKS else _kind_of_words(name, SENTENCE_WORDS) or HeadKind.UNCLEAR


def _kind_of_words(name: str, of_sentences: frozenset[str]) -> HeadKind | None:
    words = _words(name)
    if words & TOKEN_WORDS or any(word in name.lower() for word in GLUED_TOKEN_WORDS):
        return HeadKind.TOKEN
    return HeadKind.SENTENCE if words & of_sentences else None
