"""Feature bags on disk: made once per slide, grid and network, and shared by all runs.

A bag is known by its content: the key digests everything that its vectors depend on. It lies in
``<cache>/bags/<2 digits>/<key>/`` as ``boxes.npy``, ``vectors.npy`` and ``bag.json`` (what was
digested). The folder appears whole or not at all, so that runs side by side, and runs that are
killed, never leave half a bag; what two make at once is the same. Any of it can be deleted at any
time.
"""

from __future__ import annotations

import json
import logging
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from unicodedata import normalize

import numpy as np
import torch

from slidelens.engine.device import uses_bf16
from slidelens.engine.fields import validated
from slidelens.engine.provenance import fingerprint
from slidelens.errors import LabelError, ModelError, ResultError, SlideError, listed
from slidelens.export.clam import read_clam
from slidelens.families.base import Bag, ConfigT, bag_fields, in_short
from slidelens.files import staged_folder
from slidelens.nn.map_batches import map_batches
from slidelens.settings import get_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from numpy.typing import NDArray

    from slidelens.engine.loader import SlideView
    from slidelens.families.base import Batch, Model
    from slidelens.families.training import Encoding
    from slidelens.tiling.grid import Grid, GridSpec
    from slidelens.tiling.tissue import TissueSettings

__all__ = [
    "BagCache",
    "bag_file",
    "bags_folder",
    "check_bags",
    "find_bags",
    "fitted",
    "read_bag",
    "without_weights",
]

_ALGORITHM = 1
"""Raised when a new version encodes the same tiles to other vectors."""
_BOXES, _VECTORS, _FACTS = "boxes.npy", "vectors.npy", "bag.json"
log = logging.getLogger(__name__)


def bags_folder() -> Path:
    """Return the user's folder of feature bags."""
    return get_settings().cache_dir / "bags"


class BagCache:
    """Bags in one folder.

    Parameters
    ----------
    folder
        Made when the first bag is.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._known: dict[tuple[object, ...], Path] = {}
        """Bags of this run by what was asked for: their slides need not be opened again."""

    def get(
        self,
        slide_id: str,
        view: Callable[[], SlideView],
        spec: GridSpec,
        encoder: Encoding,
        *,
        tissue: TissueSettings,
        stain: str,
    ) -> Bag:
        """Return a slide's bag, encoding its tiles if it is not there; vectors are mapped.

        Parameters
        ----------
        slide_id, view
            The slide, and what opens it.
        spec
            Its grid, which is laid only when it is needed.
        encoder
            What makes the vectors.
        tissue, stain
            How the view finds tissue and normalises stains.

        Raises
        ------
        ResultError
            The cache cannot be written.
        SlideError
            A slide that cannot be read; vectors too large for the type they are kept in.
        """
        asked = (slide_id, spec, _json(encoder.facts), encoder.precision, encoder.dtype)
        if asked in self._known:
            bag = _load(self._known[asked])
            if bag is not None:
                return bag
        opened = view()
        facts = _facts(opened, spec, encoder, tissue, stain)
        key = sha256(_json(facts).encode()).hexdigest()
        self._known[asked] = folder = self.folder / key[:2] / key
        return _load(folder) or self._made(folder, opened, spec, encoder, facts)

    def _made(
        self,
        folder: Path,
        view: SlideView,
        spec: GridSpec,
        encoder: Encoding,
        facts: dict[str, Any],
    ) -> Bag:
        reason = "it was removed at once"
        try:
            self._make(folder, view, view.grid(spec), encoder, facts)
        except SlideError:  # an OSError too, but not of the cache
            raise
        except OSError as error:  # such as: another run has made the bag in the meantime
            reason = str(error.strerror or error)
        bag = _load(folder)
        if bag is None:
            raise ResultError(
                f"cannot keep the feature bag {folder}: {reason}. Make room, or keep bags "
                "elsewhere: --set bag_cache=DIR."
            )
        return bag

    def _make(
        self, folder: Path, view: SlideView, grid: Grid, encoder: Encoding, facts: dict[str, Any]
    ) -> None:
        """Encode a grid's tiles, a batch in memory at a time."""
        with torch.no_grad(), staged_folder(folder, None) as staging:
            np.save(staging / _BOXES, grid.boxes)
            (staging / _FACTS).write_text(_json(facts), encoding="utf-8")
            vectors, seen = np.empty((0, 0), _type(encoder)), 0
            for boxes, found in _encoded(view, grid, encoder):
                width = vectors.shape[1] if seen else found.shape[-1]
                if found.shape != (len(boxes), width):
                    raise ValueError(
                        f"the encoder gave an array of shape {found.shape} for {len(boxes)} "
                        "tiles, expected a vector for each, (N, D)"
                    )
                if seen == 0:
                    vectors = np.lib.format.open_memmap(
                        staging / _VECTORS,
                        mode="w+",
                        dtype=_type(encoder),
                        shape=(len(grid), found.shape[1]),
                    )
                vectors[seen : seen + len(found)] = _narrowed(found, vectors.dtype, view)
                seen += len(found)
            if seen == 0:
                np.save(staging / _VECTORS, vectors)
            elif isinstance(vectors, np.memmap):
                vectors.flush()


