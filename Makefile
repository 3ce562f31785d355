# make demo      the whole recipe with a real model on the CPU: configs/quickstart.yaml
# make test      the tests, without those marked slow
# make test-all  all tests
# make lint      ruff (rules and format) and mypy
# make install   the package alone; EXTRAS=tpu,tensorboard adds optional dependencies
# make clean     removes the environment and what builds and tools leave; runs/ stays
#
# Each makes what it needs in .venv first. That takes a Python with pip, and a package index.
#   PYTHON=python3.12  the Python that .venv is made with (once; `make clean` to change it)
#   WORLD=colab        pins of constraints/colab.txt, not those that the Python version chooses
#   PARITY=1           PyTorch too, for the tests that compare with it
#   ARGS='...'         further arguments of `tisdpo run` (demo) or pytest (test, test-all)
#
# Paths are relative, so the directory may have spaces in its name. GNU make 3.81.

PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
ARGS ?=
EXTRAS ?=
PARITY ?=

BIN := $(VENV)/bin
comma := ,
# An environment that exists decides, whatever `python3` has become since.
INTERPRETER := $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))
DETECTED := $(shell "$(INTERPRETER)" -c 'import sys; v = sys.version_info[:2]; print("old" if v < (3, 11) else "py311" if v == (3, 11) else "current")' 2>/dev/null)
WORLD ?= $(DETECTED)
CONSTRAINTS := constraints/$(WORLD).txt

# Stamps say what .venv holds; a stamp is older than what it was made from when an install is due.
ENVIRONMENT := $(VENV)/.stamp-environment
RUNTIME := $(VENV)/.stamp-$(WORLD)-runtime
DEV := $(VENV)/.stamp-$(WORLD)-dev
PARITY_DEV := $(VENV)/.stamp-$(WORLD)-parity
TOOLS := $(if $(filter-out 0,$(PARITY)),$(PARITY_DEV),$(DEV))
SOURCES := setup.py $(wildcard $(CONSTRAINTS))

# $(call install,EXTRAS,STAMPS)
define install
	@test -f "$(CONSTRAINTS)" || { echo "error: WORLD=$(WORLD), but there is no $(CONSTRAINTS); worlds are: $(patsubst constraints/%.txt,%,$(wildcard constraints/*.txt))" >&2; exit 2; }
	@echo "installing tisdpo_jax$(1) into $(VENV) with the pins of $(CONSTRAINTS); minutes the first time"
	@rm -f $(VENV)/.stamp-*-*
	$(BIN)/python -m pip install -qq --disable-pip-version-check -c $(CONSTRAINTS) -e ".$(1)"
	@touch $(2)
endef

.PHONY: help install demo test test-all lint clean

help:
	@sed -n '/^# make/s/^# //p' Makefile

demo: $(RUNTIME)
	JAX_PLATFORMS=cpu $(BIN)/tisdpo run configs/quickstart.yaml $(ARGS)

test: $(TOOLS)
	JAX_PLATFORMS=cpu $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m 'not slow' --durations=10 $(ARGS)

test-all: $(TOOLS)
	JAX_PLATFORMS=cpu $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --durations=10 $(ARGS)

lint: $(TOOLS)
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

install: $(ENVIRONMENT)
	$(call install,$(if $(EXTRAS),[$(EXTRAS)]),$(RUNTIME))

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find tisdpo_jax tests launch experiments -name __pycache__ -type d -prune -exec rm -rf {} +

# Debian's Python has venv but not always ensurepip; its own pip then fills the environment.
$(ENVIRONMENT):
	@case "$(DETECTED)" in \
	'') echo "error: '$(PYTHON)' does not run; name a Python that is 3.11 or newer: make PYTHON=python3.12" >&2; exit 2;; \
	old) echo "error: $$("$(PYTHON)" -V 2>&1) is older than 3.11; name a newer one: make PYTHON=python3.12" >&2; exit 2;; \
	esac
	@echo "making $(VENV) with $$("$(PYTHON)" -V)"
	@if "$(PYTHON)" -c 'import ensurepip' 2>/dev/null; then "$(PYTHON)" -m venv $(VENV); else \
	"$(PYTHON)" -m venv --without-pip $(VENV) && "$(PYTHON)" -m pip --python $(BIN)/python install -qq pip; fi
	@touch $@

$(RUNTIME): $(ENVIRONMENT) $(SOURCES)
	$(call install,,$(RUNTIME))

$(DEV): $(ENVIRONMENT) $(SOURCES)
	$(call install,[dev],$(RUNTIME) $(DEV))

$(PARITY_DEV): $(ENVIRONMENT) $(SOURCES)
	$(call install,[dev$(comma)parity],$(RUNTIME) $(DEV) $(PARITY_DEV))
