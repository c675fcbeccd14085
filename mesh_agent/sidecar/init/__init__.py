"""A pod's init container: `mesh sidecar init`."""
