"""The patches that multi-stage segmentation learns from: labelled slides, and an epoch's draw.

Source: multi-stage-segmentation-2019, section 4.1 (pre-processing).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from slidelens.errors import LabelError
from slidelens.families.base import no_tissue
from slidelens.families.multistage import grid_spec
from slidelens.tiling.patch_labels import NOLABEL, NORMAL, TUMOUR, PatchRules, check_drawn

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from slidelens.families.base import Model
    from slidelens.families.multistage import MultistageConfig
    from slidelens.families.multistage_schedule import MultistageTraining
    from slidelens.families.training import TrainData
    from slidelens.tiling.annotations import Annotations
    from slidelens.tiling.grid import Grid

__all__ = ["LabelledPatches", "SlidePatches"]


class SlidePatches(NamedTuple):
    """The patches of a slide and the label ``(N,)`` of each."""

    grid: Grid
    labels: NDArray[np.int8]


class LabelledPatches:
    """The patches of a run's slides, by slide id; each slide's are labelled once.

    All annotations are read first, to tell which of their classes are tumour. A file that cannot be
    read is left to the first look at its slide, which raises the error.

    Parameters
    ----------
    model
        Says what a patch is, and names the classes of slides.
    data
        The slides and their annotations.
    config
        The rules for labelling.

    Raises
    ------
    LabelError
        It is not known which annotation classes are tumour.
    """

    def __init__(
        self, model: Model[MultistageConfig], data: TrainData, config: MultistageTraining
    ) -> None:
        self._model, self._data, self._config = model, data, config
        self._label_of = {s.slide_id: s.label for s in (*data.train, *data.tune)}
        self._found: dict[str, SlidePatches] = {}
        self._drawn: dict[str, Annotations] = {}
        """Annotations of the slides that are not labelled yet."""
        for slide_id in self._label_of:
            try:
                self._drawn[slide_id] = data.annotations(slide_id)
            except LabelError:
                continue
        self.rules = PatchRules(
            config.tumour,
            config.normal,
            model.classes[1],
            config.tumour_share,
            config.normal_share,
        ).of_cohort({s: {a.label for a in drawn} for s, drawn in self._drawn.items()})

    def __getitem__(self, slide_id: str) -> SlidePatches:
        """Return a slide's patches.

        Raises
        ------
        SlideError
            No patch holds enough tissue.
        LabelError
            Annotations that cannot be read, or do not fit the slide or its label; no patch has a
            label.
        """
        if slide_id not in self._found:
            view = self._data.view(slide_id)
            grid = view.grid(grid_spec(self._model.config))
            if len(grid) == 0:
                raise no_tissue(grid.spec)
            drawn = self._drawn.get(slide_id)
            drawn = self._data.annotations(slide_id) if drawn is None else drawn
            check_drawn(drawn, view.size)
            if self._label_of[slide_id]:
                labels = self.rules.label(drawn, grid.boxes, view.size)
            else:
                name = self._model.classes[0]
                labels = self.rules.label_negative(drawn, grid.boxes, view.size, name)
            if (labels == NOLABEL).all():
                raise self._unlabelled(len(grid))
            self._found[slide_id] = SlidePatches(grid, labels)
            self._drawn.pop(slide_id, None)
        return self._found[slide_id]

    def draw(self, seed: int, epoch: int) -> NDArray[np.int64]:
        """Draw an epoch's patches ``(M, 2)``: number of the training slide, row in its grid.

        If they are to be balanced, there are as many of each class.

        Parameters
        ----------
        seed, epoch
            Say which are drawn.

        Raises
        ------
        LabelError
            No patch of the training slides is of one of the classes.
        """
        found = [self[sample.slide_id].labels for sample in self._data.train]
        number = np.repeat(np.arange(len(found)), [len(f) for f in found])
        row = np.concatenate([np.arange(len(f)) for f in found])
        labels, every = np.concatenate(found), np.stack([number, row], 1)
        random = np.random.default_rng([seed, epoch])
        if not self._config.balanced:
            return random.permutation(every[labels != NOLABEL])
        classes = [np.flatnonzero(labels == wanted) for wanted in (TUMOUR, NORMAL)]
        for rows, name in zip(classes, ("tumour", "normal"), strict=True):
            if not len(rows):
                raise LabelError(
                    f"no patch of the training slides is {name}: none of "
                    f"{self._model.config.tile} px at {self._model.config.mpp} µm/px is covered "
                    f"enough; use smaller patches, or another {name}_share."
                )
        asked = self._config.patches
        count = max(asked // 2, 1) if asked else len(classes[0])
        drawn = [np.resize(random.permutation(rows), count) for rows in classes]
        picked: NDArray[np.int64] = every[random.permutation(np.concatenate(drawn))]
        return picked

    def _unlabelled(self, count: int) -> LabelError:
        """Return the error of a slide of whose patches nothing can be learnt, nor a loss had."""
        config = self._config
        return LabelError(
            f"none of its {count} patches has a label: each is at most {config.tumour_share:.0%} "
            f"tumour and at most {config.normal_share:.0%} normal. Annotate more of it, take it "
            "out of the labels, name the annotation classes that are normal tissue with "
            "--set normal=NAME, or set another tumour_share or normal_share."
        )
