"""Label patches from annotations: tumour, normal or none.

Source: multi-stage-segmentation-2019, section 4.1 (pre-processing).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely

from slidelens.errors import LabelError, listed
from slidelens.tiling.annotations import fraction
from slidelens.tiling.class_names import is_named, may_mean, plain, spellings, warn_of_spellings

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

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
        Annotation classes that are tumour. Empty: the one named like the slides' positive class;
        see also :meth:`of_cohort`.
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

    def of_cohort(self, drawn: Mapping[str, Iterable[str]]) -> PatchRules:
        """Return the rules with the tumour classes named, the same for each slide of a cohort.

        They are those that were given, or the one named like the positive class, or the only one
        that is drawn on any slide. Spellings of one name (:func:`~.class_names.plain`) are one
        class, and warned of.

        Parameters
        ----------
        drawn
            Slide id to the annotation classes drawn on it, of all annotated slides, whatever their
            labels.

        Raises
        ------
        LabelError
            Several classes, none of which is named like the positive one, or beside it another
            word for tumour: any may be tumour.
        """
        drawn = {slide: set(classes) for slide, classes in drawn.items()}
        warn_of_spellings(drawn)
        if self.tumour:
            return self
        found = {k: of for k, of in spellings(drawn).items() if not is_named(k, self.normal)}
        positive = plain(self.positive)
        if named := positive in found:
            found = {k: of for k, of in found.items() if k == positive or may_mean(k, positive)}
        if len(found) < 2:
            names = [self.positive] if named or not found else [*found.popitem()[1]]
            return replace(self, tumour=(names[0],))
        why = (
            f"beside annotations of the positive class {self.positive!r} there are some of another "
            "that may mean the same"
            if named
            else f"no annotation class is named like the positive class {self.positive!r}, and "
            "several are drawn"
        )
        where = "; ".join(
            f"{name!r} on {listed(slides, 5)}"
            for spelled in sorted(found.values(), key=min)
            for name, slides in spelled.items()
        )
        raise LabelError(f"{why}: {where}. Say which are tumour with {self.way}.")

    def label(
        self, annotations: Sequence[Annotation], boxes: NDArray[np.float64], size: Size
    ) -> NDArray[np.int8]:
        """Label the patches of a positive slide.

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
            No annotation is tumour.
        """
        drawn = self.some_tumour_of(annotations)
        inside = within(boxes, size)
        if self.normal:
            normal = fraction([a for a in annotations if is_named(a.label, self.normal)], inside)
        else:
            normal = 1 - fraction(annotations, inside)
        labels = self._of_shares(normal, inside)
        labels[fraction(drawn, inside) > self.tumour_share] = TUMOUR
        return labels

    def label_negative(
        self, annotations: Sequence[Annotation], boxes: NDArray[np.float64], size: Size, name: str
    ) -> NDArray[np.int8]:
        """Label the patches of a slide without tumour: all is normal but what is drawn as other.

        Parameters
        ----------
        annotations, boxes, size
            As for :meth:`label`. Normal tissue need not be drawn, whether or not it has classes.
        name
            What the labels call the slide.

        Returns
        -------
        ``(N,)`` of :data:`NORMAL` or :data:`NOLABEL`.

        Raises
        ------
        LabelError
            Tumour is drawn on it.
        """
        self.check_negative(annotations, name)
        inside = within(boxes, size)
        other = [a for a in annotations if not is_named(a.label, self.normal)]
        return self._of_shares(1 - fraction(other, inside), inside)

    def _of_shares(
        self, normal: NDArray[np.float64], inside: NDArray[np.float64]
    ) -> NDArray[np.int8]:
        """Label patches by how much of each is normal ``(N,)``, where they lie in the slide."""
        labels = np.full(len(inside), NOLABEL, np.int8)
        labels[(normal > self.normal_share) & (inside[:, 2:] > 0).all(1)] = NORMAL
        return labels

    def some_tumour_of(self, annotations: Sequence[Annotation]) -> list[Annotation]:
        """Return the tumour annotated on a positive slide.

        Parameters
        ----------
        annotations
            The slide's annotations.

        Raises
        ------
        LabelError
            There is none.
        """
        found = [a for a in annotations if is_named(a.label, self._tumour)]
        if found:
            return found
        others = sorted({a.label for a in annotations if not is_named(a.label, self.normal)})
        if not others:
            raise LabelError(
                f"labelled {self.positive!r}, but no tumour is drawn on it; annotate it, or take "
                "it out of the labels."
            )
        raise LabelError(
            f"labelled {self.positive!r}, but no annotation is of class "
            f"{' or '.join(map(repr, self._tumour))}; there are {', '.join(map(repr, others))}. "
            "Annotate the tumour, take the slide out of the labels, or name the classes that are "
            f"tumour with {self.way}."
        )

    def check_negative(self, annotations: Sequence[Annotation], name: str) -> None:
        """Refuse tumour on a slide that is negative.

        Parameters
        ----------
        annotations
            The slide's annotations.
        name
            What the labels call the slide.

        Raises
        ------
        LabelError
            Annotation and label contradict each other.
        """
        found = [a for a in annotations if is_named(a.label, self._tumour)]
        if found:
            raise LabelError(
                f"labelled {name!r}, but {len(found)} annotations of it are "
                f"{found[0].label!r}; correct the label or the annotations."
            )

    @property
    def _tumour(self) -> tuple[str, ...]:
        return self.tumour or (self.positive,)


def check_drawn(annotations: Sequence[Annotation], size: Size) -> None:
    """Refuse annotations that cannot belong to a slide of this size.

    Parameters
    ----------
    annotations
        The slide's annotations.
    size
        Of the slide.

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
