"""Read a pickle as data: an interpreter of its opcodes that never imports, calls or builds anything the file names.

`pickletools.genops` decodes the stream; the table at the end says what each opcode does to a stack of plain values. A
class or function in the file is a `Global`, a name and nothing more. Calling one gives an `Inert` record of the call,
except for the few rebuilders in `REBUILDERS`, which are ours and only make records. No opcode makes more than it was
given, and no stream may have more than `MOST_OPCODES`, so memory and time stay bounded.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import IO, Any, Final, NoReturn, Protocol, cast

from hf_xlmr.errors import IntegrityError

__all__ = ["Global", "Inert", "PickleStream", "StorageRef", "TensorRef", "read_pickle"]

LARGEST_INT: Final = 2**61 - 2
LARGEST_INT_KEY: Final = 4096  # larger ones can be chosen to collide in a dictionary, and nothing looks them up
LONGEST_GLOBAL: Final = 1000
MOST_DIMENSIONS: Final = 16
MOST_OPCODES: Final = 1_000_000  # a tensor takes some fifty, the largest checkpoint with its optimizer 200,000


class PickleStream(Protocol):
    """What a pickle is read from; `read` must never allocate beyond what is left of the stream."""

    def read(self, size: int, /) -> bytes:
        """Read at most `size` bytes."""

    def readline(self) -> bytes:
        """Up to and with the next newline."""

    def tell(self) -> int:
        """The position in the stream."""


@dataclass(frozen=True)
class Global:
    """A name that the file refers to; it is never looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False, repr=False, slots=True)
class Inert:
    """The record of a call or an object that the file asked for and that was not made."""

    target: object
    arguments: tuple[object, ...] = ()
    state: object = None
    added: list[object] | None = None
    """What was appended to it, and the pairs that were set on it; None for nothing."""

    def __repr__(self) -> str:  # short, whatever is inside: a few bytes can stand for a tree without end
        return f"<{self.type_name:.80}>"

    def add(self, values: Iterable[object]) -> None:
        """Keep what the file appends or sets."""
        if self.added is None:
            self.added = []
        self.added.extend(values)

    @property
    def type_name(self) -> str:
        """The dotted name of what was to be called."""
        return str(self.target) if isinstance(self.target, Global) else type(self.target).__name__


@dataclass(frozen=True)
class StorageRef:
    """A persistent id of PyTorch: the storage `key`, `count` elements of `dtype`, seen from `view_offset` on."""

    key: str
    dtype: str
    location: str
    count: int
    view_offset: int = 0


@dataclass(frozen=True)
class TensorRef:
    """A tensor as the file describes it: a strided view of a storage, all in elements."""

    storage: StorageRef
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class _Mark:
    pass


MARK: Final = _Mark()

_STORAGE_DTYPES: Final = {
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "DoubleStorage": "float64",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
_STORAGE_MODULES: Final = frozenset({"torch", "torch.cuda", "torch.storage"})


def read_pickle(stream: PickleStream, *, name: str) -> object:
    """The value of one pickle, read up to its STOP, as plain containers, `TensorRef`, `Global` and `Inert`.

    Raises IntegrityError, which calls the file `name`, where the stream is damaged or does what no checkpoint does.
    """
    machine = _Machine(name)
    try:
        for count, (opcode, argument, _position) in enumerate(pickletools.genops(cast("IO[bytes]", stream))):
            if count == MOST_OPCODES:
                machine.refuse(f"more than {MOST_OPCODES:,} opcodes")
            machine.step(opcode.name, argument)
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, AttributeError, RecursionError) as error:
        raise IntegrityError(f"{name} holds a damaged pickle: {error!s:.200}") from error
    return machine.result()


