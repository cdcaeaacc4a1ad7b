"""Make the pictures of README and docs: a real run of the bundled model, and a review, on phantoms.

Usage: ``python docs/make_pictures.py`` (``make pictures``). Starts a display of its own.
"""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

import architecture_picture
import desktop_pictures
import panel_pictures
import review_pictures
from PIL import Image

from slidelens.testing.display import virtual_display
from slidelens.testing.phantom import PhantomSpec, write_phantom

IMAGES = Path(__file__).resolve().parent / "images"
PICTURES = {
    "demo-mil": "napari.png",
    "demo-multistage": "multistage.jpg",
    "demo-streaming": "streaming.jpg",
}
"""Model to the picture of its result in napari."""
BOTH = ("demo-mil", "demo-multistage")
"""Models whose results the pictures of the panels show."""
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
        for model, picture in PICTURES.items():
            predict(slide, model, out=folder / "results" / model)
            viewer = view([slide], folder / "results" / model, show=False)
            viewer.show()
            photograph(viewer, folder / "window.png")
            viewer.close()
            Image.open(folder / "window.png").convert("RGB").save(IMAGES / picture, quality=85)
            log.info("wrote %s", IMAGES / picture)
        for path in panel_pictures.make(IMAGES):
            log.info("wrote %s", path)
        (folder / "both").mkdir()
        for model in BOTH:
            (folder / "results" / model / model).rename(folder / "both" / model)
        (folder / "home").mkdir()
        for path in desktop_pictures.make(IMAGES, slide, folder / "both", folder / "home"):
            log.info("wrote %s", path)
    architecture_picture.PICTURE.write_text(architecture_picture.picture(), encoding="utf-8")
    for path in review_pictures.make(IMAGES):
        log.info("wrote %s", path)


if __name__ == "__main__":
    main()
