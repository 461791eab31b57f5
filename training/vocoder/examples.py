"""The examples that the vocoder is trained and validated on: mels of clean music, or mels that a pipeline restored."""

from __future__ import annotations

import inspect
import itertools
import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile
import soxr
import torch

from pipeline_aud2studio import Aud2StudioPipeline
from pipeline_aud2studio.conditioning import unet_condition
from pipeline_aud2studio.features import PATCH, Features
from pipeline_aud2studio.spectral import MEL_FLOOR, BandTransform
from training.data.batches import SceneLoader
from training.data.examples import EXAMPLES_PER_SCENE
from training.data.material import Material
from training.data.scenes import SceneRenderer
from training.jsonl import read_rows
from training.loop import step_seed

from .config import VocoderConfig

VALIDATION_SEED = 1
VALIDATION_LEVEL_DB = -23.0


class Example(NamedTuple):
    """Mels that the vocoder gets, and the waveforms that it is to make of them."""

    mel: torch.Tensor  # (batch, bands, frames), log
    clean: torch.Tensor  # (batch, frames * hop)


class CleanMels:
    """Mels of crops of clean music, see :class:`MusicCrops`.

    `clips` are those that the run is validated on, here as in :class:`RestoredMels`.

    Raises:
        ValueError: If there is no music, or none that is long enough.
    """

    def __init__(self, config: VocoderConfig, transform: BandTransform, device: torch.device) -> None:
        self.config, self.transform, self.device = config, transform, device
        root = config.data.clean_music_dir
        tracks: dict[str, list[dict[str, Any]]] = {"train": [], "validation": []}
        for row in read_rows(root / "inventory.jsonl"):
            tracks.setdefault(row["split"], []).append(row)
        if empty := [split for split in ("train", "validation") if not tracks[split]]:
            raise ValueError(f"The inventory of {root} has no tracks of the split {empty[0]!r}.")
        rate, hop = config.mel.sample_rate, config.mel.hop_length
        num_samples = config.train.crop_frames * hop + 2 * transform.pad
        levels = (config.data.min_level_db, config.data.max_level_db)
        self.crops = MusicCrops(tracks["train"], root, num_samples, rate, config.seed, levels)
        clip_samples = math.ceil(config.eval.clip_seconds * rate / hop) * hop
        levels = (VALIDATION_LEVEL_DB, VALIDATION_LEVEL_DB)
        clips = MusicCrops(tracks["validation"], root, clip_samples, rate, VALIDATION_SEED, levels)
        clean = next(batches(clips, 0, 1, config.eval.num_clips, num_threads=1))
        self.clips = Example(transform.log_mel(transform.stft(clean)), clean)

    def batches(self, first: int, last: int) -> Iterator[Example]:
        """Yields the batches of the steps `first` to `last` - 1, the same ones whenever they are drawn."""
        for batch in batches(self.crops, first, last, self.config.train.batch_size, self.config.data.num_threads):
            yield self.example(batch.to(self.device))

    def example(self, padded: torch.Tensor) -> Example:
        """Makes an example of crops (batch, pad + frames * hop + pad), whose neighbours stand where a mel reflects."""
        mel = self.transform.log_mel(self.transform.stft_of_padded(padded))
        return Example(mel, padded[:, self.transform.pad : -self.transform.pad])

    def state_dict(self) -> dict[str, int]:
        """Returns what has to be kept to go on: nothing, the number of the step says it all."""
        return {}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Goes back to where :meth:`state_dict` was called."""
        if state:
            raise ValueError("the checkpoint is of a run on restored mels: set data.restored_from as it had it")


class RestoredMels:
    """Mels that a pipeline restores from rendered scenes, with what was wanted of them.

    Every example is a crop from one chunk of the pipeline; a validation clip is a whole chunk.

    Raises:
        ValueError: If there is no pipeline, or its mel is not the configured one, or there is no material.
    """

    def __init__(self, config: VocoderConfig, transform: BandTransform, device: torch.device) -> None:
        data = config.data
        if data.restored_from is None or not (data.restored_from / "model_index.json").is_file():
            raise ValueError(f"data.restored_from: {data.restored_from} is not the folder of a pipeline")
        self.pipeline = Aud2StudioPipeline.from_pretrained(data.restored_from, vocoder=None).to(device)
        check_front_end(self.pipeline, config)
        self.config, self.transform, self.device = config, transform, device
        chunk_frames = self.pipeline.chunk_frames
        if config.train.crop_frames > PATCH * chunk_frames:
            raise ValueError(
                f"train.crop_frames ({config.train.crop_frames}) is more than the {PATCH * chunk_frames} frames "
                "that the pipeline of data.restored_from restores at a time"
            )
        material = Material.open(data.material)
        chunk_s = PATCH * chunk_frames * config.mel.hop_length / config.mel.sample_rate

        def loader(seed: int, scenes_per_batch: int) -> SceneLoader:
            scenes = SceneRenderer(material, 1, seed, EXAMPLES_PER_SCENE * chunk_s + 0.5)
            return SceneLoader(scenes, self.pipeline.image, chunk_frames, scenes_per_batch)

        self.loader = loader(config.seed, max(1, config.train.batch_size // EXAMPLES_PER_SCENE))
        clips = [self._restored(batch, VALIDATION_SEED) for batch in itertools.islice(loader(2**20, 1), 4)]
        count = config.eval.num_clips
        self.clips = Example(*(torch.cat(parts).cpu()[:count] for parts in zip(*clips, strict=True)))

    def batches(self, first: int, last: int) -> Iterator[Example]:
        """Yields the batches of the steps `first` to `last` - 1, from where the loader stands."""
        hop, frames = self.config.mel.hop_length, self.config.train.crop_frames
        for step, batch in zip(range(first, last), self.loader, strict=False):
            seed = step_seed(self.config.seed, step, 0, 0)
            chunks = self._restored(batch, seed)
            starts = np.random.default_rng(seed).integers(chunks.mel.shape[-1] - frames + 1, size=len(chunks.mel))
            yield Example(
                torch.stack([mel[:, at : at + frames] for mel, at in zip(chunks.mel, starts, strict=True)]),
                torch.stack(
                    [clean[at * hop : (at + frames) * hop] for clean, at in zip(chunks.clean, starts, strict=True)]
                ),
            )

    def _restored(self, batch: Mapping[str, Any], seed: int) -> Example:
        """Restores whole chunks of a batch of scenes."""
        features = Features(*(batch[name].to(self.device) for name in Features._fields))
        generator = torch.Generator().manual_seed(seed)
        mel = restored_log_mel(self.pipeline, features, self.config.data.restored_steps, generator)
        return Example(mel, batch["target"].to(self.device))

    def state_dict(self) -> dict[str, int]:
        """Returns what has to be kept to go on after the last batch that was handed out."""
        return self.loader.state_dict()

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Goes back to where :meth:`state_dict` was called."""
        if not state:
            raise ValueError("the checkpoint is of a run on clean mels: --init_from starts a new run from its export")
        self.loader.load_state_dict(state)


