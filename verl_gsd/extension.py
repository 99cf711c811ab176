"""The protocol of extensions, and their registry.

An extension adds an algorithm to a run. It takes part if the config has its section, ``algorithm.gsd.<name>``. It has
up to three parts:

- a ``Declaration``, registered when its module is imported; it needs neither torch nor verl;
- an ``Extension``, one object in the trainer's process, whose hooks the trainer calls;
- a ``WorkerExtension``, one object in each training worker, for a loss that needs sums over whole mini-batches.

Every hook is optional. The trainer calls each hook for all extensions in their declared order, on its own thread. If a
hook raises an error, the message names the extension and the hook. Within a step, the hooks run in the order in which
they are defined below.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import json
import logging
import pkgutil
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from verl_gsd.base_names import BASE_NAMES, RECORD_COLUMNS
from verl_gsd.declaration import Conflict as Conflict
from verl_gsd.declaration import Declaration as Declaration
from verl_gsd.declaration import RecordColumn as RecordColumn
from verl_gsd.declaration import Remedy as Remedy
from verl_gsd.declaration import ReportChart as ReportChart
from verl_gsd.declaration import ReportSection as ReportSection
from verl_gsd.declaration import StepFigure as StepFigure
from verl_gsd.errors import ConfigError, SettingsError
from verl_gsd.scalars import as_yaml

if TYPE_CHECKING:
    import numpy as np  # imported where it is used: verl-gsd --help imports this module and should not wait for numpy
    import torch
    from omegaconf import DictConfig
    from torch.utils.data import Sampler

    from verl_gsd.chain import Rows
    from verl_gsd.groups import Group, GroupStats, Member
    from verl_gsd.prompts import PromptStore
    from verl_gsd.records import Fate
    from verl_gsd.responses import PromptKey

T = TypeVar("T")
#: A value of a record column.
RecordValue = bool | int | float | str | None
logger = logging.getLogger(__name__)

#: Group of entry points under which other packages list the modules that declare their extensions.
ENTRY_POINTS = "verl_gsd.extensions"
#: The column from which verl's agent loops read the number of rollouts of a prompt.
ROLLOUTS = "__rollout_n__"
#: Names in ``algorithm.gsd`` that belong to the dial and to the trainer.
RESERVED = ("alpha", "ddof", "eps", "poll_interval", "state", "limits")
#: Group -> the commands of ``verl-gsd`` that belong to no extension. Help lists them in this order, and an extension
#: cannot use their names.
COMMANDS: Mapping[str, tuple[str, ...]] = {
    "": (
        *("train", "algos", "lab", "report", "compare", "eval", "verify", "judge", "export", "prepare", "plan"),
        *("submit", "status", "logs", "stop", "doctor", "contract"),
    ),
    "lab": ("train", "identity"),
    "judge": ("score", "distill"),
}


class RowStore(Protocol):
    """The responses of training groups: one row per response, with a key and columns.

    In a run, this is verl's TransferQueue. ``trainer/rows.py`` defines keys, tags and columns.

    Attributes:
        tags: key -> tag of each row, for all groups that are still in the buffer.
    """

    tags: dict[str, dict[str, Any]]

    def read(self, keys: Sequence[str], columns: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """The rows of these keys, with these columns. None: with all columns that the rows share."""

    def put(self, rows: Mapping[str, Mapping[str, Any]], tags: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        """Add rows, or add columns to existing rows. ``tags`` replaces the tags of the rows."""

    def drop(self, keys: Sequence[str]) -> None:
        """Remove rows."""


class Verifier(Protocol):
    """The run's verifier, for responses that no rollout generated.

    Attributes:
        workers: the workers that verify. In a run, these are verl's reward workers.
    """

    workers: Sequence[Any]

    def submit(self, columns: Mapping[str, Any], prompt: Sequence[int], response: Sequence[int]) -> Any:
        """Start to verify a response. Return a handle for ``has_answered`` and ``verdict``.

        Args:
            columns: the prompt's columns of the data set (``data_source``, ``reward_model``, ``extra_info``, ...).
            prompt, response: token ids.
        """

    def has_answered(self, answer: Any) -> bool:
        """Whether ``verdict`` would return immediately."""

    def verdict(self, answer: Any, timeout_s: float) -> Verdict | None:
        """Wait for the verdict. None if the verifier failed or took longer than ``timeout_s``."""


@dataclass(frozen=True)
class Verdict:
    """A verifier's result.

    Attributes:
        reward: the reward.
        info: name -> other finite number that the verifier returned.
    """

    reward: float
    info: Mapping[str, float]


class Services(Protocol):
    """What a run provides to its extensions.

    ``config``, ``rows`` and ``prompts`` are available when an extension is built, the others when training begins.
    """

    @property
    def config(self) -> DictConfig:
        """The whole resolved config."""

    @property
    def rows(self) -> RowStore: ...

    @property
    def prompts(self) -> PromptStore:
        """The memory of prompts and their earlier responses. Store responses in it only at the end of a step."""

    @property
    def tokenizer(self) -> Any:
        """The policy's tokenizer."""

    @property
    def verifier(self) -> Verifier: ...

    @property
    def step(self) -> int:
        """The current trainer step."""


