"""What an actor of Ray does, in this process: makes the shards that are ordered, and names its machine in errors."""

from __future__ import annotations

import logging
import pickle
import socket
from dataclasses import replace
from pathlib import Path

import extractions
import pytest
import torch
from extractions import OPTIONS, texts_of, write
from in_process import run
from kills import contents

from hf_xlmr.data.text_files import open_texts
from hf_xlmr.data.text_rows import BadRow, TextRow
from hf_xlmr.errors import InputError, UnsupportedCheckpoint, WeightsMismatch
from hf_xlmr.features import shard_maker
from hf_xlmr.features.bulk_extraction import extract
from hf_xlmr.features.chunks import TextTooLong
from hf_xlmr.features.ray_cluster import ActorShares, RayCluster, actor_shares
from hf_xlmr.features.shard_maker import Begun, Made, Plan, ShardMaker, Work
from hf_xlmr.features.store.folder import FeatureStore

model = extractions.model
TEXTS = texts_of(25)
NODE = socket.gethostname()


@pytest.fixture
def work(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Work:
    monkeypatch.chdir(tmp_path)
    return Work(
        model=str(model),
        source=str(write(tmp_path / "texts.txt", TEXTS)),
        output=str(tmp_path / "out"),
        options=OPTIONS,
        sample=[],
        begun={},
        threads=torch.get_num_threads(),
        gpus=0,
        folder=str(tmp_path),
    )


def plan_of(work: Work, begun: Begun, store: FeatureStore) -> Plan:
    """What the process that orders shards sends to all makers."""
    mark = store.folder / ".state" / "mark.tmp"
    mark.touch()
    texts = open_texts(work.source)
    return Plan(begun, mark.name, texts.fingerprint(), texts.cuts(OPTIONS.rows_per_shard))


def test_two_makers_fill_one_folder_in_any_order(work: Work, model: Path, tmp_path: Path) -> None:
    makers = [ShardMaker(work, rank=rank) for rank in range(2)]
    begun = makers[0].begin()
    store = FeatureStore.create(work.output, begun.job, layout=begun.layout)
    plan = plan_of(work, begun, store)
    for maker in makers:
        maker.join(plan)
    assert [makers[1].make(2).rows, makers[0].make(1).rows, makers[1].make(0).rows] == [5, 10, 10]
    made = (Path(work.output) / "part-00001.parquet").stat()
    assert makers[1].make(1).rows == 10  # one that is there is not made again
    assert (Path(work.output) / "part-00001.parquet").stat() == made
    store.finish(rows=25)
    extract(model, work.source, tmp_path / "plain", options=OPTIONS)
    assert contents(tmp_path / "out") == contents(tmp_path / "plain")


def test_a_plan_is_unpickled_without_pytorch(work: Work) -> None:
    """Another thread of an actor may be importing it."""
    begun = ShardMaker(work, rank=0).begin()
    data = pickle.dumps(Plan(begun, None, None, None))
    assert b"torch.torch_version" not in data and b"ctorch\n" not in data
    assert type(begun.job["torch"]) is str


def test_after_a_row_that_is_bad_a_maker_makes_other_shards(work: Work) -> None:
    maker = ShardMaker(replace(work, options=replace(OPTIONS, on_long="error", max_length=40)), rank=0)
    begun = maker.begin()
    store = FeatureStore.create(work.output, begun.job, layout=begun.layout)
    maker.join(replace(plan_of(work, begun, store), cuts=None))
    rows = [TextRow(number, f"line {number}", text) for number, text in enumerate(TEXTS)]
    with pytest.raises(BadRow, match=r"^line 12: \d+ tokens, and at most 40 are allowed"):
        maker.make(1, [*rows[10:12], replace(rows[12], text=50 * "train "), *rows[13:20]])
    assert isinstance(maker.make(2, rows[20:]), Made)
    assert [path.name for path in Path(work.output).glob("part*")] == ["part-00002.parquet"]
    store.close()


def test_a_node_names_what_it_cannot_reach(work: Work, tmp_path: Path) -> None:
    gone = str(tmp_path / "gone")
    with pytest.raises(InputError, match=f"^node {NODE} cannot use the model: {gone} is not a file or folder"):
        ShardMaker(replace(work, model=gone), rank=0).begin()
    maker = ShardMaker(work, rank=0)
    begun = maker.begin()
    store = FeatureStore.create(work.output, begun.job, layout=begun.layout)
    plan = plan_of(work, begun, store)
    store.close()
    with pytest.raises(
        InputError, match=f"^node {NODE} cannot write the output: {work.output} is missing there, or is"
    ):
        maker.join(replace(plan, mark="another.tmp"))
    Path(work.source).unlink()
    with pytest.raises(InputError, match=f"^node {NODE} cannot read the input: {work.source} does not exist"):
        maker.join(plan)
    with pytest.raises(InputError, match=f"^node {NODE}: Ray gives an actor 99 GPUs, and PyTorch sees"):
        ShardMaker(replace(work, gpus=99), rank=0).begin()


def test_a_maker_computes_as_the_first_one_does(work: Work) -> None:
    begun = ShardMaker(replace(work, options=replace(OPTIONS, dtype="float32")), rank=0).begin()
    other = ShardMaker(replace(work, options=replace(OPTIONS, dtype="bfloat16", emulate_dtype=True)), rank=1)
    assert other.begin(begun.agreed).job == begun.job


def test_what_the_first_maker_warns_of_reaches_the_program(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    def warned(*args: object, **options: object) -> object:
        logging.getLogger("hf_xlmr.model.precision").warning("it has no %s", "bfloat16")
        return made(*args, **options)

    made = shard_maker.extractor_of
    monkeypatch.setattr(shard_maker, "extractor_of", warned)
    assert ShardMaker(work, rank=0).begin().warnings == ("it has no bfloat16",)


@pytest.mark.parametrize(
    ("cluster", "nodes", "expected"),
    [
        (RayCluster(), [(2, 0)], ActorShares(1, 2, 0)),
        (RayCluster(actors=2), [(2, 0)], ActorShares(2, 1, 0)),
        (RayCluster(), [(8, 0), (6, 0), (0, 0)], ActorShares(2, 6, 0)),
        (RayCluster(cpus_per_actor=2), [(8, 0), (5, 0)], ActorShares(6, 2, 0)),
        (RayCluster(), [(4, 0), (64, 8), (64, 8)], ActorShares(16, 8, 1)),
        (RayCluster(gpus_per_actor=2), [(64, 8), (64, 3)], ActorShares(5, 16, 2)),
        (RayCluster(gpus_per_actor=0), [(64, 8)], ActorShares(1, 64, 0)),
    ],
)
def test_actors_share_what_the_nodes_have(
    cluster: RayCluster, nodes: list[tuple[int, int]], expected: ActorShares
) -> None:
    assert actor_shares(cluster, nodes, device=None) == expected


@pytest.mark.parametrize(
    ("cluster", "device", "told"),
    [
        (RayCluster(actors=5), None, "actors=5 with 1 CPUs and 0 GPUs each: the cluster, whose 2 nodes have 4 CPUs"),
        (RayCluster(actors=2, cpus_per_actor=3), None, "has room for 0"),
        (RayCluster(gpus_per_actor=1), None, "actors=1 with 1 CPUs and 1 GPUs each"),
        (RayCluster(), "cuda", "actors=1 with 1 CPUs and 1 GPUs each"),
        (RayCluster(actors=0), None, "actors=0: give at least 1"),
        (RayCluster(gpus_per_actor=-1), None, "gpus_per_actor=-1"),
        (RayCluster(gpus_per_actor=1), "cpu", "gpus_per_actor=1: give 0 for device=cpu"),
        (RayCluster(), "cuda:1", "device=cuda:1: Ray chooses the GPUs"),
    ],
)
def test_what_a_cluster_has_not_is_refused_with_numbers(cluster: RayCluster, device: str | None, told: str) -> None:
    with pytest.raises(InputError) as caught:
        actor_shares(cluster, [(2, 0), (2, 0)], device=device)
    assert told in str(caught.value)


def test_options_of_actors_need_ray(tmp_path: Path) -> None:
    for words, told in (
        (["--actors", "2"], "--actors 2 is for actors of Ray: give --ray local or an address, too"),
        (["--ray", "127.0.0.1:9"], "Ray at 127.0.0.1:9 cannot be reached: nobody answers there"),
        (
            ["--ray", "ray://127.0.0.1:9"],
            "Ray at ray://127.0.0.1:9: Ray Client does not do here; run this on a node of the cluster with auto",
        ),
    ):
        source = write(tmp_path / "texts.txt", ["one"])
        done = run("extract", "demo", source, tmp_path / "out", *words)
        assert (done.returncode, done.stderr.strip()) == (2, f"hf-xlmr: {told}")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "error",
    [
        BadRow("texts.txt, line 3", "it is not UTF-8"),
        TextTooLong("line 3", 600, 512),
        UnsupportedCheckpoint(["one", "two"], hint="three"),
        WeightsMismatch(missing=["a"], wrong_shape=["b"]),
        InputError("plain"),
    ],
)
def test_errors_arrive_from_other_processes_as_they_are(error: InputError) -> None:
    found = pickle.loads(pickle.dumps(error))
    assert (type(found), str(found), vars(found)) == (type(error), str(error), vars(error))