def check_front_end(pipeline: Aud2StudioPipeline, config: VocoderConfig) -> None:
    """Refuses a pipeline whose mels are not those that the vocoder is trained on.

    Raises:
        ValueError: If a number differs; the message says which.
    """
    ours = config.mel.model_dump(exclude={"mean", "std"})
    theirs = {name: pipeline.config[name] for name in ours}
    for values in (ours, theirs):
        values["fmax"] = values["fmax"] or values["sample_rate"] / 2
    if wrong := [f"{name} {theirs[name]}, here {ours[name]}" for name in ours if ours[name] != theirs[name]]:
        raise ValueError(f"the pipeline of data.restored_from has another mel: {'; '.join(wrong)}")


@torch.no_grad()
def restored_log_mel(
    pipeline: Aud2StudioPipeline, features: Features, num_steps: int, generator: torch.Generator
) -> torch.Tensor:
    """Samples the log-mel (rows, mel, mel_frames) that a pipeline's vocoder would get for single chunks.

    Args:
        features: Of the chunks.
        num_steps: Of the sampling.
        generator: Of the noise, on the CPU.
    """
    condition = unet_condition(pipeline.unet, pipeline.condition_encoder, features)
    scheduler, device = pipeline.scheduler, features.log_mel.device
    scheduler.set_timesteps(num_steps, device=device)
    noise = torch.randn(features.log_mel[:, :1].shape, generator=generator).to(device)
    latents = noise * scheduler.init_noise_sigma
    extra = {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
    for timestep in scheduler.timesteps:
        image = pipeline.image.assemble(scheduler.scale_model_input(latents, timestep), features)
        answer = pipeline.image.read(pipeline.unet(image, timestep, **condition).sample, features)
        latents = scheduler.step(answer.prediction, timestep, latents, **extra).prev_sample
    return pipeline.image.corrected(latents, features)[:, 0].clamp_min(math.log(MEL_FLOOR))


SILENCE_RMS = 10 ** (-55 / 20)  # crops below are drawn again: scaled up they would be a codec's noise
MAX_PEAK = 0.98
MAX_DRAWS = 20


class MusicCrops:
    """Random mono crops of tracks, each at a random level.

    Args:
        rows: Inventory rows; a track is drawn with a probability proportional to its length.
        root: Folder that the rows' paths are relative to.
        num_samples: Length of a crop.
        sample_rate: Of the crops, in Hz.
        seed: Of the draws.
        levels_db: RMS of the crops in dB relative to full scale, drawn uniformly from this range; a crop whose peak
            would pass 0.98 is brought down to it.
    """

    def __init__(
        self,
        rows: Sequence[Mapping[str, Any]],
        root: Path,
        num_samples: int,
        sample_rate: int,
        seed: int,
        levels_db: tuple[float, float],
    ) -> None:
        self.seconds = num_samples / sample_rate
        self.rows = [row for row in rows if row["seconds"] > self.seconds]
        if not self.rows:
            raise ValueError(f"No track in the inventory of {root} is longer than the {self.seconds:.2f} s of a crop.")
        self.root, self.num_samples, self.sample_rate = root, num_samples, sample_rate
        self.seed, self.levels_db = seed, levels_db
        lengths = np.array([row["seconds"] for row in self.rows])
        self._shares = lengths / lengths.sum()

    def __getitem__(self, index: int) -> np.ndarray:
        """Reads crop number `index`, float32 (num_samples,); always the same one."""
        rng = np.random.default_rng((self.seed, index))
        for _ in range(MAX_DRAWS):
            row = self.rows[rng.choice(len(self.rows), p=self._shares)]
            start_s, channel = rng.uniform(0, row["seconds"] - self.seconds), rng.uniform()
            stems = [self._read(path, row, start_s, channel) for path in row.get("stems") or [row["path"]]]
            crop = np.stack(stems).sum(axis=0)
            rms = float(np.sqrt(np.mean(crop**2)))
            if rms > SILENCE_RMS:
                gain = 10 ** (rng.uniform(*self.levels_db) / 20) / rms
                return crop * np.float32(min(gain, MAX_PEAK / np.abs(crop).max()))
        raise ValueError(f"{MAX_DRAWS} crops in a row were silent: check the tracks below {self.root}.")

    def _read(self, path: str, row: Mapping[str, Any], start_s: float, channel: float) -> np.ndarray:
        """Reads a channel from `start_s` on, with zeros past the file's end: (num_samples,)."""
        rate = row["sample_rate"]
        wanted = math.ceil(self.seconds * rate) + 1
        waveform, _ = soundfile.read(
            self.root / path, wanted, round(start_s * rate), dtype="float32", always_2d=True, fill_value=0.0
        )
        if rate != self.sample_rate:
            waveform = soxr.resample(waveform, rate, self.sample_rate)
        return waveform[: self.num_samples, int(channel * waveform.shape[1])]


def batches(crops: MusicCrops, first: int, last: int, batch_size: int, num_threads: int) -> Iterator[torch.Tensor]:
    """Yields batches (batch_size, num_samples) number `first` to `last` - 1, a few of them begun ahead of their turn.

    Threads, not processes: decoding and resampling let go of Python's lock, and a signal reaches one process only.
    """

    def read(batch: int) -> torch.Tensor:
        start = batch * batch_size
        return torch.from_numpy(np.stack([crops[index] for index in range(start, start + batch_size)]))

    pending: deque[Future[torch.Tensor]] = deque()
    with ThreadPoolExecutor(num_threads, thread_name_prefix="decode") as pool:
        for batch in range(first, last):
            pending.append(pool.submit(read, batch))
            if len(pending) > 2 * num_threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
