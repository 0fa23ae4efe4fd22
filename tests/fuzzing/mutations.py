"""Damage, from a seed: what a disk, a network or a clever person does to bytes, pickles, zips, tars and messages."""

from __future__ import annotations

import io
import json
import pickletools
import struct
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

__all__ = [
    "damaged",
    "damaged_header",
    "damaged_json",
    "damaged_lines",
    "damaged_message",
    "damaged_parquet",
    "damaged_pickle",
    "damaged_tar",
    "rezipped",
]

BOUNDARIES = (0, 1, 2, 3, 7, 8, 15, 16, 31, 127, 128, 255, 256, 4095, 65_535, 65_536, 2**31 - 1, 2**31, 2**32 - 2,
    2**32 - 1,
              2**53, 2**61 - 1, 2**63 - 1, 2**63, 2**64 - 1)  # fmt: skip
TOKENS = (
    *(bytes([ord(op.code)]) for op in pickletools.opcodes),
    *(b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07", b"PK\x07\x08", b"\x01\x00\x08\x00"),
    *(b"\x0a", b"\x0a\x00", b"\x0a\x02\x0a\x00", b"\x12", b"\x1a", b"\x15", b"\x18", b"\xff\xff\xff\xff\x0f",
      b"\x80\x01"),
    *(b"ustar\x0000", b"ustar  \0", b"L", b"K", b"x", b"g", b"S", b"5", b"2", b"1", b"\0" * 8, b"7777777\0",
      b"././@LongLink"),
    *(b"#fairseq:overwrite", b" 1\n", b"\r\n", b"\r", b"\x85", b"\xe2\x96\x81", b"<s>", b"<mask>", b"<unk> 1\n",
      b"\xef\xbb\xbf"),
    *(b"model", b"args", b"cfg", b"data.pkl", b"data/0", b"version", b"byteorder", b"storage", b"torch",
      b"ctorch\nFloatStorage\n"),
    *(b"encoder.", b"decoder.", b"classification_heads.", b"sentence_encoder.", b"layers.0.", b".weight", b".bias",
      b"in_proj_weight"),
    *(b"../", b"/", b"\0", b"\n", b"\xff", b"\xed\xb3\xbf", b"\x1b[2J", b"{", b"}", b"%s", b"9" * 40, b"-1", b"1e400",
      b"nan"),
)  # fmt: skip


# ---- bytes -----------------------------------------------------------------------------------------------------------


def damaged(data: bytes, random: Random, others: Sequence[bytes] = ()) -> bytes:
    """One to six accidents."""
    made = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 3, 6))):
        random.choice(ACCIDENTS)(made, random, others)
    return bytes(made)


def _place(data: bytearray, random: Random) -> int:
    return random.randrange(len(data) + 1)


def _flip(data: bytearray, random: Random, _others: Sequence[bytes]) -> None:
    if data:
        data[random.randrange(len(data))] ^= 1 << random.randrange(8)


def _overwrite(data: bytearray, random: Random, _others: Sequence[bytes]) -> None:
    if data:
        data[random.randrange(len(data))] = random.randrange(256)


def _truncate(data: bytearray, random: Random, _others: Sequence[bytes]) -> None:
    del data[_place(data, random) :]


def _delete(data: bytearray, random: Random, _others: Sequence[bytes]) -> None:
    start = _place(data, random)
    del data[start : start + random.choice((1, 2, 4, 8, 100, 512))]


def _insert(data: bytearray, random: Random, _others: Sequence[bytes]) -> None:
    start = _place(data, random)
    data[start:start] = random.choice(TOKENS) * random.choice((1, 1, 1, 2, 50))


def _token(data: bytearray, random: Random, _others: Sequence[bytes]) -> None:
    start, token = _place(data, random), random.choice(TOKENS)
    data[start : start + len(token)] = token


def _repeat(data: bytearray, random: Random, _others: Sequence[bytes]) -> None:
    start = _place(data, random)
    part = data[start : start + random.choice((1, 4, 16, 46, 200, 1024))]
    data[start:start] = part * random.choice((1, 1, 2, 30))


