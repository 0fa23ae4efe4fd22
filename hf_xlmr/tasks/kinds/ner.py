"""The task of named entities: a tag for each word of a sentence."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from hf_xlmr.errors import InputError
from hf_xlmr.tasks.encoding.encoding import Row, TaggedSpan, encode_words, label_ids, tag_ids
from hf_xlmr.tasks.kinds.inputs import DataSource, Gathered, Reading
from hf_xlmr.tasks.kinds.task import ByKey, CardFacts, Coding, Network, Recipe, Scoring, Task
from hf_xlmr.tasks.metrics import score_entities
from hf_xlmr.tasks.ner import NerExample, check_tags, open_ner

CONLL_LANGUAGES: Final = ("en", "nl", "es", "de")
XTREME_LANGUAGES: Final = (
    *("en", "af", "ar", "bg", "bn", "de", "el", "es", "et", "eu"),
    *("fa", "fi", "fr", "he", "hi", "hu", "id", "it", "ja", "jv"),
    *("ka", "kk", "ko", "ml", "mr", "ms", "my", "nl", "pt", "ru"),
    *("sw", "ta", "te", "th", "tl", "tr", "ur", "vi", "yo", "zh"),
)  # WikiANN's, as XTREME prints them


class Ner(Task[NerExample, list[str]]):
    """Entities in sentences of words."""

    name = "ner"
    example_files = "ner.train.txt", "ner.test.txt"
    options = frozenset({"labels"})
    recipe = Recipe(
        class_ending="ForTokenClassification",
        learning_rate=2e-5,
        learning_rate_of_wide=1e-5,
        epochs=10,
        warmup=0.06,
        weight_decay=0.0,
        max_length=128,
    )
    scoring = Scoring(
        metrics=("f1", "precision", "recall"),
        in_a_cell=("f1",),
        orders=(CONLL_LANGUAGES, XTREME_LANGUAGES),
        left_out="for holding no words",
        title="Named entities, F1",
        plot_title="Named entities F1, percent",
    )
    card = CardFacts(
        name="named entities",
        heading="Named entities",
        pipeline_tag="token-classification",
        texts='"The train leaves Berlin at night."',
        shown=(
            "for piece, best in zip(batch.tokens(), output.logits[0].argmax(dim=-1).tolist()):\n"
            "    print(piece, model.config.id2label[best])  # a word has the label of its first piece"
        ),
    )
    predictions_readme = (
        "A file for each language has a word, its tag and the predicted tag per line, as conlleval reads them; white\n"
        "space within a word is written as `_`:\n\n    perl conlleval < en.conll\n"
    )

    def read(self, source: DataSource, reading: Reading, gathered: Gathered) -> None:
        """Sentences; those without words are counted."""
        opened = open_ner(
            source.source, language=source.language, labels=reading.labels, split=reading.split, config=source.config
        )
        for each in opened:
            if each.tokens:
                gathered.add(each.language, each)
            else:
                gathered.skipped[each.language] += 1

    def check_label_names(self, labels: Sequence[str] | None) -> None:
        """They are tags of entities, each once."""
        check_tags(labels or ())

    def check_scorable(self, examples: ByKey[NerExample]) -> None:
        """They need seqeval."""
        if find_spec("seqeval") is None:
            raise InputError("scores of entities need seqeval: pip install 'hf-xlmr[train]'")

    def check_known(self, examples: Sequence[NerExample], labels: Sequence[str]) -> None:
        """A tag that is none of the `labels` could never be found."""
        numbers = label_ids(labels)
        for example in examples:
            tag_ids(example, numbers)

    def labels_in(self, examples: Sequence[NerExample], known: Iterable[str] = ()) -> tuple[str, ...]:
        """All tags of the data, `O` first and the parts of a type together."""
        tags = {"O", *known, *(tag for each in examples for tag in each.tags)}
        return tuple(sorted(tags, key=lambda tag: (tag != "O", tag.partition("-")[2], tag)))

    def encode(self, examples: Sequence[NerExample], coding: Coding) -> Iterable[Row]:
        """A row for each sentence, or several for a long one."""
        return (row for _, row in _encoded(examples, coding))

    def predict(self, examples: Sequence[NerExample], coding: Coding, network: Network) -> list[list[str]]:
        """The tag with the highest logit at the first piece of each word."""
        spans: list[TaggedSpan] = []

        def rows() -> Iterable[Row]:
            for span, row in _encoded(examples, coding):
                spans.append(span)
                yield row

        (logits,) = network(rows())
        tags: list[list[str]] = [[] for _ in examples]
        for span, each in zip(spans, logits, strict=True):
            tags[span.sentence] += [coding.labels[int(each[place].argmax())] for place in span.places]
        return tags

    def score(self, key: str, examples: Sequence[NerExample], predictions: Sequence[list[str]]) -> dict[str, float]:
        """The micro averages over all entities."""
        entities = score_entities(predictions, [each.tags for each in examples])
        return {"f1": entities.f1, "precision": entities.precision, "recall": entities.recall}

    def write(self, folder: Path, examples: ByKey[NerExample], predictions: ByKey[list[str]]) -> None:
        """Write words with their tags and those predicted into a file for each language."""
        for language, several in examples.items():
            with (folder / f"{language}.conll").open("w", encoding="utf-8", newline="\n") as file:
                for each, tags in zip(several, predictions[language], strict=True):
                    rows = zip(each.tokens, each.tags, tags, strict=True)
                    file.writelines(f"{_in_one_column(word)} {tag} {predicted}\n" for word, tag, predicted in rows)
                    file.write("\n")


def _encoded(examples: Sequence[NerExample], coding: Coding) -> Iterator[tuple[TaggedSpan, Row]]:
    return encode_words(examples, coding.tokenizer, labels=coding.labels, max_length=coding.max_length)


def _in_one_column(word: str) -> str:
    return "".join("_" if character.isspace() else character for character in word) or "_"


TASK: Final = Ner()
