# Two commands on a fresh machine with Python 3.11+ and make:
#   make demo    sets up, then simulates tissue, trains, evaluates, exports (about three minutes on two cores)
#   make test    sets up, then runs the tests

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
EXTRAS ?= dev
CONSTRAINTS ?=
PYTEST_ARGS ?=
# Two processes: more do not help where XLA's own threads fill the cores.
PYTEST = $(VENV)/bin/python -m pytest -n 2 --dist loadfile $(PYTEST_ARGS)
PYTEST_SELECT ?= not slow
DEMO ?= demo_out
RUN = $(VENV)/bin/python

.PHONY: demo test test-floor test-matrix notebooks notebooks-floor docs lint clean

# The demo needs the library alone; everything else needs the tools too.
$(VENV)/.core: pyproject.toml
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet -e . $(CONSTRAINTS)
	touch $@

$(VENV)/.$(EXTRAS): pyproject.toml
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet -e ".[$(EXTRAS)]" $(CONSTRAINTS)
	touch $@

demo: $(VENV)/.core
	test -d $(DEMO)/records || $(RUN) -m data_prep.simulate --out $(DEMO)/records
	$(RUN) -m plip_jax.train --config configs/demo.py --workdir $(DEMO)/run \
		--config.data.sources.tissue.path=$(DEMO)/records \
		--config.eval.tasks.tissue.data=$(DEMO)/records --config.eval.tasks.captions.data=$(DEMO)/records
	$(RUN) -m plip_jax.evaluate --checkpoint $(DEMO)/run --config configs/eval_demo.py --out $(DEMO)/evaluation \
		--config.tasks.tissue.data=$(DEMO)/records --config.tasks.captions.data=$(DEMO)/records
	$(RUN) -m plip_jax.export --checkpoint $(DEMO)/run --format hf --out $(DEMO)/hf --overwrite
	$(RUN) -c "from plip_jax import PLIP; from plip_jax.data.examples import open_examples; \
		tile = open_examples('$(DEMO)/records', 'test')[0]; print('A held-out tile of', tile.label, 'is seen as'); \
		print(PLIP.from_pretrained('$(DEMO)/hf').zero_shot(tile.image, \
		['adipose tissue', 'lymphocytes', 'mucus', 'necrosis', 'smooth muscle']))"
	@echo "Look at $(DEMO)/run/curves.png and $(DEMO)/evaluation/report.html"

test: $(VENV)/.$(EXTRAS)
	$(PYTEST) -m "$(PYTEST_SELECT)"

# The oldest versions that are promised: what Colab's TPU runtime holds.
test-floor:
	$(MAKE) test VENV=.venv-floor EXTRAS=test,data,notebooks CONSTRAINTS="-c tests/constraints/floor.txt"

# Python 3.13 with the newest of everything; the interpreter is the system's, pyenv's or uv's.
test-matrix:
	python3=$$(sh tests/find_python.sh 3.13) && $(MAKE) test VENV=.venv-3.13 EXTRAS=test,data,notebooks PYTHON="$$python3"

lint: $(VENV)/.$(EXTRAS)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright
	$(RUN) colab/tools/notebooks.py check

# All notebooks, top to bottom, in their smallest form.
notebooks: $(VENV)/.$(EXTRAS)
	$(RUN) colab/tools/notebooks.py execute --smoke

# The same as on Colab: beside the versions that its runtime holds, where their first cells install this checkout. Its
# Python is 3.12; another that is there does as well.
notebooks-floor:
	rm -rf .venv-colab
	python3=$$(sh tests/find_python.sh 3.12 || echo "$(PYTHON)") && "$$python3" -m venv .venv-colab
	.venv-colab/bin/python -m pip install --quiet -r tests/constraints/floor.txt -r tests/constraints/colab.txt
	.venv-colab/bin/python colab/tools/notebooks.py execute --smoke --source "file://$(CURDIR)"

# The site, into site/; a broken link or a docstring that cannot be read fails it. The variable keeps the theme's news of
# its successor out of the log.
docs: $(VENV)/.$(EXTRAS)
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict

clean:
	rm -rf $(DEMO)
