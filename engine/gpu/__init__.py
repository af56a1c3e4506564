"""The cascade on a GPU, by pycuda. Whoever uses it has a CUDA context, which a scoring parent never has."""
