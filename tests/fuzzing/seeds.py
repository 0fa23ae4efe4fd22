"""What the fuzzer begins with: small whole checkpoints of every kind, as files by name."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import tarfile
import zipfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

from fuzzing.formats import legacy_file, pickles_of, zip_file
from fuzzing.messages import charsmap_of, message, piece, sentencepiece
from fuzzing.mutations import (
    damaged,
    damaged_header,
    damaged_json,
    damaged_lines,
    damaged_message,
    damaged_parquet,
    damaged_pickle,
    damaged_tar,
    rezipped,
)

__all__ = ["KINDS", "OF_DOORS", "Source", "mutant", "sources", "whole"]

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
KINDS = ("pickle", "zip", "legacy", "dict", "spm", "tar", "labels")
"""Sources, for `convert` and `inspect`."""
OF_DOORS = ("sentencepiece", "tokenizer.json", "config.json", "header", "parquet")
"""Single files, each for all that reads it (`doors.py`)."""
COMPANIONS = ("dict.txt", "sentencepiece.bpe.model", "label/dict.txt")


@dataclass(frozen=True)
class Source:
    """The files of a source; one whose only name is `m` is a file and no folder."""

    files: dict[str, bytes]

    @property
    def size(self) -> int:
        """The bytes of all files."""
        return sum(map(len, self.files.values()))

    def write(self, folder: Path) -> Path:
        """Write it below `folder`; gives what `convert` is given."""
        for name, data in self.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return folder / "m"

    def with_file(self, name: str, data: bytes) -> Source:
        """The same with another file."""
        return Source({**self.files, name: data})


def mutant(kind: str, number: int, seed: int) -> Source:
    """Input `number` of a kind; the same numbers give the same bytes."""
    random = Random(f"{seed} {kind} {number}")
    return _MAKERS[kind](random)


# ---- seeds -----------------------------------------------------------------------------------------------------------


@cache
def sources() -> dict[str, Source]:
    """Checkpoints of the factory and of real fairseq, by name."""
    made = {
        name: _packed(_slim(_folder(FIXTURES / name)))
        for name in ("v0102", "v090half", "omegaconf", "v0122cls", "fsdp")
    }
    base = made["v0102"].files
    for name, model in _factory_files().items():
        dictionary = _factory_dictionary()
        made[name] = Source({"m/model.pt": model, "m/dict.txt": dictionary})
    made["with pieces"] = Source({**made["zip"].files, "m/sentencepiece.bpe.model": base["m/sentencepiece.bpe.model"]})
    made["with rules"] = Source({**made["zip"].files, "m/sentencepiece.bpe.model": _with_rules()})
    bpe = (FIXTURES / "v0122bpe" / "sentencepiece.bpe.model").read_bytes()
    made["with merges"] = Source({**made["zip"].files, "m/sentencepiece.bpe.model": bpe})
    return made


def _folder(folder: Path) -> Source:
    names = [path.name for path in sorted(folder.glob("*.pt"))] + [
        name for name in COMPANIONS if (folder / name).is_file()
    ]
    return Source({f"m/{name}": (folder / name).read_bytes() for name in names})


def _slim(source: Source) -> Source:
    """Without the large normalisation rules, which take half a second to read."""
    return Source({name: data if len(data) < 200_000 else _with_rules() for name, data in source.files.items()})


def _packed(source: Source) -> Source:
    """Zips without PyTorch's alignment and without the optimizer's storages, so that they are small."""
    return Source({name: _unaligned(data) if data[:2] == b"PK" else data for name, data in source.files.items()})


def _unaligned(data: bytes) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(made, "w") as new:
        for name in old.namelist():
            new.writestr(zipfile.ZipInfo(name), old.read(name))
    return made.getvalue()


def _factory_files() -> dict[str, bytes]:
    from fuzzing.formats import clean_state, pair, storage, tensor

    state = clean_state()
    with_head = clean_state()
    for part, shape in (
        ("dense.weight", (16, 16)),
        ("dense.bias", (16,)),
        ("out_proj.weight", (2, 16)),
        ("out_proj.bias", (2,)),
    ):
        with_head.model[f"classification_heads.mnli.{part}"] = tensor(storage("1", 960), shape)
    with_ema = clean_state()
    with_ema.more.append(
        pair(
            "extra_state",
            b"}(" + pair("ema", b"}(" + b"".join(pair(*item) for item in list(state.model.items())[:9]) + b"u") + b"u",
        )
    )
    with_views = clean_state()
    name = "encoder.sentence_encoder.layers.0.fc1.weight"
    with_views.model[name] = tensor(storage("1", 960), (24, 16), (2, 24))
    return {
        "zip": state.file("zip"),
        "legacy": state.file("legacy"),
        "head": with_head.file("zip"),
        "legacy head": with_head.file("legacy"),
        "ema": with_ema.file("zip"),
        "views": with_views.file("zip"),
    }


@cache
def _factory_dictionary() -> bytes:
    from factory import SYMBOLS

    return "".join(f"{symbol} 1\n" for symbol in SYMBOLS).encode()


def _with_rules() -> bytes:
    """The small SentencePiece model with a few normalisation rules: of one byte, of two, and of a run."""
    model = (FIXTURES / "v0102" / "sentencepiece.bpe.model").read_bytes()
    return model + message(3, message(2, charsmap_of({"a": "x", "ab": "y", "\u00e9": "e\u0301"})))


# ---- mutants ---------------------------------------------------------------------------------------------------------

ZIPS = ("zip", "zip", "head", "ema", "views", "with pieces", "v0102", "v0122cls", "omegaconf", "fsdp")
LEGACIES = ("legacy", "legacy", "legacy head", "v090half")


def _model_name(source: Source) -> str:
    return next(name for name in source.files if name.endswith(".pt"))


@cache
def _pickles() -> tuple[bytes, ...]:
    """The pickles of all zips, to splice from."""
    found = []
    for name in dict.fromkeys(ZIPS):
        data = sources()[name].files[_model_name(sources()[name])]
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            found.append(archive.read(next(each for each in archive.namelist() if each.endswith("data.pkl"))))
    return tuple(found)


def _of_pickle(random: Random) -> Source:
    source = sources()[random.choice(ZIPS)]
    name = _model_name(source)
    return source.with_file(name, rezipped(source.files[name], lambda data: damaged_pickle(data, random, _pickles())))


def _of_zip(random: Random) -> Source:
    source = sources()[random.choice(ZIPS)]
    name = _model_name(source)
    data = source.files[name]
    if random.random() < 0.5:  # the directory, where most of the meaning is
        start = int.from_bytes(data[data.rindex(b"PK\x05\x06") + 16 :][:4], "little")
        return source.with_file(name, data[:start] + damaged(data[start:], random))
    other = sources()[random.choice(ZIPS)]
    return source.with_file(name, damaged(data, random, [other.files[_model_name(other)]]))


def _of_legacy(random: Random) -> Source:
    source = sources()[random.choice(LEGACIES)]
    name = _model_name(source)
    data = source.files[name]
    if random.random() < 0.3:
        return source.with_file(name, damaged(data, random))
    part = random.choice(pickles_of(data))
    return source.with_file(
        name, data[: part.start] + damaged_pickle(data[part], random, _pickles()[:2]) + data[part.stop :]
    )


def _of_dict(random: Random) -> Source:
    source = sources()[random.choice(("zip", "with pieces", "with rules", "with merges", "v0102", "v090half"))]
    return source.with_file("m/dict.txt", damaged_lines(source.files["m/dict.txt"], random))


def _of_spm(random: Random) -> Source:
    source = sources()[random.choice(("with pieces", "with rules", "with merges", "v0102", "omegaconf"))]
    name = "m/sentencepiece.bpe.model"
    return source.with_file(name, damaged_message(source.files[name], random))


def _of_labels(random: Random) -> Source:
    source = sources()[random.choice(("v0122cls", "head"))]
    labels = source.files.get("m/label/dict.txt", b"no 1\nyes 1\n")
    return source.with_file("m/label/dict.txt", damaged_lines(labels, random))


@cache
def _tars() -> dict[str, bytes]:
    found = {}
    for name in ("zip", "legacy", "v0122cls"):
        for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
            made = io.BytesIO()
            with tarfile.open(fileobj=made, mode="w", format=form) as archive:
                for file, data in sources()[name].files.items():
                    info = tarfile.TarInfo(
                        file + ("\u00fc" if form == tarfile.PAX_FORMAT and file.endswith("x") else "")
                    )
                    info.size, info.mtime = len(data), 1.5 if form == tarfile.PAX_FORMAT else 1  # type: ignore[assignment]
                    archive.addfile(info, io.BytesIO(data))
            found[f"{name} {form}"] = made.getvalue().rstrip(b"\0") + bytes(1536)
    return found


def _of_tar(random: Random) -> Source:
    data = _tars()[random.choice(list(_tars()))]
    packing = random.choice(("tar", "tar", "gzip", "xz", "gzip, damaged", "xz, damaged"))
    if packing.endswith("damaged"):
        packed = gzip.compress(data, 1, mtime=0) if "gzip" in packing else lzma.compress(data, preset=0)
        return Source({"m": damaged(packed, random)})
    made = damaged_tar(data, random, list(_tars().values()))
    if packing == "tar":
        return Source({"m": made})
    return Source({"m": gzip.compress(made, 1, mtime=0) if packing == "gzip" else lzma.compress(made, preset=0)})


# ---- single files, in the folders where they lie ---------------------------------------------------------------------


@cache
def _models() -> tuple[bytes, ...]:
    """SentencePiece's models, small ones: unigrams, merges, rules, bytes, and what users define."""
    special = (piece("<x>", 0, 4), piece("ab", 0, 4), piece("b", 0, 5), piece("aa", -3), piece("\u2581a", -2))
    every_byte = b"".join(piece(f"<0x{value:02X}>", 0, 6) for value in range(256))
    rules = charsmap_of({"a": "x", "ab": "y", "\u00e9": "e\u0301", "\uff21": "A", "\ufb01": "fi", "\x7f": ""})
    return (
        (FIXTURES / "v0102" / "sentencepiece.bpe.model").read_bytes(),
        (FIXTURES / "v0122bpe" / "sentencepiece.bpe.model").read_bytes(),
        _with_rules(),
        *(sentencepiece(b"".join(special), kind=kind, charsmap=rules) for kind in (1, 2, 3, 4)),
        sentencepiece(piece("a") + every_byte, byte_fallback=True),
        sentencepiece(piece("a")) + message(4, message(1, message(1, b"a b") + message(2, b"a b"))),
    )


