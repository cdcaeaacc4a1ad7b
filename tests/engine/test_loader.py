from __future__ import annotations

import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from slidelens.engine import loader
from slidelens.engine.loader import SlideView, suited_batch
from slidelens.errors import MissingMppError, SlideError
from slidelens.geometry import Box
from slidelens.slide.array import from_array
from slidelens.tiling.grid import GridSpec
from slidelens.tiling.stain import StainNormalizer, Stains, slide_stains
from slidelens.tiling.tissue import TissueSettings

WHOLE = TissueSettings(method="whole")


def picture(height: int = 200, width: int = 330, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)


def readers() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith("slidelens-read")]


@pytest.mark.parametrize("batch_size", [1, 4, 1000])
@pytest.mark.parametrize("mpp", [0.5, 0.73])
def test_tiles_are_those_of_the_slide_in_the_order_of_the_grid(batch_size, mpp):
    with from_array(picture(), mpp=0.5) as slide, SlideView(slide, tissue=WHOLE, threads=3) as view:
        grid = view.grid(GridSpec(tile=32, mpp=mpp, overlap=5))
        batches = list(view.batches(grid, batch_size))
        boxes = np.concatenate([b.boxes for b in batches])
        images = torch.cat([b.images for b in batches])
        assert np.array_equal(boxes, grid.boxes)
        assert images.dtype == torch.uint8
        assert images.shape == (len(grid), 3, 32, 32)
        for box, image in zip(boxes, images, strict=True):
            expected = slide.read(Box(*box), mpp)
            assert np.array_equal(image.permute(1, 2, 0).numpy(), expected)
        assert [len(b.boxes) for b in batches[:-1]] == [batch_size] * (len(batches) - 1)


@pytest.mark.parametrize(("mpp", "stain"), [(0.5, False), (0.73, False), (0.5, True)])
def test_stored_neighbours_are_read_as_one_box_and_no_others(monkeypatch, mpp, stain):
    with from_array(picture(), mpp=0.5) as slide, SlideView(slide, tissue=WHOLE, threads=2) as view:
        grid = view.grid(GridSpec(tile=32, mpp=mpp, overlap=5))
        order = [6, 7, 8, 3, 0, 2, 1, *range(9, len(grid)), 4, 4, 5]
        original, read = slide.read, []
        if stain:
            view.normalizer = lambda pixels: 255 - pixels
        monkeypatch.setattr(
            slide, "read", lambda box, mpp=None: read.append(box) or original(box, mpp)
        )
        (batch,) = view.batches(grid.take(order), 1000)
        if mpp == 0.5 and not stain:
            assert len(read) < len(order) / 2
        else:  # what resampling and normalising hold would grow with the box
            assert len(read) == len(order)
        assert all(box.h == grid.boxes[0, 3] for box in read)
        for number, image in zip(order, batch.images, strict=True):
            expected = original(Box(*grid.boxes[number]), mpp)
            expected = 255 - expected if stain else expected
            assert np.array_equal(image.permute(1, 2, 0).numpy(), expected)


def test_boxes_say_where_tiles_are_whatever_their_numbers():
    with from_array(picture(), mpp=0.5) as slide, SlideView(slide, tissue=WHOLE, threads=2) as view:
        grid = view.grid(GridSpec(tile=32, mpp=0.5))
        boxes = grid.boxes + np.random.default_rng(0).integers(0, 2, grid.boxes.shape) * [
            3,
            5,
            0,
            0,
        ]
        (batch,) = view.batches(replace(grid, boxes=boxes), 1000)
        for box, image in zip(boxes, batch.images, strict=True):
            assert np.array_equal(image.permute(1, 2, 0).numpy(), slide.read(Box(*box), 0.5))


def test_large_tiles_are_read_one_by_one(monkeypatch):
    with (
        from_array(picture(2100, 4200), mpp=1.0) as slide,
        SlideView(slide, tissue=WHOLE, batch_size=15) as view,
    ):
        grid, read, original = view.grid(GridSpec(1024, 1.0)), [], slide.read
        monkeypatch.setattr(
            slide, "read", lambda box, mpp=None: read.append(box) or original(box, mpp)
        )
        list(view.batches(grid, 15))
        assert len(read) == len(grid) == 15


