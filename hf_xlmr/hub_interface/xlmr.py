"""`XLMR`: the hub interface of fairseq, call for call, on one device or many."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import NoReturn

import torch
from torch import nn
from torch.nn.functional import log_softmax

from hf_xlmr.errors import (
    InputAssertionError,
    InputAttributeError,
    InputError,
    InputIndexError,
    InputRuntimeError,
    InputTypeError,
    InputValueError,
)
from hf_xlmr.hub_interface.alignment import AlignedFeatures, align_features, align_pieces, split_words
from hf_xlmr.hub_interface.encoder import Encoder, UnknownHead
from hf_xlmr.hub_interface.loading import ModelFiles, find_model, raise_if_no_path
from hf_xlmr.hub_interface.module_view import Options
from hf_xlmr.hub_interface.network import Placing, load_encoder
from hf_xlmr.hub_interface.task import FairseqTask, SentencepieceBpe, SourceDictionary
from hf_xlmr.progress import SILENT, Progress
from hf_xlmr.tokenizer.dictionary import MASK
from hf_xlmr.tokenizer.tokenization import ExactTokenizer, text_of_ids, text_of_symbols

WORD_BEGIN = "\u2581"
HOW_TO_GET_TOKENS = "encode gives them for a text, collate_tokens for several"
SENTENCE_TASKS = ("sentence_prediction", "sentence_ranking")  # of fairseq's; only these limit the length themselves


class TokensTooLong(InputError, ValueError, IndexError):
    """A text with more tokens than the model has positions for; fairseq's fill_mask raises IndexError for it."""

    def __init__(self, length: int, longest: int) -> None:
        """Carry both lengths, in tokens."""
        self.length, self.longest = length, longest
        super().__init__(
            f"tokens exceeds maximum length: {length} > {longest}; cut the text, or the tokens with tokens[:{longest}]"
        )


