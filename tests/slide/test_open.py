"""Choosing a backend, plugins, resolution from outside, the cache."""

import copy
import itertools
import os
import pickle
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import EntryPoint
from pathlib import Path
from threading import Barrier, Event, Thread
from unicodedata import normalize

import numpy as np
import pytest

import slidelens.slide.open as opening
from rights import nobody, see_nothing_where_barred
from slidelens import (
    Box,
    MissingMppError,
    SlideError,
    SlideNotFoundError,
    UnsupportedSlideError,
    open_slide,
)
from slidelens.geometry import Mpp
from slidelens.registry import API_VERSION, Registry
from slidelens.slide.array import ArrayReader, from_array
from slidelens.slide.base import Slide, id_of_name, slide_id
from slidelens.slide.cache import TileCache
from slidelens.slide.open import is_slide
from slidelens.slide.openslide import _on_ground
from slidelens.slide.reader import Facts, levels_of
from slidelens.slide.resolution import resolve_mpp
from slidelens.testing.phantom import PhantomSpec, write_phantom

SLIDELENS_API = API_VERSION
MAGIC = b"TOYSLIDE"


class ToyReader(ArrayReader):
    """What a plugin brings: a format of its own."""

    backend = "toy"

    def __init__(self, path):
        super().__init__(
            np.full((8, 9, 3), 7, np.uint8),
            facts=Facts(levels_of([(9, 8)]), objective_power=20.0),
        )

    @classmethod
    def sniff(cls, path, head):
        return head.startswith(MAGIC)


@pytest.fixture
def toy(monkeypatch, tmp_path):
    entry = EntryPoint("toy", f"{__name__}:ToyReader", "slidelens.slides")
    monkeypatch.setattr("slidelens.registry.entry_points", lambda group: [entry])
    fresh = Registry(opening.READERS.group, opening.READERS._kind, opening.READERS._builtins)
    monkeypatch.setattr(opening, "READERS", fresh)
    path = tmp_path / "slide.toy"
    path.write_bytes(MAGIC + b"\0")
    return path


def test_a_plugin_adds_a_backend(toy):
    with open_slide(toy) as slide:
        assert (slide.backend, slide.size, slide.mpp) == ("toy", (9, 8), None)
        assert (slide.read(Box(0, 0, 9, 8)) == 7).all()
    with open_slide(toy, backend="toy", mpp="from-objective") as slide:
        assert (slide.mpp, slide.mpp_source) == ((0.5, 0.5), "objective power 20x")


def test_a_plugin_that_fails_is_named(toy, monkeypatch):
    def broken(**members):
        fresh = type("Broken", (ToyReader,), members)
        monkeypatch.setitem(opening.READERS._loaded, "toy", fresh)

    def states(**facts):
        return lambda self, path: setattr(self, "facts", Facts(**facts))

    two = levels_of([(9, 8), (3, 2)])
    for init, reason in (
        (lambda self, path: {}["sizes"], "KeyError: 'sizes'"),
        (lambda self, path: None, "AttributeError: .*'facts'"),
        (states(levels=()), "expected one Level or more"),
        (states(levels=((9, 8),)), "expected one Level or more"),
        (states(levels=two[::-1]), "expected the finest first"),
        (states(levels=two, mpp=0.5), r"facts\.mpp is 0\.5, expected Mpp"),
    ):
        broken(__init__=init)
        with pytest.raises(
            SlideError, match=rf"plugin 'toy' .* failed on .*slide\.toy: .*{reason}"
        ):
            open_slide(toy)
    for read, reason in (
        (lambda self, *box: 1 / 0, "ZeroDivisionError"),
        (lambda self, *box: None, r"gave object pixels of shape \(\)"),
        (lambda self, *box: np.zeros((8, 9, 4), np.uint8), r"shape \(8, 9, 4\), expected uint8"),
    ):
        broken(read=read)
        with open_slide(toy) as slide, pytest.raises(SlideError, match=rf"'toy' .*{reason}"):
            slide.read(Box(0, 0, 9, 8))
    broken(close=lambda self: 1 / 0)
    slide = open_slide(toy)
    with pytest.raises(SlideError, match=r"'toy' .*ZeroDivisionError"):
        slide.close()


