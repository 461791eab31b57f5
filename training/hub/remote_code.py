"""The part of `pipeline_aud2studio` that travels with a Hub repository: `pipeline.py` and what it imports."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable
from pathlib import Path

import pipeline_aud2studio

PACKAGE = Path(pipeline_aud2studio.__file__).parent
ENTRY = "pipeline"


def remote_code_files(package: Path = PACKAGE) -> list[Path]:
    """`pipeline.py` and its siblings that it needs, directly or not.

    Raises:
        ValueError: If a sibling is needed that `pipeline.py` does not import itself: diffusers would not fetch it.
    """
    direct = _relative_imports(package / f"{ENTRY}.py")
    needed = set(direct)
    waiting = list(direct)
    while waiting:
        name = waiting.pop()
        for found in _relative_imports(package / f"{name}.py") - needed:
            needed.add(found)
            waiting.append(found)
    if hidden := sorted(needed - direct - {ENTRY}):
        raise ValueError(
            f"{ENTRY}.py has to import {', '.join(hidden)} itself: as remote code, what only a sibling imports is not"
            " fetched"
        )
    return [package / f"{name}.py" for name in sorted(needed | {ENTRY})]


def required_modules(files: Iterable[Path]) -> set[str]:
    """Top-level modules beside the standard library's that the files import wherever they do."""
    found = set()
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                found.add(node.module.split(".")[0])
    return found - set(sys.stdlib_module_names)


def _relative_imports(file: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            found |= {node.module.split(".")[0]} if node.module else {alias.name for alias in node.names}
    return found
