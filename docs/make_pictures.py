"""Make the pictures of README and docs: a real run of the bundled model, and a review, on phantoms.

Usage: ``python docs/make_pictures.py`` (``make pictures``). Starts a display of its own.
"""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

import review_pictures

from slidelens.testing.display import virtual_display
from slidelens.testing.phantom import PhantomSpec, write_phantom

IMAGES = Path(__file__).resolve().parent / "images"
MODEL = "demo-mil"
SLIDE = PhantomSpec(size=(5120, 3584), mpp=0.5, seed=11, lesions=2, tumor_fraction=0.16, pen="blue")

log = logging.getLogger("pictures")


def main() -> None:
    """Predict, open napari on the result, photograph it."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as name, virtual_display():
        # Imported here: Qt reads where its display is when it is loaded.
        from slidelens import predict
        from slidelens.desktop import view
        from slidelens.desktop.window import photograph

        folder = Path(name)
        slide = folder / "phantom.tif"
        write_phantom(slide, SLIDE)
        predict(slide, MODEL, out=folder / "results")
        viewer = view([slide], folder / "results", show=False)
        viewer.show()
        photograph(viewer, IMAGES / "napari.png")
        viewer.close()
    log.info("wrote %s", IMAGES / "napari.png")
    for path in review_pictures.make(IMAGES):
        log.info("wrote %s", path)


if __name__ == "__main__":
    main()
