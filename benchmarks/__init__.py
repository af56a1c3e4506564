"""Programs that measure tumorscan beside its bounds and its peers; docs/benchmarks.md says how."""
