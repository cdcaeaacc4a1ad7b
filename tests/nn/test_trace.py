"""Tracing beside networks that run and other traces, and what a trace would lose or get wrong."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any

import numpy as np
import pytest
import torch
from tests.nn.streaming_oracle import TOLERANCE, errors, gradients, image_of, settle
from torch import Tensor, nn
from torch.nn import functional as F

from slidelens.errors import StreamingError
from slidelens.nn.streaming import StreamingTrunk
from slidelens.nn.streaming.trace import trace


class _Slow(nn.Module):
    """Says when it is being traced, and goes on when it may."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.entered, self.go_on = Event(), Event()

    def forward(self, images):
        self.entered.set()
        assert self.go_on.wait(20)
        return torch.relu(self.conv(images))


def test_a_network_runs_and_another_is_traced_while_one_is_traced():
    slow, other = _Slow(), nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU())
    images = torch.rand(1, 3, 8, 8)
    expected = other(images)
    call = nn.Module.__call__
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(trace, slow)
        assert slow.entered.wait(20)
        second = threads.submit(trace, other)
        torch.testing.assert_close(other(images), expected)
        assert isinstance(other[0].weight, nn.Parameter)
        slow.go_on.set()
        graphs = [first.result(20), second.result(20)]
    assert nn.Module.__call__ is call
    torch.testing.assert_close(other(images), expected)
    assert len(graphs[0].nodes) == len(graphs[1].nodes)


class _Coded(nn.Module):
    """A convolution, and what ``how`` makes of it."""

    def __init__(self, how: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.how, self.conv = how, nn.Conv2d(3, 4, 3, padding=1)
        self.register_buffer("scale", torch.full((4, 1, 1), 2.0))
        self.loose = torch.ones(4, 1, 1, requires_grad=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.how(self, self.conv(x))


def _exact(module: nn.Module) -> None:
    image = image_of((30, 41), 1, nhwc=False).requires_grad_()
    expected = gradients(module, module, image)
    found = errors(gradients(StreamingTrunk(module, 16), module, image), expected)
    assert max(found.values()) <= TOLERANCE, found


def _within(context: Callable[[], Any]) -> Callable[[Any, Tensor], Tensor]:
    def how(module: Any, x: Tensor) -> Tensor:
        with context():
            return torch.relu(x)

    return how


def _bfloat16(*, enabled: bool) -> Any:
    return torch.autocast("cpu", torch.bfloat16, enabled=enabled)


@pytest.mark.parametrize(
    "context",
    [torch.no_grad, torch.inference_mode, lambda: _bfloat16(enabled=True),
     lambda: _bfloat16(enabled=False)],
)  # fmt: skip
@pytest.mark.parametrize(
    "around", [torch.enable_grad, torch.no_grad, lambda: _bfloat16(enabled=True)]
)
def test_contexts_that_forward_enters_are_refused(
    context: Callable[[], Any], around: Callable[[], Any]
) -> None:
    """Whatever the trunk itself is made in: it may be run in another one."""
    module = _Coded(_within(context))
    message = "'relu' runs in .* that forward.* enters.*(detach|around the trunk)"
    with around(), pytest.raises(StreamingError, match=message):
        StreamingTrunk(module, 16)
    with around():
        StreamingTrunk(_Coded(lambda _m, x: torch.relu(x)), 16)


@pytest.mark.parametrize(
    "drawn",
    [
        lambda _m, x: x + torch.rand(1, 4, 1, 1),
        lambda _m, x: x * float(np.random.default_rng().random()),
        lambda m, x: x + torch.rand(4, 1, 1) * m.scale,
    ],
)
def test_random_numbers_that_forward_draws_are_refused(drawn: Callable[..., Tensor]) -> None:
    module = _Coded(drawn)
    before = set(vars(module))
    with pytest.raises(StreamingError, match="draws random numbers in forward"):
        StreamingTrunk(module, 16)
    assert set(vars(module)) == before


def test_tensors_that_forward_writes_out_are_its_own() -> None:
    module = settle(_Coded(lambda _m, x: x * torch.tensor(0.5) + torch.arange(4.0).view(4, 1, 1)))
    before = set(vars(module))
    _exact(module)
    assert set(vars(module)) == before


def test_what_is_computed_of_a_buffer_follows_it() -> None:
    module = settle(_Coded(lambda m, x: x * (m.scale * 2).sqrt()))
    module.scale.fill_(2.0)
    trunk, image = StreamingTrunk(module, 16), image_of((30, 41), 1, nhwc=False)
    module.load_state_dict({**module.state_dict(), "scale": torch.full((4, 1, 1), 8.0)})
    with torch.no_grad():
        torch.testing.assert_close(trunk(image), module(image))


@pytest.mark.parametrize("how", [lambda m, x: x * m.loose, lambda m, x: x * (m.loose * 2)])
def test_tensors_that_would_get_no_gradient_are_refused(how: Callable[..., Tensor]) -> None:
    with pytest.raises(StreamingError, match=r"requires a gradient and is no parameter.*nn\.Param"):
        StreamingTrunk(_Coded(how), 16)
    _exact(settle(_Coded(lambda m, x: x * m.loose.detach())))


def _in_place_on_itself(_module: Any, x: Tensor) -> Tensor:
    y = +x
    y.relu_()
    return x * 1.0


def _power_in_place(_module: Any, x: Tensor) -> Tensor:
    y = x
    y **= 2
    return x * 1.0


def _power(_module: Any, x: Tensor) -> Tensor:
    y = torch.sigmoid(x)
    return F.relu(y**y)


@pytest.mark.parametrize("how", [_in_place_on_itself, _power_in_place, _power])
def test_values_that_are_others_too(how: Callable[..., Tensor]) -> None:
    """One that is written in place under another name; one that its own gradient needs."""
    _exact(settle(_Coded(how)))


@pytest.mark.parametrize(
    "how",
    [
        lambda _m, x: torch.cat(tensors=x.chunk(2, 1), dim=1),
        lambda _m, x: torch.cat(x.chunk(2, 1), 1),
    ],
)
def test_all_pieces_of_a_chunk_at_once_are_refused_in_words(how: Callable[..., Tensor]) -> None:
    with pytest.raises(StreamingError, match="several pieces of a chunk at once; pick them"):
        StreamingTrunk(_Coded(how), 16)
