# Needs Python >= 3.10, and a C++ compiler for the kernels; everything else goes into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := fastinst tests scripts train.py evaluate.py predict.py figures.py benchmark.py export.py ablate.py setup.py
DEFINITIONS := $(foreach op,attention_mask attention_to_queries deform_conv2d encode_masks \
	masked_cross_attention read_out_masks select_queries,tests/test_$(op).py) tests/test_parity.py
# Other builds of torch: make TORCH="torch==2.14.0 --index-url ..."
TORCH ?= torch==2.13.0

.PHONY: install kernels demo test test-all lint format check-cuda clean
.DELETE_ON_ERROR:

install: kernels

# What has changed in csrc; see setup.py for its environment (FASTINST_CUDA=1, ...).
kernels: $(VENV)/installed
	$(BIN)/python setup.py --quiet build_ext --inplace

$(VENV)/installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "fastinst needs Python 3.10 or newer, and $(PYTHON) is %d.%d: make PYTHON=python3.12" % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet $(TORCH)
	# The kernels follow, outside pip's isolated build and so without building all anew each time.
	FASTINST_KERNELS=0 $(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

# Data, training, evaluation and pictures, in under ten minutes on two CPU cores.
demo: install
	$(BIN)/python -m fastinst.data.demo demo/data
	rm -rf demo/run
	$(BIN)/python train.py --data demo/data --model fastinst-d1-r18-192 --output demo/run \
		--steps 400 --batch-size 8 --lr 5e-4 --backbone-lr 1 --clip 1 --augmentation flip --eval-every 200
	$(BIN)/python evaluate.py demo/run/last.pt --data demo/data --output demo/evaluation.json
	$(BIN)/python predict.py demo/run/last.pt demo/data/val --output demo/pictures \
		--ground-truth demo/data/annotations/instances_val.json
	@echo "Pictures of predictions beside ground truth: demo/pictures"

# What some tests need, pyproject.toml's extras "export" and "cityscapes": 200 MB, which the demo does
# without. Where it cannot be had, those tests are skipped.
$(VENV)/extras: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --retries 2 onnx onnxscript onnxruntime cityscapesscripts \
		&& touch $@ || echo "without ONNX and Cityscapes' scripts: their tests are skipped"

# The second run is of the definitions that the kernels replace. One thread for each process: the
# models of the tests are too small to gain from more.
PROCESSES ?= 2
test: install $(VENV)/extras
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(PROCESSES) -m "not slow"
	FASTINST_KERNELS=0 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(PROCESSES) $(DEFINITIONS)

# The slow ones as well.
test-all: test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m slow

lint: $(VENV)/installed
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)

format: $(VENV)/installed
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

# Every CUDA kernel for every architecture, without a GPU; fails on spilled registers.
check-cuda: install
	$(BIN)/python scripts/check_cuda.py

clean:
	rm -rf demo build fastinst/_C.abi3.so fastinst/_build.json *.egg-info .pytest_cache .ruff_cache