def test_a_plugin_that_would_end_the_program_does_not(toy, monkeypatch):
    leaves = type("Leaves", (ToyReader,), {"sniff": classmethod(lambda *_: sys.exit(3))})
    monkeypatch.setitem(opening.READERS._loaded, "toy", leaves)
    with pytest.raises(UnsupportedSlideError, match=r"plugin 'toy' .* failed on it: SystemExit: 3"):
        open_slide(toy)
    leaves = type("Leaves", (ToyReader,), {"__init__": lambda *_: sys.exit(3)})
    monkeypatch.setitem(opening.READERS._loaded, "toy", leaves)
    with pytest.raises(SlideError, match=r"plugin 'toy' .* failed on .*SystemExit"):
        open_slide(toy)


def test_a_size_that_no_scanner_makes_is_refused(toy, monkeypatch):
    def vast(self, path):
        self.facts = Facts(levels_of([(10**9, 10**9)]))

    monkeypatch.setitem(
        opening.READERS._loaded, "toy", type("Vast", (ToyReader,), {"__init__": vast})
    )
    with pytest.raises(
        SlideError, match=r"slide\.toy: states 1000000000 x 1000000000 px; no scanner"
    ):
        open_slide(toy)


def test_what_a_plugin_decoded_is_kept(toy, monkeypatch):
    decoded = []

    class Large(ToyReader):
        def __init__(self, path):
            self.pixels = np.random.default_rng(0).integers(0, 255, (700, 1100, 3), np.uint8)
            self.facts = Facts(levels_of([(1100, 700)]))

        def read(self, level, x, y, w, h):
            decoded.append((x, y))
            return self.pixels[y : y + h, x : x + w]

    monkeypatch.setitem(opening.READERS._loaded, "toy", Large)
    with open_slide(toy) as slide:
        for x in range(0, 1000, 50):
            pixels = slide.read(Box(x, 300, 100, 400))
            assert np.array_equal(pixels, slide._reader._reader.pixels[300:700, x : x + 100])
    assert sorted(decoded) == [(x, y) for x in (0, 512, 1024) for y in (0, 512)]


def test_notes_of_a_plugin_reach_the_user(toy, monkeypatch):
    with open_slide(toy) as slide:
        assert slide.notes() == []
        monkeypatch.setattr(ToyReader, "notes", lambda self: ["a toy"])
        assert slide.notes() == ["a toy"]


def test_a_backend_can_be_named_and_must_exist(toy):
    with pytest.raises(SlideError, match="no slide backend 'x'; there are: omezarr, openslide"):
        open_slide(toy, backend="x")
    with pytest.raises(SlideError, match="cannot be opened as TIFF"):
        open_slide(toy, backend="tifffile")
    with pytest.raises(SlideError, match="does not know this format"):
        open_slide(toy, backend="openslide")


def test_paths_that_are_no_slides(tmp_path):
    with pytest.raises(SlideNotFoundError, match="no such file or folder"):
        open_slide(tmp_path / "missing.svs")
    with pytest.raises(FileNotFoundError):
        open_slide(tmp_path / "missing.svs")
    with pytest.raises(SlideError, match="folder that holds no DICOM or OME-Zarr"):
        open_slide(tmp_path)
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    (mixed / "a.dcm").write_bytes(bytes(128) + b"DICM")
    (mixed / "readme.txt").write_text("a slide")
    with pytest.raises(
        SlideError, match=r"more than DICOM files: open one of these, such as a\.dcm"
    ):
        open_slide(mixed)
    for address in ("https://example.org/a.zarr", "s3://bucket/a.svs"):
        with pytest.raises(SlideNotFoundError, match="is an address; slides are read from files"):
            open_slide(address)
    with zipfile.ZipFile(tmp_path / "slides.zip", "w") as archive:
        archive.writestr(".zattrs", "{}")
    with pytest.raises(SlideError, match="a zip archive: unpack it"):
        open_slide(tmp_path / "slides.zip")
    for head, what in ((b"\x89HDF", "an HDF5 file"), (b"<DataObject Obj", "a Philips iSyntax")):
        (tmp_path / "slide.scan").write_bytes(head.ljust(2000))
        with pytest.raises(SlideError, match=f"{what}, which no .* convert it to OME-TIFF"):
            open_slide(tmp_path / "slide.scan")
    (tmp_path / "empty.svs").touch()
    with pytest.raises(SlideError, match="empty file"):
        open_slide(tmp_path / "empty.svs")
    (tmp_path / "noise.svs").write_bytes(bytes(range(256)) * 8)
    with pytest.raises(SlideError, match="not a slide format"):
        open_slide(tmp_path / "noise.svs")


