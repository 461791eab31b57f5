"""A bank of crowd and noise beds, synthesised: what an audience and a recorder add to a concert.

    python -m training.crowd --out data/noise --count 250 --seed 0 --measured FOLDER

Every bed is 10 to 20 s of stereo, FLAC at 44.1 kHz, and the same for the same seed and number. Recorded crowds from a
folder (with an index.json or not) join them. `index.jsonl` names kind, length, licence and split of each.
"""

import argparse
import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
from scipy.signal import lfilter
from tqdm.auto import tqdm

from training.corpora import is_audio
from training.jsonl import merge_rows
from training.measured import index_entries
from training.nuisances import coloured_noise, filtered, handling, hiss, hum, room_around, slow_curve, wind
from training.public import CORPORA, fetch_corpus

SAMPLE_RATE = 44100
LEVEL_DB = -23.0  # RMS of a bed relative to full scale
PEAK = 0.98
# Formants of vowels in Hz, adult male (Peterson and Barney, JASA 24, 1952): i, e, ae, a, o, u, er.
VOWELS = np.array(
    [
        (270, 2290, 3010),
        (530, 1840, 2480),
        (660, 1720, 2410),
        (730, 1090, 2440),
        (570, 840, 2410),
        (300, 870, 2240),
        (490, 1350, 1690),
    ],
    dtype=float,
)
FORMANT_WIDTHS_HZ = (80.0, 110.0, 160.0, 250.0)


def resonate(source: np.ndarray, centre_hz: float, width_hz: float) -> np.ndarray:
    """A resonance with zeros at 0 Hz and half the sample rate over a source (samples,), of roughly unit peak gain."""
    radius = np.exp(-np.pi * width_hz / SAMPLE_RATE)
    poles = [1.0, -2 * radius * np.cos(2 * np.pi * centre_hz / SAMPLE_RATE), radius**2]
    return np.asarray((1 - radius) * lfilter([1.0, 0.0, -1.0], poles, source))


def place(rng: np.random.Generator, bed: np.ndarray, source: np.ndarray, start: int, distance_m: float) -> None:
    """Add a mono source to a bed (2, samples) from a random direction: 1/r level, up to 0.25 ms between the ears."""
    side = rng.uniform(-1.0, 1.0)
    for channel, sign in enumerate((-1.0, 1.0)):
        at = start + round(max(0.0, sign * side) * 0.00025 * SAMPLE_RATE)
        piece = bed[channel, at : at + len(source)]
        piece += source[: len(piece)] * (1 + 0.4 * sign * side) / distance_m


def crowd_distances(rng: np.random.Generator, count: int) -> np.ndarray:
    """Distances of `count` people spread evenly over a floor around the microphone, (count,) in m, 1.5 m or more."""
    return 1.5 * np.sqrt(1 + rng.uniform(0.0, 1.0, count) * count / 4)


# --- Applause --------------------------------------------------------------------------------------------------------


def clap(rng: np.random.Generator, centre_hz: float, width_hz: float) -> np.ndarray:
    """One pair of hands: a burst of noise through the resonance of the cavity between them, (samples,)."""
    time = np.arange(round(0.04 * SAMPLE_RATE)) / SAMPLE_RATE
    burst = rng.standard_normal(len(time)) * np.exp(-time / rng.uniform(0.002, 0.006)) * np.minimum(1, time / 0.0003)
    ringing = resonate(burst, centre_hz, width_hz)
    return ringing / np.abs(ringing).max() + 0.15 * burst


def clap_times(rng: np.random.Generator, rate_hz: float, seconds: float) -> np.ndarray:
    """When one person claps, in s: a rate that slows down, 8 % of jitter, from a random start to a random end."""
    start, end = np.sort(rng.uniform(-0.5, 1.5, 2)) * seconds
    count = int(seconds * rate_hz * 1.5) + 4
    intervals = (1 + 0.08 * rng.standard_normal(count)) * np.linspace(1.0, rng.uniform(0.9, 1.2), count) / rate_hz
    times = np.cumsum(np.maximum(intervals, 0.08)) - rng.uniform(0.0, 1.0) / rate_hz
    return times[(times >= max(0.0, start)) & (times < min(seconds, end))]


