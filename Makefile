# make lab        JupyterLab on the notebooks
# make run        the main job: corpus, VAE, VoxCPM and its first words, in runs/first_words
# make test       every test; make test-fast leaves out the slow ones and the notebooks
# make notebooks  run every notebook in full and store it as readers will meet it
#
# Each installs what it needs into .venv first. OUT is the folder of a run, ARGS goes to the program: make run OUT=runs/b ARGS="-p seed 1".

PYTHON ?= python3
ARGS ?=
BIN := .venv/bin
OUT ?= runs/first_words
ROOT := $(if $(filter 0,$(shell id -u)),--allow-root) # Jupyter asks for it, in a container say
# Threads that wait spin only briefly: on a busy machine they would starve the one they wait for (up to ten times slower).
export GOMP_SPINCOUNT := 1000
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest

.PHONY: help lab run test test-fast notebooks lint
help:
	@sed -n 's/^# //p' Makefile

lab: .venv/lab.done
	$(BIN)/jupyter lab --LabApp.default_url=/lab/tree/notebooks $(ROOT) $(ARGS)

run: .venv/lab.done
	@mkdir -p $(OUT)
	$(BIN)/papermill notebooks/07_voxcpm.ipynb $(OUT)/07_voxcpm.ipynb -p preset nano -p out $(OUT) \
	    --cwd notebooks --no-progress-bar --stdout-file - --stderr-file - $(ARGS)
	@echo "Done. Listen to and look at the results in $(OUT):" && ls $(OUT)

test: lint
	$(PYTEST) -n 2 --dist loadscope --nbval-lax --nbval-current-env tests notebooks $(ARGS)

test-fast: lint
	$(PYTEST) -n 2 --dist loadscope -m "not slow and not notebook" tests $(ARGS)

notebooks: .venv/test.done
	PYTHONPATH=. $(BIN)/python tests/store_notebooks.py notebooks/*.ipynb

lint: .venv/test.done
	$(BIN)/ruff check .

# A stamp goes before pip starts and comes back when pip is done, so an interrupted install is started afresh.
define prepare
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
    { echo 'vox needs Python 3.11 or newer. If you have one under another name: make $@ PYTHON=python3.12'; exit 1; }
@test -f .venv/lab.done || $(PYTHON) -m venv --clear .venv
@rm -f .venv/*.done
endef

.venv/lab.done: pyproject.toml constraints.txt
	$(prepare)
	$(BIN)/pip install -c constraints.txt -e '.[lab]'
	@touch $@

.venv/test.done: .venv/lab.done
	$(prepare)
	$(BIN)/pip install -c constraints.txt -e '.[lab,test,parity,metrics,community]'
	$(BIN)/pip install -c constraints.txt --no-deps voxcpm
	@touch .venv/lab.done $@
