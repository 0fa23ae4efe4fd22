"""What is written is what was read: to the bit where nothing is cast, as PyTorch rounds where it is, always alike."""

from __future__ import annotations

import json
import os
import re
import time
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from factory import HIDDEN, Checkpoint, E, weights
from places import FIXTURES
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM

from hf_xlmr.conversion import convert
from hf_xlmr.conversion.checkpoint.containers import open_container
from hf_xlmr.conversion.checkpoint.pickles import TensorRef
from hf_xlmr.conversion.checkpoint.weights import Cast, Stored, Weight, _joined
from hf_xlmr.conversion.output.safetensors_writer import parse_size, write_weights
from hf_xlmr.conversion.source.slices import FileSlice
from hf_xlmr.errors import InputError, IntegrityError
from hf_xlmr.model.stored_weights import present_name

DTYPES = {name: getattr(torch, name) for name in ("float32", "float16", "bfloat16", "float64")}
INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
LIMIT = 4000


def stored(tensors: dict[str, torch.Tensor], folder: Path) -> dict[str, Weight]:
    """The tensors as weights that lie in a file of PyTorch's."""
    torch.save(tensors, folder / "stored.pt")
    container = open_container(FileSlice.whole(folder / "stored.pt"))
    assert isinstance(container.value, dict)
    return {str(name): weight_of(str(name), ref, container.storages) for name, ref in container.value.items()}


def weight_of(name: str, ref: TensorRef, storages: dict[str, Any]) -> Weight:
    record = storages[ref.storage.key]
    return Stored.view(name, record, ref.storage.dtype, (ref.shape, ref.stride, ref.offset))


def written(given: dict[str, Weight], folder: Path, **options: Any) -> dict[str, torch.Tensor]:
    names = write_weights(given, folder, **{"max_shard_size": 1 << 30, **options})
    loaded: dict[str, torch.Tensor] = {}
    for name in names:
        loaded |= load_file(folder / name) if name.endswith(".safetensors") else {}
    return loaded


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    assert one.dtype == other.dtype
    kind = INTEGERS[one.element_size()]
    return torch.equal(one.contiguous().view(kind), other.contiguous().view(kind))


