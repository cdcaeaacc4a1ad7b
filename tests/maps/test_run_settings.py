from __future__ import annotations

import pytest

from slidelens.maps.run_settings import (
    HIDDEN,
    RunSettings,
    config_texts,
    grouped,
    settings_warnings,
    value_text,
)


def run(**keys: object) -> RunSettings:
    return RunSettings.model_validate({"config": {"tile": 112, "overlap": 0}, **keys})


@pytest.mark.parametrize(
    "path",
    [
        "/home/doe/w.pt",
        "data/doe_jane.pt",
        r"C:\doe\w.pt",
        "C:/doe",
        r"\\server\doe",
        "~doe",
        "./doe",
        "../doe",
        "file:doe",
    ],
)
def test_what_may_be_a_path_is_not_said(path: str) -> None:
    assert value_text("weights", path) == HIDDEN
    assert value_text("weights", [1, {"of": path}]) == HIDDEN
    assert value_text("weights", {path: 1}) == HIDDEN
    if path != "data/doe_jane.pt":  # networks of plugins are named so
        assert value_text("backbone", path) == HIDDEN


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("backbone", "timm/resnet50.a1_in1k", "timm/resnet50.a1_in1k"),
        ("pooling", "top1", "top1"),
        ("fine", None, "none"),
        ("streamed", True, "true"),
        ("stages", [[1, 0.5], ["head", 2]], '[[1, 0.5], ["head", 2]]'),
    ],
)
def test_other_values_are_said(name: str, value: object, text: str) -> None:
    assert value_text(name, value) == text


def test_slides_that_were_run_alike_stand_together() -> None:
    part = run(region=(0, 0, 5, 5))
    runs = {"a": None, "b": part, "c": run(), "d": run(region=(0, 0, 5, 5)), "e": run()}
    assert [(g.settings, g.slides) for g in grouped({**runs, "f": run()})] == [
        (run(), ["c", "e", "f"]),
        (part, ["b", "d"]),
        (None, ["a"]),
    ]


def test_a_field_that_another_version_does_not_state_is_no_difference() -> None:
    newer = run(config={"tile": 112, "overlap": 0, "glow": 1})
    assert len(grouped({"a": run(), "b": newer})) == 1
    assert config_texts([run(), newer]) == {"tile": "112", "overlap": "0"}
    assert settings_warnings("m", [run(), newer]) == []


def test_regions_and_unlike_settings_are_told_with_numbers_of_slides() -> None:
    assert settings_warnings("m", [run(), run()]) == settings_warnings("m", []) == []
    (only,) = settings_warnings("m", [run(region=(0, 0, 5, 5))] * 2)
    assert only.startswith("m: of all slides only a region was predicted (--region)")
    other = run(region=(0, 0, 5, 5), precision="fp32", config={"tile": 112, "overlap": 28})
    regions, unlike = settings_warnings("m", [run(), run(), other])
    assert regions.startswith("m: of 1 of 3 slides only a region was predicted")
    assert unlike.startswith(
        "m: its slides were run with different settings: region whole slide (2 slides) | 0,0,5,5 "
        "(1 slide); overlap 0 (2 slides) | 28 (1 slide); precision auto (2 slides) | fp32 (1 slide)"
    )
    _, many = settings_warnings("m", [run(region=(n, 0, 5, 5)) for n in range(9)])
    assert "| 3,0,5,5 (1 slide) | 5 others." in many