def _number(data: bytearray, random: Random, _others: Sequence[bytes]) -> None:
    kind, value = random.choice(("<B", "<H", "<I", "<Q", ">I")), random.choice(BOUNDARIES)
    packed = struct.pack(kind, value % (1 << 8 * struct.calcsize(kind)))
    start = _place(data, random)
    data[start : start + len(packed)] = packed


def _splice(data: bytearray, random: Random, others: Sequence[bytes]) -> None:
    if others:
        other = random.choice(others)
        start, begin = _place(data, random), random.randrange(len(other) + 1)
        data[start:] = other[begin:]


def _swap(data: bytearray, random: Random, _others: Sequence[bytes]) -> None:
    start, other, size = _place(data, random), _place(data, random), random.choice((1, 4, 30, 512))
    one, two = bytes(data[start : start + size]), bytes(data[other : other + size])
    if len(one) == len(two):
        data[start : start + size], data[other : other + size] = two, one


Accident = Callable[[bytearray, Random, Sequence[bytes]], None]
ACCIDENTS: tuple[Accident, ...] = (
    _flip, _flip, _overwrite, _truncate, _delete, _insert, _token, _token, _repeat, _number, _number, _splice, _swap,
)  # fmt: skip


# ---- pickles: by opcodes, so that what comes out still has a meaning -------------------------------------------------


def damaged_pickle(data: bytes, random: Random, others: Sequence[bytes] = ()) -> bytes:
    """Values exchanged for others; opcodes left out, doubled, moved or taken from elsewhere; or bytes damaged."""
    way = random.random()
    if way < 0.15:
        return damaged(data, random, others)
    steps = _steps(data)
    for _ in range(random.choice((1, 1, 2, 3, 8))):
        if way < 0.3:
            _change_step(steps, random, others)
        else:
            _change_value(steps, random, others)
    return b"".join(steps)


def _change_value(steps: list[bytes], random: Random, others: Sequence[bytes]) -> None:
    """Another value for one that a single opcode pushes, or more values where a run of them ends: the stack fits."""
    leaves = [place for place, step in enumerate(steps) if step[:1] in LEAVES]
    ends = [place for place, step in enumerate(steps) if step[:1] in b"uetld" and step]
    if ends and random.random() < 0.15:
        option = random.choice(OPTIONS)
        value = random.choice((*VALUES, *OPTION_VALUES)) if random.random() < 0.7 else _value(steps, leaves, random)
        place = next((each for each in ends if steps[each] == b"u"), ends[0])
        steps[place:place] = [b"X" + struct.pack("<I", len(option)) + option, value]
    elif ends and random.random() < 0.2:
        place = random.choice(ends)
        count = 2 if steps[place] in b"ud" else random.choice((1, 1, 2, 5))
        steps[place:place] = [_value(steps, leaves, random) for _ in range(count)]
    elif leaves:
        place = random.choice(leaves)
        steps[place] = _value(steps, leaves, random) if random.random() < 0.7 else _near(steps[place], random)


def _value(steps: list[bytes], leaves: list[int], random: Random) -> bytes:
    """A value of the file itself, an odd one, or one that holds some."""
    way = random.random()
    if way < 0.45 and leaves:
        return steps[random.choice(leaves)]
    if way < 0.8:
        return random.choice(VALUES)
    inner = b"".join(_value(steps, leaves, random) for _ in range(random.choice((1, 2, 2, 4))))
    return random.choice((b"(" + inner + b"t", b"](" + inner + b"e", b"ca\nb\n(" + inner + b"tR",
        b"ccollections\nOrderedDict\n(" + inner + b"tR",
                          b"ctorch._utils\n_rebuild_tensor_v2\n(" + inner + b"tR", b"(" + inner + b"tQ"))  # fmt: skip


