"""The double's names and signatures are those of the real bindings, so it cannot drift from them."""

from __future__ import annotations

import importlib
from types import ModuleType

import pytest

from tests.double import Double
from tests.double.bindings import Shape, Table, double_table, real_table, recorded


def of_the_double(name: str) -> Table:
    """What stands in for that module."""
    with Double():
        return double_table(importlib.import_module("tensorrt" if "tensorrt" in name else name))


def agrees(double: Shape, real: Shape) -> bool:
    if isinstance(double, dict) and isinstance(real, dict):
        return double.items() <= real.items()
    if isinstance(double, list) and isinstance(real, list):
        return not real or double[0] in real  # none at all: a class that only the bindings make
    return type(double) is type(real)


def differences(double: Table, real: Table) -> list[str]:
    return [
        f"{name}: {shape} in the double, {real.get(name, 'nothing')} in truth"
        for name, shape in double.items()
        if name not in real or not agrees(shape, real[name])
    ]


@pytest.mark.parametrize("bindings", list(recorded()))
def test_the_double_is_as_the_bindings_were_when_they_were_looked_at(bindings: str) -> None:
    table = of_the_double(bindings.split()[0])
    assert len(table) > 25
    assert differences(table, recorded()[bindings]) == []


def test_all_that_tumorscan_runs_on_was_looked_at() -> None:
    kinds = {name.rpartition(".")[0] if "tensorrt" in name else name for name in recorded()}
    assert {"tensorrt 10.8.0", "tensorrt 11.4.0", "tensorrt_rtx 1.7.1", "pycuda.driver 2026.1"} <= kinds


@pytest.mark.parametrize("name", ["pycuda.driver", "tensorrt", "tensorrt_rtx"])
def test_the_double_is_as_the_bindings_that_are_installed(name: str) -> None:
    real: ModuleType = pytest.importorskip(name, exc_type=ImportError)
    table = of_the_double(name)
    assert differences(table, real_table(real, list(table))) == []


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("memcpy_htod_async", ["dest, source, stream="]),
        ("memcpy_htod_async", ["dest, src, stream"]),
        ("mem_alloc", ["bytes"]),
        ("Stream.handle", [""]),
        ("Event.wait", [""]),
    ],
)
def test_a_double_that_drifts_is_found_out(name: str, shape: Shape) -> None:
    table = {**of_the_double("pycuda.driver"), name: shape}
    (found,) = differences(table, recorded()["pycuda.driver 2026.1"])
    assert found.startswith(f"{name}: {shape} in the double")


def test_an_enumeration_that_counts_otherwise_is_found_out() -> None:
    table = {**of_the_double("tensorrt"), "DataType": {"FLOAT": 1}}
    assert len(differences(table, recorded()["tensorrt 10.8.0.43"])) == 1
