"""Makes an encoder whose layers multiply 8-bit integers, and compares it with float32 on a sample of texts."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import torch
from torch.nn import functional

from hf_xlmr.features.packed.encoder_weights import EncoderWeights
from hf_xlmr.features.packed.int8_linear import CalibratedLinear
from hf_xlmr.features.packed.int8_quality import INT8, SAMPLE_TEXTS, Int8Quality
from hf_xlmr.features.packed.linear_kernels import Linear
from hf_xlmr.features.packed.packed_network import Layer, PackedInputs, PackedNetwork
from hf_xlmr.features.packing import pack
from hf_xlmr.tokenizer.tokenization import ExactTokenizer

__all__ = ["quality", "quantized_network", "sample_inputs"]

SAMPLE_LENGTH: Final = 64  # tokens of a text that are compared
LARGEST_ERROR: Final = 0.05  # of a product's outputs, relative; a product with more stays in float32
SENTENCES: Final = (  # Universal Declaration of Human Rights, article 1
    "All human beings are born free and equal in dignity and rights.",
    "Alle Menschen sind frei und gleich an Würde und Rechten geboren.",
    "Tous les êtres humains naissent libres et égaux en dignité et en droits.",
    "Todos los seres humanos nacen libres e iguales en dignidad y derechos.",
    "Все люди рождаются свободными и равными в своем достоинстве и правах.",
    "يولد جميع الناس أحرارًا متساوين في الكرامة والحقوق.",
    "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता और समानता प्राप्त है।",
    "人人生而自由,在尊严和权利上一律平等。",
    "すべての人間は、生れながらにして自由であり、かつ、尊厳と権利とについて平等である。",
    "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다.",
    "Bütün insanlar hür, haysiyet ve haklar bakımından eşit doğarlar.",
    "Binadamu wote huzaliwa huru, hadhi na haki zao ni sawa.",
    "Tất cả mọi người sinh ra đều được tự do và bình đẳng về nhân phẩm và quyền.",
    "Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι στην αξιοπρέπεια και τα δικαιώματα.",
    "כל בני האדם נולדו בני חורין ושווים בערכם ובזכויותיהם.",
    "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์และสิทธิ",
)


@dataclass
class _Losses:
    """What was found while an encoder was quantized."""

    by_layer: list[float] = field(default_factory=list)
    """1 - cosine to float32 after each layer, the mean over the sample's tokens."""
    float32_products: list[str] = field(default_factory=list)

    def worst_layer(self) -> int:
        """The layer, from 1, after which the difference has grown most; 0 if only embeddings were asked for."""
        return int(np.argmax(np.diff([0.0, *self.by_layer]))) + 1 if self.by_layer else 0


def sample_inputs(
    tokenizer: ExactTokenizer, texts: Sequence[str] | None, device: torch.device, *, languages: Sequence[int]
) -> PackedInputs:
    """The first tokens of the first texts of a sample, by default of sentences in sixteen languages.

    `languages` are the numbers of their languages; if there is one, it is that of all. Raises InputError for a text
    that the tokenizer refuses.
    """
    ids, lengths = tokenizer.flat_ids(list(SENTENCES if texts is None else texts)[:SAMPLE_TEXTS])
    rows = [row[:SAMPLE_LENGTH] for row in np.split(ids, np.cumsum(lengths)[:-1])]
    sizes = np.array([len(row) for row in rows])
    numbers = np.broadcast_to(np.array(languages[:SAMPLE_TEXTS]), len(rows))
    (batch,) = pack(sizes, tokens_per_batch=int(sizes.sum()), languages=numbers)
    return PackedInputs(batch, np.concatenate([rows[text] for text in batch.texts]), device)


def quantized_network(
    weights: EncoderWeights, sample: PackedInputs, *, layers: Collection[int]
) -> tuple[PackedNetwork, dict[int, tuple[torch.Tensor, torch.Tensor]], _Losses]:
    """The encoder in int8, made layer by layer as its weights are read, what it gives for the sample, and the losses.

    For each of `layers` that is the hidden states of the sample in float32 and in int8, (tokens, width). Memory holds
    the network in int8 and one layer in float32. Raises IntegrityError.
    """
    made: list[Layer] = []
    network = PackedNetwork(weights, dtype=torch.float32, kernel=INT8, layers=made)
    losses, found, tokens = _Losses(), {}, sample.batch.tokens
    with torch.inference_mode():
        exact = near = network.embedded(sample)
        for number in range(max(layers) + 1):
            if number:
                layer, products = _calibrated(weights, number)
                exact = layer(exact, sample)
                kept = [name for name, each in products.items() if not each.quantize(largest_error=LARGEST_ERROR)]
                losses.float32_products += [f"{number}.{name}" for name in kept]
                near = layer(near, sample)
                made.append(layer)
                losses.by_layer.append(float(1 - functional.cosine_similarity(exact[:tokens], near[:tokens]).mean()))
            if number in layers:
                found[number] = (network.finished(exact, number)[:tokens], network.finished(near, number)[:tokens])
    return network, found, losses


def _calibrated(weights: EncoderWeights, number: int) -> tuple[Layer, dict[str, CalibratedLinear]]:
    """Layer `number` in float32, and its products, which can be quantized once they have computed a sample."""
    products: dict[str, CalibratedLinear] = {}

    def make(name: str, matrices: Sequence[torch.Tensor], biases: Sequence[torch.Tensor], *, activation: str) -> Linear:
        products[name] = CalibratedLinear(matrices, biases, activation=activation)
        return products[name]

    return Layer(weights, number, torch.float32, make), products


def quality(losses: _Losses, cosines: Sequence[torch.Tensor]) -> Int8Quality:
    """What the losses and the cosines of the sample's vectors say."""
    found = torch.cat(tuple(cosines))
    return Int8Quality(
        mean=float(found.mean()),
        lowest=float(found.min()),
        vectors=len(found),
        worst_layer=losses.worst_layer(),
        float32_products=tuple(losses.float32_products),
    )