class XLMR(nn.Module):
    """XLM-R with the calls and the answers of fairseq.models.roberta.hub_interface.RobertaHubInterface.

    As in fairseq, a new model is in training mode (`.eval()` switches dropout off), and gradients flow.
    """

    def __init__(self, files: ModelFiles, encoder: Encoder, *, device: torch.device) -> None:
        """Join what is in a model folder with its loaded network; `from_pretrained` does both."""
        super().__init__()
        self.files = files
        self.model = encoder
        self.args = encoder.args = Options(**{**vars(encoder.args), **files.options})
        self.cfg = Options(model=self.args, task=self.args)
        self.register_buffer("_float_tensor", torch.zeros(1, device=device), persistent=False)

    @classmethod
    def from_pretrained(
        cls,
        model_name_or_path: str | Path,
        checkpoint_file: str | None = None,
        data_name_or_path: str | Path = ".",
        bpe: str = "sentencepiece",
        *,
        revision: str | None = None,
        dtype: torch.dtype | str = torch.float32,
        device: torch.device | str | int | None = None,
        device_map: str | Mapping[str, str | int] | None = None,
        max_memory: Mapping[str | int, str | int | None] | None = None,
        offload_folder: str | Path | None = None,
        tokens: int | None = None,
        progress: Progress = SILENT,
    ) -> XLMR:
        """Load a model, by default in float32 on the CPU.

        `model_name_or_path` is a converted folder or another Transformers folder of XLM-R's families, the id of a
        repository on the Hub, or a fairseq source: a folder (with `checkpoint_file` inside it), a `.pt` file, an
        archive, a release name such as `xlmr.large`, or `demo`; that is converted once into a cache.
        `data_name_or_path` is the folder of its dictionaries, taken from the model's folder where it begins with a dot.
        `device_map` "auto" lays the layers out over all devices within `max_memory`, with room for batches of `tokens`;
        a dictionary of modules and devices does as it says. What is offloaded cannot be trained. Raises InputError,
        IntegrityError.
        """
        placing = Placing(
            dtype=dtype,
            device=device,
            device_map=device_map,
            max_memory=max_memory,
            offload_folder=offload_folder,
            tokens=tokens,
        )
        data = _data_folder(model_name_or_path, data_name_or_path, bpe)
        files = find_model(
            model_name_or_path, checkpoint_file=checkpoint_file, data=data, revision=revision, progress=progress
        )
        encoder, main = load_encoder(files, placing)
        return cls(files, encoder, device=main)

    # ---- what it is

    _float_tensor: torch.Tensor

    @property
    def device(self) -> torch.device:
        """Where tokens go in, and what is returned comes out."""
        return self._float_tensor.device

    @property
    def max_positions(self) -> int:
        """The most tokens a text may have, `<s>` and `</s>` included: 512 for the releases."""
        return self.model.max_positions()

    @cached_property
    def task(self) -> FairseqTask:
        """The dictionaries, at fairseq's place for them. Raises InputError if the folder has none."""
        source, labels = SourceDictionary(self.files.dictionary), self.files.labels
        problem = self.files.config.get("problem_type")
        is_regression = problem == "regression" if problem else bool(getattr(self.args, "regression_target", False))
        return FairseqTask(
            source_dictionary=source,
            labels=SourceDictionary(labels.with_mask()) if labels else source if is_regression else None,
            args=self.args,
            longest=self.max_positions if getattr(self.args, "task", None) in SENTENCE_TASKS else None,
        )

    @property
    def dictionary(self) -> SourceDictionary:
        """The symbols and their ids."""
        return self.task.source_dictionary

    @property
    def tokenizer(self) -> ExactTokenizer:
        """Texts to fairseq's ids. Raises InputError if the folder has no SentencePiece model."""
        return self.files.needed_tokenizer()

    @property
    def bpe(self) -> SentencepieceBpe:
        """SentencePiece alone, as fairseq's `bpe`."""
        return SentencepieceBpe(self.files.needed_tokenizer)

    def requires_grad_(self, requires_grad: bool = True) -> XLMR:
        """Train all parameters, or leave them as they are. Raises InputError for an offloaded model to be trained."""
        self.model.requires_grad_(requires_grad)
        return self

    # ---- texts and tokens

    def encode(self, sentence: str, *addl_sentences: str, no_separator: bool = False) -> torch.Tensor:
        """The tokens of a sentence, `<s> a b c </s>`, or of several, `<s> a </s> </s> b </s>`: int64, 1-D, on the CPU.

        `no_separator` leaves out the first of two `</s>`. Nothing in a text becomes a special token, and nothing is
        cut off. `encode_batch` is much faster for many. Raises InputTypeError for what is not a text.
        """
        tokenizer = self.tokenizer
        try:
            return torch.tensor(tokenizer.encode(sentence, *addl_sentences, no_separator=no_separator))
        except InputError as error:
            raise InputTypeError(str(error)) from None

    def encode_batch(
        self, sentences: Sequence[str], *addl_sentences: Sequence[str], no_separator: bool = False
    ) -> list[torch.Tensor]:
        """`encode` of each row; `collate_tokens` makes one padded tensor of them. Raises InputError."""
        encoded = self.tokenizer.encode_batch(sentences, *addl_sentences, no_separator=no_separator)
        return [torch.tensor(ids) for ids in encoded]

    def decode(self, tokens: torch.Tensor) -> str | list[str]:
        """The text of 1-D `tokens`, or the list of texts where `</s> </s>` parts them; needs only the dictionary.

        Raises InputError, of the kind that fairseq raises: AssertionError for more dimensions, IndexError for no token.
        """
        if not isinstance(tokens, torch.Tensor):
            raise InputAttributeError(f"decode takes the 1-D tensor of one text, not {type(tokens).__name__}")
        if tokens.dim() != 1:
            raise InputAssertionError(f"decode takes the 1-D tensor of one text, not {list(tokens.shape)}")
        if tokens.is_floating_point():
            raise InputTypeError(f"decode takes ids, not {tokens.dtype}")
        added = self.files.added
        return text_of_ids(self.files.dictionary, tokens.tolist(), {} if added is None else added.spelled)

    # ---- features

    def extract_features(
        self,
        tokens: torch.Tensor,
        return_all_hiddens: bool = False,
        lang_id: Sequence[str] | None = None,
        *,
        layers: Sequence[int] | None = None,
    ) -> torch.Tensor | list[torch.Tensor]:
        """Features (batch, length, width) of `tokens`, 1-D or padded 2-D with id 1.

        With `return_all_hiddens`, a list of the embeddings and each layer's output; as in fairseq, the last is before
        the final norm in models that normalise before their layers (XL, XXL), and equals the features in the others.
        `layers` picks some of that list by index. `lang_id` is the language of each row of an X-MOD, such as
        ["sw_KE"]; without it all are en_XX, or what config.json has as `default_language`. Raises TokensTooLong, a
        ValueError, UnknownLanguage, a KeyError, and for what are not tokens an InputError of the kind that fairseq
        raises.
        """
        count = len(self.model.layers) + 1
        wanted = list(range(count)) if layers is None else _indices(layers, count)
        returns_hidden = return_all_hiddens or layers is not None
        batch = self._batch(tokens)
        features, hidden = self.model.features(batch, layers=wanted if returns_hidden else (), lang_id=lang_id)
        if not returns_hidden:
            return features.to(self.device)
        return [hidden[number].to(self.device) for number in wanted]

    def _batch(self, tokens: torch.Tensor) -> torch.Tensor:
        """`tokens` as a 2-D tensor on the device. Raises InputError, TokensTooLong."""
        if not isinstance(tokens, torch.Tensor):
            raise InputAttributeError(f"tokens are a tensor of ids, not {type(tokens).__name__}; {HOW_TO_GET_TOKENS}")
        batch = tokens.unsqueeze(0) if tokens.dim() == 1 else tokens
        if not batch.dim():
            raise InputIndexError(f"tokens are a 1-D or 2-D tensor, not a single number; {HOW_TO_GET_TOKENS}")
        if batch.shape[-1] > self.max_positions:
            raise TokensTooLong(batch.shape[-1], self.max_positions)
        shape = list(tokens.shape)
        if batch.dim() != 2:
            raise InputValueError(f"tokens are a 1-D or 2-D tensor, not of the shape {shape}; {HOW_TO_GET_TOKENS}")
        if batch.dtype not in (torch.int64, torch.int32):
            raise InputRuntimeError(f"tokens are ids in int64 or int32, not {tokens.dtype}; {HOW_TO_GET_TOKENS}")
        if not batch.numel():
            raise InputAssertionError(f"there are no tokens: the shape is {shape}; {HOW_TO_GET_TOKENS}")
        rows = self.files.rows
        if int(batch.min()) < 0 or int(batch.max()) >= rows:
            raise InputIndexError(f"tokens go from {int(batch.min())} to {int(batch.max())}, but there are {rows} rows")
        return batch.to(self.device).long()

    def extract_features_aligned_to_words(
        self,
        sentence: str,
        return_all_hiddens: bool = False,
        *,
        words: Sequence[str] | None = None,
        use_spacy: bool = False,
        lang_id: Sequence[str] | None = None,
    ) -> AlignedFeatures:
        """A vector for each word of `sentence`, `<s>` before and `</s>` after them.

        The words are runs of letters and digits and single signs, or `words`, or with `use_spacy` those of spaCy's
        English tokenizer, as in fairseq. `lang_id` is that of `extract_features`. Raises InputError, TokensTooLong.
        """
        chosen = _spacy_words(sentence) if use_spacy else split_words(sentence) if words is None else list(words)
        alignment = align_pieces(self.tokenizer, sentence, chosen)
        found = self.extract_features(self.encode(sentence), return_all_hiddens, lang_id)
        layers = [align_features(each[0], alignment) for each in ([found] if torch.is_tensor(found) else found)]
        return AlignedFeatures(
            words=("<s>", *chosen, "</s>"), vectors=torch.stack(layers) if return_all_hiddens else layers[0]
        )

    # ---- predictions

    def register_classification_head(
        self,
        name: str,
        num_classes: int | None = None,
        embedding_size: int | None = None,
        *,
        inner_dim: int | None = None,
        **_unused: object,
    ) -> None:
        """Put a fresh head `name` for `num_classes` on the model, in training mode.

        `inner_dim` is the width of its hidden layer; `embedding_size` and all others are ignored, as in fairseq.
        Raises InputError, of fairseq's kind: TypeError without `num_classes`.
        """
        self.model.register_classification_head(name, num_classes, inner_dim)

    def predict(
        self, head: str, tokens: torch.Tensor, return_logits: bool = False, lang_id: Sequence[str] | None = None
    ) -> torch.Tensor:
        """Log-probabilities (batch, classes) of the head `head`, or its logits, which regression heads need.

        A head that reads every token, as fairseq's options say (sequence_tagging, span_prediction), gives (batch,
        length, classes). `lang_id` is that of `extract_features`. Raises what `extract_features` raises, then
        UnknownHead, a KeyError.
        """
        batch = self._batch(tokens)
        if head not in self.model.classification_heads:
            raise UnknownHead(head, list(self.model.classification_heads), left=self.files.why_left_behind(head))
        features, _hidden = self.model.features(batch, lang_id=lang_id)
        logits = self.model.classified(head, features).to(self.device)
        return logits if return_logits else log_softmax(logits, dim=-1)

    def fill_mask(
        self, masked_input: str, topk: int = 5, *, lang_id: Sequence[str] | None = None
    ) -> list[tuple[str, float, str]]:
        """The `topk` best fillings of the one `<mask>`: the filled text, the probability, and what was filled in.

        As in fairseq 0.12.2 there are fewer if `<s>` or `</s>` is among the best, since it has no text; those after
        it then come with the probability of the rank before their own. `lang_id` is that of `extract_features`.
        Raises InputError, an AssertionError for another number of `<mask>`.
        """
        if not self.model.has_lm_head:
            raise InputAttributeError(
                f"{self.files.name} holds no LM head: it predicts no tokens (convert with head='none')"
            )
        tokens = self._batch(self._masked_tokens(masked_input))
        with self._in_eval_mode(), torch.no_grad():
            features, _hidden = self.model.features(tokens, lang_id=lang_id)
            logits = self.model.logits(features[:, (tokens[0] == self.task.mask_idx).to(features.device)])
        probabilities = logits[0, 0].float().softmax(dim=0)
        _raise_if_no_number(topk, most=len(probabilities))
        best = probabilities.topk(topk)
        unspelled = (self.dictionary.bos(), self.dictionary.eos())
        symbols = [self.dictionary[number] for number in best.indices.tolist() if number not in unspelled]
        scores = best.values.tolist()  # by rank, although names have lost some: Dictionary.string drops them
        return [_filled(masked_input, *each) for each in zip(symbols or [""], scores, strict=False)]

    def _masked_tokens(self, text: str) -> torch.Tensor:
        """The tokens of a text with one `<mask>`; what is before and after it is encoded by itself, as in fairseq."""
        if not isinstance(text, (str, list, tuple)):
            raise InputTypeError(f"fill_mask takes a text, not {type(text).__name__}")
        if not isinstance(text, str) or text.count(MASK) != 1:
            raise InputAssertionError(
                f"Please add one {MASK} token for the input, eg: 'He is a {MASK} guy'; {text!r} has {text.count(MASK)}"
            )
        before, after = (self.tokenizer.ids(part.rstrip()) for part in text.split(MASK))
        dictionary = self.files.dictionary
        return torch.tensor([dictionary.bos_index, *before, self.task.mask_idx, *after, dictionary.eos_index])

    def disambiguate_pronoun(self, sentence: str) -> NoReturn:
        """Raise an AssertionError, as fairseq does for all models but those of its task wsc."""
        raise InputAssertionError(
            "disambiguate_pronoun() requires a model trained with the WSC task, which no XLM-R is; to rank answers, "
            "give each of them to predict"
        )

    @contextmanager
    def _in_eval_mode(self) -> Iterator[None]:
        modes = [(module, module.training) for module in self.model.modules()]
        self.model.eval()
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode


