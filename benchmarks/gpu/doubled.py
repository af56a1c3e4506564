"""A dry run's GPU process: real models on a double of a GPU."""

from __future__ import annotations

from typing import Final

from benchmarks.gpu.worker import serve_kind

MODULE: Final = "benchmarks.gpu.doubled"

if __name__ == "__main__":
    serve_kind("onnxruntime-cuda")
