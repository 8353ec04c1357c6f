# `make` alone lists the targets. Every target sets up what it needs in .venv; only Python itself must be there.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
.DELETE_ON_ERROR:

VENV := .venv
V4 := $(VENV)/v4
EXTRAS := $(VENV)/extras
COMMON := $(VENV)/common
COMMON_MAJOR ?= 5
BIN := $(VENV)/bin
OUT ?= outputs/demo
JOBS ?= logical
ARGS ?=
BENCHES ?= speed tasks drawing memory training folder
# Exactly the tests that are skipped without one of the optional libraries.
EXTRAS_TESTS = $(addprefix tests/,unit/serving unit/export/test_int8.py unit/export/test_onnx.py unit/test_fast_ofa_int8.py unit/test_reference.py \
unit/prediction/test_ray_data.py unit/prediction/test_text_to_image.py unit/conversion/test_vqgan.py parity/test_reranking.py parity/test_vqgan.py \
unit/publishing/test_verify.py::test_a_folder_that_draws_goes_up_whole_and_draws_without_the_package \
unit/demo/test_image_codes.py::test_official_files_hold_what_was_trained_and_the_same_seed_trains_it_again \
unit/demo/test_drawing.py::test_official_files_are_converted_finetuned_drawn_with_and_judged \
unit/data/test_codes.py unit/training/test_image_codes.py unit/training/test_runs_of_drawing.py \
unit/prediction/test_evaluating_drawings.py end_to_end/test_drawing_page.py \
end_to_end/test_tasks_without_package.py::test_texts_are_drawn_without_the_package end_to_end/test_export.py \
unit/evaluation/test_captions.py::test_scores_equal_those_of_pycocoevalcap_on_random_captions \
unit/images/test_folders.py::test_images_of_phones_are_read_with_their_library \
unit/evaluation/test_answers.py::test_f1_and_matthews_equal_those_of_scikit_learn \
unit/conversion/test_fairseq_reader.py::test_real_omegaconf_files_are_read \
unit/training/test_finetuning.py::test_tensorboard_gets_the_losses_if_it_is_installed \
end_to_end/test_web.py end_to_end/test_readme.py::test_the_example_with_ray_runs)
# What no version of transformers and its contemporaries can change: files, tables, images, pages, scores, the tree, the
# network's size.
ONE_VERSION_TESTS = $(addprefix tests/,unit/catalogue unit/demo unit/evaluation unit/images unit/pages \
unit/samples unit/tables unit/test_audit.py unit/test_errors.py unit/training/test_curve.py unit/training/test_row_store.py \
$(addprefix unit/prediction/test_,coco.py drawing.py inputs.py output_files.py outputs.py processes.py reading.py) \
$(addprefix stress/test_pieces.py::test_a_little_of,[attacks] [bombs] [checkpoints] [images]) \
unit/test_files.py unit/test_fresh_process.py unit/test_house.py unit/test_image_loading_ofa.py unit/test_licences.py \
unit/test_remote_code.py unit/test_inert_pickle.py unit/conversion/test_torch_file.py unit/conversion/test_archive.py \
unit/prediction/test_ray_data.py unit/prediction/test_text_to_image.py unit/conversion/test_vqgan.py \
unit/training/test_sharding.py parity/test_base_size.py end_to_end/test_benchmarks.py \
end_to_end/test_caption_processes.py end_to_end/test_demo.py end_to_end/test_notebook.py end_to_end/test_wheel.py)
LOWEST_TESTS = tests/unit/test_*.py $(addprefix tests/unit/,cli conversion data evaluation hub_upload model_card prediction \
publishing training/test_trainer.py training/test_finetuning.py)

export TOKENIZERS_PARALLELISM ?= false
export PIP_DISABLE_PIP_VERSION_CHECK = 1
export PIP_NO_INPUT = 1
export PIP_RETRIES ?= 10
export PIP_DEFAULT_TIMEOUT ?= 60

# One thread a process: two test processes on two cores beat one process with two threads.
PYTEST = OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -q -n $(JOBS) --maxprocesses 8 --dist worksteal
VERSIONS = $(BIN)/python tests/print_versions.py

# pip retries each request; the second try is for a connection that breaks off in the middle of a file.
define pip_install
{ $(BIN)/python -m pip install --quiet $(1) || { echo "pip failed; trying once more." >&2; sleep 5; \
$(BIN)/python -m pip install --quiet $(1); }; }
endef

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: setup
setup: $(VENV)/.stamp ## Create the environment in .venv (again only when setup.cfg changes)

$(VENV)/.stamp: setup.cfg
	@.ci/make_venv $(VENV)
	@echo "Installing the package and its tools into $(VENV): with torch some gigabytes, a few minutes the first time."
	@$(call pip_install,--editable '.[dev]')
	@touch $@

# What a list asks for beyond the environment, laid over it: $(call overlay,folder,list).
define overlay
rm -rf $(1) && mkdir -p $(1); \
$(BIN)/python -m pip install --quiet --dry-run --report $(1)/report.json --requirement $(2); \
$(BIN)/python -c 'import json; [print("{name}=={version}".format_map(item["metadata"])) \
for item in json.load(open("$(1)/report.json"))["install"]]' > $(1)/overlay.txt; \
$(call pip_install,--target $(1) --upgrade --no-deps --requirement $(1)/overlay.txt)
endef

