"""Plain Transformers' network over a folder, each module's weights read when it is called and gone afterwards."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from hf_xlmr.conversion.output.safetensors_writer import DTYPE_NAMES
from hf_xlmr.errors import IntegrityError
from hf_xlmr.model.plain_config import plain_config, raise_if_adapter, raise_if_without_pooler
from hf_xlmr.model.safetensors_files import TensorEntry, file_header
from hf_xlmr.model.stored_weights import present_name

if TYPE_CHECKING:
    import torch

__all__ = ["TallProduct", "WeightFiles", "layerwise_network", "tall_product"]

DTYPES: Final = {code: name for name, code in DTYPE_NAMES.items()}
BAND: Final = 1 << 14  # rows of a tall matrix that are in memory at a time


def layerwise_network(folder: Path, class_name: str, **options: object) -> torch.nn.Module:
    """The folder as Transformers' `class_name`, in evaluation mode and float32, with no weight in memory.

    Transformers itself builds the network and says which of its weights the folder's files hold; only reading them is
    put off until a module is called. Of the token embeddings just the rows in question are read, and the output
    projection takes a band of rows at a time. Raises InputError if this Transformers cannot run the class,
    IntegrityError where it would miss or ignore a weight.
    """
    import transformers
    from accelerate import init_empty_weights

    loader, config = getattr(transformers, class_name), plain_config(folder)
    _raise_if_unbalanced(loader, folder, {"config": config, **options})
    with init_empty_weights(include_buffers=False):
        network: Any = loader(config, **options)
    files, buffers = WeightFiles.of(folder), _Buffers()
    tied: Mapping[str, str] = network.all_tied_weights_keys
    for prefix, module in network.named_modules():
        own = [name for name, _parameter in module.named_parameters(recurse=False)]
        keys = {name: f"{prefix}.{name}" for name in own}
        if keys:
            readers = {name: files.reader(tied.get(key, key)) for name, key in keys.items()}
            if module is network.get_input_embeddings():
                _look_up_rows(module, readers["weight"])
            elif _is_tall(module):
                module.forward = TallProduct(readers["weight"], readers.get("bias"))
            else:
                _read_when_called(module, readers, buffers)
    network.eval()
    return network  # type: ignore[no-any-return]


def _is_tall(module: torch.nn.Module) -> bool:
    """Whether a matrix has more rows than a layer's would: the projection onto the vocabulary."""
    from torch.nn import Linear

    return isinstance(module, Linear) and module.out_features > BAND


def _raise_if_unbalanced(loader: Any, folder: Path, options: Mapping[str, object]) -> None:
    """Raise IntegrityError if Transformers' own loader finds names missing, left over or of another shape."""
    raise_if_adapter(folder)
    network, info = loader.from_pretrained(
        folder, device_map="meta", output_loading_info=True, local_files_only=True, use_safetensors=True, **options
    )
    raise_if_without_pooler(network)
    faults = [
        f"{kind.replace('_', ' ')}: {', '.join(sorted(map(str, names)))}" for kind, names in info.items() if names
    ]
    if faults:
        raise IntegrityError(f"Transformers does not load {folder} in full: {'; '.join(faults)}")


# ---- weights in safetensors files ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Reader:
    """One weight in a safetensors file."""

    path: Path
    name: str
    entry: TensorEntry

    def height(self) -> int:
        """How many rows it has."""
        from safetensors import safe_open

        with safe_open(self.path, framework="pt") as file:
            return int(file.get_slice(self.name).get_shape()[0])

    def whole(self, buffers: _Buffers) -> torch.Tensor:
        """All of it, in float32, in one of the `buffers`.

        Opening a file by safetensors would read its header again for each of thousands of adapters.
        """
        import torch

        buffer, dtype = buffers.take(self.entry.shape), getattr(torch, DTYPES[self.entry.dtype])
        stored = buffer if dtype == buffer.dtype else torch.empty(self.entry.shape, dtype=dtype)
        with self.path.open("rb") as file:
            file.seek(self.entry.start)
            file.readinto(stored.view(torch.uint8).numpy().data)
        return buffer if stored is buffer else buffer.copy_(stored)

    def rows(self, numbers: list[int]) -> torch.Tensor:
        """These rows, in float32."""
        import torch
        from safetensors import safe_open

        with safe_open(self.path, framework="pt") as file:
            table = file.get_slice(self.name)
            return torch.cat([table[number : number + 1] for number in numbers]).float()

    def band(self, first: int, last: int) -> torch.Tensor:
        """The rows from `first` to before `last`, as they are stored."""
        from safetensors import safe_open

        with safe_open(self.path, framework="pt") as file:
            return file.get_slice(self.name)[first:last]  # type: ignore[no-any-return]  # safetensors has no types


