"""Servers with TEI's interface (/embed, /embed_all, /tokenize, /info) or OpenAI's (/v1/embeddings)."""

from __future__ import annotations

import base64
import binascii
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final

import numpy as np

from hf_xlmr.conformance.http_calls import Calls, LockedAnswer, OddAnswer, RefusedRequest
from hf_xlmr.conformance.own_network import TOKENS, VECTOR
from hf_xlmr.conformance.setting import Text
from hf_xlmr.conformance.targets import Given, Refused, Target
from hf_xlmr.errors import InputError

__all__ = ["open_server"]

TEI_PATHS: Final = ("/embed", "/embed_all", "/info")
OPENAI_PATH: Final = "/v1"
MOST_TEXTS: Final = 32  # in a request, which TEI takes unless it is told otherwise


def open_server(address: str, *, timeout: float) -> Target:
    """The server behind an address, by the interface that it has. Raises InputError."""
    calls = Calls(address, timeout=timeout)
    try:
        return _opened(calls)
    except BaseException:
        calls.close()
        raise


def _opened(calls: Calls) -> Target:
    odd: list[OddAnswer] = []
    for ending in TEI_PATHS:
        if calls.base.endswith(ending):
            calls.base = calls.base.removesuffix(ending)
            return _Tei(calls, _info(calls, odd) or {})
    calls.base = calls.base.removesuffix("/embeddings")
    if calls.base.endswith(OPENAI_PATH):
        calls.base = calls.base.removesuffix(OPENAI_PATH)
        return _OpenAi(calls, _first_model(calls, odd))
    if (info := _info(calls, odd)) is not None:
        return _Tei(calls, info)
    if (model := _first_model(calls, odd)) is not None:
        return _OpenAi(calls, model)
    if odd:
        raise next((error for error in odd if isinstance(error, LockedAnswer)), odd[0])
    raise InputError(
        f"{calls.shown} has neither /info (TEI's interface) nor /v1/models (OpenAI's): name the address of /embed or "
        "/v1/embeddings"
    )


def _said(calls: Calls, path: str, odd: list[OddAnswer]) -> Any:
    """What the server says at a path; None if it refuses that, or answers what is kept in `odd`."""
    try:
        return calls.get(path)
    except RefusedRequest:
        return None
    except OddAnswer as error:
        odd.append(error)
        return None


def _info(calls: Calls, odd: list[OddAnswer]) -> Mapping[str, Any] | None:
    """What TEI says of itself."""
    found = _said(calls, "/info", odd)
    return found if isinstance(found, Mapping) and "model_id" in found else None


def _first_model(calls: Calls, odd: list[OddAnswer]) -> str | None:
    """The name of the first model that a server with OpenAI's interface has."""
    try:
        return str(_said(calls, f"{OPENAI_PATH}/models", odd)["data"][0]["id"])
    except (KeyError, IndexError, TypeError):
        return None


class _Server(ABC):
    """What both interfaces share: requests for several texts, split if the server refuses them."""

    runtime: str
    takes_pairs = False
    is_normalized = False
    pool = ""
    shows_used_ids = False
    precision = ""

    def __init__(self, calls: Calls) -> None:
        self.calls = calls
        self.notes: list[str] = []
        self._most = MOST_TEXTS

    def close(self) -> None:
        """End the connections."""
        self.calls.close()

    def ask(self, texts: Sequence[Text]) -> list[Given | Refused]:
        """What the server gives. Raises InputError."""
        given = [str(each) for each in texts]
        if len(given) > self._most:
            return [each for text in given for each in self.ask([text])]
        try:
            return list(self._given(given))
        except RefusedRequest as error:
            if error.status == HTTPStatus.NOT_FOUND:
                raise InputError(f"{self.calls.shown} has no such interface ({error})") from None
            if len(given) == 1:
                return [Refused(str(error))]
        found = [each for text in given for each in self.ask([text])]
        if not any(isinstance(each, Refused) for each in found):
            self._most = len(given) - 1
            self.notes.append(f"the server refuses {len(given)} texts in a request, so these were asked one by one")
        return found

    @abstractmethod
    def _given(self, texts: list[str]) -> list[Given]:
        """What the server gives for texts in one request. Raises InputError, RefusedRequest."""

    def _vectors(self, rows: object, count: int) -> list[np.ndarray]:
        if not isinstance(rows, list) or len(rows) != count:
            size = len(rows) if isinstance(rows, list) else f"a {type(rows).__name__}"
            raise InputError(f"{self.calls.shown} answers {size} where vectors of {count} texts were asked for")
        return [self._numbers(row, 1) for row in rows]

    def _numbers(self, values: object, dimensions: int) -> np.ndarray:
        """An array of nested lists; null, by which some servers write what is not finite, is not a number."""
        try:
            found = np.array(values, dtype=object)
            if found.ndim != dimensions or not all(type(each) in (int, float, type(None)) for each in found.flat):
                raise ValueError
            return np.array(found, dtype=np.float64).astype(np.float32)
        except (ValueError, TypeError, OverflowError):
            told = self.calls.told(str(values))
            raise InputError(f"{self.calls.shown} answers what is not a vector: {told:.60}") from None


