# `make` alone lists what there is. Every target sets up what it needs; a second run skips what is done.
.DEFAULT_GOAL := help
.PHONY: help setup demo test fuzz lint bench

BIN := .venv/bin
TESTS ?= tests
MARKERS ?= not gpu
COVERAGE ?= 85
JOBS ?= auto

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' Makefile

setup: ## Make .venv and install everything into it (with vLLM for the GPU, or for the CPU)
	@scripts/setup.sh

demo: setup ## Serve the shipped checkpoint with vLLM and ask it about new clips (or MEDIA=file QUESTION="…")
	@$(BIN)/python -m serve.demo $(if $(MEDIA),--media "$(MEDIA)") $(if $(QUESTION),--question "$(QUESTION)")

test: setup ## Run the tests and measure the coverage of mllm/ (TESTS=path MARKERS="not slow" JOBS=0 COVERAGE=0)
	@$(BIN)/python -m pytest $(TESTS) -m "$(MARKERS)" -n $(JOBS) --dist loadgroup --cov=mllm --cov-report=term:skip-covered --cov-fail-under=$(COVERAGE)

fuzz: setup ## Read damaged recordings by the thousand (MUTANTS=20000 SEED=0)
	@$(BIN)/python -m tests.fuzz --mutants $(or $(MUTANTS),20000) --seed $(or $(SEED),0)

lint: setup ## Check style, types and the floors between the packages
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

bench: setup ## Measure speed: serving against Hugging Face generate, media and data against decord
	@$(BIN)/mllm bench serve
	@$(BIN)/mllm bench media
	@$(BIN)/mllm bench data
