"""Measurements on a CUDA card: ``python -m tests.gpu OUT`` runs all parts. See README.md in this folder.

With ``--scale tiny`` the same code runs on a CPU, on small models, as ``tests/test_gpu.py`` does.
"""
