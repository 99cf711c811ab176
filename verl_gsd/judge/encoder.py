"""Computes a distilled judge's features: a local language model's last hidden states, averaged over the response.

The model is a folder in Hugging Face's format, for example the policy's own. Nothing is downloaded, no code from the
folder is executed, and weights are read only from safetensors files.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np

from verl_gsd.judge.scorer import Question

#: Limit for a problem and its response together. The end is kept, because it holds the response and its conclusion.
MAX_TOKENS = 4096
#: Number of features besides the hidden states: log(1 + tokens) and log(1 + lines) of the response.
LENGTH_FEATURES = 2

_BLOCKS, _BLOCK_BYTES = 64, 1 << 16


class Encoder:
    """Turns a question into ``width`` features. Not thread-safe.

    Args:
        folder: a causal language model and its tokenizer.
        device: torch's name of the device. The model computes in float32.

    Raises:
        ValueError: ``folder`` has no readable model, or the device does not exist. The message names it.
    """

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        import torch
        from safetensors import SafetensorError
        from transformers import AutoModel, AutoTokenizer

        self.folder = folder.resolve()
        self.identity = fingerprint(self.folder)
        local = {"local_files_only": True, "trust_remote_code": False}
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(self.folder, **local)
            model = AutoModel.from_pretrained(self.folder, use_safetensors=True, dtype=torch.float32, **local)
        except (OSError, ValueError, KeyError, ImportError, SafetensorError) as error:
            raise ValueError(
                f"{self.folder}: cannot be read as a language model with its tokenizer: {error}"
            ) from error
        try:
            self._model = model.to(device).eval()
        except (RuntimeError, AssertionError) as error:
            raise ValueError(
                f"device={device}: {error}. Use cpu, or another device that torch has on this machine"
            ) from error
        self._device = device
        config = model.config.get_text_config()
        self._limit = min(getattr(config, "max_position_embeddings", None) or MAX_TOKENS, MAX_TOKENS)
        self.width = int(config.hidden_size) + LENGTH_FEATURES

    def features(self, question: Question) -> np.ndarray:
        """(width,) float64. The averaged hidden states are zero for a response without tokens."""
        import torch

        problem, response = (self._tokens(text) for text in (question.problem + "\n", question.response))
        kept = min(len(response), self._limit)
        pooled = np.zeros(self.width - LENGTH_FEATURES)
        if kept:
            tokens = torch.tensor([(problem + response)[-self._limit :]], device=self._device)
            with torch.inference_mode():
                hidden = self._model(input_ids=tokens, use_cache=False).last_hidden_state[0, -kept:]
            pooled = hidden.mean(dim=0).double().cpu().numpy()
        lines = question.response.count("\n") + 1
        return np.concatenate([pooled, np.log1p([len(response), lines])])

    def _tokens(self, text: str) -> list[int]:
        # Tokenizers do not accept lone surrogates.
        text = text.encode("utf-8", "replace").decode("utf-8")
        return self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def fingerprint(folder: Path) -> str:
    """A hash of a model's folder, 16 hex digits.

    It covers the whole configuration and tokenizer. Of each file of weights it covers the size and 64 blocks of 64 KiB
    spread over the file, so that it changes if the model is trained further in place.

    Raises:
        ValueError: there is no ``config.json``.
    """
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder}: there is no config.json. Use the folder of a model in Hugging Face's format")
    digest = hashlib.sha256()
    patterns = ("config.json", "tokenizer*", "vocab*", "merges.txt", "*.safetensors")
    for path in sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}):
        size = path.stat().st_size
        digest.update(json.dumps([path.name, size]).encode())
        with path.open("rb") as content:
            if path.suffix != ".safetensors":
                digest.update(content.read())
                continue
            for block in range(_BLOCKS):
                content.seek(max(size - _BLOCK_BYTES, 0) * block // (_BLOCKS - 1))
                digest.update(content.read(_BLOCK_BYTES))
    return digest.hexdigest()[:16]
