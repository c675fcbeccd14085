"""Kubernetes' programs and images, and the mesh's own image: fetched or built into one directory (docs/artifacts.md)."""