def applause(rng: np.random.Generator, samples: int) -> np.ndarray:
    """10 to 400 people, each a train of claps of their own hands and rate (2.5 to 5.5 Hz), seldom in step."""
    seconds = samples / SAMPLE_RATE
    bed = np.zeros((2, samples))
    people = int(np.exp(rng.uniform(np.log(10), np.log(400))))
    in_step = rng.random() < 0.15
    beat_hz = rng.uniform(1.8, 3.0)
    for distance_m in crowd_distances(rng, people):
        rate_hz = beat_hz if in_step else float(np.clip(rng.normal(4.0, 0.7), 2.5, 5.5))
        if in_step:
            beats = np.arange(0.0, seconds, 1 / beat_hz)
            times = np.abs(beats + rng.normal(0.0, 0.03) + 0.02 * rng.standard_normal(len(beats)))
        else:
            times = clap_times(rng, rate_hz, seconds)
        centre_hz, width_hz = np.exp(rng.uniform(np.log(500), np.log(2500))), rng.uniform(250.0, 1200.0)
        hands = [clap(rng, centre_hz * rng.uniform(0.93, 1.07), width_hz) for _ in range(4)]
        side_state = int(rng.integers(2**31))
        for number, time_s in enumerate(times):
            loud = 10 ** (rng.normal(0.0, 2.0) / 20)
            # The same seed for every clap of a person keeps them in their place.
            place(
                np.random.default_rng(side_state), bed, loud * hands[number % 4], int(time_s * SAMPLE_RATE), distance_m
            )
    return room_around(rng, bed, SAMPLE_RATE)


# --- Voices ----------------------------------------------------------------------------------------------------------


def voiced(
    rng: np.random.Generator, pitch_hz: np.ndarray, vowel: np.ndarray, breath: float, size: float
) -> np.ndarray:
    """A vocal tract on a glottal buzz: (samples,), unit RMS.

    Args:
        pitch_hz: (samples,).
        vowel: (3,) formants in Hz.
        breath: share of noise in the source.
        size: the tract's formants relative to an adult man's (women 1.17, children 1.3).
    """
    phase = np.cumsum(pitch_hz) / SAMPLE_RATE
    # A saw-tooth, whose harmonics fall by 6 dB an octave; the glottis' 12 less the mouth's radiation of 6.
    source = 2 * (phase % 1.0) - 1 + breath * rng.standard_normal(len(pitch_hz))
    formants = np.append(vowel, 3500.0) * size
    sound = np.zeros(len(source))
    for formant_hz, width_hz, level in zip(formants, FORMANT_WIDTHS_HZ, (1.0, 0.6, 0.35, 0.2), strict=True):
        sound += level * resonate(source, formant_hz, width_hz * size)
    return sound / (np.sqrt(np.mean(np.square(sound))) + 1e-12)


def arch(samples: int, attack_s: float, release_s: float) -> np.ndarray:
    """Envelope (samples,): up within the attack, down within the release."""
    time = np.arange(samples) / SAMPLE_RATE
    rise = np.minimum(1.0, time / max(attack_s, 1e-3))
    fall = np.minimum(1.0, (samples / SAMPLE_RATE - time) / max(release_s, 1e-3))
    return np.sin(0.5 * np.pi * rise) * np.sin(0.5 * np.pi * fall)


