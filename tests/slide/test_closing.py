"""A slide that is closed while it is read: what is being read is read to its end."""

import gc
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from time import sleep

import numpy as np
import openslide
import pytest
import tifffile

from slidelens import SlideError, open_slide
from slidelens.slide import handle
from slidelens.slide.array import ArrayReader
from slidelens.slide.base import Slide
from slidelens.slide.openslide import OpenSlideReader

RGB = np.random.default_rng(0).integers(0, 256, (300, 420, 3)).astype(np.uint8)


@pytest.fixture
def slide(tmp_path):
    path = tmp_path / "slide.tif"
    tifffile.imwrite(path, RGB, photometric="rgb", tile=(64, 64))
    with open_slide(path, backend="openslide") as slide:
        yield slide


@pytest.fixture
def halted(monkeypatch):
    """Reads of OpenSlide that say when they begin, and go on when they may."""
    begun, go = Event(), Event()
    native = openslide.lowlevel._read_region

    def read(*arguments):
        begun.set()
        assert go.wait(20)
        return native(*arguments)

    monkeypatch.setattr(openslide.lowlevel, "_read_region", read)
    yield begun, go
    go.set()


@pytest.fixture
def freed(monkeypatch):
    """What was given back to OpenSlide."""
    places, native = [], handle._close

    def close(place):
        places.append(place)
        native(place)

    monkeypatch.setattr(handle, "_close", close)
    return places


def test_a_read_outlives_the_closing_of_its_slide(slide, halted, freed):
    begun, go = halted
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(slide.read_level, 0, 0, 0, 420, 300)
        assert begun.wait(20)
        slide.close()
        slide.close()
        assert freed == []
        go.set()
        np.testing.assert_array_equal(reading.result(20), RGB)
    slide.close()
    assert len(freed) == 1


def test_a_closed_reader_says_so(slide, freed):
    path, reader = slide.path, slide._reader
    reader.close()
    for read in (
        lambda: reader.read(0, 0, 0, 8, 8),  # by OpenSlide
        lambda: reader.read(0, 0, 0, 8, 8),  # by the decoder of tiles, which is not opened any more
        lambda: reader.read_associated("macro"),
        reader.icc_profile,
    ):
        with pytest.raises(SlideError, match=f"{path.name}: was closed while it was read"):
            read()
    assert reader._fast is None
    assert len(freed) == 1


def test_an_interrupted_closing_does_not_free_the_slide_again(slide, monkeypatch):
    native, close = slide._reader._handle._slide._osr, handle._close

    def interrupted(place):
        close(place)
        raise KeyboardInterrupt

    monkeypatch.setattr(handle, "_close", interrupted)
    with pytest.raises(KeyboardInterrupt):
        slide.close()
    assert not native._valid  # or its destructor would close it
    del native
    gc.collect()
    monkeypatch.undo()
    slide.close()


def test_a_slide_that_cannot_be_described_is_freed_once(slide, freed, monkeypatch):
    def broken(slide):
        raise SlideError("broken")

    monkeypatch.setattr("slidelens.slide.openslide._facts", broken)
    with pytest.raises(SlideError, match="broken"):
        OpenSlideReader(slide.path)
    assert len(freed) == 1


def test_nobody_reads_on_after_a_large_read_has_failed(tmp_path, monkeypatch):
    begun, ended = Event(), []

    class Failing(ArrayReader):
        def read(self, level, x, y, w, h):
            if (x, y) == (0, 0):
                assert begun.wait(20)
                raise SlideError("the first part is broken.")
            begun.set()
            sleep(0.2)
            ended.append((x, y))
            return super().read(level, x, y, w, h)

    slide = Slide(Failing(np.zeros((2048, 2048, 3), np.uint8)), tmp_path / "x.svs")
    with ThreadPoolExecutor(2) as pool:
        monkeypatch.setattr("slidelens.slide.pyramid._pool", lambda: pool)
        with slide, pytest.raises(SlideError, match="first part"):
            np.asarray(slide.pyramid()[0])
        then = len(ended)
        assert then >= 1
    assert len(ended) == then < 15


CLOSED_BY_ANOTHER_THREAD = """
for wait in (0.05, 0.1, 0.15, 0.2):
    slide = open_slide(path)
    errors = []
    def work():
        try:
            while True:
                slide.read_level(0, 0, 0, 1500, 1500)
        except SlideError as error:
            errors.append(error)
    threads = [Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    sleep(wait)
    slide.close()
    for thread in threads:
        thread.join()
    assert len(errors) == 2 and all("closed" in str(error) for error in errors)
"""
INTERRUPTED = """
for wait in (0.05, 0.1, 0.15, 0.2):
    again = Timer(20, interrupt_main)
    try:
        with open_slide(path) as slide:
            Timer(wait, interrupt_main).start()
            again.start()
            while True:
                np.asarray(slide.pyramid()[0])
    except KeyboardInterrupt:
        pass
    again.cancel()
"""
"""Python loses an interrupt that comes within a destructor (and says so): then it comes again."""


@pytest.mark.realdata
@pytest.mark.parametrize("code", [CLOSED_BY_ANOTHER_THREAD, INTERRUPTED])
def test_the_program_survives_it(data, code):
    begin = (
        "from _thread import interrupt_main\n"
        "from threading import Thread, Timer\n"
        "from time import sleep\n"
        "import numpy as np\n"
        "from slidelens import SlideError, open_slide\n"
        f"path = {str(data / 'wsi/test3-DAPI-2-387.ndpi')!r}\n"
    )
    command = [sys.executable, "-c", begin + code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert not done.stderr or "Exception ignored" in done.stderr
