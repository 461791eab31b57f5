"""Clean music: fetch it, unpack it, and write down what is there.

    python -m training.data.corpora --out data/clean  # the soundtracks of free games, from Debian
    python -m training.data.corpora --out data/clean --own-folder ~/masters  # and your own music, one folder an artist
    python -m training.data.corpora --out data/clean --corpus musdb18-hq  # and a public corpus

Everything ends in `inventory.jsonl` below `--out`: a row for every track of "tier A", that is stereo, at least 44.1
kHz, 15 kHz of bandwidth and 10 s. Splits are disjoint by artist (Debian: by package). Call it again to go on where it
stopped.
"""

import argparse
import hashlib
import json
import os
import re
import subprocess
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pooch
import soundfile
from tqdm.auto import tqdm

from training.jsonl import merge_rows, read_rows, write_rows

AUDIO_SUFFIXES = {".ogg", ".oga", ".opus", ".flac", ".wav", ".mp3"}
MIN_SAMPLE_RATE = 44100
MIN_BANDWIDTH_HZ = 15000.0
MIN_SECONDS = 10.0


@dataclass(frozen=True)
class PublicCorpus:
    """An archive of music.

    Attributes:
        checksum: `algorithm:hexadecimal`, as its publishers state it.
        artist_from: Where a track's artist is named, "tags" or "folder" (`Artist - Title`).
    """

    url: str
    checksum: str
    licence: str
    artist_from: str = "tags"


@dataclass(frozen=True)
class Package:
    """A Debian package with music. `licence` is that of the music as its copyright file states it."""

    name: str
    genre: str
    licence: str
    split: str = "train"


TABLES = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
PACKAGES = tuple(Package(**row) for row in TABLES["packages"])
# Of MTG-Jamendo the first five parts of a hundred: about 270 h.
CORPORA = {name: PublicCorpus(**row) for name, row in TABLES["corpora"].items()}
STEM_NAMES = ("song.ogg", "guitar.ogg")  # of one song, to be summed
EFFECT_FOLDERS = {"sounds", "soundfx", "sfx", "speech"}  # of games: no music in there


def is_audio(name: str) -> bool:
    return Path(name).suffix.lower() in AUDIO_SUFFIXES


# --- Archives --------------------------------------------------------------------------------------------------------


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Gives a folder to fill, which takes its name when all went well; another process may have been first."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as parent:
        temporary = Path(parent) / folder.name
        temporary.mkdir()
        yield temporary
        try:
            os.replace(temporary, folder)
        except OSError:
            if not folder.is_dir():  # otherwise another process was first, with the same files
                raise