def _encoded(
    view: SlideView, grid: Grid, encoder: Encoding
) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float32]]]:
    """Return the boxes and vectors of a grid's tiles, batch by batch."""

    def encoded(batch: Batch) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
        return batch.boxes, encoder.encode(batch.images).float().cpu().numpy()

    batches = view.batches(grid, encoder.batch_size)
    return map_batches(encoded, batches, view.device, grid.spec.tile)


def find_bags(folder: Path) -> dict[str, Path]:
    """Return slide id to file, of every HDF5 file in a folder.

    Raises
    ------
    LabelError
        No such folder, no such file in it, or two for one slide.
    """
    files = [path for path in sorted(folder.glob("[!.]*")) if path.suffix.lower() == ".h5"]
    found = {normalize("NFC", path.stem): path for path in files}
    if len(found) < len(files):
        double = [path.name for path in files if path not in found.values()]
        raise LabelError(f"{folder}: two feature bags for one slide: {listed(double)}; keep one.")
    if not found:
        raise LabelError(f"{folder}: no folder of feature bags; expected files <slide id>.h5.")
    return found


def bag_file(folder: str | Path, slide_id: str) -> Path:
    """Return a slide's file in a folder of feature bags.

    Raises
    ------
    SlideError
        It is not there.
    """
    path = Path(folder) / f"{slide_id}.h5"
    if path.is_file():
        return path
    with suppress(LabelError, KeyError):  # written in another way
        return find_bags(path.parent)[slide_id]
    raise SlideError(f"{path}: no such feature bag; each slide needs its <slide id>.h5.")


def check_bags(model: Model[Any], bags: str | Path | None) -> None:
    """Refuse to run a model on vectors without having some, or with some that it does not take.

    Raises
    ------
    ModelError
        Either of these.
    """
    takes = bool(getattr(model.config, "bag_dim", 0))
    if takes and bags is None:
        raise ModelError(
            f"model {model.name!r} was trained on feature vectors made elsewhere and has no "
            "backbone to make them from a slide: give the folder of the slides' .h5 files, with "
            "--bags DIR (bags=DIR)."
        )
    if bags is not None and not takes:
        raise ModelError(
            f"model {model.name!r} makes its feature vectors itself: leave --bags (bags=) out."
        )


def fitted(config: ConfigT, path: Path, given: Collection[str] = ()) -> ConfigT:
    """Return a MIL configuration that takes the vectors of a bag.

    A bag of SlideLens says which backbone made it of which tiles: the model has that backbone too
    and reads slides so. For one made elsewhere the model begins with the vectors (``bag_dim``).

    Parameters
    ----------
    config
        What was asked for.
    path
        The bag.
    given
        Fields that were asked for by name, which a bag of SlideLens must not contradict.

    Raises
    ------
    ModelError
        It does.
    SlideError
        A file that is no bag.
    """
    fields = config.model_dump()
    if fields["bag_dim"]:
        return config
    bag = read_bag(path)
    told = bag_fields(bag.facts)
    if "backbone_sha256" not in bag.facts:
        told["bag_dim"] = bag.vectors.shape[1]
    elif wrong := [k for k, value in told.items() if k in given and fields[k] != value]:
        what = ", ".join(f"{k} {in_short(told[k])} (not {in_short(fields[k])})" for k in wrong)
        raise ModelError(
            f"{path}: its tiles were read with {what}, and a model on bags reads slides so too; "
            "leave that option out, or give bags that were made with it."
        )
    return validated(type(config), {**fields, **told})


