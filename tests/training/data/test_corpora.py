"""Music corpora: unpacking, inventory, splits; a corpus from a server on the loopback."""

import hashlib
import http.server
import io
import shutil
import subprocess
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile

from training.data import corpora
from training.data.corpora import (
    PACKAGES,
    Package,
    PublicCorpus,
    artist_split,
    bandwidth_hz,
    main,
    prepare_packages,
    unpack,
    unpack_package,
)
from training.jsonl import merge_rows, read_rows, write_rows

RATE = 44100


def music(seconds: float, cutoff_hz: float = 20000.0, channels: int = 2, seed: int = 0) -> np.ndarray:
    """Noise that falls by 3 dB an octave and ends at the cutoff: (samples, channels)."""
    samples = round(seconds * RATE)
    spectrum = np.fft.rfft(np.random.default_rng(seed).standard_normal((samples, channels)), axis=0)
    frequency = np.fft.rfftfreq(samples, 1 / RATE)[:, None]
    shaped = spectrum / np.sqrt(np.maximum(frequency, 50.0)) * (frequency < cutoff_hz)
    waveform = np.fft.irfft(shaped, samples, axis=0)
    return 0.5 * waveform / np.abs(waveform).max()


def write(path: Path, waveform: np.ndarray, rate: int = RATE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, waveform, rate)


# --- What is in the files --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cutoff_hz", [4000, 11000, 16000, 20000])
def test_bandwidth(cutoff_hz: float) -> None:
    waveform = music(4.0, cutoff_hz, channels=1)[:, 0] + 1e-6 * np.random.default_rng(1).standard_normal(4 * RATE)
    assert bandwidth_hz(waveform, RATE) == pytest.approx(cutoff_hz, abs=150)


def test_bandwidth_of_silence_is_zero() -> None:
    assert bandwidth_hz(np.zeros(RATE), RATE) == 0.0


@pytest.fixture
def package_folder(tmp_path: Path) -> Path:
    """The files of a game's package: two tracks, stems, game archive, and much that is no music."""
    root = tmp_path / "tree"
    music_folder = root / "usr/share/games/demo/music"
    write(music_folder / "theme.flac", music(12))
    write(music_folder / "theme_fast.flac", music(12))
    write(music_folder / "short.flac", music(5))
    write(music_folder / "mono.flac", music(12, channels=1))
    write(music_folder / "dull.flac", music(12, 8000))
    write(root / "usr/share/games/demo/sounds/rain.flac", music(12))
    (music_folder / "broken.ogg").write_bytes(b"not audio at all")
    for number, name in enumerate(("song.ogg", "guitar.ogg")):
        write(root / "usr/share/games/demo/songs/one" / name, music(11, seed=number))
    with zipfile.ZipFile(music_folder / "base.pk3", "w") as archive:
        stream = io.BytesIO()
        soundfile.write(stream, music(11, seed=7), RATE, format="FLAC")
        archive.writestr("music/inner.flac", stream.getvalue())
        archive.writestr("maps/level.bsp", b"no audio")
    (root / "usr/share/doc/demo").mkdir(parents=True)
    (root / "usr/share/doc/demo/copyright").write_text("CC0")
    return root


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg-deb is not installed")
def test_package_from_cache_to_inventory(
    package_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (package_folder / "DEBIAN").mkdir()
    control = "Package: demo\nVersion: 1.0\nArchitecture: all\nMaintainer: A <a@example.org>\nDescription: demo\n"
    (package_folder / "DEBIAN/control").write_text(control)
    cache = tmp_path / "cache"
    cache.mkdir()
    deb = cache / "demo_1.0_all.deb"
    subprocess.run(["dpkg-deb", "-b", str(package_folder), str(deb)], check=True, stdout=subprocess.DEVNULL)
    apt_says(monkeypatch, deb, hashlib.sha256(deb.read_bytes()).hexdigest())

    out = tmp_path / "clean"
    package = Package("demo", "rock", "CC0", "validation")
    rows = prepare_packages([package], out, cache)
    names = {Path(row["path"]).name: row for row in rows}
    assert set(names) == {"theme.flac", "song.ogg", "inner.flac"}
    assert not list(out.rglob("*.pk3")) and not list(out.rglob("*.bsp")) and list(out.rglob("copyright"))
    unpack_package(deb, out / "demo")  # as a second process would that began before the first one was done
    assert [path.name for path in out.iterdir()].count("demo") == 1 and not list(out.glob(".demo-*"))
    assert [Path(stem).name for stem in names["song.ogg"]["stems"]] == ["song.ogg", "guitar.ogg"]
    assert "stems" not in names["theme.flac"]
    for row in rows:
        assert (out / row["path"]).is_file()
        assert row["split"] == "validation" and row["licence"] == "CC0" and row["artist"] == "demo"
        assert row["sample_rate"] == RATE and row["channels"] == 2 and row["seconds"] >= 10
        assert row["bandwidth_hz"] >= 15000
    # The second call neither asks for the package nor listens again.
    monkeypatch.setattr(corpora, "fetch_package", lambda *_: pytest.fail("asked again"))
    monkeypatch.setattr(corpora, "describe", lambda *_: pytest.fail("listened again"))
    (out / "demo/usr/share/games/demo/music/broken.ogg").unlink()
    assert prepare_packages([package], out, cache) == rows


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg-deb is not installed")
def test_broken_package_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "bad.deb").write_bytes(b"!<arch>\nnothing")
    with pytest.raises(ValueError, match="unpack"):
        unpack_package(tmp_path / "bad.deb", tmp_path / "out" / "bad")
    assert not list((tmp_path / "out").iterdir())


