"""The folder of a Space: what it asks for, and that it holds all that the app imports."""

import importlib.metadata
import io
import re
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
import urllib.request
import venv
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml
from packaging.requirements import Requirement

from spaces_app import export_space
from spaces_app.export_space import main

ROOT = Path(export_space.__file__).parents[1]


def test_requirements_are_those_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    gradio = [line for line in project["optional-dependencies"]["space"] if line.startswith("gradio")]
    assert (ROOT / "spaces_app" / "requirements.txt").read_text().split() == project["dependencies"] + gradio


def borrow(package: str, folder: Path) -> None:
    """Links a package of this environment, and those that it needs, into a folder."""
    folder.mkdir()
    wanted, seen = [Requirement(package)], set()
    while wanted:
        requirement = wanted.pop()
        if str(requirement) in seen:
            continue
        seen.add(str(requirement))
        try:
            found = importlib.metadata.distribution(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            continue  # wanted on other systems
        for part in {file.parts[0] for file in found.files or []} - {"..", "__pycache__"}:
            if not (folder / part).exists():
                (folder / part).symlink_to(str(found.locate_file(part)))
        for needed in map(Requirement, found.requires or []):
            extras = {"", *requirement.extras}
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras):
                wanted.append(needed)


@pytest.mark.slow
def test_an_empty_environment_with_its_requirements_opens_and_restores(tmp_path: Path) -> None:
    pytest.importorskip("gradio", reason="needs Gradio: pip install .[space]")
    from gradio_client import Client, handle_file

    out = tmp_path / "space"
    assert main(["--out", str(out)]) == 0
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder, (tmp_path / "log").open("w+") as log:
        environment, borrowed = Path(folder) / "environment", Path(folder) / "borrowed"
        venv.create(environment)
        borrow("torch", borrowed)  # of 5 GB; all else is installed
        python = environment / "bin" / "python"
        (next(environment.glob("lib/python*/site-packages")) / "torch.pth").write_text(str(borrowed))
        pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-compile"]
        subprocess.run([*pip, "-r", str(out / "requirements.txt")], check=True)
        variables = {"PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1", "TMPDIR": folder}
        command = [str(python), "app.py", "--port", str(port)]
        server = subprocess.Popen(command, cwd=out, env=variables, stdout=log, stderr=log)
        try:
            for _ in range(300):
                with socket.socket() as probe:
                    if server.poll() is not None or not probe.connect_ex(("127.0.0.1", port)):
                        break
                time.sleep(1)
            log.seek(0)
            assert server.poll() is None, log.read()
            client = Client(f"http://127.0.0.1:{port}", verbose=False)
            example = out / "spaces_app" / "examples" / "degraded.flac"
            kind = "faithful: filters what was recorded"
            arguments = [handle_file(str(example))], None, kind, 0, 0, 1, 0, False, "FLAC"
            pages = client.submit(*arguments, api_name="/restore")
            pages.result(timeout=300)
            shown = pages.outputs()
            assert any("of 12 s of audio" in page for page in shown)
            address = re.search(r'class="download" href="([^"]+)"', shown[-1])
            assert address is not None, shown[-1]
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/{address[1]}") as answer:
                result, rate = soundfile.read(io.BytesIO(answer.read()))
            recording, recorded_rate = soundfile.read(example)
            assert rate == recorded_rate and result.shape == recording.shape
            assert 0.02 < np.std(result - recording) / np.std(recording) < 2
        finally:
            server.terminate()
            server.wait(timeout=30)


@pytest.mark.slow
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