@pytest.mark.skipif(os.name != "posix", reason="takes a folder's permissions away")
@pytest.mark.parametrize("later", [False, True], ids=["this Python", "3.14"])
def test_a_slide_that_may_not_be_reached(tmp_path, monkeypatch, later):
    if later:
        see_nothing_where_barred(monkeypatch)
    for name in opening.READERS:  # now: nobody may not be allowed to load them
        opening.READERS.get(name)
    monkeypatch.chdir(tmp_path)  # nobody may not be allowed to come from above
    barred, inside = Path("barred"), Path("inside")
    for path in (barred / "a.svs", inside / "a.dcm"):
        path.parent.mkdir()
        path.write_bytes(b"II*\0")
    for path, mode in ((tmp_path, 0o755), (barred, 0), (inside / "a.dcm", 0)):
        path.chmod(mode)
    with nobody():
        for path in (barred / "a.svs", barred, inside, inside / "a.dcm"):
            message = f"{path}: cannot be read .Permission denied.; check the path"
            with pytest.raises(SlideError, match=message):
                open_slide(path)
            assert not is_slide(path)
        assert slide_id(barred / "a.svs") == "a"
    barred.chmod(0o755)


def test_a_name_that_no_file_can_have(tmp_path):
    path = tmp_path / ("x" * 300 + ".svs")
    with pytest.raises(SlideError, match=r"x\.svs: (cannot be read|no such file)"):
        open_slide(path)
    assert not is_slide(path)
    assert slide_id(path) == "x" * 300


def test_a_path_that_is_no_text_is_refused(tmp_path, toy):
    """Results state the path and the id: it would fail after the work is done."""
    for path in (tmp_path / "f\udce4rb.toy", tmp_path / "\udce4" / "slide.toy"):
        try:
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(toy.read_bytes())
        except (OSError, UnicodeError):  # not on every system can there be one
            pass
        with pytest.raises(
            SlideError, match=r"udce4.*is not valid UTF-8 text.*rename the file"
        ) as e:
            open_slide(path)
        assert str(e.value).isascii()
    assert slide_id(tmp_path / "f\udce4rb.toy") == r"f\udce4rb"


FACTS = Facts(levels_of([(9, 8)]), Mpp(0.25, 0.25), "test header", 40.0)


def test_a_number_wins_over_the_header_and_the_objective_does_not(tmp_path):
    path = tmp_path / "a.svs"
    assert resolve_mpp(FACTS, path, "a", None) == ((0.25, 0.25), "test header")
    assert resolve_mpp(FACTS, path, "a", 0.5) == ((0.5, 0.5), "given")
    assert resolve_mpp(FACTS, path, "a", (0.5, 0.6)) == ((0.5, 0.6), "given")
    assert resolve_mpp(FACTS, path, "a", "from-objective") == ((0.25, 0.25), "test header")
    with pytest.raises(ValueError, match="above 0"):
        resolve_mpp(FACTS, path, "a", -1.0)
    with pytest.raises(ValueError, match="'from-objective', not '20x'"):
        resolve_mpp(FACTS, path, "a", "20x")
    with pytest.raises(MissingMppError, match="neither a resolution nor an objective"):
        resolve_mpp(Facts(FACTS.levels), path, "a", "from-objective")


def test_a_table_of_resolutions_from_a_spreadsheet(tmp_path):
    table = tmp_path / "t.csv"
    table.write_text("slide; mpp\na;0,3\n;\nb;0,25\n")
    assert resolve_mpp(FACTS, tmp_path / "a.svs", "a", table) == ((0.3, 0.3), "table t.csv")
    table.write_text("slide,mpp\na,0.3\na,0.5\n")
    with pytest.raises(SlideError, match="line 3: a second row of a"):
        resolve_mpp(FACTS, tmp_path / "a.svs", "a", table)


def test_a_resolution_unlike_the_files_is_said(tmp_path, caplog):
    resolve_mpp(FACTS, tmp_path / "a.svs", "a", 0.251)
    assert not caplog.text
    assert resolve_mpp(FACTS, tmp_path / "a.svs", "a", 0.5) == ((0.5, 0.5), "given")
    assert "read at the given 0.5 µm/px, though its file states 0.25" in caplog.text


