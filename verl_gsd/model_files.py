"""Keeps transformers from reading files outside a model's folder.

The author of a model is not trusted, and its files can name others. A key of tokenizer_config.json or
special_tokens_map.json comes before the folder's own vocabulary, an index names the files of the weights, and any file
may be a symbolic link. Each of them could lead to a private file of the user, such as a key or the environment of the
process. It would become the vocabulary, the chat template or the weights of a model that is then published.

``HOOKS`` are patches of transformers that check each file and name where it is used. A check before the load would not
be enough: whoever can write the folder could change it in between. ``check_model_folder`` is for loaders other than
transformers. They open files by name after the check.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple

import wrapt

from verl_gsd.errors import ConfigError
from verl_gsd.file_access import real_path
from verl_gsd.plain_data import parse_json
from verl_gsd.regular_files import read_regular

#: A file in the cache of Hugging Face's hub: the repository's folder, the revision's folder, and the name in it.
_CACHED = re.compile(r"(?P<snapshot>.*?/models--(?P<owner_and_name>[^/]+)/snapshots/[^/]+)/(?P<name>.*)")
#: Keys of a tokenizer that may hold a file's name and do not end in ``_file``.
_VOCABULARY = frozenset({"vocab", "merges"})
#: A key that older releases wrote with a path of the author's machine. transformers does not read it.
_UNREAD = "special_tokens_map_file"


class ModelFileError(ConfigError, OSError):
    """A model names or links to a file outside its folder. The message names the file and the fix.

    It is an ``OSError``, because transformers replaces the message of any other error.
    """


def check_file(file: str, model: str) -> None:
    """Check that a file that a loader found for ``model`` is one of the model's own.

    Links that lead out of the folder are accepted if they are of this user or of root, and nobody else can replace
    them: they are the user's own choice. In the hub's cache, links lead to the ``blobs`` of the same model.

    Args:
        file: its path.
        model: the folder or the hub name that is loaded.

    Raises:
        ModelFileError: the file is outside the folder, or a link leads out of it.
    """
    folder, name = _place(file, model)
    if folder is None or ".." in Path(name).parts:
        raise ModelFileError(
            f"{model}: a file of this model names {file}, which is outside it. It was not read, because it could be a "
            "private file of yours. Use another model, or copy this one and correct the names in its JSON files."
        )
    try:
        place, problem = real_path(Path(file))
    except OSError:
        return  # it does not exist
    real = folder.resolve()
    blobs = [real.parent.parent / "blobs"] if real.parent.name == "snapshots" else []
    if problem and not any(place.is_relative_to(own) for own in (real, *blobs)):
        raise ModelFileError(
            f"{folder}: {name} is a link that leads out of this folder, to {place}. It was not read, because it could "
            f"be a private file of yours, and {problem}. Use another model, or copy this one and put the file in the "
            "place of the link."
        )


def _place(file: str, model: str) -> tuple[Path | None, str]:
    """The folder of ``model`` that has ``file``, and the file's name in it; None if it is in no folder of the model."""
    if Path(model).is_dir():
        own = Path(file).is_relative_to(model)
        return (Path(model), str(Path(file).relative_to(model))) if own else (None, "")
    cached = _CACHED.fullmatch(file)
    if cached is None or cached["owner_and_name"] != model.replace("/", "--"):
        return None, ""
    return Path(cached["snapshot"]), cached["name"]


def check_model_folder(folder: Path) -> None:
    """Check the links in a model's folder and the names in the indices of its weights.

    Raises:
        ModelFileError: one of them leads out of the folder.
        OSError: the folder cannot be read.
    """
    for parent, folders, files in os.walk(folder):
        for path in (Path(parent) / name for name in (*folders, *files)):
            if path.is_symlink():
                check_file(str(path), str(folder))
    for index in sorted(folder.glob("*.index.json")):
        try:
            names = dict(parse_json(read_regular(index))["weight_map"]).values()
        except (KeyError, TypeError, ValueError):
            continue  # no index: the loader says so
        for name in sorted({str(name) for name in names}):
            check_file(os.path.join(folder, name), str(folder))  # noqa: PTH118, as loaders join them


class _Resolved(NamedTuple):
    """What a tokenizer that is being loaded may read: the folder's files by key, and what the caller gave."""

    model: str
    files: Mapping[str, str | None]
    given: frozenset[str]


_resolved: ContextVar[_Resolved | None] = ContextVar("resolved", default=None)


@functools.cache  # once per process, whoever asks for it
def _guard_files(hub: Any) -> None:
    """Check every file that transformers finds for a model: configs, templates, vocabularies and weights of the hub."""
    original = hub.cached_files

    @functools.wraps(original)
    def cached_files(path_or_repo_id: Any, *args: Any, **kwargs: Any) -> Any:
        files = original(path_or_repo_id, *args, **kwargs)
        if kwargs.get("repo_type") in (None, "model"):
            for file in files or ():
                check_file(file, str(path_or_repo_id))
        return files

    hub.cached_files = cached_files


