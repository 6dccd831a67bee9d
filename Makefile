# Every target first makes .venv/.ready, so one command is enough on a fresh machine with Python 3.11 and pip.
PY ?= python3.11
BIN := .venv/bin
DISTS := pyproject.toml $(wildcard plugins/*/pyproject.toml entrypoints/*/pyproject.toml)
CODE := src plugins entrypoints tests benchmarks demo docs lab
.DEFAULT_GOAL := help
.PHONY: help demo demo-check lab lab-check test lint types unit core-only test-cluster conformance fuzz bench bench-quick bench-cluster bench-compare promtool soak soak-short docs schema clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

.venv/.ready: requirements-dev.txt constraints.txt $(DISTS)
	test -x $(BIN)/python || $(PY) -m venv .venv
	$(BIN)/python -m pip install -q uv && \
	  $(BIN)/uv pip install -q --compile-bytecode --python $(BIN)/python -c constraints.txt -r requirements-dev.txt || \
	  $(BIN)/python -m pip install -q -c constraints.txt -r requirements-dev.txt
	touch $@

test: lint types unit core-only ## Everything: ruff, mypy --strict, all tests, and the core alone with only msgspec and pluggy
	@echo "left out: tests/cluster (make test-cluster$(if $(shell command -v go),, needs Go, which is not here)) and tests marked external (make conformance)"

lint: .venv/.ready ## ruff check and format check
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check -q $(CODE)

