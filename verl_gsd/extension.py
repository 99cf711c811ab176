"""The one protocol for adding to a run, and the registry of what adds to it.

An extension belongs to a section of the config, ``algorithm.gsd.<name>``, and takes part where the config has that
section. It has up to three parts:

- a ``Declaration``, registered when its module is imported; it needs neither torch nor verl;
- an ``Extension``, one object in the trainer's process, whose hooks the trainer calls;
- a ``WorkerExtension``, one object in each training worker, for what a loss needs of whole mini-batches.

Every hook may be left out. The trainer calls each hook of all extensions in their stated order, on its own thread, and
names the extension and the hook in any error. Within a step the hooks come in the order of their definitions below.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

import numpy as np

from verl_gsd.dotted_keys import value_at

if TYPE_CHECKING:
    import torch
    from omegaconf import DictConfig
    from torch.utils.data import Sampler

    from verl_gsd.chain import Rows
    from verl_gsd.groups import Group, GroupStats, Member
    from verl_gsd.prompts import PromptStore
    from verl_gsd.records import Fate
    from verl_gsd.responses import PromptKey

T = TypeVar("T")

#: The column in which verl's agent loops look for the number of rollouts of a prompt.
ROLLOUTS = "__rollout_n__"
#: Names in ``algorithm.gsd`` that belong to the dial and to the trainer.
RESERVED = ("alpha", "ddof", "eps", "poll_interval", "state", "limits")


@dataclass(frozen=True)
class Declaration:
    """What a run knows of an extension before it builds it.

    Attributes:
        name: of the config section ``algorithm.gsd.<name>``. A dot leads into a section: ``dagrpo.judge`` is a part of
            ``dagrpo`` that takes part where that has a section ``judge``.
        runtime: the ``Extension``: its class, or where it is as ``module:Class``. It is called with its config section
            and the run's ``Services``. These are None while a config is checked and under a trainer of verl's own.
        order: extensions take part in ascending order; equal ones by name. Ours: budget 10, sampler 11, gvpo 20,
            dagrpo 30 to 32, hadw 40.
        needs_groups: only our trainer modes, which see whole groups, can have it.
        weighs: it changes or uses the advantages of the estimator ``gsd``, and is rejected under any other.
        saves: it has ``state_dict`` and ``load_state_dict``, and checkpoints keep what they give.
        worker: where its ``WorkerExtension`` is, as ``module:Class``.
        loss: the module that registers its policy loss. Under a worker of ours the loss finds its micro-batch's columns
            in ``trainer.loss_context.loss_context()``.
        check: where a function is, as ``module:function``, that takes the resolved config and the command line and
            yields a sentence for everything that is wrong with the section, or with other keys beside it.
    """

    name: str
    runtime: str | type[Extension]
    order: int = 100
    needs_groups: bool = True
    weighs: bool = True
    saves: bool = False
    worker: str | None = None
    loss: str | None = None
    check: str | None = None

    def section(self, gsd: Mapping[str, Any]) -> Any:
        """Its section of ``algorithm.gsd``; None where the extension takes no part."""
        return value_at(gsd, self.name)


class RowStore(Protocol):
    """Responses of training groups as rows, one dict of columns each, by key.

    It is verl's TransferQueue on the stack, and a dict where there is none. ``trainer/rows.py`` says what keys, tags
    and columns mean.

    Attributes:
        tags: key -> tag of the rows of all groups that have not left.
    """

    tags: dict[str, dict[str, Any]]

    def read(self, keys: Sequence[str], columns: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """The rows ``keys``, with these columns or all that they have in common."""

    def put(self, rows: Mapping[str, Mapping[str, Any]], tags: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        """Add rows, or columns to rows; ``tags`` replaces the rows' tags."""

    def drop(self, keys: Sequence[str]) -> None:
        """Remove rows."""


