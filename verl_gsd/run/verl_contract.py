"""What this package assumes of verl and TransferQueue, and which of it does not hold for a version of them.

Most assumptions are read from our own source, so that the list is complete:

- every name that we import from verl, and every attribute that we use of a module of verl;
- every method of verl that we override and call with ``super()``: it exists, and has the parameters of our method;
- every attribute of ``self`` that our subclasses of verl's classes use and do not define;
- every abstract method of a class of verl that we implement;
- every module of verl in which the plugin has a hook;
- every key of verl's config that our YAML files set. Hydra accepts unknown keys from a file, and nothing reads them;
- every key of verl's config that our code reads as an attribute. A missing one is an error in the middle of a command.

``PATCHED`` lists what the patches replace or read, because they reach it through objects. Names and parameters are
compared in the source (``verl_source.py``). What verl's code does is tested by ``tests/contract``.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

import verl_gsd
from verl_gsd import config as groups
from verl_gsd.dotted_keys import dotted_items
from verl_gsd.run.compose import VERL_CONFIG_NAME
from verl_gsd.run.config_reads import read_keys
from verl_gsd.run.verl_source import Module, PackageSource, Parameters, bound_names, installed

#: The packages that the assumptions are about.
PACKAGES = ("verl", "transfer_queue")


@dataclass(frozen=True)
class Assumption:
    """A name of another package that we use.

    Attributes:
        used_in: our file, relative to the package.
        module: the other package's module.
        path: ``Name`` or ``Class.member`` in it; empty for the module itself.
        parameters: of the function; None if they do not matter.
        implemented: of a class, the methods that our subclass has; None if ``path`` is no base class of ours.
        own: of a member, whether the class must define it itself. A patch of a method that the class inherits changes
            nothing if verl calls another method of the class.
    """

    used_in: str
    module: str
    path: str = ""
    parameters: Parameters | None = None
    implemented: frozenset[str] | None = None
    own: bool = False

    @property
    def stops_runs(self) -> bool:
        """Whether runs that use this package are rejected if the assumption does not hold.

        These are the patches, what our trainer uses of verl's code, and verl's config as a whole. Other files, and
        single keys of the config, are needed only by some runs.
        """
        is_code = self.used_in.startswith("trainer/") and self.module != CONFIG
        return self in PATCHED or self == WHOLE_CONFIG or is_code

    def __str__(self) -> str:
        return f"{self.module}.{self.path}" if self.path else self.module


@dataclass(frozen=True)
class Broken:
    """An assumption that does not hold.

    Attributes:
        problem: what is different.
    """

    assumption: Assumption
    problem: str


def _patched(used_in: str, module: str, path: str, *parameters: str, is_open: bool = False) -> Assumption:
    return Assumption(used_in, module, path, Parameters(parameters, is_open) if parameters or is_open else None)


def _method(used_in: str, module: str, path: str, *parameters: str, is_open: bool = False) -> Assumption:
    return replace(_patched(used_in, module, path, *parameters, is_open=is_open), own=True)


_VLLM = "verl.workers.rollout.vllm_rollout"
_TRAINER = "verl.trainer.ppo.v1.trainer_base"
_REWARD, _AGENT = "verl.experimental.reward_loop.reward_loop", "verl.experimental.agent_loop.agent_loop"

#: What the patches replace or read. Methods are those that the class itself has.
PATCHED = (
    _method("trainer/weight_sockets.py", f"{_VLLM}.vllm_rollout", "ServerAdapter.__init__"),
    _patched("trainer/weight_sockets.py", f"{_VLLM}.vllm_rollout", "ServerAdapter.zmq_handle"),
    _method("trainer/weight_sockets.py", f"{_VLLM}.vllm_async_server", "vLLMHttpServer.__init__"),
    _method("trainer/weight_sockets.py", f"{_VLLM}.utils", "vLLMColocateWorkerExtension._get_zmq_handle"),
    _patched("trainer/weight_sockets.py", f"{_VLLM}.bucketed_weight_transfer", "create_shared_memory", "size", "name"),
    _method("trainer/weight_sockets.py", f"{_VLLM}.bucketed_weight_transfer", "BucketedWeightSender._cleanup"),
    _patched("trainer/weight_sockets.py", f"{_VLLM}.bucketed_weight_transfer", "BucketedWeightSender.shm"),
    _patched("trainer/engine_health.py", f"{_VLLM}.vllm_async_server", "vLLMHttpServer.engine"),
    _method("trainer/runtime_lora.py", f"{_VLLM}.vllm_async_server", "vLLMHttpServer.__init__"),
    _method("trainer/reward_model_patch.py", _REWARD, "RewardLoopWorker.compute_score_disrm", "data"),
    _method("trainer/reward_tokenizers.py", _REWARD, "RewardLoopWorker._init_reward_fn"),
    _patched("trainer/reward_tokenizers.py", _REWARD, "RewardLoopWorker.config"),
    _patched("trainer/reward_tokenizers.py", _REWARD, "hf_tokenizer"),
    _patched("trainer/reward_sources.py", "verl.trainer.ppo.reward", "get_default_compute_score", "reward_name"),
    _patched("trainer/reward_sources.py", "verl.trainer.ppo.reward", "load_reward_manager"),
    _method("trainer/reward_failures.py", _REWARD, "RewardLoopWorker.compute_score", "data"),
    _patched("trainer/reward_failures.py", _REWARD, "RewardLoopWorker.config"),
    _patched("trainer/reward_failures.py", _REWARD, "RewardLoopWorker.reward_manager"),
    _method("trainer/prompt_truncation.py", _AGENT, "AgentLoopBase._cap_text_prompt_length", "prompt_ids"),
    _patched("trainer/prompt_truncation.py", _AGENT, "AgentLoopBase.config"),
    _patched("trainer/prompt_truncation.py", _AGENT, "AgentLoopBase.rollout_config"),
    _patched("trainer/prompt_truncation.py", _AGENT, "AgentLoopBase.data_config"),
    _method("trainer/prompt_truncation.py", _AGENT, "AgentLoopWorker._run_agent_loop"),
    _method("trainer/prompt_truncation.py", _AGENT, "AgentLoopWorker._compute_score", "outputs", "kwargs"),
    _method(
        "trainer/attention.py",
        "verl.workers.engine.fsdp.transformer_impl",
        "FSDPEngineWithLMHead.forward_step",
        "micro_batch",
        is_open=True,
    ),
    _method(
        "trainer/checkpoint_loading.py",
        "verl.utils.checkpoint.fsdp_checkpoint_manager",
        "FSDPCheckpointManager.load_checkpoint",
        "local_path",
        is_open=True,
    ),
    _method(
        "trainer/dataset_media.py",
        "verl.utils.dataset.rl_dataset",
        "RLHFDataset.maybe_filter_out_long_prompts",
        "dataframe",
    ),
    _method("trainer/dataset_media.py", "verl.utils.dataset.rl_dataset", "RLHFDataset._read_files_and_tokenize"),
    _patched("cpu/platform.py", "verl.workers.engine.fsdp.transformer_impl", "CPUOffloadPolicy"),
    _patched("run/engines.py", "verl.utils.device", "auto_set_device", "config"),
    _patched("run/cluster_lock.py", "transfer_queue", "init", is_open=True),
    _patched("trainer/log_probs.py", "verl.utils.torch_functional", "logprobs_from_logits_v2", "logits", "labels"),
    _patched("trainer/queue_auth.py", "transfer_queue.controller", "TransferQueueController"),
    _patched("trainer/queue_auth.py", "transfer_queue.storage.simple_storage", "SimpleStorageUnit"),
    _patched("trainer/queue_auth.py", "transfer_queue.utils.zmq_utils", "ZMQMessageDecodeError"),
    _method("trainer/queue_auth.py", "transfer_queue.utils.zmq_utils", "ZMQMessage.serialize"),
    _method("trainer/queue_auth.py", "transfer_queue.utils.zmq_utils", "ZMQMessage.deserialize", "frames"),
    _patched("trainer/trainer.py", _TRAINER, "TRAINER_REGISTRY"),
    _patched("trainer/trainer.py", _TRAINER, "PPOTrainer.train_dataloader"),
    _patched("trainer/trainer.py", _TRAINER, "PPOTrainer.reward_loop_manager"),
    _patched("trainer/trainer.py", _TRAINER, "PPOTrainer._rollout_moe_lb_metrics_accumulator"),
)


#: The package with verl's YAML files, as ``Assumption.module`` of a key.
CONFIG = "verl.trainer.config"
#: That the config of verl can be composed at all.
WHOLE_CONFIG = Assumption("run/compose.py", CONFIG)
#: Sections of our YAML files that verl does not have, and sections of verl to which anybody may add keys.
_NOT_VERLS = (
    "recipe",
    "hardware",
    "task",
    "algorithm.gsd",
    "actor_rollout_ref.actor.policy_loss",
    "ray_kwargs.ray_init",
)
_OPEN = ("override_config", "engine_kwargs", "mixed_precision")
#: The sections of verl's config that our code reads. What else it calls a config begins with other names.
_SECTIONS = ("actor_rollout_ref", "algorithm", "critic", "data", "ray_kwargs", "reward", "skip", "trainer")
#: Keys that verl reads but does not list in its YAML files.
_UNLISTED = ("actor_rollout_ref.rollout.enable_sleep_mode",)


def config_keys() -> list[Assumption]:
    """Every key of verl's config that our YAML files set or our code reads, once, with the first file that does.

    Recipes are left out, because they refer to files of other groups.
    """
    keys: dict[str, Assumption] = {}
    for group in (group for group in groups.GROUPS if group != "recipe"):
        for name in groups.choices(group):
            content = OmegaConf.to_container(groups.load_with_defaults(group, name))
            for key, _ in dotted_items(content):
                if _is_verls(key):
                    keys.setdefault(key, Assumption(f"config/{group}/{name}.yaml", CONFIG, key))
    package = Path(verl_gsd.__file__).parent
    for file in sorted(package.rglob("*.py")):
        for key in sorted(read_keys(ast.parse(file.read_text(encoding="utf-8")))):
            if key.partition(".")[0] in _SECTIONS and _is_verls(key):
                keys.setdefault(key, Assumption(str(file.relative_to(package)), CONFIG, key))
    return list(keys.values())


def check_config(source: PackageSource, expected: Sequence[Assumption]) -> list[Broken]:
    """Those of ``expected``, which are ``config_keys``, that the config of ``source`` does not have.

    If the config cannot be composed, no key can be checked, and only ``WHOLE_CONFIG`` is returned.
    """
    package = source.path(CONFIG.rpartition(".")[0])
    folder = None if package is None else package.parent / "config"
    if folder is None or not folder.is_dir():
        return [Broken(WHOLE_CONFIG, "verl has no folder with configs")]
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(folder.absolute()), version_base=None):
            present = {key for key, _ in dotted_items(OmegaConf.to_container(compose(VERL_CONFIG_NAME)))}
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        reason = " ".join(str(error).split("\n\n")[0].split())  # Hydra adds its search path after an empty line
        return [Broken(WHOLE_CONFIG, f"the config cannot be composed, and its keys are not checked: {reason}")]
    return [Broken(one, "verl's config does not have this key") for one in expected if one.path not in present]


def _is_verls(key: str) -> bool:
    is_open = any(part in _OPEN for part in key.split("."))
    return key not in _UNLISTED and not is_open and not any(f"{key}.".startswith(f"{one}.") for one in _NOT_VERLS)


def assumptions(folder: str = ".") -> list[Assumption]:
    """Every assumption, without repetitions.

    Args:
        folder: of our package. Only its files are read, in addition to ``PATCHED``.
    """
    package = Path(verl_gsd.__file__).parent
    ours = PackageSource({"verl_gsd": package})
    collected: list[Assumption] = []
    for file in sorted((package / folder).rglob("*.py")):
        relative = file.relative_to(package)
        parts = relative.with_suffix("").parts
        module = ours.module(".".join(("verl_gsd", *(part for part in parts if part != "__init__"))))
        assert module is not None
        collected += _of_module(str(relative), module)
    return list(dict.fromkeys([*collected, *PATCHED]))


def check(source: PackageSource, expected: Sequence[Assumption]) -> list[Broken]:
    """Those of ``expected`` that do not hold for ``source``.

    Args:
        source: the source of ``PACKAGES``. Assumptions about packages that it does not have are left out.
    """
    broken = []
    for assumption in expected:
        if not source.is_read(assumption.module):
            continue
        try:
            problem = _problem(source, assumption)
        except SyntaxError as error:
            problem = f"{error.filename}, line {error.lineno}, cannot be parsed by this Python: {error.msg}"
        if problem:
            broken.append(Broken(assumption, problem))
    return broken


def source_of(checkout: Path | None = None) -> PackageSource:
    """The source of the installed packages.

    Args:
        checkout: a folder with the package verl, which then replaces the installed one.
    """
    folders = installed(*PACKAGES)
    return PackageSource(folders if checkout is None else folders | {"verl": checkout / "verl"})


def version_in(source: PackageSource) -> str:
    """The version of verl that ``source`` has; "(unknown version)" if it names none."""
    package = source.path("verl")
    file = None if package is None else package.parent / "version" / "version"
    return file.read_text(encoding="utf-8").strip() if file is not None and file.is_file() else "(unknown version)"


def _problem(source: PackageSource, assumption: Assumption) -> str:
    """Why an assumption does not hold; an empty string if it does.

    Raises:
        SyntaxError: this Python cannot parse a module that the assumption is about.
    """
    if source.module(assumption.module) is None:
        return "this module does not exist"
    if not assumption.path:
        return ""
    found = source.find(assumption.module, assumption.path)
    if found is None:
        return "this name does not exist"
    if assumption.own and not source.is_own(assumption.module, assumption.path):
        return "the class does not define this method itself"
    if assumption.implemented is not None and isinstance(found.node, ast.ClassDef):
        missing = sorted(_abstract_methods(found.node) - assumption.implemented)
        return f"it has abstract methods that our class lacks: {', '.join(missing)}" if missing else ""
    if assumption.parameters is None or not isinstance(found.node, ast.FunctionDef | ast.AsyncFunctionDef):
        return ""
    theirs, ours = Parameters.of(found.node), assumption.parameters
    return "" if ours.matches(theirs) else f"it takes {theirs}, and we assume {ours}"


# What our own source says


def _of_module(file: str, module: Module) -> Iterator[Assumption]:
    imported: dict[str, tuple[str, str]] = {}  # name in our module -> (module, name in it); the module itself has ""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if _is_theirs(alias.name):
                    yield Assumption(file, alias.name)
                    imported[alias.asname or alias.name] = alias.name, ""
        elif isinstance(node, ast.ImportFrom) and _is_theirs(origin := module.absolute(node)):
            for alias in node.names:
                yield Assumption(file, origin, alias.name)
                imported[alias.asname or alias.name] = origin, alias.name
        elif isinstance(node, ast.Call) and _called(node) in ("when_imported", "import_module") and node.args:
            argument = node.args[0]
            if isinstance(argument, ast.Constant) and _is_theirs(str(argument.value)):
                yield Assumption(file, str(argument.value))
    if not imported:
        return
    classes = [node for node in ast.walk(module.tree) if isinstance(node, ast.ClassDef)]
    extended = {base.id for node in classes for base in node.bases if isinstance(base, ast.Name)}
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in imported:
            origin, name = imported[node.value.id]
            yield Assumption(file, origin, f"{name}.{node.attr}" if name else node.attr)
    for node in classes:
        for base in node.bases:
            if isinstance(base, ast.Name) and base.id in imported:
                yield from _of_subclass(file, node, *imported[base.id], is_final=node.name not in extended)


def _of_subclass(file: str, ours: ast.ClassDef, origin: str, base: str, *, is_final: bool) -> Iterator[Assumption]:
    """What our subclass of their class ``base`` assumes of it.

    Args:
        is_final: no class of ours extends it, so that it must implement all abstract methods.
    """
    methods = [node for node in ours.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    own = frozenset(name for node in ours.body for name in bound_names(node))
    if is_final:
        yield Assumption(file, origin, base, implemented=own)
    for method in methods:
        if method.name != "__init__" and any(_is_super_call(node, method.name) for node in ast.walk(method)):
            yield Assumption(file, origin, f"{base}.{method.name}", Parameters.of(method))
    of_self = [
        node
        for node in ast.walk(ours)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"
    ]
    stored = {node.attr for node in of_self if isinstance(node.ctx, ast.Store)}
    for name in sorted({node.attr for node in of_self} - stored - own):
        if not name.startswith("__"):
            yield Assumption(file, origin, f"{base}.{name}")


def _is_theirs(module: str) -> bool:
    return module.partition(".")[0] in PACKAGES


def _called(node: ast.Call) -> str:
    return getattr(node.func, "id", "") or getattr(node.func, "attr", "")


def _is_super_call(node: ast.AST, method: str) -> bool:
    """Whether ``node`` is ``super().method``."""
    return (
        isinstance(node, ast.Attribute)
        and node.attr == method
        and isinstance(node.value, ast.Call)
        and _called(node.value) == "super"
    )


def _abstract_methods(owner: ast.ClassDef) -> frozenset[str]:
    methods = (node for node in owner.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    decorated = (node for node in methods if any("abstractmethod" in ast.unparse(of) for of in node.decorator_list))
    return frozenset(node.name for node in decorated)
