"""The benchmark's clips: drawn once from a seed, rendered from material whose source and generator training never saw.

    python -m training.evaluation.clips --split test --acoustics DIR --voices DIR --out data/benchmark/test
    python -m training.evaluation.clips --several --split test --acoustics DIR --voices DIR --out data/several

Music and songs of other artists, measured rooms of other places, recorded audiences of other recordists, and for the
phone FFmpeg's filters and codecs, none of which the training's renderer uses. `--split validation` renders the like
from what `training/data/holdout.json` keeps away from training; decisions are made there. Call it again to go on.

`--several` renders performances with several recordings. Each is made at a measured position of its own, with an
audience of its own at 12 dB, and starts, ends and runs on a clock of its own; the alignment has to undo that first. In
the last condition somebody claps near the reference.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

import av
import numpy as np
import soundfile
import soxr
from scipy.signal import oaconvolve
from tqdm.auto import tqdm

from pipeline_aud2studio.files import atomic_path
from training.data.material import HOLDOUT
from training.data.recorder import transcode
from training.data.responses import early_part
from training.data.rooms import tidy
from training.jsonl import read_rows, write_rows

SAMPLE_RATE, SEED = 44100, 2026
SECONDS, LEAD_IN_S = 20.0, 3.0
PEAK = 0.5
# Clips of a condition, half of them with voices: in the test set, and in the validation set.
CONDITIONS = {
    "audience": (24, 10),
    "room mono": (20, 10),
    "room stereo": (24, 10),
    "room and audience mono": (16, 8),
    "room and audience stereo": (16, 8),
    "phone": (20, 8),
    "clean": (16, 8),
    "audience alone": (8, 4),
}
CODECS = (("aac", 56), ("opus", 80), ("mp3", 112))

PERFORMANCE_S = 30.0
PERFORMANCES = {"two": 2, "three": 3, "four": 4, "applause near one": 3}  # recordings of a condition
PERFORMANCE_COUNTS = {"test": 8, "validation": 4}  # performances of a condition
FEWEST_POSITIONS = 3  # of a place; two are often one position, processed in two ways
SNR_DB, SNR_SPREAD_DB = 12.0, 3.0
LATEST_S, DRIFT_PPM = 2.0, 40.0  # how late the others start, and how much faster or slower their clocks run at most
NEAR_DB, NEAR_S, NEAR_EVERY_S = -6.0, 3.0, 7.5  # the clapping: music to applause while it lasts; how long; how often


@dataclass(frozen=True)
class Clip:
    """A rendered clip: `recording`, `early` and `dry` (channels, samples) at 44.1 kHz; see the manifest's row."""

    folder: Path
    row: dict[str, Any]

    @property
    def name(self) -> str:
        return str(self.row["name"])

    @property
    def condition(self) -> str:
        return str(self.row["condition"])

    @property
    def has_voice(self) -> bool:
        return bool(self.row["voice"])

    @cached_property
    def recording(self) -> np.ndarray:
        return self._read("recording")

    @cached_property
    def early(self) -> np.ndarray:
        """The direct sound and 50 ms after it, as the recorder would have heard them."""
        return self._read("early")

    @cached_property
    def dry(self) -> np.ndarray:
        return self._read("dry")

    @property
    def takes(self) -> list[np.ndarray]:
        """The other recordings of the performance, each on its own clock."""
        return [self._read(f"take{number}") for number in range(1, len(self.row.get("takes", [])))]

    def __hash__(self) -> int:
        return hash((self.folder, self.name))

    def _read(self, part: str) -> np.ndarray:
        path = self.folder / f"{self.name}-{part}.flac"
        return soundfile.read(path, dtype="float32", always_2d=True)[0].T


def load_clips(folder: Path) -> list[Clip]:
    """Opens a rendered set.

    Raises:
        ValueError: If there is none.
    """
    if not (folder / "clips.jsonl").is_file():
        raise ValueError(f"{folder} holds no clips: render them with `python -m training.evaluation.clips`")
    return [Clip(folder, row) for row in read_rows(folder / "clips.jsonl")]


