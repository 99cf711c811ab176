"""Keeps verl's data set from opening the files and URLs that cells of a data file name (``media_cells.py``).

verl reads each row with all its columns, also with those that it does not use. ``datasets`` takes their types from the
data file, and opens what cells of media name. The patch has an effect in all runs, also in those that do not use this
package. Images with their content in the cell are decoded as before.
"""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any

from verl_gsd.media_cells import without_opened_files


def install(rl_dataset: ModuleType) -> None:
    """Replace the types of media before verl reads a row.

    verl passes all rows through ``maybe_filter_out_long_prompts`` when it has loaded the files, also if it keeps them
    all. Nothing reads a row before that.

    Args:
        rl_dataset: the module ``verl.utils.dataset.rl_dataset``.
    """
    original = rl_dataset.RLHFDataset.maybe_filter_out_long_prompts

    @functools.wraps(original)
    def maybe_filter_out_long_prompts(self: Any, dataframe: Any = None) -> Any:
        return original(self, without_opened_files(dataframe))

    rl_dataset.RLHFDataset.maybe_filter_out_long_prompts = maybe_filter_out_long_prompts
