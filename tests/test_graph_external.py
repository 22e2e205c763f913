"""Data beside the model is read, and nothing outside the model's folder ever is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper

from graph_samples import model_of
from tilewright.errors import ModelError
from tilewright.graph.onnx_import import import_model

VALUE = np.arange(50_000, dtype=np.float32)


def model_reading(location: str, count: int = 4, **entries: Any) -> ModelProto:
    """A model whose one constant of `count` float32 lies at `location`."""
    model = model_of([helper.make_node("Identity", ["c"], ["y"])], {}, ["y"])
    tensor = model.graph.initializer.add(name="c", data_type=TensorProto.FLOAT, dims=[count])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=str(value))
    return model


def folder_with(tmp_path: Path, model: ModelProto) -> Path:
    """`tmp_path/model` with the model and a data file; a secret lies beside the folder."""
    folder = tmp_path / "model"
    (folder / "parts").mkdir(parents=True)
    for name in ("model/data", "model/parts/data", "secret"):
        (tmp_path / name).write_bytes(VALUE.tobytes())
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return folder / "model.onnx"


@pytest.mark.parametrize("location", ["data", "parts/data", "./parts/data"])
@pytest.mark.parametrize(("first", "count"), [(0, 4), (7, 100), (1024, 20_000), (0, 50_000)])
def test_regions_of_files_are_read(tmp_path: Path, location: str, first: int, count: int) -> None:
    model = model_reading(location, count, offset=4 * first, length=4 * count)
    constant = import_model(folder_with(tmp_path, model)).constants["c"]
    np.testing.assert_array_equal(constant, VALUE[first : first + count])
    assert constant.flags.aligned
    assert not constant.flags.writeable


def test_without_a_length_the_rest_of_the_file_is_meant(tmp_path: Path) -> None:
    model = model_reading("data", 10, offset=VALUE.nbytes - 40)
    path = folder_with(tmp_path, model)
    np.testing.assert_array_equal(import_model(path).constants["c"], VALUE[-10:])


def test_models_that_onnx_saves_with_external_data_come_in(tmp_path: Path) -> None:
    weight = np.ones((50, 50), np.float32)
    nodes = [helper.make_node("Identity", ["c"], ["y"])]
    model = model_of(nodes, {}, ["y"], {"c": weight, "small": np.array([1, 2])})
    onnx.save_model(model, tmp_path / "m.onnx", save_as_external_data=True, size_threshold=0)
    graph = import_model(tmp_path / "m.onnx")
    np.testing.assert_array_equal(graph.constants["c"], weight)


@pytest.mark.parametrize(
    "location",
    [
        "../secret",
        "parts/../../secret",
        "parts/../data",
        "/etc/passwd",
        "C:\\data",
        "..\\secret",
        "\\\\server\\share",
        "",
        ".",
        "parts",
        "missing",
        "data\0",
        "x" * 5000,
        "loop",
        "link_out",
        "folder_out/secret",
        "pipe",
    ],
)
def test_unsafe_locations_are_refused(tmp_path: Path, location: str) -> None:
    path = folder_with(tmp_path, model_reading(location))
    (path.parent / "link_out").symlink_to(tmp_path / "secret")
    (path.parent / "folder_out").symlink_to(tmp_path)
    (path.parent / "loop").symlink_to("loop")
    os.mkfifo(path.parent / "pipe")
    with pytest.raises(ModelError, match="'c'"):
        import_model(path)


def test_links_inside_the_folder_are_followed(tmp_path: Path) -> None:
    path = folder_with(tmp_path, model_reading("link", length=16))
    (path.parent / "link").symlink_to("parts/data")
    np.testing.assert_array_equal(import_model(path).constants["c"], VALUE[:4])


@pytest.mark.parametrize(
    "entries",
    [
        {"offset": VALUE.nbytes - 8, "length": 16},
        {"offset": 1 << 60, "length": 16},
        {"offset": 1 << 60},
        {"length": 1 << 62},
        {"offset": -4, "length": 16},
        {"offset": "0x10"},
        {"length": 12},
        {"length": "9" * 5000},
        {"offset": "\u0661"},
    ],
)
def test_regions_must_lie_in_the_file_and_match_the_shape(
    tmp_path: Path, entries: dict[str, Any]
) -> None:
    with pytest.raises(ModelError, match="'c'"):
        import_model(folder_with(tmp_path, model_reading("data", **entries)))


def test_without_a_path_the_message_says_what_to_do() -> None:
    model = model_reading("data", length=16)
    for source in (model, model.SerializeToString()):
        with pytest.raises(ModelError, match="pass the model's path"):
            import_model(source)
