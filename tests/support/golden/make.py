"""Make the golden traces of some runs: ``python tests/support/golden/make.py RUN...``, which takes a few seconds each.

Run it only when a change of numbers is intended, and explain the change in the commit message: the kept files are what
today's code is compared with. A change of names, files or classes is no reason: it changes ``driver.py`` alone. The
checkpoints in ``data/*/saved`` were written by older code on purpose, and runs must still resume from them: if only the
format of a checkpoint changes, keep the old files and add a run or a folder beside them.

``python tests/support/golden/make.py --recording`` draws the recording anew and makes all runs. Do it only if a run
must meet something that is not recorded.

The recording, in ``data/``:

- ``prompts.parquet``: the data set of all runs, 12 prompts of two sources, with experts' demonstrations. Its size and
  hash stand in every checkpoint.
- ``responses.parquet``: a row per prompt, visit and session: tokens, mask, reward, the verifier's accuracy and what it
  could not verify, the judge's score (NaN: the judgement failed), and whether the session fails.
- ``tables.safetensors``: log-probabilities (float32) of the policy before each update and of the reference model, by a
  token and the one before it, modulo 16; entropies.
- ``verdicts.json``: accuracy of each demonstration.

The traces, in ``data/<run>/``, each of 5 steps, ended after step 3 and resumed:

- ``steps.jsonl``: a line per step: ``rows`` of the batch with their numbers of tokens, ``updates`` (of each micro-batch
  its rows, loss, and the norm of the gradient with respect to the log-probabilities), ``metrics``.
- ``advantages.safetensors``: by step, advantages of all tokens of ``rows``, one row after the other.
- ``records.parquet``: the table of all groups.
- ``saved/``: the checkpoint of step 3, from which replays resume: ``gsd/``, and verl's ``data.pt``, in which the
  sampler's place stands. ``ended/``: that of step 5.
"""

import itertools
import json
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import save

if __name__ == "__main__":
    os.environ["VERL_GSD_CPU"] = "1"
    sys.path.insert(0, str(Path(__file__).parents[1]))

from golden import driver, traces

SEED = 29
#: Recorded of every prompt: more than any run asks for.
VISITS, SESSIONS = 10, 10
#: Of each prompt the share of right responses, and the experts' texts. Every third prompt has a graded verifier.
PROMPTS = [
    (0.05, ["123456789"]),  # too long: a response has 8 tokens at most
    (0.5, []),
    (0.9, ["bad", "56"]),
    (0.35, []),
    (0.0, ["bad", "7"]),
    (0.65, []),
    (1.0, []),
    (0.5, []),
    (0.3, ["89ab"]),
    (0.8, []),
    (0.2, []),
    (0.6, []),
]
#: (prompt, visit) -> sessions that are right, no others: one success, and failures at the next visits, for which the
#: policy's own earlier success is a demonstration.
RIGHT = {(10, 0): [1], (10, 1): [], (10, 2): []}
#: (prompt, visit, session): a response whose reward failed, and a session that failed.
LOST, FAILED = (1, 0, 2), (3, 1, 1)


def record(data):
    """Draw the recording."""
    draw, tokenizer = np.random.default_rng(SEED), driver.tokenizer()
    prompts, responses = [], []
    for number, (rate, experts) in enumerate(PROMPTS):
        graded = number % 3 == 2
        source, index = ("graded", number // 3) if graded else ("maths", number - number // 3)
        prompts.append(
            {
                "data_source": source,
                "prompt": [{"role": "user", "content": f"{number}+{draw.integers(10, 99)}="}],
                "reward_model": {"ground_truth": str(number), "style": "rule"},
                "extra_info": {"index": index},
                "demonstration": experts,
            }
        )
        written = set()
        for visit, session in itertools.product(range(VISITS), range(SESSIONS)):
            text = next(text for text in iter(lambda: _text(draw), None) if text not in written)
            written.add(text)
            tokens = tokenizer.encode(text, add_special_tokens=False)
            if draw.random() < 0.9 or (number, visit) in RIGHT:  # else it was cut off
                tokens.append(tokenizer.eos_token_id)
            accuracy = float(draw.random() < rate)
            if graded:
                accuracy = float(np.clip(np.rint(4 * draw.normal(rate, 0.3)) / 4, 0, 1))
            if (number, visit) in RIGHT:
                accuracy = float(session in RIGHT[number, visit])
            reward = accuracy - 0.125 * (graded and len(tokens) > 6)
            score = float(np.clip(draw.integers(0, 7) + 4 * accuracy, 0, 10))
            responses.append(
                {
                    "data_source": source,
                    "index": index,
                    "visit": visit,
                    "session": session,
                    "tokens": tokens,
                    "mask": [len(tokens) < 6 or place != 2 for place in range(len(tokens))],
                    "reward": np.nan if (number, visit, session) == LOST else reward,
                    "accuracy": accuracy,
                    "unverified": None if graded else int(draw.random() < 0.1),
                    "score": np.nan if draw.random() < 0.04 else score,
                    "fails": (number, visit, session) == FAILED,
                }
            )
    pq.write_table(pa.Table.from_pylist(prompts), data / "prompts.parquet")
    pq.write_table(pa.Table.from_pylist(responses), data / "responses.parquet", compression="zstd")
    texts = {text for _, experts in PROMPTS for text in experts}
    verdicts = {text: float(text != "bad") for text in sorted(texts)}
    (data / "verdicts.json").write_text(json.dumps(verdicts) + "\n")
    size = driver.ALPHABET
    base = -draw.gamma(2.0, 0.5, (size, size))
    moves = draw.normal(0, 0.15, (driver.STEPS * driver.UPDATES, size, size)).cumsum(axis=0)
    tables = {
        "policy": np.minimum(base + np.concatenate([np.zeros((1, size, size)), moves]), -0.001),
        "reference": np.minimum(base + draw.normal(0, 0.1, base.shape), -0.001),
        "entropy": draw.uniform(0.5, 2.5, size),
    }
    rounded = {name: table.astype(np.float32) for name, table in tables.items()}
    (data / "tables.safetensors").write_bytes(save(rounded))


def _text(draw):
    return "".join(draw.choice(list("0123456789+-abcd"), size=draw.integers(2, 7)))


def main(arguments):
    traces.DATA.mkdir(exist_ok=True)
    if arguments == ["--recording"]:
        record(traces.DATA)
        arguments = list(driver.RUNS)
    if not arguments or not driver.RUNS.keys() >= set(arguments):
        sys.exit(f"make.py: write some of {' '.join(driver.RUNS)}, or --recording for all")
    for name in arguments:
        with tempfile.TemporaryDirectory() as folder:
            traces.keep(driver.replay(name, Path(folder)), Path(folder), traces.DATA / name)


if __name__ == "__main__":
    main(sys.argv[1:])
