# Everything a person does here. `make help` lists it. Needs Python 3.11 or newer and make; the rest is installed into
# .venv, as pinned in requirements/ (only `make test-foreign` also installs Debian and npm packages).

PYTHON ?= $(shell command -v python3.11 || command -v python3)
HOST ?= 127.0.0.1
PORT ?= 8080
DATA ?= .engram
ARGS ?=

# Where it is set, as in many containers, each of the many processes that the tests start compiles whatever it imports:
# `engram serve` then takes 1.8 s of a CPU to start, and not 0.5.
unexport PYTHONDONTWRITEBYTECODE

BIN := .venv/bin
# uv installs into .venv with the Python that made it, never fetches another one, and trusts whom the system trusts.
UV := VIRTUAL_ENV=$(CURDIR)/.venv UV_PYTHON_DOWNLOADS=never UV_NO_PROGRESS=1 UV_SYSTEM_CERTS=1 \
	UV_COMPILE_BYTECODE=1 $(BIN)/uv
COMPILE := $(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	--no-annotate --custom-compile-command "make lock" $(if $(UPGRADE),--upgrade)
FOREIGN := tests/foreign

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
# Two servers, two benchmarks or two installs at once disturb each other; 2 cores gain nothing.
.NOTPARALLEL:

.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# Setting up. Two stamps, so that a second call costs nothing: uv itself, and what uv installs.

.PHONY: setup
setup: .venv/.stamp-installed ## install everything into .venv

.venv/.stamp-uv: requirements/uv.lock
	@test -n "$(PYTHON)" && "$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed; name one with PYTHON=..." >&2; exit 1; }
	test -x $(BIN)/python || "$(PYTHON)" -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/uv.lock
	@touch $@

# `sync` removes what is no longer pinned, our own two packages with it, so they are linked in again right after.
.venv/.stamp-installed: .venv/.stamp-uv requirements/dev.lock pyproject.toml clients/python/pyproject.toml
	$(UV) pip sync --quiet --require-hashes requirements/dev.lock
	$(UV) pip install --quiet --no-deps --no-build-isolation --editable clients/python --editable .
	@touch $@

# Using it.

.PHONY: run
run: setup ## serve on HOST:PORT (127.0.0.1:8080), the log in DATA (.engram)
	$(BIN)/engram serve --host $(HOST) --port $(PORT) --data-dir $(DATA) $(ARGS)

.PHONY: demo
demo: setup ## a bus in a temporary directory, a recorded session played onto it, the live view, the summary
	$(BIN)/engram demo $(ARGS)

# Checking it.

.PHONY: test
test: setup ## the quick suite (ARGS='-k name' narrows it)
	$(BIN)/pytest $(ARGS)

.PHONY: coverage
coverage: setup ## the quick suite, and which lines and branches it did not reach
	$(BIN)/coverage run -m pytest $(ARGS)
	$(BIN)/coverage report

.PHONY: lint
lint: setup ## ruff, the import contracts, the wire, hadolint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/buf lint proto
	$(BIN)/buf format --diff --exit-code proto
	$(BIN)/buf breaking proto --against proto/published.binpb
	$(BIN)/python proto/generate --check
	$(BIN)/hadolint Dockerfile

.PHONY: format
format: setup ## let ruff write what lint asks for
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: proto
proto: setup ## write the Python of proto/engram/v1, for the bus and for its client
	$(BIN)/buf format --write proto
	$(BIN)/python proto/generate

.PHONY: publish-proto
publish-proto: setup ## keep the wire as it is now: from here on `make lint` refuses what would break a client of it
	$(BIN)/buf build proto --exclude-source-info --output proto/published.binpb

.PHONY: types
types: setup ## mypy --strict over both packages and the benchmarks
	$(BIN)/mypy

.PHONY: bench
bench: setup tools-bench ## every benchmark, small
	@for file in benchmarks/bench_*.py; do \
		name=$$(basename $$file .py); echo "== $$name"; \
		$(BIN)/python -m benchmarks.$$name --small || exit; \
	done

# What a commit has measured is not measured again, so a run that was ended goes on.
.PHONY: bench-full
bench-full: setup tools-peers ## every benchmark in full, 20 minutes each at most; ended, it goes on; results/ is written
	@measured=.benchmarks/full/$$(git rev-parse --short HEAD); mkdir -p $$measured; \
	for file in benchmarks/bench_*.py; do \
		name=$$(basename $$file .py); test -e $$measured/$$name && continue; \
		echo "== $$name"; timeout 1200 $(BIN)/python -m benchmarks.$$name || { failed="$$failed $$name"; continue; }; \
		touch $$measured/$$name; \
	done; \
	$(BIN)/python -m benchmarks.page && test -z "$$failed" || { echo "did not end:$$failed"; exit 1; }

.PHONY: bench-page
bench-page: setup ## draw benchmarks/results/index.html from the results beside it
	$(BIN)/python -m benchmarks.page

.PHONY: bench-check
bench-check: setup tools-bench ## is the bus slower than recorded? Ratios, beside a null server and the disk's own flush
	$(BIN)/python -m benchmarks.check_ratios

