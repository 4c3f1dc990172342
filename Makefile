# make demo: train on Python's own library and let the network write.   make shell: the interactive shell.
# make test: the suite on both engines.   make test-long: more of it.   make fuzz: half an hour of fuzzing what reads files.
# make clean: remove what these have made.
PYTHON ?= python3
PIP = -m pip install --quiet --disable-pip-version-check
# An upgrade of the system's Python leaves environments behind that find no Python, or no packages: they are made anew.
ANEW := $(shell for venv in .venv .venv-theano; do \
  if [ -e $$venv/ready ] && [ -L $$venv/bin/python ] && ! $$venv/bin/python -c "import tqdm"; then rm -rf $$venv; fi; done 2> /dev/null)

demo: .venv/ready
	@.venv/bin/python demo.py

shell: .venv/ready
	@.venv/bin/python -i rn_rnn_char.py || true

# Both suites at once: much of a test is waiting for a process of its own.
test: .venv/ready-test .venv-theano/ready
	@trap 'kill 0' INT; if [ -x .venv-theano/bin/python ]; then \
	  RN_GRU_ENGINE=theano .venv-theano/bin/python -m pytest -m "not long" > .venv-theano/tests.txt 2>&1 & fi; \
	echo "Tests on PyTensor:"; \
	RN_GRU_ENGINE=pytensor .venv/bin/python -m pytest -m "not long"; pytensor=$$?; theano=0; \
	if [ -x .venv-theano/bin/python ]; then wait $$!; theano=$$?; echo "Tests on classic Theano:"; cat .venv-theano/tests.txt; fi; \
	exit $$((pytensor || theano))

test-long: .venv/ready-test .venv-theano/ready
	@RN_GRU_ENGINE=pytensor .venv/bin/python -m pytest
	@if [ -x .venv-theano/bin/python ]; then RN_GRU_ENGINE=theano .venv-theano/bin/python -m pytest; fi

fuzz: .venv/ready-test
	@.venv/bin/python $(PIP) atheris
	@.venv/bin/python tests/fuzz_storage.py -max_total_time=1800 -max_len=20000

.venv/ready: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "RN-GRU needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	@echo "Installing PyTensor and NumPy into .venv (once, about 40 s) ..."
	@$(PYTHON) -m venv .venv || { rm -rf .venv; echo "No virtual environment could be made, for the reason above.\
	 On Debian or Ubuntu it may take this: sudo apt install python3-venv" >&2; exit 1; }
	@.venv/bin/python $(PIP) -r requirements.txt || { echo "PyTensor and NumPy could not be installed, for the reason that pip gives above:\
	 this needs a network, once." >&2; exit 1; }
	@touch $@

.venv/ready-test: .venv/ready requirements-test.txt requirements-jax.txt
	@.venv/bin/python $(PIP) -r requirements-test.txt
	@.venv/bin/python $(PIP) -r requirements-jax.txt || echo "JAX can't be installed here, so its tests are skipped."
	@touch $@

# Classic Theano needs NumPy 1.23.5, which needs Python 3.11: elsewhere the directory stays empty and its tests are skipped.
.venv-theano/ready: requirements-theano.txt requirements-test.txt
	@mkdir -p .venv-theano
	@for python in $(PYTHON) python3.11; do \
	  if $$python -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then \
	    echo "Installing classic Theano into .venv-theano (once, about 40 s) ..."; \
	    $$python -m venv .venv-theano && \
	    grep -E '^(setuptools|wheel|numpy)' requirements-theano.txt > .venv-theano/first.txt && \
	    .venv-theano/bin/python $(PIP) -r .venv-theano/first.txt && \
	    .venv-theano/bin/python $(PIP) --no-build-isolation -r requirements-theano.txt -r requirements-test.txt || exit 1; \
	    break; \
	  fi; \
	done
	@[ -x .venv-theano/bin/python ] || echo "No Python 3.11 here, so the tests on classic Theano are skipped."
	@touch $@

clean:
	rm -rf .venv .venv-theano demo .pytest_cache .ruff_cache .mypy_cache .hypothesis __pycache__ */__pycache__

.PHONY: demo shell test test-long fuzz clean