class _Tei(_Server):
    """Text Embeddings Inference."""

    def __init__(self, calls: Calls, info: Mapping[str, Any]) -> None:
        super().__init__(calls)
        named = {name: calls.told(str(info.get(name, "unknown")))[:80] for name in ("version", "model_dtype")}
        self.runtime = f"TEI {named['version']} in {named['model_dtype']}"
        self._gives_tokens = self._shows_ids = True

    def _given(self, texts: list[str]) -> list[Given]:
        body = {"inputs": texts, "truncate": True}
        vectors = self._vectors(self.calls.post("/embed", {**body, "normalize": False}), len(texts))
        tokens, ids = self._tokens(body, len(texts)), self._ids(texts)
        return [
            Given({VECTOR: vector, **({TOKENS: tokens[number]} if tokens else {})}, ids[number] if ids else None)
            for number, vector in enumerate(vectors)
        ]

    def _tokens(self, body: Mapping[str, object], count: int) -> list[np.ndarray]:
        if not self._gives_tokens:
            return []
        try:
            rows = self.calls.post("/embed_all", body)
        except RefusedRequest as error:
            self._gives_tokens = False
            self.notes.append(f"the server gives no vectors of tokens ({error})")
            return []
        if not isinstance(rows, list) or len(rows) != count:
            raise InputError(f"{self.calls.shown}/embed_all does not answer the vectors of {count} texts")
        return [self._numbers(row, 2) for row in rows]

    def _ids(self, texts: list[str]) -> list[tuple[int, ...]]:
        if not self._shows_ids:
            return []
        try:
            rows = self.calls.post("/tokenize", {"inputs": texts, "add_special_tokens": True})
            found = [tuple(int(each["id"]) for each in row) for row in rows]
        except (RefusedRequest, KeyError, TypeError, ValueError):
            found = []
        self._shows_ids = len(found) == len(texts)
        return found if self._shows_ids else []


class _OpenAi(_Server):
    """OpenAI's interface, which vLLM, llama.cpp, TEI and others offer."""

    is_normalized = True

    def __init__(self, calls: Calls, model: str | None) -> None:
        super().__init__(calls)
        self._model = model
        self.runtime = f"a server with OpenAI's interface ({calls.told(model or 'no model named')[:80]})"

    def _given(self, texts: list[str]) -> list[Given]:
        body = {"input": texts, "encoding_format": "float", **({"model": self._model} if self._model else {})}
        made = self.calls.post(f"{OPENAI_PATH}/embeddings", body)
        try:
            items = made["data"]
            numbers = [item.get("index", place) for place, item in enumerate(items)]
            rows = {number: item["embedding"] for number, item in zip(numbers, items, strict=True)}
            found = [_decoded(rows[number]) for number in range(len(texts))]
        except (KeyError, TypeError, AttributeError):
            raise InputError(f"{self.calls.shown} does not answer an embedding for each text") from None
        return [Given({VECTOR: each}) for each in self._vectors(found, len(texts))]


def _decoded(values: object) -> object:
    """The numbers of an embedding, also if a server writes them in base64 although it was asked for numbers."""
    if not isinstance(values, str):
        return values
    try:
        return np.frombuffer(base64.b64decode(values, validate=True), dtype="<f4").tolist()
    except (binascii.Error, ValueError):
        return values
