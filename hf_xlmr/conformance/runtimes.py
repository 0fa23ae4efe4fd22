"""Runtimes that load a folder in this process: Transformers, sentence-transformers, ONNX, OpenVINO, CTranslate2."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import numpy as np

from hf_xlmr.conformance.own_network import TOKENS, VECTOR, Answer
from hf_xlmr.conformance.setting import OWN_POOLS, Text
from hf_xlmr.conformance.targets import Batch, Given, Refused, Target
from hf_xlmr.errors import HfXlmrError, InputError, first_of, one_line
from hf_xlmr.exporting.runtime_folder import plainly
from hf_xlmr.files.json_files import json_object
from hf_xlmr.model.model_shape import POSITION_OFFSET
from hf_xlmr.tokenizer.plain_tokenizer import plain_tokenizer, quiet_transformers

__all__ = ["open_folder"]

TOKENIZERS: Final = ("tokenizer.json", "sentencepiece.bpe.model")
KINDS: Final[Mapping[str, str]] = {
    "last_hidden_state": TOKENS,
    "token_embeddings": TOKENS,
    "hidden_states": TOKENS,
    "sentence_embedding": VECTOR,
    "sentence_embeddings": VECTOR,
    "embeddings": VECTOR,
    "pooled": VECTOR,
    "logits": "logits",
    "start_logits": "start_logits",
    "end_logits": "end_logits",
}
"""What outputs are, by their names; others, such as a pooler's, are not compared."""
OF_TOKENS: Final = (TOKENS, "start_logits", "end_logits")
ONNX: Final = ("model.onnx", "onnx/model.onnx")
OPENVINO: Final = ("openvino_model.xml", "openvino/openvino_model.xml", "model.xml")
ENCODERS: Final = ("Model", "ForMultipleChoice")  # a head that takes several texts as one is left out
WEIGHTS: Final = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
INTEGER_NODES: Final = (b"MatMulInteger", b"DynamicQuantizeLinear", b"DequantizeLinear", b"QGemm")
Run = Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]


def open_folder(path: Path, model_dir: Path) -> Target:
    """The runtime that a folder or a file is for. Raises InputError, IntegrityError."""
    for is_of_it, opened in KNOWN:
        if (found := is_of_it(path)) is not None:
            return opened(found, model_dir)
    raise InputError(
        f"{path} is not a folder of ONNX ({ONNX[0]}), OpenVINO ({OPENVINO[0]}), CTranslate2 (model.bin), "
        "sentence-transformers (modules.json) or Transformers (config.json and safetensors)"
    )


def _named(ending: str, names: Sequence[str]) -> Callable[[Path], Path | None]:
    """Finds a file of an ending, or in a folder the first of `names`, or else the only one of the ending."""

    def find(path: Path) -> Path | None:
        if path.is_file():
            return path if path.suffix == ending else None
        there = [path / name for name in names if (path / name).is_file()] or sorted(path.glob(f"*{ending}"))
        if len(there) > 1 and there[0].name not in {Path(name).name for name in names}:
            listed = first_of([each.name for each in there], 8)
            raise InputError(f"{path} holds several models ({listed}): name one of the files")
        return next(iter(there), None)

    return find


def _holds(*names: str, also: Sequence[str] = ()) -> Callable[[Path], Path | None]:
    """Finds a folder with all of `names` and one of `also`."""

    def find(path: Path) -> Path | None:
        has_all = all((path / name).is_file() for name in names)
        return path if has_all and (not also or any((path / name).is_file() for name in also)) else None

    return find


