"""How a batch is split so that a training step fits a consumer's GPU (24 GB)."""

from __future__ import annotations

from .config import TrainingConfig

ACTIVATION_BUDGET = 6 * 2**30  # bytes; the rest is for weights, gradients, optimizer, averages and temporary buffers
# Numbers that autograd keeps per channel, pixel and layer, counted with its hooks; attention comes on top.
PER_LAYER, PER_ATTENTION = 10, 33
# Of the activations with gradient checkpointing: the blocks' inputs, and the block that is computed again.
CHECKPOINTED_SHARE = 0.5


def activation_bytes(config: TrainingConfig) -> int:
    """What autograd keeps of one example's pass through the UNet, in bytes of float32, to within a fifth.

    With FiLM, whose attention is to fewer things, it is less.
    """
    model = config.model
    layers = 2 * model.layers_per_block + 1  # down, and one more on the way up
    numbers = 0
    for channels, factor in zip(model.channels, model.level_factors, strict=True):
        pixels = (config.mel.n_mels // factor) * (config.chunk_frames // factor)
        attends = factor in model.attention_resolutions
        numbers += channels * pixels * layers * (PER_LAYER + PER_ATTENTION * attends)
    return 4 * numbers


def plan_batches(config: TrainingConfig) -> tuple[int, bool]:
    """Size of a micro-batch and whether to checkpoint gradients, as configured or as memory allows."""
    train = config.train
    example = activation_bytes(config)
    size = min(train.micro_batch_size or train.batch_size, train.batch_size)
    checkpointing = train.gradient_checkpointing
    if checkpointing is None:
        checkpointing = size * example > ACTIVATION_BUDGET
    if train.micro_batch_size is None:
        kept = example * (CHECKPOINTED_SHARE if checkpointing else 1)
        size = max(1, min(size, int(ACTIVATION_BUDGET / kept)))
    return size, checkpointing
