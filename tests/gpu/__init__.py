"""Measurements for a machine with a CUDA card; CI has none. ``python -m tests.gpu.bench_rollout``."""
