"""Fixtures for all tests."""

from pathlib import Path

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, MMAudioVocoder, UNet2DConditionModel
from transformers import ASTConfig, ASTForAudioClassification

from pipeline_aud2studio import Aud2StudioPipeline
from pipeline_aud2studio.conditioning import LABELS
from pipeline_aud2studio.features import PATCH, image_channels

WIDTH = 16
BANDS = 128
CHUNK_FRAMES = 32  # of four hops
RECORDINGS = 4


@pytest.fixture(scope="session")
def toy_pipeline() -> Aud2StudioPipeline:
    """The whole pipeline with random weights, on the real mel, small enough for a fraction of a second of work."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNet2DConditionModel(
            sample_size=(BANDS // PATCH, CHUNK_FRAMES),
            in_channels=image_channels(RECORDINGS)[0],
            out_channels=image_channels(RECORDINGS)[1],
            block_out_channels=(8, 16),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            norm_num_groups=4,
            attention_head_dim=(1, 2),
            cross_attention_dim=WIDTH,
            encoder_hid_dim=WIDTH,
            encoder_hid_dim_type="text_proj",
        )
        encoder = ASTForAudioClassification(
            ASTConfig(
                hidden_size=WIDTH,
                num_hidden_layers=1,
                num_attention_heads=2,
                intermediate_size=2 * WIDTH,
                num_mel_bins=BANDS,
                max_length=CHUNK_FRAMES,
                patch_size=16,
                frequency_stride=16,
                time_stride=16,
                num_labels=len(LABELS),
            )
        )
        vocoder = MMAudioVocoder(
            num_mels=BANDS,
            upsample_initial_channel=64,
            upsample_rates=(4, 4, 2, 2, 2, 2),
            upsample_kernel_sizes=(8, 8, 4, 4, 4, 4),
            resblock_kernel_sizes=(3,),
            resblock_dilation_sizes=((1,),),
        )
        for parameter in vocoder.parameters():
            if parameter.dim() == 3:  # its own N(0, 0.01) would fade to nothing over six stages
                torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    scheduler = DPMSolverMultistepScheduler(
        num_train_timesteps=1000,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        rescale_betas_zero_snr=True,
    )
    pipeline = Aud2StudioPipeline(unet.eval(), scheduler, encoder.eval(), vocoder.eval(), overlap_frames=8)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="session")
def toy_model(toy_pipeline: Aud2StudioPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`toy_pipeline` as a model folder."""
    folder = tmp_path_factory.mktemp("model")
    toy_pipeline.save_pretrained(folder)
    return folder
