"""Threads that share a trunk, or trunks of the same layers: each has its own result."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Barrier

import pytest
import torch
from tests.nn.streaming_oracle import TOLERANCE, errors, gradients, relative_error, settle
from torch import Tensor, nn

from slidelens.nn.receptive import ReceptiveField
from slidelens.nn.streaming import StreamingTrunk

THREADS = 4


def network() -> nn.Module:
    """Return a network with batch norms, some of which become part of convolutions."""
    parts: list[nn.Module] = [nn.BatchNorm2d(3)]
    for channels in (3, 6, 6):
        parts += [nn.Conv2d(channels, 6, 3, padding=1), nn.BatchNorm2d(6), nn.PReLU(6)]
    return settle(nn.Sequential(*parts))


def images(size: int = 96) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (THREADS, 1, 3, size, size + 5)
    return list(torch.randn(shape, generator=generator, dtype=torch.float64))


def at_once(*calls: partial[Tensor]) -> list[Tensor]:
    """Call each in a thread of its own, from the same moment on."""
    start = Barrier(len(calls))

    def run(call: partial[Tensor]) -> Tensor:
        start.wait(20)
        return call()

    with ThreadPoolExecutor(len(calls)) as threads:
        return [done.result(60) for done in [threads.submit(run, call) for call in calls]]


def without_graph(module: nn.Module, image: Tensor) -> Tensor:
    with torch.no_grad():
        return module(image)


@pytest.mark.parametrize("trunks", [1, 2])
def test_each_thread_gets_its_own_scores_and_the_network_stays(trunks: int) -> None:
    module = network()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    expected = [without_graph(module, image) for image in images()]
    made = [StreamingTrunk(module, 16) for _ in range(trunks)]
    for _ in range(3):
        found = at_once(
            *(partial(without_graph, made[i % trunks], image) for i, image in enumerate(images()))
        )
        for one, other in zip(found, expected, strict=True):
            assert relative_error(one, other) <= TOLERANCE
    assert all(type(p) is nn.Parameter and p.requires_grad for p in module.parameters())
    assert module.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_each_thread_gets_its_own_gradients() -> None:
    module = network()
    trunk = StreamingTrunk(module, 16)

    def input_gradient(net: nn.Module, image: Tensor) -> Tensor:
        image = image.clone().requires_grad_()
        (grad,) = torch.autograd.grad(net(image).square().sum(), image)
        return grad

    found = at_once(*(partial(input_gradient, trunk, image) for image in images(48)))
    for grad, image in zip(found, images(48), strict=True):
        assert relative_error(grad, input_gradient(module, image)) <= TOLERANCE


def test_the_network_itself_runs_while_it_is_streamed() -> None:
    module = network()
    image = images()[0]
    expected = without_graph(module, image)
    trunk = StreamingTrunk(module, 16)
    calls = [partial(without_graph, net, image) for net in (trunk, module, trunk, module)]
    for found in at_once(*calls):
        assert relative_error(found, expected) <= TOLERANCE


def test_threads_stream_a_network_that_cannot_be_traced() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = network()

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x) if x.shape[2] > 1 else x

    module = settle(Branching())
    field = StreamingTrunk(module.body, 64).graph.field
    trunk = StreamingTrunk(module, 32, field=field)
    expected = [without_graph(module, image) for image in images()]
    found = at_once(*(partial(without_graph, trunk, image) for image in images()))
    for one, other in zip(found, expected, strict=True):
        assert relative_error(one, other) <= TOLERANCE


class Reaching(nn.Module):
    """Reaches its layers in ways of which ``nn.Module`` knows nothing."""

    class Helper:
        def __init__(self, layer: nn.Module) -> None:
            self.layer = layer

    def __init__(self, how: str) -> None:
        super().__init__()
        self.conv, self.gain = nn.Conv2d(3, 3, 3, padding=1), nn.Parameter(torch.ones(3, 1, 1))
        conv, gain = self.conv, self.gain
        ways = {
            "list": [conv],
            "mapping": {"conv": (conv,)},
            "method": self.both,
            "part": partial(Reaching.both, self),
            "closure": lambda x: gain * conv(x),
            "object": Reaching.Helper(conv),
        }
        self.how, self.way = how, ways[how]

    def both(self, x: Tensor) -> Tensor:
        return self.gain * self.conv(x)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2] < 1:
            return x
        if callable(self.way):
            return self.way(x)
        layer = {"list": lambda w: w[0], "mapping": lambda w: w["conv"][0]}.get(self.how)
        return self.gain * (layer(self.way) if layer else self.way.layer)(x)


@pytest.mark.parametrize("how", ["list", "mapping", "method", "part", "closure", "object"])
def test_layers_that_code_of_its_own_reaches_get_their_gradients(how: str) -> None:
    module = settle(Reaching(how))
    trunk = StreamingTrunk(module, 16, field=ReceptiveField(-1, 1, 1))
    image = images(40)[0].requires_grad_()
    found = errors(gradients(trunk, module, image), gradients(module, module, image))
    assert max(found.values()) <= TOLERANCE, found
