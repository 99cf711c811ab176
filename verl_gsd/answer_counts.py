"""How often each final answer occurs in a group, as a record column, and how many differ in equal numbers of responses.

The column holds digests and no texts: answers are texts of the policy, and can be long. A cell has 6 bytes per
different answer: 4 bytes digest and 2 bytes count, both little-endian, the most frequent answer first. Digest 0 stands
for responses without an answer. Two answers share a digest with probability 2^-32.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from hashlib import blake2b

import numpy as np
import pyarrow as pa
from scipy.special import gammaln

#: Different answers of a group that are kept, the most frequent first.
MOST_ANSWERS = 64
#: One different answer in a cell.
ENTRY: np.dtype = np.dtype([("digest", "<u4"), ("count", "<u2")])
_LARGEST_COUNT = 2**16 - 1


def pack_answers(answers: Iterable[str]) -> bytes:
    """Count the final answers of a group's responses, one text per response; it is empty if the response has none.

    Returns:
        The cell of the record column, with at most ``MOST_ANSWERS`` different answers. If a cell has so many, and its
        counts sum to fewer than the responses, rarer answers are missing from it.
    """
    counts = Counter(map(_digest, answers))
    frequent = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:MOST_ANSWERS]
    return np.array([(digest, min(count, _LARGEST_COUNT)) for digest, count in frequent], dtype=ENTRY).tobytes()


def unpack_answers(cells: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The entries of a column of cells from ``pack_answers``, in the order of the rows. A null has none.

    Returns:
        (n,) int64 row, (n,) uint32 digest, (n,) int64 count of each entry.
    """
    rows: list[np.ndarray] = [np.zeros(0, np.int64)]
    entries: list[np.ndarray] = [np.zeros(0, ENTRY)]
    first = 0
    for chunk in cells.chunks:
        _, offsets, data = chunk.cast(pa.binary()).buffers()
        bounds = np.frombuffer(offsets, np.int32)[chunk.offset : chunk.offset + len(chunk) + 1] if len(chunk) else [0]
        if data is not None:
            entries.append(np.frombuffer(data, np.uint8)[bounds[0] : bounds[-1]].view(ENTRY))
            rows.append(np.repeat(np.arange(first, first + len(chunk)), np.diff(bounds) // ENTRY.itemsize))
        first += len(chunk)
    entry = np.concatenate(entries)
    return np.concatenate(rows), entry["digest"], entry["count"].astype(np.int64)


def expected_distinct(
    set_of_entry: np.ndarray, is_answer: np.ndarray, count: np.ndarray, responses: int, n_sets: int
) -> np.ndarray:
    r"""Expected number of different answers in ``responses`` responses drawn without replacement from each set.

    A set of N responses has answer a c_a times. This is the rarefaction of ecology (Hurlbert 1971, equation 15):

        E = sum_a (1 - C(N - c_a, m) / C(N, m)),    m = ``responses``

    If the N responses are independent draws of one distribution, E estimates the number of different answers in m of
    its draws without bias, whatever N is. Sets of different size can therefore be compared.

    Args:
        set_of_entry: (n,) int64, the set of each entry, 0 to n_sets - 1.
        is_answer: (n,) bool; False for the responses without an answer. They count in N, but are no answer.
        count: (n,) int64 c_a.

    Returns:
        (n_sets,) float64; NaN for sets of fewer than m responses.
    """
    total = np.bincount(set_of_entry, count, minlength=n_sets).astype(np.int64)
    log_factorial = gammaln(np.arange(total.max(initial=0) + 1) + 1.0)
    is_large = total >= responses
    used = is_answer & is_large[set_of_entry]
    size, others = total[set_of_entry[used]], total[set_of_entry[used]] - count[used]
    # log of C(N - c, m) / C(N, m), which is 0 if the other answers are fewer than m
    left = np.maximum(others - responses, 0)
    log_missed = log_factorial[others] - log_factorial[left] - log_factorial[size] + log_factorial[size - responses]
    found = np.where(others < responses, 1.0, -np.expm1(np.minimum(log_missed, 0)))
    result = np.bincount(set_of_entry[used], found, minlength=n_sets)
    return np.where(is_large, result, np.nan)


def _digest(answer: str) -> int:
    if not answer:
        return 0
    return int.from_bytes(blake2b(answer.encode(errors="replace"), digest_size=4).digest(), "little") or 1