def _near(step: bytes, random: Random) -> bytes:
    """The same opcode with another argument."""
    code = step[:1]
    if code == b"K":
        return code + bytes([random.choice((0, 1, 2, 3, 15, 17, 255, random.randrange(256)))])
    if code == b"X":
        text = _renamed(step[5:], random) if random.random() < 0.7 else damaged(step[5:], random)
        return code + struct.pack("<I", len(text)) + text
    if code == b"c":
        return code + b"\n".join(
            [*(damaged(part, random).replace(b"\n", b"") for part in step[1:-1].split(b"\n")[:2]), b""]
        )
    if code in b"hjMJ":
        return code + random.randbytes(len(step) - 1)
    return step


def _renamed(text: bytes, random: Random) -> bytes:
    """A dotted name with a part left out, doubled, or exchanged for another one."""
    parts = text.split(b".")
    place, kind = random.randrange(len(parts)), random.randrange(4)
    if kind == 0:
        del parts[place]
    elif kind == 1:
        parts.insert(place, parts[place])
    else:
        parts[place] = random.choice(PARTS)
    return b".".join(parts)


PARTS = (
    *(b"", b"norm", b"0", b"1", b"2", b"99", b"-1", b"00", b"\xd9\xa3", b"9" * 5000, b"weight", b"bias",
      b"weight_orig", b"weight_u", b"weight_v"),
    *(b"encoder", b"decoder", b"sentence_encoder", b"layers", b"lm_head", b"dense", b"out_proj", b"in_proj_weight",
      b"in_proj_bias", b"q_proj"),
    *(b"q_proj_weight", b"emb_layer_norm", b"layer_norm", b"layernorm_embedding", b"layer_norms", b"self_attn",
      b"fc1", b"embed_positions"),
    *(b"embed_tokens", b"classification_heads", b"regression_head", b"_float_tensor", b"version", b"quant_noise",
      b"flat_param_0", b"model"),
)  # fmt: skip
OPTIONS = (
    *(b"arch", b"task", b"criterion", b"activation_fn", b"pooler_activation_fn", b"attention_dropout", b"dropout",
      b"pooler_dropout"),
    *(b"encoder_attention_heads", b"encoder_layers_to_keep", b"decoder_layers_to_keep", b"encoder_normalize_before",
      b"max_positions"),
    *(b"no_scale_embedding", b"encoder_learned_pos", b"no_token_positional_embeddings", b"untie_weights_roberta",
      b"regression_target"),
    *(b"classification_head_name", b"ranking_head_name", b"num_classes", b"tokens_per_sample", b"layernorm_embedding"),
)  # fmt: skip
OPTION_VALUES = (
    *(b"K\x01", b"K\x02", b"K\x08", b"M\x00\x10", b"J\xff\xff\xff\x7f", b"G?\xe0\0\0\0\0\0\0", b"G@\x59\0\0\0\0\0\0",
      b"\x88", b"\x89"),
    *(b"X\x04\x00\x00\x000,99", b"X\x01\x00\x00\x00a", b"X\x0d\x00\x00\x00roberta_large", b"X\x88\x13\x00\x00"
      + b"7" * 5000),
)  # fmt: skip
VALUES = (
    *(b"N", b"\x88", b"\x89", b")", b"]", b"}", b"\x8f", b"K\x00", b"K\x01", b"K\xff", b"J\xff\xff\xff\xff",
      b"M\xff\xff", b"J\xff\xff\xff\x7f"),
    *(b"\x8a\x09" + b"\xff" * 8 + b"\x7f", b"\x8a\x08" + b"\xff" * 7 + b"\x0f", b"\x8a\xff" + b"\x77" * 255,
      b"I99999999999999999999\n"),
    *(b"F1e400\n", b"Fnan\n", b"F-0.5\n", b"F3.0\n", b"X\x00\x00\x00\x00", b"X\x03\x00\x00\x00\xed\xb3\xbf",
      b"X\x02\x00\x00\x00\x1b[", b"C\x02ab"),
    *(b"cos\nsystem\n", b"ctorch\nLongStorage\n", b"ctorch\nHalfStorage\n", b"ctorch\nDoubleStorage\n",
      b"ctorch\nBoolStorage\n", b"ctorch\nfloat16\n"),
    *(b"ca\nb\n)R", b"ca\nb\n)\x81}b", b"ctorch\nSize\n(K\x10tR", b"(K\x10K\x10t", b"(K\x00K\x00t", b"(K\x10K\x00t",
      b"\x82\x01", b"Pid\n"),
    *(b"X\x05\x00\x00\x00swish", b"X\x04\x00\x00\x00relu", b"X\x04\x00\x00\x00tanh", b"X\x03\x00\x00\x000,1",
      b"X\x01\x00\x00\x000"),
    *(b"X\x10\x00\x00\x00sentence_ranking", b"X\x05\x00\x00\x00model", b"X\x04\x00\x00\x00name"),
)  # fmt: skip
LEAVES = {
    bytes([ord(op.code)])
    for op in pickletools.opcodes
    if not op.stack_before and len(op.stack_after) == 1 and op.code != "(" and op.proto < 5
}


