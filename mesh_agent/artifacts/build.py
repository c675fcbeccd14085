"""`mesh artifacts build`: programs from source, each in a directory that appears at once and complete."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mesh_agent.artifacts import layout
from mesh_agent.artifacts.golang import Go
from mesh_agent.artifacts.recipes import RECIPES, Recipe
from mesh_agent.artifacts.runner import Progress, lock, scratch


@dataclass(frozen=True)
class Wanted:
    """One artifact to have."""

    recipe: Recipe
    version: str

    @property
    def name(self) -> str:
        """The name of its directory."""
        return f"{self.recipe.name}-{self.version}"


def wanted(names: Sequence[str], versions: dict[str, str]) -> list[Wanted]:
    """The artifacts of these names (none: all), each in the wanted version or the newest pinned one."""
    return [
        Wanted(recipe, recipe.choose(versions.get(recipe.name, "")))
        for recipe in RECIPES.values()
        if not names or recipe.name in names
    ]


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