def unpack(path: Path, folder: Path, wanted: Callable[[str], bool]) -> None:
    """Unpacks the wanted files of a zip or tar archive; `wanted` is asked with each member's name.

    Raises:
        ValueError: If the archive is broken, or wants to write outside of the folder.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for name in filter(wanted, archive.namelist()):
                archive.extract(name, folder)  # never outside: it takes the ways out of a name
    else:
        with path.open("rb") as file:
            unpack_tar(file, folder, wanted)


def unpack_tar(file: IO[bytes], folder: Path, wanted: Callable[[str], bool]) -> None:
    """Does the same for a tar stream, compressed or not; links and devices are neither followed nor made."""

    def chosen(member: tarfile.TarInfo, path: str) -> tarfile.TarInfo | None:
        return tarfile.data_filter(member, path) if member.isfile() and wanted(member.name) else None

    try:
        with tarfile.open(fileobj=file, mode="r|*") as archive:
            archive.extractall(folder, filter=chosen)
    except tarfile.TarError as error:
        raise ValueError(f"{getattr(file, 'name', 'the archive')} cannot be unpacked: {error}") from error


# --- Debian packages -------------------------------------------------------------------------------------------------


def fetch_package(name: str, cache: Path) -> Path:
    """Downloads a package into `cache` by the address and the checksum that apt knows, unless it is there.

    Raises:
        ValueError: If apt does not know it, or what came is not what apt knows.
        OSError: If it cannot be downloaded.
    """
    answer = subprocess.run(["apt-get", "download", "--print-uris", name], capture_output=True, text=True)
    known = re.search(r"^'(\S+)' (\S+) \d+ SHA256:(\w+)$", answer.stdout, re.MULTILINE)
    if known is None:
        raise ValueError(f"apt knows no package {name!r}: run `apt-get update`, on Debian 12 or a relative of it")
    return Path(pooch.retrieve(known[1], f"sha256:{known[3]}", known[2], cache, progressbar=True))


def unpack_package(deb: Path, folder: Path) -> None:
    """Unpacks the audio files and the copyright note of a Debian package, and the music in game archives (.pk3)."""

    def wanted(name: str) -> bool:
        return is_audio(name) or name.endswith(".pk3") or Path(name).name == "copyright"

    with whole_folder(folder) as temporary:
        with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(deb)], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            unpack_tar(process.stdout, temporary, wanted)
        if process.returncode:
            raise ValueError(f"dpkg-deb could not unpack {deb}")
        for archive in [*temporary.rglob("*.pk3")]:
            unpack(archive, archive.with_suffix(""), is_audio)
            archive.unlink()


# --- What is in a folder of music ------------------------------------------------------------------------------------


def bandwidth_hz(waveform: np.ndarray, sample_rate: int, floor_db: float = -75.0) -> float:
    """Finds the highest frequency with content: where the mean spectrum is last within 75 dB of its strongest 100 Hz.

    Args:
        waveform: (samples,).

    A lossy encoder's low-pass leaves a cliff far deeper than that; music's own fall towards 15 kHz stays above it.
    """
    size = 4096
    if len(waveform) < size or not waveform.any():
        return 0.0
    frames = np.lib.stride_tricks.sliding_window_view(waveform, size)[:: size // 2]
    power = (np.abs(np.fft.rfft(frames * np.hanning(size), axis=-1)) ** 2).mean(axis=0)
    width = max(1, round(100 * size / sample_rate))
    smooth = np.convolve(power, np.ones(width) / width, mode="same")
    above = np.flatnonzero(smooth > smooth.max() * 10 ** (floor_db / 10))
    return float(above[-1] * sample_rate / size)


def excerpt(path: Path, seconds: float = 6.0) -> tuple[np.ndarray, int]:
    """Reads three pieces of a file, at 1/4, 1/2 and 3/4, downmixed and joined: (samples,) and the sample rate."""
    with soundfile.SoundFile(path) as file:
        length = int(seconds * file.samplerate)
        pieces = []
        for part in (0.25, 0.5, 0.75):
            file.seek(max(0, min(int(part * file.frames), file.frames - length)))
            pieces.append(file.read(length, dtype="float32", always_2d=True).mean(axis=1))
        return np.concatenate(pieces), file.samplerate


def describe(folder: Path, paths: Sequence[Path]) -> dict[str, Any]:
    """Makes an inventory row, without what only the collection knows (licence, split), of one track.

    Args:
        paths: the file, or the stems that make the track when they are summed.
    """
    with soundfile.SoundFile(paths[0]) as file:
        tags = file.copy_metadata()
        row: dict[str, Any] = {
            "path": paths[0].relative_to(folder).as_posix(),
            "artist": tags.get("artist", ""),
            "title": tags.get("title", "") or paths[0].stem,
            "seconds": round(file.frames / file.samplerate, 3),
            "sample_rate": file.samplerate,
            "channels": file.channels,
        }
    pieces, sample_rate = excerpt(paths[0])
    row["bandwidth_hz"] = round(bandwidth_hz(pieces, sample_rate))
    if len(paths) > 1:
        row["stems"] = [path.relative_to(folder).as_posix() for path in paths]
    return row


def is_tier_a(row: Mapping[str, Any]) -> bool:
    """Tells whether a track can be a target: stereo, full rate, full bandwidth, and long enough to cut from."""
    return (
        row["channels"] == 2
        and row["sample_rate"] >= MIN_SAMPLE_RATE
        and row["bandwidth_hz"] >= MIN_BANDWIDTH_HZ
        and row["seconds"] >= MIN_SECONDS
    )


def tracks(folder: Path) -> list[list[Path]]:
    """Lists the music files below a folder, each as the list of its stems (mostly one).

    Left out: `_fast` copies, game sounds, and the stems beside a `mixture.wav`.
    """
    found: list[list[Path]] = []
    for path in sorted(folder.rglob("*")):
        if not is_audio(path.name) or not path.is_file():
            continue
        if EFFECT_FOLDERS & set(path.relative_to(folder).parts) or path.stem.lower().endswith(("_fast", "-fast")):
            continue
        if path.name != "mixture.wav" and path.with_name("mixture.wav").exists():
            continue
        stems = [path.with_name(name) for name in STEM_NAMES]
        if path not in stems or not all(stem.exists() for stem in stems):
            found.append([path])
        elif path == stems[0]:
            found.append(stems)
    return found


def take_stock(out: Path, name: str) -> list[dict[str, Any]]:
    """Describes the tier A tracks below `out`/`name`. What was described once is kept in `out`/`name`.tracks.jsonl."""
    index = out / f"{name}.tracks.jsonl"
    known = {row["path"]: row for row in read_rows(index)} if index.exists() else {}
    rows = []
    for paths in tqdm(tracks(out / name), desc=name, leave=False):
        try:
            rows.append(known.get(paths[0].relative_to(out).as_posix()) or describe(out, paths))
        except soundfile.LibsndfileError as error:
            tqdm.write(f"left out, cannot be read: {paths[0]} ({error})")
    write_rows(index, rows)
    return [row for row in rows if is_tier_a(row)]


# --- Collections -----------------------------------------------------------------------------------------------------


def artist_split(artist: str) -> str:
    """Chooses the split of an artist by a hash of the name: 10 % test, 10 % validation, the same on every machine."""
    share = int(hashlib.sha256(artist.casefold().encode()).hexdigest()[:8], 16) / 2**32
    return "test" if share < 0.1 else "validation" if share < 0.2 else "train"


def prepare_packages(packages: Sequence[Package], out: Path, cache: Path) -> list[dict[str, Any]]:
    """Downloads, verifies, unpacks and inventories Debian packages; what is there already is not done again."""
    rows = []
    for package in tqdm(packages, desc="packages"):
        if not (out / package.name).exists():
            unpack_package(fetch_package(package.name, cache), out / package.name)
        for row in take_stock(out, package.name):
            origin = {"package": package.name, "licence": package.licence, "split": package.split}
            rows.append({**row, **origin, "artist": row["artist"] or package.name, "genre": package.genre})
    return rows


def prepare_own(folder: Path, out: Path) -> list[dict[str, Any]]:
    """Inventories a folder of one's own, linked into `out`; each folder at its top is an artist."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder")
    name = f"own-{folder.resolve().name}"
    link = out / name
    if not link.exists():
        link.symlink_to(folder.resolve(), target_is_directory=True)
    elif link.resolve() != folder.resolve():
        raise ValueError(f"{link} is another folder already: rename {folder}")
    rows = []
    for row in take_stock(out, name):
        inside = Path(row["path"]).relative_to(name).parts
        artist = inside[0] if len(inside) > 1 else row["artist"] or name
        rows.append({**row, "artist": artist, "package": name, "licence": "own", "split": artist_split(artist)})
    if not rows:
        raise ValueError(
            f"{folder} holds no tier A music: stereo, 44.1 kHz or more, 15 kHz of bandwidth, 10 s or more"
        )
    return rows


