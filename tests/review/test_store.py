import os
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from rights import nobody
from slidelens.errors import ResultError
from slidelens.review import database as module
from slidelens.review.store import CaseKey, Decision, ReviewStore
from slidelens.review.taxonomy import TAXONOMY, save_taxonomy

CASE = CaseKey("a", "mil", "fp")


@pytest.fixture
def store(tmp_path):
    return ReviewStore(tmp_path / "review.sqlite")


def test_there_is_no_file_and_no_decision_until_someone_decides(store):
    assert store.decisions() == []
    assert store.get(CASE, "ann") is None
    assert store.history() == []
    assert not store.path.exists()
    made = store.set(CASE, reviewer="ann", category="Inflammation")
    assert store.path.exists()
    assert store.decisions() == [made]
    assert store.get(CASE, "ann") == made
    assert abs((datetime.now(UTC) - datetime.fromisoformat(made.time)).total_seconds()) < 60


def test_what_is_not_given_stays_and_empty_text_clears(store):
    store.set(CASE, reviewer="ann", category="Inflammation", note="dense")
    store.set(CASE, reviewer="ann", true_label="tumor")
    changed = store.set(CASE, reviewer="ann", note="")
    assert (changed.category, changed.note, changed.true_label) == ("Inflammation", "", "tumor")
    assert changed.label_is_wrong
    store.set(CASE, reviewer="ann", category="", true_label="")
    assert store.decisions() == []
    assert store.reviewers() == []
    assert [d.category for d in store.history(CASE)] == ["Inflammation"] * 3 + [""]


def test_the_same_decision_again_is_no_change(store):
    first = store.set(CASE, reviewer="ann", category="Inflammation")
    assert store.set(CASE, reviewer="ann", category="Inflammation") == first
    assert store.history() == [first]


def test_reviewers_stand_beside_each_other_and_progress_counts_cases(store):
    other = CaseKey("b", "mil", "fn")
    store.set(CASE, reviewer="ann", category="Inflammation")
    store.set(CASE, reviewer="bob", category="Tissue artefacts")
    store.set(other, reviewer="bob", note="look again")  # a note decides nothing
    assert store.reviewers() == ["ann", "bob"]
    assert store.progress([CASE, other]) == (1, 2)
    assert store.progress([CASE, other], "ann") == (1, 2)
    store.set(other, reviewer="bob", true_label="normal")
    assert store.progress([CASE, other], "bob") == (2, 2)
    assert [d.slide_id for d in store.decisions("bob")] == ["a", "b"]


def test_a_change_is_newer_than_what_it_changes_even_if_the_clock_was_put_back(store):
    ahead = "2999-01-01T00:00:00.000000+00:00"
    store.add_all([Decision(*CASE, "ann", "Inflammation", time=ahead)])
    store.set(CASE, reviewer="ann", category="Tissue artefacts")
    assert store.get(CASE, "ann").category == "Tissue artefacts"


def test_older_decisions_from_elsewhere_become_history(store):
    now = store.set(CASE, reviewer="ann", category="Inflammation")
    old = Decision(*CASE, "ann", "Bladder epithelium", time="2020-01-01T00:00:00.000000+00:00")
    assert store.add_all([old, old, now]) == 1
    assert store.get(CASE, "ann") == now
    assert store.history() == [old, now]


def test_a_decision_needs_a_reviewer_and_a_kind_that_exists(store):
    with pytest.raises(ValueError, match="name of its reviewer"):
        store.set(CASE, reviewer=" ", category="Inflammation")
    with pytest.raises(ResultError):
        store.set_all([CASE, CaseKey("b", "mil", "tp")], "ann", "Inflammation")
    assert store.decisions() == []  # all or none


def test_a_category_of_the_other_kind_of_error_is_refused(store):
    missed = CaseKey("b", "mil", "fn")
    text = (
        r"slide 'b', model 'mil': no category 'Bladder epithelium' of false negatives \(it is one "
        r"of false positives\): Little amount of tumor, .*Unclear reason; .* taxonomy --edit"
    )
    with pytest.raises(ResultError, match=text):
        store.set_all([CASE, missed], "ann", "Bladder epithelium")
    with pytest.raises(ResultError, match="no category 'inflammation' of false positives: Normal"):
        store.set(CASE, reviewer="ann", category="inflammation")
    assert store.history() == []  # all or none
    store.set_all([CASE, missed], "ann", "Tissue artefacts")  # which both have


def test_categories_are_those_of_the_file_and_what_was_chosen_may_be_chosen_again(store):
    lists = {"fp": ["Crush"], "fn": ["Mucin", "Blur"]}
    save_taxonomy(store.path.parent, lists)
    missed = CaseKey("b", "mil", "fn")
    store.set(missed, reviewer="ann", category="Mucin")
    with pytest.raises(ResultError, match="no category 'Inflammation' of false positives: Crush;"):
        store.set(CASE, reviewer="ann", category="Inflammation")
    save_taxonomy(store.path.parent, lists | {"fn": ["Blur"]})
    store.set(missed, reviewer="ann", note="pale")  # a category that is gone is kept
    store.set(missed, reviewer="ann", category="Blur")
    store.set(missed, reviewer="ann", category="Mucin")  # as undo does
    assert store.get(missed, "ann").category == "Mucin"
    for key, reviewer in ((missed, "bob"), (CaseKey("c", "mil", "fn"), "ann")):
        with pytest.raises(ResultError, match="no category 'Mucin'"):
            store.set(key, reviewer=reviewer, category="Mucin")