def speech(rng: np.random.Generator, samples: int) -> np.ndarray:
    """Something like talk, (samples,): phrases of syllables at 3 to 6 Hz, vowels with consonant noise before them."""
    woman = rng.random() < 0.5
    size = rng.uniform(1.1, 1.25) if woman else rng.uniform(0.95, 1.08)
    base_hz = rng.uniform(165.0, 260.0) if woman else rng.uniform(85.0, 150.0)
    rate_hz = rng.uniform(3.0, 6.0)
    talk = np.zeros(samples)
    at = int(rng.uniform(0.0, 1.0) * SAMPLE_RATE)
    left_in_phrase = int(rng.integers(3, 15))
    while at < samples:
        length = int(SAMPLE_RATE / rate_hz * rng.uniform(0.6, 1.5))
        glide = np.linspace(rng.uniform(0.95, 1.25), rng.uniform(0.8, 1.1), length) * (1 + 0.02 * left_in_phrase)
        syllable = voiced(rng, base_hz * glide, VOWELS[rng.integers(len(VOWELS))], 0.05, size)
        syllable *= arch(length, 0.04, 0.08) * 10 ** (rng.normal(0.0, 3.0) / 20)
        onset = int(rng.uniform(0.03, 0.12) * SAMPLE_RATE)
        centre_hz = rng.uniform(1500.0, 8000.0)
        consonant = 3 * resonate(rng.standard_normal(onset), centre_hz, 0.4 * centre_hz)
        syllable[:onset] += consonant[:length] * rng.uniform(0.1, 1.2) * arch(onset, 0.01, 0.03)[:length]
        piece = talk[at : at + length]
        piece += syllable[: len(piece)]
        at += int(0.85 * length)
        left_in_phrase -= 1
        if left_in_phrase <= 0:
            at += int(rng.exponential(0.7) * SAMPLE_RATE)
            left_in_phrase = int(rng.integers(3, 15))
    return talk


def babble(rng: np.random.Generator, samples: int) -> np.ndarray:
    """10 to 60 people who talk at once."""
    bed = np.zeros((2, samples))
    for distance_m in crowd_distances(rng, int(rng.integers(10, 61))):
        place(rng, bed, speech(rng, samples), 0, distance_m)
    return room_around(rng, bed, SAMPLE_RATE)


def chatter(rng: np.random.Generator, samples: int) -> np.ndarray:
    """One to three people beside the microphone, dry, over a distant murmur."""
    bed = np.zeros((2, samples))
    for _ in range(int(rng.integers(1, 4))):
        place(rng, bed, speech(rng, samples), 0, rng.uniform(0.5, 1.5))
    murmur = np.zeros((2, samples))
    for _ in range(8):
        place(rng, murmur, speech(rng, samples), 0, rng.uniform(6.0, 15.0))
    return bed + room_around(rng, murmur, SAMPLE_RATE)


def shout(rng: np.random.Generator) -> np.ndarray:
    """One "woo", "yeah" or "hey", (samples,): pressed and high, gliding up, then down."""
    length = int(rng.uniform(0.35, 2.0) * SAMPLE_RATE)
    woman = rng.random() < 0.5
    base_hz = rng.uniform(300.0, 650.0) if woman else rng.uniform(170.0, 380.0)
    time = np.linspace(0.0, 1.0, length)
    peak = rng.uniform(0.2, 0.7)
    glide = 1 + rng.uniform(0.1, 0.5) * np.where(time < peak, time / peak, (1 - time) / (1 - peak))
    tremor = 1 + 0.01 * slow_curve(rng, length, SAMPLE_RATE, 8.0)
    first, second = VOWELS[rng.integers(len(VOWELS), size=2)]
    pitch_hz = base_hz * glide * tremor
    size = 1.2 if woman else 1.0
    fade = np.clip((time - 0.3) / 0.4, 0.0, 1.0)
    sound = (1 - fade) * voiced(rng, pitch_hz, first, 0.15, size) + fade * voiced(rng, pitch_hz, second, 0.15, size)
    return sound * arch(length, 0.08, 0.25)


def cheering(rng: np.random.Generator, samples: int) -> np.ndarray:
    """Shouts of 10 to 150 people over the roar of those further away."""
    bed = np.zeros((2, samples))
    people = int(np.exp(rng.uniform(np.log(10), np.log(150))))
    swell = 10 ** (rng.uniform(1.0, 6.0) * slow_curve(rng, samples, SAMPLE_RATE, 0.2) / 20)
    for distance_m in crowd_distances(rng, people):
        for _ in range(1 + rng.poisson(samples / SAMPLE_RATE * rng.uniform(0.05, 0.3))):
            place(rng, bed, shout(rng), int(rng.integers(samples)), distance_m)
    roar = coloured_noise(rng, (2, samples), SAMPLE_RATE, 2.0)
    formants = filtered(roar, SAMPLE_RATE, 400.0, 1400.0) + 0.4 * filtered(roar, SAMPLE_RATE, 1800.0, 4000.0)
    formants *= np.std(bed) / np.std(formants) * 10 ** (rng.uniform(-10.0, 4.0) / 20)
    return room_around(rng, (bed + formants) * swell, SAMPLE_RATE)