$(V4)/.stamp: $(VENV)/.stamp tests/transformers_v4.txt
	@echo "Laying transformers 4 over the environment, in $(V4)."
	@$(call overlay,$(V4),tests/transformers_v4.txt)
	@touch $@

$(EXTRAS)/.stamp: $(VENV)/.stamp tests/extras.txt
	@echo "Laying the optional libraries over the environment, in $(EXTRAS)."
	@$(call overlay,$(EXTRAS),tests/extras.txt)
	@touch $@

.PHONY: demo
demo: $(VENV)/.stamp ## Convert, finetune, score and caption on generated images (OUT=outputs/demo)
	@$(BIN)/ofa-hf demo $(OUT) --json $(ARGS)

.PHONY: test
test: $(VENV)/.stamp ## Run the tests (ARGS="tests/unit/cli -x" to choose)
	@$(VERSIONS) 5
	@$(PYTEST) $(ARGS)

.PHONY: test-v4
test-v4: $(V4)/.stamp ## Run the tests on transformers 4.57.6, except those that do not depend on the version
	@PYTHONPATH=$(CURDIR)/$(V4) $(VERSIONS) 4
	@PYTHONPATH=$(CURDIR)/$(V4) $(PYTEST) $(if $(findstring tests/,$(ARGS)),,$(addprefix --deselect=,$(ONE_VERSION_TESTS))) $(ARGS)

.PHONY: test-extras
test-extras: $(EXTRAS)/.stamp ## Run the tests that need optional libraries: web page, ONNX, int8, Ray, reference scores
	@PYTHONPATH=$(CURDIR)/$(EXTRAS) $(VERSIONS) 5
	@PYTHONPATH=$(CURDIR)/$(EXTRAS) $(PYTEST) $(EXTRAS_TESTS) $(ARGS)

.PHONY: test-common
test-common: $(VENV)/.stamp $(if $(filter 4,$(COMMON_MAJOR)),$(V4)/.stamp) ## Run transformers' own model tests on OFA (COMMON_MAJOR=4 for version 4)
	@export PYTHONPATH=$(abspath $(COMMON))/libraries$(if $(filter 4,$(COMMON_MAJOR)),:$(abspath $(V4))); \
	version=$$($(BIN)/python -c 'import transformers; print(transformers.__version__)'); \
	mkdir -p $(COMMON); if ! [ -d $(COMMON)/transformers-$$version ]; then \
	$(call pip_install,--target $(COMMON)/libraries --upgrade parameterized); \
	$(BIN)/python -m pip download --quiet --no-deps --no-binary :all: --dest $(COMMON) transformers==$$version; \
	tar -xzf $(COMMON)/transformers-$$version.tar.gz -C $(COMMON); fi; \
	TRANSFORMERS_SOURCE=$(COMMON)/transformers-$$version OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -W ignore \
	-o addopts=--import-mode=importlib tests/unit/test_common_models.py $(ARGS)

.PHONY: test-lowest
test-lowest: ## Run unit and parity tests on the oldest versions that setup.cfg accepts, in .venv-lowest
	@.ci/make_venv $(VENV)-lowest
	@$(VENV)-lowest/bin/python -m pip install --quiet --requirement tests/lowest.txt \
	'peft>=0.18' 'pytest>=8' pytest-xdist hypothesis psutil
	@$(VENV)-lowest/bin/python -m pip install --quiet --no-deps --editable .
	@$(subst $(BIN),$(VENV)-lowest/bin,$(PYTEST)) tests/parity $(LOWEST_TESTS) $(ARGS)

.PHONY: bench
bench: $(VENV)/.stamp ## Measure the figures of docs/performance.md, in up to twenty minutes, into outputs/bench
	@mkdir -p outputs/bench; for name in $(BENCHES); do \
	$(BIN)/python benchmarks/bench_$$name.py --json outputs/bench/$$name.json $(ARGS); echo; done

.PHONY: bench-check
bench-check: $(VENV)/.stamp ## Fail if a ratio of docs/performance.md has dropped far
	@$(BIN)/python benchmarks/check.py

.PHONY: docs
docs: $(VENV)/.stamp ## Write the API reference from the docstrings into outputs/reference
	@$(BIN)/python -m pip install --quiet 'pdoc>=15'
	@$(BIN)/python docs/make_reference.py

.PHONY: stress
stress: $(VENV)/.stamp ## Run half an hour of hostile input, kills, full disks and long runs, with a new seed
	@$(BIN)/python tests/stress/run.py $(ARGS)

.PHONY: audit
audit: $(VENV)/.stamp ## Check the installed packages for known vulnerabilities (needs the network)
	@$(BIN)/python -m pip install --quiet pip-audit
	@$(BIN)/python -m pip_audit --local --skip-editable --progress-spinner off

.PHONY: style
style: $(VENV)/.stamp ## Check style and formatting
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet --diff .

.PHONY: format
format: $(VENV)/.stamp ## Fix what can be fixed automatically
	@$(BIN)/ruff check --quiet --fix .
	@$(BIN)/ruff format --quiet .

.PHONY: clean
clean: ## Remove the environment, caches and outputs
	rm -rf $(VENV) outputs build dist *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
