"""Label patches from annotations: tumour, normal or none.

Source: multi-stage-segmentation-2019, section 4.1 (pre-processing).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely

from slidelens.errors import LabelError
from slidelens.tiling.annotations import fraction

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from slidelens.geometry import Size
    from slidelens.tiling.annotations import Annotation

__all__ = ["NOLABEL", "NORMAL", "TUMOUR", "PatchRules", "check_drawn", "within"]

NOLABEL, NORMAL, TUMOUR = -1, 0, 1


@dataclass(frozen=True)
class PatchRules:
    """What makes a patch tumour or normal.

    Attributes
    ----------
    tumour
        Annotation classes that are tumour. Empty: the class named like the slides' positive class,
        or otherwise the only one there is.
    normal
        Annotation classes that are normal tissue. Empty: everything without an annotation, as in
        CAMELYON.
    positive
        The name of the positive class in the labels.
    tumour_share, normal_share
        A patch is tumour if more than the first share is tumour, otherwise normal if more than the
        second is normal (paper: 20 % and 80 %), otherwise it has no label.
    way
        How the user names the tumour classes, for messages: training's option by default.
    """

    tumour: tuple[str, ...] = ()
    normal: tuple[str, ...] = ()
    positive: str = "tumour"
    tumour_share: float = 0.2
    normal_share: float = 0.8
    way: str = '--set tumour=NAME (of several: --set tumour=\'["A", "B"]\')'

    def label(
        self, annotations: Sequence[Annotation], boxes: NDArray[np.float64], size: Size
    ) -> NDArray[np.int8]:
        """Label the patches of a positive slide; those of a negative one are all normal.

        Parameters
        ----------
        annotations
            The slide's annotations.
        boxes
            ``(N, 4)`` x, y, w, h in level-0 px; parts outside the slide do not count.
        size
            Of the slide.

        Returns
        -------
        ``(N,)`` of :data:`TUMOUR`, :data:`NORMAL` or :data:`NOLABEL`.

        Raises
        ------
        LabelError
            No annotation is tumour; see also :meth:`tumour_of`.
        """
        drawn = self.some_tumour_of(annotations)
        inside = within(boxes, size)
        tumour = fraction(drawn, inside)
        if self.normal:
            normal = fraction([a for a in annotations if _is(a, self.normal)], inside)
        else:
            normal = 1 - fraction(annotations, inside)
        labels = np.full(len(boxes), NOLABEL, np.int8)
        labels[(normal > self.normal_share) & (inside[:, 2:] > 0).all(1)] = NORMAL
        labels[tumour > self.tumour_share] = TUMOUR
        return labels

    def tumour_of(self, annotations: Sequence[Annotation]) -> list[Annotation]:
        """Return the annotations that are tumour.

        Raises
        ------
        LabelError
            None of the classes is known to be tumour.
        """
        others = [a for a in annotations if not _is(a, self.normal)]
        wanted = self.tumour or (self.positive,)
        found = [a for a in others if _is(a, wanted)]
        names = sorted({a.label for a in others})
        if found or not others:
            return found
        if not self.tumour and len(names) == 1:
            return others
        listed = ", ".join(repr(name) for name in names)
        if self.tumour:
            raise LabelError(
                f"no annotation of class {' or '.join(self.tumour)}; there are {listed}. Name the "
                f"classes that are tumour with {self.way}."
            )
        raise LabelError(
            f"annotations of the classes {listed}: say which are tumour with {self.way}."
        )

    def some_tumour_of(self, annotations: Sequence[Annotation]) -> list[Annotation]:
        """Return the tumour annotated on a positive slide.

        Raises
        ------
        LabelError
            There is none; see also :meth:`tumour_of`.
        """
        drawn = self.tumour_of(annotations)
        if not drawn:
            raise LabelError(
                f"labelled {self.positive!r}, but no tumour is drawn on it; annotate it, or take "
                "it out of the labels."
            )
        return drawn

    def check_negative(self, annotations: Sequence[Annotation], name: str) -> None:
        """Refuse tumour on a slide that the labels call ``name``.

        Raises
        ------
        LabelError
            Annotation and label contradict each other.
        """
        found = [a for a in annotations if _is(a, self.tumour or (self.positive,))]
        if found:
            raise LabelError(
                f"labelled {name!r}, but {len(found)} annotations of it are "
                f"{found[0].label!r}; correct the label or the annotations."
            )


def check_drawn(annotations: Sequence[Annotation], size: Size) -> None:
    """Refuse annotations that cannot belong to a slide of this size.

    Raises
    ------
    LabelError
        One is wholly outside the slide: it belongs to another slide, or is not in level-0 px.
    """
    slide = shapely.box(0, 0, *size)
    for annotation in annotations:
        if not annotation.polygon.intersects(slide):
            raise LabelError(
                f"annotation {annotation.name or annotation.id or annotation.label!r} at "
                f"{_place(annotation.polygon)} lies outside the slide of {size.width} x "
                f"{size.height} px; expected level-0 px of this slide."
            )


def _is(annotation: Annotation, names: Sequence[str]) -> bool:
    return annotation.label.casefold() in {name.casefold() for name in names}


def _place(polygon: Any) -> str:
    left, top, right, bottom = polygon.bounds
    return f"x={left:.0f}..{right:.0f}, y={top:.0f}..{bottom:.0f}"


def within(boxes: NDArray[np.float64], size: Size) -> NDArray[np.float64]:
    """Return the parts of boxes ``(N, 4)`` x, y, w, h in level-0 px that lie in the slide.

    For a box outside it, the part has no area.
    """
    low = boxes[:, :2].clip(0, size)
    high = (boxes[:, :2] + boxes[:, 2:]).clip(0, size)
    return np.concatenate([low, high - low], axis=1)
