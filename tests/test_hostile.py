"""Files that fight back: whatever they hold, nothing of it runs, memory and time stay bounded, and one sentence tells.

Each payload goes through the real program in a process that is watched (`fuzzing/watched.py`). "same" means that the
payload is no part of the model, which then must come out as from the clean file; "refused" means exit 1 or 2.
"""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import pickle
import re
import struct
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from hashlib import sha256
from pathlib import Path

import pytest
from factory import SYMBOLS, E
from fuzzing.formats import (
    Record,
    State,
    binget,
    clean_state,
    integer,
    ints,
    legacy_file,
    long_binput,
    pair,
    raw_zip,
    records_of,
    storage,
    tensor,
    text,
    tuple_of,
)
from fuzzing.messages import charsmap, message, piece, sentencepiece
from fuzzing.watched import CANARY, Outcome, Watched

MEMORY = 450_000_000  # beyond the size of the file
EFFORT = 400  # of `inspect demo`: unfolding the largest archive that is read takes 50
LONGEST_SENTENCE = 25_000
NORM = f"{E}layernorm_embedding.weight"  # one vector of 16
EMBEDDING = f"{E}embed_tokens.weight"
CONTAINERS = ("zip", "legacy")
C = CANARY.encode()


# ---- running ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    watched = Watched(tmp_path_factory.mktemp("watched"))
    yield watched
    watched.close()


