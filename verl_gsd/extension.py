"""The protocol of extensions, and the registry of all of them.

An extension adds an algorithm to a run. It takes part if the config has its section, ``algorithm.gsd.<name>``, and has
up to three parts:

- a ``Declaration``, registered when its module is imported; it needs neither torch nor verl;
- an ``Extension``, one object in the trainer's process, whose hooks the trainer calls;
- a ``WorkerExtension``, one object in each training worker, for a loss that needs figures of whole mini-batches.

Every hook is optional. The trainer calls each hook of all extensions in their stated order, on its own thread, and
names the extension and the hook in any error. Within a step, the hooks run in the order of their definitions below.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
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
from verl_gsd.declaration import ReportChart as ReportChart
from verl_gsd.declaration import ReportSection as ReportSection
from verl_gsd.declaration import StepFigure as StepFigure
from verl_gsd.errors import SettingsError
from verl_gsd.sections import shown

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
#: What a record column can hold.
RecordValue = bool | int | float | str | None
logger = logging.getLogger(__name__)

#: Packages of other people declare their extensions in modules that they list under this group of entry points.
ENTRY_POINTS = "verl_gsd.extensions"
#: The column in which verl's agent loops look for the number of rollouts of a prompt.
ROLLOUTS = "__rollout_n__"
#: Names in ``algorithm.gsd`` that belong to the dial and to the trainer.
RESERVED = ("alpha", "ddof", "eps", "poll_interval", "state", "limits")
#: By group, the commands of ``verl-gsd`` that belong to no extension, and whose names an extension cannot use.
COMMANDS: Mapping[str, tuple[str, ...]] = {
    "": (
        *("train", "submit", "status", "logs", "stop", "prepare", "eval", "doctor", "plan", "report", "lab", "compare"),
        "judge",
    ),
    "judge": ("score", "distill"),
}


class RowStore(Protocol):
    """The responses of training groups: one row per response, with a key and columns.

    On the stack, this is verl's TransferQueue. ``trainer/rows.py`` defines keys, tags and columns.

    Attributes:
        tags: key -> tag of each row, for all groups that have not left the buffer.
    """

    tags: dict[str, dict[str, Any]]

    def read(self, keys: Sequence[str], columns: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """The rows of these keys, with these columns, or with all columns that the rows share."""

    def put(self, rows: Mapping[str, Mapping[str, Any]], tags: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        """Add rows, or add columns to rows. ``tags`` replaces the tags of the rows."""

    def drop(self, keys: Sequence[str]) -> None:
        """Remove rows."""


class Verifier(Protocol):
    """The run's verifier, for responses that no rollout generated.

    Attributes:
        workers: the workers that verify; on the stack, verl's reward workers.
    """

    workers: Sequence[Any]

    def submit(self, columns: Mapping[str, Any], prompt: Sequence[int], response: Sequence[int]) -> Any:
        """Start to verify a response. Returns a handle for ``has_answered`` and ``verdict``.

        Args:
            columns: the prompt's columns of the data set (``data_source``, ``reward_model``, ``extra_info``, ...).
            prompt, response: tokens.
        """

    def has_answered(self, answer: Any) -> bool:
        """Whether ``verdict`` returns at once."""

    def verdict(self, answer: Any, timeout_s: float) -> Verdict | None:
        """The verdict; None if the verifier failed or took longer than ``timeout_s``."""


@dataclass(frozen=True)
class Verdict:
    """A verifier's result.

    Attributes:
        reward: the reward.
        info: other finite numbers that the verifier returned, by name.
    """

    reward: float
    info: Mapping[str, float]


class Services(Protocol):
    """What a run provides to its extensions.

    ``config``, ``rows`` and ``prompts`` exist when an extension is built. The others exist when training begins.
    """

    @property
    def config(self) -> DictConfig:
        """The whole resolved config."""

    @property
    def rows(self) -> RowStore: ...

    @property
    def prompts(self) -> PromptStore:
        """The memory of prompts from earlier steps. Store responses in it only at the end of a step."""

    @property
    def tokenizer(self) -> Any:
        """The policy's tokenizer."""

    @property
    def verifier(self) -> Verifier: ...

    @property
    def step(self) -> int:
        """The current trainer step."""


