#!/usr/bin/env bash
# Fill tests/gpu/wheels (or the folder given) with the wheels that `python -m tests.gpu` needs on a machine without a
# package index: Linux on x86-64, Python 3.12, with torch (CUDA 13), transformers, accelerate, peft, pandas, pyarrow,
# scipy, matplotlib, tqdm, typer, rich, pytest and what these need. The versions are those of constraints.txt.
#   tests/gpu/pack.sh [FOLDER]
# PYTHON_VERSION=3.11 packs for another Python.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
folder=${1:-tests/gpu/wheels}
version=${PYTHON_VERSION:-3.12}
python=${PYTHON:-python3}

packages=(
    bitsandbytes trl datasets multiprocess dill xxhash rapidfuzz datasketch                     # training and data
    papermill entrypoints nbclient nbformat tenacity fastjsonschema jsonschema jsonschema-specifications referencing rpds-py
    jupyter-client jupyter-core ipykernel ipython traitlets pyzmq tornado comm debugpy          # notebooks
    jedi parso matplotlib-inline prompt-toolkit pexpect ptyprocess stack-data executing asttokens pure-eval
    wcwidth nest-asyncio2 ipython-pygments-lexers platformdirs
    ipywidgets widgetsnbextension jupyterlab-widgets anywidget psygnal                          # views
    pydantic pydantic-core annotated-types typing-inspection typing-extensions                  # checks of files
)
wanted=()
for package in "${packages[@]}"; do
    pin=$(grep -i -m 1 "^${package//-/[-_.]}==" constraints.txt || true)
    [ -n "$pin" ] && wanted+=("${pin%%;*}") || echo "$package is not in constraints.txt: left out" >&2
done

mkdir -p "$folder"
rm -f "$folder"/*.whl
platforms=()
for glibc in 2_39 2_35 2_34 2_31 2_28 2_27 2_26 2_24 2_17 2_12 2_5; do platforms+=(--platform "manylinux_${glibc}_x86_64"); done
for old in 2014 2010 1; do platforms+=(--platform "manylinux${old}_x86_64"); done
"$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --implementation cp \
    --python-version "$version" --abi "cp${version/./}" --abi abi3 --abi none "${platforms[@]}" -d "$folder" "${wanted[@]}"

# bitsandbytes brings a library for each CUDA version; the machine has CUDA 13.0 (and the CPU's is for trials).
"$python" - "$folder" "${CUDA:-130}" <<'PYTHON'
import sys, zipfile
from pathlib import Path

folder, cuda = Path(sys.argv[1]), sys.argv[2]
[wheel] = folder.glob("bitsandbytes-*.whl")
small = wheel.with_suffix(".small")
keep = (f"libbitsandbytes_cuda{cuda}.so", "libbitsandbytes_cpu.so")
with zipfile.ZipFile(wheel) as source, zipfile.ZipFile(small, "w", zipfile.ZIP_DEFLATED) as target:
    for item in source.infolist():
        name = item.filename.rsplit("/", 1)[-1]
        if not name.startswith("libbitsandbytes_") or name in keep:
            target.writestr(item, source.read(item.filename))
small.replace(wheel)
size = sum(file.stat().st_size for file in folder.glob("*.whl")) / 2**20
print(f"{folder}: {len(list(folder.glob('*.whl')))} wheels, {size:.1f} MiB")
sys.exit(size > 60 and "more than 60 MiB")
PYTHON
