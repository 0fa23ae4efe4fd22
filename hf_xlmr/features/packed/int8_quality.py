"""How near vectors in int8 are to those in float32, and the error if that is too far."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from hf_xlmr.errors import InputError
from hf_xlmr.model.model_shape import INT8

__all__ = ["INT8", "LEAST_COSINE", "SAMPLE_TEXTS", "Int8Quality", "TooFarFromFloat32"]

SAMPLE_TEXTS: Final = 64
LEAST_COSINE: Final = 0.99


class TooFarFromFloat32(InputError):
    """An encoder in int8 whose vectors differ from float32's by more than was allowed."""

    def __init__(self, quality: Int8Quality, least_cosine: float) -> None:
        """Carry what was measured, and the lowest cosine that was allowed."""
        self.quality, self.least_cosine = quality, least_cosine
        super().__init__(
            f"in int8 the lowest cosine to float32 is {quality.lowest:.5f} on {quality.vectors} vectors of the sample "
            f"(mean {quality.mean:.5f}), and {least_cosine:g} was asked for; most is lost in layer "
            f"{quality.worst_layer}: use float32, or allow a lower cosine"
        )


@dataclass(frozen=True)
class Int8Quality:
    """How near the vectors of a sample in int8 are to those in float32."""

    mean: float
    """The mean cosine."""
    lowest: float
    """The lowest cosine."""
    vectors: int
    """The number of vectors that were compared."""
    worst_layer: int
    """The layer, from 1, that adds most to the difference."""
    float32_products: tuple[str, ...]
    """The products that stayed in float32, such as `3.down`, since int8 would have changed their outputs too much."""
