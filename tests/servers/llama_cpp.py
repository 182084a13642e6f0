"""``python -m tests.servers.llama_cpp FILE.gguf PORT``: llama.cpp's own HTTP server, from the wheel xllamacpp.

It does what ``llama-server -m FILE.gguf --port PORT --parallel 4 --ctx-size 8192 --top-k 0 --min-p 0`` does. Without
the last two, llama.cpp draws from the 40 most probable tokens above a threshold, whatever temperature and top-p say.
"""

from __future__ import annotations

import os
import sys
import time

SLOTS, CONTEXT = 4, 2048


def main(file: str, port: str) -> None:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = file
    params.hostnames, params.port = ["127.0.0.1"], int(port)
    params.n_parallel, params.n_ctx = SLOTS, SLOTS * CONTEXT
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = os.cpu_count()
    params.sampling.top_k, params.sampling.min_p = 0, 0.0
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    while True:
        time.sleep(60)


if __name__ == "__main__":
    main(*sys.argv[1:])
