"""What the Space makes of the files it is given, beside what the command line makes of them."""

import math
import re
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile

from pipeline_aud2studio import Aud2StudioPipeline, files
from pipeline_aud2studio.alignment.gather import SEVERAL
from pipeline_aud2studio.infer import build_parser, restore
from pipeline_aud2studio.inspection import inspect
from pipeline_aud2studio.restore_file import Settings
from spaces_app import player, studio
from spaces_app.studio import Outcome, Refused, restore_recordings

RATE = 44_100
FOREIGN = re.compile(r"traceback|numpy|nan\b|ffmpeg|libav|libsndfile|invalid data|errno|--\w|/|\{", re.IGNORECASE)
Restore = Callable[..., tuple[Outcome, list[tuple[str, tuple[int, int] | None]]]]


def music(channels: int, seconds: float, peak: float = 0.3, rate: int = RATE) -> np.ndarray:
    """Chords in which every channel differs (samples, channels)."""
    times = np.arange(round(seconds * rate))[:, None] / rate
    pitches = 110 * 2 ** (np.arange(1, channels + 1)[None] * 5 / 12)
    waveform = sum(np.sin(2 * np.pi * k * pitches * times) / k for k in range(1, 8)) * (1.1 + np.sin(9 * times))
    waveform += 0.02 * np.random.default_rng(0).standard_normal(waveform.shape)
    return np.asarray(peak * waveform / np.abs(waveform).max())


@pytest.fixture
def restored(toy_pipeline: Aud2StudioPipeline, tmp_path: Path) -> Restore:
    """Restores files with random weights, and gives what was told about the progress, too."""

    def restored(*paths: Path, suffix: str = ".wav", **settings: Any) -> Any:
        told: list[tuple[str, tuple[int, int] | None]] = []
        folder = tmp_path / "run"
        folder.mkdir()

        def tell(what: str, seconds: tuple[int, int] | None) -> None:
            told.append((what, seconds))

        outcome = restore_recordings(paths, Settings(**settings), suffix, folder, lambda: toy_pipeline, tell)
        return outcome, told

    return restored


@pytest.mark.parametrize("reconstruction", ["faithful", "prediction"])
def test_six_float_channels_become_what_the_command_line_makes_of_them(
    restored: Restore, toy_model: Path, tmp_path: Path, reconstruction: str
) -> None:
    path, expected = tmp_path / "surround.wav", tmp_path / "expected.wav"
    # Above full scale: only 32-bit float keeps it.
    soundfile.write(path, music(6, 4.0, peak=1.8), RATE, subtype="FLOAT", format="WAVEX")
    command = ["--inputs", str(path), "--save", str(expected), "--downmix", "--model", str(toy_model)]
    list(restore(build_parser().parse_args([*command, "--reconstruction", reconstruction, "--dtype", "float32"])))
    outcome, _ = restored(path, reconstruction=reconstruction)
    found, wanted = soundfile.read(outcome.result)[0], soundfile.read(expected)[0]
    assert outcome.subtype == soundfile.info(outcome.result).subtype == soundfile.info(expected).subtype == "FLOAT"
    assert found.shape == wanted.shape == (4 * RATE, 2)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert np.abs(wanted).max() > 0.1


def test_what_is_compared_is_not_clipped(restored: Restore, tmp_path: Path) -> None:
    path = tmp_path / "hot.wav"
    soundfile.write(path, music(1, 4.0, peak=3.0), RATE, subtype="FLOAT")
    outcome, _ = restored(path)
    before = soundfile.read(outcome.before)[0]
    recording = soundfile.read(path)[0]
    gain = (before @ recording) / (recording @ recording)
    assert 0.1 < gain < 1
    np.testing.assert_allclose(before, gain * recording, atol=1e-4)


def test_the_facts_are_those_of_inspect(restored: Restore, toy_pipeline: Aud2StudioPipeline, tmp_path: Path) -> None:
    path = tmp_path / "gig.wav"
    soundfile.write(path, music(2, 9.0), RATE)
    outcome, _ = restored(path)
    assert outcome.facts == pytest.approx(inspect(toy_pipeline, files.read(path).waveform), rel=1e-4)
    shown = player.result(outcome)
    assert f"{outcome.facts['rt60_s']:.1f} s" in shown and "Reverberation (RT60)" in shown


def test_facts_have_words_and_units() -> None:
    values = {"rt60_s": 1.44, "drr_db": -9.5, "snr_db": 10.0, "bandwidth_hz": 16_480.0, "voice": 0.81}
    assert [*studio.facts(values)] == [
        ("Reverberation (RT60)", "1.4 s", "a hall"),
        ("Direct sound over room (DRR)", "\u22129.5 dB", "far from the loudspeakers"),
        ("Music over audience (SNR)", "10.0 dB", "an audience"),
        ("Bandwidth", "16.5 kHz", "full range"),
        ("Probability of a voice", "0.8", "a voice"),
    ]


def test_progress_is_told_in_seconds_of_audio(restored: Restore, tmp_path: Path) -> None:
    path = tmp_path / "gig.wav"
    soundfile.write(path, music(1, 9.5), RATE)
    _, told = restored(path, reconstruction="prediction")
    steps = [seconds for what, seconds in told if what == "Restoring" and seconds is not None]
    assert steps[0] == (0, 10) and steps[-1] == (10, 10) and steps == sorted(steps)


def test_damage_is_told_beside_the_result(restored: Restore, tmp_path: Path) -> None:
    path = tmp_path / "cut.flac"
    soundfile.write(path, music(1, 8.0), RATE)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    outcome, _ = restored(path, suffix=".flac")
    (notice,) = outcome.notices
    assert re.fullmatch(r"cut\.flac ends at [34]\.\d\d s: its header promised 8\.00 s, [34]\.\d\d s more\.", notice)
    assert notice in player.result(outcome)