def without_weights(path: Path, backbone: str, error: Exception) -> ModelError:
    """Return why training on bags of SlideLens needs a backbone, whose weights are not to be had.

    Parameters
    ----------
    path
        One of the bags.
    backbone
        Name of the one that made them.
    error
        What loading its weights raised.
    """
    return ModelError(
        f"{path.parent}: its bags were made by {backbone}, and the model has it too, to read "
        f"slides itself; its ImageNet weights cannot be loaded ({error.__cause__ or error}). Give "
        "those that made the bags, with --weights FILE or --from MODEL, or learn from the vectors "
        f"alone with --set bag_dim={read_bag(path).vectors.shape[1]}."
    )


def read_bag(path: Path) -> Bag:
    """Read a bag of CLAM's format; see :func:`~slidelens.export.clam.read_clam`.

    Raises
    ------
    SlideError
        A file that is no such bag.
    """
    try:
        found = read_clam(path)
    except ResultError as error:
        raise SlideError(str(error)) from error
    return Bag(found.boxes, found.features, found.facts)


def _facts(
    view: SlideView, spec: GridSpec, encoder: Encoding, tissue: TissueSettings, stain: str
) -> dict[str, Any]:
    """Return everything that the vectors depend on."""
    slide = view.slide
    bf16 = uses_bf16(view.device, encoder.precision)
    colour = {"colour": "icc"} if slide.color_managed else {}
    return {
        **colour,
        "algorithm": _ALGORITHM,
        "slide": [slide.id, *slide.size, *view.mpp, fingerprint(slide)],
        "grid": [spec.tile, spec.mpp, spec.overlap, spec.min_tissue],
        "tissue": tissue.model_dump(mode="json"),
        "stain": stain,
        "encoder": encoder.facts,
        "precision": "bf16" if bf16 else "fp32",
        "dtype": encoder.dtype,
    }


def _load(folder: Path) -> Bag | None:
    """Map a bag; ``None`` where there is none, or one that is damaged."""
    try:
        facts = json.loads((folder / _FACTS).read_text(encoding="utf-8"))
        boxes = np.load(folder / _BOXES, allow_pickle=False)
        # Copied on write, as torch takes nothing that is read only; nothing cannot be mapped.
        mode: Literal["c"] | None = "c" if len(boxes) else None
        vectors = np.load(folder / _VECTORS, mmap_mode=mode, allow_pickle=False)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        log.warning("%s: the feature bag is damaged and is made again (%s)", folder, error)
        return None
    tile, mpp, overlap, _ = facts["grid"]
    return Bag(boxes, vectors, {"tile": str(tile), "mpp": str(mpp), "overlap": str(overlap)})


def _json(value: object) -> str:
    return json.dumps(value, sort_keys=True)


def _type(encoder: Encoding) -> np.dtype[Any]:
    return np.dtype(np.float16 if encoder.dtype == "fp16" else np.float32)


def _narrowed(vectors: NDArray[np.float32], dtype: np.dtype[Any], view: SlideView) -> NDArray[Any]:
    with np.errstate(over="ignore"):
        narrow = vectors.astype(dtype)
    if not np.isfinite(narrow).all():
        why = "are not finite" if not np.isfinite(vectors).all() else "exceed fp16"
        raise SlideError(
            f"{view.slide.path}: the feature vectors of its tiles {why}; check the weights, or "
            "keep vectors in single precision: --set bag_dtype=fp32."
        )
    return narrow
