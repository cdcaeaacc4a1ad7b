"""State of the Run panel: the request, progress and outcome of a run."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from slidelens.desktop.warned import warned
from slidelens.engine.progress import time_text
from slidelens.engine.provenance import unlike_result
from slidelens.engine.slide_folder import slides_to_run
from slidelens.errors import ResultError, SlideLensError
from slidelens.maps.result import Result
from slidelens.slide.base import slide_id

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from slidelens.desktop.state.cards import Card
    from slidelens.desktop.worker.messages import Message
    from slidelens.geometry import Box

__all__ = ["Checked", "Finding", "RunRequest", "RunState", "checked"]

_STAGES = {
    "search": "Looking for slides",
    "load": "Loading the model",
    "open": "Opening the slide",
    "tissue": "Looking for tissue",
    "infer": "Predicting",
    "write": "Saving the result",
    "done": "Done",
}


@dataclass(frozen=True)
class RunRequest:
    """What the user asked for.

    Attributes
    ----------
    slides
        Files; before :func:`checked`, a folder of them too.
    models
        Folder of each model, and the options that were changed for it.
    out
        Results folder.
    region
        In level-0 px; ``None`` is the whole slide.
    mpp
        The slide's resolution in µm/px if its file states none, or along x and y.
    warnings
        What the search for slides in a folder warned of.
    """

    slides: tuple[Path, ...]
    models: tuple[tuple[Path, Mapping[str, Any]], ...]
    out: Path
    device: str = "auto"
    region: Box | None = None
    mpp: float | tuple[float, float] | None = None
    overwrite: bool = False
    warnings: tuple[str, ...] = ()

    def replaces(self, cards: Mapping[Path, Card]) -> str:
        """Name the results with other settings that a run would replace.

        One sentence; empty if there is none: a run with the same settings finds its own result
        again. ``cards`` are those of the models' folders.
        """
        found = [
            f"{card.name} on {slide_id(slide)}: there is {there}"
            for card, options in ((cards[path], options) for path, options in self.models)
            for slide in self.slides
            if (there := self._unlike(slide, card, options))
        ]
        more = f" ({len(found) - 1} more would be replaced too)" if len(found) > 1 else ""
        return f"{found[0]}{more}." if found else ""

    def _unlike(self, slide: Path, card: Card, options: Mapping[str, Any]) -> str:
        folder = self.out / card.name / slide_id(slide)
        there = unlike_result(folder, slide, card.weights, self.region)
        if there or not (folder / "result.json").exists():
            return there
        with suppress(ResultError):  # damaged: nothing is lost
            settings = Result.load(folder).settings
            if settings is None or settings.options != dict(options):
                return "a result with other options"
        return ""

    def facts(self) -> dict[str, Any]:
        """Return the request as the worker takes it."""
        return {
            "slides": [str(slide) for slide in self.slides],
            "models": [{"path": str(p), "options": dict(options)} for p, options in self.models],
            "out": str(self.out),
            "device": self.device,
            "region": None if self.region is None else tuple(self.region),
            "mpp": self.mpp,
            "overwrite": self.overwrite,
        }


class Checked(NamedTuple):
    """A request with its slides; what it replaces, or why it cannot be run: a sentence or none."""

    request: RunRequest
    replaced: str = ""
    fault: str = ""


def checked(request: RunRequest, cards: Mapping[Path, Card]) -> Checked:
    """Look for a request's slides, and for results that a run would replace; on a share, long.

    ``cards`` are those of the models' folders.
    """
    with warned() as warnings:
        try:
            slides = tuple(slides_to_run(request.slides))
        except SlideLensError as error:
            return Checked(replace(request, warnings=tuple(warnings)), fault=str(error))
    request = replace(request, slides=slides, warnings=tuple(warnings))
    return Checked(request, request.replaces(cards))


@dataclass(frozen=True, slots=True)
class Finding:
    """How one slide and model ended; ``error`` is empty unless ``status`` is ``failed``.

    ``file`` is the slide's, which tells it from another of its name; empty if it is not known.
    """

    slide: str
    model: str
    status: str
    error: str
    probabilities: Mapping[str, float]
    folder: str
    file: str = ""

    @property
    def text(self) -> str:
        """One line for the user."""
        if self.status == "failed":
            return f"{self.model}: {self.error}"
        positive = list(self.probabilities)[-1]
        again = ", as computed before" if self.status == "skipped" else ""
        return f"{self.model}: {positive} {self.probabilities[positive]:.1%}{again}"


@dataclass
class RunState:
    """How far a run is; :meth:`feed` it with the worker's messages."""

    request: RunRequest
    findings: list[Finding] = field(default_factory=list)
    stage: str = ""
    slide: str = ""
    model: str = ""
    done: int = 0
    total: int = 0
    seconds: float = 0.0
    eta: float | None = None

    @property
    def parts(self) -> int:
        """How many pairs of slide and model there are."""
        return len(self.request.slides) * len(self.request.models)

    @property
    def fraction(self) -> float | None:
        """How much is done, 0..1; ``None`` while that is not known."""
        if not self.stage or (self.stage != "infer" and not self.findings):
            return None
        here = self.done / self.total if self.stage == "infer" and self.total else 0.0
        return min(1.0, (len(self.findings) + here) / self.parts)

    @property
    def left(self) -> float | None:
        """Seconds that are left, as far as is known: later parts count like this one."""
        if self.eta is None or self.stage != "infer":
            return None
        after = self.parts - len(self.findings) - 1
        return self.eta + after * (self.seconds + self.eta)

    @property
    def text(self) -> str:
        """One line for the user."""
        if not self.stage:
            return "Starting the worker…"
        if self.stage == "wait":
            many = "1 slide is" if self.total == 1 else f"{self.total} slides are"
            return f"{many} being computed by another run"
        line = _STAGES[self.stage]
        if self.stage == "infer" and self.total:
            line += f" {self.done} of {self.total}"
        if self.model and self.parts > 1:
            many = f" on {self.slide}" if self.slide and len(self.request.slides) > 1 else ""
            number = min(len(self.findings) + 1, self.parts)
            line = f"{self.model}{many} ({number} of {self.parts}): {line}"
        if self.left is not None:
            line += f", {time_text(self.left)} left"
        return line

    def feed(self, message: Message) -> Finding | None:
        """Take a message; return the finding if it was one."""
        facts = message.facts
        if message.name == "progress":
            for name in ("stage", "slide", "model", "done", "total"):
                setattr(self, name, facts[name])
            self.seconds, self.eta = facts.get("seconds", 0.0), facts.get("eta")
        elif message.name == "outcome":
            names = ("slide", "model", "status", "error", "probabilities", "folder")
            finding = Finding(**{name: facts[name] for name in names}, file=facts.get("file", ""))
            self.findings.append(finding)
            self.stage, self.done, self.total, self.eta = "done", 0, 0, None
            return finding
        return None

    @property
    def found(self) -> str:
        """What was found, a line for each slide and model: a region's score is not the slide's."""
        where = "" if self.request.region is None else " (region)"
        several = len(self.request.slides) > 1
        return "\n".join(
            f"{f.slide}, {f.text}{where}" if several else f"{f.text}{where}"
            for f in self.findings
            if f.status != "failed"
        )

    def summary(self, status: str, error: str) -> str:
        """Describe how the run ended."""
        failed = sum(f.status == "failed" for f in self.findings)
        good = len(self.findings) - failed
        if status in ("failed", "died"):
            return error
        if status == "cancelled":
            return (
                f"Stopped; {good} of {self.parts} finished and were kept." if good else "Stopped."
            )
        if failed and self.parts == 1:
            return self.findings[0].error
        return f"{good} done, {failed} failed." if failed else "Done."
