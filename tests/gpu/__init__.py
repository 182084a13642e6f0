"""Measurements that need a GPU: not tests, and not run by CI."""