def files_of(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# ---- the format ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_safetensors_library_reads_what_was_stored(dtype: str, tmp_path: Path) -> None:
    tensors = {
        "matrix": torch.randn(7, 5).to(DTYPES[dtype]),
        "vector": torch.randn(3).to(DTYPES[dtype]),
        "scalar": torch.tensor(1.5).to(DTYPES[dtype]),
        "empty": torch.zeros(0, 4).to(DTYPES[dtype]),
        "transposed": torch.randn(6, 4).to(DTYPES[dtype]).t(),
        'name with spaces, "quotes" and ü': torch.randn(2, 2, 2).to(DTYPES[dtype]),
        "large": torch.randn(300, 1000).to(DTYPES[dtype]),
    }
    loaded = written(stored(tensors, tmp_path), tmp_path)
    assert loaded.keys() == tensors.keys()
    assert all(same_bits(loaded[name], tensor) for name, tensor in tensors.items())


def test_a_file_is_laid_out_as_the_format_asks(tmp_path: Path) -> None:
    tensors = {f"{index}": torch.randn(index + 1, 3) for index in range(5)}
    written(stored(tensors, tmp_path), tmp_path)
    data = (tmp_path / "model.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    assert length % 8 == 0 and data[8:9] == b"{"
    header = json.loads(data[8 : 8 + length])
    assert header.pop("__metadata__") == {"format": "pt"}
    offsets = [entry["data_offsets"] for entry in header.values()]
    assert offsets[0][0] == 0 and offsets[-1][1] == len(data) - 8 - length
    assert all(before[1] == after[0] for before, after in pairwise(offsets))


@pytest.mark.parametrize("limit", [1 << 30, 5000])
def test_weights_begin_at_multiples_of_64_bytes_whatever_biases_there_are(limit: int, tmp_path: Path) -> None:
    """A bias of XLM-R's LM head has 250,002 numbers, one of a classifier three."""
    sizes = {"a.bias": (250,), "b.bias": (3,), "c.weight": (16, 16), "d.bias": (16,), "e.weight": (32, 16)}
    tensors = {name: torch.randn(size) for name, size in sizes.items()}
    for name in write_weights(stored(tensors, tmp_path), tmp_path, max_shard_size=limit):
        if name.endswith(".safetensors"):
            loaded = safe_open(tmp_path / name, framework="pt")
            begins = {key: loaded.get_tensor(key).data_ptr() % 64 for key in loaded.keys()}  # noqa: SIM118
            assert not any(begins[key] for key in begins if key[0] in "cde"), begins
            assert all(torch.equal(loaded.get_tensor(key), tensors[key]) for key in begins)


def test_a_converted_folder_holds_the_source(tmp_path: Path) -> None:
    """Every name of B.1 by hand, so that neither the map nor the reader is asked."""
    source = weights()
    loaded = load_file(convert(Checkpoint().write(tmp_path / "m"), tmp_path / "out").output / "model.safetensors")
    respelled = {rename(name): tensor for name, tensor in source.items() if "version" not in name}
    del respelled["lm_head.decoder.weight"]
    respelled["roberta.embeddings.token_type_embeddings.weight"] = torch.zeros(1, HIDDEN)
    assert loaded.keys() == respelled.keys()
    assert all(same_bits(loaded[name], tensor) for name, tensor in respelled.items())


def rename(name: str) -> str:
    for old, new in (
        (E, "roberta."),
        ("roberta.embed_tokens", "roberta.embeddings.word_embeddings"),
        ("roberta.embed_positions", "roberta.embeddings.position_embeddings"),
        ("roberta.layernorm_embedding", "roberta.embeddings.LayerNorm"),
        ("roberta.layers.", "roberta.encoder.layer."),
        ("self_attn.q_proj", "attention.self.query"),
        ("self_attn.k_proj", "attention.self.key"),
        ("self_attn.v_proj", "attention.self.value"),
        ("self_attn.out_proj", "attention.output.dense"),
        ("self_attn_layer_norm", "attention.output.LayerNorm"),
        ("fc1", "intermediate.dense"),
        ("fc2", "output.dense"),
        ("final_layer_norm", "output.LayerNorm"),
        ("encoder.lm_head.weight", "lm_head.decoder.weight"),
        ("encoder.lm_head", "lm_head"),
    ):
        name = name.replace(old, new)
    return name


# ---- shards ----------------------------------------------------------------------------------------------------------


def test_shards_stay_within_the_limit_and_the_index_knows_them(tmp_path: Path) -> None:
    source = Checkpoint().write(tmp_path / "m")
    whole = load_file(convert(source, tmp_path / "whole", verify=False).output / "model.safetensors")
    folder = convert(source, tmp_path / "split", max_shard_size=str(LIMIT)).output
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    shards = sorted(path.name for path in folder.glob("*.safetensors"))
    count = len(shards)
    assert count > 3
    assert shards == [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in whole.values())
    assert index["weight_map"].keys() == whole.keys()
    for shard in shards:
        loaded = load_file(folder / shard)
        assert {name for name, place in index["weight_map"].items() if place == shard} == loaded.keys()
        assert len(loaded) == 1 or sum(tensor.nbytes for tensor in loaded.values()) <= LIMIT
        assert all(same_bits(tensor, whole[name]) for name, tensor in loaded.items())


def test_the_index_is_like_transformers_own(tmp_path: Path) -> None:
    source = Checkpoint().write(tmp_path / "m")
    folder = convert(source, tmp_path / "split", max_shard_size=str(LIMIT), verify=False).output
    ours = json.loads((folder / "model.safetensors.index.json").read_text())
    AutoModelForMaskedLM.from_pretrained(folder).save_pretrained(tmp_path / "theirs", max_shard_size=LIMIT)
    theirs = json.loads((tmp_path / "theirs" / "model.safetensors.index.json").read_text())
    assert ours.keys() == theirs.keys()
    assert ours["metadata"] == theirs["metadata"]
    assert ours["weight_map"].keys() == {present_name(name) for name in theirs["weight_map"]}
    names = [sorted(set(index["weight_map"].values()))[0] for index in (ours, theirs)]
    assert all(re.fullmatch(r"model-00001-of-\d{5}\.safetensors", name) for name in names)


def test_transformers_loads_shards_as_it_loads_one_file(tmp_path: Path) -> None:
    source = Checkpoint().write(tmp_path / "m")
    one = AutoModelForMaskedLM.from_pretrained(convert(source, tmp_path / "one", verify=False).output)
    folder = convert(source, tmp_path / "many", max_shard_size=str(LIMIT), verify=False).output
    many, loading = AutoModelForMaskedLM.from_pretrained(folder, output_loading_info=True)
    assert not any(loading[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    theirs = many.state_dict()
    assert all(same_bits(tensor, theirs[name]) for name, tensor in one.state_dict().items())


def test_a_weight_larger_than_the_limit_is_alone_in_its_shard(tmp_path: Path) -> None:
    tensors = {"a": torch.ones(10), "b": torch.ones(100), "c": torch.ones(10), "d": torch.ones(10)}
    names = write_weights(stored(tensors, tmp_path), tmp_path, max_shard_size=100)
    held = [list(load_file(tmp_path / name)) for name in names if name.endswith(".safetensors")]
    assert held == [["a"], ["b"], ["c", "d"]]


def test_a_shard_may_be_filled_to_the_last_byte(tmp_path: Path) -> None:
    tensors = {name: torch.ones(5) for name in "abcd"}
    assert len(write_weights(stored(tensors, tmp_path), tmp_path, max_shard_size=40)) == 3
    assert len(write_weights(stored(tensors, tmp_path), tmp_path, max_shard_size=80)) == 1


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("5GB", 5 * 10**9),
        ("500MB", 500 * 10**6),
        ("2GiB", 2 * 2**30),
        ("1.5GB", 1_500_000_000),
        ("0.25MiB", 2**18),
        ("64KB", 64_000),
        ("64KiB", 2**16),
        ("1000", 1000),
        ("1000B", 1000),
        (" 5 gb ", 5 * 10**9),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "GB", "five GB", "5 potatoes", "5GBs", "5TB!", "5K", "5I", "5IB", "-1GB", "+1GB", "1e9", "0x10"),
        *("0", "0GB", "0.1", "1.GB", ".5GB", "1,5GB", "1.5.5GB", "5GB 5GB", "nan", "inf", "9" * 400, "9" * 400 + "GB"),
    ],
)
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="is not a size such as 5GB or 500MB"):
        parse_size(text)


def test_a_size_is_refused_before_anything_is_done(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a size"):
        convert(tmp_path / "nothing", tmp_path / "new" / "out", max_shard_size="much")
    assert not (tmp_path / "new").exists()


# ---- casts -----------------------------------------------------------------------------------------------------------


def every_half(dtype: torch.dtype) -> torch.Tensor:
    return torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)


def wide(dtype: torch.dtype) -> torch.Tensor:
    """Random bit patterns, random magnitudes, and what is hard: ties, the edges of ranges, subnormals, specials."""
    generator = torch.Generator().manual_seed(7)
    kind = INTEGERS[dtype.itemsize]
    limits = torch.iinfo(kind)
    patterns = torch.randint(limits.min, limits.max, (1 << 17,), generator=generator, dtype=kind).view(dtype)
    scales = torch.exp2(torch.randint(-160, 140, (1 << 17,), generator=generator).double())
    scaled = (torch.randn(1 << 17, generator=generator, dtype=torch.float64) * scales).to(dtype)
    halves = torch.cat([every_half(torch.float16).double(), every_half(torch.bfloat16).double()])
    halves = halves[halves.isfinite()]
    between = torch.cat([middles(torch.float16), middles(torch.bfloat16), middles(torch.float32)]).to(dtype)
    up, down = (torch.nextafter(between, torch.tensor(side, dtype=dtype)) for side in (float("inf"), -float("inf")))
    tiny, largest = torch.finfo(dtype).tiny, torch.finfo(dtype).max
    edges = [0.0, -0.0, tiny, tiny / 2, tiny / 2**20, largest, -largest, 65504.0, 65519.996, 65520.0, 3.3895e38, 1e-45]
    special = torch.tensor([*edges, float("inf"), -float("inf"), float("nan")], dtype=dtype)
    return torch.cat([patterns, scaled, halves.to(dtype), between, up, down, special])


def middles(dtype: torch.dtype) -> torch.Tensor:
    """Values exactly between two neighbours of a dtype, where a tie must go to the even one."""
    if dtype == torch.float32:
        values = torch.randn(1 << 15, generator=torch.Generator().manual_seed(8)).double()
        return (values + torch.nextafter(values.float(), torch.tensor(9e9)).double()) / 2
    ordered = every_half(dtype).double()
    ordered = ordered[ordered.isfinite()].sort().values
    return (ordered[1:] + ordered[:-1]) / 2


def fitting(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Without the finite values that PyTorch would make infinite, which the cast refuses (see below)."""
    return values[~(values.isfinite() & values.to(dtype).isinf())]


PAIRS = [(source, target) for source in DTYPES for target in ("float32", "float16", "bfloat16") if source != target]


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_casts_are_pytorchs_to_the_bit(source: str, target: str, tmp_path: Path) -> None:
    values = every_half(DTYPES[source]) if DTYPES[source].itemsize == 2 else wide(DTYPES[source])
    values = fitting(values, DTYPES[target])
    assert len(values) > 2**15 - 2**11
    given = stored({"x": values}, tmp_path)["x"]
    ours = written({"x": Cast.to(target, given, name="x")}, tmp_path)["x"]
    theirs = values.to(DTYPES[target])
    assert torch.equal(ours.isnan(), values.isnan())
    assert same_bits(ours[~values.isnan()], theirs[~values.isnan()])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_widening_loses_nothing(dtype: str, tmp_path: Path) -> None:
    values = every_half(DTYPES[dtype])
    given = stored({"x": values}, tmp_path)["x"]
    wider = written({"x": Cast.to("float32", given, name="x")}, tmp_path)["x"]
    assert same_bits(wider.to(DTYPES[dtype])[~values.isnan()], values[~values.isnan()])


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_cast_to_itself_is_no_cast(dtype: str, tmp_path: Path) -> None:
    given = stored({"x": torch.full((4,), float("nan"), dtype=DTYPES[dtype])}, tmp_path)["x"]
    assert Cast.to(dtype, given, name="x") is given


@pytest.mark.parametrize(
    ("source", "target", "value"),
    [
        ("float32", "float16", 65520.0),
        ("float32", "float16", -1e6),
        ("bfloat16", "float16", 65536.0),
        ("float64", "float16", 1e300),
        ("float64", "float32", 1e39),
        ("float32", "bfloat16", 3.4e38),
        ("float64", "bfloat16", -3.4e38),
    ],
)
@pytest.mark.parametrize("beside", [0.0, float("inf"), -float("inf"), float("nan")])
def test_values_that_do_not_fit_are_refused_by_name(
    source: str, target: str, value: float, beside: float, tmp_path: Path
) -> None:
    """Also where an infinity, which the source may hold, stands beside them."""
    given = stored({"x": torch.tensor([beside, value], dtype=DTYPES[source])}, tmp_path)["x"]
    with pytest.raises(InputError, match=rf"^layer\.7\.weight holds values beyond {target}'s"):
        _joined(Cast.to(target, given, name="layer.7.weight"))


def test_a_conversion_that_does_not_fit_names_the_weight_and_leaves_nothing(tmp_path: Path) -> None:
    checkpoint = Checkpoint()
    checkpoint.model[f"{E}layers.1.fc2.weight"][3, 3] = 70_000.0
    source = checkpoint.write(tmp_path / "m")
    with pytest.raises(InputError, match=r"roberta\.encoder\.layer\.1\.output\.dense\.weight .* float16"):
        convert(source, tmp_path / "out", dtype="float16")
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
    assert convert(source, tmp_path / "out", dtype="bfloat16").dtype == "bfloat16"


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("stored_as", ["float32", "float16", "bfloat16"])
def test_a_folder_of_a_dtype_is_all_of_it(stored_as: str, dtype: str, tmp_path: Path) -> None:
    checkpoint = Checkpoint()
    checkpoint.model = type(checkpoint.model)((n, t.to(DTYPES[stored_as])) for n, t in checkpoint.model.items())
    folder = convert(checkpoint.write(tmp_path / "m"), tmp_path / "out", dtype=dtype, verify=False).output
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {DTYPES[dtype]}  # noqa: SIM118
        found = file.get_tensor("roberta.embeddings.word_embeddings.weight")
    assert same_bits(found, checkpoint.model[f"{E}embed_tokens.weight"].to(DTYPES[dtype]))
    assert json.loads((folder / "config.json").read_text())["dtype"] == dtype


def test_auto_keeps_each_weight_as_it_is_stored(tmp_path: Path) -> None:
    checkpoint = Checkpoint()
    checkpoint.model[f"{E}layers.0.fc1.weight"] = checkpoint.model[f"{E}layers.0.fc1.weight"].half()
    loaded = load_file(
        convert(checkpoint.write(tmp_path / "m"), tmp_path / "out", verify=False).output / "model.safetensors"
    )
    odd = {name for name, tensor in loaded.items() if tensor.dtype != torch.float32}
    assert odd == {"roberta.encoder.layer.0.intermediate.dense.weight"}


# ---- the same again --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["demo", FIXTURES / "v0122cls", FIXTURES / "v090half"], ids=str)
def test_converted_twice_is_the_same_to_the_byte(source: str | Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        convert(source, tmp_path / name, verify=False)
        time.sleep(0.01)
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")


def test_a_verified_folder_is_the_same_to_the_byte(tmp_path: Path) -> None:
    source = Checkpoint().write(tmp_path / "m")
    for name in ("one", "elsewhere/two"):
        convert(source, tmp_path / name, max_shard_size=str(LIMIT))
    assert files_of(tmp_path / "one") == files_of(tmp_path / "elsewhere" / "two")


def test_times_and_places_of_the_source_leave_no_trace(tmp_path: Path) -> None:
    """The same folder in another place, with other times, gives the same bytes."""
    for place in ("here", "far/away"):
        folder = Checkpoint().write(tmp_path / place / "m")
        os.utime(folder / "model.pt", (1_000_000_000, 1_000_000_000 + len(place)))
        convert(folder, tmp_path / place / "out", verify=False)
    assert files_of(tmp_path / "here" / "out") == files_of(tmp_path / "far" / "away" / "out")


def test_the_name_of_the_source_is_all_that_may_differ(tmp_path: Path) -> None:
    """conversion.json and the card name the source; PyTorch also writes the file's name into the file."""
    first = Checkpoint().write(tmp_path / "m")
    second = Checkpoint().write(tmp_path / "other", name="checkpoint_best.pt")
    assert (first / "model.pt").read_bytes() != (second / "checkpoint_best.pt").read_bytes()
    one, two = (convert(source, tmp_path / f"{source.name}-out").output for source in (first, second))
    differing = {name for name, digest in files_of(one).items() if files_of(two)[name] != digest}
    assert files_of(one).keys() == files_of(two).keys()
    assert differing == {"README.md", "fairseq/conversion.json"}
    records = [json.loads((folder / "fairseq" / "conversion.json").read_text()) for folder in (one, two)]
    files = [record["source"].pop("files") for record in records]
    assert [record["source"].pop("name") for record in records] == ["m", "other"]
    assert [set(names) - {"dict.txt"} for names in files] == [{"model.pt"}, {"checkpoint_best.pt"}]
    digests = [record["parity"].pop("source_sha256") for record in records]
    assert digests[0] == {"model.pt": sha256((first / "model.pt").read_bytes()).hexdigest()}
    assert digests[1].keys() == {"checkpoint_best.pt"}
    assert records[0] == records[1]
    cards = [(folder / "README.md").read_text() for folder in (one, two)]
    named = re.sub(r"\bother\b", "m", cards[1]).replace("checkpoint_best.pt", "model.pt")
    facts = r"\| `model\.pt` \| .* \|"  # its bytes and hash
    one_card, other_card = (sorted(re.sub(facts, "", card).splitlines()) for card in (cards[0], named))
    assert one_card == other_card != sorted(named.splitlines())  # the table of files is in the order of their names


def test_a_weight_that_gives_too_few_bytes_is_damage(tmp_path: Path) -> None:
    tensor = stored({"x": torch.ones(8)}, tmp_path)["x"]
    short = Cast(dtype="float32", shape=(9,), name="x", of=tensor)
    with pytest.raises(IntegrityError, match="x gave 32 bytes where its shape asks for 36"):
        write_weights({"x": short}, tmp_path, max_shard_size=1 << 30)


def test_what_fails_meanwhile_ends_the_writing(tmp_path: Path) -> None:
    def meanwhile() -> None:
        assert (tmp_path / "model.safetensors").is_file()
        raise InputError("the tokenizer cannot be written")

    with pytest.raises(InputError, match="the tokenizer"):
        write_weights(stored({"x": torch.ones(8)}, tmp_path), tmp_path, max_shard_size=1 << 30, meanwhile=meanwhile)
