"""Tests with real servers, vLLM and llama.cpp, in an environment of their own: ``make test-servers``."""