def whistles(rng: np.random.Generator, samples: int) -> np.ndarray:
    """Whistles of 2 to 12 people, on two fingers, over a faint roar: tones of 1.2 to 4 kHz that glide."""
    bed = np.zeros((2, samples))
    for _ in range(int(rng.integers(2, 13))):
        base_hz, distance_m = rng.uniform(1200.0, 3500.0), rng.uniform(2.0, 15.0)
        for _ in range(1 + rng.poisson(samples / SAMPLE_RATE * rng.uniform(0.1, 0.5))):
            length = int(rng.uniform(0.15, 1.2) * SAMPLE_RATE)
            time = np.linspace(0.0, 1.0, length)
            bend = rng.uniform(-0.35, 0.35) * time + rng.uniform(-0.3, 0.3) * np.sin(np.pi * time)
            wobble = 0.01 * slow_curve(rng, length, SAMPLE_RATE, 20.0)
            phase = 2 * np.pi * np.cumsum(base_hz * (1 + bend + wobble)) / SAMPLE_RATE
            tone = np.sin(phase) + rng.uniform(0.0, 0.15) * np.sin(2 * phase)
            tone += rng.uniform(0.02, 0.1) * rng.standard_normal(length)
            place(rng, bed, tone * arch(length, 0.03, 0.08), int(rng.integers(samples)), distance_m)
    roar = filtered(coloured_noise(rng, (2, samples), SAMPLE_RATE, 3.0), SAMPLE_RATE, 300.0, 3000.0)
    roar *= np.std(bed) / np.std(roar) * 10 ** (rng.uniform(-30.0, -10.0) / 20)
    return room_around(rng, bed + roar, SAMPLE_RATE)


def crowd(rng: np.random.Generator, samples: int) -> np.ndarray:
    """Everything at once: two to four of the above, each at a level of its own."""
    layers = rng.permutation(len(AUDIENCE))[: rng.integers(2, 5)]
    bed = np.zeros((2, samples))
    for layer in layers:
        sound = AUDIENCE[layer](rng, samples)
        bed += sound / (np.std(sound) + 1e-12) * 10 ** (rng.uniform(-12.0, 0.0) / 20)
    return bed


AUDIENCE = (applause, cheering, babble, whistles)


# --- The bank --------------------------------------------------------------------------------------------------------

MAKERS: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "applause": applause,
    "cheering": cheering,
    "whistles": whistles,
    "babble": babble,
    "chatter": chatter,
    "crowd": crowd,
    "hum": lambda rng, samples: hum(rng, samples, SAMPLE_RATE),
    "hiss": lambda rng, samples: hiss(rng, samples, SAMPLE_RATE),
    "wind": lambda rng, samples: wind(rng, samples, SAMPLE_RATE),
    "handling": lambda rng, samples: handling(rng, samples, SAMPLE_RATE),
}
TEST_FILES = {"gf__crowd02"}


def levelled(waveform: np.ndarray) -> np.ndarray:
    """A bed at -23 dB RMS, lower where its peak would clip."""
    rms, peak = np.sqrt(np.mean(np.square(waveform))), np.abs(waveform).max()
    if not np.isfinite(peak) or peak == 0.0:
        raise ValueError("a noise bed is silent or not finite")
    return waveform * min(10 ** (LEVEL_DB / 20) / rms, PEAK / peak)


def make_bed(number: int, seed: int) -> tuple[str, np.ndarray]:
    """Kind and waveform (2, samples) of bed `number`; the kinds take turns."""
    kind = list(MAKERS)[number % len(MAKERS)]
    rng = np.random.default_rng([seed, number])
    return kind, levelled(MAKERS[kind](rng, int(rng.uniform(10.0, 20.0) * SAMPLE_RATE)))