.PHONY: test-foreign
test-foreign: setup tools-foreign $(FOREIGN)/node_modules/.stamp ## clients we did not write: a browser, npm packages
	$(BIN)/pytest -m foreign $(FOREIGN) $(ARGS)

# What comes from no Python registry: Debian's packages, and of those only the missing ones. Pairs of command:package.
debian = @missing=""; \
	for pair in $(1); do command -v $${pair%%:*} >/dev/null || missing="$$missing $${pair\#\#*:}"; done; \
	test -z "$$missing" && exit; \
	echo "installing$$missing"; \
	sudo=$$(test $$(id -u) = 0 || echo sudo); \
	export DEBIAN_FRONTEND=noninteractive; \
	$$sudo apt-get update -qq && $$sudo apt-get install -qq --yes --no-install-recommends $$missing >/dev/null

.PHONY: tools-foreign tools-bench tools-faults
tools-foreign:
	$(call debian,chromium:chromium node:nodejs npm:npm)
tools-bench tools-faults:
	$(call debian,cc:gcc cc:libc6-dev)

# What the bus is measured beside. Redis is Debian's; the others are built by Go at these versions, where there is a Go.
NATS_SERVER := github.com/nats-io/nats-server/v2@v2.15.2
CENTRIFUGO := github.com/centrifugal/centrifugo/v6@v6.9.1
PEERS := .benchmarks/peers

.PHONY: tools-redis tools-peers
tools-redis:
	$(call debian,redis-server:redis-server)
tools-peers: tools-bench tools-redis ## install the brokers that benchmarks/bench_brokers.py measures beside the bus
	@command -v go >/dev/null || { echo "no Go: the bus is measured beside Redis alone"; exit; }; \
	for peer in $(NATS_SERVER) $(CENTRIFUGO); do \
		stamp=$(PEERS)/.$$(basename $$peer | tr / -)-$$(echo $$peer | cksum | cut -d' ' -f1); \
		test -e $$stamp && continue; \
		echo "building $$peer"; GOBIN=$(CURDIR)/$(PEERS) go install $$peer && touch $$stamp || exit; \
	done

$(FOREIGN)/node_modules/.stamp: $(FOREIGN)/package-lock.json
	cd $(FOREIGN) && npm ci --no-audit --no-fund
	@touch $@

.PHONY: check
check: lint types tools-faults tools-redis test bench-check bench test-foreign wheels ## what has to pass before a change lands

.PHONY: check-long
check-long: setup ## kills, full disks, a million units: minutes, not seconds
	$(BIN)/pytest -m long --timeout 1800 $(ARGS)

IMAGES ?= 1000
SEED ?=

.PHONY: power-loss
power-loss: setup tools-faults ## what a disk may hold after a power cut, IMAGES of it (1000), each opened and checked
	$(BIN)/python -m tests.simulation.power_loss --images $(IMAGES) $(if $(SEED),--seed $(SEED)) $(ARGS)

TARGET ?=
SECONDS ?= 60

.PHONY: fuzz
fuzz: .venv/.stamp-fuzz ## any bytes in place of what is stored: TARGET (all of them), SECONDS for each (60), SEED
	$(BIN)/python -m tests.fuzz --seconds $(SECONDS) $(if $(SEED),--seed $(SEED)) $(TARGET) $(ARGS)

.venv/.stamp-fuzz: .venv/.stamp-installed requirements/fuzz.lock
	$(UV) pip install --quiet --require-hashes -r requirements/fuzz.lock
	@touch $@

# Shipping it.

.PHONY: wheels
wheels: setup ## build both wheels into dist/, install them into an empty environment and run them there
	rm -rf dist
	$(BIN)/python -m build --wheel --no-isolation --outdir dist clients/python >/dev/null
	$(BIN)/python -m build --wheel --no-isolation --outdir dist . >/dev/null
	$(BIN)/python -m venv --without-pip dist/empty
	$(UV) pip install --quiet --python dist/empty --require-hashes -r requirements/runtime.lock
	$(UV) pip install --quiet --python dist/empty --no-deps dist/*.whl
	.ci/smoke dist/empty/bin
	rm -rf dist/empty
	@ls -l dist

.PHONY: image
image: ## build the container image (needs docker)
	docker build --tag engram-bus .

.PHONY: lock
lock: .venv/.stamp-uv ## write requirements/*.lock from pyproject.toml; pins stay unless UPGRADE=1
	$(COMPILE) --group uv --output-file requirements/uv.lock
	$(COMPILE) pyproject.toml --group uv --group dev --no-emit-package engram-bus-client --output-file requirements/dev.lock
	$(COMPILE) pyproject.toml --constraint requirements/dev.lock --no-emit-package engram-bus-client \
		--output-file requirements/runtime.lock
	$(COMPILE) --group fuzz --output-file requirements/fuzz.lock

.PHONY: clean
clean: ## remove what make made; the log in DATA stays
	rm -rf .venv dist build .coverage htmlcov .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis \
		.benchmarks $(FOREIGN)/node_modules
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