def _module(name: str, package: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise InputError(f"comparing this runtime needs the package {package}: pip install {package}") from error


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "of an unknown version"


# ---- a network and a tokenizer ---------------------------------------------------------------------------------------


class _Network:
    """A runtime that computes batches of ids, which the folder's own tokenizer makes."""

    takes_pairs = True
    shows_used_ids = True

    def __init__(
        self,
        runtime: str,
        run: Run,
        folder: Path,
        model_dir: Path,
        inputs: Sequence[str] = (),
        *,
        precision: str = "",
    ) -> None:
        self.runtime, self._run, self._inputs, self.precision = runtime, run, tuple(inputs), precision
        self.notes: list[str] = []
        self.pool, self.is_normalized = _pooling_of(folder)
        places = [each for each in (folder, folder.parent) if any((each / name).is_file() for name in TOKENIZERS)]
        if not places:
            self.notes.append(f"{folder.name} has no tokenizer, so that of {model_dir.name} was used")
        self._tokenizer = plain_tokenizer((places or [model_dir])[0])

    def ask(self, texts: Sequence[Text]) -> list[Given | Refused]:
        try:
            batch = self._batch(texts)
            outputs = self._run(self._needed(batch))
        except (HfXlmrError, MemoryError):
            raise
        except Exception as error:  # noqa: BLE001 - each runtime has its own errors
            return [Refused(one_line(error))] * len(texts)
        return [Given(_answer(outputs, batch, number), batch.ids(number)) for number in range(len(texts))]

    def close(self) -> None:
        """Nothing is open."""

    def _batch(self, texts: Sequence[Text]) -> Batch:
        given = [list(each) if isinstance(each, tuple) else each for each in texts]
        made = self._tokenizer(given, padding=True, truncation=True, return_tensors="np")
        return Batch({name: np.asarray(each, dtype=np.int64) for name, each in made.items()})

    def _needed(self, batch: Batch) -> dict[str, np.ndarray]:
        """The inputs that the network names, those that the tokenizer does not give made as for XLM-R."""
        ids = batch.inputs["input_ids"]
        made = {
            "attention_mask": batch.is_text.astype(np.int64),
            "token_type_ids": np.zeros_like(ids),
            "position_ids": np.where(batch.is_text, batch.is_text.cumsum(axis=1) + POSITION_OFFSET - 1, 1),
            **batch.inputs,
        }
        if odd := [name for name in self._inputs if name not in made]:
            raise InputError(f"the graph needs inputs that a text does not give: {', '.join(odd)}")
        return {name: made[name] for name in self._inputs} if self._inputs else batch.inputs


def _pooling_of(folder: Path) -> tuple[str, bool]:
    """How a graph of ours pools, and whether it normalizes; empty if its config.json does not say so."""
    with suppress(OSError, HfXlmrError):
        found = json_object(folder / "config.json")
        if found.get("pool") in OWN_POOLS:
            return str(found["pool"]), found.get("normalize") is True
    return "", False


def _answer(outputs: Mapping[str, np.ndarray], batch: Batch, number: int) -> Answer:
    """The outputs of one text without its padding, by what they are."""
    found: Answer = {}
    for name, values in outputs.items():
        kind = KINDS.get(name)
        if kind is None or kind in found:
            continue
        own = np.asarray(values)[number]
        is_by_token = kind in OF_TOKENS or (kind == "logits" and own.ndim > 1)
        found[kind] = (own[batch.is_text[number]] if is_by_token else own).astype(np.float32)
    if not found:
        raise InputError(f"its outputs ({', '.join(outputs)}) are not known: {', '.join(KINDS)} are")
    return found


# ---- each runtime ----------------------------------------------------------------------------------------------------


def _transformers(path: Path, model_dir: Path) -> Target:
    import torch
    import transformers

    named = (json_object(path / "config.json").get("architectures") or [None])[0]
    with plainly(f"Transformers cannot load {path}"), quiet_transformers():
        found: Any = getattr(transformers, str(named), None)
        has_head = isinstance(found, type) and not str(named).endswith(ENCODERS)
        loads: Any = found if has_head else transformers.AutoModel
        bare = {"add_pooling_layer": False} if loads is transformers.AutoModel else {}
        model = loads.from_pretrained(path, local_files_only=True, use_safetensors=True, **bare).eval()

    def run(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        held: list[torch.Tensor] = []
        hook = model.base_model.register_forward_hook(lambda _module, _given, made: held.append(made[0]))
        try:
            with torch.inference_mode():
                made = model(**{name: torch.from_numpy(each) for name, each in inputs.items()})
        finally:
            hook.remove()
        outputs = {"last_hidden_state": held[0], **{name: made[name] for name in made if name in KINDS}}
        return {name: each.float().numpy() for name, each in outputs.items()}

    kind = str(next(model.parameters()).dtype).removeprefix("torch.")
    name = f"Transformers {transformers.__version__}, {type(model).__name__} in {kind}"
    return _Network(name, run, path, model_dir)


def _onnx(file: Path, model_dir: Path) -> Target:
    onnxruntime = _module("onnxruntime", "onnxruntime")
    with plainly(f"ONNX Runtime cannot load {file}"):
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_outputs()]

    def run(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return dict(zip(names, session.run(None, dict(inputs)), strict=True))

    name = f"ONNX Runtime {_version('onnxruntime')}, {file.name}"
    quantized = "int8" if any(each in file.read_bytes() for each in INTEGER_NODES) else ""
    needed = [each.name for each in session.get_inputs()]
    return _Network(name, run, file.parent, model_dir, needed, precision=quantized)


def _openvino(file: Path, model_dir: Path) -> Target:
    openvino = _module("openvino", "openvino")
    with plainly(f"OpenVINO cannot load {file}"):
        core = openvino.Core()
        model = core.read_model(file)
        compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    names = [_name_of(each, number) for number, each in enumerate(compiled.outputs)]

    def run(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        made = compiled(dict(inputs))
        return {name: np.array(made[number]) for number, name in enumerate(names)}

    name = f"OpenVINO {_version('openvino')}, {file.name}"
    inputs = [_name_of(each, number) for number, each in enumerate(compiled.inputs)]
    held = {each.get_element_type().get_type_name() for each in model.get_ops() if each.get_type_name() == "Constant"}
    quantized = "int8" if held & {"i8", "u8"} else ""
    return _Network(name, run, file.parent, model_dir, inputs, precision=quantized)


def _name_of(port: Any, number: int) -> str:
    names = sorted(port.get_names())
    return next((name for name in names if name in KINDS), names[0] if names else f"output {number}")


def _ctranslate2(path: Path, model_dir: Path) -> Target:
    ctranslate2 = _module("ctranslate2", "ctranslate2")
    with plainly(f"CTranslate2 cannot load {path}"):
        encoder = ctranslate2.Encoder(str(path), device="cpu")

    def run(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        batch = Batch(dict(inputs))
        made = encoder.forward_batch([list(batch.ids(number)) for number in range(len(batch.is_text))])
        return {"last_hidden_state": np.array(made.last_hidden_state).astype(np.float32)}

    kind = str(encoder.compute_type)
    quantized = "int8" if kind.startswith("int8") else ""
    return _Network(f"CTranslate2 {ctranslate2.__version__} in {kind}", run, path, model_dir, precision=quantized)


class _SentenceTransformers:
    """A folder of sentence-transformers, with its own tokenizer, pooling and backend."""

    takes_pairs = False
    shows_used_ids = True
    precision = pool = ""

    def __init__(self, path: Path, _model_dir: Path) -> None:
        sentence_transformers = _module("sentence_transformers", "sentence-transformers")
        with plainly(f"sentence-transformers cannot load {path}"), quiet_transformers():
            self._model = sentence_transformers.SentenceTransformer(str(path), device="cpu", local_files_only=True)
        self.runtime = f"sentence-transformers {sentence_transformers.__version__}"
        self.is_normalized = any(type(module).__name__ == "Normalize" for module in self._model)
        self.notes: list[str] = []

    def ask(self, texts: Sequence[Text]) -> list[Given | Refused]:
        import torch

        prepare = getattr(self._model, "preprocess", None) or self._model.tokenize
        try:
            features = prepare(list(texts))
            with torch.inference_mode():
                made = self._model(dict(features))
        except Exception as error:  # noqa: BLE001 - of whatever module the folder names
            return [Refused(one_line(error))] * len(texts)
        batch = Batch({name: features[name].numpy() for name in ("input_ids", "attention_mask")})
        outputs = {name: each.float().numpy() for name, each in made.items() if name in KINDS}
        return [Given(_answer(outputs, batch, number), batch.ids(number)) for number in range(len(texts))]

    def close(self) -> None:
        """Nothing is open."""


KNOWN: Final[tuple[tuple[Callable[[Path], Path | None], Callable[[Path, Path], Target]], ...]] = (
    (_holds("modules.json"), _SentenceTransformers),
    (_holds("config.json", also=WEIGHTS), _transformers),
    (_named(".onnx", ONNX), _onnx),
    (_named(".xml", OPENVINO), _openvino),
    (_holds("model.bin", also=("vocabulary.json", "vocabulary.txt")), _ctranslate2),
)
"""How a folder is recognized, and what opens it."""
