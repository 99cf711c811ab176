"""The settings in which runs differ."""

from __future__ import annotations

from typing import Any

from verl_gsd.charts import Section, Table
from verl_gsd.report.sections.view import Views
from verl_gsd.secret_patterns import SECRET_NAME, SECRET_VALUE

#: Maximum number of settings in the table, and of characters of a value.
MOST_SETTINGS, _MOST_CHARACTERS = 40, 80
#: Last parts of keys that name a run or its files, which are not settings, and the environment, which can have secrets.
#: verl's config has the run's names in several sections.
_NAMES = ("experiment_name", "project_name")
_FOLDERS, _ENVIRONMENT = ("_data_dir", "_local_dir", "_hdfs_dir"), ".env_vars."
_ABSENT = object()


def settings_section(views: Views) -> Section | None:
    """A table with one row per setting that differs between runs; None if there is a single run, or no difference."""
    configs = {name: view.run.config for name, view in views.items() if view.run.config}
    keys = dict.fromkeys(key for config in configs.values() for key in config)
    rows = []
    for key in sorted(filter(_is_setting, keys)):
        values = [config.get(key, _ABSENT) for config in configs.values()]
        if any(value != values[0] for value in values):
            rows.append((key, *(_shown(key, value) for value in values)))
    if not rows:
        return None
    text = ["Settings that are equal in all runs, names of runs and their folders are left out."]
    if len(rows) > MOST_SETTINGS:
        text.append(f"The first {MOST_SETTINGS} of {len(rows)} settings are shown.")
    if unknown := [name for name in views if name not in configs]:
        text.append(f"The settings of {', '.join(unknown)} are unknown, because there is no config.yaml.")
    table = Table(("setting", *configs), rows[:MOST_SETTINGS])
    return Section("settings", "Settings that differ", text, table=table)


def _is_setting(key: str) -> bool:
    return key.rpartition(".")[2] not in _NAMES and not key.endswith(_FOLDERS) and _ENVIRONMENT not in key


def _shown(key: str, value: Any) -> str:
    if value is _ABSENT:
        return "-"
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    if SECRET_VALUE.search(text) or (isinstance(value, str) and SECRET_NAME.search(key.rpartition(".")[2])):
        return "(not shown)"
    return text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]}…"