def _steps(data: bytes) -> list[bytes]:
    places = [place for _op, _argument, place in pickletools.genops(data) if place is not None]
    return [data[start:stop] for start, stop in zip(places, [*places[1:], len(data)], strict=True)]


def _change_step(steps: list[bytes], random: Random, others: Sequence[bytes]) -> None:
    place, kind = random.randrange(len(steps)), random.randrange(9)
    if kind == 0:
        del steps[place]
    elif kind == 1:
        steps.insert(place, steps[place])
    elif kind == 2:
        other = random.randrange(len(steps))
        steps[place], steps[other] = steps[other], steps[place]
    elif kind == 3:
        steps.insert(place, random.choice(PIECES))
    elif kind == 4:
        steps[place] = random.choice(PIECES)
    elif kind == 5 and others:
        other = _steps(random.choice(others))
        start = random.randrange(len(other))
        steps[place:place] = other[start : start + random.choice((1, 3, 20))]
    elif kind == 6:
        steps[place : place + random.choice((2, 5, 30))] = []
    elif kind == 7:
        start = random.randrange(len(steps))
        steps[place:place] = steps[start : start + random.choice((3, 20, 60))]
    elif len(steps[place]) > 1:
        steps[place] = steps[place][:1] + damaged(steps[place][1:], random)
    if not steps:
        steps.append(b".")


PIECES = (
    *(b"N", b"\x88", b"\x89", b")", b"]", b"}", b"\x8f", b"(", b"0", b"1", b"2", b"a", b"e", b"s", b"u", b"t", b"l",
      b"d", b"o"),
    *(b"R", b"b", b"\x81", b"\x92", b"\x93", b"\x85", b"\x86", b"\x87", b"Q", b"\x94", b"q\x00", b"h\x00",
      b"r\xff\xff\xff\xff", b"\x90", b"\x91"),
    *(b"K\x00", b"K\xff", b"J\xff\xff\xff\xff", b"M\xff\xff", b"I-1\n", b"I99999999999999999999\n", b"\x8a\x09"
      + b"\xff" * 8 + b"\x7f"),
    *(b"F1e400\n", b"Fnan\n", b"G\x7f\xf0\0\0\0\0\0\0", b"X\x00\x00\x00\x00", b"Va\\ud800\n",
      b"X\x03\x00\x00\x00\xed\xb3\xbf", b"C\x02ab"),
    *(b"cos\nsystem\n", b"ctorch\nFloatStorage\n", b"ctorch\nLongStorage\n", b"ctorch\nHalfStorage\n",
      b"ctorch._utils\n_rebuild_tensor_v2\n"),
    *(b"ctorch._utils\n_rebuild_tensor_v3\n", b"ctorch._utils\n_rebuild_parameter\n", b"ccollections\nOrderedDict\n",
      b"ctorch\nSize\n"),
    *(b"ctorch._tensor\n_rebuild_from_type_v2\n", b"cargparse\nNamespace\n", b"comegaconf.dictconfig\nDictConfig\n",
      b"Pid\n", b"\x82\x01"),
    *(b"\x95" + b"\xff" * 8, b"\x8b\xff\xff\xff\x7f", b"\x8d" + b"\xff" * 8, b"B\xff\xff\xff\xff", b"(i", b"."),
)  # fmt: skip