@pytest.mark.parametrize(
    "again", [copy.copy, copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))]
)
def test_a_slide_is_sent_to_another_process_as_it_was_opened(tmp_path, toy, again, caplog):
    path = tmp_path / "a.tif"
    write_phantom(path, PhantomSpec(size=(600, 500), mpp=0.5))
    pixels = np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8)
    given = open_slide(path, mpp=(0.25, 0.3))
    caplog.clear()
    for slide in (given, open_slide(toy), from_array(pixels, mpp=2.0, name="here")):
        box = Box(1, 2, 5, 4)
        with again(slide) as other:
            same = ("id", "path", "mpp", "mpp_source", "backend", "levels", "without_row")
            assert all(getattr(other, name) == getattr(slide, name) for name in same)
            assert np.array_equal(other.read(box), slide.read(box))
        slide.read(box)  # each has its own file
        slide.close()
        with pytest.raises(SlideError, match="closed"):
            again(slide)
    assert not caplog.records  # of the resolution that was given: said once, when it was opened
    with pytest.raises(TypeError, match="open it there"):
        again(Slide(ToyReader(toy), toy))


@pytest.mark.parametrize("wrong", [np.zeros((0, 3, 3), np.uint8), [[1, 2]], np.zeros((3, 9, 9))])
def test_what_is_no_picture_is_no_slide(wrong):
    with pytest.raises(ValueError, match=r"uint8 arrays of shape \(H, W, 3\), not"):
        from_array(wrong)
    with pytest.raises(ValueError, match="needs an array"):
        from_array()


def test_a_table_of_resolutions(tmp_path):
    table = tmp_path / "t.csv"
    table.write_text("slide,mpp,note\na.svs,0.3,x\nb,0.4,y\n", encoding="utf-8-sig")
    assert resolve_mpp(FACTS, tmp_path / "a.svs", "a", table) == ((0.3, 0.3), "table t.csv")
    assert resolve_mpp(FACTS, tmp_path / "b.svs", "b", table) == ((0.4, 0.4), "table t.csv")
    assert resolve_mpp(FACTS, tmp_path / "c.svs", "c", table) == ((0.25, 0.25), "test header")
    as_text = resolve_mpp(FACTS, tmp_path / "a.svs", "a", str(table))
    assert as_text == ((0.3, 0.3), "table t.csv")
    table.write_text("slide,mpp\nb,fine\n")
    with pytest.raises(SlideError, match=r"t\.csv, line 2: mpp of b must be a number above 0"):
        resolve_mpp(FACTS, tmp_path / "b.svs", "b", table)
    table.write_text("name,um\nb,1\n")
    with pytest.raises(SlideError, match="columns `slide,mpp`"):
        resolve_mpp(FACTS, tmp_path / "b.svs", "b", table)
    for missing in (tmp_path / "missing.csv", "missing.csv"):
        with pytest.raises(SlideError, match="cannot be read as a table"):
            resolve_mpp(FACTS, tmp_path / "b.svs", "b", missing)


def test_a_table_without_the_slide_is_told(tmp_path, toy, caplog):
    table = tmp_path / "t.csv"
    table.write_text("slide,mpp\na,0.3\n")
    resolve_mpp(FACTS, tmp_path / "a.svs", "a", table)
    assert caplog.text == ""
    resolve_mpp(FACTS, tmp_path / "c.svs", "c", table)
    assert f"{table}: no row for slide 'c', which keeps the 0.25 µm/px of its file" in caplog.text
    with open_slide(toy, mpp=table) as slide:  # its file states none: it can be looked at
        message = r"slide\.toy: .*table .*t\.csv has no row for it; add the row `slide,X`"
        with pytest.raises(MissingMppError, match=message):
            slide.require_mpp()


def test_ids(tmp_path):
    assert slide_id(tmp_path / "TCGA-1.2.svs") == "TCGA-1.2"
    for name in ("1.2.276.0.7230010.3.1.4.1", "P1.7", "case.HE"):  # of DICOM files, and of arrays
        assert slide_id(tmp_path / name) == id_of_name(name) == name
    assert slide_id(tmp_path / "a.ome.tif") == "a"
    assert slide_id(tmp_path / "a.OME.TIFF") == "a"
    folder = tmp_path / "1.2.840"
    folder.mkdir()
    assert slide_id(folder) == "1.2.840"
    zarr = tmp_path / "b.ome.zarr"
    zarr.mkdir()
    assert slide_id(zarr) == "b"


def test_the_id_of_the_folder_that_one_works_in(tmp_path, monkeypatch):
    for name, found in (("1.2.840", "1.2.840"), ("b.ome.zarr", "b"), ("c.zarr", "c")):
        folder = tmp_path / name
        (folder / "inner").mkdir(parents=True)
        monkeypatch.chdir(folder)
        assert slide_id(Path()) == found
        monkeypatch.chdir(folder / "inner")
        assert slide_id(Path("..")) == found


