"""Writes the folder of a Space: the app, the package and its weights, all that a push to the Hub needs.

python -m spaces_app.export_space --out build/space
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline_aud2studio.files import atomic_folder

HERE = Path(__file__).parent
PACKAGES = ("pipeline_aud2studio", "spaces_app")
# The listening test, the demo and the export are for the repository.
LEFT_OUT = (
    "analysis.py",
    "demo.py",
    "export_space.py",
    "listening_test.*",
    "requirements.txt",
    "study.py",
)
APP = """import sys

from spaces_app.app import main

sys.exit(main())
"""


def write_space(out: Path) -> None:
    """Writes the folder, all or nothing; an earlier export is replaced.

    Raises:
        ValueError: If `out` holds something else.
    """
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / "spaces_app").is_dir())):
        raise ValueError(f"{out} is not empty and not an earlier export: choose another folder")
    with atomic_folder(out) as folder:
        for package in PACKAGES:
            left_out = shutil.ignore_patterns("__pycache__", *(LEFT_OUT if package == HERE.name else ()))
            shutil.copytree(HERE.parent / package, folder / package, ignore=left_out)
        card = (HERE / "README.md").read_text(encoding="utf-8")
        (folder / "README.md").write_text(card.replace("app_file: spaces_app/app.py", "app_file: app.py"), "utf-8")
        shutil.copyfile(HERE / "requirements.txt", folder / "requirements.txt")
        shutil.copyfile(HERE.parent / "LICENSE", folder / "LICENSE")
        (folder / "app.py").write_text(APP, encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    description = (__doc__ or "").split("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m spaces_app.export_space", description=description)
    parser.add_argument("--out", type=Path, required=True, help="the folder; an earlier export is replaced")
    options = parser.parse_args(argv)
    try:
        write_space(options.out)
    except (ValueError, OSError) as error:
        print(f"export_space: {error}", file=sys.stderr)
        return 1
    print(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
