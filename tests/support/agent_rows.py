"""Rows of verl's queue as its agent loop workers write them, and the parts of a trainer that listen to its buffer."""

import numpy as np
import torch
import transfer_queue as tq
from tensordict import NonTensorStack, TensorDict
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer
from verl.utils.tensordict_utils import list_of_dict_to_tensordict

from verl_gsd.trainer import replay
from verl_gsd.trainer.rows import DEMONSTRATED_BY, session_of, uid_of


class PartsListener:
    """What ``GroupTrainer`` does with its parts, and nothing else."""

    def __init__(self, *parts, key_of):
        self.parts, self.key_of, self.left = parts, key_of, {}

    def complete(self, uids, rows):
        return {key: tag for part in self.parts for key, tag in part.complete(uids, rows, self.key_of).items()}

    def on_look(self, detail, state):
        pass

    def on_failures(self, chosen):
        pass

    def on_rewards(self, rewards):
        pass

    def on_choosing(self):
        pass

    def on_finished(self, group):
        pass

    def amend(self, groups, rows):
        return {key: tag for part in self.parts for key, tag in part.amend(groups, rows).items()}

    def is_ready(self, group):
        return all([part.is_ready(group) for part in self.parts])

    def on_left(self, group, fate):
        for part in self.parts:
            group = part.leave(group)
        self.left[group.uid] = (group, fate)


def watched(*parts, key_of, filtering=None):
    """verl's buffer over the queue, watched for ``parts``; with ``filtering`` it evicts groups of one such value."""
    settings = {"refill_fn": lambda count: None, "filter_groups_metric": filtering, "train_batch_size": 1}
    if filtering:
        settings["max_inflight_gen_batches"] = 2
    sampler = {"max_off_policy_threshold": None, "max_off_policy_strategy": "drop", "sampler_kwargs": {}}
    buffer = ReplayBuffer(trainer_mode="sync", trainer_config=None, gen_batch_size=1, **sampler, **settings)
    buffer.poll_interval = 0.01
    listener = PartsListener(*parts, key_of=key_of)
    replay.watch(buffer, listener)
    return buffer, listener


def prompts(uids, problems, **columns):
    """A batch about to be generated; ``columns`` has a value for each of ``problems``, rows of the data."""
    batch = {"uid": NonTensorStack(*uids)}
    for name in problems[0]:
        batch[name] = NonTensorStack(*(problem[name] for problem in problems))
    return TensorDict(batch | columns, batch_size=[len(uids)])


def answer(uid, problem, tokenizer, texts, *, verdicts=None, step=1, outputs=1, ended=True):
    """Sessions ``0, 1, ...`` of one prompt, with ``texts`` for responses; right where the text is the problem's answer.

    Args:
        problem: a row of the data, as verl's data set gives it.
        verdicts: ``acc`` of each, where the texts do not decide.
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
            scores[-1] = accuracy
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


def values(tensor):
    return np.asarray(tensor).tolist()