@cache
def _converted() -> Source:
    """A small folder that `convert` made."""
    from hf_xlmr.conversion import convert

    with TemporaryDirectory() as place:
        folder = Path(place) / "m"
        convert(FIXTURES / "v0122prenorm", folder, verify=False)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        return Source({path.relative_to(place).as_posix(): path.read_bytes() for path in files})


@cache
def _foreign() -> Source:
    """The same as others have it, without what is kept for fairseq."""
    return Source({name: data for name, data in _converted().files.items() if not name.startswith("m/fairseq/")})


@cache
def _tables() -> tuple[bytes, ...]:
    """Parquet files of texts and labels: plain and from a dictionary, packed in several ways, with holes, in lists."""
    import pyarrow
    from pyarrow import parquet

    texts = [f"text {number} \u00e9\U0001f600" * (number % 4) for number in range(40)]
    holes: list[str | None] = [None if number % 7 == 3 else text for number, text in enumerate(texts)]
    plain = pyarrow.table({"text": texts, "id": range(40), "label": [number % 3 for number in range(40)]})
    lists = pyarrow.table(
        {"tokens": [text.split() for text in texts], "text": holes, "id": [str(n) for n in range(40)]}
    )
    known = {"info": {"features": {"label": {"names": ["a", "b", "c"], "_type": "ClassLabel"}}}}
    told = plain.replace_schema_metadata({"huggingface": json.dumps(known)})
    made = []
    for table, options in (
        (plain, {"compression": "none", "use_dictionary": False}),
        (told, {"compression": "snappy", "row_group_size": 16}),
        (lists, {"compression": "zstd", "data_page_size": 64}),
        (lists, {"compression": "gzip", "data_page_version": "2.0"}),
    ):
        sink = io.BytesIO()
        parquet.write_table(table, sink, **options)
        made.append(sink.getvalue())
    return tuple(made)


