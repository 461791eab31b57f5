"""Writes docs/broken-files.md from the names of the tests: `python tests/support/broken_files.py`."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = ("test_decode.py", "test_reported_kinds.py", "test_command.py", "test_against_ffmpeg.py")
HEAD = """# What it does with broken files

Each line is the name of a test that shows it. Made by `python tests/support/broken_files.py`.

| what happens | tried with | test |
|---|---|---|
"""


def table() -> str:
    """Return the page."""
    rows = []
    for source in SOURCES:
        for node in ast.parse((ROOT / "tests" / "pipeline" / source).read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                words = node.name.removeprefix("test_").replace("_", " ")
                rows.append(f"| {words} | {_tried(node)} | `{source}` |")
    return HEAD + "\n".join(rows) + "\n"


def _tried(node: ast.FunctionDef) -> str:
    """The values that a test is parametrised with, where they are plain words or numbers."""
    found = []
    for decorator in node.decorator_list:
        if isinstance(decorator, ast.Call) and len(decorator.args) == 2 and isinstance(decorator.args[1], ast.List):
            items = decorator.args[1].elts
            found += [str(item.value) for item in items if isinstance(item, ast.Constant)]
    return ", ".join(found)


if __name__ == "__main__":
    (ROOT / "docs" / "broken-files.md").write_text(table(), encoding="utf-8")
