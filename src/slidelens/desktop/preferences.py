"""The plugin's settings, edited in napari's preferences (napari >= 0.9).

Where napari has no such page (before 0.9), the defaults apply.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["Preferences", "preferences"]

_PLUGIN = "slidelens"


@dataclass(frozen=True)
class Preferences:
    """Settings that the user can change.

    Attributes
    ----------
    home
        Folder for results, models and evaluations.
    device
        Where models run unless the Run panel says otherwise.
    """

    home: Path
    device: str = "auto"

    @property
    def results(self) -> Path:
        """Results folder, as ``slidelens predict --out`` takes it."""
        return self.home / "results"

    @property
    def models(self) -> Path:
        """Folder of the models trained here."""
        return self.home / "models"


def preferences() -> Preferences:
    """Read the settings."""
    home, device = "~/SlideLens", "auto"
    try:
        from napari.settings import get_plugin_settings

        run = get_plugin_settings(_PLUGIN).workbench
        home, device = run.home or home, run.device or device
    except (ImportError, KeyError, AttributeError):
        pass  # an older napari, or one that has not read the manifest: the defaults
    return Preferences(Path(home).expanduser(), device)
