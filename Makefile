# make demo: trains BatchNorm only on the embedded data set.  make test: runs the tests.
# Both make .venv and install what is missing there first; make PYTHON=... chooses the Python.
.PHONY: demo test slow lint env clean

demo: env
	.venv/bin/python -m bnonly_jax.main --config=configs/digits.py --workdir=runs/demo

test: env
	.venv/bin/python -m pytest -n auto --dist loadfile

slow: env
	.venv/bin/python -m pytest -m slow

lint: env
	.venv/bin/ruff check .

env:
	@PYTHON="$(PYTHON)" .ci/env

clean:
	rm -rf .venv runs/demo
