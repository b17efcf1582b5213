# make lab        JupyterLab on the notebooks
# make app        make the shipped model speak, in the browser, without code
# make run        the main job: first hear the shipped model (runs/first_words/tour), then train one: corpus, VAE, VoxCPM and
#                 its first words, in runs/first_words, with all of it on one page, report.html
# make tiny       train preset tiny from nothing: AudioVAE, VoxCPM and judges, in runs/tiny and beside it; hours
# make mel_vae    an AudioVAE without the waveform term, on whose latents the ablations ran, in runs/mel_vae; hours
# make book       the whole suite as pages to read in a browser, without running anything, in build/book
# make test       every test; make test-fast leaves out the slow ones, the notebooks and the browser
# make notebooks  run every notebook in full and store it as readers will meet it
#
# Each installs what it needs into .venv first. OUT is the folder of a run, ARGS goes to the program, in `make run` to the training:
# make run OUT=runs/b ARGS="-p seed 1".

PYTHON ?= python3
ARGS ?=
BIN := .venv/bin
OUT ?= runs/first_words
ROOT := $(if $(filter 0,$(shell id -u)),--allow-root) # Jupyter asks for it, in a container say
# How long a thread that waits spins before it sleeps. A step of nano's AudioVAE on two cores, both free / one of them busy: 0.40 / 0.51 s with
# 1,000 turns, 0.26 / 0.76 with 5,000, 0.24 / 0.97 with 10,000; one thread needs 0.39 s.
export GOMP_SPINCOUNT := 5000
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest

# A browser for the tests in tests/browser.
CHROMIUM ?= $(shell command -v chromium || command -v chromium-browser || command -v google-chrome)

.PHONY: help lab app run tiny mel_vae book test test-fast notebooks lint chromium
help:
	@sed -n 's/^# //p' Makefile

lab: .venv/lab.done
	$(BIN)/jupyter lab --LabApp.default_url=/lab/tree/notebooks $(ROOT) $(ARGS)

app: .venv/lab.done
	$(BIN)/voila notebooks/app.ipynb $(ARGS)

PAPERMILL := $(BIN)/papermill --cwd notebooks --no-progress-bar --stdout-file - --stderr-file -
run: .venv/lab.done
	@mkdir -p $(OUT)
	$(PAPERMILL) notebooks/00_tour.ipynb $(OUT)/00_tour.ipynb -p out $(OUT)/tour
	@echo "This is how the shipped model speaks: listen to $(OUT)/tour/*.wav. Next, one is trained from nothing."
	$(PAPERMILL) notebooks/07_voxcpm.ipynb $(OUT)/07_voxcpm.ipynb -p preset nano -p out $(OUT) $(ARGS)
	$(BIN)/python -m vox.report $(OUT)
	@echo "Done. Listen to and look at the results in $(OUT), all on one page in report.html:" && ls $(OUT)