class Verifier(Protocol):
    """The run's own verifier, for a response that no rollout made.

    Attributes:
        workers: what answers; on the stack verl's reward workers.
    """

    workers: Sequence[Any]

    def submit(self, columns: Mapping[str, Any], prompt: Sequence[int], response: Sequence[int]) -> Any:
        """Begin to verify; returns the answer to ask the others for.

        Args:
            columns: the prompt's, of the data set (``data_source``, ``reward_model``, ``extra_info``, ...).
            prompt, response: tokens.
        """

    def has_answered(self, answer: Any) -> bool: ...

    def verdict(self, answer: Any, timeout_s: float) -> Verdict | None:
        """What the verifier said; None where it failed or took longer."""


@dataclass(frozen=True)
class Verdict:
    """What a verifier says: the reward, and by name the finite numbers beside it."""

    reward: float
    info: Mapping[str, float]


class Services(Protocol):
    """What a run offers to its extensions.

    ``config``, ``rows`` and ``prompts`` are there when an extension is built, the others when training begins.
    """

    @property
    def config(self) -> DictConfig:
        """The whole resolved config."""

    @property
    def rows(self) -> RowStore: ...

    @property
    def prompts(self) -> PromptStore:
        """What is known of prompts from earlier steps. Read it as you like; store responses at the end of a step."""

    @property
    def tokenizer(self) -> Any:
        """The policy's."""

    @property
    def verifier(self) -> Verifier: ...

    @property
    def step(self) -> int:
        """The trainer step at hand."""


class Visits:
    """N visits to prompts, before their rollouts are requested or, after a restart, while they are on their way.

    Args:
        uids: verl's name of each visit.
        keys: of the prompts.
        columns: of the data set, one entry a visit.
        group_size: rollouts a prompt, where the data has no column ``ROLLOUTS``.

    Attributes:
        rollouts: (N,) int64, rollouts of each visit, as they were before the hook that requests others.
        requested: (N,) int64, rollouts that an extension requests instead; None where none does.
        notes: name -> (N,) int64, kept with the prompts until their groups leave, restarts included.
    """

    def __init__(
        self, uids: Sequence[str], keys: Sequence[PromptKey], columns: Mapping[str, Sequence[Any]], group_size: int
    ) -> None:
        self.uids, self.keys, self.columns = uids, keys, columns
        self.has_own_rollouts = ROLLOUTS in columns
        given = [int(n) for n in columns[ROLLOUTS]] if self.has_own_rollouts else [group_size] * len(uids)
        self.rollouts: np.ndarray = np.array(given, np.int64)
        self.requested: np.ndarray | None = None
        self.notes: dict[str, np.ndarray] = {}

    def request(self, rollouts: Sequence[int] | np.ndarray) -> None:
        """Have another number of rollouts for each visit.

        Raises:
            ValueError: another extension has requested some.
        """
        if self.requested is not None:
            raise ValueError("another extension has requested rollouts for these prompts. Leave one of the two out.")
        self.requested = np.asarray(rollouts, np.int64)

    def note(self, name: str, values: Sequence[int] | np.ndarray) -> None:
        """Keep a number for each visit; ``noted`` has it after a restart."""
        self.notes[name] = np.asarray(values, np.int64)

    def noted(self, name: str) -> list[int] | None:
        """What was noted of these visits under ``name``; None where nothing was."""
        return [int(value) for value in self.columns[name]] if name in self.columns else None


@dataclass(frozen=True)
class Batch:
    """The N rows of an update, padding included.

    Attributes:
        keys, tags: one a row.
        prompts: uid -> the prompt, of every group of the step's batches.
    """

    keys: Sequence[str]
    tags: Sequence[Mapping[str, Any]]
    prompts: Mapping[str, PromptKey] = field(default_factory=dict)


@dataclass(frozen=True)
class UnplacedRows:
    """N rows of an update that are to be placed into mini-batches, without padding.

    Attributes:
        keys: (N,) of the rows.
        tokens: (N,) of each row.
        workload: (N,) what a row costs a worker.
        prompts: how many prompts the step samples; the config's number of updates is for so many.
        padding_tokens: of a row of padding.
        workers: data-parallel workers among which the batch is spread.
    """

    keys: Sequence[str]
    tokens: Sequence[int]
    workload: Sequence[float]
    prompts: int
    padding_tokens: int
    workers: int


