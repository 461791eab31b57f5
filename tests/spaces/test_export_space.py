"""The folder of a Space: what it asks for, and that it holds all that the app imports."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from spaces_app import export_space
from spaces_app.export_space import main

ROOT = Path(export_space.__file__).parents[1]


def test_requirements_are_those_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["space"]
    assert (ROOT / "spaces_app" / "requirements.txt").read_text().split() == wanted


def test_the_folder_runs_without_the_repository(tmp_path: Path) -> None:
    pytest.importorskip("gradio", reason="needs Gradio: pip install .[space]")
    out = tmp_path / "space"
    assert main(["--out", str(out)]) == 0
    header = yaml.safe_load((out / "README.md").read_text().split("---")[1])
    assert (out / header["app_file"]).is_file() and header["sdk"] == "gradio"
    code = "import spaces_app.app as app, pipeline_aud2studio; print(app.__file__, pipeline_aud2studio.__file__);"
    code += "app.pipeline(); print(app.EXAMPLE.is_file())"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=out, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"}
    )
    assert done.returncode == 0, done.stderr
    first, second, example = done.stdout.split()[-3:]
    assert Path(first).is_relative_to(out) and Path(second).is_relative_to(out) and example == "True"
    assert main(["--out", str(out)]) == 0  # again, over the earlier one


def test_a_folder_with_something_else_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    assert main(["--out", str(tmp_path)]) == 1
    assert "choose another folder" in capsys.readouterr().err
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
