"""Feature bags in HDF5, as h5py itself and as other programs' files see them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from sample_results import MPP, SIZE
from slidelens.errors import ResultError
from slidelens.export import export_result
from slidelens.export.clam import ClamBag, read_clam, write_clam
from slidelens.maps.result import Result
from slidelens.maps.run_settings import RunSettings


def test_a_result_becomes_a_bag(tmp_path: Path, result: Result) -> None:
    path = export_result(result, "clam-h5", tmp_path)
    assert path.name == "Fall 7 µ.h5"
    with h5py.File(path, "r") as file:
        features, coords = file["features"], file["coords"]
        assert features.dtype == np.float32
        assert coords.dtype == np.int64
        np.testing.assert_array_equal(features[:], result.features.vectors)
        np.testing.assert_array_equal(coords[:], np.rint(result.tiles.boxes[:, :2]))
        assert dict(coords.attrs) == {
            "name": "Fall 7 µ",
            "patch_size": 256,
            "patch_size_level0": round(result.tiles.boxes[0, 2]),
            "overlap": 0,
            "spacing_um_px": 0.5,
            "level0_mpp": MPP.x,
            "level0_magnification": pytest.approx(39.57, abs=0.01),
            "target_magnification": 20,
            "level0_width": SIZE.width,
            "level0_height": SIZE.height,
            "region": "0,10,2000,1500.5",
        }


def test_a_bag_says_that_it_is_of_a_region_and_not_that_it_is_of_all(
    tmp_path: Path, result: Result
) -> None:
    assert read_clam(export_result(result, "clam-h5", tmp_path / "a.h5")).facts["region"]
    for region in (None, (-5.0, 0.0, SIZE.width + 9.0, float(SIZE.height))):
        result.settings = RunSettings(region=region)
        path = export_result(result, "clam-h5", tmp_path / "a.h5", overwrite=True)
        assert "region" not in read_clam(path).facts


def test_what_was_written_reads_back_exactly(tmp_path: Path, result: Result) -> None:
    bag = read_clam(export_result(result, "clam-h5", tmp_path))
    np.testing.assert_array_equal(bag.boxes, result.tiles.boxes)
    np.testing.assert_array_equal(bag.features, result.features.vectors)
    assert bag.facts["backbone"] == "resnet18"
    assert (bag.facts["tile"], bag.facts["mpp"], bag.facts["overlap"]) == ("256", "0.5", "0")


def test_all_that_made_the_vectors_is_kept(tmp_path: Path) -> None:
    facts = {"tile": "64", "overlap": "8", "mpp": "0.25", "orientations": "8"}
    facts |= {"backbone": "resnet18", "backbone_sha256": "a", "stain_normalization": "macenko"}
    bag = ClamBag(np.zeros((1, 4)), np.zeros((1, 2)), facts)
    write_clam(tmp_path / "a.h5", bag, "a", (1, 1), 0.5)
    assert facts.items() <= read_clam(tmp_path / "a.h5").facts.items()


def test_files_of_other_programs(tmp_path: Path) -> None:
    """TRIDENT names magnifications, older ones add an axis, CLAM's own hold nothing but the two."""
    features, coords = np.ones((1, 3, 5), np.float64), np.array([[[0, 0], [512, 0], [0, 512]]])
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["features"], file["coords"] = features, coords
        file["coords"].attrs.update(
            patch_size=256, patch_size_level0=512, target_magnification=20, name="a"
        )
    bag = read_clam(tmp_path / "a.h5")
    assert bag.boxes.tolist() == [[0, 0, 512, 512], [512, 0, 512, 512], [0, 512, 512, 512]]
    assert bag.features.shape == (3, 5)
    assert bag.features.dtype == np.float32
    assert (bag.facts["tile"], bag.facts["mpp"]) == ("256", "0.5")
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["features"], file["coords"] = features[0], coords[0]
    assert (read_clam(tmp_path / "b.h5").boxes[:, 2:] == 512).all()  # they are taken to touch
    with h5py.File(tmp_path / "c.h5", "w") as file:
        file["features"], file["coords"] = features[0], coords[0]
        file["coords"].attrs.update(patch_size=200, patch_level=1, downsample=[4.0, 4.0])
    assert (read_clam(tmp_path / "c.h5").boxes[:, 2:] == 800).all()


def test_pieces_of_tissue_with_grids_of_their_own_do_not_shrink_tiles(tmp_path: Path) -> None:
    y, x = np.divmod(np.arange(12), 4)
    pieces = [np.stack([x, y], 1) * 256 + shift for shift in ((0, 0), (3, 77), (2051, 1000))]
    coords = np.concatenate([pieces[0], pieces[1] + (2000, 0), pieces[2]])
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["features"], file["coords"] = np.ones((len(coords), 5)), coords
    assert (read_clam(tmp_path / "a.h5").boxes[:, 2:] == 256).all()
    with h5py.File(tmp_path / "one.h5", "w") as file:
        file["features"], file["coords"] = np.ones((1, 5)), coords[:1]
    assert read_clam(tmp_path / "one.h5").boxes.tolist() == [[0, 0, 0, 0]]


