# make demo: convert the demo checkpoint and print features from plain Transformers
# make test: style, types and all tests but the slow ones
# make slow: notebooks, Ray, full disks, kill loops and several processes
# make packaged: all tests once more, over the wheel alone, away from the checkout
# make docs: the site in build/docs, with the notebooks and an example of each command run
# make matrix: the core of the tests in an environment for each set of versions that is promised
# make fuzz: 100,000 damaged files (some 20 minutes), then 200 runs that are killed
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
TYPES := build/types
PACKAGED := build/packaged
TESTS ?= tests
CPU ?= Haswell
SITE := import sysconfig; print(sysconfig.get_path('purelib'))

# each of the many processes that tests begin would compile all of hf_xlmr again
unexport PYTHONDONTWRITEBYTECODE

AVX2 := ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 MKL_ENABLE_INSTRUCTIONS=AVX2
NO_VECTORS := ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=default MKL_CBWR=COMPATIBLE

.PHONY: demo test check style types tests slow elsewhere emulated packaged docs matrix benchmarks fuzz clean

demo: $(READY)
	$(BIN)/hf-xlmr convert demo demo-output --overwrite
	cd notebooks && ../$(BIN)/python features.py ../demo-output

test: check tests

check: style types

# PyTorch first and pinned: with it there, nothing below fetches another build
$(READY): setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $(READY)

style: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy sees the packages as they are installed: conversion/ inside hf_xlmr/
types: $(READY)
	rm -rf $(TYPES) && mkdir -p $(TYPES)
	cp -r hf_xlmr $(TYPES)/hf_xlmr && cp -r conversion $(TYPES)/hf_xlmr/conversion
	cd $(TYPES) && ../../$(BIN)/mypy --cache-dir ../types-cache --config-file ../../pyproject.toml -p hf_xlmr

tests: $(READY)
	OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest -n 2 --dist loadfile -m 'not slow'

slow: $(READY)
	OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest -n 3 --dist loadfile -m slow

# the tests as other processors run them, then beside two busy loops: three times all of them, or TESTS='tests/test_extraction.py ...'
elsewhere: $(READY)
	$(AVX2) OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest -n 2 --dist loadfile $(TESTS)
	$(NO_VECTORS) OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest -n 2 --dist loadfile $(TESTS)
	for loop in 1 2; do (while :; do :; done) & loops="$$loops $$!"; done; trap "kill $$loops" EXIT INT TERM; \
		OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest -n 2 --dist loadfile $(TESTS)

# what ONNX Runtime and OpenVINO choose by the processor, no variable changes: the tests on one that is emulated (Debian's qemu-user)
emulated: $(READY)
	OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false qemu-x86_64 -cpu $(CPU) $(BIN)/python -m pytest -n 0 $(TESTS)

# what users install, and packagers run: tests of the source distribution over the wheel, in an environment of its own, which finds
# what hf_xlmr depends on in .venv (a line of a .pth file; the checkout, which .venv knows by a hook of its own, stays unknown)
packaged: $(READY)
	rm -rf $(PACKAGED) && mkdir -p $(PACKAGED)/elsewhere
	$(BIN)/python -m build --outdir $(PACKAGED)/dist .
	tar --extract --gzip --file $(PACKAGED)/dist/*.tar.gz --directory $(PACKAGED)
	$(PYTHON) -m venv --without-pip $(PACKAGED)/env
	$(BIN)/pip --python $(PACKAGED)/env/bin/python install --quiet --no-deps $(PACKAGED)/dist/*.whl
	echo "$$($(BIN)/python -c "$(SITE)")" > "$$($(PACKAGED)/env/bin/python -c "$(SITE)")/dependencies.pth"
	$(PACKAGED)/env/bin/python -m pip check
	cd $(PACKAGED)/elsewhere && OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false \
		../env/bin/python -m pytest -n 2 --dist loadfile $(addprefix ../hf_xlmr-*/,$(TESTS))

# nothing is fetched once the extra is installed
docs: $(READY)
	$(BIN)/python -c 'import material, nbconvert' 2>/dev/null || $(BIN)/python -m pip install --quiet --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 OMP_NUM_THREADS=1 $(BIN)/python notebooks/site/build_site.py

# MATRIX='lowest' takes some of them; each environment takes 2 to 7 GB under build/matrix
matrix: $(READY)
	$(BIN)/python tests/matrix.py $(MATRIX)

benchmarks: $(READY)
	$(BIN)/python tests/benchmarks/converting.py
	$(BIN)/python tests/benchmarks/inflate.py

fuzz: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzzing/run.py --count 100000
	OMP_NUM_THREADS=1 $(BIN)/python tests/kills.py --count 200

clean:
	rm -rf $(VENV) build dist demo-output *.egg-info