# ---- lines -----------------------------------------------------------------------------------------------------------


def damaged_lines(data: bytes, random: Random, others: Sequence[bytes] = ()) -> bytes:
    """Lines left out, doubled, exchanged, or with other symbols and counts; or bytes damaged."""
    if random.random() < 0.3:
        return damaged(data, random, others)
    lines = data.splitlines(keepends=True) or [b""]
    for _ in range(random.choice((1, 1, 2, 5))):
        place = random.randrange(len(lines))
        symbol = lines[place].rpartition(b" ")[0] if lines[place] else b""
        lines[place] = random.choice((
            b"", lines[place] * 2, random.choice(lines), symbol + b" 1 #fairseq:overwrite\n", symbol + b"\n", symbol
                + b" x\n",
            symbol + b" 1\r\n", symbol + b" 1\r", b" 1\n", b"\n", symbol + b"  1\n", random.choice(TOKENS) + b" 1\n",
            symbol + b" " + random.choice((b"-1", b"1.5", b"9" * 5000, "\u0661".encode(), b"1_0", b"0x1", b"")) + b"\n",
            random.choice(("<s>", "<pad>", "</s>", "<unk>", "<mask>", "\u00a0", "\u2028", "\ufeff", "\u3000",
                "\u4e00\u4e01")).encode() + b" 1\n",
        ))  # fmt: skip
        lines = b"".join(lines).splitlines(keepends=True) or [b""]
    return b"".join(lines)


# ---- protobuf: fields with their lengths mended ----------------------------------------------------------------------


def damaged_message(data: bytes, random: Random, others: Sequence[bytes] = ()) -> bytes:
    """Fields left out, doubled, exchanged or changed inside, at any depth; or bytes damaged."""
    if random.random() < 0.35:
        return damaged(data, random, others)
    for _ in range(random.choice((1, 1, 2, 4))):
        data = _with_changed_field(data, random)
    return data


def _with_changed_field(data: bytes, random: Random, depth: int = 0) -> bytes:
    fields = _fields(data)
    if not fields:
        return damaged(data, random)
    place = random.randrange(len(fields))
    kind = random.randrange(7)
    if kind == 0:
        del fields[place]
    elif kind == 1:
        fields.insert(random.randrange(len(fields)), fields[place])
    elif kind == 2:
        other = random.randrange(len(fields))
        fields[place], fields[other] = fields[other], fields[place]
    elif kind == 3:
        fields[place] = _encoded(random.randrange(1, 40) << 3, random.choice(BOUNDARIES))
    else:
        fields[place] = _changed(fields[place], random, depth)
    return b"".join(fields)