def test_what_is_no_bag_is_told(tmp_path: Path) -> None:
    (tmp_path / "text.h5").write_text("no")
    with h5py.File(tmp_path / "patches.h5", "w") as file:
        file["coords"] = np.zeros((3, 2))
    with h5py.File(tmp_path / "unequal.h5", "w") as file:
        file["coords"], file["features"] = np.zeros((3, 2)), np.zeros((4, 8))
    for name, match in (
        ("absent", "cannot be read as HDF5"),
        ("text", "cannot be read as HDF5"),
        ("patches", r"no dataset features; expected .*, found coords"),
        ("unequal", r"features \(4, 8\) and coords \(3, 2\) are not a bag"),
    ):
        with pytest.raises(ResultError, match=match):
            read_clam(tmp_path / f"{name}.h5")


@pytest.mark.parametrize(
    ("name", "given", "match"),
    [
        ("features", h5py.ExternalLink("good.h5", "features"), "not a dataset in this file"),
        ("features", h5py.ExternalLink("gone.h5", "features"), "not a dataset in this file"),
        ("coords", h5py.SoftLink("/nothing"), "not a dataset in this file"),
        ("boxes", h5py.ExternalLink("good.h5", "coords"), "not a dataset in this file"),
        ("features", h5py.Empty("f4"), "features is empty"),
        ("features", np.full((4, 8), "a", "S1"), "is of type .*expected real numbers"),
        ("features", np.ones((4, 8), complex), "expected real numbers"),
        ("features", np.full((4, 8), np.inf, np.float16), "features are not all finite"),
        ("features", np.full((4, 8), 1e300), "features are not all finite"),
        ("coords", np.full((4, 2), np.nan), "coords, .* are not all finite"),
        ("patch_size_level0", np.nan, "patch_size_level0 is nan, expected a number above 0"),
        ("patch_size_level0", -4, "patch_size_level0 is -4, expected a number above 0"),
        ("patch_size_level0", "448 px", "patch_size_level0 is 448 px, expected a number"),
        ("target_magnification", 0, "target_magnification is 0, expected a number"),
    ],
)
def test_damaged_and_hostile_bags_are_told(
    tmp_path: Path, name: str, given: Any, match: str
) -> None:
    """HDF5 may name other files, which are not read: who sent the bag does not know this disk."""
    path = tmp_path / "bag.h5"
    for file_name in ("good.h5", "bag.h5"):
        with h5py.File(tmp_path / file_name, "w") as file:
            file["coords"], file["features"] = np.zeros((4, 2)), np.zeros((4, 8))
            file["coords"].attrs["patch_size_level0"] = 448
    with h5py.File(path, "r+") as file:
        if name in ("features", "coords", "boxes"):
            if name in file:
                del file[name]
            file[name] = given
        else:
            file["coords"].attrs[name] = given
    with pytest.raises(ResultError, match=match):
        read_clam(path)
    assert len(read_clam(tmp_path / "good.h5").features) == 4


@pytest.mark.parametrize("side", [448, np.array([448.0, 448.0]), "448", np.bytes_(b"448")])
def test_a_side_may_be_written_as_text(tmp_path: Path, side: Any) -> None:
    with h5py.File(tmp_path / "bag.h5", "w") as file:
        file["coords"], file["features"] = np.zeros((4, 2)), np.ones((4, 8), np.float32)
        file["coords"].attrs["patch_size_level0"] = side
    assert (read_clam(tmp_path / "bag.h5").boxes[:, 2:] == 448).all()


def test_a_dataset_whose_numbers_lie_in_another_file_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(bytes(128))
    with h5py.File(tmp_path / "bag.h5", "w") as file:
        file["coords"] = np.zeros((4, 2))
        elsewhere = [(str(tmp_path / "other"), 0, 128)]
        file.create_dataset("features", (4, 8), np.float32, external=elsewhere)
    with pytest.raises(ResultError, match="not a dataset in this file"):
        read_clam(tmp_path / "bag.h5")


def test_without_h5py_the_extra_is_named(
    tmp_path: Path, result: Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ResultError, match=r"pip install 'slidelens\[bags\]'"):
        export_result(result, "clam-h5", tmp_path)
    bag = ClamBag(np.zeros((1, 4)), np.zeros((1, 2)))
    with pytest.raises(ResultError, match="h5py"):
        write_clam(tmp_path / "a.h5", bag, "a", (1, 1), 0.5)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("chunks", [None, (256, 8)])
def test_vectors_that_were_never_written_are_refused_and_take_no_memory(
    tmp_path: Path, chunks: tuple[int, int] | None
) -> None:
    path = tmp_path / "bag.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("features", (10**12, 8), "f4", chunks=chunks)
        file["coords"] = np.zeros((1, 2))
    with pytest.raises(ResultError, match=r"features \(10{12}, 8\) was written in part only"):
        read_clam(path)
