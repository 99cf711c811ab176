"""Rows of verl's queue as its agent loop workers write them, and extensions of a run that its buffer is watched for."""

from types import SimpleNamespace

import torch
import transfer_queue as tq
from tensordict import NonTensorStack, TensorDict
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer
from verl.utils.tensordict_utils import list_of_dict_to_tensordict

from verl_gsd.prompts import PromptStore
from verl_gsd.trainer import replay
from verl_gsd.trainer.row_store import BatchColumns, QueueRows
from verl_gsd.trainer.rows import DEMONSTRATED_BY, session_of, uid_of
from verl_gsd.trainer.seam import Seam


def services_of(**further):
    """What a trainer offers to its extensions, over the real queue; of the run itself, what a test names."""
    return SimpleNamespace(**{"rows": QueueRows(), "prompts": PromptStore(), "step": 1} | further)


class WrittenSeam(Seam):
    """The run's seam, which also writes down what it is told.

    Args:
        key_of: uid -> the prompt of a visit whose rollouts nobody requested. It counts as one of ``group_size``.

    Attributes:
        whole: groups, each time they were seen to be whole.
        fates: (uid, fate) of the groups that left, in their order.
        gone: uid -> (group, fate) of those groups, whatever step they left in.
    """

    def __init__(self, extensions, services, *, key_of, group_size):
        super().__init__(extensions, services.prompts, services.rows, group_size)
        self.key_of, self.size, self.whole, self.fates, self.gone = key_of, group_size, [], [], {}

    def prompt_of(self, uid):
        self._requested.setdefault(uid, self.size)
        return self._prompt_of.setdefault(uid, self.key_of(uid))

    def on_groups_complete(self, groups):
        self.whole += groups
        super().on_groups_complete(groups)

    def on_group_left(self, group, fate):
        super().on_group_left(group, fate)
        self.fates.append((group.uid, fate))
        self.gone[group.uid] = self.left[-1]


def plan(seam, keys, batch):
    """What a trainer does with a batch before it submits it: ``keys`` are its visits' prompts, by uid."""
    for name, values in seam.before_rollout(keys, BatchColumns(batch)).items():
        batch[name] = torch.from_numpy(values)


class StubMonitor:
    """Stands for the run's monitor: writes down what the buffer tells it, and ends nothing."""

    def __init__(self):
        self.looks, self.failures, self.rewards, self.evicted, self.chosen = [], [], [], [], 0

    def on_look(self, detail, state):
        self.looks.append((detail, state))

    def on_failures(self, chosen):
        self.failures.append(chosen)

    def on_rewards(self, rewards):
        self.rewards.append(rewards)

    def on_evicted(self, group):
        self.evicted.append(group.uid)

    def on_choosing(self):
        self.chosen += 1


def watched(extensions=None, services=None, *, key_of, group_size=4, filtering=None):
    """(verl's buffer over the queue, watched for ``extensions``; their seam).

    Args:
        services: that the extensions have; those of one test share its rows and prompts.
        filtering: the buffer evicts groups of one such value.
    """
    settings = {"refill_fn": lambda count: None, "filter_groups_metric": filtering, "train_batch_size": 1}
    if filtering:
        settings["max_inflight_gen_batches"] = 2
    sampler = {"max_off_policy_threshold": None, "max_off_policy_strategy": "drop", "sampler_kwargs": {}}
    buffer = ReplayBuffer(trainer_mode="sync", trainer_config=None, gen_batch_size=1, **sampler, **settings)
    buffer.poll_interval = 0.01
    seam = WrittenSeam(extensions or {}, services or services_of(), key_of=key_of, group_size=group_size)
    replay.watch(buffer, seam, StubMonitor())
    return buffer, seam


def prompts(uids, problems, **columns):
    """A batch about to be generated; ``columns`` has a value for each of ``problems``, rows of the data."""
    batch = {"uid": NonTensorStack(*uids)}
    for name in problems[0]:
        batch[name] = NonTensorStack(*(problem[name] for problem in problems))
    return TensorDict(batch | columns, batch_size=[len(uids)])


def answer(uid, problem, tokenizer, texts, *, verdicts=None, penalties=None, step=1, outputs=1, ended=True):
    """Sessions ``0, 1, ...`` of one prompt, with ``texts`` for responses; right where the text is the problem's answer.

    Args:
        problem: a row of the data, as verl's data set gives it.
        verdicts: ``acc`` of each, where the texts do not decide.
        penalties: what the reward of each is lower than its ``acc``.
    """
    truth = problem["reward_model"]["ground_truth"]
    prompt = tokenizer.apply_chat_template(problem["raw_prompt"], add_generation_prompt=True, return_dict=False)
    keys, fields, tags = [], [], []
    for session, text in enumerate(texts):
        accuracy = float(text == truth) if verdicts is None else verdicts[session]
        tokens = [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]
        context = list(prompt)  # a later output's prompt is all that came before it
        for output in range(outputs):
            ids, mask = torch.tensor([*context, *tokens]), torch.ones(len(tokens), dtype=torch.int64)
            scores = torch.zeros(len(tokens))
            scores[-1] = accuracy - (penalties[session] if penalties else 0)
            keys.append(f"{uid}_{session}_{output}")
            fields.append(
                {
                    "prompts": ids[: len(context)],
                    "responses": ids[len(context) :],
                    "response_mask": mask,
                    "loss_mask": mask,
                    "input_ids": ids,
                    "position_ids": torch.arange(len(ids)),
                    "rm_scores": scores,
                    "metrics": {"compute_score": 0.5},
                    "num_turns": 2,
                    "rollout_log_probs": torch.full((len(tokens),), -0.5),
                    "extra_fields": {"reward_extra_info": {"acc": accuracy, "score": accuracy}},
                    "session_id": session,
                    "uid": uid,
                }
                | problem
            )
            lengths = {"prompt_len": len(context), "response_len": len(tokens), "seq_len": len(ids)}
            tags.append(
                {"status": "success", "global_steps": step, "min_global_steps": 0, "max_global_steps": 0} | lengths
            )
            context = ids.tolist()
    tq.kv_batch_put(keys=keys, partition_id="train", fields=list_of_dict_to_tensordict(fields), tags=tags)
    tag = {"is_prompt": True, "status": "finished" if ended else "running", "global_steps": step}
    tq.kv_put(key=uid, partition_id="train", tag=tag)


def sampled(buffer, count, step=1):
    """(the batch, key -> its columns) of ``count`` groups."""
    batch, _ = buffer.sample(step, "train", count)
    return batch, columns_of(batch.keys)


def columns_of(keys):
    """key -> its columns, as they stand in the queue."""
    data = tq.kv_batch_get(keys=list(keys), partition_id="train")
    return dict(zip(keys, (data[number] for number in range(len(keys))), strict=True))


def texts_of(rows, tokenizer):
    """uid_session -> what each row's response says."""
    return {session_of(key): tokenizer.decode(row["responses"]) for key, row in rows.items()}


def demonstrations_in(batch):
    """uid -> keys of the demonstrations in a batch."""
    found = {}
    for key, tag in zip(batch.keys, batch.tags, strict=True):
        if DEMONSTRATED_BY in tag:
            found.setdefault(uid_of(key), []).append(key)
    return found
