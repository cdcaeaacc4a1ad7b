"""Streaming: convolutional networks over whole images in the memory of one tile.

`StreamingTrunk` is the entry point. A network is traced (`trace`, `rules`, `builder`) into a graph
of windows (`graph`, `window_rules`), planned for the available memory (`plan`, `costs`, `layout`),
and run tile by tile (`walk`, `seam`, `tape`).
"""

from slidelens.nn.streaming.plan import StreamingPlan
from slidelens.nn.streaming.tape import StreamingReport
from slidelens.nn.streaming.trunk import StreamingTrunk

__all__ = ["StreamingPlan", "StreamingReport", "StreamingTrunk"]
