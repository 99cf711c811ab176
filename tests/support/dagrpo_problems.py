"""Problems for DaGRPO's runs: the hardest of the embedded task, some with an expert's demonstration."""

from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
from running import TASK, verl_gsd

BATCH, SIZE = 48, 8
#: Prompts that have an expert's demonstration; the others have what the policy gets right by itself.
SHOWN = 12
SHORT = (
    *("task=arithmetic", "hardware=cpu", f"data.train_batch_size={BATCH}", "trainer.val_before_train=false"),
    *("trainer.test_freq=-1", "actor_rollout_ref.actor.optim.lr_warmup_steps=0"),
    "actor_rollout_ref.actor.optim.lr=1e-5",
)


def write_problems(folder):
    """The same prompts at every step, by index: of the hardest levels, which a group may well fail.

    Prompts without an expert are of a level solved once in some fifty times: a group mostly fails, and every third
    prompt or so is one that failed after the restart and succeeded before it alone. Some dozen of those are expected.
    """
    assert verl_gsd("prepare", "arithmetic").returncode == 0
    rows = pq.read_table(TASK / "train.parquet")
    levels = [extra["level"] for extra in rows["extra_info"].to_pylist()]
    failing = [n for n, level in enumerate(levels) if level in ("mixed_4", "add_8")][:SHOWN]
    succeeding = [n for n, level in enumerate(levels) if level == "mixed_3"][: BATCH - SHOWN]
    chosen = rows.take(failing + succeeding).to_pylist()
    for row in chosen[SHOWN:]:
        row["demonstration"] = None
    pq.write_table(pa.Table.from_pylist(chosen, rows.schema), folder / "train.parquet")
    return SimpleNamespace(file=folder / "train.parquet", by_index={row["extra_info"]["index"]: row for row in chosen})
