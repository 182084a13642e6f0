"""Generators: run a model behind one interface (``interface``).

``local`` uses transformers and ``vllm`` uses vLLM in this process. ``endpoint`` uses a server with OpenAI's API; what
it knows about servers is in ``servers``. ``ray`` spreads any of them over several processes. ``opening`` selects one
by a notebook's parameters. ``token_cutting`` cuts tokens into steps for all of them. Import public names from
``medrefl_utils.models``.
"""