@dataclass(frozen=True)
class Sources:
    """What the clips of a split may be made of: rows of the corpora's tables."""

    tracks: list[dict[str, Any]]
    songs: list[dict[str, Any]]
    rooms: list[dict[str, Any]]
    crowds: list[dict[str, Any]]

    @classmethod
    def open(cls, split: str, music: Path, acoustics: Path, voices: Path) -> Sources:
        """Reads the tables of the corpora and keeps what is of the split."""
        packages = HOLDOUT["music_packages"][split]
        held = set(HOLDOUT["rir_files"] + HOLDOUT["crowd_files"] + HOLDOUT["voice_files"])

        def chosen(row: dict[str, Any]) -> bool:
            return row["split"] == "test" if split == "test" else row["split"] == "train" and row["file"] in held

        sounds = [row for row in _index(acoustics) if chosen(row)]
        return cls(
            tracks=[row for row in read_rows(music / "inventory.jsonl") if row["package"] in packages],
            songs=[row for row in _index(voices) if chosen(row) and row["kind"] == "song_with_vocals"],
            rooms=[row for row in sounds if row["file"].startswith("rir/") and row["channels"] >= 1],
            crowds=[row for row in sounds if row["file"].startswith("crowd/")],
        )

    @property
    def spaces(self) -> list[str]:
        return sorted({_place(row) for row in self.rooms})

    def rooms_of(self, space: str) -> list[dict[str, Any]]:
        """The responses of a place."""
        return [room for room in self.rooms if _place(room) == space]

    def draw_source(self, rng: np.random.Generator, voice: bool) -> dict[str, Any]:
        """Draws a song, or music without a voice, and where it starts."""
        found = self.songs if voice else self.tracks
        source = found[int(rng.integers(len(found)))]
        files = [source["file"]] if voice else source.get("stems") or [source["path"]]
        return {"voice": voice, "source": files, "start": float(rng.random())}


def draw(split: str, music: Path, acoustics: Path, voices: Path) -> list[dict[str, Any]]:
    """Draws the rows of a split; the rooms' places take turns, so that none counts more than others."""
    rng = np.random.default_rng([SEED, split == "validation"])
    sources = Sources.open(split, music, acoustics, voices)
    spaces, crowds = sources.spaces, sources.crowds
    rows: list[dict[str, Any]] = []
    turn = 0
    for condition, counts in CONDITIONS.items():
        for number in range(counts[split == "validation"]):
            voice = number % 2 == 1
            row: dict[str, Any] = {"name": f"{len(rows):04d}", "condition": condition}
            row |= sources.draw_source(rng, voice)
            if "room" in condition or condition == "phone":
                space = spaces[turn % len(spaces)]
                turn += 1
                options = sources.rooms_of(space)
                row |= {"rir": options[int(rng.integers(len(options)))]["file"], "space": space}
            if "audience" in condition or condition == "phone":
                row["crowd"] = crowds[int(rng.integers(len(crowds)))]["file"]
                row |= {"crowd_start": float(rng.random()), "snr_db": round(float(rng.uniform(0, 15)), 1)}
            if condition == "phone":
                row["phone"] = _draw_phone(rng)
            row["channels"] = 1 if "mono" in condition or (condition == "phone" and number % 4 < 2) else 2
            rows.append(row)
    return rows


def _place(row: dict[str, Any]) -> str:
    """The place of a response: what differs in the microphone only is one place."""
    return str(row["space"]).split(" XY")[0].split(" (")[0]


def _index(folder: Path) -> list[dict[str, Any]]:
    content = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    return content if isinstance(content, list) else list(content["files"])


def _draw_phone(rng: np.random.Generator) -> dict[str, Any]:
    codec, kbps = CODECS[int(rng.integers(len(CODECS)))]
    return {
        "highpass_hz": round(float(rng.uniform(60, 220))),
        "presence_hz": round(float(rng.uniform(1800, 5000))),
        "presence_db": round(float(rng.uniform(-2, 7)), 1),
        "treble_db": round(float(rng.uniform(-12, 2)), 1),
        "lowpass_hz": round(float(rng.uniform(9000, 17000))),
        "threshold_db": round(float(rng.uniform(-20, -6)), 1),
        "ratio": round(float(rng.uniform(1.5, 6)), 1),
        "drive_db": round(float(rng.uniform(-9, 3)), 1),
        "codec": codec,
        "kbps": kbps,
    }