# ARGS shortens the runs of the notebook; all can be stopped, and the same command goes on.
tiny: OUT = runs/tiny
tiny: .venv/lab.done
	@mkdir -p $(OUT)_vae_first $(OUT)_vae $(OUT)_decoder $(OUT)_decoder_on $(OUT)_words $(OUT)_true $(OUT)_own $(OUT)_joined \
	    $(OUT)_joined_on $(OUT)
	$(PAPERMILL) notebooks/12_scale.ipynb $(OUT)_vae_first/12_scale.ipynb -p preset tiny -p corpus voices -p hours 4 -p vae_steps 2000 -p vae_only True \
	    -y 'changes: {vae_train.mel: 3.0, vae_train.waveform: 10.0, vae_train.kl: 1.0e-4, vae_train.decay: 0}' -p out $(OUT)_vae_first $(ARGS)
	$(PAPERMILL) notebooks/12_scale.ipynb $(OUT)_vae/12_scale.ipynb -p preset tiny -p corpus voices -p hours 4 -p vae_steps 5000 -p vae_only True \
	    -y 'changes: {vae_train.lr: 1.5e-3, vae_train.lr_end: 5.0e-5, vae_train.waveform: 10.0, vae_train.kl: 5.0e-4}' \
	    -p vae_start $(OUT)_vae_first/model -p out $(OUT)_vae $(ARGS)
	$(PAPERMILL) notebooks/12_scale.ipynb $(OUT)_decoder/12_scale.ipynb -p preset tiny -p corpus voices -p hours 4 -p vae_steps 0 -p vae_only True -p seed 1 \
	    -y "changes: {vae_train.encoder: False, vae_train.steps: 10000, vae_train.warmup: 100, vae_train.decay: 5000, vae_train.lr: 1.0e-3, \
	    vae_train.lr_end: 3.0e-5, vae_train.waveform: 10.0, vae_train.kl: 5.0e-4}" -p vae_start $(OUT)_vae/model -p out $(OUT)_decoder $(ARGS)
	$(PAPERMILL) notebooks/12_scale.ipynb $(OUT)_decoder_on/12_scale.ipynb -p preset tiny -p corpus voices -p hours 4 -p vae_steps 0 -p vae_only True -p seed 2 \
	    -y "changes: {vae_train.encoder: False, vae_train.steps: 8700, vae_train.warmup: 100, vae_train.decay: 4000, vae_train.lr: 1.0e-3, \
	    vae_train.lr_end: 2.0e-5, vae_train.waveform: 10.0, vae_train.kl: 5.0e-4}" -p vae_start $(OUT)_decoder/model -p out $(OUT)_decoder_on $(ARGS)
	$(PAPERMILL) notebooks/12_scale.ipynb $(OUT)_words/12_scale.ipynb -p preset tiny -p corpus words -p hours 1.5 \
	    -y 'changes: {flow.t_mean: 1.0, train.steps: 4000, train.decay: 1111, train.join: 0.0}' -p steps 0 -p vae $(OUT)_decoder_on/model -p out $(OUT)_words $(ARGS)
	$(PAPERMILL) notebooks/12_scale.ipynb $(OUT)_true/12_scale.ipynb -p preset tiny -p corpus voices -p hours 6 \
	    -y 'changes: {train.steps: 19000, train.decay: 6500}' -p steps 0 -p start $(OUT)_words/model -p out $(OUT)_true $(ARGS)
	$(PAPERMILL) notebooks/12_scale.ipynb $(OUT)_own/12_scale.ipynb -p preset tiny -p corpus voices -p hours 6 -p seed 1 \
	    -y 'changes: {train.steps: 7000, train.decay: 3500, train.own: 0.75, train.join: 0.6}' -p steps 0 -p start $(OUT)_true/model -p out $(OUT)_own $(ARGS)
	$(PAPERMILL) notebooks/12_scale.ipynb $(OUT)_joined/12_scale.ipynb -p preset tiny -p corpus voices -p hours 6 -p seed 2 \
	    -y 'changes: {train.steps: 10500, train.decay: 5000, train.own: 0.5, train.join: 0.9}' -p steps 0 -p start $(OUT)_own/model -p out $(OUT)_joined $(ARGS)
	$(PAPERMILL) notebooks/12_scale.ipynb $(OUT)_joined_on/12_scale.ipynb -p preset tiny -p corpus voices -p hours 6 -p seed 3 \
	    -y 'changes: {train.steps: 11000, train.decay: 5200, train.own: 0.5, train.join: 0.9}' -p steps 0 -p start $(OUT)_joined/model -p out $(OUT)_joined_on $(ARGS)
	$(PAPERMILL) notebooks/12_scale.ipynb $(OUT)/12_scale.ipynb -p preset tiny -p corpus voices -p hours 6 -p seed 4 \
	    -y 'changes: {train.steps: 6000, train.decay: 4500, train.lr: 5.0e-4, train.lr_end: 1.0e-5, train.own: 0.5, train.join: 0.9}' \
	    -p steps 0 -p start $(OUT)_joined_on/model -p out $(OUT) $(ARGS)
	$(BIN)/python -c 'import vox; vox.load("$(OUT)/model", device="cpu").save("$(OUT)/shipped", half=True)'
	$(BIN)/python -m vox.judge_train $(OUT)_judges $(OUT)/judge

mel_vae: OUT = runs/mel_vae
mel_vae: .venv/lab.done
	@mkdir -p $(OUT)
	$(PAPERMILL) notebooks/12_scale.ipynb $(OUT)/12_scale.ipynb -p preset tiny -p hours 4 -p vae_steps 0 -p vae_only True -p out $(OUT) $(ARGS)
	$(BIN)/python -c 'from vox import layout, load_vae; layout.write_vae("$(OUT)/shipped", layout.read_config("$(OUT)/model")[0], load_vae("$(OUT)/model", "cpu"), half=True)'

book: .venv/lab.done
	$(BIN)/python -m vox.book $(ARGS)

test: lint chromium
	$(PYTEST) -n 2 --dist loadscope --nbval-lax --nbval-current-env tests notebooks $(ARGS)

test-fast: lint
	$(PYTEST) -n 2 --dist loadscope -m "not slow and not notebook and not browser" tests $(ARGS)

notebooks: .venv/test.done
	PYTHONPATH=. $(BIN)/python tests/store_notebooks.py notebooks/*.ipynb

# The machine's own Chromium, or Debian's where we may install it, or Playwright's, which stays in the reader's cache.
chromium: .venv/test.done
	@test -n "$(CHROMIUM)" || { test "$$(id -u)" = 0 && apt-get update -q && apt-get install -qy --no-install-recommends chromium; } \
	    || $(BIN)/python -m playwright install chromium || echo "No Chromium could be installed: without one, tests/browser is skipped."

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
