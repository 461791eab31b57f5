"""The pipeline: one or several recordings of a performance in, restored audio out."""

from __future__ import annotations

import copy
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
from .chunks import ArraySource, CrossFader, Padded, Source, chunk_noise, chunk_starts, overlap_added, step_noise
from .conditioning import unet_condition
from .features import PATCH, Answer, BandImage, Features, image_channels
from .precision import finite_or_again
from .prediction import BLOCK_FRAMES  # noqa: F401  (as remote code, only what this file imports itself is fetched)
from .spectral import MEL_FLOOR, BandTransform
from .takes import SILENCE_RMS, AudioInput, as_performances, assign_slots, level_gain, rms
from .vocoding import refine, vocode_parts

logger = logging.get_logger(__name__)

RECONSTRUCTIONS = ("faithful", "vocoder", "blend", "prediction")
ARGUMENT_TYPES: dict[str, tuple[Any, str]] = {  # of a call; True and False are no numbers here
    "sampling_rate": (Integral, "an integer"),
    "num_inference_steps": (Integral, "an integer"),
    "batch_size": (Integral, "an integer"),
    "dryness": (Real, "a number"),
    "strength": (Real, "a number"),
    "reconstruction": (str, "a string"),
    "output_type": (str, "a string"),
    "generator": (torch.Generator | None, "a `torch.Generator` or None"),
    "latents": (torch.Tensor | None, "a `torch.Tensor` or None"),
    "callback_on_step_end": (Callable | None, "callable or None"),
    "callback_on_step_end_tensor_inputs": (list | tuple, "a list"),
}

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
        arguments = locals()
        for name, (kind, what) in ARGUMENT_TYPES.items():
            value = arguments[name]
            if not isinstance(value, kind) or isinstance(value, bool):
                shown = f"{reprlib.repr(value)} of type {type(value).__name__}"
                raise ValueError(f"`{name}` has to be {what}, got {shown}.")
        steps, names = self.scheduler.config.num_train_timesteps, self._callback_tensor_inputs
        shape, n_mels = None if latents is None else tuple(latents.shape), self.transform.n_mels
        on = None if generator is None else generator.device
        for is_right, name, what, found in (
            (8000 <= sampling_rate <= 192000, "sampling_rate", "within 8000 and 192000 Hz", sampling_rate),
            (1 <= num_inference_steps <= steps, "num_inference_steps", f"within 1 and {steps}", num_inference_steps),
            (
                0 < strength <= 1 and int(num_inference_steps * strength),
                "strength",
                f"within 0 and 1 and leave at least one of `num_inference_steps` ({num_inference_steps})",
                strength,
            ),
            (reconstruction in RECONSTRUCTIONS, "reconstruction", f"one of {RECONSTRUCTIONS}", repr(reconstruction)),
            (0 <= dryness <= 1, "dryness", "within 0 (the input) and 1 (fully restored)", dryness),
            (
                dryness == 1 or reconstruction != "vocoder",
                "dryness",
                "1 with `vocoder`, as it mixes in phase and the vocoder's phase is its own",
                dryness,
            ),
            (batch_size >= 1, "batch_size", "at least 1", batch_size),
            (output_type in ("np", "pt"), "output_type", "'np' or 'pt'", repr(output_type)),
            (
                all(name in names for name in callback_on_step_end_tensor_inputs),
                "callback_on_step_end_tensor_inputs",
                f"a list that may hold {names}",
                reprlib.repr(callback_on_step_end_tensor_inputs),
            ),
            (on is None or on.type == "cpu", "generator", "on the CPU, whatever the pipeline is on", on),
            (
                shape is None or (len(shape) == 4 and shape[1:3] == (1, n_mels) and 0 not in shape),
                "latents",
                f"of the shape (rows, 1, {n_mels}, frames)",
                shape,
            ),
        ):
            if not is_right:
                raise ValueError(f"`{name}` has to be {what}, got {found}.")

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

        audios: Any = []
        own_rate = self.config.sample_rate
        for takes, seed in zip(performances, seeds, strict=True):
            reference = takes[0]
            if rms(reference) < SILENCE_RMS:
                audios.append(reference.copy())
                continue

            # 3. Bring takes of different devices to the level and the rate that the networks know
            sources = [ArraySource(resample(take * level_gain(rms(take)), sampling_rate, own_rate)) for take in takes]

            # 4. Restore the reference, chunk by chunk
            sampling = _Sampling(
                reconstruction,
                batch_size,
                num_inference_steps,
                seed,
                strength,
                latents,
                callback_on_step_end,
                tuple(callback_on_step_end_tensor_inputs),
            )
            restored = np.concatenate([*self._blocks(sources, len(sources), sampling)], axis=-1)

            # 5. Bring it back to its own rate and loudness, and mix what was recorded in
            restored = resample(restored, own_rate, sampling_rate, reference.shape[-1])
            restored = match_loudness(restored, reference, sampling_rate, level_gain(rms(reference)))
            if dryness < 1:
                restored = match_loudness(dryness * restored + (1 - dryness) * reference, reference, sampling_rate)
            audios.append(restored)

        # 6. Offload all models
        self.maybe_free_model_hooks()

        # 7. Return in the wanted type
        audios = np.stack(audios)
        if output_type == "pt":
            audios = torch.from_numpy(audios)
        if not return_dict:
            return (audios,)
        return AudioPipelineOutput(audios=audios)

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
            ValueError: If an argument is wrong, or more takes are to be seen than the model stacks.
        """
        if num_inference_steps is None:
            num_inference_steps = self.config.default_num_inference_steps
        own_rate = self.config.sample_rate
        self.check_inputs(
            own_rate, num_inference_steps, reconstruction, 1.0, batch_size, output_type="np", generator=generator
        )
        seen = len(takes) if seen is None else seen
        if not 1 <= seen <= min(len(takes), self.max_recordings):
            raise ValueError(f"1 to {self.max_recordings} takes of `takes` can be seen, got {seen} of {len(takes)}.")
        seed = int(torch.randint(2**62, (1,), generator=generator))
        sampling = _Sampling(reconstruction, batch_size, num_inference_steps, seed)
        yield from self._blocks(takes, seen, sampling)
        self.maybe_free_model_hooks()

    def _blocks(self, takes: Sequence[Source], seen: int, sampling: _Sampling) -> Iterator[np.ndarray]:
        """Yields the restoration (channels of the first take, samples) piece by piece."""
        coarse, fine, device = self.image.coarse, self.transform, self._execution_device
        num_samples, num_frames = takes[0].num_samples, coarse.num_frames(takes[0].num_samples)
        slots = assign_slots([take.num_channels for take in takes[:seen]], self.max_recordings)
        padded = Padded(takes, num_frames, coarse.hop_length, coarse.pad, device)
        spectra: Iterator[tuple[int, torch.Tensor]]
        if sampling.reconstruction == "prediction":
            stretches = analyzed(padded, self.image, slots, num_frames)
            spectra = ((stretch.first, stretch.stft - stretch.late) for stretch in stretches)
            blocks = overlap_added(coarse, spectra, num_samples)
        else:
            restored = self._restored(padded, slots, num_frames, sampling)
            if sampling.reconstruction == "faithful":
                blocks = overlap_added(coarse, ((first, part) for first, part, _ in restored), num_samples)
            elif sampling.reconstruction == "vocoder":
                log_mels = ((PATCH * first, log_mel.cpu()) for first, _, log_mel in restored)
                blocks = vocode_parts(self.vocoder, log_mels, device, refine=self.refine)
            else:
                # Not refined: the blend itself brings the vocoder to the restored mel. Refined, without the mel's
                # floor, it is 1.5 dB lower above a limit of 8 kHz, and 0.13 dB instead of 0.07 from the faithful sound
                # below it.
                vocode = partial(vocode_parts, self.vocoder, device=device)
                parts = fine_parts(coarse, fine, restored, PATCH * num_frames)
                spectra = blended_parts(fine, parts, vocode, PATCH * num_frames)
                blocks = overlap_added(fine, spectra, num_samples)
        wanted = num_samples
        for block in blocks:
            if wanted > 0:
                yield block[:, :wanted].cpu().numpy()
            wanted -= block.shape[-1]

    def _restored(
        self, padded: Padded, slots: list[list[int]], num_frames: int, sampling: _Sampling
    ) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
        """Runs the chunks through the UNet and cross-fades them.

        Yields:
            The first frame of what is final, its faithful spectrum (rows, bins, frames) (nothing for `vocoder`), and
            its log-mel (rows, mel, mel_frames) (nothing for `faithful`).
        """
        chunk, overlap = self.chunk_frames, self.config.overlap_frames
        starts = chunk_starts(num_frames, chunk, overlap)
        faders = CrossFader(num_frames, chunk, overlap), CrossFader(PATCH * num_frames, PATCH * chunk, PATCH * overlap)
        together = max(1, sampling.batch_size // len(slots))
        stretches = analyzed(padded, self.image, slots, num_frames, starts[-1] + chunk)
        chunks = chunks_of(stretches, starts, chunk)
        with self.progress_bar(total=len(starts)) as progress:
            while group := list(itertools.islice(chunks, together)):
                first_s = group[0].first * self.image.coarse.hop_length / self.config.sample_rate
                gains, log_mel = finite_or_again(
                    partial(self._sample, group, sampling),
                    {"condition_encoder": self.condition_encoder, "unet": self.unet},
                    f"at {first_s:.1f} s",
                )
                for part, gain, mel in zip(group, gains.chunk(len(group)), log_mel.chunk(len(group)), strict=True):
                    spectrum, final_mel = part.stft[..., :0], mel[..., :0]
                    if sampling.reconstruction != "vocoder":
                        final = faders[0].add(part.first, gain)  # (rows, gate and gain, bands, frames)
                        stft, late = (each[..., : final.shape[-1]] for each in (part.stft, part.late))
                        spectrum = self.image.apply(stft, late, final[:, 0], final[:, 1])
                    if sampling.reconstruction != "faithful":
                        final_mel = faders[1].add(PATCH * part.first, mel)
                    yield part.first, spectrum, final_mel
                progress.update(len(group))

    def _sample(self, chunks: list[Stretch], sampling: _Sampling) -> tuple[torch.Tensor, torch.Tensor]:
        """Runs the denoising loop on some chunks.

        Returns:
            Gate and gain (rows of all chunks, 2, bands, frames), and the log-mel (rows, mel, mel_frames), which is the
            recording's where the reconstruction is `faithful`.
        """
        # a. Condition of every recording
        features = Features(*(torch.cat(parts) for parts in zip(*(chunk.features for chunk in chunks), strict=True)))
        condition = unet_condition(self.unet, self.condition_encoder, features)
        dtype = self.unet.dtype  # once: diffusers looks through all modules for it

        # b. Timesteps and initial noise
        starts = [PATCH * chunk.first for chunk in chunks]
        scheduler = copy.deepcopy(self.scheduler)  # it counts its steps: threads that share a pipeline need their own
        scheduler.set_timesteps(sampling.num_inference_steps, device=features.log_mel.device)
        noise = chunk_noise(sampling.seed, 0, starts, features.log_mel, sampling.latents)
        latents = noise * scheduler.init_noise_sigma

        def predict(latents: torch.Tensor, timestep: torch.Tensor) -> Answer:
            noisy = scheduler.scale_model_input(latents, timestep)
            image = self.image.assemble(noisy, features, dtype).contiguous(memory_format=torch.channels_last)
            return self.image.read(self.unet(image, timestep, **condition).sample, features)

        # c. A warm start: the input's mel, whose correction is zero, with noise. The gains are read from noise alone.
        timesteps, gains = scheduler.timesteps, None
        skipped = sampling.num_inference_steps - int(sampling.num_inference_steps * sampling.strength)
        if skipped and sampling.reconstruction != "faithful":
            if sampling.reconstruction == "blend":
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
            if sampling.reconstruction != "faithful":
                extra = step_noise(scheduler, sampling.seed, step + 1, starts, features.log_mel)
                latents = scheduler.step(answer.prediction, timestep, latents, **extra).prev_sample
            if sampling.callback is not None:
                kwargs = {name: {"latents": latents}[name] for name in sampling.callback_inputs}
                latents = sampling.callback(self, step, timestep, kwargs).pop("latents", latents)
            if sampling.reconstruction == "faithful":
                latents = torch.zeros_like(latents)
                break
        assert gains is not None
        log_mel = self.image.corrected(latents, features).clamp_min(math.log(MEL_FLOOR))
        return torch.stack([gains.gate, gains.gain], dim=1), log_mel[:, 0]


class _Sampling(NamedTuple):
    """What the denoising loop is told by the caller."""

    reconstruction: str
    batch_size: int
    num_inference_steps: int
    seed: int
    strength: float = 1.0
    latents: torch.Tensor | None = None
    callback: Callable[..., dict[str, Any]] | None = None
    callback_inputs: tuple[str, ...] = ()
