"""The pipeline: one or several recordings of a performance in, restored audio out.

`__call__` is the way of the data from top to bottom; the siblings hold the parts.
"""

from __future__ import annotations

import copy
import inspect
import itertools
import math
import reprlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from numbers import Integral, Real
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers import DiffusionPipeline, MMAudioVocoder, UNet2DConditionModel
from diffusers.pipelines.pipeline_utils import AudioPipelineOutput
from diffusers.schedulers import SchedulerMixin
from diffusers.utils import logging, replace_example_docstring
from transformers import ASTForAudioClassification

from .analysis import Stretch, analyzed, chunks_of
from .audio import match_loudness, resample
from .blending import blended_parts, fine_parts
from .chunks import ArraySource, CrossFader, Padded, Source, chunk_starts, frame_noise, overlap_added
from .conditioning import unet_condition
from .features import PATCH, Answer, BandImage, Features, image_channels
from .precision import finite_or_again
from .prediction import BLOCK_FRAMES  # noqa: F401  (as remote code, only what this file imports itself is fetched)
from .spectral import MEL_FLOOR, BandTransform
from .takes import SILENCE_RMS, AudioInput, as_performances, assign_slots, level_gain, rms
from .vocoding import refine, vocode_parts

logger = logging.get_logger(__name__)

RECONSTRUCTIONS = ("faithful", "vocoder", "blend", "prediction")

EXAMPLE_DOC_STRING = """
    Examples:
        ```py
        >>> import soundfile
        >>> from pipeline_aud2studio import Aud2StudioPipeline, shipped_weights

        >>> pipe = Aud2StudioPipeline.from_pretrained(shipped_weights())
        >>> audio, sampling_rate = soundfile.read("audience.wav", dtype="float32", always_2d=True)
        >>> restored = pipe(audio.T, sampling_rate).audios[0]  # (channels, samples)
        >>> soundfile.write("restored.wav", restored.T, sampling_rate)
        ```
"""