class _Machine:
    """The stack, the marks and the memo of one run."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.stack: list[object] = []
        self.memo: dict[str, object] = {}  # by text, whose hashes nobody can choose
        self.globals: dict[tuple[str, str], Global] = {}

    def step(self, opcode: str, argument: object) -> None:
        action = OPCODES.get(opcode)
        if action is None:
            self.refuse(f"the opcode {opcode}")
        action(self, argument)

    def result(self) -> object:
        if len(self.stack) != 1 or self.stack[0] is MARK:
            self.refuse("no single value at its end")
        return self.stack[0]

    def refuse(self, what: str) -> NoReturn:
        raise IntegrityError(f"{self.name} holds a pickle with {what}, which no checkpoint has")

    def push(self, value: object) -> None:
        self.stack.append(value)

    def pop(self) -> object:
        value = self.stack.pop()
        if value is MARK:
            raise ValueError("a mark where a value belongs")
        return value

    def top(self) -> object:
        value = self.stack[-1]
        if value is MARK:
            raise ValueError("a mark where a value belongs")
        return value

    def pop_to_mark(self) -> list[object]:
        for index in range(len(self.stack) - 1, -1, -1):
            if self.stack[index] is MARK:
                values = self.stack[index + 1 :]
                del self.stack[index:]
                return values
        raise ValueError("no mark on the stack")

    def named(self, module: object, name: object) -> Global:
        if not (isinstance(module, str) and isinstance(name, str)):
            raise ValueError("a global whose name is not text")
        if len(module) + len(name) > LONGEST_GLOBAL:
            raise ValueError("a global whose name is longer than any")
        return self.globals.setdefault((module, name), Global(module, name))


# ---- what values become ----------------------------------------------------------------------------------------------


def _key(value: object) -> object:
    """`value` if it is a natural dictionary key, else an inert stand-in (hashing it could take for ever)."""
    if isinstance(value, (str, bytes, bool, Global)) or value is None:
        return value
    if isinstance(value, int) and abs(value) <= LARGEST_INT_KEY:
        return value
    return Inert(target="key", arguments=(value,))


def _set_entries(target: object, entries: list[tuple[object, object]]) -> None:
    if isinstance(target, dict):
        target.update((_key(key), value) for key, value in entries)
    elif isinstance(target, Inert):
        target.add(entries)
    else:
        raise ValueError(f"entries set on a {type(target).__name__}")


def _append_items(target: object, items: list[object]) -> None:
    if isinstance(target, list):
        target.extend(items)
    elif isinstance(target, Inert):
        target.add(items)
    else:
        raise ValueError(f"items appended to a {type(target).__name__}")


def _pairs(values: list[object]) -> list[tuple[object, object]]:
    if len(values) % 2:
        raise ValueError("a key without a value")
    return list(zip(values[::2], values[1::2], strict=True))


def _call(target: object, arguments: object) -> object:
    given = arguments if isinstance(arguments, tuple) else (arguments,)
    rebuild = REBUILDERS.get(str(target)) if isinstance(target, Global) else None
    made = rebuild(given) if rebuild else None
    return Inert(target=target, arguments=given) if made is None else made


def _build(target: object, state: object) -> None:
    """Give `target` its state; plain containers have none that matters (an OrderedDict's `_metadata`)."""
    if isinstance(target, Inert):
        target.state = state


# ---- the rebuilders: they only make records; None for arguments of another form --------------------------------------


def _integers(value: object) -> tuple[int, ...] | None:
    if not isinstance(value, tuple) or len(value) > MOST_DIMENSIONS:
        return None
    return value if all(type(item) is int and 0 <= item <= LARGEST_INT for item in value) else None


def _rebuild_tensor(arguments: tuple[object, ...]) -> TensorRef | None:
    if len(arguments) < 4:
        return None
    storage, offset, shape, stride = arguments[0], arguments[1], _integers(arguments[2]), _integers(arguments[3])
    if not isinstance(storage, StorageRef) or type(offset) is not int or not 0 <= offset <= LARGEST_INT:
        return None
    if shape is None or stride is None or len(shape) != len(stride):
        return None
    return TensorRef(storage=storage, offset=offset, shape=shape, stride=stride)


def _rebuild_tensor_v3(arguments: tuple[object, ...]) -> TensorRef | None:
    """Like `_rebuild_tensor`, for a storage without a type, with the dtype as seventh argument."""
    tensor, dtype = _rebuild_tensor(arguments), arguments[6] if len(arguments) > 6 else None
    if tensor is None or not isinstance(dtype, Global) or dtype.module != "torch":
        return None
    storage = tensor.storage
    typed = StorageRef(storage.key, dtype.name, storage.location, storage.count, storage.view_offset)
    return TensorRef(storage=typed, offset=tensor.offset, shape=tensor.shape, stride=tensor.stride)


def _rebuild_parameter(arguments: tuple[object, ...]) -> TensorRef | None:
    return arguments[0] if arguments and isinstance(arguments[0], TensorRef) else None


def _rebuild_from_type(arguments: tuple[object, ...]) -> object:
    """A tensor with attributes: what rebuilds it, its type, the arguments, the attributes."""
    made = _call(arguments[0], arguments[2]) if len(arguments) == 4 else None
    return made if isinstance(made, TensorRef) else None


def _rebuild_dict(arguments: tuple[object, ...]) -> dict[object, object] | None:
    if not arguments:
        return {}
    return arguments[0] if isinstance(arguments[0], dict) else None


def _rebuild_defaultdict(arguments: tuple[object, ...]) -> dict[object, object] | None:
    return _rebuild_dict(arguments[1:])


def _rebuild_tuple(arguments: tuple[object, ...]) -> tuple[object, ...] | None:
    return arguments[0] if len(arguments) == 1 and isinstance(arguments[0], tuple) else None


REBUILDERS: Final[dict[str, Callable[[tuple[object, ...]], object]]] = {
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v3": _rebuild_tensor_v3,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": _rebuild_parameter,
    "torch._tensor._rebuild_from_type_v2": _rebuild_from_type,
    "torch.Size": _rebuild_tuple,
    "collections.OrderedDict": _rebuild_dict,
    "collections.defaultdict": _rebuild_defaultdict,
    "builtins.dict": _rebuild_dict,
    "__builtin__.dict": _rebuild_dict,
}


def _storage(pid: object) -> StorageRef | None:
    """The storage that the persistent id `("storage", type, key, location, count[, view])` names, None if it is odd."""
    if not isinstance(pid, tuple) or len(pid) not in (5, 6) or pid[0] not in ("storage", b"storage"):
        return None
    kind, key, location, count = pid[1:5]
    if not isinstance(kind, Global) or kind.module not in _STORAGE_MODULES:
        return None
    if type(count) is not int or not 0 <= count <= LARGEST_INT:
        return None
    name = _storage_key(key)
    if name is None or not isinstance(location, str):
        return None
    base = StorageRef(name, _STORAGE_DTYPES.get(kind.name, kind.name), location, count)
    return _viewed(base, pid[5] if len(pid) == 6 else None)


def _storage_key(key: object) -> str | None:
    """A storage's key as text; old files number their storages."""
    if isinstance(key, str):
        return key
    return str(key) if isinstance(key, int) and abs(key) <= LARGEST_INT else None


def _viewed(base: StorageRef, view: object) -> StorageRef | None:
    """`base` as the view `(key, offset, size)` of it that files before PyTorch 0.4 and legacy streams may name."""
    if view is None:
        return base
    if not isinstance(view, tuple) or len(view) != 3 or type(view[1]) is not int or not 0 <= view[1] <= LARGEST_INT:
        return None
    return StorageRef(base.key, base.dtype, base.location, base.count, view[1])


# ---- the opcodes -----------------------------------------------------------------------------------------------------

Action = Callable[[_Machine, Any], None]


def _push_argument(machine: _Machine, argument: object) -> None:
    machine.push(argument)


def _pushing(make: Callable[[], object]) -> Action:
    return lambda machine, _argument: machine.push(make())


def _tuple_of(count: int) -> Action:
    def act(machine: _Machine, _argument: object) -> None:
        values = [machine.pop() for _ in range(count)]
        machine.push(tuple(reversed(values)))

    return act


def _from_mark(make: Callable[[list[object]], object]) -> Action:
    return lambda machine, _argument: machine.push(make(machine.pop_to_mark()))


def _dict_of(values: list[object]) -> dict[object, object]:
    made: dict[object, object] = {}
    _set_entries(made, _pairs(values))
    return made


def _set_item(machine: _Machine, _argument: object) -> None:
    value, key = machine.pop(), machine.pop()
    _set_entries(machine.top(), [(key, value)])


def _set_items(machine: _Machine, _argument: object) -> None:
    values = machine.pop_to_mark()
    _set_entries(machine.top(), _pairs(values))


def _append(machine: _Machine, _argument: object) -> None:
    value = machine.pop()
    _append_items(machine.top(), [value])


def _appends(machine: _Machine, _argument: object) -> None:
    values = machine.pop_to_mark()
    _append_items(machine.top(), values)


def _global(machine: _Machine, argument: str) -> None:
    module, _space, name = argument.partition(" ")
    machine.push(machine.named(module, name))


def _stack_global(machine: _Machine, _argument: object) -> None:
    name, module = machine.pop(), machine.pop()
    machine.push(machine.named(module, name))


def _reduce(machine: _Machine, _argument: object) -> None:
    arguments, target = machine.pop(), machine.pop()
    machine.push(_call(target, arguments))


def _new_object(machine: _Machine, _argument: object) -> None:
    arguments, target = machine.pop(), machine.pop()
    machine.push(_call(target, arguments))


def _new_object_ex(machine: _Machine, _argument: object) -> None:
    keywords, arguments, target = machine.pop(), machine.pop(), machine.pop()
    machine.push(Inert(target=target, arguments=(arguments, keywords)))


def _instance(machine: _Machine, argument: str) -> None:
    module, _space, name = argument.partition(" ")
    machine.push(Inert(target=machine.named(module, name), arguments=tuple(machine.pop_to_mark())))


def _object(machine: _Machine, _argument: object) -> None:
    values = machine.pop_to_mark()
    machine.push(Inert(target=values[0], arguments=tuple(values[1:])))


def _build_state(machine: _Machine, _argument: object) -> None:
    state = machine.pop()
    _build(machine.top(), state)


def _persistent(machine: _Machine, _argument: object) -> None:
    pid = machine.pop()
    storage = _storage(pid)
    machine.push(Inert(target="persistent id", arguments=(pid,)) if storage is None else storage)


def _persistent_text(machine: _Machine, argument: str) -> None:
    machine.push(Inert(target="persistent id", arguments=(argument,)))


def _extension(machine: _Machine, argument: int) -> None:
    machine.push(Inert(target="extension code", arguments=(argument,)))


def _put(machine: _Machine, argument: int) -> None:
    machine.memo[str(argument)] = machine.top()


def _memoize(machine: _Machine, _argument: object) -> None:
    machine.memo[str(len(machine.memo))] = machine.top()


def _get(machine: _Machine, argument: int) -> None:
    machine.push(machine.memo[str(argument)])


def _mark(machine: _Machine, _argument: object) -> None:
    machine.push(MARK)


def _pop(machine: _Machine, _argument: object) -> None:
    machine.stack.pop()


def _pop_mark(machine: _Machine, _argument: object) -> None:
    machine.pop_to_mark()


def _duplicate(machine: _Machine, _argument: object) -> None:
    machine.push(machine.top())


def _nothing(_machine: _Machine, _argument: object) -> None:
    return


_ARGUMENT_OPCODES: Final = (
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
)

OPCODES: Final[dict[str, Action]] = {
    **dict.fromkeys(_ARGUMENT_OPCODES, _push_argument),
    "NONE": _pushing(lambda: None),
    "NEWTRUE": _pushing(lambda: True),
    "NEWFALSE": _pushing(lambda: False),
    "EMPTY_TUPLE": _pushing(tuple),
    "EMPTY_LIST": _pushing(list),
    "EMPTY_DICT": _pushing(dict),
    "EMPTY_SET": _pushing(lambda: Inert(target="set")),
    "TUPLE1": _tuple_of(1),
    "TUPLE2": _tuple_of(2),
    "TUPLE3": _tuple_of(3),
    "TUPLE": _from_mark(tuple),
    "LIST": _from_mark(list),
    "DICT": _from_mark(_dict_of),
    "FROZENSET": _from_mark(lambda values: Inert(target="frozenset", added=values)),
    "SETITEM": _set_item,
    "SETITEMS": _set_items,
    "APPEND": _append,
    "APPENDS": _appends,
    "ADDITEMS": _appends,
    "GLOBAL": _global,
    "STACK_GLOBAL": _stack_global,
    "REDUCE": _reduce,
    "NEWOBJ": _new_object,
    "NEWOBJ_EX": _new_object_ex,
    "INST": _instance,
    "OBJ": _object,
    "BUILD": _build_state,
    "BINPERSID": _persistent,
    "PERSID": _persistent_text,
    "EXT1": _extension,
    "EXT2": _extension,
    "EXT4": _extension,
    "PUT": _put,
    "BINPUT": _put,
    "LONG_BINPUT": _put,
    "MEMOIZE": _memoize,
    "GET": _get,
    "BINGET": _get,
    "LONG_BINGET": _get,
    "MARK": _mark,
    "POP": _pop,
    "POP_MARK": _pop_mark,
    "DUP": _duplicate,
    "PROTO": _nothing,
    "FRAME": _nothing,
    "STOP": _nothing,
}