@dataclass(frozen=True)
class Update:
    """An update that is about to begin.

    Attributes:
        step: the trainer step.
        is_first: the policy is still the one that computed the batch's old log-probabilities.
    """

    step: int
    is_first: bool


class Extension:
    """What takes part in a run in the trainer's process; a subclass overrides the hooks it needs.

    Args:
        section: its config section. A ValueError of the constructor says what is wrong with it.
        services: see ``Services``.
    """

    def __init__(self, section: Any, services: Services | None = None) -> None:
        self.section, self._services = section, services

    @property
    def services(self) -> Services:
        """What the run offers.

        Raises:
            RuntimeError: there is no run: a config is checked, or the trainer is one of verl's own.
        """
        if self._services is None:
            raise RuntimeError("there are no services: no trainer mode of ours runs this extension")
        return self._services

    # Before generation.

    def draw_prompts(self, dataset: Any, count: int, seed: int) -> Sampler[int]:
        """The sampler that draws ``count`` rows of ``dataset`` (``run.dataset.PromptKeys``) in each step. At most one
        extension has it. For a resume it needs ``state_dict``, with the number of rows as ``rows``, and
        ``load_state_dict``."""
        raise NotImplementedError

    def before_rollout(self, visits: Visits) -> None:
        """Prompts are about to be generated; see ``Visits`` for what may be requested."""

    def restore_in_flight(self, visits: Visits) -> None:
        """These prompts were submitted before a restart, with the columns and notes they had then."""

    # While groups complete. The first two are called once for all groups that one look into the queue found.

    def add_rows(self, uids: Sequence[str]) -> None:
        """The sessions of these visits have ended and nobody has read their rows. Further rows may be put."""

    def on_groups_complete(self, groups: Sequence[Group]) -> None:
        """These groups were read. Some of their rows may be replaced in the row store; the groups stay as they are."""

    def poll(self, now: float) -> None:
        """The trainer looks into the queue, at ``time.monotonic()`` ``now``. Threads and clocks are asked here."""

    def is_ready(self, group: Group) -> bool:
        """Whether a whole group may be trained on or evicted. Pure: asked at every look until it holds."""
        return True

    def on_group_left(self, group: Group, fate: Fate) -> Group:
        """A group left the buffer, once. Returns it as the run is to see it, for example with a judge's scores."""
        return group

    # The update.

    def place(self, rows: UnplacedRows) -> tuple[list[int], Mapping[str, float]]:
        """Row numbers, or ``batching.PADDING``, by place in the batch, in the order that ``trainer.batching.layout``
        describes; and metrics of this batch. A step may have several. At most one extension has it."""
        raise NotImplementedError

    def stage_inputs(self, members: Sequence[Member | None], left: Sequence[Group]) -> Mapping[str, Any]:
        """Columns for ``chain.Rows``.

        Args:
            members: what each row of the batch is; None for a row of no group.
            left: the groups that left in this step so far.
        """
        return {}

    def centre(self, rows: Rows) -> torch.Tensor | tuple[torch.Tensor, GroupStats]:
        """(N,) centred rewards, in place of the rewards less their group's mean. At most one extension has it.

        If sigma is to be the standard deviation of fewer rows, return the groups of these rows (``group_stats`` with a
        mask) beside the rewards.
        """
        raise NotImplementedError

    def weight(self, rows: Rows, advantages: torch.Tensor) -> torch.Tensor:
        """(N,) factors. ``advantages`` (N,) are divided by the dial and multiplied by earlier extensions' factors."""
        raise NotImplementedError

    def loss_columns(self, batch: Batch, advantages: torch.Tensor) -> Mapping[str, torch.Tensor]:
        """Columns (N,) for the loss, of a batch whose rows have these advantages (N,)."""
        return {}

    def worker_flags(self, update: Update) -> Mapping[str, Any]:
        """What the workers are told beside the rows."""
        return {}

    # The end of a step, in this order. Saved state changes in ``end_step`` and nowhere else.

    def observe_trained(self, batch: Batch) -> None:
        """The step has trained on ``batch``, padding and earlier responses included; its rows can still be read."""

    def record(self, group: Group) -> Mapping[str, float | None]:
        """Columns for the record of a group that left in this step, from the state before ``end_step``.

        A name that is not in ``records.SCHEMA`` becomes a float64 column of its own.
        """
        return {}

    def end_step(self, left: Sequence[Group]) -> Mapping[str, float]:
        """The step is over; ``left`` are all groups that left in it, whatever their fate. Returns its metrics."""
        return {}

    def seconds(self) -> Mapping[str, float]:
        """Seconds spent since the last call, by what they went to."""
        return {}

    # Checkpoints and the end.

    def state_dict(self) -> dict[str, Any]:
        """What JSON can hold, and numpy arrays at the top level."""
        raise NotImplementedError

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""
        raise NotImplementedError

    def fingerprint(self) -> dict[str, Any]:
        """Settings that must be the same when the state is restored, as plain JSON. Of those that save."""
        return {}

    def close(self) -> None:
        """Training ends, well or badly. An error here is logged and nothing else."""


