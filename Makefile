# Two commands for a fresh clone: `make demo` trains and evaluates, `make test` runs the tests.
# Both create .venv, and create it anew only when the requirements have changed. `make -C FOLDER demo` works from anywhere.
#
#   make demo STEPS=4               a shorter training
#   make demo OPTIONS="--seed 1"    further options of the training
#   make demo PYTHON=python3.12     another interpreter for .venv

PYTHON ?= python3
STEPS ?=
OPTIONS ?=
TRAIN_OPTIONS := $(if $(STEPS),--max_steps $(STEPS)) $(OPTIONS)
VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: demo test

demo: $(VENV)/.requirements
	$(RUN) -m monai.bundle run training --config_file configs/train.yaml $(TRAIN_OPTIONS)
	$(RUN) -m monai.bundle run evaluating --config_file "['configs/train.yaml','configs/evaluate.yaml']"
	@echo
	@echo "Trained and evaluated. Look at:"
	@echo "  $(CURDIR)/outputs/report/index.html   the report: results, and pictures of every test case"
	@echo "  $(CURDIR)/outputs/summary.json   Dice and surface distances of the 8 test cases (metrics.csv: one row per case and structure)"
	@echo "  $(CURDIR)/outputs/overlays       predictions drawn over the images"
	@echo "  $(CURDIR)/outputs/models         the trained model, model.pt"
	@echo "  $(CURDIR)/$(VENV)/bin/tensorboard --logdir $(CURDIR)/outputs   shows the curves"

test: $(VENV)/.requirements-dev
	$(RUN) -m pytest -n logical

$(VENV)/.requirements: requirements.txt
	$(PYTHON) -m venv --clear $(VENV)
	$(RUN) -m pip install --quiet -r requirements.txt
	@touch $@

$(VENV)/.requirements-dev: requirements-dev.txt $(VENV)/.requirements
	$(RUN) -m pip install --quiet -r requirements-dev.txt
	@touch $@
