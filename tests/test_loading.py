"""What a name stands for: folders of Transformers' own making, repositories on the Hub, and what is none of them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import safetensors.numpy
import torch
import transformers
from factory import SYMBOLS, Checkpoint
from places import FIXTURES, SHARED, needs_shared

from hf_xlmr import XLMR
from hf_xlmr.conversion import convert
from hf_xlmr.errors import InputError, IntegrityError, WeightsMismatch
from hf_xlmr.hub_interface.loading import ModelFiles, find_model
from hf_xlmr.tokenizer.transformers_tokenizer import XLMRTokenizer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert(FIXTURES / "v0122", tmp_path_factory.mktemp("converted") / "model", verify=False).output


# ---- what lies under fairseq/ ----------------------------------------------------------------------------------------


def without_last(data: bytes) -> bytes:
    return b"".join(data.splitlines(keepends=True)[:-1])


def with_first_two_swapped(data: bytes) -> bytes:
    first, second, *others = data.splitlines(keepends=True)
    return b"".join([second, first, *others])


DAMAGE = {
    "cut": lambda data: b"".join(data.splitlines(keepends=True)[:20]),
    "last line lost": without_last,
    "swapped": with_first_two_swapped,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_dictionary_that_is_not_the_conversions_is_refused(damage: str, folder: Path, tmp_path: Path) -> None:
    """Its ids would be wrong, and nothing else would tell."""
    path = shutil.copytree(folder, tmp_path / "model") / "fairseq" / "dict.txt"
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    for encode in (
        lambda: XLMR.from_pretrained(tmp_path / "model").encode("Hello world!"),
        lambda: XLMRTokenizer.from_pretrained(tmp_path / "model"),
    ):
        with pytest.raises(IntegrityError, match=r"dict\.txt is not the file"):
            encode()


@pytest.mark.parametrize("name", ["sentencepiece.bpe.model", "label/dict.txt"])
def test_another_models_pieces_and_labels_are_refused(name: str, tmp_path: Path) -> None:
    path = convert(FIXTURES / "v0122cls", tmp_path / "model", verify=False).output / "fairseq" / name
    path.write_bytes(path.read_bytes() + b"another 1\n")
    files = ModelFiles(tmp_path / "model")
    with pytest.raises(IntegrityError, match=f"{name} is not the file"):
        _ = files.labels if "label" in name else files.tokenizer


def test_options_of_another_model_are_refused(folder: Path, tmp_path: Path) -> None:
    """They would lend their activation and their tasks to heads."""
    path = shutil.copytree(folder, tmp_path / "model") / "fairseq" / "options.json"
    options = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**options, "encoder_embed_dim": 1024}), encoding="utf-8")
    with pytest.raises(IntegrityError, match="of a model of the width 1024, and this one's is 16"):
        XLMR.from_pretrained(tmp_path / "model")


def test_a_dictionary_of_more_names_than_rows_is_refused_where_nothing_was_recorded(
    folder: Path, tmp_path: Path
) -> None:
    kept = shutil.copytree(folder, tmp_path / "model") / "fairseq"
    (kept / "conversion.json").unlink()
    rows = json.loads((folder / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    with (kept / "dict.txt").open("a", encoding="utf-8") as file:
        file.writelines(f"more{number} 1\n" for number in range(rows))
    with pytest.raises(IntegrityError, match=f"{rows} rows"):
        _ = ModelFiles(tmp_path / "model").dictionary


# ---- folders that Transformers made ----------------------------------------------------------------------------------


def test_a_folder_without_dict_txt_takes_the_ids_of_its_tokenizer(folder: Path, tmp_path: Path) -> None:
    """As repositories on the Hub are: tokenizer.json and sentencepiece.bpe.model, nothing of fairseq's."""
    converted = XLMR.from_pretrained(folder).eval()
    model = transformers.AutoModelForMaskedLM.from_pretrained(folder)
    model.save_pretrained(tmp_path / "saved")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "saved" / name).write_bytes((folder / name).read_bytes())
    pieces = (folder / "fairseq" / "sentencepiece.bpe.model").read_bytes()
    (tmp_path / "saved" / "sentencepiece.bpe.model").write_bytes(pieces)
    saved = XLMR.from_pretrained(tmp_path / "saved").eval()
    for text in ("Hello world!", "the train", "你好，世界 <mask>"):
        ours, theirs = saved.encode(text).tolist(), converted.encode(text).tolist()
        unknown = len(converted.dictionary)
        assert [3 if token >= unknown else token for token in ours] == theirs
    assert saved.fill_mask("The train <mask> at night")[0] == converted.fill_mask("The train <mask> at night")[0]


