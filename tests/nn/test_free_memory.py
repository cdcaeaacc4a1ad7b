"""How much memory a machine has free, by each system's own way."""

import ctypes
import sys
from types import SimpleNamespace

import psutil
import pytest
import torch

from slidelens.nn.streaming import plan

CPU = torch.device("cpu")


class Status(ctypes.Structure):
    """MEMORYSTATUSEX as Windows declares it."""

    _fields_ = (
        ("dwLength", ctypes.c_uint32),
        ("dwMemoryLoad", ctypes.c_uint32),
        ("ullTotalPhys", ctypes.c_uint64),
        ("ullAvailPhys", ctypes.c_uint64),
        ("ullTotalPageFile", ctypes.c_uint64),
        ("ullAvailPageFile", ctypes.c_uint64),
        ("ullTotalVirtual", ctypes.c_uint64),
        ("ullAvailVirtual", ctypes.c_uint64),
        ("ullAvailExtendedVirtual", ctypes.c_uint64),
    )


def test_it_is_what_the_system_says():
    free = psutil.virtual_memory()
    assert plan.free_memory(CPU) == pytest.approx(free.available, abs=0.25 * free.total)


def test_windows_is_asked_by_the_structure_that_it_expects(monkeypatch):
    def fill(status) -> int:
        told = Status.from_buffer(status)
        if told.dwLength != ctypes.sizeof(Status):
            return 0  # Windows refuses another size
        told.dwMemoryLoad, told.ullTotalPhys, told.ullAvailPhys = 40, 32 << 30, 19 << 30
        return 1

    windows = SimpleNamespace(kernel32=SimpleNamespace(GlobalMemoryStatusEx=fill))
    monkeypatch.setattr(ctypes, "windll", windows, raising=False)
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(plan, "Path", lambda path: SimpleNamespace(exists=lambda: False))
    assert plan.free_memory(CPU) == 19 << 30
