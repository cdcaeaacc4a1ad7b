"""Tracing beside networks that run, and beside other traces."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Event

import torch
from torch import nn

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