def test_reading_begins_before_the_first_batch_is_asked_for(monkeypatch):
    with from_array(picture(), mpp=1.0) as slide, SlideView(slide, tissue=WHOLE) as view:
        began, original = threading.Event(), slide.read
        monkeypatch.setattr(slide, "read", lambda box, mpp=None: began.set() or original(box, mpp))
        batches = view.batches(view.grid(GridSpec(32, 1.0)), 4)
        assert began.wait(20)
        assert sum(len(batch.boxes) for batch in batches) == len(view.grids[0])


def test_batches_are_channels_last_without_a_copy():
    with from_array(picture(), mpp=1.0) as slide, SlideView(slide, tissue=WHOLE) as view:
        batch = next(view.batches(view.grid(GridSpec(32, 1.0)), 4))
        assert batch.images.is_contiguous(memory_format=torch.channels_last)


def test_a_cpu_gets_small_batches_unless_told():
    with from_array(np.zeros((2240, 2240, 3), np.uint8), mpp=1.0) as slide:
        for given, expected in ((None, 8), (20, 20)):
            with SlideView(slide, tissue=WHOLE, batch_size=given) as view:
                batch = next(view.batches(view.grid(GridSpec(224, 1.0)), 32))
                assert len(batch.boxes) == view.batch_in_use == expected


@pytest.mark.parametrize(
    ("free", "side", "asked", "expected"),
    [(7, 224, 32, 32), (9, 224, 32, 256), (9, 224, 400, 400), (9, 512, 32, 49)],
)
def test_a_gpu_with_free_memory_gets_large_batches(monkeypatch, free, side, asked, expected):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free << 30, 80 << 30))
    with torch.no_grad():
        assert suited_batch(torch.device("cuda", 0), asked, side * side * 3) == expected
    assert suited_batch(torch.device("cuda", 0), asked, side * side * 3) == asked  # in training


def test_the_view_s_batch_size_overrides_the_model_s():
    with (
        from_array(picture(), mpp=1.0) as slide,
        SlideView(slide, tissue=WHOLE, batch_size=3) as view,
    ):
        assert len(next(view.batches(view.grid(GridSpec(32, 1.0)), 10)).boxes) == 3


def test_background_is_never_read(monkeypatch):
    image = np.full((512, 512, 3), 255, np.uint8)
    image[128:256, 128:256] = (180, 60, 140)
    with from_array(image, mpp=1.0) as slide, SlideView(slide, tissue=None) as view:
        grid = view.grid(GridSpec(32, 1.0, min_tissue=0.5))
        read = []
        original = slide.read
        monkeypatch.setattr(
            slide, "read", lambda box, mpp=None: read.append(box) or original(box, mpp)
        )
        list(view.batches(grid, 4))
    assert 0 < len(read) == len(grid) < 40
    assert all(b.x >= 96 and b.right <= 288 and b.y >= 96 and b.bottom <= 288 for b in read)


def test_reading_ahead_is_bounded(monkeypatch):
    monkeypatch.setattr(loader, "_TURN_BYTES", 24 * 32 * 32 * 3)
    with (
        from_array(picture(640, 640), mpp=1.0) as slide,
        SlideView(slide, tissue=WHOLE, threads=2) as view,
    ):
        started = []
        original = slide.read
        monkeypatch.setattr(
            slide, "read", lambda box, mpp=None: started.append(box) or original(box, mpp)
        )
        batches = view.batches(view.grid(GridSpec(32, 1.0)), 8)
        next(batches)
        time.sleep(0.3)  # a model that is slower than the readers
        assert len(started) <= 8 * 4
        batches.close()


def test_beside_slow_storage_reading_goes_on_while_a_cpu_computes(monkeypatch):
    monkeypatch.setattr(loader, "_TURN_BYTES", 24 * 32 * 32 * 3)
    with (
        from_array(picture(640, 640), mpp=1.0) as slide,
        SlideView(slide, tissue=WHOLE, threads=2) as view,
    ):
        started = []
        original = slide.read

        def slow(box, mpp=None):
            started.append(box)
            time.sleep(0.005)  # storage that answers late
            return original(box, mpp)

        grid = view.grid(GridSpec(32, 1.0))
        monkeypatch.setattr(slide, "read", slow)
        batches = view.batches(grid, 8)
        for _ in range(5):  # the first turn, and one more
            next(batches)
        before = len(started)
        time.sleep(0.3)  # the model computes
        assert len(started) > before
        batches.close()