@dataclass(frozen=True)
class WeightFiles:
    """Which file of a folder holds which weight, by the name that its class has for it."""

    places: Mapping[str, tuple[Path, str, TensorEntry]]
    """The file, the name in it, and what its header says."""

    @classmethod
    def of(cls, folder: Path) -> WeightFiles:
        """The weights of the model in `folder`."""
        files = sorted(folder.glob("model*.safetensors"))
        headers = [(path, file_header(path)) for path in files]
        return cls(
            {present_name(name): (path, name, entry) for path, header in headers for name, entry in header.items()}
        )

    def reader(self, name: str) -> _Reader:
        """The weight `name`. Raises IntegrityError."""
        if name not in self.places:
            raise IntegrityError(f"the folder's files hold no {name}, which Transformers' network has")
        return _Reader(*self.places[name])


# ---- reading them when a module is called ----------------------------------------------------------------------------


class _Buffers:
    """Memory for weights that come and go, kept by shape: the allocator would not give all of it back between them."""

    def __init__(self) -> None:
        self._free: defaultdict[tuple[int, ...], list[torch.Tensor]] = defaultdict(list)

    def take(self, shape: Iterable[int]) -> torch.Tensor:
        import torch

        free = self._free[tuple(shape)]
        return free.pop() if free else torch.empty(*shape)

    def give_back(self, buffer: torch.Tensor) -> None:
        self._free[tuple(buffer.shape)].append(buffer)


def _read_when_called(module: torch.nn.Module, readers: Mapping[str, _Reader], buffers: _Buffers) -> None:
    """Let `module` have its weights from the file while it is called.

    For no tokens, which X-MOD gives the adapters of languages that no text is in, nothing is read.
    """
    from torch.nn import Parameter

    def fill(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        for name, reader in readers.items():
            weight = reader.whole(buffers) if inputs[0].numel() else buffers.take(reader.entry.shape)
            setattr(module, name, Parameter(weight, requires_grad=False))

    def empty(module: torch.nn.Module, _inputs: object, _output: object) -> None:
        for name, parameter in list(module.named_parameters(recurse=False)):
            buffers.give_back(parameter.data)
            setattr(module, name, Parameter(parameter.to("meta"), requires_grad=False))

    module.register_forward_pre_hook(fill)
    module.register_forward_hook(empty)


def _look_up_rows(module: torch.nn.Module, reader: _Reader) -> None:
    """Give the embedding a table of the rows that are asked for, and their numbers in it instead of the ids."""
    import torch

    whole = module.weight

    def fill(module: torch.nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        wanted, places = torch.unique(inputs[0], return_inverse=True)
        module.weight = torch.nn.Parameter(reader.rows(wanted.tolist()), requires_grad=False)
        return (places,)

    def empty(module: torch.nn.Module, _inputs: object, _output: object) -> None:
        module.weight = whole

    module.register_forward_pre_hook(fill)
    module.register_forward_hook(empty)


class TallProduct:
    """The product with the matrix before the logits, a band of its rows at a time.

    Where `is_postponed`, a call computes nothing: it keeps its input as `values` and returns `stand_in`, zeros of the
    right shape, for whoever asks for one `band` after another.
    """

    def __init__(self, weight: _Reader, bias: _Reader | None) -> None:
        """Multiply with `weight` and add `bias`, as the files hold them."""
        import torch

        self.is_postponed = False
        self.values, self.stand_in = torch.empty(0), torch.empty(0)
        self._weight, self._height = weight, weight.height()
        self._bias = None if bias is None else bias.band(0, bias.height()).float()

    def __call__(self, values: torch.Tensor) -> torch.Tensor:
        """The whole product, or its stand-in."""
        import torch

        if self.is_postponed:
            self.values, self.stand_in = values, torch.zeros(()).expand(*values.shape[:-1], self._height)
            return self.stand_in
        product = torch.empty(*values.shape[:-1], self._height)
        for first in range(0, self._height, BAND):
            last = min(first + BAND, self._height)
            product[..., first:last] = self.band(values, first, last)
        return product

    def band(self, values: torch.Tensor, first: int, last: int) -> torch.Tensor:
        """The columns from `first` to before `last` of the product with `values`."""
        from torch.nn.functional import linear

        bias = None if self._bias is None else self._bias[first:last]
        return linear(values, self._weight.band(first, last).float(), bias)


def tall_product(network: torch.nn.Module) -> TallProduct | None:
    """What computes the logits of a layer-wise network in bands; None if no matrix of it is that tall."""
    computed = (module.forward for module in network.modules())
    return next((forward for forward in computed if isinstance(forward, TallProduct)), None)
