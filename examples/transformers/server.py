"""Serves a transformers model on the CPU over HTTP, from weights that Tonnage has cached on the node.

    GET /health      200 once the model is loaded
    POST /generate   {"prompt": "Model weights", "tokens": 8}  →  {"text": …, "revision": …}

The weights are mapped from the cache, not copied: all pods of a node share these pages.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch
import transformers

MAX_TOKENS = 64


class Model:
    """A language model and its tokenizer; one request at a time."""

    def __init__(self, path: str) -> None:
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(path)
        self._model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype="auto").eval()
        self._lock = threading.Lock()

    def generate(self, prompt: str, tokens: int) -> str:
        """Returns the most likely continuation."""
        inputs = self._tokenizer(prompt, return_tensors="pt")
        with self._lock, torch.inference_mode():
            output = self._model.generate(**inputs, max_new_tokens=tokens, do_sample=False, pad_token_id=0)
        text: str = self._tokenizer.decode(output[0][inputs["input_ids"].shape[1] :])
        return text


class Handler(BaseHTTPRequestHandler):
    """Handles the requests of one connection."""

    model: Model

    def do_GET(self) -> None:
        """Answers probes. The server listens only after the model is loaded."""
        self._answer(200 if self.path == "/health" else 404, {})

    def do_POST(self) -> None:
        """Generates text for a prompt."""
        try:
            request = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))))
            prompt, tokens = str(request["prompt"]), min(int(request.get("tokens", 8)), MAX_TOKENS)
        except (ValueError, KeyError, TypeError):
            self._answer(400, {"error": 'send {"prompt": "…", "tokens": 8}'})
            return
        text = self.model.generate(prompt, tokens)
        self._answer(200, {"text": text, "revision": os.environ.get("TONNAGE_REVISION", "")})

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the base class's name
        """Does nothing, so that probes are not logged."""


def main() -> None:
    """Loads the model and serves until SIGTERM."""
    path = os.environ["TONNAGE_MODEL_PATH"]
    began = time.perf_counter()
    Handler.model = Model(path)
    server = ThreadingHTTPServer(("", int(os.environ.get("PORT", "8000"))), Handler)
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    print(f"Loaded {path} in {time.perf_counter() - began:.2f} s; listening on port {server.server_port}.", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