def test_silence_comes_back_and_has_no_facts(restored: Restore, tmp_path: Path) -> None:
    path = tmp_path / "<b>nothing</b>.wav".replace("/", "_")
    soundfile.write(path, np.zeros((3 * RATE, 2)), RATE)
    outcome, _ = restored(path)
    assert outcome.facts == {} and outcome.notices == [f"{path.name} is silent: it is returned as it is."]
    assert not soundfile.read(outcome.result)[0].any()
    assert "<b>" not in player.result(outcome)


def webm(path: Path, seconds: float) -> Path:
    """Opus in WebM as a browser records it: without a length."""
    with av.open(str(path), "w", format="webm", options={"live": "1"}) as container:
        stream = container.add_stream("libopus", rate=48_000, layout="mono")
        samples = (32_767 * music(1, seconds, rate=48_000)).astype(np.int16).T
        frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 48_000, 0, Fraction(1, 48_000)
        container.mux([*stream.encode(frame), *stream.encode(None)])
    return path


def test_the_limit_holds_where_only_decoding_tells_the_length(
    restored: Restore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(studio, "MAX_SECONDS", 3)
    short, long = webm(tmp_path / "short.webm", 2.5), webm(tmp_path / "long.webm", 3.5)
    with files.opened(long) as sound:
        assert sound.frames is None
    assert sum(block.shape[1] for block in studio.open_take(short).blocks()) == pytest.approx(2.5 * 48_000, abs=960)
    with pytest.raises(Refused, match=r"^long.webm lasts more than 10 minutes, .* Cut it"):
        restored(long)


def test_the_limit_holds_before_decoding_where_the_header_tells(tmp_path: Path) -> None:
    path = tmp_path / "long.wav"
    soundfile.write(path, np.zeros(8000 * 601), 8000)
    with pytest.raises(Refused, match="long.wav lasts more than 10 minutes"):
        studio.open_take(path)


def test_number_and_size_are_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "gig.wav"
    soundfile.write(path, np.zeros(8000 * 100), 8000)
    with pytest.raises(Refused, match="5 recordings are too many: choose the best 4"):
        studio.check([path] * 5)
    monkeypatch.setattr(studio, "MAX_BYTES", 1_000_000)
    with pytest.raises(Refused, match="gig.wav has 2 MB, and a file may have 250 MB"):
        studio.check([path])


def video(path: Path) -> None:
    """A picture without sound."""
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width = stream.height = 64
        frames = [av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24") for _ in range(5)]
        for frame in [*frames, None]:
            container.mux(stream.encode(frame))


def with_nan(path: Path) -> None:
    waveform = music(1, 2.0)
    waveform[RATE] = math.nan
    soundfile.write(path, waveform, RATE, subtype="FLOAT")


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "notes.wav": (lambda path: path.write_text("not a recording"), "notes.wav cannot be read as a recording"),
    "blank.mp3": (lambda path: path.write_bytes(b""), "blank.mp3 is empty: there is no sound in it"),
    "no samples.wav": (lambda path: soundfile.write(path, np.zeros((0, 1)), RATE), "no samples.wav is empty"),
    "mute.mp4": (video, "mute.mp4 has a picture, but no sound. Upload a file with a sound track"),
    "slow.wav": (
        lambda path: soundfile.write(path, music(1, 1.0, rate=4000), 4000),
        "slow.wav has 4000 samples a second; 8000 to 192000 can be restored. Convert it",
    ),
    "faulty.wav": (with_nan, "faulty.wav holds samples that are no numbers, the first at 1.000 s"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_restored_is_told_with_what_helps(name: str, restored: Restore, tmp_path: Path) -> None:
    make, expected = BAD[name]
    make(tmp_path / name)
    with pytest.raises(Refused) as refused:
        restored(tmp_path / name)
    said = str(refused.value)
    assert said.startswith(expected) and not FOREIGN.search(said)
    assert re.search(r"\. (Export|Record|Upload|Convert)\b", said)


def test_recordings_of_two_performances_are_refused(restored: Restore, tmp_path: Path) -> None:
    paths = [tmp_path / "one.wav", tmp_path / "other.wav"]
    for seed, path in enumerate(paths):
        soundfile.write(path, 0.1 * np.random.default_rng(seed).standard_normal(12 * 16_000), 16_000)
    with pytest.raises(
        Refused, match="do not seem to be recordings of the same performance.* Restore each"
    ) as refused:
        restored(*paths)
    assert not FOREIGN.search(str(refused.value))


def test_parts_of_one_recording_are_called_so() -> None:
    error = files.AudioError(f"gig 2.wav follows gig 1.wav and has no sound in common with it: {SEVERAL}")
    said = str(studio.refusal(error, [Path("gig 1.wav"), Path("gig 2.wav"), Path("other.wav")]))
    assert said.startswith("These seem to be parts of one recording") and not FOREIGN.search(said)


def test_every_format_that_is_read_is_named_before_the_upload() -> None:
    same = {"oga": "ogg", "aif": "aiff", "mka": "mkv"}
    words = {word.lower() for word in re.findall(r"\w+", studio.INTRODUCTION)}
    assert {same.get(name, name) for name in (suffix[1:] for suffix in files.SUFFIXES_READ)} <= words
    for promise in ("10 minutes", "250 MB each", "a FLAC or WAV file", "MB as FLAC", "mixed down to stereo"):
        assert promise in " ".join(studio.INTRODUCTION.split())
