"""SmoothGrad of a streamed trunk is that of the whole image: any tile, no seams."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.nn.streaming_oracle import relative_error, settle
from torch import Tensor, nn

from slidelens.errors import StreamingError
from slidelens.nn.noise import PositionNoise
from slidelens.nn.smoothgrad import image_sd, iter_smoothgrad, smoothgrad
from slidelens.nn.streaming import StreamingTrunk
from slidelens.nn.windows import Rect

SIZE = (83, 101)


class Head(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, 2)

    def forward(self, features: Tensor) -> Tensor:
        return self.linear(features.amax((2, 3)))


@pytest.fixture
def network() -> tuple[nn.Module, nn.Module]:
    trunk = nn.Sequential(
        nn.Conv2d(3, 6, 5, stride=2, padding=2), nn.BatchNorm2d(6), nn.ReLU(True),
        nn.MaxPool2d(3, 2, 1), nn.Conv2d(6, 8, 3, padding=1), nn.SiLU(),
    )  # fmt: skip
    return settle(trunk), settle(Head(8), 1)


@pytest.fixture
def image() -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(1, 3, *SIZE, generator=generator, dtype=torch.float64)


def unstreamed(
    network: tuple[nn.Module, nn.Module], image: Tensor, samples: int, quantity: str
) -> Tensor:
    trunk, head = network
    total = torch.zeros(SIZE, dtype=image.dtype)
    for sample in range(samples):
        noise = PositionNoise(0.05 * float(image.std(correction=0)), 0, sample)
        noisy = (image + noise(Rect(0, SIZE[0], 0, SIZE[1]), image)).requires_grad_()
        (grad,) = torch.autograd.grad(head(trunk(noisy))[0, 1], noisy)
        values = {
            "signed": grad, "absolute": grad.abs(), "squared": grad**2, "input": grad * image,
        }[quantity]  # fmt: skip
        total += values[0].mean(0) / samples
    return total


@pytest.mark.parametrize("scheme", ["seam", "halo"])
@pytest.mark.parametrize("tile", [(40, 44), (64, 48), (83, 60)])
@pytest.mark.parametrize("quantity", ["signed", "absolute", "squared", "input"])
def test_equals_unstreamed(
    network: tuple[nn.Module, nn.Module], image: Tensor, tile: tuple[int, int], scheme: str,
    quantity: str,
) -> None:  # fmt: skip
    trunk = StreamingTrunk(network[0], tile, scheme=scheme)
    found = smoothgrad(trunk, network[1], image, 1, samples=3, quantity=quantity)
    assert relative_error(found, unstreamed(network, image, 3, quantity)) <= 1e-10


def test_error_at_seams_is_no_larger_than_elsewhere_in_float32(
    network: tuple[nn.Module, nn.Module], image: Tensor
) -> None:
    exact = unstreamed(network, image, 2, "signed")
    network = (network[0].float(), network[1].float())
    trunk = StreamingTrunk(network[0], 32)
    found = smoothgrad(trunk, network[1], image.float(), 1, samples=2)
    error = (found.double() - exact).abs()
    whole = unstreamed(network, image.float(), 2, "signed").double()
    assert float(error.max()) <= 2 * float((whole - exact).abs().max())
    seam = torch.zeros(SIZE, dtype=torch.bool)
    seam[31::32] = seam[32::32] = True
    seam[:, 31::32] = seam[:, 32::32] = True
    assert float(error[seam].mean()) <= 2 * float(error[~seam].mean())


@pytest.mark.parametrize("cell", [4, 7])
def test_cells_are_means_of_pixels(
    network: tuple[nn.Module, nn.Module], image: Tensor, cell: int
) -> None:
    trunk = StreamingTrunk(network[0], 48)
    fine = smoothgrad(trunk, network[1], image, 0, samples=1)
    coarse = smoothgrad(trunk, network[1], image, 0, samples=1, cell=cell)
    rows, columns = (-(-n // cell) for n in SIZE)
    for r, c in [(0, 0), (rows // 2, columns // 2), (rows - 1, columns - 1)]:
        part = fine[r * cell : (r + 1) * cell, c * cell : (c + 1) * cell]
        torch.testing.assert_close(coarse[r, c], part.mean(), rtol=1e-9, atol=1e-12)


def test_progress_and_cancel(network: tuple[nn.Module, nn.Module], image: Tensor) -> None:
    trunk = StreamingTrunk(network[0], 32)
    parts = iter_smoothgrad(trunk, network[1], image, 0, samples=4)
    tiles = trunk.plan(*SIZE).tiles
    first = next(parts)
    assert (first.sample, first.done, first.steps) == (0, 1, 2 * 4 * tiles)
    parts.close()
    assert all(p.grad is None for p in network[0].parameters())
    done = [p.done for p in iter_smoothgrad(trunk, network[1], image, 0, samples=2)]
    assert done == sorted(set(done))
    assert done[-1] == 2 * 2 * tiles


def test_lazy_uint8_image_equals_its_tensor(network: tuple[nn.Module, nn.Module]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)

    class Lazy:
        shape = pixels.shape

        def read(self, box):
            x, y, w, h = (int(v) for v in box)
            return pixels[y : y + h, x : x + w]

    trunk = StreamingTrunk(network[0], 32)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    lazy = smoothgrad(trunk, network[1], Lazy(), 1, samples=2)
    assert torch.equal(lazy, smoothgrad(trunk, network[1], tensor, 1, samples=2))


def test_noise_depends_on_position_sample_and_seed_alone() -> None:
    like = torch.empty(1, 5, 0, 0, dtype=torch.float64)
    whole = PositionNoise(1.0, 7, 2)(Rect(0, 60, 0, 80), like)
    part = PositionNoise(1.0, 7, 2)(Rect(13, 29, 40, 80), like)
    assert torch.equal(part, whole[:, :, 13:29, 40:])
    for other in (PositionNoise(1.0, 7, 3), PositionNoise(1.0, 8, 2)):
        assert float((other(Rect(0, 60, 0, 80), like) == whole).double().mean()) < 0.01


def test_noise_is_gaussian_and_uncorrelated() -> None:
    like = torch.empty(1, 6, 0, 0, dtype=torch.float64)
    noise = PositionNoise(2.0)(Rect(100_000, 100_300, 0, 400), like)[0]
    assert abs(float(noise.mean())) < 0.01
    assert float(noise.std()) == pytest.approx(2.0, rel=0.005)
    share = float((noise.abs() < 2.0).double().mean())
    assert share == pytest.approx(0.6827, abs=0.003)
    flat = torch.cat([noise.flatten(1), noise.roll(1, 1).flatten(1), noise.roll(1, 2).flatten(1)])
    correlation = torch.corrcoef(flat) - torch.eye(len(flat))
    assert float(correlation.abs().max()) < 0.02


def test_image_sd_of_strips(image: Tensor) -> None:
    tall = image.repeat(1, 1, 30, 1)
    trunk = StreamingTrunk(settle(nn.Sequential(nn.Conv2d(3, 2, 3))), 64)
    assert image_sd(trunk.source(tall)) == pytest.approx(float(tall.std(correction=0)))


def test_wrong_arguments_are_told(network: tuple[nn.Module, nn.Module], image: Tensor) -> None:
    trunk = StreamingTrunk(network[0], 32)
    with pytest.raises(StreamingError, match="class 2"):
        smoothgrad(trunk, network[1], image, 2, samples=1)
    with pytest.raises(StreamingError, match="quantity 'sign'"):
        smoothgrad(trunk, network[1], image, 1, quantity="sign")
    with pytest.raises(StreamingError, match="2 images"):
        smoothgrad(trunk, network[1], image.repeat(2, 1, 1, 1), 1)


@pytest.mark.parametrize(
    "numbers",
    [{"noise": -1.0}, {"noise": float("nan")}, {"sd": float("nan")}, {"sd": -1.0}, {"cell": 0}],
)
def test_numbers_that_make_no_sense_are_told(
    network: tuple[nn.Module, nn.Module], image: Tensor, numbers: dict[str, float]
) -> None:
    (name,) = numbers
    with pytest.raises(StreamingError, match=f"{name}=.*: expected"):
        smoothgrad(StreamingTrunk(network[0], 32), network[1], image, 1, samples=1, **numbers)
