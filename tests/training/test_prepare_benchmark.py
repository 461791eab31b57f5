"""What a manifest needs is made where its rows look for it, once."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from training import corpora, prepare_benchmark
from training.crowd import MAKERS, make_bed
from training.prepare_benchmark import make_noise, prepare

KINDS = list(MAKERS)


def row(**changes: object) -> dict[str, object]:
    paths = {f"{kind}_path": [""] for kind in ("hum", "hiss", "wind", "handling")}
    return {
        "music_path": "hyperrogue-music/a.ogg",
        "bed_path": [],
        "rir_path": "measured/hall.flac",
        **paths,
        **changes,
    }


def bed_of(kind: str) -> str:
    number = KINDS.index(kind)
    return f"{kind}/0-{number:05d}.flac"


@pytest.fixture
def bundled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stands in for the files of the repository; no package is downloaded."""
    folder = tmp_path / "bundled"
    folder.mkdir()
    (folder / "hall.flac").write_bytes(b"a measured hall")
    monkeypatch.setattr(prepare_benchmark, "BUNDLED", {"measured": folder})
    monkeypatch.setattr(corpora, "prepare_packages", lambda packages, out, cache: [p.name for p in packages])
    return folder


def test_files_are_made_where_the_manifest_looks(bundled: Path, tmp_path: Path) -> None:
    path = bed_of("hum")
    prepare([row(hum_path=[path])], tmp_path / "data", workers=1)
    assert (tmp_path / "data" / "rirs" / "measured" / "hall.flac").read_bytes() == b"a measured hall"
    made, _ = soundfile.read(tmp_path / "data" / "noise" / path)
    expected = make_bed(KINDS.index("hum"), 0)[1].T
    np.testing.assert_allclose(made, expected, atol=1 / 32768)
    stamp = (tmp_path / "data" / "noise" / path).stat().st_mtime_ns
    prepare([row(hum_path=[path])], tmp_path / "data", workers=1)
    assert (tmp_path / "data" / "noise" / path).stat().st_mtime_ns == stamp


def test_what_cannot_be_made_is_named(bundled: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown packages: my-own-music"):
        prepare([row(music_path="my-own-music/a.ogg")], tmp_path, workers=1)
    with pytest.raises(ValueError, match="of another version"):
        make_noise(bed_of("hum").replace("hum/", "wind/"), tmp_path)
