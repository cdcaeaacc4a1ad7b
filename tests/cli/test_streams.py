"""Jobs of a cluster or a desktop: output to a full disk or nowhere, a cohort split among them."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs sh and /dev/full")

_PROGRAM = f"exec {sys.executable} -m slidelens"


def _sh(command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, check=False)


def test_output_to_a_full_disk_is_one_sentence():
    done = _sh(f"{_PROGRAM} models > /dev/full")
    assert done.returncode == 1
    assert done.stderr.startswith("error: No space left on device; make room")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_streams_may_be_closed(closed, tmp_path):
    """A bar asked a stream that was not there; a file that was opened got the number of stderr."""
    (tmp_path / "slides").mkdir()
    (tmp_path / "slides" / "a.tif").write_text("no slide")
    out = tmp_path / "out"
    done = _sh(f"{_PROGRAM} predict {tmp_path}/slides --model demo-mil --out {out} {closed}")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    row = (out / "demo-mil" / "predictions.csv").read_text().splitlines()[1]
    assert row.startswith("a,failed,")


def test_a_cohort_is_split_among_jobs_as_the_page_shows(tmp_path, monkeypatch):
    page = (Path(__file__).resolve().parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"^ls .*xargs.*$", page, re.MULTILINE)
    shown = shown.replace("slidelens", _PROGRAM.removeprefix("exec "))
    (tmp_path / "slides").mkdir()
    for number in range(6):
        (tmp_path / "slides" / f"s {number}.tif").write_text("no slide")
    monkeypatch.chdir(tmp_path)
    told = [_sh(shown.replace("job=0", f"job={job}")).stderr.count("failed") for job in range(4)]
    assert told == [1, 2, 2, 1]
    table = (tmp_path / "results" / "demo-mil" / "predictions.csv").read_text().splitlines()
    assert sorted(row.split(",")[0] for row in table[1:]) == [f"s {n}" for n in range(6)]
