"""The head of a distilled judge: what it is, and how it lies on disk. Nothing in its folder can run.

FOLDER/head.safetensors   float64: mean, scale, weight (width,), bias (1,)
FOLDER/head.json          whose judgements, which encoder, the agreement, a digest of the head
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from verl_gsd.judge.agreement import Agreement
from verl_gsd.judge.scorer import HIGHEST, LOWEST
from verl_gsd.writing import atomic_folder

VERSION = 1
HEAD, ABOUT = "head.safetensors", "head.json"


@dataclass(frozen=True, eq=False)
class Head:
    """score = weight . (features - mean) / scale + bias, kept on the scale of 0 to 10.

    Attributes:
        mean, scale, weight: (width,) float64.
        bias: the mean score it learned from.
        whole: whether scores are rounded to whole numbers, as the judge's were: left between them, a gap that is
            exactly delta for the judge would fall below delta half of the time.
    """

    mean: np.ndarray
    scale: np.ndarray
    weight: np.ndarray
    bias: float
    whole: bool

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Scores (n,) in [0, 10] of features (n, width)."""
        scores = np.clip((features - self.mean) / self.scale @ self.weight + self.bias, LOWEST, HIGHEST)
        return np.rint(scores) if self.whole else scores

    def arrays(self) -> dict[str, np.ndarray]:
        """The numbers, float64, by name."""
        arrays = {"mean": self.mean, "scale": self.scale, "weight": self.weight, "bias": np.array([self.bias])}
        return {name: np.ascontiguousarray(values, np.float64) for name, values in arrays.items()}


@dataclass(frozen=True, eq=False)
class Distilled:
    """A head and what it belongs to.

    Attributes:
        judge: the identity of the scorer whose judgements it learned.
        encoder: the encoder's folder.
        encoder_identity: its fingerprint when the head was fitted.
        head: what it learned.
        penalty: the ridge penalty that was chosen.
        agreement: on held-out problems, of this very head.
    """

    judge: str
    encoder: Path
    encoder_identity: str
    head: Head
    penalty: float
    agreement: Agreement

    @property
    def identity(self) -> str:
        """What its scores depend on: a digest of the head, and the encoder."""
        content = bytes([self.head.whole]) + b"".join(values.tobytes() for values in self.head.arrays().values())
        return f"distilled head={hashlib.sha256(content).hexdigest()[:16]} encoder={self.encoder_identity}"

    def save(self, folder: Path) -> None:
        """Write ``folder``, whole or not at all.

        Raises:
            FileExistsError: something is there.
            OSError: there is no room, or no right to write.
        """
        from safetensors.numpy import save

        if folder.exists():
            raise FileExistsError(f"{folder} is there already: write the name of a folder to make")
        head = save(self.head.arrays())
        agreed = {name: None if math.isnan(value) else value for name, value in asdict(self.agreement).items()}
        about = {"version": VERSION, "judge": self.judge, "encoder": str(self.encoder)}
        about |= {"encoder_identity": self.encoder_identity, "whole": self.head.whole, "penalty": self.penalty}
        about |= {"agreement": agreed, "head_sha256": hashlib.sha256(head).hexdigest()}
        with atomic_folder(folder, replace=False) as building:
            (building / HEAD).write_bytes(head)
            (building / ABOUT).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def load(folder: Path) -> Distilled:
    """What ``Distilled.save`` wrote.

    Raises:
        ValueError: a file is missing, damaged, or of a newer version; the message names it.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load as unpack

    path = folder / ABOUT
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        if about["version"] != VERSION:
            raise ValueError(f"version {about['version']}, this package reads {VERSION}")
        agreed: dict[str, Any] = {
            name: math.nan if value is None else value for name, value in about["agreement"].items()
        }
        measured, whole, penalty = Agreement(**agreed), bool(about["whole"]), float(about["penalty"])
        judge, encoder, identity, expected = (
            str(about[name]) for name in ("judge", "encoder", "encoder_identity", "head_sha256")
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: not readable as a distilled judge: {error!r}. Distil it anew") from error
    path = folder / HEAD
    try:
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != expected:
            raise ValueError(f"its digest is not the one that {ABOUT} has")
        arrays = unpack(content)
        mean, scale, weight, bias = (arrays[name] for name in ("mean", "scale", "weight", "bias"))
        if bias.shape != (1,) or mean.ndim != 1 or not mean.shape == scale.shape == weight.shape:
            raise ValueError(f"shapes {mean.shape}, {scale.shape}, {weight.shape} and {bias.shape}")
        if not all(np.isfinite(values).all() for values in arrays.values()) or (scale <= 0).any():
            raise ValueError("a number that is none, or a scale of 0")
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise ValueError(f"{path}: not readable as a head: {error!r}. Distil it anew") from error
    head = Head(mean, scale, weight, float(bias[0]), whole)
    return Distilled(judge, Path(encoder), identity, head, penalty, measured)
