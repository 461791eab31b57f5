"""The embedding against TensorFlow's, its spectrum against librosa's, the checkpoint reader against bytes by hand."""

from pathlib import Path

import librosa
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from training.tensor_bundle import MAGIC, read_bundle

from training.musicnn import PATCH_FRAMES, WEIGHTS, Musicnn, convert, embed, log_mel

# `musicnn.models.define_model(..., "MSD_musicnn", 50)` of the wheel, run by TensorFlow 2.15 on `patches`.
REFERENCE = Path(__file__).parent / "musicnn_penultimate.npy"


def patches() -> np.ndarray:
    time, band = np.arange(PATCH_FRAMES)[:, None], np.arange(96)[None]
    shapes = [np.cos(0.05 * band * turn + 0.013 * time * band / (turn + 1)) for turn in range(3)]
    return np.stack([2 + 1.5 * np.sin(0.37 * time + 0.11 * band) * shape for shape in shapes]).astype(np.float32)


def test_embedding_is_that_of_tensorflow() -> None:
    model = Musicnn()
    model.load_state_dict(load_file(WEIGHTS))
    with torch.no_grad():
        embedding = model.eval()(torch.from_numpy(patches())).numpy()
    np.testing.assert_allclose(embedding, np.load(REFERENCE), atol=1e-5)


def test_log_mel_is_librosas() -> None:
    waveform = 0.1 * np.random.default_rng(0).standard_normal(20_000).astype(np.float32)
    spectrum = librosa.stft(waveform, n_fft=512, hop_length=256, pad_mode="reflect")
    power = librosa.feature.melspectrogram(S=np.abs(spectrum) ** 2, sr=16_000, n_mels=96)
    np.testing.assert_allclose(log_mel(waveform), np.log10(1 + 10_000 * power).T, atol=1e-4)


def test_windows_are_3_s_long_and_half_overlapped() -> None:
    waveform = 0.1 * np.random.default_rng(0).standard_normal(5 * 16_000).astype(np.float32)
    windows = embed(waveform)
    assert windows.shape == (2, 200)
    with pytest.raises(ValueError, match="needs 3 s"):
        embed(waveform[:40_000])


def varint(value: int) -> bytes:
    groups = []
    while True:
        value, group = value >> 7, value & 0x7F
        groups.append(group | (0x80 if value else 0))
        if not value:
            return bytes(groups)


def block(entries: list[tuple[int, bytes, bytes]]) -> bytes:
    """Entries as (length shared with the key before, rest of the key, value), one restart point, no compression."""
    body = b"".join(varint(s) + varint(len(k)) + varint(len(v)) + k + v for s, k, v in entries)
    return body + (0).to_bytes(4, "little") + (1).to_bytes(4, "little")


def entry(shape: list[int], offset: int, size: int, dtype: int = 1) -> bytes:
    sizes = b"".join(b"\x12" + varint(len(dim)) + dim for dim in (b"\x08" + varint(n) for n in shape))
    return (
        b"\x08"
        + varint(dtype)
        + b"\x12"
        + varint(len(sizes))
        + sizes
        + b"\x20"
        + varint(offset)
        + b"\x28"
        + varint(size)
    )


def bundle() -> tuple[bytes, bytes, np.ndarray, np.ndarray]:
    kernel, bias = np.arange(300, dtype="<f4").reshape(20, 15), np.array([1.5, -2.0], "<f4")
    data = kernel.tobytes() + bias.tobytes() + b"\1\0\0\0"
    content = block(
        [
            (0, b"", b"\x08\x01"),
            (0, b"dense/kernel", entry([20, 15], 0, 1200)),
            (6, b"step", entry([], 1208, 4, dtype=3)),
            (6, b"zbias", entry([2], 1200, 8)),
        ]
    )
    listing = block([(0, b"z", varint(0) + varint(len(content)))])
    meta = block([])
    table = content + bytes(5) + listing + bytes(5) + meta + bytes(5)
    places = [(len(content) + len(listing) + 10, len(meta)), (len(content) + 5, len(listing))]
    handles = b"".join(varint(offset) + varint(size) for offset, size in places)
    return table + handles.ljust(40, b"\0") + MAGIC, data, kernel, bias


def test_a_checkpoint_is_read_without_tensorflow() -> None:
    index, data, kernel, bias = bundle()
    variables = read_bundle(index, data)
    assert set(variables) == {"dense/kernel", "dense/zbias"}, "integers are no weights"
    np.testing.assert_array_equal(variables["dense/kernel"], kernel)
    np.testing.assert_array_equal(variables["dense/zbias"], bias)


def test_damaged_checkpoints_are_refused() -> None:
    index, data, _, _ = bundle()
    with pytest.raises(ValueError, match="not the index"):
        read_bundle(index[:-1], data)
    with pytest.raises(ValueError, match="damaged"):
        read_bundle(index, data[:1100])
    with pytest.raises(ValueError, match="no variable 'batch_normalization/gamma'"):
        convert(read_bundle(index, data))