class Visits:
    """N visits to prompts, either before their rollouts are requested or, after a restart, in flight.

    Args:
        uids: verl's name of each visit.
        keys: the key of each visit's prompt.
        columns: columns of the data set, one entry per visit.
        group_size: rollouts per prompt, if the data has no column ``ROLLOUTS``.

    Attributes:
        rollouts: (N,) int64, rollouts per visit before an extension requests another number.
        requested: (N,) int64, rollouts per visit that an extension requests instead; None if no extension does.
        notes: name -> (N,) int64. They are kept with the prompts until their groups leave, even if the run restarts.
    """

    def __init__(
        self, uids: Sequence[str], keys: Sequence[PromptKey], columns: Mapping[str, Sequence[Any]], group_size: int
    ) -> None:
        self.uids, self.keys, self.columns = uids, keys, columns
        self.has_own_rollouts = ROLLOUTS in columns
        import numpy as np

        rollouts = [int(n) for n in columns[ROLLOUTS]] if self.has_own_rollouts else [group_size] * len(uids)
        self.rollouts: np.ndarray = np.array(rollouts, np.int64)
        self.requested: np.ndarray | None = None
        self.notes: dict[str, np.ndarray] = {}

    def request(self, rollouts: Sequence[int] | np.ndarray) -> None:
        """Request another number of rollouts for each visit.

        Raises:
            ValueError: another extension has already requested rollouts.
        """
        if self.requested is not None:
            raise ValueError(
                "another extension has already requested rollouts for these prompts. Remove one of the two extensions."
            )
        import numpy as np

        self.requested = np.asarray(rollouts, np.int64)

    def note(self, name: str, values: Sequence[int] | np.ndarray) -> None:
        """Store a number for each visit. ``noted`` returns it, even after a restart."""
        import numpy as np

        self.notes[name] = np.asarray(values, np.int64)

    def noted(self, name: str) -> list[int] | None:
        """The numbers that ``note`` stored under ``name``; None if there are none."""
        return [int(value) for value in self.columns[name]] if name in self.columns else None


@dataclass(frozen=True)
class Batch:
    """The N rows of an update, including padding.

    Attributes:
        keys, tags: one per row.
        prompts: uid -> key of the prompt, for every group in the step's batches.
    """

    keys: Sequence[str]
    tags: Sequence[Mapping[str, Any]]
    prompts: Mapping[str, PromptKey] = field(default_factory=dict)


@dataclass(frozen=True)
class UnplacedRows:
    """The N rows of an update, without padding, before they are placed into mini-batches.

    Attributes:
        keys: (N,) keys.
        tokens: (N,) number of tokens in each row.
        workload: (N,) verl's estimate of the compute that each row costs a worker.
        prompts: number of prompts that the step samples. The config's number of updates assumes this number.
        padding_tokens: number of tokens in a padding row.
        workers: number of data-parallel workers that share the batch.
        sessions: uid -> number of sessions that the group has if none failed: those that were requested, those of
            earlier visits that were added, and demonstrations that replace no response. A uid that it lacks has
            ``actor_rollout_ref.rollout.n``.
    """

    keys: Sequence[str]
    tokens: Sequence[int]
    workload: Sequence[float]
    prompts: int
    padding_tokens: int
    workers: int
    sessions: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Update:
    """An update that is about to begin.

    Attributes:
        step: the trainer step.
        is_first: whether the policy has not changed since it computed the batch's old log-probabilities.
    """

    step: int
    is_first: bool