def _changed(field: bytes, random: Random, depth: int) -> bytes:
    tag, start = _varint(field, 0)
    if tag & 7 == 0:
        return _encoded(tag, random.choice((*BOUNDARIES, 4, 5, 6)))
    if tag & 7 == 2:
        _size, start = _varint(field, start)
        inner = field[start:]
        nested = depth < 2 and random.random() < 0.7
        made = _with_changed_field(inner, random, depth + 1) if nested and inner else damaged(inner, random)
        return _number_bytes(tag) + _number_bytes(len(made)) + made
    value = random.choice((b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\xff\xff\x7f\x7f", b"\0\0\0\0", random.randbytes(4)))
    return field[:start] + (value if tag & 7 == 5 else value * 2)


def _fields(data: bytes) -> list[bytes]:
    """The fields of a message, none where it does not parse."""
    found, place = [], 0
    try:
        while place < len(data):
            start = place
            tag, place = _varint(data, place)
            if tag & 7 == 0:
                _value, place = _varint(data, place)
            elif tag & 7 == 2:
                size, place = _varint(data, place)
                place += size
            elif tag & 7 in (1, 5):
                place += 8 if tag & 7 == 1 else 4
            else:
                return []
            if place > len(data):
                return []
            found.append(data[start:place])
    except IndexError:
        return []
    return found


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[place]
        place, value, shift = place + 1, value | (byte & 0x7F) << shift, shift + 7
        if byte < 0x80 or shift > 70:
            return value, place


def _number_bytes(value: int) -> bytes:
    made = b""
    while value > 127:
        made += bytes([value & 127 | 128])
        value >>= 7
    return made + bytes([value])


def _encoded(tag: int, value: int) -> bytes:
    return _number_bytes(tag & ~7) + _number_bytes(value)


# ---- JSON: values exchanged for others -------------------------------------------------------------------------------

RAW_VALUES = (
    *(b"null", b"true", b"[]", b"{}", b'""', b"0", b"-1", b"1.5", b"1e999", b"-1e999", b"NaN", b"Infinity", b"1e300"),
    *(b"9" * 30, b"9" * 900, b"9" * 5000, b"18446744073709551616", b"9223372036854775807", b"4294967296", b"-0"),
    *(b'"\\ud800"', b'"\\u0000"', b'"\\ud83d\\ude00"', b'"\\u001b[2J"', b'"../x"', b'"/etc/passwd"', b'"<mask>"'),
    *(b"[" * 90 + b"]" * 90, b"[" * 2000 + b"]" * 2000, b'{"a":' * 500 + b"1" + b"}" * 500, b'["a", 1]', b"1E5"),
    *(b'{"0": "a"}', b'{"' + b"9" * 5000 + b'": {"content": "<mask>"}}', b'[{"id": 1e9, "content": 5}]', b"[1, 2, 3]"),
    *(b'"F32"', b'[["a", 1.0]]'),
)
MARK = "@@{}@@"


def damaged_json(data: bytes, random: Random, others: Sequence[bytes] = ()) -> bytes:
    """Values exchanged for others, left out, or put in a second time, at any depth; or bytes damaged."""
    if random.random() < 0.3:
        return damaged(data, random, others)
    content, raw = json.loads(data), []
    for _ in range(random.choice((1, 1, 2, 4))):
        held, key = _place_in(content, random)
        if held is None:
            break
        kind = random.randrange(6)
        if kind == 0 and isinstance(held, dict):
            del held[key]
        elif kind == 1 and isinstance(held, dict):
            held[random.choice((f"{key} ", str(key).upper(), "", "__metadata__", "\ud800", "9" * 5000))] = held.pop(key)
        elif kind == 2 and isinstance(held[key], int):
            held[key] = random.choice((held[key] + 1, held[key] - 1, -held[key], held[key] * 2, *BOUNDARIES))
        else:
            held[key] = MARK.format(len(raw))
            raw.append(random.choice(RAW_VALUES))
    made = json.dumps(content).encode()
    for number, value in enumerate(raw):
        made = made.replace(json.dumps(MARK.format(number)).encode(), value)
    return made


def _place_in(content: Any, random: Random) -> tuple[Any, Any]:
    """An object or a list somewhere in the content, and a key of it; None where there is none."""
    held, key = None, None
    while isinstance(content, (dict, list)) and content:
        held, key = content, random.choice(list(content) if isinstance(content, dict) else range(len(content)))
        content = held[key]
        if random.random() < 0.25:
            break
    return held, key


def damaged_header(data: bytes, random: Random, others: Sequence[bytes] = ()) -> bytes:
    """The JSON at the beginning of a safetensors file damaged, its length mended; names twice; or bytes damaged."""
    if random.random() < 0.2:
        return damaged(data, random, others)
    length = int.from_bytes(data[:8], "little")
    header, rest = data[8 : 8 + length], data[8 + length :]
    if random.random() < 0.15:
        names = [name for name in json.loads(header) if name != "__metadata__"]
        one, other = (json.dumps(random.choice(names)).encode() + b":" for _ in range(2))
        header = header.replace(one, other, 1)
    else:
        header = damaged_json(header, random)
    told = len(header) if random.random() < 0.9 else random.choice(BOUNDARIES)
    rest = rest if random.random() < 0.9 else damaged(rest, random)
    return struct.pack("<Q", told % 2**64) + header + rest


# ---- Parquet: most of it is said at its end --------------------------------------------------------------------------


def damaged_parquet(data: bytes, random: Random, others: Sequence[bytes] = ()) -> bytes:
    """The description at the end damaged, its length mended; a page damaged; or bytes anywhere."""
    length = int.from_bytes(data[-8:-4], "little")
    pages, told = data[: -8 - length], data[-8 - length : -8]
    way = random.random()
    if way < 0.5:
        told = damaged(told, random)
        return pages + told + struct.pack("<I", len(told)) + b"PAR1"
    if way < 0.9:
        made = bytearray(pages)
        for _ in range(random.choice((1, 1, 2, 5))):
            random.choice((_flip, _overwrite, _number))(made, random, others)
        return bytes(made[: len(pages)]) + data[len(pages) :]
    return damaged(data, random, others)


# ---- tar: headers with their checksums mended ------------------------------------------------------------------------


def damaged_tar(data: bytes, random: Random, others: Sequence[bytes] = ()) -> bytes:
    """Fields of headers changed, blocks moved; or bytes damaged."""
    if random.random() < 0.3:
        return damaged(data, random, others)
    blocks = [data[start : start + 512] for start in range(0, len(data), 512)]
    for _ in range(random.choice((1, 1, 2, 4))):
        headers = [place for place, block in enumerate(blocks) if block[257:262] == b"ustar"]
        if not headers:
            break
        place, kind = random.choice(headers), random.randrange(6)
        if kind == 0:
            blocks.insert(random.choice(headers), blocks[place])
        elif kind == 1:
            del blocks[place]
        elif kind == 2:
            blocks[place:place] = _extended(random)
        else:
            blocks[place] = _with_checksum(_changed_header(blocks[place], random))
    return b"".join(blocks)


FIELDS = (
    (0, 100),
    (100, 8),
    (124, 12),
    (136, 12),
    (156, 1),
    (157, 100),
    (257, 8),
    (329, 8),
    (345, 155),
    (386, 96),
    (482, 1),
)


def _changed_header(block: bytes, random: Random) -> bytes:
    start, size = random.choice(FIELDS)
    value = random.choice((
        b"", b"../x.pt", b"/x.pt", b"m/model.pt", b"m", b"m/dict.txt", b"\xff", b"7" * size, b"-1", b"\x80"
            + b"\xff" * size, b"\xff" * size,
        b"%011o\0" % random.choice(BOUNDARIES[:18]), random.choice(b"0123456789LKxgSVDX\0").to_bytes(1, "little"),
            b"x" * size,
        random.randbytes(size),
    ))  # fmt: skip
    return block[:start] + value[:size].ljust(size, b"\0") + block[start + size :]


def _with_checksum(block: bytes) -> bytes:
    blanked = block[:148] + b" " * 8 + block[156:]
    return block[:148] + b"%06o\0 " % sum(blanked) + block[156:]


def _extended(random: Random) -> list[bytes]:
    """A long name or an extended header, and its content."""
    content = random.choice((
        b"m/" + b"y" * 150 + b".pt\0", b"19 path=m/model.pt\n", b"12 size=999\n", b"11 size=-1\n", b"9 path=\n",
            b"0 a=b\n", b"99999 a=b\n",
        b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n", b"20 GNU.sparse.map=0,1\n",
            b"23 hdrcharset=BINARY\n1 1 1=", b"1" * 300, b"",
        b"27 mtime=1700000000.000001\n",
    ))  # fmt: skip
    header = bytearray(512)
    header[0:1], header[100:107], header[124:136] = b"x", b"0000644", b"%011o\0" % len(content)
    header[156:157], header[257:265] = random.choice((b"x", b"g", b"L", b"K", b"X")), b"ustar\x0000"
    return [_with_checksum(bytes(header)), content + bytes(-len(content) % 512)]


# ---- zip: members changed, and everything that depends on them mended ------------------------------------------------


def rezipped(data: bytes, change: Callable[[bytes], bytes]) -> bytes:
    """A zip whose `data.pkl` is changed, with the checksum and all offsets as they must be."""
    import zipfile

    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(made, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            new.writestr(zipfile.ZipInfo(name), change(content) if name.endswith("data.pkl") else content)
    return made.getvalue()
