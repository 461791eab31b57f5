from pathlib import Path

import pytest
import torch
import yaml

from pipeline_aud2studio.features import image_channels
from training.build import build_condition_encoder, build_scheduler, build_unet
from training.config import ConfigError, load_config, parse_config

CONFIGS = Path(__file__).parents[2] / "training" / "configs"

# The product brief's example, character by character apart from its line breaks.
BRIEF = """
experiment: bootleg_v1
seed: 1337
audio:
  sample_rate: 48000
  clip_seconds: 10
  mono: true
mel:
  n_fft: 1024
  hop_length: 256
  n_mels: 128
  fmin: 20
  fmax: 20000
model:
  base_channels: 128
  layers: 4
  attention_resolutions: [16, 8, 4]
  conditioning_dim: 256
scheduler:
  name: ddpm
  num_inference_steps: 50
train:
  batch_size: 8
  lr: 2.0e-4
  ema: true
  grad_clip: 1.0
  epochs: 100
  optimizer: adamw
  fp16: true
data:
  rir_dir: ./data/rirs
  noise_dir: ./data/noise
  clean_music_dir: ./data/clean
  pairs_manifest: ./data/pairs.jsonl
eval:
  metrics: [si_sdr, srmr, fad]
  val_every_steps: 1000
export:
  half_precision: true
"""


def test_the_briefs_yaml_is_shipped_and_loads():
    assert yaml.safe_load((CONFIGS / "bootleg_v1.yaml").read_text()) == yaml.safe_load(BRIEF)
    config = load_config(CONFIGS / "bootleg_v1.yaml")
    assert config.model.channels == (128, 256, 512, 1024)
    assert config.model.level_factors == (4, 8, 16, 32)
    assert config.train.mixed_precision == "fp16"
    assert config.train.lr == 2e-4
    assert config.eval.metrics == ("si_sdr", "srmr", "fad")
    # 10 s are 468.75 frames of four hops: the nearest multiple of 16, the condition encoder's patch.
    assert config.chunk_frames == 464
    assert config.clip_samples == 464 * 1024


@pytest.mark.parametrize("name", ["tiny", "bootleg_v1"])
def test_shipped_configurations_load_and_survive_a_round_trip(name):
    config = load_config(CONFIGS / f"{name}.yaml")
    assert parse_config(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["train.batchsize=3"], ["unknown key 'train.batchsize'", "'batch_size'"]),
        (["trian.lr=1"], ["unknown key 'trian'", "'train'"]),
        (["train.fp61=true"], ["unknown key 'train.fp61'", "'fp16'"]),
        (["train.lr=-1"], ["train.lr", "greater than 0", "-1"]),
        (["train.lr=fast"], ["train.lr", "'fast'"]),
        (["train.optimizer=sgd"], ["train.optimizer", "adamw", "'sgd'"]),
        (["audio.mono=false"], ["audio.mono"]),
        (["scheduler.prediction_type=epsilon"], ["scheduler.prediction_type", "v_prediction"]),
        (["model.attention_resolutions=[2]"], ["attention_resolutions [2]", "[4, 8, 16, 32]"]),
        (["model.conditioning_dim=10", "model.conditioning_heads=4"], ["conditioning_dim (10)"]),
        (["model.base_channels=20"], ["norm_num_groups"]),
        (["model.block_out_channels=[32, 64]"], ["block_out_channels", "base_channels"]),
        (["mel.fmax=30000"], ["mel.fmax (30000.0)", "audio.sample_rate (48000)"]),
        (["mel.n_mels=100"], ["mel.n_mels (100)", "32"]),
        (["mel.n_fft=1000"], ["mel.n_fft (1000)"]),
        (["train.mixed_precision=bf16"], ["fp16", "contradict"]),
        (["train.lr_schedule=cosine"], ["max_train_steps"]),
        (["train"], ["section.key=value"]),
        (["seed.deeper=1"], ["seed is not a section"]),
        (["train.lr=-1", "seed=-1"], ["train.lr", "seed"]),
    ],
)
def test_errors_name_the_key(overrides, words):
    with pytest.raises(ConfigError) as error:
        load_config(CONFIGS / "bootleg_v1.yaml", overrides)
    message = str(error.value)
    assert [word for word in words if word not in message] == []
    assert "\n" not in message
    assert "bootleg_v1.yaml" in message or not overrides[0].count("=") or "section" in message


@pytest.mark.parametrize("text", ["- 1\n", "a: [", "\xff\xfe"])
def test_what_is_not_a_mapping_in_yaml_is_refused(tmp_path, text):
    path = tmp_path / "bad.yaml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match="bad.yaml"):
        load_config(path)
    with pytest.raises(ConfigError, match="missing.yaml"):
        load_config(tmp_path / "missing.yaml")


def test_empty_sections_and_files_mean_defaults(tmp_path):
    path = tmp_path / "empty.yaml"
    path.write_text("train:\n")
    assert load_config(path) == parse_config({})


TOY = {
    "audio": {"clip_seconds": 0.4},
    "mel": {"n_mels": 32},
    "model": {
        "block_out_channels": [32, 64],
        "attention_resolutions": [8],
        "norm_num_groups": 8,
        "attention_head_dim": 8,
        "conditioning_dim": 16,
        "overlap_frames": 8,
    },
}


def test_unet_has_the_configured_levels_attention_and_channels():
    unet = build_unet(parse_config(TOY))
    assert unet.config.in_channels == image_channels(4)[0]
    assert unet.config.out_channels == image_channels(4)[1]
    assert list(unet.config.down_block_types) == ["DownBlock2D", "CrossAttnDownBlock2D"]
    assert list(unet.config.up_block_types) == ["CrossAttnUpBlock2D", "UpBlock2D"]
    attention = unet.down_blocks[1].attentions[0].transformer_blocks[0].attn2
    assert (attention.heads, attention.to_k.in_features) == (8, 16)
    assert unet.encoder_hid_proj.in_features == 16
    assert [parameter.count_nonzero().item() for parameter in unet.conv_out.parameters()] == [0, 0]


def test_condition_encoder_takes_one_chunk():
    config = parse_config(TOY)
    encoder = build_condition_encoder(config)
    inner = encoder.audio_spectrogram_transformer
    hidden = inner(torch.zeros(1, config.chunk_frames, 32)).last_hidden_state
    assert hidden.shape == (1, 2 + (config.chunk_frames // 16) * 2, 16)


@pytest.mark.parametrize("name", ["ddpm", "ddim", "dpm++", "unipc"])
def test_schedulers_end_in_pure_noise(name):
    scheduler = build_scheduler(parse_config({**TOY, "scheduler": {"name": name}}))
    assert float(scheduler.alphas_cumprod[-1]) < 1e-6  # DPM-Solver++ keeps 2^-24
    assert scheduler.config.get("clip_sample", False) is False
    scheduler.set_timesteps(4)
    assert scheduler.timesteps.tolist() == [999, 749, 499, 249]