class Extension:
    """An extension's part in the trainer's process. A subclass overrides the hooks that it needs.

    Args:
        settings: an instance of the model in the declaration, or the config section itself if there is no model. A
            constructor raises a ValueError if a setting is wrong.
        services: see ``Services``.
    """

    def __init__(self, settings: Any, services: Services | None = None) -> None:
        self.settings, self._services = settings, services

    @property
    def services(self) -> Services:
        """What the run provides.

        Raises:
            RuntimeError: there are none, because only a config is checked, or the trainer is one of verl's own.
        """
        if self._services is None:
            raise RuntimeError("this extension has no services, because none of our trainer modes runs it")
        return self._services

    # Before generation.

    def draw_prompts(self, dataset: Any, count: int, seed: int) -> Sampler[int]:
        """Return a sampler that samples ``count`` rows of ``dataset`` (``run.dataset.PromptKeys``) in each step.

        At most one extension may have this hook. A run can resume only if the sampler has ``load_state_dict`` and
        ``state_dict``, which includes the number of rows as ``rows``.
        """
        raise NotImplementedError

    def before_rollout(self, visits: Visits) -> None:
        """The engine is about to generate rollouts for these prompts. ``Visits`` shows what a hook can request."""

    def restore_in_flight(self, visits: Visits) -> None:
        """These prompts were submitted before a restart. They have the columns and notes that they had then."""

    # While groups complete. The trainer looks into the queue repeatedly. Each time, it calls the first two hooks once,
    # for all groups that it found.

    def add_rows(self, uids: Sequence[str]) -> None:
        """The sessions of these visits have ended, but their rows have not been read yet. The hook may add rows."""

    def on_groups_complete(self, groups: Sequence[Group]) -> None:
        """These groups were read. The hook may replace rows in the row store, which does not change ``groups``."""

    def poll(self, now: float) -> None:
        """The trainer looks into the queue at ``now`` (``time.monotonic()``). Serve threads and check timeouts here."""

    def is_ready(self, group: Group) -> bool:
        """Whether a complete group may be trained on or filtered. Called repeatedly, so avoid side effects."""
        return True

    def on_group_left(self, group: Group, fate: Fate) -> Group:
        """A group left the buffer. Return it, possibly changed, for example with a judge's scores."""
        return group

    # The update.

    def place(self, rows: UnplacedRows) -> tuple[list[int], Mapping[str, float]]:
        """Place rows into mini-batches. At most one extension may have this hook.

        Returns:
            For each place of the batch the row number, or ``batching.PADDING``, in the order that
            ``trainer.batching.layout`` describes. Also metrics of this batch. A step may have several batches.
        """
        raise NotImplementedError

    def stage_inputs(self, members: Sequence[Member | None], left: Sequence[Group]) -> Mapping[str, Any]:
        """Return columns for ``chain.Rows``.

        Args:
            members: the group and response of each row of the batch; None for a row of no group.
            left: the groups that have left the buffer in this step so far.
        """
        return {}

    def centre(self, rows: Rows) -> torch.Tensor | tuple[torch.Tensor, GroupStats]:
        """Return (N,) centred rewards, which replace the rewards minus their group's mean.

        At most one extension may have this hook. To compute sigma from only some of the rows, also return the groups of
        these rows (``group_stats`` with a mask).
        """
        raise NotImplementedError

    def weight(self, rows: Rows, advantages: torch.Tensor) -> torch.Tensor:
        """Return (N,) factors. ``advantages`` (N,) already include the dial and the factors of earlier extensions."""
        raise NotImplementedError

    def loss_columns(self, batch: Batch, advantages: torch.Tensor) -> Mapping[str, torch.Tensor]:
        """Return columns (N,) for the loss. ``advantages`` (N,) belong to the rows of the batch."""
        return {}

    def worker_flags(self, update: Update) -> Mapping[str, Any]:
        """Return values that the workers get in addition to the rows."""
        return {}

    # The end of a step, in this order. Only ``end_step`` may change saved state.

    def observe_trained(self, batch: Batch) -> None:
        """The step trained on ``batch``, which includes padding and earlier responses. Its rows can still be read."""

    def record(self, group: Group) -> Mapping[str, RecordValue]:
        """Return the record columns of a group that left in this step. ``end_step`` has not changed the state yet.

        Values have the type in ``Declaration.record_columns``. Values of columns that are not declared are numbers.
        """
        return {}

    def end_step(self, left: Sequence[Group]) -> Mapping[str, float]:
        """The step is over. ``left`` contains all groups that left in it, with any fate. Return metrics."""
        return {}

    def seconds(self) -> Mapping[str, float]:
        """Return activity -> seconds spent on it since the last call."""
        return {}

    # Checkpoints and the end.

    def state_dict(self) -> dict[str, Any]:
        """Return the memory: plain JSON, and numpy arrays at the top level."""
        raise NotImplementedError

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the memory that ``state_dict`` returned."""
        raise NotImplementedError

    def fingerprint(self) -> dict[str, Any]:
        """Return settings that must be the same when the memory is restored, as plain JSON."""
        return {}

    def close(self) -> None:
        """Training ends, normally or with an error. An error that this hook raises is only logged."""


class WorkerExtension:
    """An extension's part in one training worker.

    Args:
        worker: ``trainer.worker.ExtendedTrainingWorker``, with verl's engine and a forward pass without gradients.
        config: verl's ``ActorConfig``.
    """

    def __init__(self, worker: Any, config: Any) -> None:
        self.worker, self.config = worker, config

    def before_update(self, data: Any) -> None:
        """``data`` is a TensorDict: this worker's rows of all mini-batches, and ``Extension.worker_flags``."""

    def before_mini_batch(self, data: Any) -> None:
        """``data`` is this worker's rows of the next mini-batch. The hook may add columns."""

    def after_mini_batch(self, data: Any) -> Mapping[str, Any]:
        """The worker trained on the mini-batch. Return metrics."""
        return {}