class WorkerExtension:
    """What takes part in the updates of one training worker.

    Args:
        worker: ``trainer.worker.ExtendedTrainingWorker``, with verl's engine and a pass without gradients.
        config: verl's ``ActorConfig``.
    """

    def __init__(self, worker: Any, config: Any) -> None:
        self.worker, self.config = worker, config

    def before_update(self, data: Any) -> None:
        """This worker's rows of all mini-batches, a TensorDict, with what ``Extension.worker_flags`` told."""

    def before_mini_batch(self, data: Any) -> None:
        """This worker's rows of one mini-batch, which is about to be trained on; columns may be added."""

    def after_mini_batch(self, data: Any) -> Mapping[str, Any]:
        """It was trained on; returns metrics."""
        return {}


class ExtensionError(RuntimeError):
    """A hook raised; the message names the extension and the hook.

    Its one argument is the message: Ray pickles an error on its way from a worker, and the cause stays behind.
    """

    @classmethod
    def of(cls, name: str, hook: str, error: Exception) -> ExtensionError:
        what = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        return cls(f"algorithm.gsd.{name}: its hook {hook} raised: {what}")


_DECLARED: dict[str, Declaration] = {}


def register(declaration: Declaration) -> None:
    """Make an extension known to every process that imports the module which calls this.

    Raises:
        ValueError: the name is reserved, or another extension has it.
    """
    name = declaration.name
    require_free(name)
    if not is_ours(declaration):
        _register_ours()  # so that whoever takes one of our names hears of it
    if _DECLARED.setdefault(name, declaration) != declaration:
        raise ValueError(f"extension {name!r} is registered already, as {_DECLARED[name].runtime}")


def require_free(name: str) -> None:
    """Raise a ValueError if an extension cannot have this name."""
    if name in RESERVED or name == "prompts":  # under which a checkpoint keeps the memory of prompts
        raise ValueError(f"extension {name!r}: algorithm.gsd.{name} is a setting of ours. Choose another name.")


def declarations() -> list[Declaration]:
    """All extensions that are registered, in their order; those of this package are always among them."""
    _register_ours()
    return sorted(_DECLARED.values(), key=lambda declaration: (declaration.order, declaration.name))


def declared(name: str) -> Declaration | None:
    """The extension of that name, if there is one."""
    _register_ours()
    return _DECLARED.get(name)


@functools.cache
def _register_ours() -> None:
    """Every algorithm of this package is a folder or a file in ``algorithms/`` and registers itself."""
    package = importlib.import_module("verl_gsd.algorithms")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")


def active(gsd: Mapping[str, Any] | None) -> list[Declaration]:
    """The extensions that take part under ``gsd``, the config section ``algorithm.gsd``, in their order."""
    present = set(gsd.keys()) if gsd else set()  # in a DictConfig a lookup of every name takes longer than the chain
    return [of for of in declarations() if of.name.partition(".")[0] in present and of.section(gsd or {}) is not None]


def load(place: str | T) -> Any:
    """What ``module:name`` names; anything else as it is."""
    if not isinstance(place, str):
        return place
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


def module_of(declaration: Declaration) -> str:
    """The module in which its runtime is."""
    runtime = declaration.runtime
    return runtime.partition(":")[0] if isinstance(runtime, str) else runtime.__module__ or ""


