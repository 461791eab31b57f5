"""Every container and codec that PyAV writes, cut at ten random places: what is read is what FFmpeg reads."""

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hostile import stereo, wav, with_av

from pipeline_aud2studio.decode import AudioError, AudioStream

REQUIRED = os.environ.get("CI_REQUIRES_FFMPEG") == "1"
pytestmark = pytest.mark.skipif(not REQUIRED and shutil.which("ffmpeg") is None, reason="needs ffmpeg")
# Codec, container, samples that may differ or be missing at the end: FFmpeg plays parts of a last frame.
KINDS = [
    ("libmp3lame", "mp3", 2 * 1152),
    ("libopus", "ogg", 2 * 960),
    ("flac", "flac", 4608),
    ("flac", "ogg", 4608),
    ("aac", "adts", 2048),
    ("flac", "matroska", 4608),
    ("aac", "mpegts", 2048),
    ("libopus", "webm", 2 * 960),
    ("pcm_s16le", "wav", 1),
    ("pcm_f32le", "wav", 1),
    ("adpcm_ima_wav", "wav", 4096),
    ("pcm_s24be", "aiff", 1),
    ("ac3", "ac3", 2 * 1536),
    ("alac", "matroska", 4096),
    ("wavpack", "wv", 44100),
    ("tta", "tta", 2 * 46080),
]
# Samples of the encoder's delay that Matroska tells of, and FFmpeg 5 plays.
MATROSKA_DELAYS = {"libmp3lame": 1105, "ac3": 256, "aac": 1024}
# The rest of what PyAV writes.
MORE_KINDS = [
    ("pcm_s16le", "w64", 1),
    ("pcm_s16be", "caf", 1),
    ("pcm_s16be", "au", 1),
    ("pcm_s16le", "matroska", 4096),
    ("pcm_mulaw", "wav", 1),
    ("pcm_alaw", "wav", 1),
    ("libopus", "matroska", 2 * 960),
    ("libmp3lame", "matroska", 2 * 1152),
    ("aac", "flv", 2048),
    ("mp2", "mp2", 2 * 1152),
    ("mp2", "mpeg", 2 * 1152),
    ("ac3", "matroska", 2 * 1536),
    ("aac", "matroska", 2048),
    ("eac3", "eac3", 2 * 1536),
    ("wavpack", "matroska", 44100),
    ("pcm_dvd", "vob", 4096),
]


def of_ffmpeg(path: Path) -> np.ndarray:
    command = ["ffmpeg", "-v", "quiet", "-err_detect", "ignore_err", "-i", path, "-map", "0:a:0", "-f", "f32le", "-"]
    done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL)
    return np.frombuffer(done.stdout[: len(done.stdout) // 8 * 8], np.float32).reshape(-1, 2).T


def ours(path: Path) -> np.ndarray:
    try:
        with AudioStream(path) as stream:
            return stream.read(10_000_000)
    except AudioError as error:
        assert str(path) in str(error)
        return np.zeros((2, 0), np.float32)


def test_dts_in_a_wav_is_decoded_and_no_noise(tmp_path: Path) -> None:
    """Ripped discs call it 16-bit PCM, often after some silence."""
    waveform = stereo(4 * 44100)
    command = "ffmpeg -v quiet -f f32le -ar 44100 -ac 2 -i - -strict -2 -c:a dca -b:a 1411200 -f dts -".split()
    done = subprocess.run(command, input=waveform.T.tobytes(), capture_output=True)
    if done.returncode:
        pytest.skip("this ffmpeg cannot encode DTS")
    for lead in (b"", bytes(40_000)):
        for order in ("<i2", ">i2"):
            data = np.frombuffer(done.stdout, ">i2").astype(order).tobytes()
            (tmp_path / "a.wav").write_bytes(wav({"channels": 2}, lead + data))
            found = ours(tmp_path / "a.wav")[:, 512:]  # the encoder's delay, which DTS does not tell
            assert np.corrcoef(found[:, :170_000].ravel(), waveform[:, :170_000].ravel())[0, 1] > 0.99


@pytest.mark.slow
@pytest.mark.parametrize(("codec", "container", "end"), [*KINDS, *MORE_KINDS])
def test_a_file_cut_anywhere_is_what_ffmpeg_makes_of_it(tmp_path: Path, codec: str, container: str, end: int) -> None:
    rate = 48000 if codec in ("libopus", "ac3", "eac3", "pcm_dvd") else 44100
    content = with_av(stereo(3 * rate // 2), codec, container, rate=rate)
    path = tmp_path / "cut.bin"
    path.write_bytes(content)
    delay = MATROSKA_DELAYS.get(codec, 0) if container == "matroska" else 0
    if delay and of_ffmpeg(path).shape[1] - ours(path).shape[1] < delay:
        delay = 0
    for place in np.random.default_rng(0).integers(64, len(content), size=10):
        path.write_bytes(content[:place])
        found, expected = ours(path), of_ffmpeg(path)[:, delay:]
        length = min(found.shape[1], expected.shape[1])
        assert abs(found.shape[1] - expected.shape[1]) <= end, place
        same = slice(0, max(length - end, 0))
        atol = 2e-3 if "adpcm" in codec else 2e-6  # libsndfile's and FFmpeg's predictors round differently
        np.testing.assert_allclose(found[:, same], expected[:, same], atol=atol, err_msg=str(place))
