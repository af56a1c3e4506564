"""A GPU's process that computes nothing at a set pace: see `benchmarks.gpu.spin`."""

from __future__ import annotations

from typing import Final

from benchmarks.gpu.worker import serve_kind

MODULE: Final = "benchmarks.gpu.paced"

if __name__ == "__main__":
    serve_kind("paced")