def write_flac(path: Path, waveform: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    soundfile.write(temporary, waveform.T, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    os.replace(temporary, path)


def describe(path: Path, out: Path, kind: str, split: str, licence: str, origin: str) -> dict[str, Any]:
    return {
        "path": path.relative_to(out).as_posix(),
        "kind": kind,
        "seconds": round(soundfile.info(path).duration, 3),
        "sample_rate": SAMPLE_RATE,
        "licence": licence,
        "origin": origin,
        "split": split,
    }


def synthesise(out: Path, count: int, seed: int) -> list[dict[str, Any]]:
    """Rows of the synthetic beds; those that are there are not made again. Of ten of a kind, one each is held out."""
    rows = []
    for number in tqdm(range(count), desc="beds"):
        kind = list(MAKERS)[number % len(MAKERS)]
        path = out / kind / f"{seed}-{number:05d}.flac"
        if not path.exists():
            write_flac(path, make_bed(number, seed)[1])
        split = {3: "validation", 7: "test"}.get(number // len(MAKERS) % 10, "train")
        origin = f"training/crowd.py, seed {seed}, number {number}"
        rows.append(describe(path, out, kind, split, "CC0-1.0", origin))
    return rows


def recorded(folder: Path, out: Path, licence: str = "own") -> list[dict[str, Any]]:
    """Rows of the recorded crowds in a folder: those its index.json calls a crowd, or all audio files."""
    indexed = index_entries(folder)
    if indexed is not None:
        entries = [entry for entry in indexed if entry["kind"] == "crowd"]
    else:
        files = sorted(path for path in folder.rglob("*") if is_audio(path.name))
        entries = [{"file": f.relative_to(folder).as_posix(), "licence": licence, "origin": f.name} for f in files]
    if not entries:
        raise ValueError(f"{folder} holds no recorded crowds")
    rows = []
    for entry in entries:
        source = folder / entry["file"]
        waveform, sample_rate = soundfile.read(source, always_2d=True)
        waveform = soxr.resample(waveform, sample_rate, SAMPLE_RATE).T
        path = out / "recorded" / f"{'_'.join(Path(entry['file']).with_suffix('').parts)}.flac"
        write_flac(path, levelled(np.broadcast_to(waveform[:2], (2, waveform.shape[1]))))
        share = int(hashlib.sha256(entry["file"].encode()).hexdigest()[:8], 16) / 2**32
        own_split = "test" if share < 0.1 else "validation" if share < 0.2 else "train"
        split = "test" if source.stem in TEST_FILES else "train" if indexed is not None else own_split
        rows.append(describe(path, out, "crowd", split, entry["licence"], entry["origin"]))
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [name for name, corpus in CORPORA.items() if corpus.kind == "noise"]
    parser.add_argument("--out", type=Path, default=Path("data/noise"))
    parser.add_argument("--count", type=int, default=250, help="synthetic beds; ten kinds take turns")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--measured", type=Path, action="append", default=[], help="folder of recordings; repeatable")
    parser.add_argument(
        "--corpus", action="append", default=[], metavar="NAME", help=f"repeatable: {', '.join(names)}"
    )
    parser.add_argument("--sha256", default="", help="checksum of the corpus, where none is published")
    parser.add_argument("--cache", type=Path, default=Path("data/downloads"), help="where downloads are kept")
    options = parser.parse_args(arguments)
    try:
        rows = [row for folder in options.measured for row in recorded(folder, options.out)]
        for name in options.corpus:
            folder = options.cache / name
            corpus = fetch_corpus(name, "noise", options.cache, folder, is_audio, options.sha256)
            rows += recorded(folder, options.out, corpus.licence)
        rows += synthesise(options.out, options.count, options.seed)
        merge_rows(options.out / "index.jsonl", rows, seed=options.seed)
    except (ValueError, OSError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")


if __name__ == "__main__":
    main()
