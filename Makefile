.DEFAULT_GOAL := help
.PHONY: help setup check unit test
help: ## this text
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST)
setup: ## a virtual environment in .venv
	@command -v uv >/dev/null || python3 -m pip install -q uv
	@python3 -m uv sync -q --locked --all-groups || uv sync -q --locked --all-groups
check: setup ## linters and types
	.venv/bin/ruff format --check . && .venv/bin/ruff check .
unit: setup ## tests without the lab
	.venv/bin/pytest -q
test: check unit ## everything
