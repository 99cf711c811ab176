"""verl's data set opens no file or URL that a cell names, and takes images from their bytes as before."""

import io
from types import SimpleNamespace

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hostile_server import HostileServer, http
from omegaconf import OmegaConf
from PIL import Image
from verl.utils.dataset.rl_dataset import RLHFDataset

from verl_gsd.run.checks.data_reading import DataReport, open_files

TEXT = datasets.Value("string")
CHAT = datasets.List({"role": TEXT, "content": TEXT})
MESSAGES = [{"role": "user", "content": "What is in <image>?"}]


@pytest.fixture(autouse=True)
def cache_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(scope="module")
def png():
    content = io.BytesIO()
    Image.new("RGBA", (3, 2), (1, 2, 3, 200)).save(content, "PNG")
    return content.getvalue()


def write(folder, cells, **types):
    """A Parquet file with one row, whose metadata has the types of the columns. Nothing is opened to write it."""
    features = {"prompt": CHAT, "data_source": TEXT, "reward_model": datasets.Json(), "extra_info": {"index": TEXT}}
    row = {
        "prompt": MESSAGES,
        "data_source": "x",
        "reward_model": '{"ground_truth": "2"}',
        "extra_info": {"index": "1"},
    }
    path = str(folder / "train.parquet")
    pq.write_table(pa.Table.from_pylist([row | cells], datasets.Features(features | types).arrow_schema), path)
    return path


def read(path, processor=None, **settings):
    config = {"filter_overlong_prompts": False, "max_prompt_length": 64, **settings}
    tokenizer = SimpleNamespace(apply_chat_template=lambda chat, **_: [1])
    return RLHFDataset(path, tokenizer, OmegaConf.create(config), processor, max_samples=1)


@pytest.mark.parametrize("filtered", [False, True])
def test_a_column_that_nobody_reads_opens_no_url_and_no_file(tmp_path, png, filtered):
    private = tmp_path / "private.png"
    private.write_bytes(png)
    with HostileServer(http(200, png)) as server:
        names = (f"{server.url}/x", f"zip://a::{server.url}/y", str(private))
        cells = {"note": {"in": [{"bytes": None, "path": name} for name in names]}}
        cells["sound"] = {"bytes": b"1", "path": None}
        path = write(tmp_path, cells, note={"in": datasets.List(datasets.Image())}, sound=datasets.Audio())
        row = read(path, filter_overlong_prompts=filtered, filter_overlong_prompts_workers=None)[0]
        assert server.headers == []
        assert {name: row[name] for name in cells} == cells
        assert row["reward_model"] == {"ground_truth": "2"}, "Json is parsed as before"


@pytest.mark.parametrize("name", [None, "picture.png"])
def test_the_model_sees_an_image_with_bytes_as_before(tmp_path, png, name):
    path = write(tmp_path, {"images": [{"bytes": png, "path": name}]}, images=datasets.List(datasets.Image()))
    (before,) = datasets.load_dataset("parquet", data_files=path)["train"][0]["images"]
    data = read(path, processor=SimpleNamespace())
    ((_, of_image, _),) = (message["content"] for message in data[0]["raw_prompt"])
    assert of_image.keys() == {"type", "image"} and of_image["image"].mode == "RGB"
    assert of_image["image"].tobytes() == before.convert("RGB").tobytes()


def test_an_image_that_is_only_named_is_not_opened_for_the_model(tmp_path, png):
    with HostileServer(http(200, png)) as server:
        cells = {"images": [{"bytes": None, "path": f"{server.url}/x"}]}
        path = write(tmp_path, cells, images=datasets.List(datasets.Image()))
        with pytest.raises(OSError, match="cannot identify image file"):
            read(path, processor=SimpleNamespace())[0]
        assert server.headers == []


def test_the_check_before_a_run_opens_nothing(compose_fast, tiny_task, tmp_path, png):
    types = {"index": TEXT, "note": datasets.Image()}
    with HostileServer(http(200, png)) as server:
        cells = {"extra_info": {"index": "1", "note": {"bytes": None, "path": f"{server.url}/x"}}}
        path = write(tmp_path, cells, extra_info=types)
        words = ("algo=grpo", "task=arithmetic", "hardware=cpu", f"task.directory={tiny_task}")
        config, report = compose_fast(*words, f"data.train_files={path}")[0], DataReport()
        (file,) = open_files("data.train_files", config, None, report)
        assert next(file.rows(["extra_info"])) == [cells]
        assert server.headers == [] and report.problems == []