class Visits:
    """N visits to prompts: before their rollouts are requested, or in flight after a restart.

    Args:
        uids: verl's name of each visit.
        keys: the key of each visit's prompt.
        columns: columns of the data set, one entry per visit.
        group_size: rollouts per prompt, if the data has no column ``ROLLOUTS``.

    Attributes:
        rollouts: (N,) int64, rollouts per visit before any extension requests another number.
        requested: (N,) int64, rollouts per visit that an extension requests instead; None if no extension does.
        notes: name -> (N,) int64, kept with the prompts until their groups leave, also after a restart.
    """

    def __init__(
        self, uids: Sequence[str], keys: Sequence[PromptKey], columns: Mapping[str, Sequence[Any]], group_size: int
    ) -> None:
        self.uids, self.keys, self.columns = uids, keys, columns
        self.has_own_rollouts = ROLLOUTS in columns
        import numpy as np

        given = [int(n) for n in columns[ROLLOUTS]] if self.has_own_rollouts else [group_size] * len(uids)
        self.rollouts: np.ndarray = np.array(given, np.int64)
        self.requested: np.ndarray | None = None
        self.notes: dict[str, np.ndarray] = {}

    def request(self, rollouts: Sequence[int] | np.ndarray) -> None:
        """Request another number of rollouts for each visit.

        Raises:
            ValueError: another extension has requested rollouts.
        """
        if self.requested is not None:
            raise ValueError("another extension has requested rollouts for these prompts. Remove one of the two.")
        import numpy as np

        self.requested = np.asarray(rollouts, np.int64)

    def note(self, name: str, values: Sequence[int] | np.ndarray) -> None:
        """Keep a number for each visit. ``noted`` returns it, also after a restart."""
        import numpy as np

        self.notes[name] = np.asarray(values, np.int64)

    def noted(self, name: str) -> list[int] | None:
        """The numbers noted under ``name``; None if there are none."""
        return [int(value) for value in self.columns[name]] if name in self.columns else None


@dataclass(frozen=True)
class Batch:
    """The N rows of an update, padding included.

    Attributes:
        keys, tags: one per row.
        prompts: uid -> prompt, for every group in the step's batches.
    """

    keys: Sequence[str]
    tags: Sequence[Mapping[str, Any]]
    prompts: Mapping[str, PromptKey] = field(default_factory=dict)


@dataclass(frozen=True)
class UnplacedRows:
    """The N rows of an update, without padding, before they are placed into mini-batches.

    Attributes:
        keys: (N,) keys.
        tokens: (N,) tokens of each row.
        workload: (N,) verl's estimate of a row's cost for a worker.
        prompts: prompts that the step samples. The config's number of updates assumes this many.
        padding_tokens: tokens of a padding row.
        workers: data-parallel workers that share the batch.
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
        is_first: whether the policy still equals the one that computed the batch's old log-probabilities.
    """

    step: int
    is_first: bool