class ExtensionError(RuntimeError):
    """A hook raised an error. The message names the extension and the hook.

    The message is the only argument, because Ray pickles errors of workers and loses their cause.
    """

    @classmethod
    def in_hook(cls, name: str, hook: str, error: Exception) -> ExtensionError:
        return cls(f"algorithm.gsd.{name}: its hook {hook} raised an error: {_error_text(error)}")


#: Name -> declaration of each registered extension.
_DECLARED: dict[str, Declaration] = {}
#: Why extensions were not registered, one sentence each.
_REJECTED: list[str] = []


def register(declaration: Declaration) -> None:
    """Register an extension in every process that imports the calling module.

    verl hides the exceptions of its plugins. ``rejected`` therefore reports a rejected declaration before Ray starts.

    Raises:
        ValueError: the name is reserved or in use, the declaration uses a name of the package or of another extension,
            a figure or histogram has no numeric column, or the name of a command is wrong.
    """
    try:
        check_name_is_free(declaration.name)
        if not is_ours(declaration):
            _register_ours()  # our extensions reserve their names first
        _check_declaration(declaration)
    except ValueError as error:
        _REJECTED.append(str(error))
        raise
    _DECLARED[declaration.name] = declaration


def _check_declaration(declaration: Declaration) -> None:
    name = declaration.name
    if (other := _DECLARED.get(name)) is not None and other != declaration:
        raise ValueError(f"extension {name!r} is already registered by {module_of(other)}. Rename one of the two.")
    for kind, names in _declared_names(declaration).items():
        owners = dict.fromkeys(BASE_NAMES[kind], "verl-gsd")
        for registered in _DECLARED.values():
            if registered.name != name:
                owners |= dict.fromkeys(_declared_names(registered)[kind], f"extension {registered.name!r}")
        for declared_name in names:
            if declared_name in owners:
                raise ValueError(
                    f"extension {name!r}: {kind} {declared_name} already belongs to {owners[declared_name]}. Rename "
                    "one of the two."
                )
            owners[declared_name] = f"extension {name!r}"
    if declaration.report is not None:
        _check_chart_names(declaration.report.name, name)
    types = {column.name: column.type for column in (*RECORD_COLUMNS, *declaration.record_columns)}
    for used_by, column in _columns_used(declaration):
        if column not in types:
            raise ValueError(
                f"extension {name!r}: {used_by} uses the record column {column}, which does not exist. Declare this "
                "column."
            )
        if types[column] == "string":
            raise ValueError(
                f"extension {name!r}: {used_by} uses the record column {column}, which contains strings. Use a column "
                "of numbers."
            )
    _check_commands(declaration)