def read_loop(paths: Sequence[Path], start: float, samples: int) -> np.ndarray:
    """A stretch of the sum of some files, from the share `start` of what can be chosen on: (2, samples)."""
    parts = []
    for path in paths:
        waveform, sample_rate = soundfile.read(path, dtype="float32", always_2d=True)
        parts.append(soxr.resample(waveform[:, :2], sample_rate, SAMPLE_RATE).T)
    length = min(part.shape[1] for part in parts)
    mix = sum(np.broadcast_to(part[:, :length], (2, length)) for part in parts)
    assert isinstance(mix, np.ndarray)
    first = round(start * max(length - samples, 0))
    return np.stack([np.resize(channel[first:], samples) for channel in mix])


def read_responses(path: Path, most: int) -> np.ndarray:
    """Reads a measured response: (channels that are not empty, at most `most`, samples), see :func:`tidy`."""
    waveform, sample_rate = soundfile.read(path, always_2d=True)
    return tidy(waveform.T[np.abs(waveform.T).max(1) > 0][:most], sample_rate, SAMPLE_RATE)


def filtered(waveforms: Sequence[np.ndarray], description: str) -> np.ndarray:
    """Runs FFmpeg's filters on inputs (channels, samples) named `[0]`, `[1]` and so on: (channels, samples)."""
    layout = {1: "mono", 2: "stereo"}[len(waveforms[0])]
    graph = av.filter.Graph()
    sources = [
        graph.add_abuffer(sample_rate=SAMPLE_RATE, format="fltp", layout=layout, time_base=Fraction(1, SAMPLE_RATE))
        for _ in waveforms
    ]
    last = sources[0]
    for part in [*description.split(","), "aformat=sample_fmts=fltp"]:
        name, _, arguments = part.partition("=")
        node = graph.add(name, arguments)
        last.link_to(node, 0, 0)
        if name == "sidechaincompress":
            sources[1].link_to(node, 0, 1)
        last = node
    sink = graph.add("abuffersink")
    last.link_to(sink)
    graph.configure()
    for source, waveform in zip(sources, waveforms, strict=True):
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(waveform, np.float32), format="fltp", layout=layout)
        frame.sample_rate, frame.pts = SAMPLE_RATE, 0
        source.push(frame)
        source.push(None)
    parts = []
    while True:
        try:
            parts.append(sink.pull().to_ndarray())
        except (av.EOFError, BlockingIOError):
            break
    return np.concatenate(parts, axis=1)