class Extension:
    """An extension's part in the trainer's process. A subclass overrides the hooks that it needs.

    Args:
        settings: the model that the declaration names, or the config section itself where it names none. The
            constructor raises a ValueError if it is wrong.
        services: see ``Services``.
    """

    def __init__(self, settings: Any, services: Services | None = None) -> None:
        self.settings, self._services = settings, services

    @property
    def services(self) -> Services:
        """What the run provides.

        Raises:
            RuntimeError: there is no run, because a config is checked or the trainer is one of verl's own.
        """
        if self._services is None:
            raise RuntimeError("this extension has no services, because none of our trainer modes runs it")
        return self._services

    # Before generation.

    def draw_prompts(self, dataset: Any, count: int, seed: int) -> Sampler[int]:
        """The sampler that samples ``count`` rows of ``dataset`` (``run.dataset.PromptKeys``) in each step.

        At most one extension has this hook. To be resumed, the sampler needs ``state_dict``, with the number of rows as
        ``rows``, and ``load_state_dict``.
        """
        raise NotImplementedError

    def before_rollout(self, visits: Visits) -> None:
        """Rollouts of these prompts are about to be generated. ``Visits`` says what can be requested."""

    def restore_in_flight(self, visits: Visits) -> None:
        """These prompts were submitted before a restart. Their columns and notes are those from then."""

    # While groups complete. The first two are called once per look into the queue, for all groups that it found.

    def add_rows(self, uids: Sequence[str]) -> None:
        """The sessions of these visits have ended, and their rows have not been read. The hook may add rows."""

    def on_groups_complete(self, groups: Sequence[Group]) -> None:
        """These groups were read. The hook may replace rows in the row store; the groups stay as they are."""

    def poll(self, now: float) -> None:
        """The trainer looks into the queue at ``now`` (``time.monotonic()``). Serve threads and clocks here."""

    def is_ready(self, group: Group) -> bool:
        """Whether a complete group may be trained on or evicted. Pure: called at every look until it is true."""
        return True

    def on_group_left(self, group: Group, fate: Fate) -> Group:
        """A group left the buffer. Returns it, possibly changed, for example with a judge's scores."""
        return group

    # The update.

    def place(self, rows: UnplacedRows) -> tuple[list[int], Mapping[str, float]]:
        """Place rows into mini-batches. At most one extension has this hook.

        Returns:
            The row number (or ``batching.PADDING``) at each place of the batch, in the order that
            ``trainer.batching.layout`` describes, and metrics of this batch. A step may have several batches.
        """
        raise NotImplementedError

    def stage_inputs(self, members: Sequence[Member | None], left: Sequence[Group]) -> Mapping[str, Any]:
        """Columns for ``chain.Rows``.

        Args:
            members: the group and response of each row of the batch; None for a row of no group.
            left: the groups that have left in this step so far.
        """
        return {}

    def centre(self, rows: Rows) -> torch.Tensor | tuple[torch.Tensor, GroupStats]:
        """(N,) centred rewards, instead of the rewards less their group's mean. At most one extension has this hook.

        If sigma shall be the standard deviation of fewer rows, also return the groups of these rows (``group_stats``
        with a mask).
        """
        raise NotImplementedError

    def weight(self, rows: Rows, advantages: torch.Tensor) -> torch.Tensor:
        """(N,) factors. ``advantages`` (N,) already include the dial and the factors of earlier extensions."""
        raise NotImplementedError

    def loss_columns(self, batch: Batch, advantages: torch.Tensor) -> Mapping[str, torch.Tensor]:
        """Columns (N,) for the loss. ``advantages`` (N,) are those of the batch's rows."""
        return {}

    def worker_flags(self, update: Update) -> Mapping[str, Any]:
        """Values that the workers get in addition to the rows."""
        return {}

    # The end of a step, in this order. Saved state changes in ``end_step`` and nowhere else.

    def observe_trained(self, batch: Batch) -> None:
        """The step trained on ``batch``, which includes padding and earlier responses. Its rows can still be read."""

    def record(self, group: Group) -> Mapping[str, RecordValue]:
        """Record columns of a group that left in this step, from the state before ``end_step``.

        A column has its declared type (``Declaration.record_columns``). A column that is not declared takes numbers.
        """
        return {}

    def end_step(self, left: Sequence[Group]) -> Mapping[str, float]:
        """The step is over. ``left`` are all groups that left in it, whatever their fate. Returns metrics."""
        return {}

    def seconds(self) -> Mapping[str, float]:
        """Seconds spent since the last call, by activity."""
        return {}

    # Checkpoints and the end.

    def state_dict(self) -> dict[str, Any]:
        """The memory: plain JSON, and numpy arrays at the top level."""
        raise NotImplementedError

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        raise NotImplementedError

    def fingerprint(self) -> dict[str, Any]:
        """Settings that must not differ when the memory is restored, as plain JSON."""
        return {}

    def close(self) -> None:
        """Training ends, normally or with an error. An error raised here is only logged."""


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
        """``data`` is this worker's rows of the mini-batch that is trained on next. The hook may add columns."""

    def after_mini_batch(self, data: Any) -> Mapping[str, Any]:
        """The mini-batch was trained on. Returns metrics."""
        return {}