def _declared_names(declaration: Declaration) -> dict[str, list[str]]:
    """Kind of name (``base_names.BASE_NAMES``) -> declared names of this kind, which no other extension may use."""
    return {
        "record column": [column.name for column in declaration.record_columns],
        "figure per step": [figure.name for figure in declaration.step_figures],
        "report section": [] if declaration.report is None else [declaration.report.name],
        "histogram": list(declaration.histograms),
    }


def _check_chart_names(section: str, extension_name: str) -> None:
    """Check that no chart ``SECTION-CHART`` of a report can have the same name in two sections."""
    others = [of.report.name for of in _DECLARED.values() if of.report is not None and of.name != extension_name]
    for other in (*BASE_NAMES["report section"], *others):
        if section.startswith(f"{other}-") or other.startswith(f"{section}-"):
            raise ValueError(
                f"extension {extension_name!r}: the report section {section} has a name like that of a chart of the "
                f"section {other}. Rename it."
            )


def _columns_used(declaration: Declaration) -> Iterator[tuple[str, str]]:
    """(user of the column, record column) for all figures per step and histograms."""
    for figure in declaration.step_figures:
        for column in filter(None, (figure.column, figure.over)):
            yield f"figure per step {figure.name}", column
    for name, column in declaration.histograms.items():
        yield f"histogram {name}", column


def _check_commands(declaration: Declaration) -> None:
    """Check that the names of the extension's commands are valid and not in use, and that their groups exist."""
    owners = {
        command: other.name
        for other in _DECLARED.values()
        if other.name != declaration.name
        for command in other.commands
    }
    for command in declaration.commands:
        group, _, name = command.rpartition(" ")
        if group not in COMMANDS or not re.fullmatch("[a-z][a-z0-9-]*", name):
            raise ValueError(
                f"extension {declaration.name!r}: {command!r} is not a valid command. Use lower-case letters, digits "
                "and hyphens, optionally after 'judge '."
            )
        owner = "verl-gsd itself" if name in COMMANDS[group] else owners.get(command)
        if owner is not None:
            raise ValueError(
                f"extension {declaration.name!r}: the command verl-gsd {command} already belongs to {owner}. Rename it."
            )


def check_name_is_free(name: str) -> None:
    """Check that an extension can have this name.

    Raises:
        ValueError: ``algorithm.gsd`` has a setting of this name.
    """
    if name in RESERVED or name == "prompts":  # checkpoints save the memory of prompts under this name
        raise ValueError(f"extension {name!r}: algorithm.gsd.{name} is a setting of verl-gsd. Choose another name.")


def declarations() -> list[Declaration]:
    """All registered extensions in their declared order: ours, and those of installed packages (``ENTRY_POINTS``)."""
    _register_all()
    return sorted(_DECLARED.values(), key=lambda declaration: (declaration.order, declaration.name))


def declared(name: str) -> Declaration | None:
    """The extension with this name; None if there is none."""
    _register_all()
    return _DECLARED.get(name)


def rejected() -> list[str]:
    """Why extensions could not be registered, one sentence per extension."""
    _register_all()
    return list(_REJECTED)


@functools.cache
def _register_ours() -> None:
    """Import every folder and file in ``algorithms/``. Each is an algorithm and registers itself."""
    package = importlib.import_module("verl_gsd.algorithms")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")


_is_registering = False


@functools.cache
def _register_all() -> None:
    global _is_registering
    if _is_registering:  # a module that is being imported asks for the registry
        return
    _is_registering = True
    try:
        _register_ours()
        _register_other_packages()
    finally:
        _is_registering = False


def _register_other_packages() -> None:
    for point in _entry_points():
        try:
            importlib.import_module(point.module)
        except (Exception, SystemExit) as error:  # a module of another package may raise anything
            package = point.dist.name if point.dist is not None else point.name
            reason = _error_text(error)
            problem = f"package {package}: its extension module {point.module} could not be loaded: {reason}"
            logger.warning(problem)
            # ``register`` may have added the same reason without the package.
            _REJECTED[:] = [*(earlier for earlier in _REJECTED if earlier != reason), problem]