@needs_shared
def test_the_rule_of_the_releases_gives_the_dictionary_from_the_pieces_alone(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "xlm-roberta", "vocab_size": 250002}))
    pieces = SHARED / "data" / "xlmr-vocabulary" / "sentencepiece.bpe.model"
    (tmp_path / "sentencepiece.bpe.model").write_bytes(pieces.read_bytes())
    files = ModelFiles(tmp_path)
    assert (len(files.dictionary), files.dictionary.mask_index) == (250002, 250001)
    assert files.tokenizer is not None
    assert files.tokenizer.encode("你好，世界") == [0, 6, 124084, 4, 3221, 2]


def test_a_fine_tuned_classifier_predicts_under_fairseqs_default_name(folder: Path, tmp_path: Path) -> None:
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=2, id2label={0: "no", 1: "yes"}, label2id={"no": 0, "yes": 1}
    ).eval()
    model.save_pretrained(tmp_path / "saved")
    (tmp_path / "saved" / "fairseq").symlink_to(folder / "fairseq")
    xlmr = XLMR.from_pretrained(tmp_path / "saved").eval()
    tokens = xlmr.encode("Hello")
    with torch.no_grad():
        expected = model(tokens.unsqueeze(0)).logits
        found = xlmr.predict("sentence_classification_head", tokens, return_logits=True)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    labels = xlmr.task.label_dictionary
    assert labels is not None and labels.string([1 + labels.nspecial]) == "yes"
    with pytest.raises(AttributeError, match="LM head"):
        xlmr.fill_mask("<mask>")


def test_a_bare_encoder_extracts(folder: Path, tmp_path: Path) -> None:
    transformers.AutoModel.from_pretrained(folder, add_pooling_layer=False).save_pretrained(tmp_path / "saved")
    xlmr, whole = XLMR.from_pretrained(tmp_path / "saved").eval(), XLMR.from_pretrained(folder).eval()
    tokens = torch.tensor([0, 5, 6, 2])
    assert torch.equal(xlmr.extract_features(tokens), whole.extract_features(tokens))
    with pytest.raises(InputError, match="no SentencePiece model"):
        xlmr.encode("text")


def test_a_map_for_a_bare_encoder_may_place_a_pooler_or_not(folder: Path, tmp_path: Path) -> None:
    """A plan from the config alone cannot know whether the files hold one."""
    transformers.AutoModel.from_pretrained(folder, add_pooling_layer=False).save_pretrained(tmp_path / "saved")
    expected = XLMR.from_pretrained(tmp_path / "saved").eval().extract_features(torch.tensor([0, 5, 6, 2]))
    for more in ({}, {"pooler": "cpu"}):
        device_map = {"embeddings": "cpu", "encoder": "disk", **more}
        spread = XLMR.from_pretrained(tmp_path / "saved", device_map=device_map).eval()
        assert torch.equal(spread.extract_features(torch.tensor([0, 5, 6, 2])), expected)


