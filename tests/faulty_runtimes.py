"""A real runtime with faults planted in it: a server that runs Transformers.

Nothing here knows how hf_xlmr.conformance computes its hypotheses: each fault is planted in Transformers' own modules,
in the tokenizer or in the server's code.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from torch import nn

__all__ = ["Runtime", "served", "without_tokens"]


@dataclass
class Runtime:
    """Transformers' network of a folder as a server has it: `None` fields are right, others a fault."""

    folder: Path
    prepare: Callable[[Any], object] | None = None
    """Changes the model."""
    frame: Callable[[list[int]], list[int]] = lambda row: row
    """Changes the ids of a text, special tokens included, before truncation."""
    spell: Callable[[str], str] = lambda text: text
    longest: int | None = None
    keeps_end: bool = True
    positions: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None
    """Position ids from ids and mask."""
    attends_to_padding: bool = False
    packs: bool = False
    types: Callable[[torch.Tensor], torch.Tensor] | None = None
    side: str = "right"
    dtype: torch.dtype = torch.float32
    pool: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None
    """A vector of hidden states (tokens, width) with padding, and the mask of the text."""
    normalizes: bool = False
    trains: bool = False

    def __post_init__(self) -> None:
        from transformers import AutoModel, AutoTokenizer, logging

        logging.set_verbosity_error()  # the head that the encoder leaves in the file
        logging.disable_progress_bar()
        self.model: Any = AutoModel.from_pretrained(self.folder, add_pooling_layer=False, dtype=torch.float32).eval()
        if self.prepare is not None:
            self.prepare(self.model)
        self.model.to(self.dtype).train(self.trains)
        self.tokenizer: Any = AutoTokenizer.from_pretrained(self.folder)
        self.lock = threading.Lock()

    def ids(self, text: str) -> list[int]:
        row: list[int] = self.frame(list(self.tokenizer(self.spell(text), verbose=False)["input_ids"]))
        longest = self.longest or self.model.config.max_position_embeddings - 2
        if len(row) > longest:
            row = [*row[: longest - 1], row[-1]] if self.keeps_end else row[:longest]
        return row

    def hidden(self, texts: Sequence[str]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Of each text the hidden states, with padding, and which of them are its own."""
        rows = [self.ids(text) for text in texts]
        longest = max(map(len, rows))
        if self.packs:
            places = torch.tensor([[2 + place for row in rows for place in range(len(row))]])
            flat = torch.tensor([[each for row in rows for each in row]])
            found = self._run(flat, torch.ones_like(flat), places)[0]
            return list(found.split([len(row) for row in rows])), [
                torch.ones(len(row), dtype=torch.bool) for row in rows
            ]
        pads = [[1] * (longest - len(row)) for row in rows]
        sided = zip(rows, pads, strict=True)
        ids = torch.tensor([[*pad, *row] if self.side == "left" else [*row, *pad] for row, pad in sided])
        own = torch.arange(longest) < torch.tensor([[len(row)] for row in rows])
        mask = own.flip(1) if self.side == "left" else own
        places = self.positions(ids, mask) if self.positions is not None else None
        found = self._run(ids, torch.ones_like(ids) if self.attends_to_padding else mask.long(), places)
        return list(found), list(mask)

    def _run(self, ids: torch.Tensor, mask: torch.Tensor, places: torch.Tensor | None) -> torch.Tensor:
        given = {} if places is None else {"position_ids": places}
        if self.types is not None:
            given["token_type_ids"] = self.types(ids)
        with self.lock, torch.inference_mode():
            hidden: torch.Tensor = self.model(input_ids=ids, attention_mask=mask, **given)[0].float()
        return hidden

    def tokens(self, texts: Sequence[str]) -> list[list[list[float]]]:
        hidden, masks = self.hidden(texts)
        return [each[mask].tolist() for each, mask in zip(hidden, masks, strict=True)]

    def vectors(self, texts: Sequence[str], *, normalize: bool = False) -> list[list[float]]:
        hidden, masks = self.hidden(texts)
        pool = self.pool or (lambda each, mask: each[mask].mean(dim=0))
        found = [pool(each, mask) for each, mask in zip(hidden, masks, strict=True)]
        if normalize or self.normalizes:
            found = [nn.functional.normalize(each, dim=0) for each in found]
        return [each.tolist() for each in found]


class _Handler(BaseHTTPRequestHandler):
    """TEI's and OpenAI's interface over a Runtime; `odd` may answer first."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # which waits 40 ms between the headers and the body

    def __init__(self, runtime: Runtime | None, odd: Callable[[_Handler, Any], bool] | None, *more: Any) -> None:
        self.runtime, self.odd = runtime, odd
        super().__init__(*more)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as in the base class
        """Say nothing."""

    def do_GET(self) -> None:
        self._answer(None)

    def do_POST(self) -> None:
        self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def send(self, content: object, *, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def _answer(self, body: Any) -> None:
        self.path = self.path.partition("?")[0]
        try:
            if self.odd is None or not self.odd(self, body):
                self._given(body)
        except (IndexError, RuntimeError) as error:
            self.send({"error": str(error)}, status=500)
        except OSError:  # the other side has ended
            self.close_connection = True

    def _given(self, body: Any) -> None:
        assert self.runtime is not None
        if self.path == "/info":
            self.send({"model_id": "m", "version": "1.9", "model_dtype": "float32", "max_client_batch_size": 32})
        elif self.path == "/embed":
            self.send(self.runtime.vectors(body["inputs"], normalize=body.get("normalize", True)))
        elif self.path == "/embed_all":
            self.send(self.runtime.tokens(body["inputs"]))
        elif self.path == "/tokenize":
            self.send([[{"id": each} for each in self.runtime.ids(text)] for text in body["inputs"]])
        elif self.path == "/v1/models":
            self.send({"data": [{"id": "the-model"}]})
        elif self.path == "/v1/embeddings":
            made = self.runtime.vectors(body["input"], normalize=True)
            self.send({"data": [{"index": number, "embedding": each} for number, each in enumerate(made)][::-1]})
        else:
            self.send({"error": "not found"}, status=404)


@contextmanager
def served(runtime: Runtime | None, *, odd: Callable[[Any, Any], bool] | None = None) -> Iterator[str]:
    """The address of a server on this machine."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, runtime, odd))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def without_tokens(handler: Any, _body: Any) -> bool:
    """A server that gives pooled vectors alone, and shows no ids."""
    if handler.path in ("/embed_all", "/tokenize"):
        handler.send({"error": "no"}, status=405)
        return True
    return False
