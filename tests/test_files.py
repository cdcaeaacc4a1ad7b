"""Files and folders that appear whole or not at all, whatever happens in between."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from slidelens import files
from slidelens.errors import ResultError
from slidelens.files import make_scratch, remove_scratch, staged_folder, write_atomic


def fill(folder: Path, text: str) -> None:
    with staged_folder(folder, None) as staging:
        (staging / "a.txt").write_text(text)
        (staging / "sub").mkdir()
        (staging / "sub" / "b.txt").write_text(text)


def test_this_system_exchanges_folders_in_one_step(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").write_text("b")
    if sys.platform in ("linux", "darwin"):
        assert files._exchange(tmp_path / "a", tmp_path / "b")
        assert (tmp_path / "a").read_text() == "b"
    assert not files._exchange(tmp_path / "a", tmp_path / "missing")


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_folder_is_not_there_before_the_block_ends(tmp_path: Path) -> None:
    with staged_folder(tmp_path / "x", None) as staging:
        assert staging.parent == tmp_path
        assert staging.name.startswith(".x.tmp-")
        assert not (tmp_path / "x").exists()
    assert names(tmp_path) == ["x"]


def test_a_folder_that_appears_at_the_last_moment_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process has written the same, between the look and the renaming."""
    rename = Path.rename

    def late(self: Path, target: Path) -> Path:
        if not (tmp_path / "x").exists():
            (tmp_path / "x").mkdir()
            (tmp_path / "x" / "theirs").write_text("of another process")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", late)
    fill(tmp_path / "x", "ours")
    assert names(tmp_path) == ["x"]
    assert names(tmp_path / "x") == ["a.txt", "sub"]


def test_folder_takes_the_place_of_an_old_one(tmp_path: Path) -> None:
    fill(tmp_path / "x", "old")
    (tmp_path / "x" / "extra").write_text("gone afterwards")
    fill(tmp_path / "x", "new")
    assert names(tmp_path) == ["x"]
    assert names(tmp_path / "x") == ["a.txt", "sub"]
    assert (tmp_path / "x" / "sub" / "b.txt").read_text() == "new"


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_behind_a_link_the_folder_is_replaced_and_the_link_stays(tmp_path: Path) -> None:
    fill(tmp_path / "disk" / "case", "old")
    (tmp_path / "results").mkdir()
    link = tmp_path / "results" / "case"
    link.symlink_to(tmp_path / "disk" / "case")
    for text in ("new", "newer"):
        fill(link, text)
        assert link.is_symlink()
        assert [path.name for path in link.parent.iterdir()] == ["case"]
        assert [path.name for path in (tmp_path / "disk").iterdir()] == ["case"]
        assert (tmp_path / "disk" / "case" / "a.txt").read_text() == text


def test_a_folder_that_holds_more_than_ours_stays(tmp_path: Path) -> None:
    mine = tmp_path / "study"
    with staged_folder(mine, {"froc.json"}) as staging:
        (staging / "froc.json").write_text("old")
    (mine / ".DS_Store").touch()
    with staged_folder(mine, {"froc.json"}) as staging:
        (staging / "froc.json").write_text("new")
    assert (mine / "froc.json").read_text() == "new"
    for name in ("thesis.txt", "notes", ".git", "data"):
        (mine / name).mkdir()
    told = r"study: holds other files \(\.git, data, notes and 1 more\), which would be lost"
    with pytest.raises(ResultError, match=told), staged_folder(mine, {"froc.json"}):
        pass
    with pytest.raises(ResultError, match="is a file"), staged_folder(mine / "froc.json", {"x"}):
        pass
    assert names(mine) == [".git", "data", "froc.json", "notes", "thesis.txt"]


def test_the_folder_one_is_in_may_be_named_by_a_dot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    fill(Path(), "new")
    assert (tmp_path / "here" / "a.txt").read_text() == "new"


def test_an_error_in_the_block_leaves_what_was_there(tmp_path: Path) -> None:
    fill(tmp_path / "x", "old")
    with pytest.raises(TypeError):
        fill(tmp_path / "x", None)  # type: ignore[arg-type]  # fails half-way
    assert names(tmp_path) == ["x"]
    assert (tmp_path / "x" / "a.txt").read_text() == "old"


@pytest.fixture
def no_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    """A system or file system that cannot let two paths change places."""
    monkeypatch.setattr(files, "_exchange", lambda one, other: False)


@pytest.mark.usefixtures("no_exchange")
def test_replacing_works_without_exchange(tmp_path: Path) -> None:
    fill(tmp_path / "x", "old")
    fill(tmp_path / "x", "new")
    assert names(tmp_path) == ["x"]
    assert (tmp_path / "x" / "a.txt").read_text() == "new"


@pytest.mark.usefixtures("no_exchange")
def test_a_failing_rename_puts_the_old_folder_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path / "x", "old")
    rename = Path.rename

    def fails(self: Path, target: Path) -> Path:
        if ".tmp-" in self.name:
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(OSError, match="No space"):
        fill(tmp_path / "x", "new")
    assert names(tmp_path) == ["x"]
    assert (tmp_path / "x" / "a.txt").read_text() == "old"


