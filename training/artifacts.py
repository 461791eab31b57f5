"""What can go wrong in a restoration, and figures that tell how often it does.

An indicator is a number per clip, larger is worse, and a limit above which the artefact counts as present. It points
to clips that are worth hearing; it is no listener.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import signal, stats

from pipeline_aud2studio.audio import Waveform
from training.metrics import mean_interval

FFT, HOP = 2048, 512  # 46 ms and 12 ms at 44.1 kHz
LOUDER_DB = 10.0  # how far below the recording the clean music is where the crowd is alone
ONSET_WINDOW_S = 0.05  # MIREX's tolerance for an onset
PRE_ECHO_S = (0.025, 0.005)  # before an onset, where a window of 1024 samples can smear it to
FLOOR = 1e-12


@dataclass(frozen=True)
class Artifact:
    """A kind of damage: what it is called, and what a listener hears."""

    title: str
    definition: str


@dataclass(frozen=True)
class Indicator:
    """How often an artefact occurs.

    Args:
        key: Of the figure in a clip's results.
        artifact: Key in :data:`ARTIFACTS`.
        text: What is measured.
        limit: The artefact is there where the figure is above it.
        digits: That are worth printing.
    """

    key: str
    artifact: str
    text: str
    limit: float
    digits: int = 2


ARTIFACTS = {
    "musical_noise": Artifact("Musical noise", "short tones that come and go where noise was taken away"),
    "transients": Artifact("Over-smoothed transients", "drums and plucked strings lose their attack"),
    "reverb": Artifact("Residual reverb", "the tail of the hall is still there"),
    "pumping": Artifact("Pumping", "the level of the background moves with the music"),
    "pre_echo": Artifact("Pre-echo", "a sound is heard before it begins, within one window of the STFT"),
    "pitch_wobble": Artifact("Pitch wobble", "held notes waver; the vocoder's phase is its own"),
    "bandwidth": Artifact("Bandwidth loss", "highs that were recorded are missing"),
    "stereo": Artifact("Stereo collapse", "the image becomes narrow"),
    "invented": Artifact("Invented content", "notes, voices or drums that nobody played"),
    "level": Artifact("Level change", "the result is louder or quieter than the recording"),
}

INDICATORS = (
    Indicator(
        "artifact_kurtosis",
        "musical_noise",
        "logarithm of the ratio by which the kurtosis of the power spectrum grows where the music is 10 dB below the"
        " recording (Uemura et al., IWAENC 2008)",
        float(np.log(2)),
    ),
    Indicator(
        "artifact_onset_strength",
        "transients",
        "part of the spectral flux at the clean music's onsets that the recording has and the result has not",
        0.1,
    ),
    Indicator("artifact_crest_db", "transients", "loss of crest factor against the recording, dB", 3.0, 1),
    Indicator(
        "artifact_late_tail_db", "reverb", "change of late over early sound in rooms that are known, dB", -3.0, 1
    ),
    Indicator(
        "artifact_pumping",
        "pumping",
        "slope of the crowd's gain against the level of the music, dB per dB, where there is only a crowd",
        0.2,
    ),
    Indicator(
        "artifact_pre_echo_db",
        "pre_echo",
        "level from 25 to 5 ms before an onset against the 25 ms after it, above the recording's and the clean"
        " music's, dB",
        3.0,
        1,
    ),
    Indicator(
        "artifact_wobble_cents",
        "pitch_wobble",
        "median deviation of the partials' frequencies from the clean music's, less the recording's, cents",
        5.0,
        1,
    ),
    Indicator(
        "artifact_highs_db",
        "bandwidth",
        "level above 6 kHz against 0.5 to 4 kHz, below the recording's and the clean music's, dB",
        6.0,
        1,
    ),
    Indicator("artifact_side_db", "stereo", "side over mid, below the recording's and the clean music's, dB", 3.0, 1),
    Indicator(
        "artifact_onsets", "invented", "part of the onsets that are neither in the recording nor in the music", 0.15
    ),
    Indicator(
        "artifact_chroma",
        "invented",
        "distance of the chroma from the clean music's (1 less the cosine), less the recording's",
        0.05,
        3,
    ),
    Indicator("artifact_level_lu", "level", "change of loudness, LU, whichever way", 0.5),
)


def indicators(
    restored: Waveform, recording: Waveform, clean: Waveform, sample_rate: int, crowd_only: bool
) -> dict[str, float]:
    """Figures of one clip by key; one that makes no sense for it is missing.

    The late tail is not here, as it wants the room's parts (:mod:`training.late_tail`), nor the level.

    Args:
        restored, recording, clean: (channels, samples).
        crowd_only: Whether the recording is the clean music and a crowd, and nothing else.
    """
    mono = [waveform.mean(axis=0, dtype=np.float64) for waveform in (restored, recording, clean)]
    spectra = [_spectrum(waveform, sample_rate) for waveform in mono]
    found = {
        "artifact_kurtosis": kurtosis_growth(*spectra),
        "artifact_crest_db": _crest_db(mono[1]) - _crest_db(mono[0]),
        "artifact_wobble_cents": frequency_deviation_cents(spectra[0], spectra[2], sample_rate)
        - frequency_deviation_cents(spectra[1], spectra[2], sample_rate),
        "artifact_highs_db": min(_highs_db(s, sample_rate) for s in spectra[1:]) - _highs_db(spectra[0], sample_rate),
        **_onset_figures(mono[0], mono[1], mono[2], sample_rate),
        "artifact_chroma": chroma_distance(mono[0], mono[2], sample_rate)
        - chroma_distance(mono[1], mono[2], sample_rate),
    }
    if crowd_only:
        found["artifact_pumping"] = background_slope(*spectra)
    if len(clean) == 2:
        found["artifact_side_db"] = min(_side_db(clean), _side_db(recording)) - _side_db(restored)
    return {key: float(value) for key, value in found.items() if value is not None and np.isfinite(value)}


def _spectrum(waveform: np.ndarray, sample_rate: int) -> np.ndarray:
    """(samples,) to (bins, frames), complex."""
    return np.asarray(signal.stft(waveform, sample_rate, nperseg=FFT, noverlap=FFT - HOP)[2])


def _power(spectrum: np.ndarray) -> np.ndarray:
    return np.square(np.abs(spectrum)) + FLOOR


def kurtosis_growth(restored: np.ndarray, recording: np.ndarray, clean: np.ndarray) -> float | None:
    """Logarithm of the kurtosis of the power spectrum over the recording's, in the bins that hold no music.

    Noise whose bins fluctuate as those of a Gaussian has a kurtosis (fourth over squared second moment of the power)
    of 6; isolated tones that remain of it have more. Uemura et al., "Automatic optimization scheme of spectral
    subtraction based on musical noise assessment via higher-order statistics", IWAENC 2008.

    Args:
        restored, recording, clean: Spectra (bins, frames).
    """
    alone = _power(clean) < 10 ** (-LOUDER_DB / 10) * _power(recording)
    enough = alone.sum(axis=1) >= 32  # frames, for a fourth moment

    def kurtosis(power: np.ndarray) -> float:
        power = np.where(alone, power, 0.0)[enough]
        count = alone[enough].sum(axis=1)
        second = np.square(power).sum(axis=1) / count
        fourth = (power**4).sum(axis=1) / count
        return float(np.log(fourth / (np.square(second) + FLOOR**4) + FLOOR).mean())

    if enough.sum() < 32:
        return None
    return kurtosis(_power(restored)) - kurtosis(_power(recording))


def _crest_db(waveform: np.ndarray) -> float:
    """Peak over RMS in dB; the peak is exceeded for a thousandth of the time, so that one click does not decide."""
    peak = np.quantile(np.abs(waveform), 0.999)
    return float(20 * np.log10((peak + FLOOR) / (np.sqrt(np.square(waveform).mean()) + FLOOR)))


def background_slope(restored: np.ndarray, recording: np.ndarray, clean: np.ndarray) -> float | None:
    """Change of the crowd's gain in dB per dB of the music's level, by a least-squares line over the frames.

    The crowd's gain is read in the bins in which the clean music is 10 dB below the recording. Spectra (bins, frames).
    """
    alone = _power(clean) < 10 ** (-LOUDER_DB / 10) * _power(recording)
    level = 10 * np.log10(_power(clean).sum(axis=0))
    used = (alone.sum(axis=0) >= 32) & (level > level.max() - 40)
    if used.sum() < 32:
        return None
    before, after = (np.where(alone, _power(spectrum), 0.0).sum(axis=0) for spectrum in (recording, restored))
    gain = 10 * np.log10(after[used] / before[used])
    return float(np.polyfit(level[used], gain, 1)[0])


def frequency_deviation_cents(estimate: np.ndarray, clean: np.ndarray, sample_rate: int) -> float:
    """Median deviation of instantaneous frequencies at the clean music's partials, in cents.

    Partials are peaks of the spectrum from 150 to 4000 Hz within 30 dB of the loudest of their frame; frequencies come
    from the phases' advance from frame to frame (the phase vocoder's). Spectra (bins, frames).
    """
    power = _power(clean)
    peak = np.zeros_like(power, dtype=bool)
    peak[1:-1] = (power[1:-1] > power[:-2]) & (power[1:-1] > power[2:])
    peak &= power > 1e-3 * power.max(axis=0, keepdims=True)
    frequencies = np.arange(len(power)) * sample_rate / FFT
    peak &= ((frequencies > 150) & (frequencies < 4000))[:, None]
    both = peak[:, :-1] & peak[:, 1:]  # held over two frames
    advance = 2 * np.pi * np.arange(len(power))[:, None] * HOP / FFT

    def instantaneous(spectrum: np.ndarray) -> np.ndarray:
        turned = np.angle(spectrum[:, 1:] * spectrum[:, :-1].conj() * np.exp(-1j * advance))
        return (advance + turned)[both]

    if not both.any():
        return float("nan")
    cents = 1200 * np.log2(np.maximum(instantaneous(estimate), 1e-3) / instantaneous(clean))
    return float(np.median(np.abs(cents)))


def _highs_db(spectrum: np.ndarray, sample_rate: int) -> float:
    frequencies = np.arange(len(spectrum)) * sample_rate / FFT
    power = _power(spectrum).mean(axis=1)
    highs, middle = frequencies > 6000, (frequencies > 500) & (frequencies < 4000)
    return float(10 * np.log10(power[highs].sum() / power[middle].sum()))


def _side_db(waveform: Waveform) -> float:
    left, right = waveform.astype(np.float64)
    return float(10 * np.log10((np.square(left - right).sum() + FLOOR) / (np.square(left + right).sum() + FLOOR)))


def _onset_figures(
    restored: np.ndarray, recording: np.ndarray, clean: np.ndarray, sample_rate: int
) -> dict[str, float | None]:
    import librosa  # of the extra `eval`

    waveforms = [waveform.astype(np.float32) for waveform in (restored, recording, clean)]
    strengths = [librosa.onset.onset_strength(y=waveform, sr=sample_rate) for waveform in waveforms]
    # Backwards to the start of the rise would find other frames in the noise; peaks compare better.
    peaks = [librosa.onset.onset_detect(onset_envelope=s, sr=sample_rate, units="time") for s in strengths]
    frames = librosa.time_to_frames(peaks[2], sr=sample_rate)
    figures: dict[str, float | None] = {}
    if len(frames):
        kept, had = (float(np.mean([_around(s, frame) for frame in frames])) for s in strengths[:2])
        figures["artifact_onset_strength"] = 1 - kept / max(had, FLOOR)
        attacks = [_attack(clean, round(peak * sample_rate), sample_rate) for peak in peaks[2]]
        levels = [_before_onsets_db(waveform, attacks, sample_rate) for waveform in (restored, recording, clean)]
        figures["artifact_pre_echo_db"] = levels[0] - max(levels[1:])
    if len(peaks[0]):
        known = np.concatenate(peaks[1:])
        distance = np.abs(peaks[0][:, None] - known[None]).min(axis=1, initial=np.inf)
        figures["artifact_onsets"] = float(np.mean(distance > ONSET_WINDOW_S))
    return figures


def _around(strength: np.ndarray, frame: int) -> float:
    return float(strength[max(0, frame - 2) : frame + 3].max(initial=0.0))


def _attack(waveform: np.ndarray, onset: int, sample_rate: int) -> int:
    """The sample near an onset at which the level rises most, 5 ms against 5 ms: frames are too coarse for an echo."""
    short, reach = round(0.005 * sample_rate), round(ONSET_WINDOW_S * sample_rate)
    first = max(short, onset - reach)
    energy = np.concatenate([[0.0], np.cumsum(np.square(waveform))])
    places = np.arange(first, min(onset + reach, len(waveform) - short))
    if not len(places):
        return onset
    after, before = energy[places + short] - energy[places], energy[places] - energy[places - short]
    floor = 1e-6 * after.max() + FLOOR
    return int(places[np.argmax((after + floor) / (before + floor))])


def _before_onsets_db(waveform: np.ndarray, onsets: Sequence[int], sample_rate: int) -> float:
    """Power before the onsets (samples) over that after them, in dB, averaged."""
    first, last = (round(seconds * sample_rate) for seconds in PRE_ECHO_S)
    ratios = []
    for onset in onsets:
        before, after = waveform[max(0, onset - first) : max(0, onset - last)], waveform[onset : onset + first]
        if len(before) and len(after):
            ratios.append(10 * np.log10((np.square(before).mean() + FLOOR) / (np.square(after).mean() + FLOOR)))
    return float(np.mean(ratios)) if ratios else float("nan")


def chroma_distance(estimate: np.ndarray, clean: np.ndarray, sample_rate: int) -> float:
    """1 less the cosine of the chroma vectors of two waveforms (samples,), averaged over the frames with music."""
    import librosa  # of the extra `eval`

    first, second = (
        librosa.feature.chroma_stft(y=x.astype(np.float32), sr=sample_rate, norm=2, tuning=0.0)
        for x in (estimate, clean)
    )
    loud = librosa.feature.rms(y=clean.astype(np.float32))[0]
    return float(1 - (first * second).sum(axis=0)[loud > 0.01 * loud.max()].mean())


def rates(results: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """How often each indicator is above its limit among the clips of one system for which it exists.

    Returns:
        By key: `clips`, `rate` with a 95 % interval (Wilson) `low` to `high`, and the figure's `mean` with its own
        interval `mean_low` to `mean_high`.
    """
    found = {}
    for indicator in INDICATORS:
        values = [float(result[indicator.key]) for result in results if indicator.key in result]
        if not values:
            continue
        above = sum(value > indicator.limit for value in values)
        interval = stats.binomtest(above, len(values)).proportion_ci(method="wilson")
        mean_low, mean_high = mean_interval(values)
        found[indicator.key] = {
            "clips": len(values),
            "rate": above / len(values),
            "low": float(interval.low),
            "high": float(interval.high),
            "mean": float(np.mean(values)),
            "mean_low": mean_low,
            "mean_high": mean_high,
        }
    return found