def _entry_points() -> Iterator[importlib.metadata.EntryPoint]:
    """The entry points of the group ``ENTRY_POINTS``. ``importlib.metadata.entry_points`` takes three times as long."""
    for package in importlib.metadata.distributions():
        if f"[{ENTRY_POINTS}]" in (package.read_text("entry_points.txt") or ""):
            yield from (point for point in package.entry_points if point.group == ENTRY_POINTS)


def _error_text(error: BaseException) -> str:
    """The message of a ValueError, which is meant for users. For other errors, the type and the message."""
    return str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"


def active(gsd: Mapping[str, Any] | None) -> list[Declaration]:
    """The extensions that take part, in order. ``gsd`` is the config section ``algorithm.gsd``."""
    present = set(gsd.keys()) if gsd else set()  # looking up each name in a DictConfig would take longer than the chain
    return [
        declaration
        for declaration in declarations()
        if declaration.name.partition(".")[0] in present and declaration.section(gsd or {}) is not None
    ]


def load(reference: str | T) -> Any:
    """Import the object that ``"module:name"`` refers to. An argument that is not a string is returned unchanged."""
    if not isinstance(reference, str):
        return reference
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(module), name)


def declared_object(declaration: Declaration, field: str) -> Any:
    """Import the object to which a field of the declaration refers.

    Raises:
        ConfigError: it cannot be imported, and the extension belongs to another package.
    """
    return guarded(declaration, field, lambda: load(getattr(declaration, field)))


def call_declared(declaration: Declaration, field: str, *arguments: Any) -> Any:
    """Call the function to which a field of the declaration refers. An iterator is returned as a list.

    Raises:
        ConfigError: the function cannot be imported or raised an error, and the extension belongs to another package.
    """
    function = declared_object(declaration, field)

    def call() -> Any:
        result = function(*arguments)
        return list(result) if isinstance(result, Iterator) else result

    return guarded(declaration, field, call)


def guarded(declaration: Declaration, field: str, action: Callable[[], T]) -> T:
    """Run code that a field of the declaration names.

    Raises:
        ConfigError: the code raised an error, and the extension belongs to another package. Ours raise their own error.
    """
    if is_ours(declaration):
        return action()
    try:
        return action()
    except Exception as error:  # code of another package may raise anything
        raise ConfigError(
            f"extension {declaration.name!r}: its {field} ({getattr(declaration, field)}) failed: "
            f"{_error_text(error)}. Repair or uninstall the package of {module_of(declaration)}."
        ) from error


def module_of(declaration: Declaration) -> str:
    """The module that defines the extension's class."""
    runtime = declaration.runtime
    return runtime.partition(":")[0] if isinstance(runtime, str) else runtime.__module__ or ""


def is_ours(declaration: Declaration) -> bool:
    """Whether the extension belongs to this package."""
    return module_of(declaration).startswith("verl_gsd.")


def overrides(extension: Extension | type[Extension], hook: str) -> bool:
    """Whether the extension overrides this hook."""
    kind = extension if isinstance(extension, type) else type(extension)
    return getattr(kind, hook) is not getattr(Extension, hook)


Exclusive = Literal["centre", "place", "draw_prompts"]
#: Hooks that at most one extension of a run may have, with the reason.
_EXCLUSIVE: dict[Exclusive, str] = {
    "centre": "each replaces the group's mean",
    "place": "each places the rows of an update",
    "draw_prompts": "each draws the prompts of a step",
}


