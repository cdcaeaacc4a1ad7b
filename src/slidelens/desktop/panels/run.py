"""The Run panel: run models on the open slide and watch heatmaps grow."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtpy.QtCore import QTimer
from qtpy.QtWidgets import QDoubleSpinBox, QFormLayout, QLabel

from slidelens.desktop.live import LiveMaps
from slidelens.desktop.panels.models import ModelChooser
from slidelens.desktop.panels.parts import (
    Panel,
    button,
    calm,
    calm_combo,
    caption,
    heading,
    progress_bar,
    row,
    show_progress,
)
from slidelens.desktop.panels.results import ResultsList
from slidelens.desktop.panels.start import SlideLine
from slidelens.desktop.panels.where import Where
from slidelens.desktop.qt import alive
from slidelens.desktop.region import draw_region, region_box, region_note
from slidelens.desktop.shown import layers_of, layers_on, remove_layers, shown_slides
from slidelens.desktop.state.runs import Checked, Finding, RunRequest, RunState, checked

if TYPE_CHECKING:
    from slidelens.desktop.shown import ShownSlide
    from slidelens.desktop.worker.client import Job
    from slidelens.desktop.worker.messages import Message
    from slidelens.geometry import Box
    from slidelens.maps.result import Result

__all__ = ["RunPanel"]


class RunPanel(Panel):
    """Choose models, run them, watch, keep."""

    def __init__(self, napari_viewer: Any) -> None:
        super().__init__(napari_viewer)
        self.state: RunState | None = None
        self._job: Job | None = None
        self._asked: RunRequest | None = None
        """A run whose folder is being searched for slides."""
        self._question: tuple[RunRequest, str] | None = None
        """What waits for "Run anyway", and what the notice asks."""
        self._live = LiveMaps()
        self._owed: dict[Path, ShownSlide] = {}
        """Results that growing maps have hidden and that are to be shown again, and their slide."""
        self._build()
        bench = self.bench
        bench.slide_changed.connect(self._update)
        bench.slide_changed.connect(self._show_growing)
        bench.models_changed.connect(self._fill_devices)
        bench.results_changed.connect(self._withdraw)
        bench.listener = self
        bench.told.connect(lambda text, bad: self.notice.say(text, "error" if bad else "info"))
        self.models.changed.connect(self._update)
        self.where.currentIndexChanged.connect(lambda _: self._where_chosen())
        self.where.activated.connect(lambda _: self._ask_folder())
        self.device.currentIndexChanged.connect(self._update)
        self.mpp.valueChanged.connect(self._update)
        bench.viewer.layers.events.removed.connect(self._region_changed)
        self._fill_devices()
        self._show_progress()
        self._update()

    @property
    def running(self) -> bool:
        """Whether a run is under way, or its folder is being searched for slides."""
        return self._job is not None or self._asked is not None

    def run(self) -> None:
        """Start the run; ask first if it replaces a result with other settings."""
        if self.running:
            return
        if missing := self._missing():  # a region may be gone since the button was last updated
            self.notice.say(missing, "error")
            return
        request = self._request()
        if request is None:
            return
        cards = {card.path: card for card, _ in self.models.chosen()}
        if self.where.currentData() != "folder":
            self._begin(checked(request, cards), request)
            return
        self._asked, self.state = request, RunState(request, stage="search")
        self.notice.say("")
        self.bench.background.run(
            lambda: checked(request, cards),
            partial(self._searched, request),
            owner=self,
            failed=lambda text: self._searched(request, Checked(request, fault=text)),
        )
        self._show_progress()
        self._update()

    def _searched(self, request: RunRequest, found: Checked) -> None:
        if self._asked is request:  # else it was stopped
            self._asked = None
            self._begin(found, request)
            self._show_progress()
            self._update()

    def _begin(self, found: Checked, asked: RunRequest) -> None:
        """Start a run; ask first if it replaces a result, or say why it cannot be run."""
        request = found.request
        if found.fault:
            self.notice.say(found.fault, "error", warnings=request.warnings)
        elif found.replaced:
            text = f"{found.replaced} This run will replace it."
            self._question = asked, text
            self.notice.say(text, action="Run anyway", then=partial(self._confirmed, request))
        else:
            self._start(request)

    def _confirmed(self, request: RunRequest) -> None:
        """Start what was confirmed, or what the panel says now if that is something else."""
        asked, self._question = self._question, None
        if asked is not None and asked[0] == self._request():
            self._start(request)
        else:
            self.run()

    def _withdraw(self) -> None:
        """Take back the question whether to run, if something else would be run by now."""
        if self._question is not None and self._question[0] != self._request():
            if self.notice.text == self._question[1]:
                self.notice.hide()
            self._question = None

    def _start(self, request: RunRequest) -> None:
        if self.running:
            return
        self.notice.say("", warnings=request.warnings)
        self.state = RunState(request)
        self._live = LiveMaps()
        self._job = job = self.bench.runner.submit("predict", request.facts())
        job.warnings += request.warnings
        job.said.connect(self._hear)
        job.ended.connect(self._ended)
        self._show_progress()
        self._update()

    def stop(self) -> None:
        """Stop the run, or the search for its slides; finished results are kept."""
        if self._asked is not None:
            self._asked = None
            self.notice.say("Stopped.")
            self._show_progress()
            self._update()
        elif self._job is not None:
            self.status.setText("Stopping…")
            self.stop_button.setEnabled(False)
            self._job.cancel()

    def draw_region(self) -> None:
        """Let the user draw a rectangle on the slide; it replaces the previous one."""
        slide = self.bench.slide
        if slide is None:
            return
        draw_region(self.bench.viewer, slide, self._region_changed)
        self._update()

    def _build(self) -> None:
        self.slide = SlideLine(self.bench)
        self.models = ModelChooser(self.bench)
        self.device = calm_combo("Where the model runs")
        self.where = Where()
        self.region = button(
            "Draw", "Draw a rectangle on the slide; only the area inside is run", self.draw_region
        )
        self.mpp = QDoubleSpinBox()
        self.mpp.setRange(0.05, 100)
        self.mpp.setDecimals(4)
        self.mpp.setValue(0.5)
        self.mpp.setSuffix(" µm/px")
        calm(self.mpp).setToolTip("The file states no resolution; 0.5 µm/px is a scan at 20x")
        self.mpp_label = QLabel("Resolution")
        form = QFormLayout()
        form.addRow("Device", self.device)
        form.addRow("Run on", row(self.where, self.region, stretch=0))
        form.addRow(self.mpp_label, self.mpp)
        self.why = caption()
        self.run_button = button("Run", "Run the ticked models (Ctrl+Return)", self.run)
        self.run_button.setShortcut("Ctrl+Return")
        self.stop_button = button("Stop", "Stop; finished results are kept", self.stop)
        self.bar = progress_bar("Run progress")
        self.status = caption()
        self.results = ResultsList(self.bench, self.notice)
        body = self.body
        body.addWidget(self.slide)
        body.addLayout(row(heading("Models"), self.models.add_button, stretch=0))
        body.addWidget(self.models)
        body.addLayout(form)
        body.addWidget(heading("Results"))
        body.addWidget(self.results)
        body.addStretch()
        self.foot.addLayout(row(self.run_button, self.stop_button, stretch=0))
        for widget in (self.why, self.bar, self.status):
            self.foot.addWidget(widget)

    def _region(self) -> Box | None:
        slide = self.bench.slide
        if slide is None or self.where.currentData() != "region":
            return None
        return region_box(self.bench.viewer, slide)

    def _note(self) -> str:
        """Say how the region that is run differs from what is drawn."""
        slide = self.bench.slide
        if slide is None or self.where.currentData() != "region":
            return ""
        return region_note(self.bench.viewer, slide)

    def _slides(self) -> list[Path]:
        """Return the files to run on, or the folder of them."""
        chosen = self.where.currentData()
        if chosen == "folder":
            return [self.where.folder] if self.where.folder else []
        if chosen == "open":
            paths = [s.path for s in shown_slides(self.bench.viewer) if s.path is not None]
            return list(dict.fromkeys(paths))  # a file that was dropped twice is run once
        slide = self.bench.slide
        return [] if slide is None or slide.path is None else [slide.path]

    def _bare(self) -> bool:
        """Whether no slide to run on states a resolution, as far as the window knows."""
        chosen, slide = self.where.currentData(), self.bench.slide
        if chosen == "folder" or slide is None:
            return False  # a typed value would override what the files state
        meant = shown_slides(self.bench.viewer) if chosen == "open" else [slide]
        return all(one.world.unit == "pixel" for one in meant)

    def _request(self) -> RunRequest | None:
        slide, slides = self.bench.slide, self._slides()
        if not slides:
            return None
        one = self.where.currentData() in ("slide", "region")
        mpp: float | tuple[float, float] | None = None
        if self._bare():
            mpp = self.mpp.value()
        elif slide is not None and one and not slide.stated:  # as shown: given on the command line
            mpp = (slide.world.mpp.x, slide.world.mpp.y)
        return RunRequest(
            tuple(slides),
            tuple((card.path, options) for card, options in self.models.chosen()),
            self.bench.results,
            self.device.currentData() or "auto",
            self._region(),
            mpp,
        )

    def _hear(self, message: Message) -> None:
        if self.state is None or self.bench.closed:
            return
        if message.name == "cells":
            if self._live.feed(self.bench.viewer, message):
                QTimer.singleShot(0, self._grow)
            return
        if message.name == "warning" and self._job is not None:
            self.notice.say("", warnings=self._job.warnings)
        finding = self.state.feed(message)
        if finding is not None:
            slide = self.bench.slide
            good = finding.status != "failed"
            if good and slide is not None and slide.is_of(finding.slide, finding.file):
                self._live.finish(finding.model)
                self._show(finding)
            else:
                self._clear(finding.model)
            if good:
                self.bench.results_changed.emit()
        self._show_progress()

    def _grow(self) -> None:
        if alive(self) and not self.bench.closed and self._live.grow(self.bench.viewer):
            QTimer.singleShot(0, self._grow)

    def _show_growing(self) -> None:
        """Show the maps of a slide that grew while another one was shown."""
        if alive(self) and not self.bench.closed and self._live.show(self.bench.viewer):
            QTimer.singleShot(0, self._grow)

    def _clear(self, model: str | None = None) -> None:
        """Remove growing maps; the results that they hid are on disk and are shown again."""
        slide = self.bench.slide
        hidden = self._live.clear(self.bench.viewer, model)
        if slide is not None:
            self._owed |= dict.fromkeys(hidden, slide)
        live = self._live
        for folder, its_slide in list(self._owed.items()):
            if its_slide != slide or not folder.is_dir():
                del self._owed[folder]
                continue
            maps = layers_on(self.bench.viewer, its_slide, "map")
            self.bench.show_result(
                folder,
                visible=not any(layer.visible for layer in maps),
                wanted=lambda: self._live is live,  # a run that begins meanwhile comes first
                then=partial(self._settle, folder),
                failed=partial(self._settle, folder),
                owner=self,
            )

    def _settle(self, folder: Path, shown: Result | str) -> None:
        """Note that a result is shown again, or say why it cannot be."""
        self._owed.pop(folder, None)
        if isinstance(shown, str):
            self.notice.say(shown, "error")

    def _show(self, finding: Finding) -> None:
        """Show a result in the layers that grew."""

        def failed(text: str) -> None:
            viewer = self.bench.viewer
            remove_layers(viewer, layers_of(viewer, slide=finding.slide, model=finding.model))
            self.notice.say(text, "error")

        self._owed.pop(Path(finding.folder), None)
        self.bench.show_result(Path(finding.folder), failed=failed, owner=self)

    def _ended(self, status: str, error: str) -> None:
        job, self._job = self._job, None
        if self.bench.closed or job is None:
            return
        self._clear()
        if self.state is not None:
            text = self.state.summary(status, error)
            failed = [f for f in self.state.findings if f.status == "failed"]
            bad = bool(failed) or status in ("failed", "died")
            details = "\n".join(f.text for f in failed) if len(self.state.findings) > 1 else ""
            good = "good" if status == "done" else "info"
            shown = self.state.found if status == "done" and not bad else ""
            text = "\n".join(filter(None, [shown or text, details]))
            self.notice.say(text, "error" if bad else good, warnings=job.warnings)
        self._show_progress()
        self._update()

    def _show_progress(self) -> None:
        show_progress(self.bar, self.status, self.state if self.running else None)

    def _where_chosen(self) -> None:
        chosen = self.where.currentData()
        if chosen == "region" and self._region() is None:
            self.draw_region()
        self._update()

    def _ask_folder(self) -> None:
        self.where.ask_folder()
        self._update()

    def _region_changed(self) -> None:
        if alive(self) and not self.bench.closed:
            self._update()

    def _fill_devices(self) -> None:
        wanted = self.device.currentData() or self.bench.preferences.device
        self.device.clear()
        for device in self.bench.devices:
            self.device.addItem(device.title, device.name)
        self.device.setCurrentIndex(max(0, self.device.findData(wanted)))

    def _update(self) -> None:
        """Enable what can be done and say what is missing."""
        bare = self._bare()
        self.mpp.setVisible(bare)
        self.mpp_label.setVisible(bare)
        self.region.setVisible(self.where.currentData() == "region")
        self._withdraw()
        missing = self._missing()
        said = "\n".join(filter(None, [missing, self._note()]))
        self.why.setText(said)
        self.why.setVisible(bool(said) and not self.running)
        self.run_button.setEnabled(not missing and not self.running)
        self.stop_button.setEnabled(self.running)

    def _missing(self) -> str:
        chosen, slide = self.where.currentData(), self.bench.slide
        if slide is None and chosen != "folder":
            return "Open a slide to begin."
        if slide is not None and slide.path is None and chosen != "folder":
            return "This picture was not opened from a file, so models cannot read it."
        if chosen == "folder" and self.where.folder is None:
            return "Choose the folder of slides to run on."
        if not self.models.chosen():
            return "Tick a model to run."
        if chosen == "region" and self._region() is None:
            return "Draw the region: press Draw, then drag over the slide."
        return ""
