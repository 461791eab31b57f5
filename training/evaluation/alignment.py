"""Alignment put to the test: recordings of one concert must be aligned, those of another performance refused.

    python -m training.evaluation.alignment --material data/material --out build/alignment --cases 100 --impostors 100
    python -m training.evaluation.alignment --hours 3         # the time and memory that two long recordings take

A case is a concert of prepared music in a place of the training's, heard by two to four recorders with their own seat,
audience, device, clock, polarity, start and stop. The truth is the arrival of the direct sound, sample 0 of every
response. An impostor pair is two such recordings of different performances: of different pieces, or of one piece
played faster or slower, transposed, or from the same score by other hands.

One JSON file per case under `--out`: the same command goes on where it was stopped. Ends with a table in Markdown
(`alignment.md`), with the figures that are aimed at.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
from scipy.signal import oaconvolve
from tqdm.auto import tqdm

from pipeline_aud2studio.alignment import align
from pipeline_aud2studio.files import atomic_path
from training.data.audience import KINDS, draw_audience
from training.data.material import SAMPLE_RATE, Material, Sound
from training.data.recorder import draw_recorder, gain_at, recorded, recorder_curve_db
from training.data.responses import draw_place

from .bench import peak_rss_mb, write_recording

GOOD_MS, EXACT_MS = 0.1, 0.02
FILE_RATES = (44100, 48000)
REPLAYS = ("other tempo", "transposed", "same score")
MAX_RECORDERS = 4
BLOCK = 2**21
PAUSE_S = (2.0, 10.0)
EQUALISER_TAPS = 2**15 + 1
CHORDS = ((0, 4, 7), (5, 9, 12), (7, 11, 14), (9, 12, 16), (2, 5, 9))  # I, IV, V, vi, ii over the key's root


@dataclass(frozen=True)
class Take:
    """One recorder.

    Attributes:
        start_s: When it is started on the concert's clock.
        drift_ppm: How much faster than the concert's its clock runs.
        sample_rate: Of its file, in Hz.
        device: As :func:`.recorder.draw_recorder` draws it.
    """

    start_s: float
    seconds: float
    drift_ppm: float
    polarity: int
    snr_db: float
    sample_rate: int
    device: dict[str, Any]


def open_material(material: Material) -> Material:
    """Checks that there is enough of everything: two pieces, and for every recorder sounds of an audience of its own.

    Raises:
        ValueError: If there is not.
    """
    for kind, least in (("music", 2), ("speech", MAX_RECORDERS), ("applause", MAX_RECORDERS)):
        if len(material.by_kind.get(kind, [])) < least:
            raise ValueError(f"{material.folder} has fewer than {least} sounds of the kind {kind!r}")
    return material


def read_track(sound: Sound) -> np.ndarray:
    """Reads a piece as both loudspeakers play it, the mean of its channels: (samples,) of unit RMS."""
    mix = sound.read(0, sound.samples).mean(axis=0)
    return mix / (np.sqrt(np.mean(np.square(mix))) + 1e-9)


def programme(rng: np.random.Generator, material: Material, seconds: float) -> np.ndarray:
    """Makes a concert, pieces in random order with pauses: (samples,) of `seconds`."""
    pieces: list[np.ndarray] = []
    music = material.by_kind["music"]
    missing = round(seconds * SAMPLE_RATE)
    while missing > 0:
        for index in rng.permutation(len(music)):
            pause = np.zeros(round(rng.uniform(*PAUSE_S) * SAMPLE_RATE), dtype=np.float32)
            pieces += [read_track(music[int(index)]), pause]
            missing -= len(pieces[-2]) + len(pause)
            if missing <= 0:
                break
    return np.concatenate(pieces)[: round(seconds * SAMPLE_RATE)]


def draw_take(rng: np.random.Generator, start_s: float, seconds: float, drift_ppm: float) -> Take:
    """Draws a recorder; every other one is a phone."""
    return Take(
        start_s=start_s,
        seconds=seconds,
        drift_ppm=drift_ppm,
        polarity=int(rng.choice((-1, 1))),
        snr_db=float(rng.uniform(5.0, 20.0)),
        sample_rate=int(rng.choice(FILE_RATES)),
        device=draw_recorder(rng, is_phone=bool(rng.random() < 0.5)),
    )


def record(
    rng: np.random.Generator, material: Material, concert: np.ndarray, responses: np.ndarray, take: Take
) -> np.ndarray:
    """Renders what the recorder's file holds: (channels, samples) at its sample rate.

    Args:
        concert: (samples,) what the loudspeakers play, from the concert's time 0 on.
        responses: (channels, samples) of the place, sample 0 is the direct sound.
    """
    start = round(take.start_s * SAMPLE_RATE)
    heard = convolved(concert[None, start : start + round(take.seconds * SAMPLE_RATE)], responses)
    crowd, _ = draw_audience(rng, material, *heard.shape)
    heard += crowd * np.float32(np.sqrt(np.mean(np.square(heard))) * 10 ** (-take.snr_db / 20))
    curve_db = recorder_curve_db(take.device, rng)
    half = EQUALISER_TAPS // 2
    response = np.fft.irfft(gain_at(np.fft.rfftfreq(2 * half, 1 / SAMPLE_RATE), curve_db))
    taps = np.pad(np.roll(response, half), (0, 1)) * np.hanning(EQUALISER_TAPS)
    equalised = convolved(np.pad(heard, ((0, 0), (0, half))), taps[None])[:, half:]
    recording, _ = recorded(equalised, take.device, rng)
    rate = take.sample_rate * (1 + take.drift_ppm * 1e-6)
    recording = soxr.resample(recording.T, SAMPLE_RATE, rate, quality="VHQ").T
    return recording * (take.polarity * 0.5 / np.abs(recording).max())


def convolved(waveform: np.ndarray, responses: np.ndarray) -> np.ndarray:
    """Convolves (1 or channels, samples) with (1 or channels, taps), in blocks, as concerts are long; float32."""
    out = np.zeros((max(len(waveform), len(responses)), waveform.shape[1]), dtype=np.float32)
    for start in range(0, waveform.shape[1], BLOCK):
        piece = oaconvolve(waveform[:, start : start + BLOCK], responses, axes=-1)
        out[:, start : start + piece.shape[-1]] += piece[:, : waveform.shape[1] - start]
    return out


def crowds_apart(material: Material, count: int) -> list[Material]:
    """Gives each of several recorders an audience of its own.

    A sound that two of them drew would be a match of its own, at another lag than the music's.
    """
    heard = {kind: sounds for kind, sounds in material.by_kind.items() if kind in KINDS or kind == "speech"}
    return [
        replace(material, sounds=tuple(sound for sounds in heard.values() for sound in sounds[number::count]))
        for number in range(count)
    ]


def make_case(
    seed: int, material: Material, minutes: tuple[float, float], max_offset_min: float, max_drift_ppm: float
) -> tuple[list[Take], list[np.ndarray], dict[str, Any]]:
    """Makes a concert heard by two to four recorders. The first one's clock is the concert's.

    Returns:
        The takes, their files' samples (channels, samples), and what else describes the case.
    """
    rng = np.random.default_rng([seed, 1])
    lengths_s = 60 * rng.uniform(*minutes, rng.integers(2, MAX_RECORDERS + 1))
    # Two minutes at least are shared with the first recording, or half of what the shortest has.
    shared_s = min(120.0, 0.5 * float(lengths_s.min()))
    offsets_s = [0.0] + [
        float(
            np.clip(rng.uniform(-60 * max_offset_min, 60 * max_offset_min), shared_s - length, lengths_s[0] - shared_s)
        )
        for length in lengths_s[1:]
    ]
    origin_s = min(offsets_s)
    drifts = [0.0, *rng.uniform(-max_drift_ppm, max_drift_ppm, len(lengths_s) - 1).tolist()]
    takes = [
        draw_take(rng, offset - origin_s, float(length), drift)
        for offset, length, drift in zip(offsets_s, lengths_s, drifts, strict=True)
    ]
    place = draw_place(rng, material, 2 * len(takes))
    concert = programme(rng, material, max(take.start_s + take.seconds for take in takes) + 1.0)
    files = []
    for number, (take, crowd) in enumerate(zip(takes, crowds_apart(material, len(takes)), strict=True)):
        seats = slice(2 * number, 2 * number + int(rng.integers(1, 3)))
        own_rng = np.random.default_rng([seed, 2, number])
        files.append(record(own_rng, crowd, concert, place.responses[seats], take))
    return takes, files, {"place": place.recipe, "rt60_s": place.rt60_s, "drr_db": place.drr_db}


def make_impostors(
    seed: int, material: Material, minutes: tuple[float, float]
) -> tuple[list[np.ndarray], list[int], dict[str, Any]]:
    """Makes recordings of two different performances; of one piece for odd seeds, of two for even ones.

    Returns:
        Both files' samples (channels, samples), their sample rates, and what describes the pair.
    """
    rng = np.random.default_rng([seed, 3])
    seconds = 60 * float(rng.uniform(*minutes))
    if seed % 2 == 0:
        kind = "other piece"
        music = material.by_kind["music"]
        concerts = [read_track(music[int(index)]) for index in rng.permutation(len(music))[:2]]
    else:
        kind = REPLAYS[seed // 2 % len(REPLAYS)]
        concerts = replay(rng, material, kind, seconds)
    # On tour, or two nights in one hall.
    places = [draw_place(rng, material, 4)]
    places.append(places[0] if rng.random() < 0.5 else draw_place(rng, material, 4))
    files, rates = [], []
    nights = zip(concerts, places, crowds_apart(material, len(concerts)), strict=True)
    for number, (concert, place, crowd) in enumerate(nights):
        take = draw_take(rng, 0.0, min(seconds, len(concert) / SAMPLE_RATE), float(rng.uniform(-150, 150)))
        responses = place.responses[2 * number : 2 * number + int(rng.integers(1, 3))]
        files.append(record(np.random.default_rng([seed, 4, number]), crowd, concert, responses, take))
        rates.append(take.sample_rate)
    return files, rates, {"played": kind, "same_hall": places[0] is places[1]}


def replay(rng: np.random.Generator, material: Material, kind: str, seconds: float) -> list[np.ndarray]:
    """Makes two performances of one piece, (samples,) each."""
    if kind == "same score":
        score_seed = int(rng.integers(2**31))
        return [perform(score_seed, int(rng.integers(2**31)), seconds) for _ in range(2)]
    from librosa.effects import pitch_shift, time_stretch

    music = material.by_kind["music"]
    piece = read_track(music[int(rng.integers(len(music)))])[: round(seconds * SAMPLE_RATE)]
    if kind == "other tempo":
        rate = 1 + float(rng.choice((-1, 1)) * rng.uniform(0.005, 0.08))
        return [piece, time_stretch(piece, rate=rate)]
    steps = float(rng.choice((-1, 1)) * rng.integers(1, 4))
    return [piece, pitch_shift(piece, sr=SAMPLE_RATE, n_steps=steps)]


# --- A band that plays from a score ----------------------------------------------------------------------------------
#
# What tells two nights of one song apart is nothing but the hands. The instruments here are fixed samples, the hardest
# case for an aligner: only time and touch of every note differ between performances.


@dataclass(frozen=True)
class Note:
    """A note from `beat` on, `beats` long; `pitch` is MIDI's number, for drums the number of the drum."""

    instrument: str
    beat: float
    beats: float
    pitch: int
    loudness: float


