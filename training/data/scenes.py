"""Scenes to train on: music in a place, an audience, a recorder, and what is wanted; a pure function of seed and row.

    python -m training.data.scenes --material data/material --count 20 --out scenes/    # to listen to, with recipes

What is wanted is the direct sound and the 50 ms after it, as the recorder would have heard them: through its equaliser
and its automatic gain, without its noise, saturation and codec.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
from scipy import fft
from tqdm.auto import tqdm

from .audience import draw_audience
from .material import SAMPLE_RATE, Material
from .recorder import draw_recorder, gain_at, measured_curve_db, recorded, recorder_curve_db, smooth_curve_db
from .responses import Place, draw_place, early_part

SECONDS = 25.0  # three chunks of the network, and most of a block of the prediction
CONDITIONS = {"audience": 0.24, "room": 0.26, "both": 0.35, "phone": 0.07, "clean": 0.05, "alone": 0.03}
WITH_PLACE, WITH_AUDIENCE = ("room", "both", "phone"), ("audience", "both", "phone")
STEREO = 0.65  # share of first recordings with two channels
SEVERAL = 0.15  # share of scenes with more than one recording
MEASURED_CURVE = 0.1  # share of measured loudspeakers, and of measured recorders
MAX_DRIFT_PPM = 30.0
NO_ROOM_DRR_DB = 20.0  # what no room at all counts as: the condition has to know it, or dry music seems to ring
LEAD_IN_S = 1.5  # music before the scene, which still rings in it


@dataclass(frozen=True)
class Scene:
    """Recordings of one performance, and what is wanted of the first.

    Attributes:
        recordings: Each (channels, samples) float32.
        target: (channels of the first, samples), aligned with it to the sample and at its level.
        dry: The source itself as the loudspeakers play it, of the same shape.
        labels: `rt60_s`, `drr_db`, `snr_db`, `bandwidth_hz`, `voice` (0 or 1); NaN where there is no such thing, but
            for the DRR, which is `NO_ROOM_DRR_DB` without a room.
        recipe: All that was drawn, plain JSON.
    """

    recordings: list[np.ndarray]
    target: np.ndarray
    dry: np.ndarray
    labels: dict[str, float]
    recipe: dict[str, Any]


def draw_layout(rng: np.random.Generator, max_recordings: int) -> tuple[str, int, int]:
    """Draws the condition, the channels of the first recording, and the number of recordings."""
    condition = str(rng.choice([*CONDITIONS], p=[*CONDITIONS.values()]))
    channels = 2 if rng.random() < STEREO else 1
    several = rng.random() < SEVERAL / sum(CONDITIONS[each] for each in WITH_PLACE)
    if not several or max_recordings == 1 or condition not in WITH_PLACE:
        return condition, channels, 1
    return condition, channels, int(rng.integers(2, max_recordings + 1))


class SceneRenderer:
    """Renders scenes.

    Args:
        material: What to render from.
        max_recordings: Recordings of one performance, at most.
        seed: Of everything that is drawn.
        seconds: Length of a scene.
    """

    def __init__(self, material: Material, max_recordings: int = 1, seed: int = 0, seconds: float = SECONDS) -> None:
        self.material, self.max_recordings, self.seed = material, max_recordings, seed
        self.samples, self.lead_in = round(seconds * SAMPLE_RATE), round(LEAD_IN_S * SAMPLE_RATE)

    def __call__(self, row: int) -> Scene:
        """Renders the scene of a row."""
        rng = np.random.default_rng([self.seed, row])
        condition, channels, count = draw_layout(rng, self.max_recordings)
        source, voice, origin = self._source(rng, channels, wide=condition in ("audience", "clean", "alone"))
        recipe: dict[str, Any] = {"condition": condition, "channels": channels, "source": origin}
        place = None
        if condition in WITH_PLACE:
            place = draw_place(rng, self.material, 2 * count)
            recipe["place"] = place.recipe
        snr_db = float(rng.uniform(-3, 20)) if condition in WITH_AUDIENCE else math.nan
        takes = [
            self._take(rng, source, place, take, channels if take == 0 else int(rng.integers(1, 3)), condition, snr_db)
            for take in range(count)
        ]
        recording, target, dry, recorder = takes[0]
        recipe |= {"snr_db": None if math.isnan(snr_db) else snr_db, "recorder": recorder}
        recipe["other_recorders"] = [take[3] for take in takes[1:]]
        labels = {
            "rt60_s": place.rt60_s if place else math.nan,
            "drr_db": place.drr_db if place else NO_ROOM_DRR_DB,
            "snr_db": snr_db,
            "bandwidth_hz": min(recorder.get("limit_hz", 20000.0), 20000.0),
            "voice": voice if condition != "alone" else math.nan,
        }
        return Scene([take[0] for take in takes], target, dry, labels, recipe)

    def _source(self, rng: np.random.Generator, channels: int, wide: bool) -> tuple[np.ndarray, float, dict[str, Any]]:
        """Draws what the loudspeakers play: (sources, samples with the lead-in), whether somebody sings, the recipe.

        A third has a voice: a song, or somebody who sings over music.
        """
        samples = self.samples + self.lead_in
        stereo = channels == 2 and (wide or rng.random() < 0.35)
        kind = str(rng.choice(["music", "song", "singing"], p=[0.66, 0.14, 0.20]))
        mix, origin = self._excerpt(rng, "song" if kind == "song" else "music", samples)
        recipe: dict[str, Any] = {"kind": kind, "origin": origin, "stereo": stereo}
        if kind == "singing":
            voice, recipe["voice"] = self._excerpt(rng, "singing", samples)
            voice = voice.mean(0, keepdims=True)
            loud = np.sqrt(np.mean(np.square(mix)) / (np.mean(np.square(voice)) + 1e-9))
            mix = mix + voice * np.float32(loud * 10 ** (rng.uniform(-6, 8) / 20))
        mix = mix if stereo else mix.mean(0, keepdims=True)
        curve_db = smooth_curve_db(rng, 3.5)
        if self.material.curves and rng.random() < MEASURED_CURVE:
            loudspeaker_db, recipe["loudspeaker"] = measured_curve_db(rng, self.material, "cabinet")
            curve_db += loudspeaker_db
        size = fft.next_fast_len(samples, real=True)
        gain = gain_at(fft.rfftfreq(size, 1 / SAMPLE_RATE), curve_db)
        mix = fft.irfft(fft.rfft(mix, size, axis=-1) * gain, size, axis=-1)[:, :samples]
        return mix / (np.sqrt(np.mean(np.square(mix))) + 1e-9), float(kind != "music"), recipe

    def _excerpt(self, rng: np.random.Generator, kind: str, samples: int) -> tuple[np.ndarray, str]:
        """Draws a loud enough piece of a sound of this kind, half of the time at another speed: (2, samples)."""
        sounds = self.material.by_kind[kind]
        speed = float(rng.uniform(0.85, 1.15)) if rng.random() < 0.5 else 1.0
        for _ in range(5):
            weights = np.sqrt([sound.samples for sound in sounds])  # long tracks count more, but not as much
            sound = sounds[int(rng.choice(len(sounds), p=weights / weights.sum()))]
            length = min(sound.samples, int(samples * speed) + 8)
            start = int(rng.integers(sound.samples - length + 1))
            waveform = sound.read(start, start + length)
            if np.mean(np.square(waveform)) > 1e-5:
                break
        if speed != 1.0:
            waveform = soxr.resample(waveform.T, SAMPLE_RATE * speed, SAMPLE_RATE, quality="MQ").T
        repeated = np.resize(waveform[0], samples), np.resize(waveform[-1], samples)
        return np.stack(repeated), sound.origin

    def _take(
        self,
        rng: np.random.Generator,
        source: np.ndarray,
        place: Place | None,
        take: int,
        channels: int,
        condition: str,
        snr_db: float,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Renders one recording: it, its target and the dry source (channels, samples), and its recorder."""
        recorder = draw_recorder(rng, condition == "phone") if condition != "clean" or rng.random() < 0.5 else None
        size = fft.next_fast_len(source.shape[1] + (place.responses.shape[1] if place else 0), real=True)
        frequencies = fft.rfftfreq(size, 1 / SAMPLE_RATE)
        gain = None if recorder is None else self._linear_part(rng, recorder, frequencies)
        recorder = recorder or {}
        spectrum = fft.rfft(source, size, axis=-1)
        if gain is not None:
            spectrum *= gain
        if take:
            recorder["offset_s"] = self._offset(rng)
            spectrum *= np.exp(-2j * np.pi * recorder["offset_s"] * frequencies).astype(np.complex64)
        transfer = None
        if place:
            responses = place.responses[2 * take : 2 * take + channels]
            # Both loudspeakers are heard by the pair where they play different things.
            across = place.across if take == 0 and len(spectrum) == channels == 2 else None
            transfer = fft.rfft(responses, size, axis=-1)
            music = self._heard(spectrum, transfer, across, size)
            early = fft.rfft(early_part(responses), size, axis=-1)
            target = self._heard(spectrum, early, None if across is None else early_part(across), size)
        else:
            music = target = self._cut(fft.irfft(spectrum, size, axis=-1))
        sources = source if len(source) == channels else np.broadcast_to(source.mean(0), (channels, source.shape[1]))
        dry = self._cut(sources)
        if condition == "alone":
            music = np.zeros_like(music)
        sound = music
        if condition in (*WITH_AUDIENCE, "alone"):
            crowd, audience = draw_audience(rng, self.material, channels, self.samples)
            recorder |= audience
            crowd = self._in_the_place(rng, crowd, transfer, gain, size)
            level = np.sqrt(np.mean(np.square(music)) / (np.mean(np.square(crowd)) + 1e-12)) or 1.0
            own_db = 0.0 if condition == "alone" else snr_db + (rng.normal(0, 3) if take else 0.0)
            sound = music + np.float32(level * 10 ** (-own_db / 20)) * crowd
        recording, automatic = recorded(sound, recorder, rng)
        if automatic is not None:
            target = target * automatic
        if condition == "alone":
            target = recording
        if take:
            recording, recorder["drift_ppm"] = self._drifted(rng, recording)
        return recording, target.astype(np.float32), dry, recorder

    def _linear_part(self, rng: np.random.Generator, recorder: dict[str, Any], frequencies: np.ndarray) -> np.ndarray:
        """The recorder's gain (bins), of a measured one in part; notes in `recorder` which."""
        curve_db = recorder_curve_db(recorder, rng)
        if self.material.curves and rng.random() < MEASURED_CURVE:
            measured_db, recorder["measured"] = measured_curve_db(rng, self.material, "microphone")
            curve_db += measured_db
        return gain_at(frequencies, curve_db)

    def _heard(self, spectrum: np.ndarray, transfer: np.ndarray, across: np.ndarray | None, size: int) -> np.ndarray:
        """The sources (sources, bins) through the transfer functions (channels, bins): (channels, samples).

        As many sources as microphones: each plays to its own, and to the other by the responses `across`, where these
        are given. Else all of them play the same.
        """
        if len(spectrum) != len(transfer):
            spectrum = spectrum.mean(0, keepdims=True)
        heard = spectrum * transfer
        if across is not None:
            heard += spectrum[::-1] * fft.rfft(across, size, axis=-1)
        return self._cut(fft.irfft(heard, size, axis=-1))

    def _in_the_place(
        self,
        rng: np.random.Generator,
        crowd: np.ndarray,
        transfer: np.ndarray | None,
        gain: np.ndarray | None,
        size: int,
    ) -> np.ndarray:
        """The audience (channels, samples) through its own equaliser, the recorder's and, in part, the room."""
        frequencies = fft.rfftfreq(size, 1 / SAMPLE_RATE)
        spectrum = fft.rfft(crowd, size, axis=-1) * gain_at(frequencies, smooth_curve_db(rng, 4.0))
        if gain is not None:
            spectrum *= gain
        if transfer is not None and rng.random() < 0.6:
            level = np.sqrt(np.mean(np.square(np.abs(transfer)), axis=-1, keepdims=True))
            spectrum *= 1 + np.float32(10 ** (rng.uniform(-10, 5) / 20)) * transfer / level
        return fft.irfft(spectrum, size, axis=-1)[:, : self.samples]

    def _cut(self, waveform: np.ndarray) -> np.ndarray:
        return waveform[:, self.lead_in : self.lead_in + self.samples].astype(np.float32)

    def _drifted(self, rng: np.random.Generator, recording: np.ndarray) -> tuple[np.ndarray, float]:
        """The recording by a clock with the drift that an alignment leaves over, and how much it is in ppm."""
        drift_ppm = float(rng.uniform(-1, 1) * (MAX_DRIFT_PPM if rng.random() < 0.2 else 1.0))
        drifted = soxr.resample(recording.T, SAMPLE_RATE, SAMPLE_RATE * (1 + 1e-6 * drift_ppm), quality="HQ").T
        missing = max(self.samples - drifted.shape[1], 0)
        return np.pad(drifted, ((0, 0), (0, missing)), mode="edge")[:, : self.samples].copy(), drift_ppm

    @staticmethod
    def _offset(rng: np.random.Generator) -> float:
        """What an alignment leaves over, in seconds: mostly 0.2 ms, seldom 10 ms."""
        return float(rng.uniform(-1, 1) * (0.01 if rng.random() < 0.2 else 2e-4))


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes scenes to listen to, see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--material", type=Path, default=Path("data/material"))
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--first-row", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    options = parser.parse_args(arguments)
    try:
        scenes = SceneRenderer(Material.open(options.material), 4, options.seed, SECONDS)
    except ValueError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    options.out.mkdir(parents=True, exist_ok=True)
    for row in tqdm(range(options.first_row, options.first_row + options.count), desc="scenes"):
        scene = scenes(row)
        sounds = {f"recording{number}": each for number, each in enumerate(scene.recordings)}
        sounds |= {"target": scene.target, "dry": scene.dry}
        peak = max(float(np.abs(each).max()) for each in sounds.values()) + 1e-9
        for name, waveform in sounds.items():
            soundfile.write(options.out / f"{row:05d}-{name}.flac", (0.9 / peak * waveform).T, SAMPLE_RATE)
        labels = {name: None if math.isnan(value) else value for name, value in scene.labels.items()}
        recipe = json.dumps({"labels": labels, **scene.recipe}, indent=1)
        (options.out / f"{row:05d}.json").write_text(recipe, encoding="utf-8")


if __name__ == "__main__":
    main()
