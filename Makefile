# A fresh machine needs Python 3.11 or newer, pip and make. Everything else is fetched, pinned and checked.
#   make book PYTHON=python3.12     another Python
#   make test VENV=/tmp/venv        another environment
# CALIB_STUDY_CACHE=DIR keeps what is fetched in DIR, to be shared between checkouts.

PYTHON ?= python3
VENV ?= .venv
PORT ?= 8000
BIN = $(VENV)/bin
SMOKE = _build/smoke/html

.DEFAULT_GOAL := help
.PHONY: help book test lint smoke sync serve clean environment environment-dev fetch

help: ## say what each target does
	@echo "How much does the choice of calibration text decide what pruning does to a language model?"
	@echo
	@sed -n 's/^\([a-z]*\):.*## /  make \1|/p' Makefile | awk -F'|' '{ printf "%-14s %s\n", $$1, $$2 }'
	@echo
	@echo "Start with make book; then open _build/html/index.html"

book: fetch ## build the book from the published records (first time 15 to 25 minutes, again under 1)
	@"$(BIN)/calib-study" book --profile published

test: environment-dev ## run all tests (first time 10 to 15 minutes with installation and download, again 5 to 10)
	@"$(BIN)/calib-study" fetch
	@"$(BIN)/python" -m pytest

lint: environment-dev ## check style, format and types (half a minute)
	@"$(BIN)/ruff" check .
	@"$(BIN)/ruff" format --check .
	@"$(BIN)/mypy"

smoke: fetch ## build the whole book at the smallest sizes, apart from the real one, and check its pages (5 to 12 minutes)
	@"$(BIN)/calib-study" book --profile smoke
	@"$(BIN)/python" tests/html_checks.py $(SMOKE)

sync: environment ## write notebooks/*.ipynb again from notebooks/*.py, which are the source (seconds)
	@"$(BIN)/python" -m calib_study.notebooks

serve: environment ## show the built book at http://localhost:8000, with full search (until Ctrl-C)
	@test -f _build/html/index.html || { echo "There is no book yet: make book"; exit 1; }
	@echo "http://localhost:$(PORT)"
	@"$(BIN)/python" -m http.server --bind 127.0.0.1 --directory _build/html $(PORT)

clean: ## remove what was built; the environment and everything fetched stay (a second)
	rm -rf _build book/notebooks book/_generated book/assets/mathjax
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis

environment:
	@command -v "$(PYTHON)" > /dev/null || { echo "No $(PYTHON) here; name one: make book PYTHON=python3.11"; exit 2; }
	@"$(PYTHON)" .ci/environment.py "$(VENV)"

environment-dev:
	@command -v "$(PYTHON)" > /dev/null || { echo "No $(PYTHON) here; name one: make test PYTHON=python3.11"; exit 2; }
	@"$(PYTHON)" .ci/environment.py "$(VENV)" dev

fetch: environment
	@"$(BIN)/calib-study" fetch
