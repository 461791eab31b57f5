"""The training loop at a toy size, started as users start it."""

import json
import logging
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import toy_process
import yaml
from accelerate.state import AcceleratorState
from diffusers import DiffusionPipeline
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import training.trainer
from training import train
from training.checkpoints import list_checkpoints, load_checkpoint
from training.jsonl import write_rows

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "training" / "configs"
STEPS = 8
TOY = {
    "experiment": "toy",
    "seed": 7,
    "audio": {"clip_seconds": 0.2},
    "mel": {"n_mels": 32},
    "model": {
        "block_out_channels": [8, 16],
        "attention_resolutions": [4],
        "attention_head_dim": 8,
        "norm_num_groups": 4,
        "conditioning_dim": 16,
        "conditioning_layers": 1,
        "conditioning_heads": 2,
        "overlap_frames": 8,
    },
    "scheduler": {"num_inference_steps": 1},
    "train": {
        "optimizer": "muon",
        "batch_size": 2,
        "lr": 1e-3,
        "lr_warmup_steps": 3,
        "max_train_steps": STEPS,
        "cpu_threads": 1,
        "checkpoints_total_limit": None,
    },
    "eval": {"num_clips": 2},
}
STATE = ("model", "ema", "optimizer")


@pytest.fixture(scope="module")
def config(material, tmp_path_factory) -> Path:
    """The toy configuration as a file, with material to render from and two clips to validate on."""
    folder = tmp_path_factory.mktemp("toy")
    clips = folder / "clips"
    clips.mkdir()
    noise, rows = np.random.default_rng(0), []
    for number in range(2):
        early = 0.1 * noise.standard_normal((20_000, 1))
        for part, sound in {"recording": early + 0.03 * noise.standard_normal(early.shape), "early": early}.items():
            soundfile.write(clips / f"{number}-{part}.flac", sound, 44_100)
        rows.append({"name": str(number), "condition": "audience", "voice": number == 1})
    write_rows(clips / "clips.jsonl", rows)
    data = {"material": str(material), "validation_clips": str(clips)}
    path = folder / "toy.yaml"
    path.write_text(yaml.safe_dump({**TOY, "data": data}))
    return path


@pytest.fixture(autouse=True)
def fresh_accelerate():
    """Accelerate keeps what it was told first for the whole process."""
    threads = torch.get_num_threads()
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    torch.set_num_threads(threads)
    torch.set_flush_denormal(False)


def run(config: Path, folder: Path, *options: str) -> int:
    return train.main(["--config", str(config), "--output_dir", str(folder), "--report_to", "none", *options])


@pytest.fixture(scope="module")
def reference(config, tmp_path_factory) -> Path:
    """A run that is never stopped."""
    folder = tmp_path_factory.mktemp("reference")
    assert run(config, folder, "--report_to", "tensorboard", "--validation_steps", "4") == 0
    return folder


