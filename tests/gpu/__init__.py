"""Measurements that need a CUDA card. CI does not run them. Example: ``python -m tests.gpu.bench_rollout``."""