@pytest.mark.parametrize(
    ("content", "error", "told"),
    [
        ('{"model_type": "bert"}', InputError, "'bert'"),
        ('{"model_type": "xlm-roberta", "architectures": ["BertModel"]}', InputError, "BertModel"),
        (
            '{"model_type": "xlm-roberta", "architectures": ["XLMRobertaForNothing"]}',
            InputError,
            "XLMRobertaForNothing",
        ),
        ("{", IntegrityError, "damaged"),
        ("[]", IntegrityError, "damaged"),
    ],
)
def test_other_models_and_damage_are_told(content: str, error: type[Exception], told: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(error, match=told):
        XLMR.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("pad_token_id", 0),
        ("pad_token_id", None),
        ("is_decoder", True),
        ("return_dict", False),
        ("chunk_size_feed_forward", 3.5),
        ("quantization_config", {"quant_method": "bitsandbytes"}),
    ],
)
def test_fields_that_no_xlmr_has_are_told(field: str, value: object, folder: Path, tmp_path: Path) -> None:
    """They would change the answers: padding is id 1 for fairseq, and a decoder sees nothing of what follows."""
    copy = changed(folder, tmp_path, "config.json", **{field: value})
    with pytest.raises(InputError, match=f"{field} is .*, and must be "):
        XLMR.from_pretrained(copy)