def _raise_if_no_number(topk: object, *, most: int) -> None:
    """Raise InputError, of the kind that fairseq raises, for what is not a number of candidates."""
    if not isinstance(topk, int):
        raise InputTypeError(f"topk={topk!r}: give a whole number")
    if not 0 < topk <= most:
        kind = InputRuntimeError if topk else InputIndexError
        raise kind(f"topk={topk}: give a number from 1 to {most}, the rows of the model")


def _filled(text: str, symbol: str, score: float) -> tuple[str, float, str]:
    """One candidate: what begins a word comes with its space, any other is glued to the word before."""
    predicted = " " * symbol.startswith(WORD_BEGIN) + text_of_symbols(symbol)
    place = f" {MASK}" if f" {MASK}" in text else MASK
    return text.replace(place, predicted), score, predicted


def _indices(layers: object, count: int) -> list[int]:
    """The indices of hidden states; negative ones count from the end. Raises InputError."""
    numbers = list(layers) if isinstance(layers, Iterable) and not isinstance(layers, str) else None
    if numbers is None or any(type(number) is not int for number in numbers):
        raise InputError(f"layers={layers!r:.80}: give a list of numbers, such as [0, -1]")
    for number in numbers:
        if not -count <= number < count:
            raise InputError(f"there is no layer {number}: hidden states are numbered 0 (embeddings) to {count - 1}")
    return [number % count for number in numbers]


def _data_folder(model: str | Path, data: str | Path, bpe: str) -> Path | None:
    """Where the dictionaries are, None for next to the model: fairseq joins what begins with a dot to its folder.

    Raises InputError.
    """
    if bpe != "sentencepiece":
        raise InputError(
            f"bpe={bpe!r:.80}: XLM-R is tokenized by SentencePiece; pass bpe='sentencepiece' or leave it out"
        )
    raise_if_no_path(model_name_or_path=model, data_name_or_path=data)
    if Path(data) == Path():
        return None
    home = Path(model) if Path(model).is_dir() else Path(model).parent
    return home / data if str(data).startswith(".") else Path(data)


def _spacy_words(sentence: str) -> list[str]:
    try:
        from spacy.lang.en import English
    except ImportError:
        raise InputError("use_spacy=True needs spaCy: pip install spacy, or give the words=") from None
    return [token.text for token in English().tokenizer(sentence) if token.text.strip()]
