"""What the packed network computes with: the sizes of an encoder and its weights, loaded already or still in files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from hf_xlmr.errors import InputError, IntegrityError, told_plainly
from hf_xlmr.files.memory import CPU, DISK
from hf_xlmr.hub_interface.languages import adapters_of_network
from hf_xlmr.model.adapters import Adapters
from hf_xlmr.model.families import Family, family_of
from hf_xlmr.model.plain_config import raise_if_adapter, read_fields
from hf_xlmr.placement.placed_loading import checked_sources, shape_held, weight_on
from hf_xlmr.placement.planner import place_of

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from hf_xlmr.hub_interface.loading import ModelFiles
    from hf_xlmr.hub_interface.network import LoadingPlan
    from hf_xlmr.model.model_shape import ModelShape
    from hf_xlmr.model.stored_weights import StoredWeight
    from hf_xlmr.tokenizer.tokenization import ExactTokenizer

__all__ = ["EncoderWeights", "TextEncoder"]

OFFLOADED: Final = (
    "the model is offloaded to CPU or disk: features of many texts need its weights on the devices that compute; use "
    "more devices, or a smaller dtype="
)


@dataclass(frozen=True, kw_only=True)
class EncoderWeights:
    """An encoder of one of the families by its sizes, and a function that gives its weights.

    The names are those within Transformers' encoder, such as `encoder.layer.0.output.dense.weight`.
    """

    family: Family
    adapters: Adapters | None
    """The language adapters of an X-MOD."""
    layers: int
    heads: int
    hidden: int
    intermediate: int
    longest_text: int
    """In tokens."""
    activation: str
    epsilon: float
    """Of the layer norms."""
    dtype: torch.dtype
    """In which the embeddings of tokens and positions are added up."""
    device: torch.device
    """Where the ids of tokens go in."""
    is_in_memory: bool
    """Whether the weights are in memory already, so that taking them costs nothing."""
    weight: Callable[[str], torch.Tensor]
    """The weight of that name in `dtype`, on its device. Raises IntegrityError."""
    table: Callable[[str], torch.Tensor]
    """A table of embeddings, on its device in any dtype: rows of it are taken and cast. Raises IntegrityError."""

    @classmethod
    def of_network(cls, base: torch.nn.Module, *, device: torch.device, longest_text: int) -> EncoderWeights:
        """The encoder `base` of Transformers, whose weights are shared. Raises InputError if it is offloaded."""
        network: Any = base
        config = network.config
        if any(parameter.is_meta for parameter in network.parameters()):
            raise InputError(OFFLOADED)

        def weight(name: str) -> torch.Tensor:
            found: torch.Tensor = network.get_parameter(name)
            return found.detach()

        family = family_of(config.to_dict())
        assert family is not None
        return cls(
            family=family,
            adapters=adapters_of_network(network),
            layers=len(network.encoder.layer),
            heads=config.num_attention_heads,
            hidden=config.hidden_size,
            intermediate=config.intermediate_size,
            longest_text=longest_text,
            activation=str(config.hidden_act),
            epsilon=config.layer_norm_eps,
            dtype=next(network.parameters()).dtype,
            device=device,
            is_in_memory=True,
            weight=weight,
            table=weight,
        )

    @classmethod
    def of_files(cls, files: ModelFiles, plan: LoadingPlan) -> EncoderWeights:
        """The encoder of a model folder; its weights are read when they are asked for, without Transformers' classes.

        On the CPU the tables of embeddings stay mapped from their files, which may not be overwritten in place while
        they are in use. Raises InputError, IntegrityError, WeightsMismatch.
        """
        import torch

        from hf_xlmr.model.precision import warn_of_emulation

        with told_plainly(), files.named():
            raise_if_adapter(files.folder)
            fields = read_fields(files.folder, read=files.config)
            shape = shape_held(files.folder, files.shape)
            _raise_if_heads_do_not_divide(shape, files.folder)
            sources = checked_sources(files.folder, shape)
            stored = _StoredEncoder(shape.base, sources, plan.device_map, getattr(torch, plan.dtype))
            stored.raise_if_offloaded()
            warn_of_emulation(stored.dtype, plan.main)
        given = {**shape.family.defaults, **fields}
        return cls(
            family=shape.family,
            adapters=shape.adapters,
            layers=shape.layers,
            heads=shape.attention_heads,
            hidden=shape.hidden,
            intermediate=shape.intermediate,
            longest_text=shape.longest_text,
            activation=str(given["hidden_act"]),
            epsilon=given["layer_norm_eps"],
            dtype=stored.dtype,
            device=plan.main,
            is_in_memory=False,
            weight=stored.weight,
            table=stored.table,
        )


@dataclass(frozen=True)
class _StoredEncoder:
    """The weights of an encoder in their files, and where each goes."""

    base: str
    sources: Mapping[str, StoredWeight]
    device_map: Mapping[str, Any]
    dtype: torch.dtype

    def raise_if_offloaded(self) -> None:
        """Raise InputError if a weight of the encoder is kept where it is not computed with."""
        pooler = f"{self.base}pooler."
        used = [name for name in self.sources if name.startswith(self.base) and not name.startswith(pooler)]
        places = {str(place_of(self.device_map, name)) for name in used}
        if DISK in places or (CPU in places and len(places) > 1):
            raise InputError(OFFLOADED)

    def weight(self, name: str) -> torch.Tensor:
        source, place = self._place(name)
        with told_plainly():
            return weight_on(place, source, self.dtype)

    def table(self, name: str) -> torch.Tensor:
        source, place = self._place(name)
        with told_plainly():
            return source.mapped() if str(place) == CPU else self.weight(name)

    def _place(self, name: str) -> tuple[StoredWeight, Any]:
        return self.sources[self.base + name], place_of(self.device_map, self.base + name)


@dataclass(frozen=True)
class TextEncoder:
    """What features of texts need of a model: the encoder's weights, and the tokenizer."""

    weights: EncoderWeights
    tokenizer: ExactTokenizer

    @classmethod
    def of_files(cls, files: ModelFiles, plan: LoadingPlan) -> TextEncoder:
        """Those of a model folder, by the plan. Raises InputError, IntegrityError, WeightsMismatch."""
        return cls(EncoderWeights.of_files(files, plan), files.needed_tokenizer())


def _raise_if_heads_do_not_divide(shape: ModelShape, folder: Path) -> None:
    if shape.hidden % shape.attention_heads:
        raise IntegrityError(
            f"{folder}/config.json is damaged: hidden_size is {shape.hidden}, which is not a multiple of "
            f"num_attention_heads ({shape.attention_heads})"
        )