def write_score(seed: int, num_beats: int) -> list[Note]:
    """Writes chords, bass, melody and drums; four beats a bar, eight bars that return with another melody."""
    rng = np.random.default_rng(seed)
    root = int(rng.integers(45, 57))
    bars = rng.integers(len(CHORDS), size=8)
    notes = []
    for beat in range(num_beats):
        chord = CHORDS[bars[beat // 4 % 8]]
        if beat % 4 == 0:
            notes += [Note("chord", beat, 4, root + 12 + step, 0.25) for step in chord]
        notes.append(Note("bass", beat, 1, root - 12 + chord[0] + (12 if rng.random() < 0.2 else 0), 0.6))
        for half in (0.0, 0.5):
            if rng.random() < 0.6:
                notes.append(Note("melody", beat + half, 0.5, root + 24 + int(rng.choice(chord)), 0.4))
            notes.append(Note("drum", beat + half, 0.25, 2, 0.15))
        notes.append(Note("drum", beat, 0.5, beat % 2, 0.7))
    return notes


def note_samples(note: Note, seconds: float) -> np.ndarray:
    """Plays one note, always the same for the same pitch and length: (samples,)."""
    time = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    if note.instrument == "drum":
        decay_s, centre_hz = ((0.12, 60.0), (0.08, 190.0), (0.03, 0.0))[note.pitch]
        noise = np.random.default_rng(note.pitch).standard_normal(len(time))
        tone = np.sin(2 * np.pi * centre_hz * time) if centre_hz else 0.0
        return (tone + (0.1, 0.5, 0.7)[note.pitch] * noise) * np.exp(-time / decay_s)
    frequency = 440.0 * 2 ** ((note.pitch - 69) / 12)
    harmonics = np.arange(1, min(20, int(0.4 * SAMPLE_RATE / frequency)) + 1)
    brightness = {"chord": 1.6, "bass": 1.2, "melody": 1.0}[note.instrument]
    decay_s = {"chord": 1.5, "bass": 0.6, "melody": 0.4}[note.instrument]
    partials = np.sin(2 * np.pi * frequency * harmonics[:, None] * time) * np.exp(
        -time * np.sqrt(harmonics)[:, None] / decay_s
    )
    release = np.minimum(1.0, (seconds - time) / 0.02)
    return (harmonics**-brightness) @ partials * np.minimum(1.0, time / 0.004) * release


def perform(score_seed: int, performance_seed: int, seconds: float) -> np.ndarray:
    """Plays a score on one night: (samples,) of about `seconds` and unit RMS.

    The tempo differs by 2 % from night to night and wanders by 1 %, every note comes early or late by 12 ms (standard
    deviations) and is louder or softer by 2 dB.
    """
    rng = np.random.default_rng(performance_seed)
    beats_per_s = np.random.default_rng(score_seed).uniform(1.4, 2.4)
    num_beats = int(seconds * beats_per_s)
    notes = write_score(score_seed, num_beats)
    tempo = beats_per_s * (
        1 + 0.02 * rng.standard_normal() + 0.01 * np.cumsum(rng.standard_normal(num_beats + 8)) / np.sqrt(num_beats)
    )
    beat_times = np.concatenate([[0.1], 0.1 + np.cumsum(1 / tempo)])
    out = np.zeros(int((beat_times[-1] + 1.0) * SAMPLE_RATE), dtype=np.float32)
    made: dict[tuple[str, int, float], np.ndarray] = {}
    for note in notes:
        key = (note.instrument, note.pitch, note.beats)
        if key not in made:
            made[key] = note_samples(note, note.beats / beats_per_s + 0.1).astype(np.float32)
        at_s = float(np.interp(note.beat, np.arange(len(beat_times)), beat_times)) + 0.012 * rng.standard_normal()
        at = max(0, round(at_s * SAMPLE_RATE))
        samples = made[key][: len(out) - at]
        out[at : at + len(samples)] += note.loudness * 10 ** (rng.normal(0.0, 2.0) / 20) * samples
    return out / np.sqrt(np.mean(np.square(out)))


# --- The judgement ---------------------------------------------------------------------------------------------------


def measure_long(seconds: float, temporary: Path | None) -> str:
    """Measures time and peak memory of this process for two stereo files at 48 kHz, in one line."""
    with tempfile.TemporaryDirectory(dir=temporary) as folder:
        paths = [Path(folder) / f"{number}.wav" for number in range(2)]
        for number, path in enumerate(paths):
            write_recording(path, seconds, take=number, sample_rate=48000)
        before_mb = peak_rss_mb()
        started, processor = time.perf_counter(), time.process_time()
        result = align(paths, reference=0)
        taken_s, processor_s = time.perf_counter() - started, time.process_time() - processor
        for _ in result.blocks(1):
            pass
        placed_s = time.process_time() - processor - processor_s
    found = result.alignments[1]
    return (
        f"two recordings of {seconds / 3600:g} h: aligned in {taken_s:.0f} s, {processor_s:.0f} s of processor time; "
        f"put on one clock in another {placed_s:.0f} s of it; peak memory {peak_rss_mb():.0f} MB, "
        f"{before_mb:.0f} MB of it before; offset {found.offset_s:.6f} s, drift {found.drift_ppm:.4f} ppm"
    )


def save(folder: Path, waveforms: Sequence[np.ndarray], rates: Sequence[int]) -> list[Path]:
    """Writes 16-bit WAV files of (channels, samples) each."""
    paths = [folder / f"recording{number}.wav" for number in range(len(waveforms))]
    for path, waveform, rate in zip(paths, waveforms, rates, strict=True):
        soundfile.write(path, waveform.T, rate, subtype="PCM_16")
    return paths


def estimates(files: Sequence[Path]) -> list[dict[str, Any]]:
    """Aligns all files with the first: lines, polarity and confidence of each other one, and what it took."""
    processor = time.process_time()
    try:
        # Nothing is refused here, so that the line of a refused recording is known as well.
        alignments = align(files, SAMPLE_RATE, reference=0, force=True).alignments[1:]
    except ValueError as error:
        return [{"accepted": False, "confidence": 0.0, "segments": [], "reason": str(error)} for _ in files[1:]]
    processor_s = (time.process_time() - processor) / len(alignments)
    return [
        {
            "accepted": not alignment.reason,
            "confidence": alignment.confidence,
            "direct_height": alignment.direct_height,
            "polarity": alignment.polarity,
            "segments": [vars(segment) for segment in alignment.segments],
            "processor_s": processor_s,
        }
        for alignment in alignments
    ]


def score(estimates: Sequence[dict[str, Any]], takes: Sequence[Take]) -> list[dict[str, Any]]:
    """Compares every recording's estimate with the truth, over the time that it shares with the first."""
    rows = []
    first = takes[0]
    for take, estimate in zip(takes[1:], estimates, strict=True):
        # The truth: an event at time t of the concert, which the first recording's clock shares but for its start.
        rate = 1 + take.drift_ppm * 1e-6
        begin = max(take.start_s, first.start_s)
        end = min(take.start_s + take.seconds, first.start_s + first.seconds)
        events = np.linspace(begin, end, 50)
        in_recording, in_reference = (events - take.start_s) * rate, events - first.start_s
        row = {key: value for key, value in estimate.items() if key != "segments"}
        if estimate["segments"]:
            segments = estimate["segments"]
            edges = [segment["end_s"] for segment in segments[:-1]]
            holding = [segments[index] for index in np.searchsorted(edges, in_recording)]
            mapped = [
                time_s / (1 + segment["drift_ppm"] * 1e-6) + segment["offset_s"]
                for time_s, segment in zip(in_recording, holding, strict=True)
            ]
            errors_ms = 1e3 * (np.array(mapped) - in_reference)
            row |= {"max_error_ms": float(np.abs(errors_ms).max()), "mean_error_ms": float(errors_ms.mean())}
            row["num_segments"] = len(segments)
            row["drift_error_ppm"] = float(segments[0]["drift_ppm"] - take.drift_ppm)
        if "polarity" in estimate:
            row["polarity_right"] = estimate["polarity"] == take.polarity * first.polarity
        rows.append(row | {"shared_s": float(end - begin)})
    return rows


def tabulate(cases: Sequence[dict[str, Any]], impostors: Sequence[dict[str, Any]]) -> str:
    """Tabulates the figures beside those that are aimed at, as Markdown."""
    recordings = [row for case in cases for row in case["results"]]
    accepted = [row for row in recordings if row["accepted"]]
    errors = np.array([row["max_error_ms"] for row in accepted])
    quantiles = np.quantile(errors, [0.5, 0.95]) if len(errors) else (np.nan, np.nan)
    rows = [
        ("accepted, %", ">= 95", percentage([row["accepted"] for row in recordings])),
        (
            "accepted falsely, %",
            "<= 1",
            percentage([row["accepted"] for pair in impostors for row in pair["results"]]),
        ),
        (f"error <= {GOOD_MS} ms, %", ">= 95", percentage(errors <= GOOD_MS)),
        (f"error <= {EXACT_MS} ms, %", ">= 50", percentage(errors <= EXACT_MS)),
        ("median error, ms", "", f"{quantiles[0]:.4f}"),
        ("95th percentile, ms", "", f"{quantiles[1]:.3f}"),
        ("polarity right, %", "", percentage([row["polarity_right"] for row in accepted])),
        ("processor time, s", "", f"{np.mean([row.get('processor_s', 0.0) for row in recordings]):.1f}"),
    ]
    return "\n".join(
        [
            f"{len(recordings)} recordings in {len(cases)} cases, {len(impostors)} pairs of different performances. "
            "The error is the largest over the shared time, of the recordings accepted.",
            "",
            "| | aimed at | found |",
            "|---|---|---|",
            *(f"| {name} | {aim} | {found} |" for name, aim, found in rows),
            "",
        ]
    )


def percentage(values: Sequence[bool] | np.ndarray) -> str:
    return f"{100 * np.mean(values):.1f}" if len(values) else ""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the cases, see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--material", type=Path, default=Path("data/material"), help="what training.data.material prepared")
    add("--out", type=Path, default=Path("build/alignment"), help="results and table")
    add("--cases", type=int, default=100)
    add("--impostors", type=int, default=100, help="pairs of different performances")
    add("--minutes", type=float, nargs=2, default=(12.0, 25.0), metavar=("LOW", "HIGH"))
    add("--impostor-minutes", type=float, nargs=2, default=(4.0, 8.0), metavar=("LOW", "HIGH"))
    add("--max-offset-min", type=float, default=10.0, help="between the starts, in minutes")
    add("--max-drift-ppm", type=float, default=300.0)
    add("--seed", type=int, default=0, help="first case's seed")
    add("--temporary", type=Path, help="folder for the recordings of the case at hand (default: system's)")
    add("--hours", type=float, help="measure time and memory with two recordings of this length only")
    args = parser.parse_args(arguments)
    if args.hours:
        print(measure_long(3600 * args.hours, args.temporary))
        return
    material = open_material(Material.open(args.material))

    def case(seed: int, folder: Path) -> dict[str, Any]:
        takes, waveforms, about = make_case(seed, material, args.minutes, args.max_offset_min, args.max_drift_ppm)
        files = save(folder, waveforms, [take.sample_rate for take in takes])
        return {**about, "takes": [vars(take) for take in takes], "results": score(estimates(files), takes)}

    def impostor(seed: int, folder: Path) -> dict[str, Any]:
        waveforms, rates, about = make_impostors(seed, material, args.impostor_minutes)
        return {**about, "results": estimates(save(folder, waveforms, rates))}

    args.out.mkdir(parents=True, exist_ok=True)
    results: dict[str, list[dict[str, Any]]] = {"case": [], "impostor": []}
    for kind, make, count in (("case", case, args.cases), ("impostor", impostor, args.impostors)):
        for seed in tqdm(range(args.seed, args.seed + count), desc=kind, unit="file"):
            path = args.out / f"{kind}-{seed:04d}.json"
            if not path.exists():
                with tempfile.TemporaryDirectory(dir=args.temporary) as folder:
                    result = make(seed, Path(folder))
                with atomic_path(path) as temporary:
                    temporary.write_text(json.dumps(result, indent=1), encoding="utf-8")
            results[kind].append(json.loads(path.read_text(encoding="utf-8")))
    table = tabulate(results["case"], results["impostor"])
    (args.out / "alignment.md").write_text(table, encoding="utf-8")
    print(table)


if __name__ == "__main__":
    main()