class ExtensionError(RuntimeError):
    """A hook raised an error. The message names the extension and the hook.

    The message is the only argument, because Ray pickles errors of workers and loses their cause.
    """

    @classmethod
    def of(cls, name: str, hook: str, error: Exception) -> ExtensionError:
        return cls(f"algorithm.gsd.{name}: its hook {hook} raised: {_described(error)}")


_DECLARED: dict[str, Declaration] = {}
_REJECTED: list[str] = []


def register(declaration: Declaration) -> None:
    """Make an extension known to every process that imports the calling module.

    ``rejected`` reports a rejected declaration before Ray starts, because verl hides what a plugin raises.

    Raises:
        ValueError: the name is reserved or taken, the package or another extension uses a name that it declares, a
            figure or histogram has no column of numbers, or a command cannot have its name.
    """
    try:
        require_free(declaration.name)
        if not is_ours(declaration):
            _register_ours()  # so that the names of ours are taken
        _check_new(declaration)
    except ValueError as error:
        _REJECTED.append(str(error))
        raise
    _DECLARED[declaration.name] = declaration


def _check_new(declaration: Declaration) -> None:
    name = declaration.name
    if (other := _DECLARED.get(name)) is not None and other != declaration:
        raise ValueError(f"extension {name!r} is registered already, by {module_of(other)}. Rename one of the two.")
    for kind, names in _declared_names(declaration).items():
        owner = dict.fromkeys(BASE_NAMES[kind], "verl-gsd")
        for of in _DECLARED.values():
            if of.name != name:
                owner |= dict.fromkeys(_declared_names(of)[kind], f"extension {of.name!r}")
        for taken in names:
            if taken in owner:
                raise ValueError(
                    f"extension {name!r}: {kind} {taken} belongs to {owner[taken]} already. Rename one of the two."
                )
            owner[taken] = f"extension {name!r}"
    types = {column.name: column.type for column in (*RECORD_COLUMNS, *declaration.record_columns)}
    for what, column in _columns_used(declaration):
        if column not in types:
            raise ValueError(f"extension {name!r}: {what} uses the record column {column}. Declare this column.")
        if types[column] == "string":
            raise ValueError(f"extension {name!r}: {what} uses the record column {column}. Use a column of numbers.")
    _check_commands(declaration)


def _declared_names(declaration: Declaration) -> dict[str, list[str]]:
    """What is declared under names that nobody else may use, by kind of name (``base_names.BASE_NAMES``)."""
    return {
        "record column": [column.name for column in declaration.record_columns],
        "figure per step": [figure.name for figure in declaration.step_figures],
        "report section": [] if declaration.report is None else [declaration.report.name],
        "histogram": list(declaration.histograms),
    }


def _columns_used(declaration: Declaration) -> Iterator[tuple[str, str]]:
    """(what uses it, record column) of all figures per step and histograms."""
    for figure in declaration.step_figures:
        for column in filter(None, (figure.column, figure.over)):
            yield f"figure per step {figure.name}", column
    for name, column in declaration.histograms.items():
        yield f"histogram {name}", column