def apt_says(monkeypatch: pytest.MonkeyPatch, deb: Path, sha256: str) -> None:
    """Makes apt know a package by an address where nobody answers, and by its checksum."""
    answer = f"'http://127.0.0.1:9/{deb.name}' {deb.name} 5 SHA256:{sha256}\n"
    run = subprocess.run
    monkeypatch.setattr(
        "training.data.corpora.subprocess.run",
        lambda words, **options: run(["printf", "%s", answer] if words[0] == "apt-get" else words, **options),
    )


def test_package_is_taken_from_the_cache_if_its_checksum_is_apts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deb = tmp_path / "demo_1_all.deb"
    deb.write_bytes(b"12345")
    apt_says(monkeypatch, deb, hashlib.sha256(b"12345").hexdigest())
    assert corpora.fetch_package("demo", tmp_path) == deb
    apt_says(monkeypatch, deb, "0" * 64)
    with pytest.raises(OSError):  # it is fetched again
        corpora.fetch_package("demo", tmp_path)
    monkeypatch.setattr(
        "training.data.corpora.subprocess.run", lambda *_, **__: subprocess.CompletedProcess([], 1, "")
    )
    with pytest.raises(ValueError, match="apt knows no package 'demo'"):
        corpora.fetch_package("demo", tmp_path)


# --- Splits ----------------------------------------------------------------------------------------------------------


def test_package_splits_are_as_published() -> None:
    splits = {split: {p.name for p in PACKAGES if p.split == split} for split in ("train", "validation", "test")}
    assert splits["test"] == {"fretsonfire-songs-muldjord", "hyperrogue-music", "openclonk-data", "unknown-horizons"}
    assert splits["validation"] == {"marsshooter-data", "enigma-data", "lincity-ng-data", "flare-game"}
    assert len(PACKAGES) == len({p.name for p in PACKAGES})
    assert not any("drascula" in p.name for p in PACKAGES)


