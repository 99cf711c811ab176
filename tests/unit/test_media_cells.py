"""Rows of somebody else's data set are read without opening the files and URLs that their cells name."""

import io
import logging

import datasets
import pytest
from hostile_server import HostileServer, http
from PIL import Image

from verl_gsd import media_cells
from verl_gsd.media_cells import EmbeddedImage, media_type, without_opened_files

MEDIA = [datasets.Image(), datasets.Audio(), datasets.Video(), datasets.Pdf(), datasets.Nifti(), datasets.Mesh()]
MEDIA += [datasets.BioSequence(), datasets.BioStructure()]


def content_of(image, kind="PNG", **options):
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


PIXEL = Image.new("RGB", (1, 1), (1, 2, 3))


@pytest.fixture
def private(tmp_path):
    PIXEL.save(tmp_path / "private.png")
    return {"bytes": None, "path": str(tmp_path / "private.png")}


def table(column, feature):
    """A data set whose column has these cells, as a file has them: nothing was opened to write them."""
    stored = datasets.Dataset.from_dict({"cell": column}, features=datasets.Features({"cell": as_dicts(feature)}))
    return stored.cast(datasets.Features({"cell": feature}))


def as_dicts(feature):
    if isinstance(feature, dict):
        return {name: as_dicts(inner) for name, inner in feature.items()}
    if isinstance(feature, datasets.List):
        return datasets.List(as_dicts(feature.feature))
    plain = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    return plain if media_type(feature) else feature


def nested(feature):
    return {"in": datasets.List({"deep": feature})}


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("feature", MEDIA, ids=lambda feature: type(feature).__name__)
def test_what_a_cell_names_is_not_opened(private, feature, streamed):
    data = table([private], feature)
    data = without_opened_files(data.to_iterable_dataset() if streamed else data)
    assert next(iter(data)) == {"cell": private}
    data = table([{"in": [{"deep": private}]}], nested(feature))
    data = without_opened_files(data.to_iterable_dataset() if streamed else data)
    assert next(iter(data)) == {"cell": {"in": [{"deep": private}]}}


def test_every_type_that_opens_files_is_known():
    """Json parses the text of its cell. A further type with a decode_example belongs into MEDIA, or beside Json."""
    types = datasets.features.features._FEATURE_TYPES.values()
    assert {kind for kind in types if hasattr(kind, "decode_example")} == {*map(type, MEDIA), datasets.Json}


def test_a_url_is_not_requested(tmp_path, monkeypatch):
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password SECRET\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with HostileServer(http(200, content_of(PIXEL))) as server:
        urls = [f"{server.url}/x", f"zip://a::{server.url}/x"]
        rows = [{"bytes": None, "path": url} for url in urls]
        assert without_opened_files(table(rows, datasets.Image()))["cell"][:] == rows
        assert server.headers == []


def test_threads_that_open_files_of_the_hub_are_ended(private):
    """``datasets`` starts them when it streams from the hub."""
    streamed = table([private], datasets.Image()).to_iterable_dataset().decode(num_threads=2)
    rows = without_opened_files(streamed).select_columns(["cell"])
    assert next(iter(rows)) == {"cell": private}


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("name", ["private.png", None])
def test_an_image_with_bytes_is_the_image_that_datasets_makes_of_it(tmp_path, wrapped, name):
    """Also one that is to be turned, or in another mode."""
    turned = Image.Exif()
    turned[0x0112] = 6
    image = Image.new("RGB", (3, 2))
    image.putpixel((0, 0), (255, 0, 0))
    cell = {"bytes": content_of(image, exif=turned), "path": name}
    feature = datasets.Image(mode="L")
    data = table([[cell]], datasets.List(feature)) if wrapped else table([cell], feature)
    expected, actual = data[0]["cell"], without_opened_files(data)[0]["cell"]
    if wrapped:
        (expected,), (actual,) = expected, actual
    assert actual.size == (2, 3) and actual.mode == "L"
    assert actual.tobytes() == expected.tobytes()


def test_rows_keep_their_order_and_their_types_on_the_disk(private):
    cells = [{"bytes": content_of(PIXEL), "path": str(number)} for number in range(4)]
    data = table(cells, datasets.Image(decode=True)).select([3, 1])
    read = without_opened_files(data)
    assert len(read) == 2 and read.features.type == data.features.type
    assert [cell["path"] for cell in read.cast_column("cell", datasets.Image(decode=False))["cell"]] == ["3", "1"]
    assert isinstance(read.filter(lambda row: row["cell"].size == (1, 1)).features["cell"], EmbeddedImage)
    assert read._fingerprint != data._fingerprint, "a cache of the one must not be used for the other"


def test_data_without_media_is_the_same_object_and_json_is_parsed():
    data = datasets.Dataset.from_dict({"a": ["1"], "b": [[1]]})
    assert without_opened_files(data) is data
    features = datasets.Features({"a": datasets.Json(), "b": datasets.Image()})
    mixed = datasets.Dataset.from_dict({"a": [{"x": 1}], "b": [None]}, features=features)
    for read in (mixed, mixed.to_iterable_dataset()):
        assert next(iter(without_opened_files(read))) == {"a": {"x": 1}, "b": None}


def test_named_images_lead_to_one_warning(private, caplog):
    media_cells._warn_of_named_images.cache_clear()
    with caplog.at_level(logging.WARNING):
        list(without_opened_files(table([private, private], datasets.Image())))
    (record,) = caplog.records
    assert "Store the content of each image in the data file" in record.getMessage()