def phone(sound: np.ndarray, early: np.ndarray, settings: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Records with a phone: what it makes of the sound, and of the early sound by its linear parts and its gain."""
    gain = 10 ** (settings["drive_db"] / 20) * PEAK / max(float(np.abs(sound).max()), 1e-9)
    linear = (
        f"highpass=f={settings['highpass_hz']}:p=2,"
        f"equalizer=f={settings['presence_hz']}:t=o:w=1.2:g={settings['presence_db']},"
        f"treble=g={settings['treble_db']}:f=6000,lowpass=f={settings['lowpass_hz']}:p=2,"
        f"lowpass=f={settings['lowpass_hz']}:p=2"
    )
    heard, wanted = (filtered([gain * each], linear) for each in (sound, early))
    control = 10 ** (settings["threshold_db"] / 20)
    compressor = f"sidechaincompress=threshold={control:.4f}:ratio={settings['ratio']}:attack=15:release=400"
    wanted = filtered([wanted, heard], compressor)
    heard = filtered([heard, heard], compressor)
    clipped = np.tanh(heard) if settings["drive_db"] > -6 else heard
    return transcode(clipped.astype(np.float32), SAMPLE_RATE, settings["codec"], settings["kbps"]), wanted


def render(row: dict[str, Any], music: Path, acoustics: Path, voices: Path) -> dict[str, np.ndarray]:
    """Renders a row: `recording`, `early` and `dry`, each (channels, samples)."""
    total, channels = round((SECONDS + LEAD_IN_S) * SAMPLE_RATE), row["channels"]
    source = read_loop([(voices if row["voice"] else music) / file for file in row["source"]], row["start"], total)
    source /= np.sqrt(np.mean(np.square(source))) + 1e-9
    dry = source[:channels] if channels == 2 else source.mean(0, keepdims=True)
    sound = early = dry
    if "rir" in row:  # one source, as most PAs play it
        responses = read_responses(acoustics / row["rir"], 2)
        responses = responses[:channels] if len(responses) >= channels else np.repeat(responses, channels, 0)
        dry = np.repeat(source.mean(0, keepdims=True), channels, 0)
        sound, early = (oaconvolve(dry, each, axes=-1)[:, :total] for each in (responses, early_part(responses)))
    cut = slice(round(LEAD_IN_S * SAMPLE_RATE), None)
    dry, sound, early = (np.asarray(each[:, cut], np.float32) for each in (dry, sound, early))
    if "crowd" in row:
        crowd = read_loop([acoustics / row["crowd"]], row["crowd_start"], total)[:channels, cut]
        level = np.sqrt(np.mean(np.square(sound)) / (np.mean(np.square(crowd)) + 1e-12))
        if row["condition"] == "audience alone":
            sound = early = dry = crowd
        else:
            sound = sound + np.float32(level * 10 ** (-row["snr_db"] / 20)) * crowd
    if "phone" in row:
        sound, early = phone(sound, early, row["phone"])
    scale = PEAK / max(float(np.abs(sound).max()), 1e-9)
    dry_scale = PEAK / max(float(np.abs(dry).max()), 1e-9)
    return {"recording": scale * sound, "early": scale * early, "dry": dry_scale * dry}


# --- Performances with several recordings ----------------------------------------------------------------------------


def draw_performances(
    split: str, music: Path, acoustics: Path, voices: Path, seed: int = 2026
) -> list[dict[str, Any]]:
    """Draws the rows of a split, in the places with enough measured positions, which take turns."""
    rng = np.random.default_rng([seed, 2, split == "validation"])
    sources = Sources.open(split, music, acoustics, voices)
    near = [row["file"] for row in sources.crowds if "applause" in row["file"] or "cheer" in row["file"]]
    rows: list[dict[str, Any]] = []
    for condition, count in PERFORMANCES.items():
        spaces = [space for space in sources.spaces if len(sources.rooms_of(space)) >= max(count, FEWEST_POSITIONS)]
        for number in range(PERFORMANCE_COUNTS[split]):
            source = sources.draw_source(rng, voice=number % 2 == 1)
            rooms = sources.rooms_of(spaces[number % len(spaces)])
            takes = [
                _draw_take(rng, sources, rooms[room]["file"], is_reference=take == 0)
                for take, room in enumerate(rng.permutation(len(rooms))[:count])
            ]
            if condition == "applause near one":
                takes[0]["near"] = near[int(rng.integers(len(near)))]
            rows.append({"name": f"{len(rows):04d}", "condition": condition, **source, "takes": takes})
    return rows


def _draw_take(rng: np.random.Generator, sources: Sources, rir: str, is_reference: bool) -> dict[str, Any]:
    crowd = sources.crowds[int(rng.integers(len(sources.crowds)))]["file"]
    return {
        "rir": rir,
        "channels": int(rng.integers(1, 3)),
        "crowd": crowd,
        "crowd_start": float(rng.random()),
        "snr_db": round(float(rng.normal(SNR_DB, SNR_SPREAD_DB)), 1),
        "late_s": 0.0 if is_reference else round(float(rng.uniform(0, LATEST_S)), 3),
        "drift_ppm": 0.0 if is_reference else round(float(rng.uniform(-DRIFT_PPM, DRIFT_PPM)), 1),
    }


def render_performance(row: dict[str, Any], music: Path, acoustics: Path, voices: Path) -> dict[str, np.ndarray]:
    """Renders such a row: `recording`, `early` and `dry` of the reference, and the others as `take1` and so on."""
    total = round((PERFORMANCE_S + LEAD_IN_S) * SAMPLE_RATE)
    source = read_loop([(voices if row["voice"] else music) / file for file in row["source"]], row["start"], total)
    source = source.mean(0, keepdims=True) / (np.sqrt(np.mean(np.square(source))) + 1e-9)
    parts: dict[str, np.ndarray] = {}
    for number, take in enumerate(row["takes"]):
        sound, early = _heard(source, take, acoustics, total)
        scale = PEAK / max(float(np.abs(sound).max()), 1e-9)
        if number == 0:
            dry = np.repeat(source[:, -sound.shape[1] :], len(sound), 0)
            parts = {"recording": scale * sound, "early": scale * early, "dry": dry * (PEAK / np.abs(dry).max())}
            continue
        rate = SAMPLE_RATE * (1 + 1e-6 * take["drift_ppm"])
        sound = sound[:, round(take["late_s"] * SAMPLE_RATE) :]
        parts[f"take{number}"] = scale * soxr.resample(sound.T, SAMPLE_RATE, rate, quality="VHQ").T
    return parts


def _heard(source: np.ndarray, take: dict[str, Any], acoustics: Path, total: int) -> tuple[np.ndarray, np.ndarray]:
    """What one recorder hears of the source (1, samples), and the early sound in it: (channels, samples) each."""
    responses = read_responses(acoustics / take["rir"], take["channels"])
    cut = slice(round(LEAD_IN_S * SAMPLE_RATE), total)
    sound, early = (oaconvolve(source, each, axes=-1)[:, cut] for each in (responses, early_part(responses)))
    audience = _at(acoustics / take["crowd"], take["crowd_start"], sound, take["snr_db"])
    if "near" in take:
        clapping = _at(acoustics / take["near"], 0.0, sound, NEAR_DB)
        time_s = np.arange(sound.shape[1]) / SAMPLE_RATE
        clapping *= (time_s % NEAR_EVERY_S > NEAR_EVERY_S - NEAR_S).astype(np.float32)
        audience = audience + clapping
    return (sound + audience).astype(np.float32), early.astype(np.float32)


def _at(path: Path, start: float, music: np.ndarray, snr_db: float) -> np.ndarray:
    """A stretch of a file as long as the music (channels, samples), so many dB below it."""
    crowd = read_loop([path], start, music.shape[1])[: len(music)]
    level = np.sqrt(np.mean(np.square(music)) / (np.mean(np.square(crowd)) + 1e-12))
    return crowd * np.float32(level * 10 ** (-snr_db / 20))


# --- Files -----------------------------------------------------------------------------------------------------------


def render_all(rows: Sequence[dict[str, Any]], folders: tuple[Path, Path, Path], out: Path) -> None:
    """Renders what is not there yet, and writes the manifest when all is."""
    out.mkdir(parents=True, exist_ok=True)
    for row in tqdm(rows, desc="clips", unit="clip"):
        # The last part that is written says that all are there.
        last = f"take{len(row['takes']) - 1}" if "takes" in row else "dry"
        if (out / f"{row['name']}-{last}.flac").is_file():
            continue
        parts = render_performance(row, *folders) if "takes" in row else render(row, *folders)
        for part, waveform in parts.items():
            # The early sound alone can be louder than the sum: one factor for both would change the recording's level.
            path = out / f"{row['name']}-{part}.flac"
            peak = max(float(np.abs(waveform).max()), 1e-9)
            with atomic_path(path) as temporary:
                soundfile.write(temporary, (waveform * min(1.0, 0.99 / peak)).T, SAMPLE_RATE, "PCM_24", format="FLAC")
    write_rows(out / "clips.jsonl", rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Renders a split, see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--split", choices=("test", "validation"), required=True)
    parser.add_argument("--several", action="store_true", help="performances with several recordings")
    parser.add_argument("--music", type=Path, default=Path("data/clean"))
    parser.add_argument("--acoustics", type=Path, required=True, metavar="DIR")
    parser.add_argument("--voices", type=Path, required=True, metavar="DIR")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    options = parser.parse_args(arguments)
    folders = options.music, options.acoustics, options.voices
    try:
        rows = (draw_performances if options.several else draw)(options.split, *folders)
        render_all(rows, folders, options.out)
    except (OSError, ValueError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")


if __name__ == "__main__":
    main()