@pytest.fixture(scope="module")
def clean(program: Watched, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """The files that the clean checkpoint becomes, by container."""
    found = {}
    for container in CONTAINERS:
        folder = tmp_path_factory.mktemp(container)
        write(folder / "m", clean_state().file(container))
        outcome = program.run("convert", folder / "m", folder / "out", "--no-verify")
        assert (outcome.code, outcome.stderr, outcome.did) == (0, "", ())
        found[container] = contents(folder / "out")
    return found


def write(folder: Path, model: bytes, *, symbols: tuple[str, ...] = SYMBOLS) -> None:
    folder.mkdir()
    (folder / "model.pt").write_bytes(model)
    (folder / "dict.txt").write_text("".join(f"{symbol} 1\n" for symbol in symbols), encoding="utf-8")


def contents(folder: Path) -> dict[str, str]:
    """What is in a converted folder, but for the size and hash of the checkpoint that its record and card keep."""
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        data = path.read_bytes()
        if path.name == "conversion.json":
            record = json.loads(data)
            del record["source"]
            data = json.dumps(record, sort_keys=True).encode()
        if path.name == "README.md":
            data = re.sub(rb"^## What it was made from$.*?(?=^## )", b"", data, flags=re.DOTALL | re.MULTILINE)
        found[path.relative_to(folder).as_posix()] = sha256(data).hexdigest()
    return found


def check(outcome: Outcome, size: int, *, expected: str) -> None:
    """What holds for every run: nothing done, bounded, one printable sentence or none."""
    assert outcome.did == ()
    assert outcome.effort < EFFORT
    assert outcome.peak_bytes < size + MEMORY
    if expected == "same":
        assert (outcome.code, outcome.stderr) == (0, "")
    else:
        assert outcome.code in ((1, 2) if expected == "refused" else (0, 1, 2)), outcome.stderr[-3000:]
    if outcome.code:
        assert outcome.stdout == ""
        assert outcome.stderr.startswith("hf-xlmr: ") and outcome.stderr.endswith("\n")
        assert outcome.stderr[:-1].isprintable() and len(outcome.stderr) < LONGEST_SENTENCE
    else:
        assert "\x1b" not in outcome.stdout


def run_both(
    program: Watched, folder: Path, *, expected: str, options: tuple[str, ...] = (), inspects: bool = True
) -> Outcome:
    """Convert and inspect the source `m` in a folder; gives how the conversion went."""
    before = sorted(folder.rglob("*"))
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    converted = program.run("convert", folder / "m", folder / "out", "--no-verify", *options)
    check(converted, size, expected=expected)
    if inspects:
        check(program.run("inspect", folder / "m"), size, expected="any")
    if converted.code:
        assert sorted(folder.rglob("*")) == before, "nothing is left behind"
    return converted


# ---- calls: each leaves one value on the stack, and would strike the canary if it were made --------------------------

GIVEN = b"(Vx\nt"
CALLS: dict[str, bytes] = {
    "GLOBAL and REDUCE": b"c%b\nstrike\n" % C + GIVEN + b"R",
    "STACK_GLOBAL": text(CANARY) + text("strike") + b"\x93" + GIVEN + b"R",
    "STACK_GLOBAL of memoized names": (
        text(CANARY) + long_binput(9001) + b"0" + text("strike") + long_binput(9002) + b"0"
        + binget(9001) + binget(9002) + b"\x93" + GIVEN + b"R"
    ),
    "INST": b"(Vx\ni%b\nstrike\n" % C,
    "OBJ": b"(c%b\nStriker\nVx\no" % C,
    "NEWOBJ": b"c%b\nStriker\n" % C + GIVEN + b"\x81",
    "NEWOBJ_EX": b"c%b\nStriker\n" % C + GIVEN + b"}\x92",
    "BUILD with __setstate__": b"c%b\nStriker\n)\x81}(" % C + pair("__setstate__", b"c%b\nstrike\n" % C) + b"ub",
    "BUILD with slots": b"c%b\nStriker\n)\x81N}(" % C + pair("__class__", b"c%b\nStriker\n" % C) + b"u\x86b",
    "BUILD twice": b"c%b\nStriker\n)\x81}b}b" % C,
    "BUILD on a Namespace with __class__": (
        b"cargparse\nNamespace\n)\x81}(" + pair("__class__", b"c%b\nStriker\n" % C) + pair("__dict__", b"}") + b"ub"
    ),
    "BUILD on an OrderedDict": (
        b"ccollections\nOrderedDict\n)R}(" + pair("__setstate__", b"c%b\nstrike\n" % C) + pair("__reduce__", b"N")
            + b"ub"
    ),
    "a dotted name": b"c%b\nStriker.Deep.strike\n" % C + GIVEN + b"R",
    "a dotted name by STACK_GLOBAL": text(CANARY) + text("Striker.Deep.strike") + b"\x93" + GIVEN + b"R",
    "a dotted module": b"c%b.Striker\nDeep\n" % C + GIVEN + b"R",
    "a name with a line end": text(f"{CANARY}\nstrike") + text("x\ny") + b"\x93" + GIVEN + b"R",
    "a module called nothing": text("") + text("") + b"\x93" + GIVEN + b"R",
    "os.system": b"cposix\nsystem\n(Vtouch $HOSTILE_CANARY\ntR",
    "nt.system": b"cnt\nsystem\n(Vtouch $HOSTILE_CANARY\ntR",
    "subprocess": b"csubprocess\nPopen\n((lVtouch\naVstruck\natR",
    "exec": b"cbuiltins\nexec\n(Vimport %b\ntR" % C,
    "eval of Python 2": b"c__builtin__\neval\n(V__import__('%b')\ntR" % C,
    "__import__": b"cbuiltins\n__import__\n(V%b\ntR" % C,
    "import_module": b"cimportlib\nimport_module\n(V%b\ntR" % C,
    "runpy": b"crunpy\nrun_module\n(V%b\ntR" % C,
    "pydoc.locate": b"cpydoc\nlocate\n(V%b.strike\ntR" % C,
    "getattr": b"cbuiltins\ngetattr\n(c%b\nStriker\nVDeep\ntR" % C,
    "attrgetter": b"coperator\nattrgetter\n(VDeep.strike\ntR(c%b\nStriker\ntR" % C,
    "methodcaller": b"coperator\nmethodcaller\n(Vstrike\ntR(c%b\nStriker\ntR" % C,
    "partial": b"cfunctools\npartial\n(c%b\nstrike\ntR)R" % C,
    "map and list": b"cbuiltins\nlist\n(cbuiltins\nmap\n(c%b\nstrike\n(lVx\natRtR" % C,
    "apply": b"c__builtin__\napply\n(c%b\nstrike\n)tR" % C,
    "torch.load": b"ctorch.serialization\nload\n(V/tmp/x\ntR",
    "torch.hub": b"ctorch.hub\nload\n(Vevil/repository\nVmodel\ntR",
    "numpy's reconstruct": b"cnumpy.core.multiarray\n_reconstruct\n(c%b\nStriker\n(K\x00tVb\ntR" % C,
    "pickle in pickle": b"c_pickle\nloads\n(" + text(b"c%b\nstrike\n)R." % C) + b"tR",
    "copyreg": b"ccopyreg\n_reconstructor\n(c%b\nStriker\nc__builtin__\nobject\nNtR" % C,
    "copy_reg of Python 2": b"ccopy_reg\n_reconstructor\n(c%b\nStriker\nc__builtin__\nobject\nNtR" % C,
    "an extension that is registered": b"ccopyreg\nadd_extension\n(V%b\nVstrike\nK\x01tR0\x82\x01" % C,
    "EXT1": b"\x82\x01)R",
    "EXT2": b"\x83\x01\x01)R",
    "EXT4": b"\x84\x01\x00\x00\x7f)R",
    "webbrowser": b"cwebbrowser\nopen\n(Vhttp://localhost/\ntR",
    "ctypes": b"cctypes\nCDLL\n(Vlibc.so.6\ntR",
    "marshal": b"ctypes\nFunctionType\n(cmarshal\nloads\n(Vx\ntR}tR",
    "weakref": b"cweakref\nfinalize\n(c%b\nStriker\nc%b\nstrike\ntR" % (C, C),
    "a default factory": b"ccollections\ndefaultdict\n(c%b\nstrike\ntR" % C,
    "a rebuilder of tensors that calls": (
        b"ctorch._tensor\n_rebuild_from_type_v2\n(c%b\nstrike\nc%b\nStriker\n)}tR" % (C, C)
    ),
    "ourselves": b"chf_xlmr.conversion.recipe\nconvert\n(Vdemo\nVstruck\ntR",
    "modules with jokes": b"(cantigravity\nfly\ncthis\ns\nt",
    "a call of a call": b"c%b\nstrike\n)R)R)R" % C,
    "a list appended to a call": b"c%b\nStriker\n)\x81(Vx\ne" % C,
    "entries set on a call": b"c%b\nStriker\n)\x81(Vx\nVy\nu" % C,
    "a set of calls": b"\x8f(c%b\nstrike\n)R\x90" % C,
    "a frozen set of calls": b"(c%b\nstrike\n)R\x91" % C,
    "a persistent id that is a call": b"c%b\nstrike\n)RQ" % C,
    "a persistent id in text": b"P%b.strike()\n" % C,
    "a persistent id of six": tuple_of(text("storage"), *[b"c%b\nstrike\n" % C] * 5) + b"Q",
    "a storage of an evil type": storage("0", 4, kind=b"c%b\nStriker\n" % C),
    "a storage of an evil location": storage("0", 4, location=b"c%b\nstrike\n)R" % C),
    "a memo overwritten": (
        text("harmless") + long_binput(77) + b"0c%b\nstrike\n" % C + long_binput(77) + b"0" + binget(77) + b")R"
    ),
    "a memo index beyond all": b"c%b\nstrike\n" % C + long_binput(2**32 - 1) + b"0" + binget(2**32 - 1) + b")R",
}  # fmt: skip

# Where a call may stand: a change of the clean checkpoint, and what must come of it.
Change = Callable[[State, bytes], None]


def in_extra_state(state: State, call: bytes) -> None:
    state.more.append(pair("extra_state", b"}(" + pair("meter", call) + b"u"))


def as_a_key(state: State, call: bytes) -> None:
    state.more.append(call + b"N")


def as_the_args(state: State, call: bytes) -> None:
    state.args = call


def inside_of_the_args(state: State, call: bytes) -> None:
    state.args = state.args[:-1] + b"(" + pair("evil", call) + b"ub"


def as_a_weight(state: State, call: bytes) -> None:
    state.model[NORM] = call


def as_the_name_of_a_weight(state: State, call: bytes) -> None:
    state.model[call] = state.model[NORM]


def as_backward_hooks(state: State, call: bytes) -> None:
    state.model[NORM] = tensor(storage("3", 16), (16,), hooks=call)


def as_a_storage(state: State, call: bytes) -> None:
    state.model[NORM] = tensor(call, (16,))


def as_an_offset(state: State, call: bytes) -> None:
    state.model[NORM] = tensor(storage("3", 16), (16,), offset=call)


def as_a_shape(state: State, call: bytes) -> None:
    state.model[NORM] = tensor(storage("3", 16), tuple_of(call), (1,))


def as_a_parameter(state: State, call: bytes) -> None:
    state.model[NORM] = b"ctorch._utils\n_rebuild_parameter\n" + tuple_of(call, b"\x88", call) + b"R"


def as_a_state_of_the_weights(state: State, call: bytes) -> None:
    state.built = b"}(" + pair("_metadata", call) + b"ub"


def as_items_of_a_dictionary(state: State, call: bytes) -> None:
    state.more.append(pair("x", b"ccollections\nOrderedDict\n(" + call + b"tR"))


def before_all(state: State, call: bytes) -> None:
    state.before = call + b"0"


def instead_of_all(state: State, call: bytes) -> None:
    state.after = b"0" + call


PLACES: dict[str, tuple[Change, str]] = {
    "in extra_state": (in_extra_state, "same"),
    "as a key": (as_a_key, "same"),
    "as the args": (as_the_args, "refused"),
    "inside of the args": (inside_of_the_args, "same"),
    "as a weight": (as_a_weight, "refused"),
    "as the name of a weight": (as_the_name_of_a_weight, "refused"),
    "as backward hooks": (as_backward_hooks, "same"),
    "as a storage": (as_a_storage, "refused"),
    "as an offset": (as_an_offset, "refused"),
    "as a shape": (as_a_shape, "refused"),
    "as a parameter": (as_a_parameter, "refused"),
    "as a state of the weights": (as_a_state_of_the_weights, "same"),
    "as items of a dictionary": (as_items_of_a_dictionary, "same"),
    "before all": (before_all, "same"),
    "instead of all": (instead_of_all, "refused"),
}
# Every call in two places, every place with several calls.
CASES = [
    (call, place)
    for number, call in enumerate(CALLS)
    for place in dict.fromkeys(list(PLACES)[step % len(PLACES)] for step in (number, number + 4))
]


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize(("call", "place"), CASES)
def test_nothing_that_a_pickle_names_is_run(
    call: str, place: str, container: str, program: Watched, clean: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    change, expected = PLACES[place]
    state = clean_state()
    change(state, CALLS[call])
    write(tmp_path / "m", state.file(container))
    has_evil_storage = call.startswith("a storage of an evil") and container == "legacy"  # its type is needed there
    if call.startswith("a storage of an evil") and expected == "refused":
        expected = "any"  # an unknown type in the right place, or a location that does not matter
    run_both(program, tmp_path, expected="any" if has_evil_storage else expected, inspects=container == "zip")
    if expected == "same" and not has_evil_storage:
        assert contents(tmp_path / "out") == clean[container]


def test_the_canary_would_sing(program: Watched) -> None:
    """The proof that the checks can fail: run by pickle itself, these calls do strike it."""
    for name in ("GLOBAL and REDUCE", "STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "a dotted name by STACK_GLOBAL", "exec"):
        code = "import pickle, sys; pickle.loads(bytes.fromhex(sys.argv[1]))"
        data = b"\x80\x04" + CALLS[name] + b"."
        environment = {"PYTHONPATH": str(program.canary.parent), "HOSTILE_CANARY": str(program.canary)}
        subprocess.run([sys.executable, "-B", "-c", code, data.hex()], check=True, env=environment)
        assert program.canary.exists(), name
        program.canary.unlink()


# ---- arguments of the rebuilders that are allowed --------------------------------------------------------------------

REBUILT: dict[str, tuple[bytes, str]] = {
    "no arguments": (b"ctorch._utils\n_rebuild_tensor_v2\n)R", "refused"),
    "arguments that are no tuple": (b"ctorch._utils\n_rebuild_tensor_v2\nK\x01R", "refused"),
    "a list for a shape": (tensor(storage("3", 16), b"](K\x10e", (1,)), "refused"),
    "a shape of text": (tensor(storage("3", 16), tuple_of(text("16")), (1,)), "refused"),
    "a shape of floats": (tensor(storage("3", 16), tuple_of(b"G@0\0\0\0\0\0\0"), (1,)), "refused"),
    "a shape of booleans": (tensor(storage("3", 16), tuple_of(b"\x88"), (1,)), "refused"),
    "a negative shape": (tensor(storage("3", 16), (-16,), (1,)), "refused"),
    "a negative stride": (tensor(storage("3", 16), (16,), (-1,), offset=15), "refused"),
    "a negative offset": (tensor(storage("3", 16), (16,), (1,), offset=-4), "refused"),
    "an offset beyond": (tensor(storage("3", 16), (16,), (1,), offset=4), "refused"),
    "a giant offset": (tensor(storage("3", 16), (16,), (1,), offset=2**200), "refused"),
    "fewer strides than sizes": (tensor(storage("3", 16), (16,), ()), "refused"),
    "no dimensions": (tensor(storage("3", 16), (), ()), "refused"),
    "a thousand dimensions": (tensor(storage("3", 16), (1,) * 1000, (1,) * 1000), "refused"),
    "sixteen dimensions": (tensor(storage("3", 16), (1,) * 15 + (16,), (1,) * 16), "refused"),
    "an enormous shape": (tensor(storage("3", 16), (2**62,), (1,)), "refused"),
    "an enormous shape without steps": (tensor(storage("3", 16), (2**60,), (0,)), "refused"),
    "a product beyond 64 bits": (tensor(storage("3", 16), (2**60, 2**60), (0, 0)), "refused"),
    "an enormous stride": (tensor(storage("3", 16), (16,), (2**60,)), "refused"),
    "nothing of much": (tensor(storage("3", 16), (0, 2**60), (1, 1)), "refused"),
    "a giant key": (tensor(storage(integer(10**5000), 16), (16,)), "refused"),
    "a key that is a tuple": (tensor(storage(b")", 16), (16,)), "refused"),
    "a negative count": (tensor(storage("3", -1), (16,)), "refused"),
    "a giant count": (tensor(storage("3", 2**100), (16,)), "refused"),
    "a parameter of nothing": (b"ctorch._utils\n_rebuild_parameter\n)R", "refused"),
    "a dtype that is evil": (
        b"ctorch._utils\n_rebuild_tensor_v3\n"
        + tuple_of(storage("3", 16), b"K\0", ints((16,)), ints((1,)), b"\x89", b"N", b"c%b\nStriker\n" % C) + b"R",
            "refused",
    ),
    "a dtype that does not exist": (
        b"ctorch._utils\n_rebuild_tensor_v3\n"
        + tuple_of(storage("3", 16), b"K\0", ints((16,)), ints((1,)), b"\x89", b"N", b"ctorch\nfloat\xc3\xa4\n")
            + b"R", "refused",
    ),
    "a storage of no known type": (tensor(storage("3", 16, kind=b"ctorch\nQUInt8Storage\n"), (16,)), "refused"),
    "a storage of integers": (tensor(storage("3", 16, kind=b"ctorch\nIntStorage\n"), (16,)), "refused"),
    "a storage that is not there": (tensor(storage("../../etc/passwd", 16), (16,)), "refused"),
    "a size that is no tuple": (tensor(storage("3", 16), b"ctorch\nSize\n(](K\x10etR", (1,)), "refused"),
}  # fmt: skip


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("name", REBUILT)
def test_odd_arguments_of_known_rebuilders_are_refused(
    name: str, container: str, program: Watched, tmp_path: Path
) -> None:
    state = clean_state()
    state.model[NORM], expected = REBUILT[name]
    write(tmp_path / "m", state.file(container))
    run_both(program, tmp_path, expected=expected)


# ---- bombs: small files that would take all memory or all time -------------------------------------------------------


def doubled(times: int, *, base: bytes = b"Vboom\n") -> bytes:
    """A tuple of two of a tuple of two of ...: 2**times leaves in a few bytes."""
    return base + b"2\x86" * times


def with_itself(opening: bytes, closing: bytes) -> bytes:
    """A list that holds itself a thousand times."""
    return opening + long_binput(5) + b"(" + binget(5) * 1000 + closing


def lists_of_lists(depth: int, width: int) -> bytes:
    made = text("x")
    for level in range(depth):
        made += long_binput(100 + level) + b"0](" + binget(100 + level) * width + b"e"
    return made


def colliding(count: int) -> Iterator[int]:
    """Integers that CPython's hash throws together: all multiples of its modulus."""
    return ((2**61 - 1) * number for number in range(1, count + 1))


def pairs_of_ints(values: Iterable[int]) -> bytes:
    return b"}(" + b"".join(integer(value) + b"N" for value in values) + b"u"


def extra(payload: bytes | Callable[[], bytes]) -> Callable[[State], None]:
    def change(state: State) -> None:
        state.more.append(pair("extra_state", payload if isinstance(payload, bytes) else payload()))

    return change


def arguments(payload: bytes) -> Callable[[State], None]:
    return lambda state: inside_of_the_args(state, payload)


def instead(payload: bytes) -> Callable[[State], None]:
    return lambda state: instead_of_all(state, payload)


def weight(payload: bytes, *, name: str = NORM) -> Callable[[State], None]:
    return lambda state: state.model.update({name: payload})


def option(name: str, payload: bytes) -> Callable[[State], None]:
    def change(state: State) -> None:
        state.args = state.args[:-1] + b"(" + pair(name, payload) + b"ub"

    return change


def key_of_top(payload: bytes) -> Callable[[State], None]:
    """As the first key, in a file that is none of fairseq's: messages tell the keys."""

    def change(state: State) -> None:
        state.after = b"0}" + payload + b"Ns"

    return change


def many_calls_of_one_tuple(state: State) -> None:
    state.before = b"(" + b"N" * 300_000 + b"t" + long_binput(1) + b"0"
    state.more.append(pair("x", b"(" + (b"ca\nb\n" + binget(1) + b"R") * 20_000 + b"l"))


def many_visits_of_one_dictionary(state: State) -> None:
    """A list of one dictionary whose keys are no text: nothing of it is read, again and again."""
    state.before = (
        b"}(" + b"".join(b"M" + struct.pack("<H", n) + b"N" for n in range(60_000)) + b"u" + long_binput(1) + b"0"
    )
    state.args = state.args[:-1] + b"(" + pair("evil", b"](" + binget(1) * 99_000 + b"e") + b"ub"


def expanded(shape: tuple[int, ...], *, name: str = EMBEDDING) -> Callable[[State], None]:
    """A tensor that is large only by its strides."""
    return weight(tensor(storage("1", 60 * 16), shape, (0,) * len(shape)), name=name)


def no_positions(name: str, value: bytes, longest: int) -> Callable[[State], None]:
    """Positions that fairseq computes, as many as the options say."""

    def change(state: State) -> None:
        del state.model[f"{E}embed_positions.weight"]
        option(name, value)(state)
        option("max_positions", integer(longest))(state)

    return change


def many_weights(state: State) -> None:
    state.before = state.model[NORM] + long_binput(1) + b"0"
    for number in range(100_000):
        state.model[f"encoder.x{number}"] = binget(1)


def long_name(name: str) -> Callable[[State], None]:
    return lambda state: state.model.update({name: state.model[NORM]})


BOMBS: dict[str, tuple[Callable[[State], None], str]] = {
    "a tuple doubled": (extra(doubled(200)), "same"),
    "a tuple doubled as a key": (lambda state: as_a_key(state, doubled(60)), "same"),
    "a tuple doubled as the first key of no checkpoint": (key_of_top(doubled(60)), "refused"),
    "a tuple doubled as the name of a weight": (lambda state: as_the_name_of_a_weight(state, doubled(60)), "refused"),
    "a tuple doubled as an option": (arguments(doubled(60)), "same"),
    "a tuple doubled as an option that counts": (option("activation_fn", doubled(60)), "refused"),
    "a tuple doubled as a weight": (weight(doubled(60)), "refused"),
    "a tuple doubled as a location": (weight(tensor(storage("3", 16, location=doubled(60)), (16,))), "any"),
    "a tuple doubled as a shape": (weight(tensor(storage("3", 16), doubled(60, base=b"K\x01"), (1,))), "refused"),
    "a call doubled": (extra(b"ca\nb\n" + b"2\x85R" * 80), "same"),
    "a tuple deep in tuples": (extra(b"N" + b"\x85" * 50_000), "same"),
    "a call deep in calls as a key": (key_of_top((b"ca\nb\n" * 5_000) + b")" + b"R\x85" * 4_999 + b"R"), "refused"),
    "a deep list": (extra(b"]" * 200_000 + b"a" * 199_999), "same"),
    "a deep list as an option": (arguments(b"]" * 200_000 + b"a" * 199_999), "same"),
    "a list with itself": (extra(with_itself(b"]", b"e")), "same"),
    "a list with itself as an option": (arguments(with_itself(b"]", b"e")), "same"),
    "a dictionary with itself as an option": (
        arguments(b"}" + long_binput(5) + b"(" + b"".join(text(f"{n}") + binget(5) for n in range(1000)) + b"u"), "same"
    ),
    "lists of lists as an option": (arguments(lists_of_lists(12, 40)), "same"),
    "lists of lists": (extra(lists_of_lists(40, 40)), "same"),
    "one dictionary visited often": (many_visits_of_one_dictionary, "any"),
    "one tuple in many calls": (many_calls_of_one_tuple, "same"),
    "a long declared text": (extra(b"X\xff\xff\xff\x7fabc"), "refused"),
    "a longer declared text": (extra(b"\x8d" + struct.pack("<Q", 2**62) + b"abc"), "refused"),
    "the longest declared text": (extra(b"\x8d" + struct.pack("<Q", 2**64 - 1) + b"abc"), "refused"),
    "long declared bytes": (extra(b"B\xff\xff\xff\xffabc"), "refused"),
    "longer declared bytes": (extra(b"\x8e" + struct.pack("<Q", 2**62) + b"abc"), "refused"),
    "a long declared bytearray": (extra(b"\x96" + struct.pack("<Q", 2**40) + b"abc"), "refused"),
    "a negative declared text": (extra(b"T\xff\xff\xff\xffabc"), "refused"),
    "a giant LONG4": (extra(b"\x8b\xff\xff\xff\x7fabc"), "refused"),
    "a negative LONG4": (extra(b"\x8b\xff\xff\xff\xffabc"), "refused"),
    "a whole LONG4": (extra(lambda: b"\x8b" + struct.pack("<i", 4_000_000) + b"\x7f" * 4_000_000), "same"),
    "a decimal integer of a million digits": (extra(b"I" + b"9" * 1_000_000 + b"\n"), "refused"),
    "a decimal long of a million digits": (extra(b"L" + b"9" * 1_000_000 + b"L\n"), "refused"),
    "a decimal index of a million digits": (extra(b"Np" + b"9" * 1_000_000 + b"\n"), "refused"),
    "a giant integer as an option": (option("dropout", integer(10**400)), "any"),
    "a giant integer as many options": (option("max_positions", integer(10**5000)), "any"),
    "a giant integer as a number of heads": (option("encoder_attention_heads", integer(10**5000)), "refused"),
    "a giant integer as a name": (option("activation_fn", integer(10**5000)), "any"),
    "a giant integer as a key": (key_of_top(integer(10**5000)), "refused"),
    "a giant integer as a weight's name": (lambda state: as_the_name_of_a_weight(state, integer(10**5000)), "refused"),
    "layers to keep of a million digits": (option("encoder_layers_to_keep", text("9" * 1_000_000)), "any"),
    "a line without an end": (lambda state: state.more.append(b"V" + b"x" * 5_000_000), "refused"),
    "a string without quotes": (extra(lambda: b"S" + b"\xff" * 5_000_000 + b"\n"), "refused"),
    "a frame beyond the end": (extra(b"\x95" + struct.pack("<Q", 2**63) + b"N"), "same"),
    "thousands of marks": (extra(b"(" * 500_000 + b"N"), "refused"),
    "thousands of marks, popped": (extra(b"(" * 200_000 + b"N" + b"t" * 200_000), "same"),
    "a mark for a value": (extra(b"("), "refused"),
    "an empty stack": (lambda state: setattr(state, "before", b"0" * 10), "refused"),
    "a million sets": (extra(lambda: b"](" + b"\x8f" * 1_500_000 + b"e"), "any"),
    "a million dictionaries": (extra(lambda: b"](" + b"}NNs" * 450_000 + b"e"), "any"),
    "a million extensions": (extra(lambda: b"](" + b"\x82\x01" * 1_500_000 + b"e"), "any"),
    "ten million values": (extra(lambda: b"](" + b"N" * 10_000_000 + b"e"), "refused"),
    "ten million values, forgotten": (extra(lambda: b"N0" * 5_000_000 + b"N"), "refused"),
    "a huge memo index": (extra(b"]" + long_binput(2**32 - 1)), "same"),
    "a thousand huge memo indices": (extra(b"]" + b"".join(long_binput(2**32 - n) for n in range(1, 1000))), "same"),
    "memo indices that collide": (
        extra(lambda: b"N" + b"".join(b"p%d\n" % value for value in colliding(100_000))), "same"
    ),
    "keys that collide": (extra(lambda: pairs_of_ints(colliding(100_000))), "same"),
    "a text of wide characters": (extra(lambda: text("\U0001f600" + "x" * 30_000_000)), "same"),
    "a text that is too long": (extra(lambda: text("\U0001f600" + "x" * 120_000_000)), "refused"),
    "a long name of a weight": (long_name("encoder." + "x" * 20_000_000), "refused"),
    "a long name of a layer": (long_name(f"{E}layers.{'9' * 5000}.fc1.weight"), "refused"),
    "a layer that is not a number": (long_name(f"{E}layers.norm.weight"), "refused"),
    "a layer in other digits": (long_name(f"{E}layers.\u0663.fc1.weight"), "refused"),
    "many weights": (many_weights, "refused"),
    "an expanded embedding": (expanded((60, 2**40)), "refused"),
    "an expanded embedding of one gigabyte a row": (expanded((60, 250_000_000)), "refused"),
    "expanded rows": (expanded((2**40, 16)), "refused"),
    "an expanded norm": (expanded((2**33,), name=NORM), "refused"),
    "positions that do not exist": (no_positions("no_token_positional_embeddings", b"\x88", 10**8), "refused"),
    "positions to compute": (no_positions("encoder_learned_pos", b"\x89", 10**12), "refused"),
    "positions out of proportion": (no_positions("encoder_learned_pos", b"\x89", 10**6), "any"),
}  # fmt: skip


# These take about a second each, in the very loop that both containers share: once is enough.
LARGE = {
    *("a million extensions", "a million sets", "a million dictionaries", "ten million values", "many weights"),
    *("ten million values, forgotten", "a text that is too long", "a text of wide characters", "keys that collide"),
    *("memo indices that collide", "thousands of marks, popped", "a deep list as an option", "a line without an end"),
    *("one tuple in many calls", "one dictionary visited often", "a long name of a weight"),
}
BOMB_CASES = [
    (name, container) for name in BOMBS for container in CONTAINERS if container == "zip" or name not in LARGE
]


@pytest.mark.parametrize(("name", "container"), BOMB_CASES)
def test_a_bomb_does_not_go_off(
    name: str, container: str, program: Watched, clean: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    change, expected = BOMBS[name]
    state = clean_state()
    change(state)
    write(tmp_path / "m", state.file(container))
    run_both(program, tmp_path, expected=expected, inspects=False)
    if expected == "same":
        assert contents(tmp_path / "out") == clean[container]


# ---- names -----------------------------------------------------------------------------------------------------------

NAMES = {
    "a path": "../../../tmp/evil",
    "an absolute path": "/tmp/evil",
    "a line end": "x\ny: z",
    "an order to the terminal": "x\x1b]0;evil\x07\x1b[2J",
    "a NUL": "x\0y",
    "half a character": "x\udcff\ud800",
    "right to left": "x\u202egpj",
    "a template": "{head}{base}{0.__class__}${source}",
    "markup": "[red]x[/red][link=file:///etc/passwd]",
    "nothing": "",
    "a megabyte": "x" * 1_000_000,
}


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("place", ["a weight", "a head", "a storage", "a dropped weight", "an option"])
@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_a_name(
    name: str, place: str, container: str, program: Watched, clean: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    """Whatever it says, it is no path, markup, template or order; where it belongs to nothing it is refused."""
    state, given = clean_state(), NAMES[name]
    expected = {"a weight": "refused", "a storage": "same"}.get(place, "any")
    if place == "a weight":
        state.model[given] = state.model[NORM]
    elif place == "a head":
        for part, shape in (
            ("dense.weight", (16, 16)),
            ("dense.bias", (16,)),
            ("out_proj.weight", (1, 16)),
            ("out_proj.bias", (1,)),
        ):
            state.model[f"classification_heads.{given}.{part}"] = tensor(storage("1", 60 * 16), shape)
    elif place == "a storage":
        state.storages[given or "empty"] = state.storages.pop("3")
        state.model[NORM] = tensor(storage(given or "empty", 16), (16,))
        expected = (
            "any" if (container == "zip" and not given.isascii()) or "\0" in given or len(given) > 65_000 else "same"
        )
    elif place == "a dropped weight":
        state.model[f"encoder.regression_head.{given}"] = state.model[NORM]
    else:
        option("arch", text(given))(state)
        option(given or "x", text(given))(state)
    write(tmp_path / "m", zip_or_legacy(state, container))
    run_both(program, tmp_path, expected=expected, inspects=container == "zip")
    if place == "a storage" and expected == "same":
        assert contents(tmp_path / "out") == clean[container]
    for path in (tmp_path / "out").rglob("*"):
        assert path.name in KNOWN, path


KNOWN = {"README.md", "config.json", "conversion.json", "dict.txt", "fairseq", "model.safetensors", "options.json"}


def zip_or_legacy(state: State, container: str) -> bytes:
    """The file; zipfile itself refuses to write some names."""
    if container == "legacy":
        return state.file(container)
    return raw_zip(
        Record(record.name[:65_535], record.data) if len(record.name) > 65_535 else record
        for record in utf8_records(state)
    )


def utf8_records(state: State) -> Iterator[Record]:
    yield Record(b"model/data.pkl", state.pickle())
    for key, content in state.storages.items():
        yield Record(f"model/data/{key}".encode("utf-8", "surrogatepass"), content)


# ---- the container: zip ----------------------------------------------------------------------------------------------


def records(change: Callable[[list[Record]], object]) -> Callable[[], bytes]:
    def made() -> bytes:
        members = records_of(clean_state())
        change(members)
        return raw_zip(members)

    return made


def of(members: list[Record], ending: bytes) -> Record:
    return next(member for member in members if member.name.endswith(ending))


def zip64(**sizes: int) -> bytes:
    """An extra field with sizes of 64 bits."""
    return struct.pack("<HH", 1, 8 * len(sizes)) + b"".join(struct.pack("<Q", value) for value in sizes.values())


def many_members(count: int) -> bytes:
    """A directory of `count` entries for one record."""
    data = records_of(clean_state())
    return raw_zip([*data, *(Record(b"m/%d" % n, b"", offset=0) for n in range(count))], entries=65_535)


def cut_directory(data: bytes, *, size: int | None = None, offset: int | None = None) -> bytes:
    """The end record with another size or offset of the directory."""
    place = data.rindex(b"PK\x05\x06")
    end = list(struct.unpack("<4s4H2LH", data[place : place + 22]))
    end[5], end[6] = end[5] if size is None else size, end[6] if offset is None else offset
    return data[:place] + struct.pack("<4s4H2LH", *end) + data[place + 22 :]


def with_zip64_end(*, size: int, offset: int, count: int) -> bytes:
    """A directory that is told in 64 bits."""
    data = raw_zip(records_of(clean_state()))
    place = data.rindex(b"PK\x05\x06")
    end64 = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, size, offset)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, place, 1)
    return (
        data[:place]
        + end64
        + locator
        + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 65535, 65535, 2**32 - 1, 2**32 - 1, 0)
    )


clean_zip = records(lambda members: None)
ZIPS: dict[str, tuple[Callable[[], bytes], str]] = {
    "as it should be": (clean_zip, "same"),
    "the same name twice": (records(lambda members: members.append(Record(b"model/data.pkl", b"\x80\x02}."))),
        "refused"),
    "two pickles": (records(lambda members: members.append(Record(b"evil/data.pkl", b"\x80\x02}."))), "refused"),
    "a pickle in an odd folder": (
        lambda: raw_zip(records_of(clean_state(), root="a/../../b//./")), "same"
    ),
    "a pickle in no folder": (lambda: raw_zip(records_of(clean_state(), root="")), "same"),
    "an absolute folder": (lambda: raw_zip(records_of(clean_state(), root="/etc/")), "same"),
    "a pickle called almost so": (records(lambda members: setattr(of(members, b".pkl"), "name", b"model/xdata.pkl")),
        "refused"),
    "code beside": (records(lambda members: members.append(Record(b"model/code/evil.py", b"import os"))), "refused"),
    "two records on one place": (records(lambda members: setattr(of(members, b"/3"), "offset", 0)), "refused"),
    "a record outside": (records(lambda members: setattr(of(members, b"/3"), "offset", 2**31)), "refused"),
    "a pickle outside": (records(lambda members: setattr(of(members, b".pkl"), "offset", 2**32 - 2)), "refused"),
    "a giant record": (records(lambda members: setattr(of(members, b"/3"), "size", 2**32 - 2)), "refused"),
    "a giant pickle": (records(lambda members: setattr(of(members, b".pkl"), "size", 2**32 - 2)), "refused"),
    "a record of 2**63 bytes": (
        records(lambda members: of(members, b"/3").__dict__.update(size=2**32 - 1, extra=zip64(a=2**63, b=2**63))),
            "refused"
    ),
    "a record at 2**63": (
        records(lambda members: of(members, b"/3").__dict__.update(offset=2**32 - 1, extra=zip64(a=2**63))), "refused"
    ),
    "a pickle at 2**64": (
        records(lambda members: of(members, b".pkl").__dict__.update(offset=2**32 - 1, extra=zip64(a=2**64 - 1))),
            "refused"
    ),
    "half an extra field": (records(lambda members: setattr(of(members, b"/3"), "extra", b"\x01\x00\x08\x00abc")),
        "refused"),
    "an empty extra field of 64 bits": (
        records(lambda members: of(members, b"/3").__dict__.update(size=2**32 - 1, extra=b"\x01\x00\x00\x00")),
            "refused"
    ),
    "another local name": (records(lambda members: setattr(of(members, b"/3"), "local_name", b"model/data/99")), "any"),
    "a long local extra": (records(lambda members: setattr(of(members, b"/3"), "local_extra", bytes(60_000))), "same"),
    "no local header": (records(lambda members: setattr(of(members, b"/3"), "signature", b"PK\x01\x02")), "refused"),
    "a wrong checksum": (records(lambda members: setattr(of(members, b"/3"), "crc", 1)), "refused"),
    "a wrong checksum of the pickle": (records(lambda members: setattr(of(members, b".pkl"), "crc", 1)), "refused"),
    "a compressed member": (records(lambda members: setattr(of(members, b"/3"), "method", 8)), "refused"),
    "a compression that does not exist": (records(lambda members: setattr(of(members, b".pkl"), "method", 77)),
        "refused"),
    "a comment of 64 KB": (lambda: raw_zip(records_of(clean_state()), comment=b"x" * 65_535), "same"),
    "a comment with another end": (
        lambda: raw_zip(records_of(clean_state()), comment=b"PK\x05\x06" + bytes(18) + b"x" * 1000), "any"
    ),
    "a comment of ends alone": (lambda: raw_zip(records_of(clean_state()), comment=b"PK\x05\x06" * 16_000), "any"),
    "a shell script before it": (lambda: b"PK" + raw_zip(records_of(clean_state()), prefix=b"#!/bin/sh\n" * 1000),
        "any"),
    "more entries told than there are": (lambda: raw_zip(records_of(clean_state()), entries=60_000), "any"),
    "fewer entries told than there are": (lambda: raw_zip(records_of(clean_state()), entries=1), "any"),
    "a directory of 50,000 entries": (lambda: many_members(50_000), "any"),
    "a directory of 200,000 entries": (lambda: many_members(200_000), "refused"),
    "a directory that is larger than the file": (lambda: cut_directory(clean_zip(), size=2**32 - 2), "refused"),
    "a directory outside": (lambda: cut_directory(clean_zip(), offset=2**32 - 2), "refused"),
    "a directory of nothing": (lambda: cut_directory(clean_zip(), size=0), "refused"),
    "a directory of 2**63 bytes": (lambda: with_zip64_end(size=2**63, offset=0, count=2**63), "refused"),
    "a directory at 2**64": (lambda: with_zip64_end(size=100, offset=2**64 - 1, count=2**64 - 1), "refused"),
    "a name of 64 KB": (records(lambda members: members.append(Record(b"x" * 65_535, b""))), "same"),
    "a name that is not a text": (records(lambda members: members.append(Record(b"model/\xff\xfe\x00", b""))), "same"),
    "an end alone": (lambda: b"PK\x05\x06" + bytes(18), "refused"),
    "two letters": (lambda: b"PK", "refused"),
    "a pickle of 100 MB": (
        lambda: raw_zip([Record(b"m/data.pkl", b"\x80\x02" + b"N0" * 50_000_000 + b"}."),
            *records_of(clean_state())[1:]]), "refused"
    ),
    "an order of bytes of 100 MB": (
        records(lambda members: members.append(Record(b"model/byteorder", b"little" + bytes(100_000_000)))), "refused"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ZIPS)
def test_a_zip_that_lies(name: str, program: Watched, clean: dict[str, dict[str, str]], tmp_path: Path) -> None:
    make, expected = ZIPS[name]
    write(tmp_path / "m", make())
    outcome = run_both(program, tmp_path, expected=expected)
    if outcome.code == 0:
        assert contents(tmp_path / "out") == clean["zip"]


# ---- the container: the legacy stream --------------------------------------------------------------------------------


def legacy(
    *, keys: bytes | None = None, system: bytes = b"}", change: Callable[[State], None] = lambda state: None
) -> Callable[[], bytes]:
    def made() -> bytes:
        state = clean_state()
        change(state)
        return legacy_file(state.pickle(), state.storages, keys=keys, system=system)

    return made


def with_count(count: int) -> Callable[[], bytes]:
    """The first storage with another count of elements."""

    def made() -> bytes:
        data = legacy()()
        first = min(clean_state().storages)
        body = struct.pack("<Q", len(clean_state().storages[first]) // 4) + clean_state().storages[first]
        place = data.index(body)
        return data[:place] + struct.pack("<Q", count) + data[place + 8 :]

    return made


def viewed(view: bytes, *, count: int = 16) -> Callable[[State], None]:
    pid = tuple_of(text("storage"), b"ctorch\nFloatStorage\n", text("3"), text("cpu"), integer(count), view) + b"Q"
    return weight(tensor(pid, (16,)))


def magic(data: bytes) -> Callable[[], bytes]:
    return lambda: data


KEYS = sorted(clean_state().storages)
HEAD = pickle.dumps(0x1950A86A20F9469CFC6C, 2)
LEGACIES: dict[str, tuple[Callable[[], bytes], str]] = {
    "as it should be": (legacy(), "same"),
    "a count of 2**64 - 1": (with_count(2**64 - 1), "refused"),
    "a count of 2**62": (with_count(2**62), "refused"),
    "a count of nothing": (with_count(0), "refused"),
    "a count too many": (with_count(2), "refused"),
    "keys that are none": (legacy(keys=b"\x80\x02N."), "refused"),
    "keys that are a call": (legacy(keys=b"c%b\nstrike\n)R." % C), "refused"),
    "keys of calls": (legacy(keys=b"](c%b\nstrike\n)Re." % C), "refused"),
    "keys that are bytes": (legacy(keys=b"\x80\x03](C\x010e."), "refused"),
    "a giant key": (legacy(keys=b"](" + integer(10**5000) + b"e."), "refused"),
    "a key that is true": (legacy(keys=b"](\x88e."), "refused"),
    "the same key twice": (legacy(keys=pickle.dumps(["0", "0", *KEYS[1:]], 2)), "refused"),
    "the same key a million times": (legacy(keys=b"](" + text("0") + long_binput(1) + binget(1) * 900_000 + b"e."),
        "refused"),
    "keys that nobody asked for": (legacy(keys=pickle.dumps([*KEYS, "99"], 2)), "refused"),
    "a missing key": (legacy(keys=pickle.dumps(KEYS[:-1], 2)), "refused"),
    "keys that hold themselves": (legacy(keys=b"]" + long_binput(1) + binget(1) + b"a."), "refused"),
    "a key of a megabyte": (legacy(keys=b"](" + text("x" * 1_000_000) + b"e."), "refused"),
    "a view": (legacy(change=viewed(tuple_of(text("3"), b"K\x00", b"K\x10"))), "same"),
    "a view beyond": (legacy(change=viewed(tuple_of(text("3"), b"K\x08", b"K\x08"))), "refused"),
    "a view at 2**60": (legacy(change=viewed(tuple_of(text("3"), integer(2**60), b"K\x08"))), "refused"),
    "a view before": (legacy(change=viewed(tuple_of(text("3"), integer(-4), b"K\x08"))), "refused"),
    "a view of text": (legacy(change=viewed(tuple_of(text("3"), text("4"), b"K\x08"))), "refused"),
    "a view that is a call": (legacy(change=viewed(b"c%b\nstrike\n)R" % C)), "refused"),
    "a view of a view": (legacy(change=viewed(tuple_of(*[tuple_of(b"K\x01", b"K\x01", b"K\x01")] * 3))), "refused"),
    "a system that is a call": (legacy(system=b"c%b\nstrike\n)R" % C), "same"),
    "a system that is a bomb": (legacy(system=doubled(200)), "same"),
    "a big system": (legacy(system=b"}(" + pair("little_endian", b"\x89") + b"u"), "refused"),
    "a magic that is a call": (magic(b"\x80\x02c%b\nstrike\n)R." % C), "refused"),
    "a magic that is a bomb": (magic(b"\x80\x02" + doubled(60) + b"."), "refused"),
    "a protocol that is a call": (magic(HEAD + b"\x80\x02c%b\nstrike\n)R." % C), "refused"),
    "a protocol that is a bomb": (magic(HEAD + b"\x80\x02" + doubled(60) + b".\x80\x02}."), "refused"),
    "a protocol that is giant": (magic(HEAD + b"\x80\x02" + integer(10**5000) + b".\x80\x02}."), "refused"),
    "nothing after the magic": (magic(HEAD), "refused"),
    "a bare pickle": (magic(b"\x80\x04c%b\nstrike\n)R." % C), "refused"),
    "a pickle of protocol 255": (magic(b"\x80\xff."), "refused"),
    "a pickle of 100 MB": (lambda: HEAD + HEAD[:2] + b"M\xe9\x03.\x80\x02}.\x80\x02" + b"N0" * 50_000_000 + b"}.",
        "refused"),
    "storages that share a name with two types": (
        legacy(change=lambda state: state.model.update({"encoder.x": tensor(storage("3", 16,
            kind=b"ctorch\nDoubleStorage\n"), (8,))})), "refused"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LEGACIES)
def test_a_legacy_stream_that_lies(
    name: str, program: Watched, clean: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    make, expected = LEGACIES[name]
    write(tmp_path / "m", make())
    run_both(program, tmp_path, expected=expected)
    if expected == "same":
        assert contents(tmp_path / "out") == clean["legacy"]


# ---- the files beside ------------------------------------------------------------------------------------------------


def darts(chains: int, width: int) -> bytes:
    """A trie in which each of `chains` branches leads to the next one by `width` letters: width**chains rules."""
    units = [0] * (256 * (chains + 3))
    units[0] = 256 << 10
    for level in range(chains):
        start, below = 256 * (level + 1), 256 * (level + 2)
        for letter in range(0x61, 0x61 + width):
            place = start ^ letter
            units[place] = letter | 0x100 | ((place ^ below) << 10)
        units[below] = 0x80000000
    return charsmap(units)


def circle() -> bytes:
    """A trie whose every branch is itself."""
    units = [0] * 512
    units[0] = 256 << 10
    for letter in range(1, 256):
        units[256 ^ letter] = letter | (letter << 10)
    return charsmap(units)


LINES = "".join(f"{symbol} 1\n" for symbol in SYMBOLS)
BESIDE: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "a dictionary of one endless line": ("dict.txt", lambda: b"x" * 50_000_000, "refused"),
    "a dictionary of 20 million lines": ("dict.txt", lambda: b"a 1\n" * 20_000_000, "refused"),
    "a dictionary of a million names": ("dict.txt", lambda: b"".join(b"%d 1\n" % n for n in range(1_000_000)),
        "refused"),
    "a dictionary of line ends": ("dict.txt", lambda: b"\n" * 10_000_000, "refused"),
    "a dictionary of wide characters": ("dict.txt", lambda: ("\U0001f600" * 12_000_000 + " 1\n").encode(), "refused"),
    "a dictionary with a giant count": ("dict.txt", lambda: LINES.encode() + b"x " + b"9" * 1_000_000 + b"\n", "any"),
    "a dictionary with NULs": ("dict.txt", lambda: LINES.replace("a 1", "\0 1", 1).encode(), "any"),
    "a dictionary with orders": ("dict.txt", lambda: LINES.replace("\u2581a 1", "\x1b[2J 1", 1).encode(), "any"),
    "a dictionary with a symbol of nothing": ("dict.txt", lambda: LINES.replace("\u2581a 1", " 1", 1).encode(), "any"),
    "a dictionary that is not a text": ("dict.txt", lambda: b"\xff\xfe" * 1000, "refused"),
    "one symbol overwritten again and again": (
        "dict.txt", lambda: b"a 1\n" + b"a 1 #fairseq:overwrite\n" * 300_000, "refused"
    ),
    "labels of orders": ("label/dict.txt", lambda: b"\x1b[2J 1\n../../x 1\n", "same"),
    "labels without end": ("label/dict.txt", lambda: b"x 1\n" * 20_000_000, "same"),
    "two million empty pieces": ("spm.model", lambda: piece("a") + b"\n\x00" * 2_000_000, "refused"),
    "ten million empty pieces": ("spm.model", lambda: piece("a") + b"\n\x00" * 10_000_000, "refused"),
    "ten million pieces": ("spm.model", lambda: piece("a") + piece("a") * 5_000_000, "refused"),
    "a model of 100 MB": ("spm.model", lambda: piece("x" * 100_000_000), "refused"),
    "a piece of 5 MB": ("spm.model", lambda: sentencepiece(piece("x" * 5_000_000)), "refused"),
    "a piece of 5 MB, to be merged": ("spm.model", lambda: sentencepiece(piece("x" * 5_000_000), kind=2), "refused"),
    "many long pieces, to be merged": (
        "spm.model", lambda: sentencepiece(b"".join(piece(f"{n}" + "x" * 900) for n in range(5000)), kind=2), "any"
    ),
    "a piece that holds U+0000": ("spm.model", lambda: sentencepiece(piece("a") + piece("b\0c")), "refused"),
    "a piece that is U+0000": ("spm.model", lambda: sentencepiece(piece("a") + piece("\0")), "refused"),
    "pieces of 17 MB": (
        "spm.model", lambda: sentencepiece(b"".join(piece(f"{n}" + "x" * 990) for n in range(17_500))), "refused"
    ),
    "a test of itself that has orders": (
        "spm.model", lambda: sentencepiece(piece("a")) + message(4, message(1, message(1, b"\x1b[2J" * 100))), "any"
    ),
    "a type that does not exist": ("spm.model", lambda: sentencepiece(kind=9), "refused"),
    "a type of piece that does not exist": ("spm.model", lambda: sentencepiece(piece("a", kind=300)), "refused"),
    "a negative type of piece": ("spm.model", lambda: sentencepiece(piece("a", kind=-1)), "refused"),
    "a score that is not a number": ("spm.model", lambda: sentencepiece(piece("a", float("nan"))), "refused"),
    "a score of infinity": ("spm.model", lambda: sentencepiece(piece("a", float("-inf"))), "refused"),
    "the largest score": ("spm.model", lambda: sentencepiece(piece("a", 3e38) + piece("b", 1, 4)), "any"),
    "pieces of noncharacters": ("spm.model", lambda: sentencepiece(piece("a") + piece("\ufdd0") + piece("\ufdd1")),
        "any"),
    "rules in a circle": ("spm.model", lambda: sentencepiece(piece("a"), charsmap=circle()), "refused"),
    "rules without end": ("spm.model", lambda: sentencepiece(piece("a"), charsmap=darts(40, 20)), "refused"),
    "a thousand branches": ("spm.model", lambda: sentencepiece(piece("a"), charsmap=darts(3000, 1)), "refused"),
    "rules of megabytes": (
        "spm.model", lambda: sentencepiece(piece("a"), charsmap=darts(1, 26)[:-2] + b"x" * 5_000_000 + b"\0"), "refused"
    ),
    "rules whose size is a lie": ("spm.model", lambda: sentencepiece(piece("a"), charsmap=b"\xff\xff\xff\xffabc"),
        "refused"),
    "unknown fields of 4 MB": ("spm.model", lambda: sentencepiece(piece("a")) + message(99, bytes(4_000_000)), "any"),
    "messages in messages": ("spm.model", lambda: sentencepiece(piece("a")) + b"\x0b" * 100_000, "refused"),
}  # fmt: skip


@pytest.mark.parametrize("name", BESIDE)
def test_a_hostile_file_beside(name: str, program: Watched, clean: dict[str, dict[str, str]], tmp_path: Path) -> None:
    beside, make, expected = BESIDE[name]
    write(tmp_path / "m", clean_state().file("zip"))
    (tmp_path / "m" / beside).parent.mkdir(exist_ok=True)
    (tmp_path / "m" / beside).write_bytes(data := make())
    run_both(program, tmp_path, expected=expected, inspects=len(data) < 1_000_000)


def test_one_symbol_in_every_row(program: Watched, tmp_path: Path) -> None:
    """Each row needs another name that no text holds; finding one must not take longer from row to row."""
    rows, state = 30_000, clean_state()
    state.storages["1"] = bytes(rows * 64)
    for name, shape in (
        (EMBEDDING, (rows, 16)),
        ("encoder.lm_head.weight", (rows, 16)),
        ("encoder.lm_head.bias", (rows,)),
    ):
        state.model[name] = tensor(storage("1", rows * 16), shape)
    write(tmp_path / "m", state.file("zip"))
    lines = b"a 1\n" + b"a 1 #fairseq:overwrite\n" * (rows - 6)
    (tmp_path / "m" / "dict.txt").write_bytes(lines)
    (tmp_path / "m" / "spm.model").write_bytes(sentencepiece(piece("a")))
    run_both(program, tmp_path, expected="same")


def test_every_stand_in_is_taken(program: Watched, tmp_path: Path) -> None:
    """The dictionary holds unknown runs, and the characters that could mark others are pieces themselves."""
    write(tmp_path / "m", clean_state().file("zip"), symbols=("\u4e00\u4e01", *SYMBOLS[1:]))
    pieces = piece("a") + b"".join(map(piece, "\ufffd\ufdd2\ufdd3"))
    (tmp_path / "m" / "spm.model").write_bytes(sentencepiece(pieces))
    outcome = run_both(program, tmp_path, expected="any")
    assert outcome.code in (0, 2)


def test_many_missing_pieces(program: Watched, tmp_path: Path) -> None:
    """Each gets a copy of the row of <unk>."""
    write(tmp_path / "m", clean_state().file("zip"))
    pieces = b"".join(piece(f"p{number}") for number in range(300_000))
    (tmp_path / "m" / "spm.model").write_bytes(sentencepiece(pieces))
    run_both(program, tmp_path, expected="any")


# ---- archives --------------------------------------------------------------------------------------------------------


def header(
    name: str, size: int = 0, *, kind: bytes = tarfile.REGTYPE, change: Callable[[bytearray], object] | None = None
) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    made = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    if change:
        change(made)
        made[148:156] = b" " * 8
        made[148:156] = b"%06o\0 " % sum(made)
    return bytes(made)


def extended(content: bytes, *, kind: bytes = tarfile.XHDTYPE, size: int | None = None) -> bytes:
    return header("x", len(content) if size is None else size, kind=kind) + content + bytes(-len(content) % 512)


def record(key: str, value: str) -> bytes:
    line = f" {key}={value}\n".encode()
    length = len(line) + len(str(len(line) + 3))
    return str(length).encode() + line


def good_members() -> bytes:
    model, lines = clean_state().file("zip"), LINES.encode()
    made = b""
    for name, data in (("m/model.pt", model), ("m/dict.txt", lines)):
        made += header(name, len(data)) + data + bytes(-len(data) % 512)
    return made


def set_extended(made: bytearray) -> None:
    made[482] = 1


SPARSE_1_0 = record("GNU.sparse.major", "1") + record("GNU.sparse.minor", "0") + record("GNU.sparse.name", "m/x.txt")
END = bytes(1024)
TARS: dict[str, tuple[Callable[[], bytes], str]] = {
    "as it should be": (lambda: good_members() + END, "same"),
    "too many members": (lambda: good_members() + header("m/x.txt") * 120_000 + END, "refused"),
    "too many folders": (lambda: good_members() + header("m/x", kind=tarfile.DIRTYPE) * 120_000 + END, "refused"),
    "a hundred thousand long names": (lambda: good_members() + (extended(b"x" * 400 + b"\0", kind=b"L")
        + header("m/y.txt")) * 1 + END, "any"),
    "long names in long names": (lambda: extended(b"x" * 400 + b"\0", kind=b"L") * 20_000 + good_members() + END,
        "refused"),
    "a long name of a megabyte": (lambda: extended(b"x" * 1_000_000, kind=b"L") + good_members() + END, "refused"),
    "an extended header of digits": (lambda: extended(b"1" * 32_000) + good_members() + END, "any"),
    "many extended headers of digits": (lambda: extended(b"1" * 32_000) * 300 + good_members() + END, "refused"),
    "an extended header of a megabyte": (lambda: extended(b"1" * 1_000_000) + good_members() + END, "refused"),
    "keywords that overlap": (lambda: extended(b"2 " * 16_000 + b"=") + good_members() + END, "any"),
    "many keywords that overlap": (lambda: extended(b"2 " * 16_000 + b"=") * 300 + good_members() + END, "refused"),
    "a chain of extended headers": (lambda: extended(record("a", "b")) * 5000 + good_members() + END, "refused"),
    "a chain of global headers": (lambda: extended(record("a", "b"), kind=tarfile.XGLTYPE) * 5000 + good_members()
        + END, "refused"),
    "an extended header of length 0": (lambda: extended(b"0 path=x\n") + good_members() + END, "refused"),
    "an extended size of text": (lambda: extended(record("size", "much")) + good_members() + END, "any"),
    "a giant extended size": (lambda: extended(record("size", "9" * 400)) + good_members() + END, "refused"),
    "a negative extended size": (lambda: extended(record("size", "-512")) + good_members() + END, "refused"),
    "a path by extended header": (lambda: extended(record("path", "../../evil.pt")) + good_members() + END, "refused"),
    "a link by extended header": (lambda: extended(record("linkpath", "/etc/passwd")) + good_members() + END, "any"),
    "a sparse map without end": (lambda: good_members() + header("m/x.txt", kind=b"S", change=set_extended), "refused"),
    "a sparse map of megabytes": (
        lambda: good_members() + header("m/x.txt", kind=b"S", change=set_extended) + (b"00000000001\0" * 42 + bytes(7)
            + b"\x01") * 200_000, "refused"
    ),
    "a sparse map of text": (lambda: good_members() + extended(SPARSE_1_0) + header("m/x.txt") + b"99999999\n"
        + b"1\n" * 20_000_000, "refused"),
    "a sparse map that ends": (lambda: good_members() + extended(SPARSE_1_0) + header("m/x.txt") + b"9", "refused"),
    "a sparse map in the header": (
        lambda: good_members() + extended(record("GNU.sparse.map", "1,x") + record("GNU.sparse.size", "9"))
            + header("m/x.txt") + END, "refused"
    ),
    "a name with a line end": (lambda: good_members() + header("m/x\ny\x1b[2J.pt", 1) + bytes(512) + END, "any"),
    "a name of nothing": (lambda: good_members() + header("") + END, "any"),
    "a checksum of text": (lambda: good_members() + header("m/x.txt").replace(b"ustar", b"\xff\xff\xff\xff\xff"),
        "refused"),
}  # fmt: skip
PACKINGS: dict[str, Callable[[bytes], bytes]] = {
    "tar": lambda data: data,
    "tar.gz": lambda data: gzip.compress(data, compresslevel=1, mtime=0),
}


TAR_CASES = [
    (name, packing) for name in TARS for packing in PACKINGS if packing == "tar" or not name.startswith("too many")
]


@pytest.mark.parametrize(("name", "packing"), TAR_CASES)
def test_an_archive_that_lies(
    name: str, packing: str, program: Watched, clean: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    make, expected = TARS[name]
    path = tmp_path / "m"
    path.write_bytes(data := PACKINGS[packing](make()))
    outcome = run_both(program, tmp_path, expected=expected, inspects=len(data) < 1_000_000 and packing == "tar")
    if outcome.code == 0:
        weights = "model.safetensors"
        assert contents(tmp_path / "out")[weights] == clean["zip"][weights]


@pytest.mark.parametrize(
    "compress", [bz2.compress, partial(lzma.compress, preset=1), partial(gzip.compress, compresslevel=9)]
)
@pytest.mark.parametrize("place", ["in a member", "after the end"])
def test_a_small_archive_of_gigabytes(
    place: str, compress: Callable[[bytes], bytes], program: Watched, tmp_path: Path
) -> None:
    """The streams of one zero block, again and again: all three formats allow that."""
    zeros = compress(bytes(1 << 24))
    if place == "in a member":
        data = compress(good_members() + header("m/x.txt", 1 << 40)) + zeros * 640
    else:
        data = compress(good_members() + END) + zeros * 640
    (tmp_path / "m").write_bytes(data)
    run_both(program, tmp_path, expected="refused", inspects=False)


# ---- shards ----------------------------------------------------------------------------------------------------------


def shard_state(change: Callable[[dict[str, object]], object]) -> bytes:
    """One FSDP shard with metadata, which `change` spoils."""
    about: dict[str, object] = {
        "names": ["encoder.sentence_encoder.embed_tokens.weight"],
        "shapes": [(4, 4)],
        "numels": [16],
    }
    about["padding"] = 0
    change(about)
    metadata = {"param_metadata": [{"fsdp_path": "", "params": {"flat_param_0": about}}], "buffer_names": []}
    state = clean_state()
    state.model = {"flat_param_0": tensor(storage("3", 16), (16,))}
    state.more.append(pair("shard_metadata", pickle.dumps(metadata, 2)[2:-1].replace(b"q", b"q")))
    return state.file("zip")


SHARDS: dict[str, Callable[[dict[str, object]], object]] = {
    "a negative padding": lambda about: about.update(padding=-16, shapes=[(8, 4)], numels=[32]),
    "a padding that is a float": lambda about: about.update(padding=0.0),
    "a padding that is text": lambda about: about.update(padding="0"),
    "a giant padding": lambda about: about.update(padding=10**400),
    "a negative shape": lambda about: about.update(shapes=[(-4, -4)]),
    "a shape of floats": lambda about: about.update(shapes=[(4.0, 4.0)]),
    "a shape of text": lambda about: about.update(shapes=["44"]),
    "a giant shape": lambda about: about.update(shapes=[(2**62, 2**62)]),
    "a name that is a number": lambda about: about.update(names=[10**5000]),
    "a name that is a tree": lambda about: about.update(names=[((((),) * 2,) * 2,) * 2]),
    "no names": lambda about: about.update(names=None),
    "many empty parameters": lambda about: about.update(names=["x"] * 200_000, shapes=[(0,)] * 200_000, numels=None),
}


@pytest.mark.parametrize("name", SHARDS)
def test_shards_that_lie(name: str, program: Watched, tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "model-shard0.pt").write_bytes(shard_state(SHARDS[name]))
    (tmp_path / "m" / "dict.txt").write_text(LINES, encoding="utf-8")
    run_both(program, tmp_path, expected="refused")


def test_enough_payloads() -> None:
    """What is here, counted: distinct payloads, and runs of them in containers and places."""
    distinct = (
        len(CALLS) + len(REBUILT) + len(BOMBS) + len(ZIPS) + len(LEGACIES) + len(BESIDE) + len(TARS) + len(SHARDS)
    )
    assert len(CALLS) >= 60 and set(BOMBS) >= LARGE
    assert distinct + len(NAMES) >= 250