def start(config: Path, folder: Path, *options: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "training.train", "--config", config, "--output_dir", folder]
    command += ["--report_to", "none", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([str(part) for part in command], cwd=ROOT, env=environment, stderr=subprocess.PIPE)


def wait_for_step(process: subprocess.Popen, step: int) -> None:
    """Reads the progress bar until the step is reached."""
    text = b""
    while chunk := os.read(process.stderr.fileno(), 4096):
        text += chunk
        if any(int(done) >= step for done in re.findall(rb"(\d+)/%d \[" % STEPS, text)):
            return
    pytest.fail(f"training ended early: {text.decode()[-2000:]}")


def assert_same_state(one: Path, two: Path) -> None:
    for stem in STATE:
        first, second = (load_file(path / f"checkpoint-{STEPS}" / f"{stem}.safetensors") for path in (one, two))
        assert first.keys() == second.keys()
        assert [name for name in first if not torch.equal(first[name], second[name])] == []


def test_a_run_writes_checkpoints_history_pictures_sound_and_a_pipeline(reference):
    rows = [json.loads(line) for line in (reference / "history.jsonl").read_text().splitlines()]
    validations = [row for row in rows if "validation/si_sdr" in row]
    assert [row["step"] for row in validations] == [4, 8]
    change = {name.removeprefix("validation/si_sdr_change"): value for name, value in validations[0].items()}
    assert change[""] != 0
    assert change[""] == pytest.approx((change["/voice"] + change["/no voice"]) / 2)
    assert change[""] == pytest.approx(change["/audience"])
    assert len(list(reference.glob("best-*"))) == 1

    events = EventAccumulator(str(next((reference / "aud2studio").glob("events*")).parent)).Reload()
    assert "validation/si_sdr_change" in events.Tags()["scalars"]
    assert [tag for tag in ("validation/0",) if tag not in events.Tags()["images"]] == []
    heard = {f"validation/0/{name}/audio_summary" for name in ("recording", "restored", "early")}
    assert {tag.removesuffix("/audio_summary") + "/audio_summary" for tag in events.Tags()["audio"]} >= heard

    state = json.loads((reference / f"checkpoint-{STEPS}" / "state.json").read_text())
    assert state["step"] == STEPS
    assert state["ema_updates"] == STEPS
    assert state["data"] == {"batch": STEPS}


def test_the_exported_pipeline_holds_the_averaged_weights_in_half_precision(reference):
    weights = load_file(reference / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors")
    averages = load_file(reference / f"checkpoint-{STEPS}" / "ema.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor.float(), averages[f"unet.{name}"], rtol=1e-3, atol=1e-4)
    names = [path.name for path in (reference / "pipeline").rglob("*") if path.is_file()]
    assert [name for name in names if not name.endswith((".json", ".safetensors"))] == []
    pipeline = DiffusionPipeline.from_pretrained(reference / "pipeline", dtype=torch.float32, vocoder=None)
    recording = 0.1 * np.random.default_rng(0).standard_normal(20_000).astype(np.float32)
    restored = pipeline(recording, 44_100, generator=torch.Generator().manual_seed(0)).audios
    assert restored.shape == (1, 1, 20_000)
    assert np.isfinite(restored).all()


@pytest.mark.slow
def test_stopped_by_sigterm_and_resumed_is_the_same_to_the_bit(config, reference, tmp_path):
    process = start(config, tmp_path)
    wait_for_step(process, 2)
    process.send_signal(signal.SIGTERM)
    process.stderr.read()
    assert process.wait(60) == 0
    (checkpoint,) = list_checkpoints(tmp_path)
    assert 2 <= load_checkpoint(checkpoint)[1]["step"] < STEPS
    assert run(config, tmp_path, "--resume_from_checkpoint", "latest", "--validation_steps", "4") == 0
    assert_same_state(reference, tmp_path)


@pytest.mark.slow
def test_a_kill_loses_at_most_an_interval_and_never_a_checkpoint(config, reference, tmp_path):
    process = start(config, tmp_path, "--checkpointing_steps", "1")
    wait_for_step(process, 4)
    process.kill()
    process.wait(60)
    process.stderr.close()
    steps = [load_checkpoint(path)[1]["step"] for path in list_checkpoints(tmp_path)]
    assert steps == list(range(1, steps[-1] + 1))
    assert steps[-1] >= 3
    leftover = tmp_path / f"checkpoint-{STEPS - 1}.tmp"
    leftover.mkdir(exist_ok=True)  # what a kill in the middle of writing leaves
    (leftover / "model.safetensors").write_bytes(b"half")
    assert run(config, tmp_path, "--resume_from_checkpoint", "latest") == 0
    assert_same_state(reference, tmp_path)
    assert not leftover.exists()


@pytest.mark.slow
def test_two_processes_train_and_agree(config, tmp_path):
    script = tmp_path / "launched.py"
    script.write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "from pathlib import Path\n"
        "from safetensors.torch import save_file\n"
        "from training import train, trainer\n"
        "class Witness(trainer.Trainer):\n"
        "    def fit(self):\n"
        "        super().fit()\n"
        "        rank = self.accelerator.process_index\n"
        "        weights = {name: weight.detach().contiguous() for name, weight in self.parameters.items()}\n"
        "        save_file(weights, Path(__file__).with_name(f'rank{rank}.safetensors'))\n"
        "train.Trainer = Witness\n"
        "sys.exit(train.main())\n"
    )
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", script]
    command += ["--config", config, "--output_dir", folder, "--report_to", "none", "--max_train_steps", "3"]
    command += ["--set", "data.validation_clips=null"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run([str(part) for part in command], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second, saved = (
        load_file(path)
        for path in (
            tmp_path / "rank0.safetensors",
            tmp_path / "rank1.safetensors",
            folder / "checkpoint-3" / "model.safetensors",
        )
    )
    for name, weight in first.items():
        assert torch.equal(weight, second[name])
        assert torch.equal(weight, saved[name])
    state = json.loads((folder / "checkpoint-3" / "state.json").read_text())
    assert state["data"] == {"batch": 3}


@pytest.mark.slow
def test_micro_batches_and_checkpointing_change_nothing_but_memory(config, tmp_path, monkeypatch):
    """The parts of a batch have noise of their own; without noise, losses and gradients are those of the whole."""
    found = []

    class Witness(training.trainer.Trainer):
        def train_step(self, batches):
            found.append(super().train_step(batches))
            return found[-1]

    monkeypatch.setattr(train, "Trainer", Witness)
    monkeypatch.setattr("training.objective.torch.randn", lambda shape, generator: torch.zeros(shape))
    options = ["--max_train_steps", "1", "--set", "loss.predictive_fraction=1", "--set", "data.validation_clips=null"]
    # Each of these is a mean over the examples; that of the labels is one over what is known.
    options += ["--set", "loss.labels=0"]
    for number, extra in enumerate(
        (
            [],
            ["--micro_batch_size", "1", "--set", "train.gradient_checkpointing=true"],
            ["--train_batch_size", "1", "--gradient_accumulation_steps", "2"],
        )
    ):
        assert run(config, tmp_path / str(number), *options, *extra) == 0
        AcceleratorState._reset_state(reset_partial_state=True)
    whole, split, accumulated = found
    for name in ("diffusion", "compressed_stft", "si_sdr", "grad_norm"):
        assert split[name] == pytest.approx(whole[name], rel=1e-4)
        assert accumulated[name] == pytest.approx(whole[name], rel=1e-4)


@pytest.mark.slow
def test_a_run_starts_with_the_weights_of_a_pipeline(config, reference, tmp_path):
    assert run(config, tmp_path, "--init_from", str(reference / "pipeline"), "--max_train_steps", "1") == 0
    given = load_file(reference / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors")
    trained = load_file(tmp_path / "checkpoint-1" / "model.safetensors")
    # One step of the warm-up, at a third of the learning rate, moves a matrix by as much as AdamW would: 0.2 of that.
    for name, weight in given.items():
        moved = trained[f"unet.{name}"] - weight.float()
        assert moved.square().mean().sqrt() < 4e-4
    state = json.loads((tmp_path / "checkpoint-1" / "state.json").read_text())
    assert (state["step"], state["ema_updates"]) == (1, 1)


@pytest.mark.slow
def test_an_export_with_a_vocoder_is_complete(config, toy_pipeline, tmp_path):
    toy_pipeline.vocoder.save_pretrained(tmp_path / "vocoder")
    options = ["--max_train_steps", "1", "--set", "data.validation_clips=null", "--export", str(tmp_path / "hub")]
    assert run(config, tmp_path / "run", *options, "--set", f"export.vocoder={tmp_path / 'vocoder'}") == 0
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "hub")
    for name, weight in toy_pipeline.vocoder.state_dict().items():
        assert torch.equal(pipeline.vocoder.state_dict()[name], weight)


def test_a_loss_that_is_not_finite_stops_and_names_the_rows(config, tmp_path, monkeypatch, capsys):
    class Broken(training.trainer.Trainer):
        def train_step(self, batches):
            if self.step == 2:
                with torch.no_grad():
                    next(iter(self.parameters.values())).fill_(float("nan"))
            return super().train_step(batches)

    monkeypatch.setattr(train, "Trainer", Broken)
    assert run(config, tmp_path) == 1
    written = json.loads((tmp_path / "non_finite_rank0.json").read_text())
    assert written["step"] == 2
    assert written["row_id"] == [4, 4, 4, 5]  # the first four examples of two scenes
    assert "non_finite_rank0.json" in capsys.readouterr().err
    assert list_checkpoints(tmp_path) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--set", "train.batchsize=1"], "batch_size"),
        (["--set", "data.material=nowhere"], "nowhere"),
        (["--resume_from_checkpoint", "checkpoint-9"], "checkpoint-9"),
        (["--init_from", "nowhere"], "nowhere"),
    ],
)
def test_what_cannot_work_is_one_line(config, tmp_path, capsys, options, words):
    assert run(config, tmp_path, *options) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("train.py: ")
    assert words in error


def test_a_checkpoint_of_another_architecture_is_refused(config, reference, tmp_path, capsys):
    path = str(reference / f"checkpoint-{STEPS}")
    assert run(config, tmp_path, "--resume_from_checkpoint", path, "--set", "model.conditioning_dim=32") == 2
    assert "does not fit this configuration" in capsys.readouterr().err


@pytest.mark.slow
def test_limits_in_minutes_count_over_resumed_runs(config, reference, tmp_path):
    checkpoint = str(reference / f"checkpoint-{STEPS}")
    options = ["--resume_from_checkpoint", checkpoint, "--max_train_steps", "99", "--max_train_minutes", "0.0001"]
    assert run(config, tmp_path, *options, "--set", "data.validation_clips=null") == 0
    assert [path.name for path in list_checkpoints(tmp_path)] == [f"checkpoint-{STEPS}"]


@pytest.mark.slow
def test_bfloat16_trains(config, tmp_path):
    options = ["--mixed_precision", "bf16", "--max_train_steps", "2", "--set", "data.validation_clips=null"]
    assert run(config, tmp_path, *options) == 0
    weights = load_file(tmp_path / "checkpoint-2" / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float32}


@pytest.mark.slow
def test_the_briefs_configuration_trains_a_step(material, tmp_path, monkeypatch, caplog):
    """The YAML, at its 48 kHz. Only its size is cut: a step at full size takes a CPU minutes."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "material").symlink_to(material, target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    cut = [
        "--set",
        "audio.clip_seconds=0.7",
        "--set",
        "model.overlap_frames=8",
        "--set",
        "model.base_channels=32",
        "--max_train_steps",
        "1",
    ]
    with caplog.at_level(logging.WARNING):
        assert run(CONFIGS / "bootleg_v1.yaml", tmp_path / "run", *cut) == 0
    notices = [record.getMessage() for record in caplog.records]
    if not torch.cuda.is_available():
        assert [text for text in notices if "fp16 needs a GPU" in text]
    for metric in ("srmr", "fad"):
        assert [text for text in notices if metric in text and "skipped" in text]
    (checkpoint,) = list_checkpoints(tmp_path / "run")
    assert checkpoint.name == "checkpoint-1"


def test_pushing_creates_the_repository_and_uploads_the_folder(tmp_path, monkeypatch):
    calls = []

    class Repo:
        repo_id = "someone/toy"

    monkeypatch.setattr(train, "create_repo", lambda *args, **options: calls.append((args, options)) or Repo())
    monkeypatch.setattr(train, "upload_folder", lambda **options: calls.append(options))
    train.push(tmp_path, "toy", private=True)
    assert calls[0] == (("toy",), {"private": True, "exist_ok": True})
    assert (calls[1]["repo_id"], calls[1]["folder_path"]) == ("someone/toy", tmp_path)


KILLS, KILLED_STEPS, INTERVAL = 8, 30, 3


@pytest.mark.slow
def test_eight_kills_lose_at_most_an_interval_each_and_change_nothing(config, tmp_path) -> None:
    """SIGKILL at random moments: while it starts, between steps, in a step, while a checkpoint is written."""
    rng = np.random.default_rng(0)
    options = ["--config", str(config), "--report_to", "none", "--max_train_steps", str(KILLED_STEPS)]
    options += ["--checkpointing_steps", str(INTERVAL), "--checkpoints_total_limit", "2"]
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["training.train"])  # imported once: a process starts within a moment

    def begin(folder: Path) -> multiprocessing.Process:
        arguments = [*options, "--output_dir", str(folder), "--resume_from_checkpoint", "latest"]
        process = context.Process(target=toy_process.train, args=(arguments, str(folder) + ".log"))
        process.start()
        return process

    def reached() -> int:
        log = Path(f"{killed}.log")
        found = re.findall(rf"(\d+)/{KILLED_STEPS} \[", log.read_text()) if log.exists() else []
        return max(map(int, found), default=0)

    seen = 0
    for number in range(KILLS):
        process = begin(killed)
        wanted = seen + int(rng.integers(0, 5)) if number % 4 else 0  # every fourth is killed while it starts
        while reached() < wanted and process.is_alive():
            time.sleep(0.005)
        time.sleep(float(rng.uniform(0.0, 0.08)) if wanted else float(rng.uniform(0.0, 0.5)))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, Path(f"{killed}.log").read_text()[-2000:]
        seen = max(seen, reached())
        kept = list_checkpoints(killed) if killed.is_dir() else []
        assert max((int(path.name.split("-")[1]) for path in kept), default=0) >= seen - INTERVAL
        for path in kept:
            load_checkpoint(path)  # whole, every one of them
    for folder in (killed, undisturbed):
        process = begin(folder)
        process.join()
        assert process.exitcode == 0, Path(f"{folder}.log").read_text()[-2000:]
    for stem in STATE:
        ends = [folder / f"checkpoint-{KILLED_STEPS}" / f"{stem}.safetensors" for folder in (killed, undisturbed)]
        first, second = map(load_file, ends)
        assert first.keys() == second.keys()
        assert [name for name in first if not torch.equal(first[name], second[name])] == []
    assert 3 < seen < KILLED_STEPS


@pytest.mark.slow
def test_a_full_disk_is_explained_and_loses_nothing(config, reference, tmp_path) -> None:
    """The last checkpoint stays, what could not be written leaves no checkpoint, and the run ends as it should."""
    options = ["--config", str(config), "--output_dir", str(tmp_path / "run"), "--report_to", "none"]
    resume = ["--resume_from_checkpoint", "latest", "--checkpointing_steps", "2"]
    assert train.main([*options, "--max_train_steps", "4", "--checkpointing_steps", "2"]) == 0
    context = multiprocessing.get_context("forkserver")
    log = tmp_path / "log"
    process = context.Process(target=toy_process.train, args=([*options, *resume], str(log), 20_000))
    process.start()
    process.join()
    message = next(line for line in log.read_text().splitlines() if line.startswith("train.py: "))
    assert process.exitcode == 1
    assert "stopped after step 6" in message and "checkpoint-4. Put it right" in message, message
    assert "File too large" in message and "Traceback" not in log.read_text()
    assert [path.name for path in list_checkpoints(tmp_path / "run")][-1] == "checkpoint-4"
    assert train.main([*options, *resume]) == 0
    assert_same_state(tmp_path / "run", reference)


@pytest.mark.slow
def test_data_that_is_gone_are_named(material, config, tmp_path, capsys) -> None:
    """A piece of music that is not where it was; back in its place, the run goes on."""
    moved = tmp_path / "material"
    shutil.copytree(material, moved)
    hidden = list((moved / "sounds").glob("music-*.npy"))
    for path in hidden:
        path.rename(path.with_suffix(".away"))
    options = ["--checkpointing_steps", "1", "--resume_from_checkpoint", "latest", "--max_train_steps", "3"]
    options += ["--set", f"data.material={moved}", "--set", "data.validation_clips=null"]
    assert run(config, tmp_path / "run", *options) == 1
    message = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("train.py: "))
    assert "music-" in message and "No such file" in message and "There is no checkpoint yet" in message
    for path in hidden:
        path.with_suffix(".away").rename(path)
    assert run(config, tmp_path / "run", *options) == 0