class Aud2StudioPipeline(DiffusionPipeline):
    r"""
    Restores audience recordings of concerts: less crowd, less room, neutral sound.

    This model inherits from [`DiffusionPipeline`]. Check the superclass documentation for the generic methods the
    library implements for all pipelines (such as downloading or saving, running on a particular device, etc.).

    Args:
        unet ([`UNet2DConditionModel`]):
            Denoises the mel image, gates the predicted late sound and predicts what else disturbs, per band and frame.
        scheduler ([`SchedulerMixin`]):
            A scheduler with zero terminal SNR and trailing timesteps; DDPM, DDIM, DPM-Solver++ and UniPC share one
            config.
        condition_encoder ([`~transformers.ASTForAudioClassification`]):
            Audio Spectrogram Transformer that summarises room, crowd and device of every recording.
        vocoder ([`MMAudioVocoder`]):
            BigVGAN-v2, from the restored log-mel to a waveform (`reconstruction="vocoder"`).
        sample_rate (`int`): Sampling rate of the model in Hz.
        n_fft, hop_length, n_mels, fmin, fmax: The mel front end; the vocoder has to have been trained on the same.
        overlap_frames (`int`):
            Frames of four hops shared by neighbouring chunks. A chunk is the condition encoder's `max_length`.
        mel_mean, mel_std, correction_std (`float`): Normalisation of the image, see [`BandImage`].
        default_num_inference_steps (`int`): Denoising steps where the call does not say.
        griffin_lim_iterations (`int`):
            Iterations of Griffin-Lim that bring the vocoder's waveform to the restored mel's magnitudes
            (`reconstruction="vocoder"`). 0 with a full-size vocoder, whose own are finer than what a mel says of them.
    """

    model_cpu_offload_seq = "condition_encoder->unet->vocoder"
    _callback_tensor_inputs = ["latents"]

    def __init__(
        self,
        unet: UNet2DConditionModel,
        scheduler: SchedulerMixin,
        condition_encoder: ASTForAudioClassification,
        vocoder: MMAudioVocoder,
        sample_rate: int = 44100,
        n_fft: int = 1024,
        hop_length: int = 256,
        n_mels: int = 128,
        fmin: float = 0.0,
        fmax: float | None = None,
        overlap_frames: int = 32,
        mel_mean: float = -5.0,
        mel_std: float = 2.0,
        correction_std: float = 2.0,
        default_num_inference_steps: int = 8,
        griffin_lim_iterations: int = 0,
    ) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler, condition_encoder=condition_encoder, vocoder=vocoder)
        self.register_to_config(
            sample_rate=sample_rate,
            n_fft=n_fft,
            hop_length=hop_length,
            n_mels=n_mels,
            fmin=fmin,
            fmax=fmax,
            overlap_frames=overlap_frames,
            mel_mean=mel_mean,
            mel_std=mel_std,
            correction_std=correction_std,
            default_num_inference_steps=default_num_inference_steps,
            griffin_lim_iterations=griffin_lim_iterations,
        )
        per_recording = image_channels(2)[0] - image_channels(1)[0]
        self.max_recordings = 1 + (unet.config.in_channels - image_channels(1)[0]) // per_recording
        self.chunk_frames: int = condition_encoder.config.max_length
        self.transform = BandTransform(sample_rate, n_fft, hop_length, n_mels, fmin, fmax)
        # What becomes of a vocoded waveform.
        self.refine = (
            partial(refine, transform=self.transform, num_iterations=griffin_lim_iterations)
            if griffin_lim_iterations
            else None
        )
        self.image = BandImage(self.transform, self.max_recordings, mel_mean, mel_std, correction_std)

    def check_inputs(
        self,
        sampling_rate: int,
        num_inference_steps: int,
        reconstruction: str,
        dryness: float,
        batch_size: int,
        output_type: str,
        callback_on_step_end_tensor_inputs: Sequence[str] = (),
        strength: float = 1.0,
        generator: torch.Generator | None = None,
        latents: torch.Tensor | None = None,
        callback_on_step_end: Callable[..., dict[str, Any]] | None = None,
    ) -> None:
        """Raises a `ValueError` that says which argument of the call is wrong and what it may be."""
        wanted: list[tuple[str, Any, type, str]] = [
            ("sampling_rate", sampling_rate, Integral, "an integer"),
            ("num_inference_steps", num_inference_steps, Integral, "an integer"),
            ("batch_size", batch_size, Integral, "an integer"),
            ("dryness", dryness, Real, "a number"),
            ("strength", strength, Real, "a number"),
            ("reconstruction", reconstruction, str, "a string"),
            ("output_type", output_type, str, "a string"),
        ]
        for name, value, kind, what in wanted:
            _check_type(name, value, kind, what)
        if generator is not None:
            _check_type("generator", generator, torch.Generator, "a `torch.Generator` or None")
            if generator.device.type != "cpu":
                raise ValueError(
                    f"`generator` has to be on the CPU, whatever the pipeline is on; got {generator.device}."
                )
        if callback_on_step_end is not None and not callable(callback_on_step_end):
            raise ValueError(f"`callback_on_step_end` has to be callable or None, got {_shown(callback_on_step_end)}.")
        if latents is not None:
            _check_type("latents", latents, torch.Tensor, "a `torch.Tensor` or None")
            if latents.ndim != 4 or latents.shape[1:3] != (1, self.transform.n_mels) or not latents.numel():
                raise ValueError(
                    f"`latents` has to have the shape (rows, 1, {self.transform.n_mels}, frames), got "
                    f"{tuple(latents.shape)}."
                )
        if not 8000 <= sampling_rate <= 192000:
            raise ValueError(f"`sampling_rate` has to be within 8000 and 192000 Hz, got {sampling_rate}.")
        num_train_timesteps = self.scheduler.config.num_train_timesteps
        if not 1 <= num_inference_steps <= num_train_timesteps:
            raise ValueError(
                f"`num_inference_steps` has to be within 1 and {num_train_timesteps}, got {num_inference_steps}."
            )
        if not (0 < strength <= 1 and int(num_inference_steps * strength)):
            raise ValueError(
                f"`strength` has to be within 0 and 1 and leave at least one of `num_inference_steps` "
                f"({num_inference_steps}), got {strength}."
            )
        if reconstruction not in RECONSTRUCTIONS:
            raise ValueError(f"`reconstruction` has to be one of {RECONSTRUCTIONS}, got {reconstruction!r}.")
        if not 0 <= dryness <= 1:
            raise ValueError(f"`dryness` has to be within 0 (the input) and 1 (fully restored), got {dryness}.")
        if dryness < 1 and reconstruction == "vocoder":
            raise ValueError(
                "`dryness` mixes in phase, and the vocoder's phase is its own: use `faithful` or `blend`, or 1."
            )
        if batch_size < 1:
            raise ValueError(f"`batch_size` has to be at least 1, got {batch_size}.")
        if output_type not in ("np", "pt"):
            raise ValueError(f"`output_type` has to be 'np' or 'pt', got {output_type!r}.")
        inputs = callback_on_step_end_tensor_inputs
        if not isinstance(inputs, list | tuple) or any(name not in self._callback_tensor_inputs for name in inputs):
            raise ValueError(
                f"`callback_on_step_end_tensor_inputs` has to be a list that may hold {self._callback_tensor_inputs}, "
                f"got {_shown(inputs)}."
            )

    @torch.no_grad()
    @replace_example_docstring(EXAMPLE_DOC_STRING)
    def __call__(
        self,
        audio: AudioInput | Sequence[AudioInput],
        sampling_rate: int = 44100,
        num_inference_steps: int | None = None,
        reconstruction: str = "faithful",
        dryness: float = 1.0,
        generator: torch.Generator | None = None,
        latents: torch.Tensor | None = None,
        batch_size: int = 4,
        output_type: str = "np",
        return_dict: bool = True,
        callback_on_step_end: Callable[..., dict[str, Any]] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        strength: float = 1.0,
    ) -> AudioPipelineOutput | tuple[Any]:
        r"""
        Restores a recording.

        Args:
            audio (`np.ndarray`, `torch.Tensor` or a list of them):
                `(samples)`, `(channels, samples)` or `(batch, channels, samples)` with one or two channels, full scale
                at 1.0; or a list of takes of one performance, already aligned, the first of which is the reference.
            sampling_rate (`int`): Sampling rate of `audio` in Hz, 8000 to 192000.
            num_inference_steps (`int`, *optional*):
                Denoising steps of the mel that the vocoder gets. The faithful read-out takes its gains from the first
                one, where they were trained, and needs no more than that.
            reconstruction (`str`):
                `"faithful"` filters what was recorded; `"vocoder"` synthesises the restored mel anew; `"blend"` is
                faithful, and the vocoder in the bands and at the times in which the recording has nothing;
                `"prediction"` only takes away the late sound that linear prediction finds, without any network.
            dryness (`float`): 1 is fully restored, 0 the input, mixed in phase. Not with `vocoder`.
            generator (`torch.Generator`, *optional*): Source of the noise's seed, for repeatable results.
            latents (`torch.Tensor`, *optional*):
                Initial noise `(rows, 1, n_mels, frames)` instead of drawn noise; a row is a channel of a batch item.
            batch_size (`int`): Chunks that go through the UNet together. Changes memory and speed, not the result.
            output_type (`str`): `"np"` or `"pt"`.
            return_dict (`bool`): Whether to return an [`AudioPipelineOutput`] instead of a tuple.
            callback_on_step_end (`Callable`, *optional*): Called as `f(pipe, step, timestep, kwargs)` after each step.
            callback_on_step_end_tensor_inputs (`Sequence[str]`): What `kwargs` holds: `"latents"`.
            strength (`float`):
                Where the denoising of the mel begins, as in diffusers' image-to-image pipelines: at 1 from noise
                alone, below from the input's mel with as much noise, in `int(num_inference_steps * strength)` steps.
                The faithful gains do not depend on it.

        Examples:

        Returns:
            [`AudioPipelineOutput`] or a tuple: `audios` `(batch, channels, samples)` with the sampling rate, length,
            channels and loudness of the (reference) input, as float32.

        Raises:
            ValueError: If an argument has a wrong type or is out of range, or `audio` has a wrong shape or non-finite
                samples.
        """
        # 1. Check inputs
        if num_inference_steps is None:
            num_inference_steps = self.config.default_num_inference_steps
        self.check_inputs(
            sampling_rate,
            num_inference_steps,
            reconstruction,
            dryness,
            batch_size,
            output_type,
            callback_on_step_end_tensor_inputs,
            strength,
            generator,
            latents,
            callback_on_step_end,
        )
        performances = as_performances(audio, self.max_recordings)
        if latents is not None:
            if len(performances) > 1:
                raise ValueError("`latents` can be given for one performance at a time, not for a batch.")
            if len(latents) != (rows := len(performances[0][0])):
                raise ValueError(f"`latents` has to have a row for each channel, {rows}, got {len(latents)}.")

        # 2. Every performance draws its own seed, so that its result does not depend on its neighbours in the batch
        seeds = torch.randint(2**62, (len(performances),), generator=generator).tolist()

        # 3. Restore one performance after the other; the chunks of each are batched
        restored = []
        for takes, seed in zip(performances, seeds, strict=True):
            sampling = _Sampling(
                num_inference_steps,
                strength,
                seed,
                latents,
                callback_on_step_end,
                tuple(callback_on_step_end_tensor_inputs),
            )
            restored.append(self._restore(takes, sampling_rate, reconstruction, dryness, batch_size, sampling))

        # 4. Offload all models
        self.maybe_free_model_hooks()

        # 5. Return in the wanted type
        audios: Any = np.stack(restored)
        if output_type == "pt":
            audios = torch.from_numpy(audios)
        if not return_dict:
            return (audios,)
        return AudioPipelineOutput(audios=audios)

    def _restore(
        self,
        takes: list[np.ndarray],
        sampling_rate: int,
        reconstruction: str,
        dryness: float,
        batch_size: int,
        sampling: _Sampling,
    ) -> np.ndarray:
        """One performance: takes (channels, samples) to the reference's restoration (channels, samples)."""
        reference = takes[0]
        if rms(reference) < SILENCE_RMS:
            return reference.copy()
        length = reference.shape[-1]
        own_rate = self.config.sample_rate
        # Takes of different devices have different levels; every one comes to the level that the UNet knows.
        sources = [ArraySource(resample(take * level_gain(rms(take)), sampling_rate, own_rate)) for take in takes]
        blocks = self._blocks(sources, len(sources), reconstruction, batch_size, sampling)
        restored = np.concatenate([*blocks], axis=-1)
        waveform = resample(restored, own_rate, sampling_rate, length)
        waveform = match_loudness(waveform, reference, sampling_rate, level_gain(rms(reference)))
        if dryness < 1:
            waveform = match_loudness(dryness * waveform + (1 - dryness) * reference, reference, sampling_rate)
        return waveform

    @torch.no_grad()
    def stream(
        self,
        takes: Sequence[Source],
        num_inference_steps: int | None = None,
        reconstruction: str = "faithful",
        generator: torch.Generator | None = None,
        batch_size: int = 4,
        seen: int | None = None,
    ) -> Iterator[np.ndarray]:
        """Restores takes of any length in memory that does not grow with it.

        Args:
            takes: At the pipeline's own sampling rate and at the level that [`~takes.level_gain`] brings them to, the
                reference first.
            num_inference_steps, reconstruction, generator, batch_size: See [`__call__`].
            seen: How many of the takes, from the first on, the network sees; the others need not be aligned to the
                sample, for only their past predicts late sound. By default all.

        Yields:
            The reference's restoration (channels, samples) piece by piece, at the pipeline's sampling rate and not yet
            at any loudness.

        Raises:
            ValueError: If an argument has a wrong type or is out of range, or more takes are to be seen than the model
                stacks.
        """
        if num_inference_steps is None:
            num_inference_steps = self.config.default_num_inference_steps
        self.check_inputs(
            self.config.sample_rate,
            num_inference_steps,
            reconstruction,
            1.0,
            batch_size,
            output_type="np",
            generator=generator,
        )
        seen = len(takes) if seen is None else seen
        if not 1 <= seen <= min(len(takes), self.max_recordings):
            raise ValueError(f"1 to {self.max_recordings} takes of `takes` can be seen, got {seen} of {len(takes)}.")
        seed = int(torch.randint(2**62, (1,), generator=generator))
        sampling = _Sampling(num_inference_steps, 1.0, seed, None, None, ())
        yield from self._blocks(takes, seen, reconstruction, batch_size, sampling)
        self.maybe_free_model_hooks()

    def _blocks(
        self, takes: Sequence[Source], seen: int, reconstruction: str, batch_size: int, sampling: _Sampling
    ) -> Iterator[np.ndarray]:
        """Yields the restoration (channels of the first take, samples) piece by piece."""
        num_samples, coarse = takes[0].num_samples, self.image.coarse
        slots = assign_slots([take.num_channels for take in takes[:seen]], self.max_recordings)
        num_frames = coarse.num_frames(num_samples)
        padded = Padded(takes, num_frames, coarse.hop_length, coarse.pad, self._execution_device)
        read_outs = {
            "faithful": self._faithful,
            "vocoder": self._vocoded,
            "blend": self._blended,
            "prediction": self._predicted,
        }
        for block in read_outs[reconstruction](padded, slots, num_samples, batch_size, sampling):
            yield block.cpu().numpy()

    def _predicted(
        self, padded: Padded, slots: list[list[int]], num_samples: int, batch_size: int, sampling: _Sampling
    ) -> Iterator[torch.Tensor]:
        """Yields the recording without its predicted late sound (rows, samples) piece by piece."""
        stretches = analyzed(padded, self.image, slots, self.image.coarse.num_frames(num_samples))
        spectra = ((stretch.first, stretch.stft - stretch.late) for stretch in stretches)
        yield from overlap_added(self.image.coarse, spectra, num_samples)

    def _faithful(
        self, padded: Padded, slots: list[list[int]], num_samples: int, batch_size: int, sampling: _Sampling
    ) -> Iterator[torch.Tensor]:
        """Yields the filtered recording (rows, samples) piece by piece."""
        parts = self._restored(padded, slots, num_samples, batch_size, sampling, "faithful")
        yield from overlap_added(self.image.coarse, ((first, part) for first, part, _ in parts), num_samples)

    def _vocoded(
        self, padded: Padded, slots: list[list[int]], num_samples: int, batch_size: int, sampling: _Sampling
    ) -> Iterator[torch.Tensor]:
        """Synthesises the restored log-mel: yields (rows, samples) piece by piece."""
        restored = self._restored(padded, slots, num_samples, batch_size, sampling, "vocoder")
        parts = ((PATCH * first, log_mel.cpu()) for first, _, log_mel in restored)
        wanted = num_samples
        for samples in vocode_parts(self.vocoder, parts, self._execution_device, refine=self.refine):
            if wanted > 0:
                yield samples[:, :wanted]
            wanted -= samples.shape[-1]

    def _blended(
        self, padded: Padded, slots: list[list[int]], num_samples: int, batch_size: int, sampling: _Sampling
    ) -> Iterator[torch.Tensor]:
        """Yields the faithful read-out, and the vocoder where that has too little: (rows, samples) piece by piece."""
        num_frames = PATCH * self.image.coarse.num_frames(num_samples)
        restored = self._restored(padded, slots, num_samples, batch_size, sampling, "blend")
        parts = fine_parts(self.image.coarse, self.transform, restored, num_frames)
        # Not refined: the blend itself brings the vocoder to the restored mel. Refined, without the mel's floor, it
        # is 1.5 dB lower above a limit of 8 kHz, and 0.13 dB instead of 0.07 from the faithful sound below it.
        vocode = partial(vocode_parts, self.vocoder, device=self._execution_device)
        spectra = blended_parts(self.transform, parts, vocode, num_frames)
        yield from overlap_added(self.transform, spectra, num_samples)

    def _restored(
        self,
        padded: Padded,
        slots: list[list[int]],
        num_samples: int,
        batch_size: int,
        sampling: _Sampling,
        reconstruction: str,
    ) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
        """Runs the chunks through the UNet and cross-fades them.

        Yields:
            The first frame of what is final, its faithful spectrum (rows, bins, frames) (nothing for `vocoder`), and
            its log-mel (rows, mel, mel_frames) (nothing for `faithful`).
        """
        num_frames, chunk, overlap = (
            self.image.coarse.num_frames(num_samples),
            self.chunk_frames,
            self.config.overlap_frames,
        )
        starts = chunk_starts(num_frames, chunk, overlap)
        faders = CrossFader(num_frames, chunk, overlap), CrossFader(PATCH * num_frames, PATCH * chunk, PATCH * overlap)
        together = max(1, batch_size // len(slots))
        stretches = analyzed(padded, self.image, slots, num_frames, starts[-1] + chunk)
        chunks = chunks_of(stretches, starts, chunk)
        with self.progress_bar(total=len(starts)) as progress:
            while group := list(itertools.islice(chunks, together)):
                first_s = group[0].first * self.image.coarse.hop_length / self.config.sample_rate
                gains, log_mel = finite_or_again(
                    partial(self._sample, group, sampling, reconstruction),
                    {"condition_encoder": self.condition_encoder, "unet": self.unet},
                    f"at {first_s:.1f} s",
                )
                for part, gain, mel in zip(group, gains.chunk(len(group)), log_mel.chunk(len(group)), strict=True):
                    spectrum, final_mel = part.stft[..., :0], mel[..., :0]
                    if reconstruction != "vocoder":
                        final = faders[0].add(part.first, gain)  # (rows, gate and gain, bands, frames)
                        stft, late = (each[..., : final.shape[-1]] for each in (part.stft, part.late))
                        spectrum = self.image.apply(stft, late, final[:, 0], final[:, 1])
                    if reconstruction != "faithful":
                        final_mel = faders[1].add(PATCH * part.first, mel)
                    yield part.first, spectrum, final_mel
                progress.update(len(group))

    def _sample(
        self, chunks: list[Stretch], sampling: _Sampling, reconstruction: str
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Runs the denoising loop on some chunks.

        Returns:
            Gate and gain (rows of all chunks, 2, bands, frames), and the log-mel (rows, mel, mel_frames), which is the
            recording's where the reconstruction is `faithful`.
        """
        # a. Condition of every recording
        features = Features(*(torch.cat(parts) for parts in zip(*(chunk.features for chunk in chunks), strict=True)))
        condition = unet_condition(self.unet, self.condition_encoder, features)
        dtype = self.unet.dtype  # once: diffusers looks through all modules for it

        # b. Timesteps and initial noise; the channels of a recording share it, so that equal ones stay equal
        starts = [PATCH * chunk.first for chunk in chunks]
        scheduler = copy.deepcopy(self.scheduler)  # it counts its steps: threads that share a pipeline need their own
        scheduler.set_timesteps(sampling.num_inference_steps, device=features.log_mel.device)
        noise = self._noise(starts, features, sampling, step=0)
        latents = noise * scheduler.init_noise_sigma

        def predict(latents: torch.Tensor, timestep: torch.Tensor) -> Answer:
            noisy = scheduler.scale_model_input(latents, timestep)
            image = self.image.assemble(noisy, features, dtype).contiguous(memory_format=torch.channels_last)
            return self.image.read(self.unet(image, timestep, **condition).sample, features)

        # c. A warm start: the input's mel, whose correction is zero, with noise. The gains are read from noise alone.
        timesteps, gains = scheduler.timesteps, None
        skipped = sampling.num_inference_steps - int(sampling.num_inference_steps * sampling.strength)
        if skipped and reconstruction != "faithful":
            if reconstruction == "blend":
                gains = predict(latents, timesteps[0])
            begin = skipped * scheduler.order
            timesteps = timesteps[begin:]
            if hasattr(scheduler, "set_begin_index"):
                scheduler.set_begin_index(begin)
            latents = scheduler.add_noise(torch.zeros_like(noise), noise, timesteps[:1].repeat(len(noise)))

        # d. Denoise
        for step, timestep in enumerate(timesteps):
            answer = predict(latents, timestep)
            gains = answer if gains is None else gains
            if reconstruction != "faithful":
                extra = self._step_noise(starts, features, sampling, step + 1)
                latents = scheduler.step(answer.prediction, timestep, latents, **extra).prev_sample
            if sampling.callback is not None:
                kwargs = {name: {"latents": latents}[name] for name in sampling.callback_inputs}
                latents = sampling.callback(self, step, timestep, kwargs).pop("latents", latents)
            if reconstruction == "faithful":
                latents = torch.zeros_like(latents)
                break
        assert gains is not None
        log_mel = self.image.corrected(latents, features).clamp_min(math.log(MEL_FLOOR))
        return torch.stack([gains.gate, gains.gain], dim=1), log_mel[:, 0]

    def _noise(self, starts: list[int], features: Features, sampling: _Sampling, step: int) -> torch.Tensor:
        """Draws noise (rows of all chunks, 1, mel, mel_frames), cut from one noise for the whole recording."""
        rows = len(features.log_mel) // len(starts)
        _, _, bands, frames = features.log_mel.shape
        if step == 0 and sampling.latents is not None:
            noise = [_cut(sampling.latents, first, frames) for first in starts]  # (rows, 1, mel, mel_frames) each
        else:
            drawn = [frame_noise(sampling.seed, step, bands, first, frames) for first in starts]
            noise = [chunk.expand(rows, 1, -1, -1) for chunk in drawn]
        return torch.cat(noise).to(features.log_mel)

    def _step_noise(
        self, starts: list[int], features: Features, sampling: _Sampling, step: int
    ) -> dict[str, torch.Tensor | list[torch.Generator]]:
        """What `scheduler.step` gets as its source of noise."""
        parameters = inspect.signature(self.scheduler.step).parameters
        if "variance_noise" in parameters:
            return {"variance_noise": self._noise(starts, features, sampling, step)}
        if "generator" not in parameters:
            return {}
        # DDPM takes no noise, only generators: overlapping chunks then draw different noise, and are cross-faded.
        rows = len(features.log_mel) // len(starts)
        seeds = [(sampling.seed + 1_000_003 * step + 8_191_000_003 * first) % 2**63 for first in starts]
        return {"generator": [torch.Generator().manual_seed(seed) for seed in seeds for _ in range(rows)]}


def _check_type(name: str, value: Any, kind: type, what: str) -> None:
    """Raises a `ValueError` if an argument is not of a type; True and False are no numbers here."""
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(f"`{name}` has to be {what}, got {_shown(value)}.")


def _shown(value: Any) -> str:
    """A wrong argument in short, for messages."""
    return f"{reprlib.repr(value)} of type {type(value).__name__}"


class _Sampling(NamedTuple):
    """What the denoising loop is told by the caller."""

    num_inference_steps: int
    strength: float
    seed: int
    latents: torch.Tensor | None
    callback: Callable[..., dict[str, Any]] | None
    callback_inputs: tuple[str, ...]


def _cut(noise: torch.Tensor, first: int, num_frames: int) -> torch.Tensor:
    """Frames of given latents; beyond their end, where the last chunk is padded, they are repeated."""
    index = torch.arange(first, first + num_frames) % noise.shape[-1]
    return noise[..., index]
