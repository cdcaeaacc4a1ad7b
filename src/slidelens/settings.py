"""Frozen settings of one process, from ``SLIDELENS_*`` environment variables."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from slidelens.errors import SlideLensError

__all__ = ["Settings", "get_settings"]


class Settings(BaseModel):
    """What holds for the whole process; a run's own options live in its configuration."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    cache_mb: int = Field(256, ge=0, description="decoded slide tiles kept in memory, in MB")
    threads: int = Field(0, ge=0, description="reader threads; 0 picks by the machine's cores")
    models: Path | None = Field(None, description="a folder of model packages, searched first")

    @property
    def reader_threads(self) -> int:
        """Number of threads that read and decode tiles."""
        return self.threads or max(2, min(8, os.cpu_count() or 2))


@cache
def get_settings() -> Settings:
    """Read the environment once.

    Raises
    ------
    SlideLensError
        A variable that cannot be used, by name.
    """
    prefix = "SLIDELENS_"
    given = {
        name: os.environ[prefix + name.upper()]
        for name in Settings.model_fields
        if os.environ.get(prefix + name.upper())
    }
    try:
        return Settings.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        name = prefix + str(first["loc"][0]).upper()
        raise SlideLensError(f"environment variable {name}: {first['msg']}.") from error