def _check_commands(declaration: Declaration) -> None:
    """Check that the extension's commands have new names, within a group that exists."""
    taken = {command: of.name for of in _DECLARED.values() if of.name != declaration.name for command in of.commands}
    for command in declaration.commands:
        group, _, name = command.rpartition(" ")
        if group not in COMMANDS or not re.fullmatch("[a-z][a-z0-9-]*", name):
            raise ValueError(
                f"extension {declaration.name!r}: {command!r} cannot be a command. Use lower-case letters, digits and "
                "hyphens, alone or after 'judge '."
            )
        owner = "verl-gsd itself" if name in COMMANDS[group] else taken.get(command)
        if owner is not None:
            raise ValueError(
                f"extension {declaration.name!r}: the command verl-gsd {command} belongs to {owner} already. Rename it."
            )


def require_free(name: str) -> None:
    """Check that an extension can have this name.

    Raises:
        ValueError: it is the name of a setting in ``algorithm.gsd``.
    """
    if name in RESERVED or name == "prompts":  # a checkpoint keeps the memory of prompts under this name
        raise ValueError(f"extension {name!r}: algorithm.gsd.{name} is a setting of verl-gsd. Choose another name.")


def declarations() -> list[Declaration]:
    """All registered extensions in their order: ours, and those of installed packages (``ENTRY_POINTS``)."""
    _register_all()
    return sorted(_DECLARED.values(), key=lambda declaration: (declaration.order, declaration.name))


def declared(name: str) -> Declaration | None:
    """The extension of that name, if there is one."""
    _register_all()
    return _DECLARED.get(name)


def rejected() -> list[str]:
    """Extensions that could not be registered, one sentence each."""
    _register_all()
    return list(_REJECTED)


@functools.cache
def _register_ours() -> None:
    """Every algorithm of this package is a folder or a file in ``algorithms/`` and registers itself."""
    package = importlib.import_module("verl_gsd.algorithms")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")


@functools.cache
def _register_all() -> None:
    _register_ours()
    for point in _entry_points():
        try:
            importlib.import_module(point.module)
        except Exception as error:  # the module is somebody else's: it may raise anything
            package = point.dist.name if point.dist is not None else point.name
            reason = _described(error)
            problem = f"package {package}: its extension module {point.module} could not be loaded: {reason}"
            logger.warning(problem)
            _REJECTED[:] = [*(known for known in _REJECTED if known != reason), problem]  # register may have added it


def _entry_points() -> Iterator[importlib.metadata.EntryPoint]:
    """Those of the group ``ENTRY_POINTS``. The function of this name in importlib takes three times as long."""
    for package in importlib.metadata.distributions():
        if f"[{ENTRY_POINTS}]" in (package.read_text("entry_points.txt") or ""):
            yield from (point for point in package.entry_points if point.group == ENTRY_POINTS)


def _described(error: Exception) -> str:
    """The message of a ValueError, which is written for users, or the type and message of any other error."""
    return str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"


def active(gsd: Mapping[str, Any] | None) -> list[Declaration]:
    """The extensions that take part under ``gsd``, the config section ``algorithm.gsd``, in order."""
    present = set(gsd.keys()) if gsd else set()  # looking up every name in a DictConfig takes longer than the chain
    return [
        declaration
        for declaration in declarations()
        if declaration.name.partition(".")[0] in present and declaration.section(gsd or {}) is not None
    ]


def load(place: str | T) -> Any:
    """Import what ``"module:name"`` names. Anything that is not a string is returned as it is."""
    if not isinstance(place, str):
        return place
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


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
_EXCLUSIVE: dict[Exclusive, str] = {
    "centre": "each replaces the group's mean",
    "place": "each places the rows of an update",
    "draw_prompts": "each draws the prompts of a step",
}


