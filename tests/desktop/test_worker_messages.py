from __future__ import annotations

import logging
import os
from io import BytesIO
from threading import Thread

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slidelens.desktop.worker.__main__ import Worker
from slidelens.desktop.worker.messages import Decoder, Message, encode, pack, unpack
from slidelens.desktop.worker.preview import Growing, Preview
from slidelens.engine.heap import HeapTrimmer
from slidelens.geometry import Affine, Mpp
from slidelens.maps.map import Map

facts = st.dictionaries(st.text(), st.none() | st.integers() | st.text() | st.lists(st.integers()))
messages = st.builds(Message, st.integers(), st.text(), facts, st.binary())


@given(st.lists(messages, max_size=5), st.integers(1, 40))
def test_messages_arrive_whole_however_they_are_cut(sent, size):
    stream = b"".join(encode(message) for message in sent)
    decoder = Decoder()
    got = [
        message
        for start in range(0, len(stream), size)
        for message in decoder.feed(stream[start : start + size])
    ]
    assert got == sent


@pytest.mark.parametrize("dtype", ["float32", "uint8", "uint16"])
def test_arrays_arrive_as_they_were(dtype):
    array = (np.arange(24) * 7).reshape(2, 3, 4).astype(dtype)[:, :, ::-1]
    header, blob = pack(array)
    (message,) = Decoder().feed(encode(Message(1, "cells", header, blob)))
    np.testing.assert_array_equal(unpack(message), array)
    assert unpack(message).dtype == array.dtype


def growing_map(values: np.ndarray, kind: str = "probability") -> Map:
    channels = ["a", "b"] if kind == "labels" else [f"c{i}" for i in range(len(values))]
    return Map.from_array("m", kind, channels, values, Affine(8, 4, 2, 1), Mpp(0.5, 1))


class Pipe:
    """Preview to Growing, over encoded messages; looks as often as asked."""

    def __init__(self) -> None:
        self.sent: list[Message] = []
        self.preview = Preview(lambda *cells: self.sent.append(Message(1, "cells", *cells)))
        self.maps: dict[str, Growing] = {}

    def look(self, run: str, source: Map) -> int:
        before = len(self.sent)
        self.preview._next = 0
        self.preview.look(run, lambda: {source.name: source})
        for message in Decoder().feed(b"".join(encode(m) for m in self.sent[before:])):
            name = message.facts["map"]
            grown = self.maps.setdefault(name, Growing.of(message))
            grown.add(message)
        return sum(len(m.blob) for m in self.sent[before:])


def test_only_what_changed_is_sent_and_the_whole_arrives():
    pipe = Pipe()
    values = np.full((2, 60, 40), np.nan, np.float32)
    assert pipe.look("run", growing_map(values)) == 0  # nothing yet, nothing sent
    random = np.random.default_rng(0)
    for row, column in [(3, 4), (20, 30), (59, 0)]:
        values[:, row : row + 5, column : column + 6] = random.random(
            values[:, row : row + 5, column : column + 6].shape
        )
        pipe.look("run", growing_map(values))
        np.testing.assert_array_equal(pipe.maps["m"].values, values)
    assert pipe.sent[1].facts["shape"] == (2, 5, 6)
    assert pipe.look("run", growing_map(values)) == 0
    grown = pipe.maps["m"].map
    assert grown.affine == Affine(8, 4, 2, 1)
    assert grown.slide_mpp == Mpp(0.5, 1)
    np.testing.assert_array_equal(grown.at(2 + 8 * 4.5, 1 + 4 * 3.5), values[:, 3, 4])


def test_a_new_run_begins_empty():
    pipe = Pipe()
    values = np.zeros((1, 4, 4), np.float32)
    first = pipe.look("a", growing_map(values))
    assert first > 0
    assert pipe.look("b", growing_map(values)) == first


def test_labels_grow_too():
    pipe = Pipe()
    values = np.zeros((1, 9, 9), np.uint8)
    values[0, 2:5, 3:7] = 2
    pipe.look("run", growing_map(values, "labels"))
    np.testing.assert_array_equal(pipe.maps["m"].values, values)
    assert pipe.sent[0].facts["shape"] == (1, 3, 4)


def test_looks_are_spaced_out():
    sent = []
    preview = Preview(lambda facts, blob: sent.append(facts))
    values = np.zeros((1, 4, 4), np.float32)
    for value in range(5):
        values[:] = value
        preview.look("run", lambda: {"m": growing_map(values)})
    assert len(sent) == 1


def test_a_worker_without_jobs_returns_memory(monkeypatch):
    source, ours = os.pipe()
    monkeypatch.setattr(HeapTrimmer, "now", lambda _: os.close(ours))  # which ends it
    os.write(ours, encode(Message(1, "catalogue", {"folders": []})))
    log, target = logging.getLogger("slidelens"), BytesIO()
    handlers = list(log.handlers)
    with os.fdopen(source, "rb") as reader:
        thread = Thread(target=Worker(reader, target).run, daemon=True)
        thread.start()
        thread.join(60)
    log.handlers[:] = handlers
    assert not thread.is_alive()
    assert [m.name for m in Decoder().feed(target.getvalue())][-1] == "ended"