@pytest.mark.parametrize("options", [{}, {"device_map": {"": "disk"}}], ids=["whole", "spread"])
@pytest.mark.parametrize(
    ("name", "field", "value", "error", "told"),
    [
        ("config.json", "num_hidden_layers", 1, WeightsMismatch, r"unexpected: roberta\.encoder\.layer\.1\."),
        ("config.json", "vocab_size", "many", IntegrityError, "vocab_size is 'many'"),
        ("config.json", "model_type", ["xlm-roberta"], InputError, "type"),
        ("config.json", "architectures", [3], InputError, "names 3"),
        ("config.json", "hidden_act", "swoosh", InputError, "'swoosh'"),
        ("config.json", "layer_norm_eps", "small", IntegrityError, "layer_norm_eps"),
        ("config.json", "pad_token_id", True, IntegrityError, "pad_token_id"),
        ("fairseq/options.json", "pooler_activation_fn", "swoosh", IntegrityError, "'swoosh'"),
        ("fairseq/options.json", "pooler_dropout", "much", IntegrityError, "'much'"),
        ("fairseq/conversion.json", "embedding_rows", 10**6, IntegrityError, "embedding_rows is 1000000"),
    ],
)
def test_damage_is_told_whole_or_spread(
    name: str, field: str, value: object, error: type[Exception], told: str, options: Any, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(error, match=told):
        XLMR.from_pretrained(changed(folder, tmp_path, name, **{field: value}), **options)


@pytest.mark.parametrize("field", ["hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"])
def test_a_field_that_is_missing_is_told_by_what_it_does_to_the_weights(
    field: str, folder: Path, tmp_path: Path
) -> None:
    copy = changed(folder, tmp_path, "config.json")
    config = json.loads((copy / "config.json").read_text())
    del config[field]
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(IntegrityError, match=r"do not add up|not a multiple"):
        XLMR.from_pretrained(copy)


def test_auto_is_what_the_weights_are_stored_in(folder: Path, tmp_path: Path) -> None:
    """As config.json tells, and where it does not, as the files hold them."""
    from safetensors.torch import load_file, save_file

    copy = changed(folder, tmp_path, "config.json", dtype=None)
    weights = {name: weight.to(torch.float64) for name, weight in load_file(folder / "model.safetensors").items()}
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    assert XLMR.from_pretrained(copy, dtype="auto").model.network.dtype == torch.float64
    changed(copy, copy, "config.json", dtype="float16")
    assert XLMR.from_pretrained(copy, dtype="auto").model.network.dtype == torch.float16


def changed(folder: Path, target: Path, name: str, **fields: object) -> Path:
    """A copy of the folder with some fields of one of its JSON files as given."""
    if target != folder:
        shutil.copytree(folder, target, dirs_exist_ok=True)
    content = json.loads((target / name).read_text())
    (target / name).write_text(json.dumps({**content, **fields}))
    return target


def test_classes_are_named_by_number_whatever_their_order(tmp_path: Path) -> None:
    config = {"model_type": "xlm-roberta", "id2label": {str(n): f"name{n}" for n in (0, 1, 10, 11, *range(2, 10))}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    labels = ModelFiles(tmp_path).labels
    assert labels is not None and labels.symbols[4:] == tuple(f"name{n}" for n in range(12))
    (tmp_path / "config.json").write_text(json.dumps({**config, "id2label": {"1": "a"}}))
    with pytest.raises(InputError, match="id2label"):
        _ = ModelFiles(tmp_path).labels


# ---- the Hub ---------------------------------------------------------------------------------------------------------


class Hub(BaseHTTPRequestHandler):
    """The part of the Hub's protocol that a download speaks, over one folder."""

    folder: Path

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def answer(self, *, with_body: bool) -> None:
        path = self.path.split("?")[0]
        sizes = {
            file.relative_to(self.folder).as_posix(): file.stat().st_size
            for file in self.folder.rglob("*")
            if file.is_file()
        }
        if path.startswith("/api/models/our/model/revision/"):
            about = {"id": "our/model", "sha": COMMIT, "siblings": [{"rfilename": name} for name in sizes]}
            self.send(json.dumps(about).encode(), with_body=with_body)
        elif path.startswith("/api/models/our/model/tree/"):
            tree = [{"type": "file", "path": name, "size": size, "oid": "0" * 40} for name, size in sizes.items()]
            self.send(json.dumps(tree).encode(), with_body=with_body)
        elif path.startswith(f"/our/model/resolve/{COMMIT}/"):
            self.send((self.folder / path.split(COMMIT + "/")[1]).read_bytes(), with_body=with_body)
        else:
            self.send_response(401 if "private" in path else 404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

    def send(self, body: bytes, *, with_body: bool) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the base class names it so
        pass


@pytest.fixture
def hub(folder: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("OurHub", (Hub,), {"folder": folder}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@contextmanager
def asking(endpoint: str, home: Path) -> Iterator[None]:
    """What huggingface_hub makes of HF_ENDPOINT and HF_HOME when it is imported."""
    given = {
        "ENDPOINT": endpoint,
        "HUGGINGFACE_CO_URL_TEMPLATE": endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_HUB_DISABLE_XET": True,
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in given.items():
            patch.setattr(huggingface_hub.constants, name, value)
        yield


OFFLINE = """
import sys
from hf_xlmr.hub_interface.loading import find_model
files = find_model("our/model")
print(files.needed_tokenizer().encode("Hello world!"), sorted(path.name for path in files.folder.iterdir()))
assert not {"torch", "transformers"} & set(sys.modules)
"""


def test_a_repository_on_the_hub_is_loaded_and_kept(hub: str, folder: Path, tmp_path: Path) -> None:
    expected = XLMR.from_pretrained(folder).eval()
    with asking(hub, tmp_path):
        xlmr = XLMR.from_pretrained("our/model").eval()
    ids = xlmr.encode("Hello world!")
    assert ids.tolist() == expected.encode("Hello world!").tolist()
    assert torch.equal(xlmr.extract_features(ids), expected.extract_features(ids))
    names = sorted(path.name for path in xlmr.files.folder.iterdir())
    assert "model.safetensors" in names and "README.md" not in names
    assert xlmr.files.folder.is_relative_to(tmp_path / "hub")
    environment = {**os.environ, "HF_ENDPOINT": hub, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", OFFLINE], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == f"{ids.tolist()} {names}", done.stderr


def test_what_the_hub_does_not_give_is_told_in_a_sentence(hub: str, tmp_path: Path) -> None:
    for endpoint, name, told in (
        (hub, "our/nothing", "does not give a repository"),
        (hub, "our/private", "hf auth login"),
        ("http://127.0.0.1:9", "our/model", "cannot be reached"),
        (hub, "a/b/c/d.pt", "no id on the Hub"),
    ):
        with asking(endpoint, tmp_path), pytest.raises(InputError, match=told):
            XLMR.from_pretrained(name)


# ---- places that nobody has seen -------------------------------------------------------------------------------------


def without_pieces(folder: Path, kind: str) -> Path:
    """A fairseq source that lacks its SentencePiece model: a folder, a file or an archive."""
    source = Checkpoint().write(folder / "source")
    if kind == "archive":
        with tarfile.open(folder / "source.tar.gz", "w:gz") as packed:
            packed.add(source, "source")
        return folder / "source.tar.gz"
    return source if kind == "folder" else source / "model.pt"


@pytest.mark.parametrize(
    ("kind", "way_on"),
    [
        ("folder", "next to {source}/model.pt"),
        ("file", "next to {source}"),
        ("archive", "into {source}"),
        ("converted", "convert it again, with sentencepiece.bpe.model next to the checkpoint"),
        ("saved", "copy fairseq/ (or sentencepiece.bpe.model) into it from the folder that `convert` wrote"),
    ],
)
def test_without_pieces_the_users_own_place_is_named(
    kind: str, way_on: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_XLMR_CACHE", str(tmp_path / "cache"))
    source = without_pieces(tmp_path, kind if kind in ("folder", "file", "archive") else "folder")
    if kind in ("converted", "saved"):
        source = convert(source, tmp_path / "out", verify=False).output
    if kind == "saved":
        write_tokenizer_of_nobody(source)
    with pytest.raises(InputError) as caught:
        find_model(source).needed_tokenizer()
    assert str(caught.value).startswith(f"{source} has no SentencePiece model, so no text can be encoded: ")
    assert way_on.format(source=source) in str(caught.value)
    assert "cache" not in str(caught.value)


def write_tokenizer_of_nobody(folder: Path) -> None:
    """As Transformers saves a folder: tokenizer.json, and nothing of fairseq's."""
    shutil.rmtree(folder / "fairseq")
    vocabulary = [[symbol, 0.0] for symbol in ("<s>", "<pad>", "</s>", "<unk>", *SYMBOLS)]
    content = {"model": {"type": "Unigram", "vocab": vocabulary}, "added_tokens": []}
    (folder / "tokenizer.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", "{"),
        ("config.json", '{"model_type": "bert"}'),
        ("config.json", '{"model_type": "xlm-roberta", "is_decoder": true}'),
        ("fairseq/conversion.json", "["),
        ("fairseq/dict.txt", "a 1\na 1\n"),
        ("fairseq/options.json", '{"pooler_dropout": "much"}'),
        ("model.safetensors", "xx"),
    ],
)
@pytest.mark.parametrize("kind", ["conversion", "repository"])
def test_damage_in_a_cache_is_told_by_the_users_own_name(
    kind: str, name: str, content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = convert(Checkpoint().write(tmp_path / "source"), tmp_path / "hidden" / "model", verify=False).output
    (folder / name).write_text(content)
    (tmp_path / "hidden" / "heads").write_bytes(safetensors.numpy.save({}))
    heads = tmp_path / "hidden" / "heads" if kind == "conversion" else None
    found = ModelFiles(folder, asked_for="mine", heads_file=heads)
    monkeypatch.setattr("hf_xlmr.hub_interface.xlmr.find_model", lambda *_given, **_named: found)
    with pytest.raises((InputError, IntegrityError)) as caught:
        XLMR.from_pretrained("mine").task  # noqa: B018
    assert "hidden" not in str(caught.value) and "mine" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HTTPS_PROXY", "foo://127.0.0.1:1"),
        ("all_proxy", "foo://127.0.0.1:1"),
        ("HTTPS_PROXY", "http://[bad"),
        ("HTTP_PROXY", "http://127.0.0.1:99999999"),
        ("SSL_CERT_FILE", "/nonexistent"),
        ("SSL_CERT_FILE", __file__),
    ],
)
def test_proxies_and_certificates_that_cannot_be_used_are_one_sentence(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are read when huggingface_hub makes its session, which no earlier test may leave here."""
    from huggingface_hub import close_session

    for proxy in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(proxy, "http://127.0.0.1:9")  # nothing is asked of a network
    monkeypatch.setenv(name, value)
    close_session()
    try:
        with pytest.raises(InputError) as caught:
            find_model("somebody/something")
    finally:
        monkeypatch.undo()
        close_session()
    assert "somebody/something" in str(caught.value) and "\n" not in str(caught.value)
    assert name in str(caught.value) or "the Hub cannot be reached" in str(caught.value)