def test_letters_with_marks_in_a_table_of_resolutions(tmp_path):
    """Spreadsheets compose them, and file systems of a Mac take them apart, or the other way."""
    for row, name in itertools.product(("NFC", "NFD"), repeat=2):
        table, path = tmp_path / "t.csv", tmp_path / f"{normalize(name, 'Mäuse')}.svs"
        for text in ("Mäuse", "Mäuse.svs"):
            table.write_text(f"slide,mpp\n{normalize(row, text)},0.3\n", encoding="utf-8")
            mpp, _ = resolve_mpp(FACTS, path, slide_id(path), table)
            assert mpp == (0.3, 0.3), (row, name, text)


def test_premultiplied_pixels_are_laid_on_the_ground():
    argb = np.array([[0xFF102030, 0x00000000, 0x80403020, 0x80808080]], np.uint32)
    white, grey = ((n, n, n) for n in (255, 200))
    assert _on_ground(argb[:, :1], white).tolist() == [[[16, 32, 48]]]
    assert _on_ground(argb, white)[0].tolist() == [
        [16, 32, 48],
        [255, 255, 255],
        [64 + 127, 48 + 127, 32 + 127],
        [255, 255, 255],
    ]
    assert _on_ground(argb, grey)[0, 1].tolist() == [200, 200, 200]
    assert _on_ground(argb, grey).flags.writeable


def test_the_cache_is_bounded_and_forgets_the_oldest():
    made = []

    def tile(i):
        made.append(i)
        return np.zeros(100, np.uint8)

    cache = TileCache(250)
    for i in (0, 1, 0, 2, 0):  # 2 drives 1 out: 0 was used after it
        cache.get(("slide", i), lambda i=i: tile(i))
    assert made == [0, 1, 2]
    assert (cache.used, len(cache)) == (200, 2)
    cache.get(("other", 0), lambda: np.zeros(300, np.uint8))  # too large to keep
    assert cache.used == 200
    cache.drop("slide")
    assert (cache.used, len(cache)) == (0, 0)
    with pytest.raises(ValueError, match="read-only"):
        cache.get(("slide", 9), lambda: tile(9))[0] = 1


def test_decoding_does_not_hold_the_cache():
    """Two threads decode at the same time, or this would wait for ever."""
    cache, both = TileCache(1000), Barrier(2, timeout=20)

    def decode():
        both.wait()
        return np.zeros(10, np.uint8)

    threads = [Thread(target=cache.get, args=((i,), decode)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(cache) == 2


def test_a_tile_that_is_being_decoded_is_waited_for():
    cache, made, begun, go = TileCache(1000), [], Event(), Event()

    def decode():
        made.append(1)
        begun.set()
        assert go.wait(20)
        return np.arange(10)

    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(cache.get, ("a",), decode)
        assert begun.wait(20)
        others = [pool.submit(cache.get, ("a",), decode) for _ in range(3)]
        go.set()
        assert all(other.result(20) is first.result(20) for other in others)
    assert made == [1]


def test_what_another_thread_decodes_comes_last():
    cache, begun, go = TileCache(1000), Event(), Event()

    def slow():
        begun.set()
        assert go.wait(20)
        return np.zeros(1)

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(cache.get, (1,), slow)
        assert begun.wait(20)
        got = []
        for (i,), tile in cache.each([(0,), (1,), (2,)], lambda key: np.full(1, key[0])):
            got.append(i)
            if i == 2:  # without having waited for 1
                assert not first.done()
                go.set()
            elif i == 1:
                assert tile is first.result(20)
    assert got == [0, 2, 1]


def test_a_failed_decoding_is_told_and_tried_again():
    cache = TileCache(1000)
    with pytest.raises(ZeroDivisionError):
        cache.get(("a",), lambda: np.zeros(1 // 0))
    assert cache.get(("a",), lambda: np.ones(3)).sum() == 3


@pytest.mark.realdata
def test_an_svs_loads_nothing_heavy(data):
    code = (
        "import sys\n"
        "from slidelens import open_slide\n"
        "from slidelens.slide.describe import describe\n"
        f"describe(open_slide({str(data / 'wsi/CMU-1-Small-Region.svs')!r}))\n"
        "heavy = {'zarr', 'tifffile', 'scipy', 'skimage', 'torch', 'napari', 'matplotlib'}\n"
        "print(*sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