def test_closing_the_iterator_stops_the_readers(monkeypatch):
    before = len(readers())
    with from_array(picture(640, 640), mpp=1.0) as slide:
        view = SlideView(slide, tissue=WHOLE, threads=2)
        original = slide.read

        begun = []

        def slow(box, mpp=None):
            begun.append(box)
            time.sleep(0.02)  # a disk that is slower than the model
            return original(box, mpp)

        batches = view.batches(view.grid(GridSpec(32, 1.0)), 8)
        monkeypatch.setattr(slide, "read", slow)
        next(batches)
        before_closing = len(begun)
        batches.close()
        view.close()
        assert len(begun) <= before_closing + 4  # those under way, not the 24 queued
    assert len(readers()) == before


@pytest.mark.parametrize("batch_size", [4, 1000])
def test_an_error_in_a_reader_names_slide_and_place(monkeypatch, batch_size):
    with (
        from_array(picture(), mpp=1.0, name="broken.svs") as slide,
        SlideView(slide, tissue=WHOLE) as view,
    ):
        original = slide.read

        def fail(box, mpp=None):
            if box.x <= 64 < box.right and box.y == 32:
                raise RuntimeError("JPEG data is cut")
            return original(box, mpp)

        grid = view.grid(GridSpec(32, 1.0))
        monkeypatch.setattr(slide, "read", fail)
        with pytest.raises(SlideError, match=r"broken.*tile at x=64, y=32 .*JPEG data is cut"):
            list(view.batches(grid, batch_size))


def test_tissue_is_found_once(monkeypatch):
    calls = []
    original = loader.tissue_mask
    monkeypatch.setattr(loader, "tissue_mask", lambda *a: calls.append(a) or original(*a))
    with from_array(picture(), mpp=1.0) as slide:
        with SlideView(slide) as view:
            view.grid(GridSpec(32, 1.0))
            view.grid(GridSpec(16, 2.0))
            mask = view.tissue
        with SlideView(slide, tissue=mask) as view:
            assert view.tissue is mask
    assert len(calls) == 1
    assert len(view.grids) == 0


def test_region_outside_the_slide():
    with from_array(picture(), mpp=1.0) as slide, pytest.raises(SlideError, match="lies outside"):
        SlideView(slide, region=Box(5000, 0, 10, 10))


def test_slide_without_resolution():
    with from_array(picture()) as slide, pytest.raises(MissingMppError):
        SlideView(slide)


@pytest.mark.gpu
def test_batches_arrive_whole_on_the_gpu():
    device = torch.device("cuda", 0)
    with from_array(picture(1024, 1024), mpp=1.0) as slide:
        with SlideView(slide, tissue=WHOLE) as view:
            expected = torch.cat([b.images for b in view.batches(view.grid(GridSpec(64, 1.0)), 16)])
        with SlideView(slide, tissue=WHOLE, device=device) as view:
            got = [b.images.float() for b in view.batches(view.grid(GridSpec(64, 1.0)), 16)]
        assert torch.equal(torch.cat(got).cpu(), expected.float())


def test_stains_are_normalised_in_every_way_of_reading():
    amounts = np.random.default_rng(0).beta(0.4, 0.8, (512, 512, 2)) * (1.4, 0.9)
    stains = Stains.of([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]], [1.4, 0.9])
    pixels = np.clip(256 * np.exp(-amounts @ stains.colours) - 0.5, 0, 255).astype(np.uint8)
    slide = from_array(pixels, mpp=1.0)
    with SlideView(slide, tissue=WHOLE, stain="macenko") as view:
        plain = slide.read(Box(0, 0, 128, 128), 1.0)
        expected = StainNormalizer(slide_stains(slide, view.tissue))(plain)
        assert np.abs(expected.astype(int) - plain).mean() > 5
        assert np.array_equal(view.read(Box(0, 0, 128, 128), 1.0), expected)
        batch = next(view.batches(view.grid(GridSpec(128, 1.0)), 1))
        assert np.array_equal(batch.images[0].permute(1, 2, 0).numpy(), expected)
