"""More than 200 files that nobody would choose: each is restored, or refused in a sentence, and never touched."""

import contextlib
import hashlib
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hostile import Case, cases, encoded, music

from pipeline_aud2studio import infer

SECONDS = 30  # far more than any of them needs; the point is that none hangs
GROWTH_MB = 500  # of the peak memory, over all cases: a header that promises gigabytes gets none
ALL = tuple(cases())


@pytest.fixture(autouse=True)
def deadline() -> Iterator[None]:
    def late(number: int, frame: object) -> None:
        raise TimeoutError(f"it took more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(autouse=True, scope="module")
def memory() -> Iterator[None]:
    peak_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    growth_mb = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak_kb) / 1024
    assert growth_mb < GROWTH_MB


@pytest.fixture
def cli(
    toy_model: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str]]:
    """Runs the command: exit status and errors. The model is loaded once for all cases."""
    monkeypatch.setattr(infer, "load_pipeline", _loaded)

    def run(*arguments: object) -> tuple[int, str]:
        capfd.readouterr()
        words = [*map(str, arguments), "--model", str(toy_model)]
        return infer.main(words), capfd.readouterr().err

    return run


_load = infer.load_pipeline


@cache
def _loaded(model: str, device: str, dtype: str, scheduler: str | None) -> object:
    return _load(model, device, dtype, scheduler)


def check(case: Case, status: int, errors: str, output: Path) -> None:
    complaints = [line for line in errors.splitlines() if line.startswith("aud2studio: error: ")]  # not libmpg123's
    assert "Traceback" not in errors
    assert status == (2 if complaints else 0), errors
    assert output.exists() == (status == 0)
    assert len(complaints) <= 1
    if case.outcome != "either":
        assert status == {"restored": 0, "refused": 2}[case.outcome], errors
    assert case.words in errors
    if status == 0:
        restored, rate = soundfile.read(output, always_2d=True)
        assert np.isfinite(restored).all() and restored.shape[1] in (1, 2)
        if case.outcome == "restored":
            assert rate == case.rate
        if case.shape is not None:
            assert restored.T.shape == case.shape


def test_there_are_enough_of_them() -> None:
    assert len({case.name for case in ALL}) == len(ALL) >= 200


@pytest.mark.parametrize("case", ALL, ids=lambda case: case.name)
def test_hostile_file(case: Case, cli: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    source, output = tmp_path / case.name, tmp_path / "restored.wav"
    source.write_bytes(case.content)
    before = source.stat().st_mtime_ns
    status, errors = cli("--inputs", source, "--save", output, "--bit-depth", "float")
    check(case, status, errors, output)
    assert hashlib.sha256(source.read_bytes()).digest() == hashlib.sha256(case.content).digest()
    assert source.stat().st_mtime_ns == before
    assert {path.name for path in tmp_path.iterdir()} <= {case.name, "restored.wav"}, "nothing may be left behind"


NAMES = (
    "with space.wav",
    "Übergröße – 東京 🎸.wav",
    "-dash.wav",
    "new\nline.wav",
    "quote'\".wav",
    "$(date);.wav",
    "%s%n.wav",
    "a" * 200 + ".wav",
    "NO EXTENSION",
    "東京" * 41 + ".wav",  # 250 bytes: no room for what temporary names add
    "wrong.mp3",
)


@pytest.mark.parametrize("name", NAMES)
def test_names_of_files(name: str, cli: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(encoded(music()))
    (tmp_path / "out").mkdir()
    output = tmp_path / "out" / f"{name.removesuffix('.mp3').removesuffix('.wav')}.wav"
    assert cli("--inputs", tmp_path / name, "--save", output)[0] == 0
    assert soundfile.info(output).frames == music().shape[1]


@pytest.mark.parametrize("kind", ["symlink", "broken symlink", "loop", "directory", "pipe", "device", "no permission"])
def test_what_is_no_plain_file(kind: str, cli: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    path, target = tmp_path / "in.wav", tmp_path / "target.wav"
    target.write_bytes(encoded(music()))
    words = {
        "broken symlink": "does not exist",
        "loop": "in.wav",
        "directory": "no audio files",
        "pipe": "is not a file",
        "device": "is not a file",
        "no permission": "Permission denied",
    }.get(kind, "")
    if kind == "symlink":
        path.symlink_to(target)
    elif kind == "broken symlink":
        path.symlink_to(tmp_path / "nowhere.wav")
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "directory":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path = Path("/dev/zero")
    else:
        path.write_bytes(encoded(music()))
        path.chmod(0)
        with contextlib.suppress(OSError):
            path.read_bytes()
            pytest.skip("this user may read everything")
    started = time.monotonic()
    status, errors = cli("--inputs", path, "--save", tmp_path / "out.wav")
    assert time.monotonic() - started < 20
    assert status == (0 if kind == "symlink" else 2), errors
    assert words in errors and errors.count("error:") == (kind != "symlink")
    assert (tmp_path / "out.wav").exists() == (kind == "symlink")


def test_an_output_through_a_symlink_replaces_the_link_and_not_its_target(
    cli: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    (tmp_path / "in.wav").write_bytes(encoded(music()))
    (tmp_path / "master.wav").write_bytes(b"years of work")
    (tmp_path / "out.wav").symlink_to(tmp_path / "master.wav")
    assert cli("--inputs", tmp_path / "in.wav", "--save", tmp_path / "out.wav")[0] == 2
    assert cli("--inputs", tmp_path / "in.wav", "--save", tmp_path / "out.wav", "--overwrite")[0] == 0
    assert (tmp_path / "master.wav").read_bytes() == b"years of work"
    assert soundfile.info(tmp_path / "out.wav").frames == music().shape[1]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="Linux's /proc is where not even root may write")
def test_an_output_where_nobody_may_write(cli: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    (tmp_path / "in.wav").write_bytes(encoded(music()))
    status, errors = cli("--inputs", tmp_path / "in.wav", "--save", "/proc/out.wav")
    assert status == 2 and errors.count("\n") == 1
    assert errors.startswith("aud2studio: error: /proc/out.wav cannot be written: ")
