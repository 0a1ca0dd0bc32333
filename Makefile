# Two commands do all set-up on Debian 12: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check
SAMPLE ?= sample-traces/guest-uffd-missing.trace
# Quick enough uncompiled, a hundred times slower than compiled.
LOOP_TESTS := tests/test_engine_loop.py tests/test_engine_journal.py tests/test_replay_pinned.py tests/test_engine_simpy.py tests/test_engine_books.py tests/test_replay_cpus.py tests/test_replay_windows.py \
  -k "not enough_cpus and not repairman and not any_cpus_and_pinning"
.DEFAULT_GOAL := help

help:  ## what can be made
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

PAGES := $(wildcard README.md docs/tutorial.md docs/which-mechanism.md docs/sweep.md docs/howto/*.md docs/guides/*.md docs/questions/*.md)
.PHONY: help demo test lint slow docs examples man kernels postcopy restores check bpf recorder fuzz loop mutate bench soak lock clean

demo: $(VENV)/.installed  ## compare mechanisms on a recorded sample trace
	$(BIN)/faultreplay compare $(SAMPLE)
	@printf '%s\n' '' 'What next:' \
	  '  . $(BIN)/activate                                         # faultreplay is on your PATH' \
	  '  faultreplay compare $(SAMPLE) -m uffd-missing:handlers=2,kvm-userfault' \
	  '  faultreplay compare $(SAMPLE) --fetch 30us       # a faster network' \
	  '  faultreplay report $(SAMPLE)                 # the same on a page, with pictures' \
	  '  faultreplay models show kvm-exit                            # what the model does, step by step' \
	  '  sudo faultreplay doctor                                     # can this host record?' \
	  '  docs/tutorial.md: your own VM in ten minutes; make docs: all pages as a site'

# Those that record want the machine's cores to themselves.
test: $(VENV)/.installed-dev  ## the tests of a few minutes
	$(BIN)/pytest -n auto --maxprocesses 8 -m "not slow and not live"
	$(BIN)/pytest -m "live and not slow"

slow: $(VENV)/.installed-dev  ## what takes longer: kernels in QEMU, post-copy, long recordings
	$(BIN)/pytest -m slow

kernels: $(VENV)/.installed-dev  ## record a guest inside Debian's 6.1 and 6.12 under QEMU, check every number
	$(BIN)/python scripts/kernels/run.py --backend bcc --backend bpftrace

postcopy: $(VENV)/.installed-dev  ## migrate two real QEMU guests with post-copy, QEMU's blocktime beside the stitched stalls
	$(BIN)/python scripts/postcopy/run.py kvm
	$(BIN)/python scripts/postcopy/run.py tcg

restores: $(VENV)/.installed-dev  ## restore two real QEMU guests lazily from a snapshot file, page cache hot and cold
	$(BIN)/python scripts/restore/run.py kvm -o restores
	$(BIN)/python scripts/restore/run.py tcg --mib 32 --operations 6000 -o restores

lint: $(VENV)/.installed-dev  ## style, types, imports, sizes, wrapped pages
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python scripts/sizes.py
	$(BIN)/python scripts/docs/wrap.py

check: lint test  ## style, types, imports and the tests

docs: $(VENV)/.installed-dev  ## the documentation site in build/site; warnings are errors
	NO_MKDOCS_2_WARNING=1 DISABLE_MKDOCS_2_WARNING=true $(BIN)/mkdocs build --quiet
	@echo "wrote build/site/index.html"

examples: $(VENV)/.installed-dev  ## run the examples of docs/ and README.md, and write down what they print now
	$(BIN)/python scripts/docs/examples.py --write $(PAGES)
	XDG_CONFIG_HOME=build/no-costs $(BIN)/python scripts/docs/picture.py

man: $(VENV)/.installed  ## man pages from the help, in build/man
	$(BIN)/python scripts/docs/man.py build/man

bpf: $(VENV)/.installed  ## compile the BPF programs once for all hosts (needs clang and libbpf-dev)
	$(BIN)/python -m faultreplay.collect.backends.build_precompiled

recorder: $(VENV)/.installed  ## dist/faultreplay-recorder.pyz: one file that records on a host with Python and libbpf1
	$(PIP) shiv==1.0.8
	$(BIN)/python scripts/make_recorder.py

fuzz: $(VENV)/.installed-dev  ## nearly right inputs through every reader and option (FUZZ_INPUTS=2000 FUZZ_SECONDS=1800)
	$(BIN)/python tests/fuzz/run.py --inputs $(or $(FUZZ_INPUTS),2000) --seconds $(or $(FUZZ_SECONDS),1800)

loop: $(VENV)/.installed-dev  ## lines of the engine's loop that tests run, the loop uncompiled (95 % at least)
	NUMBA_DISABLE_JIT=1 $(BIN)/coverage run --data-file=.coverage --include='*/replay/engine/*.py' --omit='*/jit.py,*/warm.py' -m pytest -q $(LOOP_TESTS)
	$(BIN)/coverage report -m --fail-under=95

mutate: $(VENV)/.installed-dev  ## small faults in the stitch and in replay: do tests notice? (MUTATE_SAMPLE=400 MUTATE_SECONDS=7200)
	$(BIN)/python tests/mutation/run.py --sample $(or $(MUTATE_SAMPLE),400) --seconds $(or $(MUTATE_SECONDS),7200) \
	  --results .mutate.jsonl

bench: $(VENV)/.installed-dev  ## speed claims, as ratios against a named peer in one run
	$(BIN)/python benchmarks/engine.py

soak: $(VENV)/.installed-dev  ## ten minutes at 200,000 events a second: memory, losses, size (root; SOAK_MINUTES=10)
	$(BIN)/python benchmarks/soak.py --minutes $(or $(SOAK_MINUTES),10)

# --require-hashes is implied by the lock file: two set-ups get the same bytes.
$(VENV)/.installed: requirements.lock pyproject.toml | $(VENV)/bin/pip
	$(PIP) -r requirements.lock
	$(PIP) --no-deps --editable .
	touch $@

$(VENV)/.installed-dev: requirements-dev.lock $(VENV)/.installed
	$(PIP) -r requirements-dev.lock
	touch $@

$(VENV)/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: Python 3.11 or newer is needed" >&2; exit 5; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "error: no venv for $(PYTHON): run 'sudo scripts/install-debian.sh' (or: sudo apt-get install python3-venv)" >&2; exit 5; }

lock:  ## make the lock files anew from pyproject.toml
	$(BIN)/pip install --quiet pip-tools
	$(BIN)/pip-compile -q --no-emit-index-url --no-emit-find-links --generate-hashes --strip-extras --extra plot --extra report -o requirements.lock pyproject.toml
	$(BIN)/pip-compile -q --no-emit-index-url --no-emit-find-links --generate-hashes --strip-extras --extra dev --extra dask --extra docs -o requirements-dev.lock pyproject.toml
	sed -i "s/^atheris==\([^ ]*\) /atheris==\1 ; platform_machine == 'x86_64' and python_version < '3.14' /" requirements-dev.lock

clean:  ## remove the venv and the caches
	rm -rf $(VENV) *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
