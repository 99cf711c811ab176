"""Keeps ``datasets`` from opening the files and URLs that the cells of a data set name.

A data set says in its README.md, or in the metadata of a Parquet file, that a column holds images, sound, videos or
other media. A cell of such a column has the content itself (``bytes``) or names it (``path``): a local file, a URL, or
a chain of fsspec. ``datasets`` opens what a cell names as soon as it reads the row, whether or not anybody reads that
column, and sends passwords of ~/.netrc to the servers of URLs. The author of a data set is not trusted, so nothing that
a cell names is opened here.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Mapping
from typing import Any, TypeVar

import datasets
from datasets.fingerprint import Hasher

logger = logging.getLogger(__name__)

_Data = TypeVar("_Data", datasets.Dataset, datasets.IterableDataset)


class EmbeddedImage(datasets.Image):
    """Images whose content is in the cells. Cells that name an image stay as they are stored."""

    def decode_example(self, value: Any, token_per_repo_id: Any = None) -> Any:
        """The image of a cell with ``bytes``; for all other cells, ``value`` itself."""
        if not isinstance(value, Mapping):
            return value
        if value["bytes"] is None:
            if value["path"] is not None:
                _warn_of_named_images()
            return value
        return super().decode_example({"bytes": value["bytes"], "path": None})


@functools.cache
def _warn_of_named_images() -> None:
    """Log once per process that images are missing."""
    logger.warning(
        "The data has images that are only named, by a path or a URL. verl-gsd does not open them. Store the content "
        "of each image in the data file: the bytes of the file, in the field bytes of the cell."
    )


def media_type(feature: Any) -> str | None:
    """The name of a column's type if it holds media, for example Image; None for all other types."""
    # Json has a decode_example as well, which parses the text of the cell and opens nothing.
    is_media = hasattr(feature, "decode_example") and not isinstance(feature, datasets.Json)
    return str(feature._type) if is_media else None


def without_opened_files(data: _Data) -> _Data:
    """``data``, whose rows are read without opening what their cells name.

    Cells of media, also of nested ones, are dicts with ``bytes`` and ``path``, as they are stored. Images with
    ``bytes`` are images. Data without media is returned as it is.
    """
    if data.features is None:
        return data
    closed = datasets.Features(_closed(data.features))
    if closed == data.features:
        return data
    if isinstance(data, datasets.IterableDataset):
        # Data of the hub is decoded in threads, before a cast could prevent that. decode(False) ends them.
        return data.decode(False).cast(closed)
    info = data.info.copy()
    info.features = closed
    # The types on the disk stay the same. Dataset.cast would write a copy of all nested media.
    return datasets.Dataset(
        data.data,
        info=info,
        split=data.split,
        indices_table=data._indices,
        fingerprint=Hasher.hash([data._fingerprint, __name__]),
    )


def _closed(feature: Any) -> Any:
    """A type of the same cells that opens no files."""
    if isinstance(feature, Mapping):
        return {name: _closed(inner) for name, inner in feature.items()}
    if isinstance(feature, list | tuple):  # older notations of lists
        return [_closed(inner) for inner in feature]
    if isinstance(feature, datasets.List):
        return datasets.List(_closed(feature.feature), length=feature.length)
    if isinstance(feature, datasets.LargeList):
        return datasets.LargeList(_closed(feature.feature))
    if media_type(feature) is None or not feature.decode:
        return feature
    if isinstance(feature, datasets.Image):
        return EmbeddedImage(mode=feature.mode)
    return dataclasses.replace(feature, decode=False)