types: .venv/.ready ## mypy --strict on core, plugins, entrypoints, benchmarks and the typing snippets
	$(BIN)/mypy --strict src $(wildcard plugins/*/src entrypoints/*/src) tests/typing
	MYPYPATH=benchmarks $(BIN)/mypy --strict benchmarks/gatebench $(wildcard benchmarks/*.py)
	MYPYPATH=tests/soak $(BIN)/mypy --strict tests/soak/datum_soak
	$(BIN)/mypy --strict lab

# Tests with real processes can lose a race against the other half of the suite on two cores. What fails there is named,
# and run once more alone, where it has to pass; it is to be mended all the same.
UNIT := -q -m "not external and not cluster" tests plugins entrypoints
unit: .venv/.ready ## All tests, on both cores, but those of `make conformance` that need programs from outside PyPI
	$(BIN)/pytest -n 2 --dist loadfile $(UNIT) || { \
	  echo "unit: the tests named above have failed beside others; once more, alone:"; \
	  $(BIN)/pytest --last-failed --last-failed-no-failures none $(UNIT); }

CORE_TESTS := tests/unit tests/property
.venv-core/.ready: pyproject.toml constraints.txt .venv/.ready
	test -x .venv-core/bin/python || $(PY) -m venv .venv-core
	$(BIN)/uv pip install -q --python .venv-core/bin/python -c constraints.txt . pytest hypothesis || \
	  .venv-core/bin/python -m pip install -q -c constraints.txt . pytest hypothesis
	touch $@

core-only: .venv-core/.ready ## Unit and property tests of the core in an environment that has nothing else
	.venv-core/bin/python -c "import importlib.metadata as m; print('core environment:', *sorted(d.name for d in m.distributions()))"
	$(BIN)/uv pip install -q --python .venv-core/bin/python --no-deps --reinstall-package datum-router . || \
	  .venv-core/bin/python -m pip install -q --no-deps --force-reinstall .
	.venv-core/bin/python -m pytest -q -p no:cacheprovider $(CORE_TESTS)

.run/tools/promtool:
	mkdir -p .run/tools
	cd .run/tools && { apt-get -qq download prometheus || { apt-get -qq update && apt-get -qq download prometheus; }; }
	cd .run/tools && dpkg-deb --fsys-tarfile prometheus_*.deb | tar -xO ./usr/bin/promtool > promtool.new
	cd .run/tools && chmod +x promtool.new && mv promtool.new promtool && rm prometheus_*.deb

promtool: .run/tools/promtool ## promtool out of Debian's package prometheus, unpacked: the test of /metrics uses it

# Go's tools are built from tests/tools/go.mod with what its go.sum pins.
.run/tools/.ready: tests/tools/go.mod tests/tools/go.sum
	mkdir -p .run/tools
	cd tests/tools && go build -o ../../.run/tools/ tool
	touch $@

# etcd, kube-apiserver and kubectl, of the versions that tests/tools/cluster/go.mod pins: up to 5 minutes on 2 cores, once
# for all clones, since the programs are kept in CLUSTER_CACHE. Go 1.26: built by 1.27, /openapi/v2 is broken.
CLUSTER_CACHE ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/datum-router/cluster-$(firstword $(shell cat tests/tools/cluster/go.* | cksum))
KUBERNETES = $(shell cd tests/tools/cluster && go list -m -f '{{.Version}}' k8s.io/kubernetes)
$(CLUSTER_CACHE)/.ready:
	mkdir -p $(@D)
	@echo "building etcd, kube-apiserver and kubectl $(KUBERNETES) into $(@D): up to 5 minutes on 2 cores, once"
	cd tests/tools/cluster && GOTOOLCHAIN=go1.26.8+auto go build -trimpath -o $(@D)/ \
	  -ldflags "-s -w -X k8s.io/component-base/version.gitVersion=$(KUBERNETES)" tool
	mv $(@D)/server $(@D)/etcd
	touch $@

.run/cluster: $(CLUSTER_CACHE)/.ready
	mkdir -p .run && ln -sfn $(CLUSTER_CACHE) .run/cluster

test-cluster: .venv/.ready .run/cluster ## All that needs a Kubernetes API: a real etcd and kube-apiserver, or DATUM_ROUTER_TEST_KUBECONFIG
	$(BIN)/pytest -q tests/cluster || { \
	  echo "test-cluster: the tests named above have failed; once more, alone:"; \
	  $(BIN)/pytest -q --last-failed --last-failed-no-failures none tests/cluster; }

# nghttp2's and curl's programs; without apt-get or the right to use it their tests say what is missing.
.run/tools/.peers:
	mkdir -p .run/tools
	command -v nghttp && command -v curl && test -x /usr/sbin/nghttpd || \
	  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
	    nghttp2-client nghttp2-server curl; } && touch $@ || echo "conformance: nghttp2 and curl could not be installed"

# Autobahn's suite runs on Python 2.7 only, which not every machine has.
.run/autobahn/.ready:
	mkdir -p .run/autobahn
	for python in python2.7 $$HOME/.pyenv/versions/2.7.*/bin/python; do \
	  if $$python -c pass 2>/dev/null; then \
	    PYTHONUSERBASE=$(CURDIR)/.run/autobahn $$python -W ignore -m pip install -q --user --no-warn-script-location \
	      --disable-pip-version-check autobahntestsuite==25.10.1 && break; fi; done; \
	test -x .run/autobahn/bin/wstest || echo "conformance: no Python 2.7 with pip, so Autobahn's suite is not run"
	touch $@

CORPORA := plugins/datum-router-proxy/tests/test_http1_corpus.py plugins/datum-router-proxy/tests/test_hpack_codec.py
conformance: .venv/.ready .run/tools/.ready .run/tools/.peers .run/autobahn/.ready ## h2spec, gRPC interop, WebSocket, nghttp2, curl and the public corpora against a running gateway
	$(BIN)/pytest -n 2 --dist loadfile -q tests/conformance $(CORPORA)

FUZZ_SECONDS ?= 120
fuzz: .venv/.ready ## Fuzz both wire engines, header codecs and manifest decoders for FUZZ_SECONDS (120) in all
	$(BIN)/python tests/fuzz/run.py --seconds $(FUZZ_SECONDS) $(FUZZ_TARGETS)

demo: .venv/.ready ## Three backends and a gateway on port 8080, with curl lines to try
	$(BIN)/python demo/demo.py

demo-check: .venv/.ready ## The demo unattended on free ports: every example request, failover, a live route edit
	$(BIN)/python demo/demo.py --check

# iproute2; without apt-get or the right to use it the lab says what is missing.
.run/tools/.ip:
	mkdir -p .run/tools
	command -v ip || { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
	  iproute2; } && touch $@ || echo "lab: iproute2 could not be installed"

# The same programs as for test-cluster; where they cannot be built the lab says what is missing.
.PHONY: lab-programs
lab-programs:
	@if command -v go >/dev/null; then $(MAKE) -s --no-print-directory .run/cluster; else test -x .run/cluster/kubectl; fi || \
	  echo "lab: etcd, kube-apiserver and kubectl could not be built: that needs Go, and the first time a network"

lab: .venv/.ready .run/tools/.ip lab-programs ## Three clouds, each a cluster, and two tenants with equal addresses over real SRv6, in network namespaces: needs root (LAB=--keep leaves it there)
	$(BIN)/python -m lab $(LAB)

lab-check: .venv/.ready .run/tools/.ip lab-programs ## The same, exit 0 only if all of it held; without root, SRv6 or Go it says what it needs (outside CI: exit 0)
	$(BIN)/python -m lab --check

.venv-bench/.ready: benchmarks/requirements.txt benchmarks/gatebench/install.py .venv/.ready
	test -x .venv-bench/bin/python || $(PY) -m venv .venv-bench
	$(BIN)/uv pip install -q --python .venv-bench/bin/python -r benchmarks/requirements.txt || \
	  .venv-bench/bin/python -m pip install -q -r benchmarks/requirements.txt
	.venv-bench/bin/python benchmarks/run.py install
	touch $@

# The gateway under test runs on the distribution's Python if there is one, as the peers are the distribution's, and as
# images are based on: both are compiled with profiles (PGO, LTO), where one built by hand mostly is not.
BENCH_PY ?= $(firstword $(wildcard /usr/bin/python3.11) $(PY))
.venv-gateway/.ready: requirements-dev.txt constraints.txt $(DISTS) .venv/.ready
	test -x .venv-gateway/bin/python || $(BIN)/uv venv -q --python $(BENCH_PY) .venv-gateway
	$(BIN)/uv pip install -q --compile-bytecode --python .venv-gateway/bin/python -c constraints.txt -r requirements-dev.txt
	touch $@

bench: .venv-bench/.ready .venv-gateway/.ready ## Speed and size beside nginx, HAProxy, Envoy and Python proxies; writes docs/benchmarks (30 min, BENCH=options)
	.venv-bench/bin/python benchmarks/run.py --datum .venv-gateway/bin/datum-router --out docs/benchmarks $(BENCH)

bench-quick: .venv-bench/.ready .venv-gateway/.ready ## One short round of every measure, to see that all of it works; writes nothing
	.venv-bench/bin/python benchmarks/run.py --datum .venv-gateway/bin/datum-router --rounds 1 --seconds 1 $(BENCH)

bench-cluster: .venv/.ready .run/cluster ## Gateway and controller at scale against a real API server; writes docs/benchmarks/cluster.md (8 min, BENCH=options)
	$(BIN)/python benchmarks/bench_cluster.py --out docs/benchmarks $(BENCH)

bench-compare: .venv-bench/.ready ## Compare docs/benchmarks/results.json with BASE=results.json; writes .run/bench-compare
	.venv-bench/bin/python benchmarks/run.py compare $(BASE) docs/benchmarks/results.json --out .run/bench-compare

SOAK_SECONDS ?= 600
soak: .venv/.ready ## Mixed load with faults for 10 minutes (SOAK_SECONDS=), verdict on every request in build/soak
	PYTHONPATH=tests/soak $(BIN)/python -m datum_soak --seconds $(SOAK_SECONDS) --out build/soak

soak-short: .venv/.ready ## The same in 75 seconds, with fewer slow clients
	PYTHONPATH=tests/soak $(BIN)/python -m datum_soak --seconds 75 --rate 150 --slow-clients 2000 --out build/soak-short

docs: .venv/.ready ## Regenerate CRDs and reference pages from the typed definitions
	$(BIN)/python docs/generate.py

clean: ## Remove environments and caches
	rm -rf .venv .venv-core .venv-bench .venv-gateway .mypy_cache .ruff_cache .pytest_cache .hypothesis dist build .run
