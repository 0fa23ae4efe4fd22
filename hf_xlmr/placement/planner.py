"""Which layer goes on which device, before anything is read: the fullest device is as empty as possible."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Final, TypeVar

from hf_xlmr.errors import InputError, first_of
from hf_xlmr.files.memory import CPU, DISK, Device, MaxMemory, device_label, format_size, in_order
from hf_xlmr.model.families import Task
from hf_xlmr.model.model_shape import DTYPE_BYTES, INT8, PLANNED_BYTES, ModelShape

Place = TypeVar("Place")
DEFAULT_TOKENS: Final = 4096  # eight texts of the longest kind
FEWEST_TOKENS: Final = 512  # one text: a plan for less is of no use
MOST_TOKENS: Final = 10**12
MOST_DEVICES: Final = 64
HALF: Final = "bfloat16"
MOST_GPUS_TRIED: Final = 16  # when looking for what would fit
MOST_LISTED: Final = 5  # names in a message

GPU_WORKSPACE: Final = 34 << 20
"""Bytes that cuBLAS takes of a GPU for itself, 32 MiB on Hopper and less before it, and what PyTorch's allocator rounds
up (PyTorch's notes on CUDA semantics)."""


@dataclass(frozen=True)
class DeviceShare:
    """What one device gets; all sizes are bytes."""

    device: Device
    layers: tuple[int, ...]
    modules: tuple[str, ...]
    weights: int
    activations: int
    """Room for the intermediate results of a batch, and on a GPU for what cuBLAS takes."""
    visitors: int
    """Room for the largest block that is brought here from CPU or disk when its turn comes."""
    budget: int | None
    """What the device may hold, None without a limit."""
    headroom: int | None
    """What is left; negative if it does not fit."""


@dataclass(frozen=True)
class Placement:
    """A layout of a model over devices; `device_map` is what Transformers' `from_pretrained` takes."""

    model: str
    dtype: str
    tokens: int
    """The tokens of a batch, padding included."""
    parameters: int
    weights: int
    """Bytes of all parameters and buffers, a tied matrix once."""
    fits: bool
    main_device: Device
    """Where inputs go, and where what is on CPU or disk is computed."""
    shares: tuple[DeviceShare, ...]
    device_map: dict[str, Device]
    suggestions: tuple[str, ...] = field(default=())
    """What would fit if this does not; each was tried."""

    def told(self) -> str:
        """A sentence that says whether it fits, and by how much."""
        name = f"{self.model} in {self.dtype} ({format_size(self.weights)}) with {self.tokens} tokens at a time"
        limited = [share for share in self.shares if share.headroom is not None]
        tightest = min(limited, key=lambda share: share.headroom or 0, default=None)
        if tightest is None or tightest.headroom is None:
            return f"{name} fits."
        where, room = device_label(tightest.device), tightest.headroom
        if self.fits:
            return f"{name} fits; {where} has the least room left, {format_size(room)}."
        budget = format_size(tightest.budget)
        return f"{name} does not fit: {where} would need {format_size(-room)} more than its {budget}."


class DoesNotFit(InputError):
    """The devices do not hold the model; `placement` has the numbers and what would fit."""

    def __init__(self, placement: Placement) -> None:
        """Carry the placement that came closest."""
        self.placement = placement
        options = "".join(f" {suggestion}" for suggestion in placement.suggestions)
        super().__init__(placement.told() + options)


def plan_placement(
    shape: ModelShape,
    *,
    max_memory: MaxMemory,
    dtype: str = "auto",
    tokens: int = DEFAULT_TOKENS,
    attention: str = "sdpa",
) -> Placement:
    """The best layout of `shape` over the devices of `max_memory`, as `lay_out` makes it.

    Raises DoesNotFit, with the numbers and what would fit, if the devices do not hold it; InputError.
    """
    placement = lay_out(shape, max_memory=max_memory, dtype=dtype, tokens=tokens, attention=attention)
    if not placement.fits:
        raise DoesNotFit(placement)
    return placement


def lay_out(
    shape: ModelShape,
    *,
    max_memory: MaxMemory,
    dtype: str = "auto",
    tokens: int = DEFAULT_TOKENS,
    attention: str = "sdpa",
) -> Placement:
    """The best layout of `shape`, or the one that comes closest, with what would fit instead.

    GPUs are filled first, in the order of `max_memory`: layers follow each other, the embeddings (with the head that is
    tied to them) come before them and the rest after, and of all such layouts that leave room for the activations, the
    one is taken in which the largest share (weights / memory of the device) is smallest, then the second largest, and
    so on. Where memories are equal that is the one whose fullest device holds the fewest bytes; where they are not, a
    device twice as large gets twice the bytes. Only what the GPUs cannot hold goes to the CPU, and only what that
    cannot hold to the disk; such blocks are computed on the first GPU, which then keeps room for the largest of them.
    Without GPUs, or where no GPU holds the embeddings, the CPU computes.

    `dtype` auto is the stored one; int8 is what FeatureExtractor computes in, the bare encoder on the CPU alone.
    `tokens` are those of a batch, padding included, `attention` is sdpa or eager.
    Raises InputError.
    """
    wanted = shape.dtype if dtype == "auto" else dtype
    if wanted not in PLANNED_BYTES:
        raise InputError(f"{wanted:.40} is none of the dtypes auto, {', '.join(PLANNED_BYTES)}")
    if not 1 <= tokens <= MOST_TOKENS:
        raise InputError(f"a batch has from 1 to {MOST_TOKENS:,} tokens, not {tokens!s:.40}")
    if attention not in ("sdpa", "eager"):
        raise InputError(f"{attention:.40} is none of the ways of attention sdpa and eager")
    budgets = in_order(max_memory)
    if wanted == INT8:
        shape = replace(shape, task=Task.ENCODER, has_pooler=False)
        budgets = {device: budget for device, budget in budgets.items() if device == CPU}
        if not budgets:
            raise InputError("int8 is computed on a CPU, and max_memory has none")
    if len(budgets) > MOST_DEVICES:
        raise InputError(f"{len(budgets)} devices are given; hf-xlmr plans for at most {MOST_DEVICES}")
    task = _Task(shape, wanted, tokens, attention)
    placement = _lay_out(task, budgets)
    return placement if placement.fits else replace(placement, suggestions=tuple(_suggestions(task, budgets)))


def activation_bytes(shape: ModelShape, *, tokens: int, dtype: str, attention: str = "sdpa") -> tuple[int, int]:
    """Bytes that a batch of `tokens` takes in addition to the weights: in a layer, and in a language-model head.

    With n tokens, width H, feed-forward width I, A heads, texts of at most S tokens, V words and s bytes per number,
    without gradients and with no more than one hidden state kept:
    a layer takes the larger of its attention, 8nHs, and its feed-forward, (5nH + 2nI)s, each with the mask, nS. SDPA
    keeps no scores; eager attention takes 2nSAs more in attention, nSAs in the feed-forward and s times the mask.
    The head takes (nV + 4nH)s. X-MOD's adapters, of width D, take (9nH + nI + nD)s, and nSAs more in eager attention.
    All are upper bounds of what PyTorch keeps alive at once.
    """
    item, length = PLANNED_BYTES[dtype], min(tokens, shape.longest_text)
    states, mask = tokens * shape.hidden * item, tokens * length * (1 if attention == "sdpa" else item)
    scores = 0 if attention == "sdpa" else tokens * length * shape.attention_heads * item
    feed_forward = 5 * states + 2 * tokens * shape.intermediate * item + scores
    inner = shape.intermediate + (shape.adapters.width(shape.hidden) if shape.adapters else 0)
    adapted = 9 * states + tokens * inner * item + scores if shape.adapters else 0
    layer = max(8 * states + 2 * scores, feed_forward, adapted) + mask
    head = tokens * shape.vocabulary * item + 4 * states if shape.has_lm_head else 0
    return layer, head


# ---- the layout ------------------------------------------------------------------------------------------------------

_Budgets = Mapping[Device, int | None]


@dataclass(frozen=True)
class _Task:
    """What is to be laid out, with sizes in bytes; all layers are alike."""

    shape: ModelShape
    dtype: str
    tokens: int
    attention: str

    @cached_property
    def first(self) -> int:
        return self.shape.blocks[0].nbytes(self.dtype)

    @cached_property
    def layer(self) -> int:
        return self.shape.blocks[1].nbytes(self.dtype)

    @cached_property
    def last(self) -> int:
        return self.shape.blocks[-1].nbytes(self.dtype)

    @cached_property
    def _working_and_scoring(self) -> tuple[int, int]:
        return activation_bytes(self.shape, tokens=self.tokens, dtype=self.dtype, attention=self.attention)

    @property
    def visitor(self) -> int:
        """The largest block that may be elsewhere than where it is computed, besides the embeddings."""
        return max(self.layer, self.last)

    def activations(self, device: Device, *, has_first: bool, has_last: bool) -> int:
        """The activations on a device with layers, and perhaps with what comes before or after them."""
        working, scoring = self._working_and_scoring
        return isinstance(device, int) * GPU_WORKSPACE + max(
            working, scoring if (has_first if self.shape.is_tied else has_last) else 0
        )


@dataclass(frozen=True)
class _Part:
    """What one device gets: a number of layers, perhaps with what comes before or after them."""

    device: Device
    layers: int
    has_first: bool = False
    has_last: bool = False

    def weights(self, task: _Task) -> int:
        return self.layers * task.layer + self.has_first * task.first + self.has_last * task.last

    def largest(self, task: _Task) -> int:
        return max(task.layer * bool(self.layers), self.has_first * task.first, self.has_last * task.last)


def _lay_out(task: _Task, budgets: _Budgets) -> Placement:
    """The first layout that fits, else the last that was tried."""
    placement: Placement | None = None
    for parts in _layouts(task, budgets):
        placement = _placement(task, budgets, parts)
        if placement.fits:
            return placement
    if placement is None:
        raise InputError("the disk does not compute; also give a GPU or the CPU")
    return placement


def _layouts(task: _Task, budgets: _Budgets) -> Iterator[list[_Part]]:
    """Layouts worth trying, best first; the last is what comes closest if none fits."""
    gpus: dict[Device, int] = {
        device: budget for device, budget in budgets.items() if isinstance(device, int) and budget is not None
    }
    spilled = _spilled(task, gpus, budgets)
    if gpus and (balanced := _balanced(task, gpus, is_capped=True)):
        yield balanced
    if spilled:
        yield spilled
    elif CPU in budgets:
        yield from _computed_on_cpu(task, budgets)
    elif gpus:
        yield _balanced(task, gpus, is_capped=False)


def _balanced(task: _Task, gpus: Mapping[Device, int], *, is_capped: bool) -> list[_Part]:
    """The layout over GPUs alone whose shares, sorted from the largest, are the smallest; nothing if none fits."""
    devices = list(gpus)
    spans = [devices[start : end + 1] for start in range(len(devices)) for end in range(start, len(devices))]
    tried = [_shared_out(task, {device: gpus[device] for device in span}, is_capped=is_capped) for span in spans]

    def shares(parts: list[_Part]) -> list[float]:
        return sorted((part.weights(task) / max(1, gpus[part.device]) for part in parts), reverse=True)

    return min(filter(None, tried), key=shares, default=[])


def _shared_out(task: _Task, gpus: Mapping[Device, int], *, is_capped: bool) -> list[_Part]:
    """Each layer to the device whose share stays smallest: if layers are alike, no layout is better."""
    devices = list(gpus)
    ends = [_Part(each, 0, each == devices[0], each == devices[-1]) for each in devices]
    loads = {part.device: part.weights(task) for part in ends}
    room = {
        part.device: gpus[part.device] - task.activations(part.device, has_first=part.has_first, has_last=part.has_last)
        for part in ends
    }
    if is_capped and any(loads[part.device] > room[part.device] for part in (ends[0], ends[-1])):
        return []
    counts = dict.fromkeys(devices, 0)
    for _ in range(task.shape.layers):
        able = [each for each in devices if not is_capped or loads[each] + task.layer <= room[each]]
        if not able:
            return []
        chosen = min(able, key=lambda each: (loads[each] + task.layer) / max(1, gpus[each]))
        loads[chosen] += task.layer
        counts[chosen] += 1
    return [replace(part, layers=counts[part.device]) for part in ends]


def _spilled(task: _Task, gpus: Mapping[Device, int], budgets: _Budgets) -> list[_Part]:
    """As many layers on GPUs as they hold, the others on CPU and disk; none if no GPU holds the embeddings."""
    if not {CPU, DISK} & budgets.keys():
        return []
    devices = list(gpus)
    tried = [_filled(task, {device: gpus[device] for device in devices[start:]}) for start in range(len(devices))]
    best = max(tried, key=lambda parts: sum(part.layers for part in parts), default=[])
    return [*best, *_tail(task, budgets, task.shape.layers - sum(part.layers for part in best))] if best else []


def _filled(task: _Task, gpus: Mapping[Device, int]) -> list[_Part]:
    """GPUs filled one after the other; the first keeps room for what is brought to it."""
    parts: list[_Part] = []
    left = task.shape.layers
    for device, budget in gpus.items():
        is_main = not parts
        room = budget - task.activations(device, has_first=is_main, has_last=is_main)
        room -= task.first + task.visitor if is_main else 0
        if is_main and room < 0:
            return []
        parts.append(_Part(device, min(left, max(0, room // task.layer)), has_first=is_main))
        left -= parts[-1].layers
    return parts


def _tail(task: _Task, budgets: _Budgets, count: int) -> list[_Part]:
    """`count` layers and what follows them, on the CPU, and on the disk if the CPU does not hold them."""
    if CPU not in budgets:
        return [_Part(DISK, count, has_last=True)]
    budget = budgets[CPU]
    if DISK not in budgets or budget is None or count * task.layer + task.last <= budget:
        return [_Part(CPU, count, has_last=True)]
    kept = max(0, min(count, (budget - task.visitor) // task.layer))
    return [_Part(CPU, kept), _Part(DISK, count - kept, has_last=True)]


def _computed_on_cpu(task: _Task, budgets: _Budgets) -> Iterator[list[_Part]]:
    """Layouts without a GPU: all in memory, some of it on the disk, all of it on the disk."""
    budget = budgets[CPU]
    yield [_Part(CPU, task.shape.layers, has_first=True, has_last=True)]
    if DISK not in budgets or budget is None:
        return
    room = budget - task.activations(CPU, has_first=True, has_last=True) - task.first - task.visitor
    if room >= 0:
        kept = min(task.shape.layers, room // task.layer)
        yield [_Part(CPU, kept, has_first=True), _Part(DISK, task.shape.layers - kept, has_last=True)]
    yield [_Part(CPU, 0), _Part(DISK, task.shape.layers, has_first=True, has_last=True)]


# ---- the account -----------------------------------------------------------------------------------------------------


def _placement(task: _Task, budgets: _Budgets, parts: list[_Part]) -> Placement:
    used = [part for index, part in enumerate(parts) if index == 0 or part.largest(task)]
    shares: list[DeviceShare] = []
    first_layer = 0
    for part in used:
        layers = tuple(range(first_layer, first_layer + part.layers))
        first_layer += part.layers
        shares.append(_share(task, budgets[part.device], part, layers, used))
    return Placement(
        model=task.shape.class_name,
        dtype=task.dtype,
        tokens=task.tokens,
        parameters=task.shape.parameters,
        weights=task.shape.nbytes(task.dtype),
        fits=all(share.headroom is None or share.headroom >= 0 for share in shares),
        main_device=used[0].device,
        shares=tuple(shares),
        device_map={module: share.device for share in shares for module in share.modules},
    )


def _share(task: _Task, budget: int | None, part: _Part, layers: tuple[int, ...], parts: list[_Part]) -> DeviceShare:
    computed = [part, *(each for each in parts if part is parts[0] and each.device in (CPU, DISK))]
    computes = part is parts[0] or isinstance(part.device, int)
    activations = computes * task.activations(
        part.device,
        has_first=any(each.has_first for each in computed),
        has_last=any(each.has_last for each in computed),
    )
    visitors = _visitors(task, part, parts)
    blocks = [task.shape.blocks[0]] * part.has_first
    blocks += [task.shape.blocks[1 + number] for number in layers]
    blocks += [task.shape.blocks[-1]] * part.has_last
    return DeviceShare(
        device=part.device,
        layers=layers,
        modules=tuple(module for block in blocks for module in block.modules),
        weights=part.weights(task),
        activations=activations,
        visitors=visitors,
        budget=budget,
        headroom=None if budget is None else budget - part.weights(task) - activations - visitors,
    )


def _visitors(task: _Task, part: _Part, parts: list[_Part]) -> int:
    """Room for the largest block that is brought here: to the main device from CPU and disk, to the CPU from disk."""
    sources = {CPU: (DISK,)}.get(str(part.device), (CPU, DISK) if part is parts[0] else ())
    return max((each.largest(task) for each in parts if each.device in sources), default=0)


# ---- what would fit --------------------------------------------------------------------------------------------------


def _suggestions(task: _Task, budgets: _Budgets) -> Iterator[str]:
    """Each single change that makes it fit, or half the bytes with fewer tokens; all were tried."""
    half = replace(task, dtype=HALF)
    if task.dtype != INT8 and DTYPE_BYTES[task.dtype] > DTYPE_BYTES[HALF]:
        if _lay_out(half, budgets).fits:
            yield f"It fits in {HALF} ({format_size(half.shape.nbytes(HALF))} of weights)."
        elif tokens := _fewer_tokens(half, budgets):
            yield f"It fits in {HALF} with {tokens} tokens at a time."
    if tokens := _fewer_tokens(task, budgets):
        yield f"It fits with {tokens} tokens at a time."
    if count := _more_devices(task, budgets):
        yield f"It fits on {count} GPUs of which each further one has the memory of the last."
    yield from _offloaded(task, budgets)


def _fewer_tokens(task: _Task, budgets: _Budgets) -> int:
    """The largest power of two below the batch that fits, 0 if none does."""
    tokens = 1 << (task.tokens - 1).bit_length() >> 1
    while tokens >= FEWEST_TOKENS:
        if _lay_out(replace(task, tokens=tokens), budgets).fits:
            return tokens
        tokens >>= 1
    return 0


def _more_devices(task: _Task, budgets: _Budgets) -> int:
    """How many GPUs are enough if further ones are like the last; 0 if no number up to sixteen is."""
    gpus = [device for device in budgets if isinstance(device, int)]
    further = (number for number in range(2 * MOST_DEVICES) if number not in gpus)
    more = dict(budgets)
    while gpus and len(gpus) < MOST_GPUS_TRIED:
        gpus.append(next(further))
        more[gpus[-1]] = more[gpus[-2]]
        if _lay_out(task, in_order(more)).fits:
            return len(gpus)
    return 0


def _offloaded(task: _Task, budgets: _Budgets) -> Iterator[str]:
    """CPU as large as is needed, and a disk."""
    ample = _lay_out(task, in_order({**budgets, CPU: None}))
    needed = next((share for share in ample.shares if share.device == CPU), None)
    if ample.fits and needed is not None:
        size = needed.weights + needed.activations + needed.visitors
        yield f"It fits with {format_size(size)} of memory on the CPU (cpu={-(-size // 2**30)}GiB)."
    if task.dtype != INT8 and DISK not in budgets and _lay_out(task, in_order({**budgets, DISK: None})).fits:
        yield "It fits with a part of it on disk (disk=unlimited), which is read again for every batch."


# ---- the user's own map ----------------------------------------------------------------------------------------------


def check_device_map(device_map: Mapping[str, object], shape: ModelShape) -> dict[str, Device]:
    """The map with plain devices, if it names each weight of the model once and nothing else.

    Keys are modules or weights, the empty one stands for the whole model; devices are numbers, `cuda:0`, `cpu`, `disk`,
    or torch devices. Raises InputError that lists what is missing and what is unknown.
    """
    names = [*(tensor.name for tensor in shape.tensors), *shape.tied_tensors]
    places = {key: _plain_device(key, device) for key, device in device_map.items()}
    unknown = [key for key in places if key and not any(_is_within(name, key) for name in names)]
    if unknown:
        raise InputError(f"{shape.class_name} has no {first_of(unknown, MOST_LISTED)}, which the device map places")
    missing = [name for name in names if not any(_is_within(name, key) for key in places)]
    if missing:
        modules = list(dict.fromkeys(name.rpartition(".")[0] for name in missing))
        raise InputError(f"the device map leaves out {first_of(modules, MOST_LISTED)} of {shape.class_name}")
    apart = [name for name in shape.tied_tensors if place_of(places, name) != place_of(places, shape.tied_to(name))]
    if apart:
        raise InputError(
            f"the device map parts {apart[0]} from {shape.tied_to(apart[0])}, which is the same weight; give the "
            "language-model head the device of the embeddings"
        )
    return places


def _plain_device(key: str, device: object) -> Device:
    name = str(device)
    try:
        return next(iter(in_order({int(name) if name.isdecimal() else name: 0})))
    except InputError as error:
        raise InputError(f"the device map puts {key or 'the whole model'} on {name:.40}: {error}") from error


def _is_within(name: str, key: str) -> bool:
    return not key or name == key or name.startswith(f"{key}.")


def place_of(places: Mapping[str, Place], name: str) -> Place:
    """Where a checked map puts a weight: the longest key that covers its name decides."""
    return places[max((key for key in places if _is_within(name, key)), key=len)]
