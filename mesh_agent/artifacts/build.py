"""`mesh artifacts build`: programs from source, each in a directory that appears at once and complete."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mesh_agent.artifacts import layout
from mesh_agent.artifacts.golang import Go
from mesh_agent.artifacts.recipes import RECIPES, Recipe
from mesh_agent.artifacts.runner import Progress, lock, scratch
from mesh_agent.errors import InvalidRequest


@dataclass(frozen=True)
class Wanted:
    """One artifact to have."""

    recipe: Recipe
    version: str

    @property
    def name(self) -> str:
        """The name of its directory."""
        return f"{self.recipe.name}-{self.version}"


def wanted(names: Sequence[str], kubernetes: str = "", *, pinned: bool = True) -> list[Wanted]:
    """The artifacts of these names (none: all) in their newest pinned version, Kubernetes in the version that is given; `pinned`: or not at all."""
    unknown = sorted(set(names) - set(RECIPES))
    if unknown:
        raise InvalidRequest(f"{', '.join(unknown)}: no such artifact; there are {', '.join(RECIPES)}")
    versions = {"kubernetes": layout.version(kubernetes)} if kubernetes else {}
    chosen = [recipe for recipe in RECIPES.values() if not names or recipe.name in names]
    return [Wanted(recipe, _version(recipe, versions.get(recipe.name, ""), pinned)) for recipe in chosen]


def _version(recipe: Recipe, version: str, pinned: bool) -> str:
    return recipe.choose(version) if pinned or not version else version


def ready(root: Path, each: Wanted, arch: str) -> bool:
    """Whether an artifact is there: fetched, or built from what a build would use now."""
    origin = layout.origin(root / each.name)
    return origin.startswith("fetched ") or origin == f"built {each.recipe.fingerprint(each.version, arch)}"


def build(root: Path, each: Wanted, arch: str, go: Go, progress: Progress) -> bool:
    """Build one artifact unless it is there; says whether it had to be built."""
    with lock(root, each.name, lambda: progress.line(f"{each.name}: another process makes it; waiting")):
        if ready(root, each, arch):
            progress.line(f"{each.name}: there already")
            return False
        with (
            progress.step(f"{each.name}: building for {arch} ({each.recipe.minutes} the first time)"),
            scratch(root, each.name) as work,
        ):
            module, result = work / "module", work / "result"
            module.mkdir()
            result.mkdir()
            go.build(each.recipe, each.version, arch, result / each.recipe.name, module)
            for link in each.recipe.programs:
                (result / link).symlink_to(each.recipe.name)
            put(root, each.name, result, f"built {each.recipe.fingerprint(each.version, arch)}")
    return True


def put(root: Path, name: str, result: Path, origin: str) -> None:
    """Seal a finished directory and put it in the place of an older one; hold the artifact's lock."""
    layout.write_text(result / layout.ORIGIN, origin + "\n")
    layout.seal(result)
    target = root / name
    if target.exists():
        old = result.parent / f"old-{os.getpid()}"
        target.rename(old)
    result.rename(target)