def test_the_documentation_lists_the_categories_of_both_kinds():
    text = (Path(__file__).parents[2] / "docs" / "review.md").read_text(encoding="utf-8")
    rows = "\n".join(f"| {fp} | {fn} |" for fp, fn in zip(*TAXONOMY.values(), strict=True))
    assert f"| false positives | false negatives |\n|---|---|\n{rows}\n" in text


WRITER = """
import sys
from slidelens.review.store import CaseKey, ReviewStore
path, who = sys.argv[1:]
for i in range(40):
    ReviewStore(path).set(CaseKey(f"s{i % 8}", "mil", "fp"), reviewer="both", note=f"{who} {i}")
    ReviewStore(path).set(CaseKey(f"s{i}", "mil", "fn"), reviewer=who, true_label=f"{i}")
"""


def test_two_processes_that_write_at_once_lose_nothing(store):
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(store.path), who])
        for who in ("ann", "bob")
    ]
    assert [w.wait(60) for w in writers] == [0, 0]
    history = store.history()
    assert len(history) == 160
    for who in ("ann", "bob"):
        assert [d.true_label for d in history if d.reviewer == who] == [str(i) for i in range(40)]
        notes = [d.note for d in history if d.note.startswith(who)]
        assert notes == [f"{who} {i}" for i in range(40)]
    assert len(store.decisions("both")) == 8


def test_one_field_each_set_at_once_by_threads_are_both_kept(store):
    fields = [{"category": "Inflammation"}, {"note": "dense"}, {"true_label": "tumor"}]
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda f: store.set(CASE, reviewer="ann", **f), fields))
    found = store.get(CASE, "ann")
    assert (found.category, found.note, found.true_label) == ("Inflammation", "dense", "tumor")


def test_a_newer_version_a_foreign_database_and_rubbish_are_told_apart(store, tmp_path):
    store.set(CASE, reviewer="ann", category="Inflammation")
    with sqlite3.connect(store.path) as db:
        db.execute("PRAGMA user_version = 99")
    for use in (store.decisions, lambda: store.set(CASE, reviewer="ann", category="x")):
        with pytest.raises(ResultError, match=r"version 99 .* newer .* update slidelens"):
            use()
    foreign = tmp_path / "foreign.sqlite"
    with sqlite3.connect(foreign) as db:
        db.execute("CREATE TABLE decision (id)")
    with pytest.raises(ResultError, match="another program"):
        ReviewStore(foreign).set(CASE, reviewer="ann", category="x")
    rubbish = tmp_path / "rubbish.sqlite"
    rubbish.write_bytes(b"no database at all" * 100)
    with pytest.raises(ResultError, match="not a review, or is damaged"):
        ReviewStore(rubbish).decisions()


def test_an_older_version_is_brought_up_to_date_with_its_decisions(store, monkeypatch):
    made = store.set(CASE, reviewer="ann", category="Inflammation")
    added = ("CREATE TABLE attachment (id INTEGER PRIMARY KEY, decision INTEGER)",)
    monkeypatch.setattr(module, "_MIGRATIONS", (*module._MIGRATIONS, added))
    assert store.decisions() == [made]  # what only reads leaves the version as it is
    store.set(CASE, reviewer="bob", category="Inflammation")
    with sqlite3.connect(store.path) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (2,)
        assert db.execute("SELECT count(*) FROM attachment").fetchone() == (0,)
    assert len(store.decisions()) == 2


def test_a_store_that_only_reads_never_writes(store):
    reader = ReviewStore(store.path, read_only=True)
    with pytest.raises(ResultError, match="read-only"):
        reader.set(CASE, reviewer="ann", category="x")
    assert not store.path.exists()


def test_a_folder_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    store = ReviewStore(tmp_path / "file" / "review.sqlite")  # for root too
    with pytest.raises(ResultError, match="folder may be written"):
        store.set(CASE, reviewer="ann", category="x")


@pytest.mark.skipif(os.name == "nt", reason="folders of Windows have no such mode")
def test_decisions_are_read_in_a_folder_that_cannot_be_written():
    with TemporaryDirectory() as name:  # pytest's own folders are closed to others
        folder = Path(name)
        store = ReviewStore(folder / "review.sqlite")
        made = store.set(CASE, reviewer="ann", category="Inflammation")
        store.path.chmod(0o444)
        folder.chmod(0o555)
        with nobody():
            assert store.decisions() == [made]
            with pytest.raises(ResultError, match="folder may be written"):
                store.set(CASE, reviewer="bob", category="x")
        folder.chmod(0o755)
