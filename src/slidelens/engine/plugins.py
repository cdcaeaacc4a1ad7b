"""Try the installed plugins, for ``doctor``."""

from __future__ import annotations

import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from slidelens.engine.package import family_of
from slidelens.engine.training.start import task_of
from slidelens.errors import PluginError
from slidelens.export import EXPORTERS
from slidelens.families import FAMILIES
from slidelens.nn.encoders import ENCODERS
from slidelens.panels import PANELS
from slidelens.slide.open import READERS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from slidelens.registry import Registry

__all__ = ["Finding", "try_plugins"]


class Finding(NamedTuple):
    """One plugin: its name, its entry-point group, what was done with it, what is wrong."""

    name: str
    group: str
    tried: str
    fault: str = ""


def try_plugins() -> Iterator[Finding]:
    """Load every plugin of the core's extension points, and try out what loads."""
    trials: tuple[tuple[Registry[object], Callable[[str], str]], ...] = (
        (FAMILIES, _family),
        (ENCODERS, _encoder),  # type: ignore[assignment]  # reason: a registry only gives
        (READERS, _reader),
        (EXPORTERS, _exporter),
        (PANELS, _panel),
    )
    for registry, trial in trials:
        broken = registry.broken()
        for name in sorted({*registry.plugins(), *broken}):
            fault, tried = broken.get(name, ""), ""
            if not fault:
                try:
                    tried = trial(name)
                except Exception as error:  # noqa: BLE001  # reason: a plugin may raise anything
                    what = "" if isinstance(error, PluginError) else f"{type(error).__name__}: "
                    fault = f"its trial run failed: {what}{error}"
            yield Finding(name, registry.group, tried, fault)


def _family(name: str) -> str:
    from slidelens.testing.trial import trial_model, trial_predict

    family = family_of(name)
    trial_predict(trial_model(family))
    if family.trainer is None:
        return "runs"
    task_of(name)
    return "runs; training steps load"


def _encoder(name: str) -> str:
    from slidelens.testing.trial import trial_encoder

    source = ENCODERS.get(name)
    if source.sample is None:
        return "loads; names no sample to be tried with"
    trial_encoder(source, source.sample)
    return f"encodes, tried with {name}/{source.sample}"


def _reader(name: str) -> str:
    from slidelens.testing.trial import trial_sniff

    trial_sniff(READERS.get(name))
    return "loads and leaves files of others alone"


def _exporter(name: str) -> str:
    from slidelens.testing.trial import trial_export

    with tempfile.TemporaryDirectory() as folder:
        written = trial_export(EXPORTERS.get(name), Path(folder))
    return "writes" if written else "loads; needs more than the trial result holds"


def _panel(name: str) -> str:
    """Import the widget's class; no window is made."""
    panel = PANELS.get(name)
    if find_spec("qtpy") is None:
        return "loads; its widget needs slidelens[desktop]"
    panel.load()
    return "loads, and its widget"
