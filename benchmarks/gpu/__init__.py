"""What `benchmarks.gpu_check` measures on a GPU, a section a process: a fault of the GPU ends one of them."""
