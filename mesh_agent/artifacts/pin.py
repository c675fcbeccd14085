"""`mesh artifacts pin`: the go.mod and go.sum of another version of Kubernetes, for whoever maintains the recipes."""

import json
from pathlib import Path

from mesh_agent.artifacts.golang import Go
from mesh_agent.artifacts.recipes import RECIPES, module_file
from mesh_agent.artifacts.runner import Progress, scratch


def pin(root: Path, version: str, go: Go, progress: Progress) -> Path:
    """Write the pins of a version beside the others and return their folder; an older folder of it is replaced."""
    recipe = RECIPES["kubernetes"]
    target = recipe.sources / version
    with progress.step(f"kubernetes {version}: pins"), scratch(root, "pin") as work:
        published = json.loads(go.published_module(f"k8s.io/kubernetes@v{version}"))["GoMod"]
        for path in recipe.sources.glob("*.go"):
            (work / path.name).write_bytes(path.read_bytes())
        (work / "go.mod").write_text(
            module_file(version, Path(published).read_text(encoding="utf-8")), encoding="utf-8"
        )
        go.tidy(work)
        target.mkdir(exist_ok=True)
        for name in ("go.mod", "go.sum"):
            (target / name).write_bytes((work / name).read_bytes())
    return target
