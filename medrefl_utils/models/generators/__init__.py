"""Generators: what runs a model, behind the one interface of ``interface``.

``local`` is transformers in this process, ``vllm`` is vLLM in this process, ``endpoint`` is a server with OpenAI's
API, and ``ray`` spreads any of them over several processes. ``opening`` chooses by a notebook's parameters. Public
names are imported from ``medrefl_utils.models``.
"""
