"""Measurements that need a CUDA card: not tests, and not run by CI. ``python -m tests.gpu.bench_rollout``."""