def is_ours(declaration: Declaration) -> bool:
    """Whether it is of this package, which the first checks of a config know."""
    return module_of(declaration).startswith("verl_gsd.")


def overrides(extension: Extension | type[Extension], hook: str) -> bool:
    """Whether the extension has this hook."""
    kind = extension if isinstance(extension, type) else type(extension)
    return getattr(kind, hook) is not getattr(Extension, hook)


Exclusive = Literal["centre", "place", "draw_prompts"]
_EXCLUSIVE: dict[Exclusive, str] = {
    "centre": "each replaces the group's mean",
    "place": "each places the rows of an update",
    "draw_prompts": "each draws the prompts of a step",
}


def problems(gsd: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What is wrong with the sections of the extensions that take part, by name, and with having these together.

    It builds the extensions without services, and so imports torch.
    """
    built: dict[str, Extension] = {}
    for declaration in active(gsd):
        try:
            built[declaration.name] = _build(declaration, gsd, None)
        except ValueError as error:
            yield declaration.name, f"{error}."
    yield from (("", problem) for problem in collisions(built))


def collisions(extensions: Mapping[str, Extension]) -> Iterator[str]:
    """Hooks that one extension alone may have, and that several of these have."""
    for hook, why in _EXCLUSIVE.items():
        names = [name for name, extension in extensions.items() if overrides(extension, hook)]
        if len(names) > 1:
            yield f"algorithm.gsd has {' and '.join(names)}: {why}. Leave one out."


def build(gsd: Mapping[str, Any], services: Services | None = None) -> dict[str, Extension]:
    """The extensions that take part under ``gsd``, by name, in their order.

    Raises:
        ValueError: a section is wrong (naming it), or two extensions cannot take part together.
    """
    built = {declaration.name: _build(declaration, gsd, services) for declaration in active(gsd)}
    for problem in collisions(built):
        raise ValueError(problem)
    return built


def no_section(name: str, value: Any) -> str:
    """What to say of a section that has no keys."""
    return f"algorithm.gsd.{name}={value}: write a section with keys, or null"


def _build(declaration: Declaration, gsd: Mapping[str, Any], services: Services | None) -> Extension:
    kind: Callable[[Any, Services | None], Extension] = load(declaration.runtime)
    section = declaration.section(gsd)
    if not isinstance(section, Mapping):
        raise ValueError(no_section(declaration.name, section))
    try:
        built = kind(section, services)
    except (AttributeError, TypeError, ValueError) as error:
        what = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        raise ValueError(f"algorithm.gsd.{declaration.name}: {what}") from error
    if overrides(built, "state_dict") != declaration.saves:
        raise ValueError(
            f"algorithm.gsd.{declaration.name}: saves={declaration.saves} in its declaration, and its class "
            f"{'has no' if declaration.saves else 'has a'} state_dict"
        )
    return built


def run_hook(extensions: Mapping[str, Extension], hook: str, *arguments: Any) -> Iterator[tuple[str, Any]]:
    """Call a hook of every extension that has it, in their order; yields (name, what it returned).

    Raises:
        ExtensionError: one raised.
    """
    for name, extension in extensions.items():
        if overrides(extension, hook):
            yield name, call_hook(name, extension, hook, *arguments)


def call_hook(name: str, extension: Extension | WorkerExtension, hook: str, *arguments: Any) -> Any:
    """Call one hook.

    Raises:
        ExtensionError: it raised.
    """
    try:
        return getattr(extension, hook)(*arguments)
    except ExtensionError:
        raise
    except Exception as error:
        raise ExtensionError.of(name, hook, error) from error


def merged(found: Iterable[tuple[str, Mapping[str, T]]]) -> dict[str, T]:
    """What several extensions returned by name, in one dict.

    Raises:
        ValueError: two of them have the same name in it.
    """
    result: dict[str, T] = {}
    owner: dict[str, str] = {}
    for extension, values in found:
        for name, value in values.items():
            if name in result:
                raise ValueError(
                    f"{name} is of two extensions: {owner[name]} and {extension}. One must rename its own."
                )
            result[name], owner[name] = value, extension
    return result