_KILLED = """
import os, signal, sys
from pathlib import Path
from slidelens import files
target, moment = Path(sys.argv[1]), sys.argv[2]
die = lambda *a: os.kill(os.getpid(), signal.SIGKILL)
if moment == "between":                       # the old folder is away, the new one not yet there
    files._exchange = lambda one, other: False
    rename = Path.rename
    Path.rename = lambda self, to: die() if ".tmp-" in self.name else rename(self, to)
with files.staged_folder(target, None) as staging:
    (staging / "a.txt").write_text("new")
    if moment == "writing":
        die()
"""


@pytest.mark.parametrize("name", ["x", "ü" * 127])  # 254 bytes, of 255 that a name may have
@pytest.mark.parametrize("moment", ["writing", "between"])
def test_a_killed_run_is_cleaned_up_and_its_old_folder_restored(
    tmp_path: Path, moment: str, name: str
) -> None:
    target = tmp_path / name
    fill(target, "old")
    done = subprocess.run([sys.executable, "-c", _KILLED, str(target), moment], check=False)
    assert done.returncode == -9
    assert len(names(tmp_path)) == 2
    with pytest.raises(TypeError):
        fill(target, None)  # type: ignore[arg-type]  # the next run, which fails too
    assert names(tmp_path) == [name]
    assert (target / "a.txt").read_text() == "old"


def test_leftovers_of_living_runs_and_other_machines_stay(tmp_path: Path) -> None:
    host = files._host()
    parent = f".x.tmp-{host}-1-abcd"  # process 1 lives
    foreign = ".x.tmp-elsewhere-999999-abcd"
    other = f".y.tmp-{host}-99999999-abcd"  # dead, but of another target
    contained = f".x.tmp-{host}1-{os.getpid()}-abcd"  # this process id, counted elsewhere
    for name in (parent, foreign, other, contained):
        (tmp_path / name).mkdir()
    with staged_folder(tmp_path / "x", None), staged_folder(tmp_path / "x", None):
        pass  # two threads of one process on the same target do not clear each other
    assert names(tmp_path) == sorted([parent, foreign, other, contained, "x"])


def test_write_atomic_replaces_or_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deep" / "a.json"
    write_atomic(path, "old")
    write_atomic(path, b"new")
    assert path.read_text() == "new"

    def fails(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fails)
    with pytest.raises(OSError, match="No space"):
        write_atomic(path, "newest")
    assert names(tmp_path / "deep") == ["a.json"]
    assert path.read_text() == "new"


def test_scratch_folders_of_dead_runs_are_cleared_and_ours_stay(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from slidelens.files import make_scratch\n"
    code += "(make_scratch(Path(sys.argv[1])) / 'x').write_text('x')"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    assert len(names(tmp_path)) == 1
    first = make_scratch(tmp_path)
    second = make_scratch(tmp_path)
    assert names(tmp_path) == sorted([first.name, second.name])
    remove_scratch(first)
    remove_scratch(second)
    assert names(tmp_path) == []


def test_a_scratch_folder_of_this_run_stays_however_its_place_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first = make_scratch(Path())
    second = make_scratch(tmp_path)
    assert first.is_dir()
    remove_scratch(first)
    remove_scratch(second)
    assert names(tmp_path) == []


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc which file is synced")
def test_each_file_goes_to_the_disk_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    original = files.os.fsync

    def fsync(handle: int) -> None:
        synced.append(Path(f"/proc/self/fd/{handle}").resolve().name)
        original(handle)

    monkeypatch.setattr(files.os, "fsync", fsync)
    write_atomic(tmp_path / "alone.txt", "a")
    assert [name.split(".tmp")[0] for name in synced] == [".alone.txt"]
    synced.clear()
    with staged_folder(tmp_path / "folder", None) as staging:
        write_atomic(staging / "sub" / "within.txt", "b")
        assert synced == []
    assert synced.count("within.txt") == 1
    assert (tmp_path / "folder" / "sub" / "within.txt").read_text() == "b"


def test_the_file_that_a_killed_run_was_writing_is_cleared(tmp_path: Path) -> None:
    """Else a training that is preempted again and again leaves a checkpoint of each time."""
    code = "import os, sys; from pathlib import Path; from slidelens.files import atomic_file\n"
    code += "with atomic_file(Path(sys.argv[1])): os.kill(os.getpid(), 9)"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "checkpoint-7.safetensors")], check=False
    )
    assert done.returncode == -9
    living = f".b.csv.tmp-{files._host()}-1-abcd"  # process 1 lives
    (tmp_path / living).touch()
    assert len(names(tmp_path)) == 2
    with files.atomic_file(tmp_path / "a.json") as file:
        write_atomic(tmp_path / "b.json", "another thread's")
        file.write(b"a")
    assert names(tmp_path) == sorted(["a.json", "b.json", living])


def test_what_other_threads_are_writing_is_not_cleared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder is looked through by its absolute path, whatever it is called by who writes."""
    monkeypatch.chdir(tmp_path)
    with files.atomic_file(Path("a.txt")) as file:
        file.write(b"a")
        files._tidied.clear()  # as when another thread is the first to come here
        write_atomic(tmp_path / "b.txt", "b")
    assert names(tmp_path) == ["a.txt", "b.txt"]