@functools.cache
def _guard_weights(modeling: Any) -> None:
    """Check the files of weights, which an index or the config may name, and load no model that an adapter names."""
    original = modeling._get_resolved_checkpoint_files

    @functools.wraps(original)
    def _get_resolved_checkpoint_files(pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        files, metadata = original(pretrained_model_name_or_path, *args, **kwargs)
        model = str(pretrained_model_name_or_path)
        for file in files or ():
            if not Path(model).is_file() and file != kwargs.get("gguf_file"):  # files that the caller names
                check_file(file, model)
        return files, metadata

    load_adapters = modeling.maybe_load_adapters

    @functools.wraps(load_adapters)
    def maybe_load_adapters(*args: Any, **kwargs: Any) -> Any:
        adapter, model, *others = load_adapters(*args, **kwargs)
        if adapter is not None and str(adapter) != str(model):
            raise ModelFileError(
                f"{adapter}: this is a LoRA adapter, and its adapter_config.json names the base model {model}. It was "
                "not loaded, because it could be a private model of yours. Use the base model itself, or a folder of a "
                "whole model."
            )
        return adapter, model, *others

    modeling._get_resolved_checkpoint_files = _get_resolved_checkpoint_files
    modeling.maybe_load_adapters = maybe_load_adapters


@functools.cache
def _guard_generation(module: Any) -> None:
    """Check generation_config.json, which transformers opens by name. It keeps and saves all values of the file."""
    config = module.GenerationConfig
    original = config._dict_from_json_file.__func__

    @functools.wraps(original)
    def _dict_from_json_file(cls: Any, json_file: Any) -> Any:
        check_file(str(json_file), str(Path(json_file).parent))
        return original(cls, json_file)

    config._dict_from_json_file = classmethod(_dict_from_json_file)


@functools.cache
def _guard_tokenizers(base: Any) -> None:
    """Let tokenizers read only what transformers found in the folder, whatever the model's JSON files name."""
    tokenizer = base.PreTrainedTokenizerBase
    original = tokenizer._from_pretrained.__func__

    @functools.wraps(original)
    def _from_pretrained(
        cls: Any,
        resolved_vocab_files: dict[str, str | None],
        model: Any,
        settings: dict[str, Any],
        *inputs: Any,
        **kw: Any,
    ) -> Any:
        given = frozenset(value for value in kw.values() if isinstance(value, str))
        token = _resolved.set(_Resolved(str(model), dict(resolved_vocab_files), given))
        try:
            if file := resolved_vocab_files.get("tokenizer_config_file"):
                settings = dict(parse_json(read_regular(Path(file))))
                settings.pop("tokenizer_class", None)
                if settings.pop("init_inputs", ()):  # arguments without names, some of which are files
                    raise ModelFileError(
                        f"{model}: tokenizer_config.json sets init_inputs, which can name files outside the model. "
                        "They were not read. Use another model, or remove init_inputs in a copy of this one."
                    )
                resolved_vocab_files = resolved_vocab_files | {"tokenizer_config_file": None}
            return original(cls, resolved_vocab_files, model, settings, *inputs, **kw)
        finally:
            _resolved.reset(token)

    tokenizer._from_pretrained = classmethod(_from_pretrained)
    _guard_arguments(tokenizer)


@functools.cache
def _guard_fast_tokenizers(module: Any) -> None:
    _guard_arguments(module.TokenizersBackend)


def _guard_arguments(tokenizer: Any) -> None:
    """Check a tokenizer's arguments where it uses them: transformers has merged them from all JSON files."""
    convert = tokenizer.convert_to_native_format.__func__

    @functools.wraps(convert)
    def convert_to_native_format(cls: Any, *args: Any, **kwargs: Any) -> Any:
        resolved = _resolved.get()
        return convert(cls, *args, **(kwargs if resolved is None else _own_files(cls, kwargs, resolved)))

    tokenizer.convert_to_native_format = classmethod(convert_to_native_format)


def _own_files(cls: Any, arguments: Mapping[str, Any], resolved: _Resolved) -> dict[str, Any]:
    """``arguments`` of a tokenizer of class ``cls``. The bare name of a file in the folder becomes its path.

    Raises:
        ModelFileError: an argument names any other file.
    """
    own: dict[str, Any] = {}
    for key, value in arguments.items():
        own[key] = value
        if isinstance(value, Mapping) and key.endswith("_kwargs"):
            own[key] = _own_files(cls, value, resolved)
        elif isinstance(value, str) and value and _names_file(cls, key):
            file = resolved.files.get(key)
            if file is not None and value == Path(file).name:
                own[key] = file
            elif value != file and value not in resolved.given:
                raise ModelFileError(
                    f"{resolved.model}: tokenizer_config.json or special_tokens_map.json sets {key} to {value!r}, "
                    "which is not the model's own file. It was not read, because it could be a private file of yours. "
                    f"Use another model, or remove {key} in a copy of this one."
                )
    return own


def _names_file(cls: Any, key: str) -> bool:
    return key != _UNREAD and (key.endswith("_file") or key in _VOCABULARY or key in cls.vocab_files_names)


class Hook(NamedTuple):
    """A patch of a module of transformers, and the functions of that module that must not run without it."""

    module: str
    install: Callable[[Any], None]
    entrances: tuple[str, ...]


HOOKS = (
    Hook("transformers.utils.hub", _guard_files, ("cached_files",)),
    Hook("transformers.modeling_utils", _guard_weights, ("PreTrainedModel.from_pretrained",)),
    Hook("transformers.generation.configuration_utils", _guard_generation, ("GenerationConfig.from_pretrained",)),
    Hook("transformers.tokenization_utils_base", _guard_tokenizers, ("PreTrainedTokenizerBase.from_pretrained",)),
    Hook("transformers.tokenization_utils_tokenizers", _guard_fast_tokenizers, ("TokenizersBackend.__init__",)),
)


def protect() -> None:
    """Install ``HOOKS`` in this process, also if transformers is imported later.

    If a patch does not fit the installed transformers, the import of transformers raises. In processes of verl, the
    plugin installs them, and closes their entrances instead.
    """
    for hook in HOOKS:
        wrapt.when_imported(hook.module)(hook.install)
