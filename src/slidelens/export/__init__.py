"""Results in other programs' formats; plugins add more (group ``slidelens.exporters``)."""

from slidelens.export.base import EXPORTERS, Exporter, export_result, export_target

__all__ = ["EXPORTERS", "Exporter", "export_result", "export_target"]
