# make demo: trains BatchNorm only on the embedded data set.  make test: runs the tests.
# Both make .venv and install what is missing there first.

# The newest Python from 3.13 to 3.11; choose another with make PYTHON=...
PYTHON ?= $(shell for p in python3.13 $(HOME)/.pyenv/versions/3.13.*/bin/python \
    python3.12 $(HOME)/.pyenv/versions/3.12.*/bin/python python3.11 python3; do \
  "$$p" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2> /dev/null \
    && echo "$$p" && break; done)

.PHONY: demo test lint clean

demo: .venv/installed
	.venv/bin/python -m bnonly_jax.main --config=configs/digits.py --workdir=runs/demo

test: .venv/installed
	.venv/bin/python -m pytest

lint: .venv/installed
	.venv/bin/ruff check .

clean:
	rm -rf .venv runs/demo

.venv/installed: setup.py
	@test -n "$(PYTHON)" || { echo 'error: no Python 3.11, 3.12 or 3.13 found; install one or say' \
	  'make PYTHON=/path/to/python'; exit 1; }
	"$(PYTHON)" -m venv .venv
	.venv/bin/pip install -q -e '.[test]'
	touch .venv/installed
