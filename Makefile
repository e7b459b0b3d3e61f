# `make help` lists what there is to do. VENV=DIRECTORY uses another environment than .venv.
SHELL := /bin/bash
.DEFAULT_GOAL := help
VENV ?= .venv
SUPPLY := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/finetune-operator/supply
PYTHON := $(abspath $(VENV))/bin/python
export PYTHONPATH := operator:trainer_image:.

help: ## This list
	@grep -hE '^[a-z][a-z0-9-]*:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## /\1\t/' | expand -t 20

setup: ## The Python environment in .venv; installs what the machine lacks (root)
	@$(if $(filter .venv,$(VENV)),sh requirements/venv.sh,true)

demo: ## The whole path on this machine: cluster, training, served model (CLUSTER=current: your kubeconfig's cluster)
	@python3 -m demo

test: setup ## All that CI runs: lint, unit, house, integration, 24 faults, the fast trainer tests, core e2e scenarios
	@$(PYTHON) -m tests.layers

test-all: setup ## The same with every trainer test and every e2e scenario
	@$(PYTHON) -m tests.layers --all

lint: setup ## ruff, mypy --strict, import contracts
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
	$(dir $(PYTHON))lint-imports --no-cache

lint-types: setup ## mypy --strict alone
	$(PYTHON) -m mypy

unit: setup ## Tests of pure modules: seconds, no network, no torch
	$(PYTHON) -m pytest tests/unit

house: setup ## Rules of the house: generated files fresh, examples valid, sizes, names
	$(PYTHON) -m pytest tests/house

coverage: setup ## Lines and branches of each package that the unit tests run
	$(PYTHON) -m tests.coverage_table

mutants: setup ## Small faults put into the pure modules: which does no test notice? SAMPLE=300 tries some, MINUTES=10 goes on later
	$(PYTHON) -m tests.mutants $(if $(SAMPLE),--sample $(SAMPLE)) $(if $(SEED),--seed $(SEED)) $(if $(MINUTES),--minutes $(MINUTES))

test-trainer: setup ## Tests of the programs in the pods, on tiny models, the slow ones too
	$(PYTHON) -m pytest tests/trainer -n 2

integration: setup ## Tests against a real API server; needs no root
	$(PYTHON) -m pytest tests/integration -n 2 --dist loadfile

observability-test: setup ## A real Prometheus over our programs' metrics: rules, alerts and the query of each panel
	$(PYTHON) -m pytest tests/observability

chart-test: setup ## The chart: six sets of values, what they make, kube-score, and a real API server that takes each to the last field
	$(PYTHON) -m pytest tests/house/test_chart.py tests/integration/test_chart.py

gitops-test: setup ## Argo CD's scripts, kstatus, kubectl wait and diff, applied a hundred times: at a real API server
	$(PYTHON) -m pytest tests/unit/test_gitops.py tests/integration/test_gitops.py

faults: setup ## Faults at every kind of write, read and pod, on a real API server: about 20 minutes; SEED=1 draws the same cases again
	$(PYTHON) -m tests.faults $(if $(SEED),--seed $(SEED)) $(if $(CASES),--cases $(CASES)) $(if $(ONLY),--only '$(ONLY)')

e2e: setup ## Scenarios on a whole cluster (root): make e2e K=quickstart
	$(PYTHON) -m pytest tests/e2e -s $(if $(K),-k '$(K)')

crds: setup ## Generate crds/, the copy of their chart, the images in the chart's schema, and install.yaml
	$(PYTHON) -m finetune_operator.api.crdgen crds charts/finetune-operator-crds/files
	$(PYTHON) -m finetune_operator.api.valuesgen charts/finetune-operator
	$(PYTHON) -m localcluster.chart

docs: setup ## Generate the pages of docs/ that are made from the code
	$(PYTHON) -m finetune_operator.api.docgen docs
	$(PYTHON) -m finetune_operator.cli.reference docs

site: setup ## The documentation as a site in build/site
	$(PYTHON) -m website

dashboards: setup ## Generate Grafana's dashboards into the chart
	$(PYTHON) -m dashboards charts/finetune-operator/files/dashboards

install-yaml: setup ## Generate install/install.yaml and docs/values.md from the chart
	$(PYTHON) -m localcluster.chart

format: setup ## Format the code
	$(PYTHON) -m ruff check --fix . && $(PYTHON) -m ruff format .

licences: setup ## The licence of every locked package into docs/licences.md; fails where one may not be passed on
	sh requirements/image-venv.sh $(SUPPLY) supply && $(SUPPLY)/bin/python -m supply licences

audit: ## Known holes in what we lock, by pip-audit; each is mended or answered in supply/audit.toml
	sh requirements/image-venv.sh $(SUPPLY) supply && $(SUPPLY)/bin/python -m supply audit

sbom: ## Bills of materials of the local cluster's images in dist/, as CycloneDX (IMAGE=operator: of one)
	sh requirements/image-venv.sh $(SUPPLY) supply && $(SUPPLY)/bin/python -m supply sbom $(IMAGE)

reproducible: ## Build an image twice from nothing: the same digest? (root; IMAGE="base operator": of several)
	@python3 -m localcluster up && python3 -m localcluster.reproducible $(IMAGE)

release-check: ## Is TAG=v1.2.3 the version that pyproject.toml, charts and changelog have?
	@python3 -m supply check $(or $(TAG),$(error TAG is missing))

release-image: ## Build an image of this version, push it, and write its bill: IMAGE=operator REGISTRY=ghcr.io/somebody
	sh requirements/image-venv.sh $(SUPPLY) supply && $(SUPPLY)/bin/python -m supply image $(or $(IMAGE),$(error IMAGE is missing)) \
	    --registry $(or $(REGISTRY),$(error REGISTRY is missing)) $(if $(BASE),--base $(BASE)) $(if $(OUTPUTS),--outputs $(OUTPUTS))

release-chart: ## Package a chart of this version and push it: CHART=finetune-operator REGISTRY=ghcr.io/somebody
	@python3 -m supply chart $(or $(CHART),$(error CHART is missing)) --registry $(or $(REGISTRY),$(error REGISTRY is missing)) \
	    $(if $(OUTPUTS),--outputs $(OUTPUTS))

requirements: ## Lock the dependencies anew (UPGRADE=1: newest versions that fit)
	sh requirements/compile.sh

krew: ## The krew plugin of this version in dist/: archive and manifest. URL=https://… is where the archive will lie
	sh krew/archive.sh dist $(or $(URL),$(error URL is missing: where the archive will lie))

images: ## Build the container images that changed into the local cluster's registry
	@python3 -m localcluster up && python3 -m localcluster images

clean-cluster: ## Take the local cluster away; the cache of programs and images stays
	@python3 -m localcluster down

.PHONY: help setup demo test test-all lint lint-types unit house coverage mutants test-trainer integration observability-test chart-test gitops-test faults e2e crds docs site dashboards install-yaml format licences audit sbom reproducible release-check release-image release-chart requirements krew images clean-cluster
