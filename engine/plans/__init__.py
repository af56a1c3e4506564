"""TensorRT plans: the FP16 graph, the builder, the cache."""