def build_problems(gsd: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(name, problem) for each wrong section, and ("", problem) for extensions that exclude each other.

    This builds the extensions without services, and therefore imports torch.
    """
    built: dict[str, Extension] = {}
    for declaration in active(gsd):
        try:
            built[declaration.name] = _build(declaration, gsd, None)
        except SettingsError as error:
            yield from ((declaration.name, problem) for problem in error.problems)
        except ValueError as error:
            yield declaration.name, f"{error}" if str(error).endswith(".") else f"{error}."
    yield from (("", problem) for problem in _exclusive_hook_problems(built))


def _exclusive_hook_problems(extensions: Mapping[str, Extension]) -> Iterator[str]:
    """One sentence per hook that several extensions have, although at most one may have it."""
    for hook, reason in _EXCLUSIVE.items():
        names = [name for name, extension in extensions.items() if overrides(extension, hook)]
        if len(names) > 1:
            yield f"algorithm.gsd has {' and '.join(names)}: {reason}. Remove one of them."


def build(gsd: Mapping[str, Any], services: Services | None = None) -> dict[str, Extension]:
    """Build the extensions that take part, and return name -> extension, in order. ``gsd`` is ``algorithm.gsd``.

    Raises:
        ValueError: a section is wrong, which the message names, or two extensions exclude each other.
    """
    built = {declaration.name: _build(declaration, gsd, services) for declaration in active(gsd)}
    for problem in _exclusive_hook_problems(built):
        raise ValueError(problem)
    return built


def fingerprints(extensions: Mapping[str, Extension]) -> dict[str, Any]:
    """The fingerprints of all extensions with a memory, by config key, as a checkpoint stores them.

    Tuples become lists, as in JSON.
    """
    return {
        f"algorithm.gsd.{name}": json.loads(json.dumps(call_hook(name, extension, "fingerprint")))
        for name, extension in extensions.items()
        if overrides(extension, "state_dict")
    }


def settings_problems(declaration: Declaration, gsd: Mapping[str, Any]) -> list[str]:
    """Problems of the extension's own section, if the config has it. This imports neither torch nor verl."""
    if declaration.section(gsd) is None:
        return []
    try:
        settings_of(declaration, gsd)
    except SettingsError as error:
        return list(error.problems)
    return []


def settings_of(declaration: Declaration, gsd: Mapping[str, Any]) -> Any:
    """The settings of the extension, or its config section if it declares no model.

    Raises:
        SettingsError: the section is wrong. Each problem begins with the full key.
    """
    section, key = declaration.section(gsd), f"algorithm.gsd.{declaration.name}"
    if not isinstance(section, Mapping):
        raise SettingsError([f"{key}={as_yaml(section)}: not a section. Set it to a section with keys, or to null."])
    if declaration.settings is None:
        return section
    model = declared_object(declaration, "settings")
    if not hasattr(model, "of"):
        raise ConfigError(
            f"extension {declaration.name!r}: settings={declaration.settings} is not a subclass of "
            "verl_gsd.settings.SectionSettings. Make it one."
        )
    try:
        return model.of(section)
    except SettingsError as error:
        # A problem of the section as a whole begins with a colon, any other with a key.
        problems = [f"{key}{'' if problem.startswith(':') else '.'}{problem}" for problem in error.problems]
        raise SettingsError(problems) from error


def _build(declaration: Declaration, gsd: Mapping[str, Any], services: Services | None) -> Extension:
    kind: Callable[[Any, Services | None], Extension] = load(declaration.runtime)
    settings = settings_of(declaration, gsd)
    try:
        built = kind(settings, services)
    except Exception as error:  # a constructor of another package may raise anything
        raise ValueError(f"algorithm.gsd.{declaration.name}: {_error_text(error)}") from error
    if overrides(built, "state_dict") != declaration.saves:
        raise ValueError(
            f"algorithm.gsd.{declaration.name}: its declaration has saves={declaration.saves}, but its class "
            f"{'has no' if declaration.saves else 'has a'} state_dict. Change one of the two"
        )
    return built


def run_hook(extensions: Mapping[str, Extension], hook: str, *arguments: Any) -> Iterator[tuple[str, Any]]:
    """Call a hook of every extension that has it, in order. Yield (name, returned value).

    Raises:
        ExtensionError: a hook raised an error.
    """
    for name, extension in extensions.items():
        if overrides(extension, hook):
            yield name, call_hook(name, extension, hook, *arguments)


def call_hook(name: str, extension: Extension | WorkerExtension, hook: str, *arguments: Any) -> Any:
    """Call one hook of one extension.

    Raises:
        ExtensionError: the hook raised an error.
    """
    try:
        return getattr(extension, hook)(*arguments)
    except ExtensionError:
        raise
    except Exception as error:
        raise ExtensionError.in_hook(name, hook, error) from error


def merged(results: Iterable[tuple[str, Mapping[str, T]]]) -> dict[str, T]:
    """Merge the dicts that several extensions returned.

    Raises:
        ValueError: two extensions returned the same name.
    """
    result: dict[str, T] = {}
    owners: dict[str, str] = {}
    for extension, values in results:
        for name, value in values.items():
            if name in result:
                raise ValueError(
                    f"extensions {owners[name]} and {extension} both returned {name}. Rename it in one of them."
                )
            result[name], owners[name] = value, extension
    return result