def test_own_folder_is_split_by_artist(tmp_path: Path) -> None:
    artists = [f"Artist {number}" for number in range(40)]
    splits = {artist: artist_split(artist) for artist in artists}
    chosen = [next(a for a in artists if splits[a] == split) for split in ("train", "validation", "test")]
    for seed, artist in enumerate(chosen):
        for song in ("a", "b"):
            write(tmp_path / "own" / artist / "Album" / f"{song}.wav", music(10.5, seed=seed))
    out = tmp_path / "clean"
    main(["--out", str(out), "--packages", "--own-folder", str(tmp_path / "own")])
    rows = read_rows(out / "inventory.jsonl")
    assert sorted({(row["artist"], row["split"]) for row in rows}) == sorted((a, splits[a]) for a in chosen)
    assert len(rows) == 6 and all((out / row["path"]).is_file() for row in rows)
    main(["--out", str(out), "--packages", "--own-folder", str(tmp_path / "own")])
    assert read_rows(out / "inventory.jsonl") == rows
    many = [artist_split(f"{number}") for number in range(2000)]
    assert 150 < many.count("test") < 250 and 150 < many.count("validation") < 250


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--packages", "no-such-package"], "unknown packages: no-such-package"),
        (["--packages", "--own-folder", "nowhere"], "nowhere is not a folder"),
        (["--packages", "--corpus", "nothing"], "unknown corpus 'nothing'"),
    ],
)
def test_errors_are_one_line(
    arguments: list[str], complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--out", str(tmp_path), *arguments])
    assert stopped.value.code == 2
    message = capsys.readouterr().err.strip()
    assert complaint in message and "\n" not in message


def test_index_files(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl", [{"a": 1}])
    assert read_rows(tmp_path / "a.jsonl") == [{"a": 1}]
    rows = [{"path": "b", "x": 1}, {"path": "a", "x": 2}]
    assert [row["path"] for row in merge_rows(tmp_path / "m.jsonl", rows)] == ["a", "b"]
    merge_rows(tmp_path / "m.jsonl", [{"path": "b", "x": 3}])
    assert read_rows(tmp_path / "m.jsonl") == [{"path": "a", "x": 2}, {"path": "b", "x": 3}]
    (tmp_path / "b.jsonl").write_text('{"a": 1}\n')
    with pytest.raises(ValueError, match="no header"):
        read_rows(tmp_path / "b.jsonl")
    with pytest.raises(ValueError, match="does not exist"):
        read_rows(tmp_path / "c.jsonl")


# --- Archives --------------------------------------------------------------------------------------------------------


class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """Serves the files in `tmp_path`/served; yields its address."""
    (tmp_path / "served").mkdir()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(tmp_path / "served")))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_public_corpus_from_server_to_inventory(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    served = tmp_path / "served" / "corpus.zip"
    with zipfile.ZipFile(served, "w") as archive:
        for name, seed in (("mixture", 1), ("vocals", 2)):
            wav = io.BytesIO()
            soundfile.write(wav, music(10.5, seed=seed), RATE, format="WAV")
            archive.writestr(f"train/Somebody - A Song/{name}.wav", wav.getvalue())
    checksum = hashlib.sha256(served.read_bytes()).hexdigest()
    arguments = ["--out", str(tmp_path / "clean"), "--cache", str(tmp_path), "--packages", "--corpus", "demo"]
    for wrong in (f"{server}/corpus.zip", f"{server}/none.zip"):  # the checksum's, and the name's
        corpus = PublicCorpus(wrong, "sha256:" + "0" * 64, "CC0", artist_from="folder")
        monkeypatch.setitem(corpora.CORPORA, "demo", corpus)
        with pytest.raises(SystemExit):
            main(arguments)
    errors = capsys.readouterr().err
    assert "hash" in errors and "404" in errors and not (tmp_path / "clean" / "demo").exists()
    corpus = PublicCorpus(f"{server}/corpus.zip", f"sha256:{checksum}", "CC0", artist_from="folder")
    monkeypatch.setitem(corpora.CORPORA, "demo", corpus)
    main(arguments)
    served.unlink()
    main(arguments)  # nothing is fetched twice
    (row,) = read_rows(tmp_path / "clean" / "inventory.jsonl")
    assert row["path"] == "demo/train/Somebody - A Song/mixture.wav"
    assert row["artist"] == "Somebody" and row["split"] == artist_split("Somebody") and row["licence"] == "CC0"


def test_known_checksums_are_well_formed() -> None:
    lengths = {"md5": 32, "sha1": 40, "sha256": 64}
    for corpus in corpora.CORPORA.values():
        algorithm, _, value = corpus.checksum.partition(":")
        assert len(value) == lengths[algorithm] and int(value, 16) >= 0


@pytest.mark.parametrize("name", ["../evil.wav", "/tmp/evil.wav", "a/../../evil.wav", "..\\evil.wav", "C:\\evil.wav"])
def test_archives_cannot_write_outside(tmp_path: Path, name: str) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(name, b"evil")
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        member = tarfile.TarInfo(name)
        member.size = 4
        tar.addfile(member, io.BytesIO(b"evil"))
    folder = tmp_path / "inside" / "deep"
    folder.mkdir(parents=True)
    unpack(tmp_path / "a.zip", folder, lambda _: True)
    if ".." in name and "\\" not in name:
        with pytest.raises(ValueError, match="outside"):
            unpack(tmp_path / "a.tar.gz", folder, lambda _: True)
    else:
        unpack(tmp_path / "a.tar.gz", folder, lambda _: True)
    outside = {path for path in tmp_path.rglob("*") if path.is_file() and folder not in path.parents}
    assert outside == {tmp_path / "a.zip", tmp_path / "a.tar.gz"} and not Path("/tmp/evil.wav").exists()


def test_links_in_archives_are_not_made(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        link = tarfile.TarInfo("link.wav")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    unpack(tmp_path / "a.tar", tmp_path / "out", lambda _: True)
    assert not [path for path in tmp_path.rglob("*") if path.name == "link.wav"]
