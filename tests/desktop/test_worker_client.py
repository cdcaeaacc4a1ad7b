"""The worker as a process: real predictions, cancelled, killed, ended."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest
import tifffile

from slidelens.desktop.worker.client import Job, WorkerClient
from slidelens.desktop.worker.messages import Message
from slidelens.desktop.worker.preview import Growing
from slidelens.maps.result import Result
from slidelens.testing.phantom import PhantomSpec, write_phantom

pytestmark = pytest.mark.gui


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    path = tmp_path_factory.mktemp("slides") / "phantom.tif"
    write_phantom(path, PhantomSpec(size=(2048, 1536), mpp=0.5, seed=5, lesions=1))
    return path


@pytest.fixture(scope="module")
def client(qapp):
    """One process for all tests of this file: importing torch takes seconds."""
    client = WorkerClient()
    yield client
    client.close()


def events(job) -> dict[str, list]:
    """Collect what a job sends, by event; ``ended`` holds status and error."""
    heard: dict[str, list] = {"ended": []}
    job.said.connect(lambda message: heard.setdefault(message.name, []).append(message))
    job.ended.connect(lambda *end: heard["ended"].append(end))
    return heard


def finish(qtbot, job) -> dict[str, list]:
    heard = events(job)
    qtbot.waitUntil(lambda: bool(heard["ended"]), timeout=180_000)
    return heard


def request(slide, out, **more):
    return {
        "slides": [str(slide)],
        "models": [{"path": "demo-mil", "options": {}}],
        "out": str(out),
        "device": "cpu",
        **more,
    }


def test_catalogue_lists_models_with_options_families_devices(client, qtbot, tmp_path):
    (message,) = finish(qtbot, client.submit("catalogue", {"folders": [str(tmp_path / "gone")]}))[
        "catalogue"
    ]
    models = {model["name"]: model for model in message.facts["models"]}
    demo = models["demo-mil"]
    assert demo["error"] is None
    assert demo["intended_use"].startswith("Demonstration")
    options = {option["name"]: option for option in demo["options"]}
    assert set(options) >= {"overlap", "min_tissue", "batch_size"}
    assert options["min_tissue"]["maximum"] == 1
    assert options["batch_size"]["value"] == 64
    mil = next(f for f in message.facts["families"] if f["name"] == "mil")
    assert mil["trains"]
    assert {"stages", "patience"} <= {field["name"] for field in mil["training"]}
    assert message.facts["devices"][0]["name"] == "auto"


def test_prediction_with_growing_map(client, qtbot, slide, tmp_path):
    models = [{"path": "demo-mil", "options": {"overlap": 100, "batch_size": 1}}]  # takes a while
    heard = finish(qtbot, client.submit("predict", request(slide, tmp_path, models=models)))
    assert heard["ended"] == [("done", "")]
    (outcome,) = heard["outcome"]
    assert outcome.facts["status"] == "done"
    result = Result.load(outcome.facts["folder"])
    assert result.probabilities == outcome.facts["probabilities"]
    stages = [m.facts["stage"] for m in heard["progress"]]
    assert [stages[0], stages[-1]] == ["load", "done"]
    assert any(m.facts["eta"] for m in heard["progress"] if m.facts["stage"] == "infer")
    grown = Growing.of(heard["cells"][0])
    for message in heard["cells"]:
        assert message.facts["model"] == "demo-mil"
        assert message.facts["content"] == result.slide.fingerprint
        grown.add(message)
    final = result.maps["probability"]
    np.testing.assert_allclose(grown.values, final.read(), atol=1e-6)
    assert grown.map.affine == final.affine


def test_warnings_of_a_run_reach_the_window(client, qtbot, tmp_path):
    dark = np.full((512, 512, 3), 4, np.uint8)
    dark[100:400, 100:400, 2] = 120
    tifffile.imwrite(tmp_path / "dapi.tif", dark, photometric="rgb", tile=(256, 256))
    asked = request(tmp_path / "dapi.tif", tmp_path / "out", mpp=1.0)
    job = client.submit("predict", asked)
    assert finish(qtbot, job)["ended"] == [("done", "")]
    (warning,) = job.warnings
    assert warning.startswith("dapi: looks like a fluorescence slide;")


def test_a_job_keeps_what_it_warns_of_once(client):
    job = Job(client, Message(0, "train"))
    for text in ("coarse", "dark", "coarse"):
        job.hear(Message(0, "warning", {"text": text}))
    assert job.warnings == ["coarse", "dark"]


def test_a_mistake_is_one_sentence(client, qtbot, slide, tmp_path):
    bad = request(slide, tmp_path, models=[{"path": "no-such-model", "options": {}}])
    ((status, error),) = finish(qtbot, client.submit("predict", bad))["ended"]
    assert status == "failed"
    assert error.startswith("no model 'no-such-model'")
    odd = request(slide, tmp_path, models=[{"path": "demo-mil", "options": {"tile": 3}}])
    ((_, error),) = finish(qtbot, client.submit("predict", odd))["ended"]
    assert "its options are" in error


def test_options_reach_the_model(client, qtbot, slide, tmp_path):
    region = (512, 384, 1024, 768)
    tiles = {}
    for overlap in (0, 56):
        models = [{"path": "demo-mil", "options": {"overlap": overlap, "min_tissue": 0}}]
        out = tmp_path / str(overlap)
        heard = finish(
            qtbot, client.submit("predict", request(slide, out, models=models, region=region))
        )
        tiles[overlap] = len(Result.load(heard["outcome"][0].facts["folder"]).tiles)
    assert tiles[56] > 2 * tiles[0] > 0


def test_cancel_leaves_nothing_and_the_next_job_runs(client, qtbot, slide, tmp_path):
    models = [{"path": "demo-mil", "options": {"overlap": 84, "batch_size": 4}}]
    job = client.submit("predict", request(slide, tmp_path, models=models))
    heard = events(job)
    waiting = events(client.submit("catalogue", {"folders": []}))
    qtbot.waitUntil(lambda: "cells" in heard, timeout=60_000)
    job.cancel()
    qtbot.waitUntil(lambda: bool(heard["ended"] and waiting["ended"]), timeout=20_000)
    assert heard["ended"] == [("cancelled", "")]
    assert waiting["ended"] == [("done", "")]
    assert not list(tmp_path.glob("*/*/result.json"))


def test_a_killed_worker_is_reported_and_replaced(client, qtbot, slide, tmp_path):
    models = [{"path": "demo-mil", "options": {"overlap": 84, "batch_size": 4}}]
    heard = events(client.submit("predict", request(slide, tmp_path, models=models)))
    qtbot.waitUntil(lambda: "cells" in heard, timeout=60_000)
    os.kill(client.pid, signal.SIGKILL)
    qtbot.waitUntil(lambda: bool(heard["ended"]), timeout=5_000)
    ((status, error),) = heard["ended"]
    assert status == "died"
    assert "was killed" in error
    assert not list(tmp_path.glob("*/*/result.json"))
    again = finish(qtbot, client.submit("predict", request(tmp_path / "gone.svs", tmp_path)))
    ((status, error),) = again["ended"]
    assert status == "failed"  # but the worker works
    assert "gone.svs: no such file" in error


def test_a_client_that_was_closed_works_again_and_tells_a_death_from_an_end(qtbot, slide, tmp_path):
    client = WorkerClient()
    first = events(client.submit("predict", request(slide, tmp_path)))
    client.close()  # as a window does that closes while a run is going on
    assert [status for status, _ in first["ended"]] == ["cancelled"]
    heard = events(client.submit("predict", request(slide, tmp_path)))
    os.kill(client.pid, signal.SIGKILL)
    qtbot.waitUntil(lambda: bool(heard["ended"]), timeout=60_000)
    assert [status for status, _ in heard["ended"]] == ["died"]
    client.close()


def test_a_job_behind_one_that_had_to_be_killed_is_done_all_the_same(qtbot, slide, tmp_path):
    client = WorkerClient(patience=0.2)
    asked = client.submit("predict", request(slide, tmp_path))
    heard, waiting = events(asked), events(client.submit("catalogue", {"folders": []}))
    last = events(client.submit("predict", request(tmp_path / "gone.svs", tmp_path)))
    qtbot.waitUntil(lambda: "progress" in heard, timeout=60_000)
    pid = client.pid
    os.kill(pid, signal.SIGSTOP)  # a worker that does not answer any more
    asked.cancel()
    qtbot.waitUntil(lambda: bool(heard["ended"]), timeout=20_000)
    assert heard["ended"] == [("cancelled", "")]
    assert not waiting["ended"]
    qtbot.waitUntil(lambda: bool(waiting["ended"] and last["ended"]), timeout=60_000)
    assert waiting["ended"] == [("done", "")]
    assert [status for status, _ in last["ended"]] == ["failed"]  # there is no such slide
    assert len(waiting["catalogue"]) == 1
    assert client.pid not in (0, pid)
    client.close()


def test_only_the_job_that_was_asked_to_end_is_called_cancelled(qtbot, slide, tmp_path):
    client = WorkerClient()
    asked = client.submit("predict", request(slide, tmp_path))
    heard, waiting = events(asked), events(client.submit("catalogue", {"folders": []}))
    qtbot.waitUntil(lambda: "progress" in heard, timeout=60_000)
    os.kill(client.pid, signal.SIGSTOP)
    asked.cancel()
    os.kill(client.pid, signal.SIGKILL)  # not by us: what comes next may kill it again
    qtbot.waitUntil(lambda: bool(heard["ended"] and waiting["ended"]), timeout=20_000)
    assert heard["ended"] == [("cancelled", "")]
    assert [status for status, _ in waiting["ended"]] == ["died"]
    client.close()


def test_a_job_may_be_taken_back_by_who_hears_of_the_death_of_another(qtbot):
    client = WorkerClient()
    first, second, third = (client.submit("catalogue", {"folders": []}) for _ in range(3))
    heard, last = events(second), events(third)
    first.ended.connect(lambda *_: third.cancel())
    qtbot.waitUntil(lambda: client.pid != 0, timeout=20_000)
    os.kill(client.pid, signal.SIGKILL)
    qtbot.waitUntil(lambda: bool(heard["ended"]), timeout=20_000)
    assert [status for status, _ in heard["ended"]] == ["died"]
    assert last["ended"] == [("cancelled", "")]
    assert not client.busy
    client.close()


def test_a_job_that_comes_while_the_idle_worker_ends_gets_another(qtbot):
    client = WorkerClient()
    finish(qtbot, client.submit("catalogue", {"folders": []}))
    pid = client.pid
    client._rest()
    assert client.pid == 0
    job = client.submit("catalogue", {"folders": []})
    assert client.pid != pid
    assert finish(qtbot, job)["ended"] == [("done", "")]
    client._rest()
    client.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_closing_ends_the_process_and_cancels(qtbot, slide, tmp_path):
    client = WorkerClient()
    models = [{"path": "demo-mil", "options": {"overlap": 84, "batch_size": 4}}]
    heard = events(client.submit("predict", request(slide, tmp_path, models=models)))
    qtbot.waitUntil(lambda: "progress" in heard, timeout=60_000)
    pid = client.pid
    client.close()
    assert heard["ended"] == [("cancelled", "")]
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_job_that_waits_is_cancelled_without_the_one_under_way(qtbot, slide, tmp_path):
    client = WorkerClient(patience=0.5)
    models = [{"path": "demo-mil", "options": {"overlap": 84, "batch_size": 4}}]
    first = events(client.submit("predict", request(slide, tmp_path, models=models)))
    job = client.submit("predict", request(slide, tmp_path / "other"))
    waiting = events(job)
    qtbot.waitUntil(lambda: "cells" in first, timeout=60_000)
    job.cancel()
    assert waiting["ended"] == [("cancelled", "")]
    qtbot.waitUntil(lambda: bool(first["ended"]), timeout=120_000)
    assert first["ended"] == [("done", "")], "longer than the patience"
    assert finish(qtbot, client.submit("catalogue", {"folders": []}))["ended"] == [("done", "")]
    assert not (tmp_path / "other").exists()
    client.close()