def problems(gsd: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(name, problem) for each section that is wrong, and for extensions that exclude each other (with name "").

    It builds the extensions without services, and therefore imports torch.
    """
    built: dict[str, Extension] = {}
    for declaration in active(gsd):
        try:
            built[declaration.name] = _build(declaration, gsd, None)
        except SettingsError as error:
            yield from ((declaration.name, problem) for problem in error.problems)
        except ValueError as error:
            yield declaration.name, f"{error}" if str(error).endswith(".") else f"{error}."
    yield from (("", problem) for problem in collisions(built))


def collisions(extensions: Mapping[str, Extension]) -> Iterator[str]:
    """One sentence per hook that at most one extension may have and that several of these have."""
    for hook, why in _EXCLUSIVE.items():
        names = [name for name, extension in extensions.items() if overrides(extension, hook)]
        if len(names) > 1:
            yield f"algorithm.gsd has {' and '.join(names)}: {why}. Remove one of them."


def build(gsd: Mapping[str, Any], services: Services | None = None) -> dict[str, Extension]:
    """Build the extensions that take part under ``gsd``, by name, in order.

    Raises:
        ValueError: a section is wrong (naming it), or two extensions cannot take part together.
    """
    built = {declaration.name: _build(declaration, gsd, services) for declaration in active(gsd)}
    for problem in collisions(built):
        raise ValueError(problem)
    return built


def settings_problems(declaration: Declaration, gsd: Mapping[str, Any]) -> list[str]:
    """What is wrong with the extension's own section, if there is one. It imports neither torch nor verl."""
    if declaration.section(gsd) is None:
        return []
    try:
        settings_of(declaration, gsd)
    except SettingsError as error:
        return list(error.problems)
    return []


def settings_of(declaration: Declaration, gsd: Mapping[str, Any]) -> Any:
    """The settings of the extension, or its section where it declares no model.

    Raises:
        SettingsError: the section is wrong. Each problem begins with the full key.
    """
    section, key = declaration.section(gsd), f"algorithm.gsd.{declaration.name}"
    if not isinstance(section, Mapping):
        raise SettingsError([f"{key}={shown(section)}: not a section. Set it to a section with keys, or to null."])
    if declaration.settings is None:
        return section
    try:
        return load(declaration.settings).of(section)
    except SettingsError as error:
        raise SettingsError([f"{key}.{problem}" for problem in error.problems]) from error


def _build(declaration: Declaration, gsd: Mapping[str, Any], services: Services | None) -> Extension:
    kind: Callable[[Any, Services | None], Extension] = load(declaration.runtime)
    settings = settings_of(declaration, gsd)
    try:
        built = kind(settings, services)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"algorithm.gsd.{declaration.name}: {_described(error)}") from error
    if overrides(built, "state_dict") != declaration.saves:
        raise ValueError(
            f"algorithm.gsd.{declaration.name}: its declaration has saves={declaration.saves}, but its class "
            f"{'has no' if declaration.saves else 'has a'} state_dict. Change one of the two"
        )
    return built


def run_hook(extensions: Mapping[str, Extension], hook: str, *arguments: Any) -> Iterator[tuple[str, Any]]:
    """Call a hook of every extension that has it, in order. Yields (name, returned value).

    Raises:
        ExtensionError: a hook raised an error.
    """
    for name, extension in extensions.items():
        if overrides(extension, hook):
            yield name, call_hook(name, extension, hook, *arguments)


def call_hook(name: str, extension: Extension | WorkerExtension, hook: str, *arguments: Any) -> Any:
    """Call one hook.

    Raises:
        ExtensionError: the hook raised an error.
    """
    try:
        return getattr(extension, hook)(*arguments)
    except ExtensionError:
        raise
    except Exception as error:
        raise ExtensionError.of(name, hook, error) from error


def merged(results: Iterable[tuple[str, Mapping[str, T]]]) -> dict[str, T]:
    """Merge the dicts that several extensions returned.

    Raises:
        ValueError: two extensions returned the same name.
    """
    result: dict[str, T] = {}
    owner: dict[str, str] = {}
    for extension, values in results:
        for name, value in values.items():
            if name in result:
                raise ValueError(
                    f"extensions {owner[name]} and {extension} both returned {name}. Rename it in one of them."
                )
            result[name], owner[name] = value, extension
    return result
