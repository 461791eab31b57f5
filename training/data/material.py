"""The material that training renders from, decoded once for fast random access.

    python -m training.data.material --music data/clean --acoustics DIR --voices DIR --out data/material

`--music` is what `training.data.corpora` wrote; the other two hold an `index.json` each. Left out are rows of the test
split, whatever `holdout.json` keeps for validation, and what weights that anybody may use cannot be trained on:
non-commercial and GPL-3 material. Halls are simulated beside. Call it again to go on where it stopped.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
from tqdm.auto import tqdm

from pipeline_aud2studio.files import atomic_path
from training.jsonl import read_rows

from .rooms import DIRECT_S, energy_ratio_db, simulate, t20_s, tidy

SAMPLE_RATE = 44100
HOLDOUT = json.loads((Path(__file__).parent / "holdout.json").read_text(encoding="utf-8"))
CURVE_HZ = 1000 * 2.0 ** (np.arange(-16, 14) / 3)  # third octaves from 25 Hz to 20 kHz, of loudspeakers and recorders
CURVE_DB = (-20.0, 10.0)
FULL_BAND_HZ = 14_000.0  # a voice that ends below it would teach that clean voices have no highs
BANNED_PACKAGES = {"colobot-common-sounds", "drascula-music"}  # GPL-3+, and a licence of its own
# The music of naev with a licence of its own in its copyright note; all other is GPL-3+.
NAEV_MUSIC = (
    "agriculture cosmostation galacticbattle launch2 launch3chatstart liftoff machina mission ocean peace1 "
    "peace2 peace4 peace6 snow ambient1 ambient2 ambient2_5 ambient3 automat battlesomething1 battlesomething2 "
    "collective1 collective2 empire1 empire2 flf_battle1 intrigue intro landing_sinister nebu_battle1 "
    "nebu_battle2 sirius1 tension upbeat zalek1 zalek2 ambiphonic void_sensor ambient4 combat1 combat2 combat3 "
    "dvaered1 dvaered2 eureka sirius2 terminal"
).split()


@dataclass(frozen=True)
class Sound:
    """A decoded sound.

    Attributes:
        path: An `.npy` file, int16 (channels, samples) at `SAMPLE_RATE`.
        kind: `music`, `song`, `singing`, `speech`, or what `acoustics/` calls an audience.
        group: What must not be split: a package, a song.
        licence, origin: For the card.
    """

    path: Path
    kind: str
    group: str
    licence: str
    origin: str
    samples: int

    def read(self, start: int, stop: int) -> np.ndarray:
        """Reads the samples [start, stop), within the sound: (channels, stop - start) float32, full scale at 1."""
        return np.load(self.path, mmap_mode="r")[:, start:stop].astype(np.float32) / 32768


@dataclass(frozen=True)
class Room:
    """Responses of one file: the microphones (channels, samples) of one place, `measured` or `simulated`."""

    path: Path
    space: str
    t20_s: float
    drr_db: float
    kind: str = "measured"

    def responses(self) -> np.ndarray:
        """Loads the responses (channels, samples) from the direct sound on, whose first 2.5 ms have unit energy."""
        return np.load(self.path)


@dataclass(frozen=True)
class Curve:
    """The gains of a loudspeaker or a tape recorder in third octaves: `gain_db` at `CURVE_HZ`."""

    name: str
    kind: str  # `cabinet` or `microphone`
    licence: str
    origin: str
    gain_db: list[float]


@dataclass(frozen=True)
class Material:
    """Everything that :func:`main` prepared."""

    folder: Path
    sounds: tuple[Sound, ...]
    rooms: tuple[Room, ...]
    halls: tuple[Room, ...]
    curves: tuple[Curve, ...]

    @classmethod
    def open(cls, folder: Path) -> Material:
        """Opens a prepared folder.

        Raises:
            ValueError: If there is none.
        """
        index = folder / "index.json"
        if not index.is_file():
            raise ValueError(
                f"{folder} holds no prepared material: run `python -m training.data.material --out {folder}`"
            )
        content = json.loads(index.read_text(encoding="utf-8"))
        sounds = [Sound(**{**row, "path": folder / row["path"]}) for row in content["sounds"]]
        rooms, halls = (
            tuple(Room(**{**row, "path": folder / row["path"]}) for row in content.get(name, []))
            for name in ("rooms", "halls")
        )
        return cls(folder, tuple(sounds), rooms, halls, tuple(Curve(**row) for row in content.get("curves", [])))

    @cached_property
    def by_kind(self) -> dict[str, list[Sound]]:
        """The sounds by their kind."""
        found: dict[str, list[Sound]] = {}
        for sound in self.sounds:
            found.setdefault(sound.kind, []).append(sound)
        return found


def decoded(paths: Sequence[Path]) -> np.ndarray:
    """Decodes a file, or the sum of several: int16 (channels, samples) at `SAMPLE_RATE`, at most two channels."""
    parts = []
    for path in paths:
        waveform, sample_rate = soundfile.read(path, dtype="float32", always_2d=True)
        parts.append(soxr.resample(waveform[:, :2], sample_rate, SAMPLE_RATE).T)
    length = min(part.shape[1] for part in parts)
    mix = sum(np.broadcast_to(part[:, :length], (max(map(len, parts)), length)) for part in parts)
    assert isinstance(mix, np.ndarray)
    return np.round(mix * (32767 / max(1.0, float(np.abs(mix).max())))).astype(np.int16)


def allowed(licence: str) -> bool:
    """Whether weights that anybody may use can be trained on it."""
    other = "or" in licence.split()  # "GPL-3 or CC-BY-3.0": take the second
    return "NC" not in licence and ("GPL-3" not in licence or other)


def music_rows(folder: Path) -> list[dict[str, Any]]:
    """The tracks that training may use, of an inventory."""
    held = {package for packages in HOLDOUT["music_packages"].values() for package in packages}
    rows = []
    for row in read_rows(folder / "inventory.jsonl"):
        package = row["package"]
        unclear = package == "naev-data" and Path(row["path"]).stem not in NAEV_MUSIC
        if row["split"] == "train" and package not in held | BANNED_PACKAGES and not unclear:
            stems = [folder / stem for stem in row.get("stems") or [row["path"]]]
            rows.append({"files": stems, "kind": "music", "group": package} | _owed(row, row["path"]))
    return rows


def voice_rows(folder: Path) -> list[dict[str, Any]]:
    """The voices that training may use: full-band singing, songs and speech."""
    names = {"solo_singing": "singing", "song_with_vocals": "song", "speech": "speech"}
    rows = []
    for row in _train_rows(folder, HOLDOUT["voice_files"]):
        kind = names[row["kind"]]
        if kind != "singing" or row["bandwidth_hz"] >= FULL_BAND_HZ:
            rows.append(
                {"files": [folder / row["file"]], "kind": kind, "group": row["file"]} | _owed(row, row["origin"])
            )
    return rows


def crowd_rows(folder: Path) -> list[dict[str, Any]]:
    """The audiences that training may use."""
    rows = [row for row in _train_rows(folder, HOLDOUT["crowd_files"]) if row["file"].startswith("crowd/")]
    return [
        {"files": [folder / row["file"]], "kind": row["kind"], "group": row["file"]} | _owed(row, row["origin"])
        for row in rows
    ]


def _owed(row: Mapping[str, Any], origin: str) -> dict[str, str]:
    return {"licence": row["licence"], "origin": origin}


def _train_rows(folder: Path, held: Sequence[str]) -> list[dict[str, Any]]:
    content = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    rows = content if isinstance(content, list) else content["files"]
    return [row for row in rows if row["split"] == "train" and row["file"] not in held and allowed(row["licence"])]


def prepare_sounds(rows: Sequence[Mapping[str, Any]], out: Path) -> list[dict[str, Any]]:
    """Decodes what is not there yet; returns the rows of the index."""
    (out / "sounds").mkdir(parents=True, exist_ok=True)
    found = []
    for number, row in enumerate(tqdm(rows, desc="sounds", unit="file")):
        name = f"sounds/{row['kind']}-{number:05d}.npy"
        if not (out / name).exists():
            _save(out, name, decoded(row["files"]))
        samples = np.load(out / name, mmap_mode="r").shape[1]
        kept = {key: row[key] for key in ("kind", "group", "licence", "origin")}
        found.append({"path": name, **kept, "samples": samples})
    return found


def prepare_rooms(folder: Path, out: Path) -> list[dict[str, Any]]:
    """Trims and normalises the measured responses; returns the rows of the index."""
    (out / "rooms").mkdir(parents=True, exist_ok=True)
    rows = [
        row
        for row in _train_rows(folder, HOLDOUT["rir_files"])
        if row["file"].startswith("rir/") and "PCC" not in row["file"]
    ]
    found = []
    for number, row in enumerate(tqdm(rows, desc="rooms", unit="file")):
        waveform, sample_rate = soundfile.read(folder / row["file"], always_2d=True)
        channels = waveform.T[np.abs(waveform.T).max(1) > 0]
        try:
            responses = tidy(channels, sample_rate, SAMPLE_RATE)
            measured = t20_s(responses[0].astype(np.float64), SAMPLE_RATE)
        except ValueError as error:
            tqdm.write(f"left out: {row['file']}: {error}")
            continue
        name = f"rooms/measured-{number:04d}.npy"
        _save(out, name, responses)
        drr_db = energy_ratio_db(responses[0], SAMPLE_RATE, DIRECT_S)
        found.append({"path": name, "space": row["space"], "t20_s": measured, "drr_db": drr_db, "kind": "measured"})
    return found


def prepare_halls(out: Path, count: int) -> list[dict[str, Any]]:
    """Simulates the halls that are not there yet; returns the rows of the index.

    A file holds the pairs of one loudspeaker, then those of the other: (8, samples).
    """
    (out / "halls").mkdir(parents=True, exist_ok=True)
    found = []
    for number in tqdm(range(count), desc="halls", unit="hall"):
        name = f"halls/simulated-{number:04d}.npy"
        if not (out / name).exists():
            responses = simulate(np.random.default_rng([2026, number]), SAMPLE_RATE)
            _save(out, name, tidy(responses.reshape(8, -1), SAMPLE_RATE, SAMPLE_RATE))
        first = np.load(out / name)[0]
        measures = {
            "t20_s": t20_s(first.astype(np.float64), SAMPLE_RATE),
            "drr_db": energy_ratio_db(first, SAMPLE_RATE, DIRECT_S),
        }
        found.append({"path": name, "space": f"hall {number}", "kind": "simulated", **measures})
    return found


def prepare_curves(folder: Path) -> list[dict[str, Any]]:
    """Measures the loudspeakers and tape recorders of a folder; returns the rows of the index."""
    found = []
    for row in _train_rows(folder, []):
        if row["file"].startswith("device/"):
            waveform, sample_rate = soundfile.read(folder / row["file"], always_2d=True)
            kept = {"name": row["file"], "kind": row["kind"], "licence": row["licence"], "origin": row["origin"]}
            found.append({**kept, "gain_db": third_octaves_db(waveform[:, 0], sample_rate).round(2).tolist()})
    return found


def third_octaves_db(response: np.ndarray, sample_rate: int) -> np.ndarray:
    """Measures a response (samples) as :func:`band_levels_db` does.

    Bounded to `CURVE_DB`: what a subwoofer or a broken tape does not transmit is not taken away altogether.
    """
    size = max(len(response), sample_rate)
    spectrum = np.fft.rfft(response, size)
    return np.clip(band_levels_db(np.fft.rfftfreq(size, 1 / sample_rate), np.abs(spectrum) ** 2), *CURVE_DB)


def band_levels_db(frequencies: np.ndarray, power: np.ndarray) -> np.ndarray:
    """Averages a power spectrum in third octaves at `CURVE_HZ`, in dB, 0 dB on average from 200 Hz to 4 kHz."""
    edges = CURVE_HZ[:, None] * 2.0 ** (np.array([-1, 1]) / 6)
    bands = [power[(frequencies >= low) & (frequencies < high)] for low, high in edges]
    level_db = 10 * np.log10([band.mean() + 1e-20 if len(band) else 1e-20 for band in bands])
    return level_db - level_db[(CURVE_HZ > 200) & (CURVE_HZ < 4000)].mean()


def _save(out: Path, name: str, waveform: np.ndarray) -> None:
    """Writes an array under a name that is never that of half a file, which a training that runs could open."""
    with atomic_path(out / name) as temporary, temporary.open("wb") as file:
        np.save(file, waveform)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prepares the material, see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--music", type=Path, default=Path("data/clean"))
    parser.add_argument("--acoustics", type=Path, required=True, metavar="DIR")
    parser.add_argument("--voices", type=Path, required=True, metavar="DIR")
    parser.add_argument("--out", type=Path, default=Path("data/material"))
    parser.add_argument("--halls", type=int, default=240, metavar="N", help="to simulate, a second each")
    options = parser.parse_args(arguments)
    try:
        rows = [*voice_rows(options.voices), *crowd_rows(options.acoustics), *music_rows(options.music)]
        index = {
            "curves": prepare_curves(options.acoustics),
            "rooms": prepare_rooms(options.acoustics, options.out),
            "halls": prepare_halls(options.out, options.halls),
            "sounds": prepare_sounds(rows, options.out),
        }
    except (OSError, ValueError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    with atomic_path(options.out / "index.json") as temporary:
        temporary.write_text(json.dumps(index, indent=1), encoding="utf-8")
    hours = sum(sound["samples"] for sound in index["sounds"]) / SAMPLE_RATE / 3600
    print(f"{hours:.1f} h of sounds; " + ", ".join(f"{len(rows)} {name}" for name, rows in index.items()))


if __name__ == "__main__":
    main()