def prepare_corpus(name: str, out: Path, cache: Path) -> list[dict[str, Any]]:
    """Downloads, verifies, unpacks and inventories a public corpus.

    Raises:
        ValueError: If it is unknown, or what came is not what its publishers state.
        OSError: If it cannot be downloaded.
    """
    if name not in CORPORA:
        raise ValueError(f"unknown corpus {name!r}: known are {', '.join(CORPORA)}")
    corpus = CORPORA[name]
    if not (out / name).exists():
        file = f"{name}-{corpus.url.rsplit('/', 1)[-1]}"
        archive = pooch.retrieve(corpus.url, corpus.checksum, file, cache, progressbar=True)
        with whole_folder(out / name) as temporary:
            unpack(Path(archive), temporary, is_audio)
    rows = []
    for row in take_stock(out, name):
        named = Path(row["path"]).parent.name.split(" - ")[0] if corpus.artist_from == "folder" else row["artist"]
        artist = named or Path(row["path"]).parent.name
        origin = {"artist": artist, "package": name, "licence": corpus.licence, "split": artist_split(artist)}
        rows.append({**row, **origin})
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("data/clean"))
    parser.add_argument("--cache", type=Path, default=Path("data/downloads"), help="where downloads are kept")
    parser.add_argument(
        "--packages", nargs="*", metavar="NAME", help="only these packages; none at all without a NAME"
    )
    parser.add_argument("--own-folder", type=Path, action="append", default=[], metavar="DIR", help="repeatable")
    parser.add_argument(
        "--corpus", action="append", default=[], metavar="NAME", help=f"repeatable: {', '.join(CORPORA)}"
    )
    options = parser.parse_args(arguments)
    try:
        unknown = set(options.packages or ()) - {package.name for package in PACKAGES}
        if unknown:
            raise ValueError(f"unknown packages: {', '.join(sorted(unknown))}")
        packages = [package for package in PACKAGES if options.packages is None or package.name in options.packages]
        options.out.mkdir(parents=True, exist_ok=True)
        found = prepare_packages(packages, options.out, options.cache) if packages else []
        for folder in options.own_folder:
            found += prepare_own(folder, options.out)
        for name in options.corpus:
            found += prepare_corpus(name, options.out, options.cache)
        rows = merge_rows(options.out / "inventory.jsonl", found)
    except (ValueError, OSError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    for split in ("train", "validation", "test"):
        seconds = [row["seconds"] for row in rows if row["split"] == split]
        print(f"{split}: {len(seconds)} tracks, {sum(seconds) / 3600:.1f} h")


if __name__ == "__main__":
    main()
