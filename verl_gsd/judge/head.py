"""The linear head of a distilled judge, and its format on disk. Loading it executes no code from the folder.

FOLDER/head.safetensors   float64: mean, scale, weight (width,), bias (1,)
FOLDER/head.json          the judge, the encoder, the agreement, a digest of the head
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
HEAD, METADATA = "head.safetensors", "head.json"


@dataclass(frozen=True, eq=False)
class Head:
    """score = weight . (features - mean) / scale + bias, clipped to the scale of 0 to 10.

    Attributes:
        mean, scale, weight: (width,) float64.
        bias: the mean of the training scores.
        whole: whether predictions are rounded to whole numbers because the judge's scores were whole. Without rounding,
            a gap that is exactly delta for the judge would fall below delta half of the time.
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
        """The parameters by name, as float64 arrays."""
        arrays = {"mean": self.mean, "scale": self.scale, "weight": self.weight, "bias": np.array([self.bias])}
        return {name: np.ascontiguousarray(values, np.float64) for name, values in arrays.items()}


@dataclass(frozen=True, eq=False)
class DistilledJudge:
    """A head, with the judge and the encoder that it was fitted on.

    Attributes:
        judge: the identity of the scorer whose judgements the head was fitted on.
        encoder: the encoder's folder.
        encoder_identity: the encoder's fingerprint when the head was fitted.
        head: the fitted head.
        penalty: the chosen ridge penalty.
        agreement: the head's agreement with the judge on held-out problems.
    """

    judge: str
    encoder: Path
    encoder_identity: str
    head: Head
    penalty: float
    agreement: Agreement

    @property
    def identity(self) -> str:
        """The ``Scorer.identity`` of its scores: a digest of the head, and the encoder."""
        content = bytes([self.head.whole]) + b"".join(values.tobytes() for values in self.head.arrays().values())
        return f"distilled head={hashlib.sha256(content).hexdigest()[:16]} encoder={self.encoder_identity}"

    def save(self, folder: Path) -> None:
        """Write ``folder`` atomically: completely or not at all.

        Raises:
            FileExistsError: ``folder`` exists.
            OSError: the disk is full, or the process may not write there.
        """
        from safetensors.numpy import save

        if folder.exists():
            raise FileExistsError(f"{folder} already exists. Use the name of a new folder")
        head = save(self.head.arrays())
        agreement = {name: None if math.isnan(value) else value for name, value in asdict(self.agreement).items()}
        metadata = {"version": VERSION, "judge": self.judge, "encoder": str(self.encoder)}
        metadata |= {"encoder_identity": self.encoder_identity, "whole": self.head.whole, "penalty": self.penalty}
        metadata |= {"agreement": agreement, "head_sha256": hashlib.sha256(head).hexdigest()}
        with atomic_folder(folder, replace=False) as building:
            (building / HEAD).write_bytes(head)
            (building / METADATA).write_text(json.dumps(metadata, indent=2) + "\n", encoding="utf-8")


def load_distilled(folder: Path) -> DistilledJudge:
    """Read a folder that ``DistilledJudge.save`` wrote.

    Raises:
        ValueError: a file is missing, damaged, or of another version. The message names it.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load as unpack

    path = folder / METADATA
    try:
        metadata = json.loads(path.read_text(encoding="utf-8"))
        if metadata["version"] != VERSION:
            raise ValueError(f"it has version {metadata['version']}, and this package reads version {VERSION}")
        measures: dict[str, Any] = {
            name: math.nan if value is None else value for name, value in metadata["agreement"].items()
        }
        agreement, whole, penalty = Agreement(**measures), bool(metadata["whole"]), float(metadata["penalty"])
        judge, encoder, identity, expected = (
            str(metadata[name]) for name in ("judge", "encoder", "encoder_identity", "head_sha256")
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path}: cannot be read as a distilled judge: {error!r}. Run verl-gsd judge distill again"
        ) from error
    path = folder / HEAD
    try:
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != expected:
            raise ValueError(f"its digest differs from the one in {METADATA}")
        arrays = unpack(content)
        mean, scale, weight, bias = (arrays[name] for name in ("mean", "scale", "weight", "bias"))
        if bias.shape != (1,) or mean.ndim != 1 or not mean.shape == scale.shape == weight.shape:
            raise ValueError(f"its arrays have shapes {mean.shape}, {scale.shape}, {weight.shape} and {bias.shape}")
        if not all(np.isfinite(values).all() for values in arrays.values()) or (scale <= 0).any():
            raise ValueError("it has a number that is not finite, or a scale of 0 or less")
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise ValueError(f"{path}: cannot be read as a head: {error!r}. Run verl-gsd judge distill again") from error
    head = Head(mean, scale, weight, float(bias[0]), whole)
    return DistilledJudge(judge, Path(encoder), identity, head, penalty, agreement)