def whole(kind: str) -> Source:
    """A folder for a door, undamaged."""
    if kind == "sentencepiece":
        return Source({"m/sentencepiece.bpe.model": _models()[0]})
    return Source({"m/texts.parquet": _tables()[0]}) if kind == "parquet" else _converted()


def _of_model(random: Random) -> Source:
    return Source({"m/sentencepiece.bpe.model": damaged_message(random.choice(_models()), random, _models())})


def _of_tokenizer(random: Random) -> Source:
    source = random.choice((_converted(), _foreign()))
    name = random.choice(("m/tokenizer.json", "m/tokenizer.json", "m/tokenizer_config.json"))
    return source.with_file(name, damaged_json(source.files[name], random))


def _of_config(random: Random) -> Source:
    source = random.choice((_converted(), _foreign()))
    records = [name for name in ("m/fairseq/conversion.json", "m/fairseq/options.json") if name in source.files]
    name = random.choice(("m/config.json", "m/config.json", "m/config.json", *records))
    return source.with_file(name, damaged_json(source.files[name], random))


def _of_header(random: Random) -> Source:
    name = "m/model.safetensors"
    return _converted().with_file(name, damaged_header(_converted().files[name], random))


def _of_parquet(random: Random) -> Source:
    return Source({"m/texts.parquet": damaged_parquet(random.choice(_tables()), random, _tables())})


_MAKERS = {
    "sentencepiece": _of_model,
    "tokenizer.json": _of_tokenizer,
    "config.json": _of_config,
    "header": _of_header,
    "parquet": _of_parquet,
    "pickle": _of_pickle,
    "zip": _of_zip,
    "legacy": _of_legacy,
    "dict": _of_dict,
    "spm": _of_spm,
    "tar": _of_tar,
    "labels": _of_labels,
}
assert set(_MAKERS) == {*KINDS, *OF_DOORS}
assert callable(zip_file) and callable(legacy_file)
