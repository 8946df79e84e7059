"""Training speed of the dynamics model beside the same model written plainly in PyTorch.

    python benchmarks/pytorch.py --threads 1
    python benchmarks/pytorch.py --threads 2 --devices 2

Both train in one process, in turns, on the same codes and actions; what counts is the median over turns of the ratio
of their tokens a second, for whatever else the machine does then slows both. On one thread seconds are those of the
processor, so that a busy machine does not matter. With `--devices` the processor is a mesh of as many devices for our
side, as `runtime.cpu_devices` makes it for the train command. Needs torch. The PyTorch model takes over the parameters,
so both have the same loss at first. It leaves out what only our step does to a batch (action dropout, splice and masked
context), which is in its favour.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

try:
    import torch
except ModuleNotFoundError as error:
    raise SystemExit("this benchmark compares with PyTorch, which is not installed: pip install torch") from error
from torch import nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from melodjinn_jax.config import Config, DynamicsConfig, TrainingConfig
from melodjinn_jax.models.transformer import rotary_table
from melodjinn_jax.training.mesh import host_share, open_mesh, place_batches
from melodjinn_jax.training.run import tune_process
from melodjinn_jax.training.state import (
    CodecShape,
    Models,
    Phase,
    State,
    commit,
    count_parameters,
    stream,
    with_dynamics,
)
from melodjinn_jax.training.step import make_train_step

CODEC = CodecShape(sample_rate=24000, hop_length=320, num_codebooks=2, codebook_size=256)
SIZES = {
    "400k": DynamicsConfig(dim=96, num_heads=4, num_layers=3),
    "10M": DynamicsConfig(dim=320, num_heads=5, num_layers=8),
}


class Attention(nn.Module):
    """Queries, keys and values in the type of x; parameters in float32, which autocast rounds."""

    def __init__(self, dim: int, heads: int, window: int, length: int, kernel: str):
        super().__init__()
        self.heads, self.width, self.window, self.kernel = heads, dim // heads, window, kernel
        self.qkv, self.out = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.query_norm, self.key_norm = nn.RMSNorm(self.width, eps=1e-6), nn.RMSNorm(self.width, eps=1e-6)
        self.sink = nn.Parameter(torch.zeros(heads))
        distance = torch.arange(length)[:, None] - torch.arange(length)
        if kernel == "plain":
            self.register_buffer("hidden", (distance < 0) | (distance >= window))
        elif kernel == "flex":
            self.visible = create_block_mask(
                lambda b, h, i, j: (i >= j) & (i - j < window), None, None, length, length, device="cuda"
            )
        for name, table in zip(("cos", "sin"), rotary_table(jnp.arange(length), self.width), strict=True):
            self.register_buffer(name, torch.tensor(np.asarray(table)))

    def rotate(self, x: torch.Tensor) -> torch.Tensor:
        x1, x2 = x.chunk(2, dim=-1)
        return torch.cat([x1 * self.cos - x2 * self.sin, x1 * self.sin + x2 * self.cos], dim=-1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        B, L, D = x.shape
        q, k, v = self.qkv(x).view(B, L, 3, self.heads, self.width).permute(2, 0, 3, 1, 4)
        q = self.rotate(self.query_norm(q.float()).to(x.dtype))
        k = self.rotate(self.key_norm(k.float()).to(x.dtype))
        return self.out(getattr(self, self.kernel)(q, k, v).transpose(1, 2).reshape(B, L, D))

    def plain(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        logits = (q @ k.transpose(-1, -2) / self.width**0.5).masked_fill(self.hidden, float("-inf"))
        sink = self.sink.view(1, -1, 1, 1).expand(*q.shape[:-1], 1)
        return torch.softmax(torch.cat([logits, sink], dim=-1), dim=-1)[..., :-1] @ v

    def flash(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Neither window nor sink: flash attention, as PyTorch offers it, has none."""
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return functional.scaled_dot_product_attention(q, k, v, is_causal=True)

    def flex(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """FlexAttention leaves out what the window hides, and tells the logarithm of the sum, from which the sink is
        put in."""
        mixed, log_sum = flex_attention(q, k, v, block_mask=self.visible, return_lse=True)
        gate = torch.sigmoid(log_sum - self.sink.view(1, -1, 1))
        return (mixed * gate[..., None]).to(v.dtype)


class Block(nn.Module):
    def __init__(self, dim: int, heads: int, window: int, length: int, kernel: str):
        super().__init__()
        self.attention_norm, self.mlp_norm = nn.RMSNorm(dim, eps=1e-6), nn.RMSNorm(dim, eps=1e-6)
        self.attention = Attention(dim, heads, window, length, kernel)
        self.up, self.down = nn.Linear(dim, 4 * dim, bias=False), nn.Linear(4 * dim, dim, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.attention_norm(x.float()).to(x.dtype))
        return x + self.down(functional.relu(self.up(self.mlp_norm(x.float()).to(x.dtype))).square())


class Dynamics(nn.Module):
    """The flat layout, computed in `dtype`; `attention` names a method of `Attention`."""

    def __init__(
        self, models: Models, attention: str = "plain", dtype: torch.dtype = torch.float32, device: str = "cpu"
    ):
        super().__init__()
        config, frames, num_actions = models.config.dynamics, models.config.training.crop_frames, models.num_codes
        Q, K, D = models.codec.num_codebooks, models.codec.codebook_size, config.dim
        self.stride, self.dtype = models.config.latent_actions.action_stride, dtype
        self.begin, self.null = K, num_actions
        self.embed_token, self.embed_codebook = nn.Embedding(K + 2, D), nn.Embedding(Q, D)
        self.embed_action = nn.Embedding(num_actions + 1, D)
        sizes = (D, config.num_heads, config.window * Q, frames * Q, attention)
        self.blocks = nn.ModuleList(Block(*sizes) for _ in range(config.num_layers))
        self.norm, self.unembed = nn.RMSNorm(D, eps=1e-6), nn.Linear(D, K)
        self.to(device)

    def forward(self, codes: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        B, F, Q = codes.shape
        previous = functional.pad(codes.view(B, F * Q)[:, :-1], (1, 0), value=self.begin)
        by_block = self.embed_action(functional.pad(actions, (1, 0), value=self.null))
        by_frame = by_block.repeat_interleave(self.stride, dim=1)
        x = self.embed_token(previous).view(B, F, Q, -1) + self.embed_codebook.weight + by_frame[:, :, None]
        x = x.view(B, F * Q, -1).to(self.dtype)
        for block in self.blocks:
            x = block(x)
        return self.unembed(self.norm(x.float())).view(B, F, Q, -1).float()

    def take_over(self, params: Any) -> None:
        """Copy the parameters of our model."""
        flat = {
            ".".join(key.key for key in path): np.asarray(leaf)
            for path, leaf in jax.tree_util.tree_leaves_with_path(params)
        }
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                parts = name.split(".")
                layer = int(parts.pop(1)) if parts[0] == "blocks" else None
                prefix = "transformer." if parts[0] in ("blocks", "norm") else ""
                values = next(v for k, v in flat.items() if _ours(k) == prefix + ".".join(parts))
                values = values if layer is None else values[layer]
                is_kernel = parts[-1] == "weight" and values.ndim == 2 and not parts[-2].startswith("embed")
                parameter.copy_(torch.tensor(values.T if is_kernel else values))


def _ours(name: str) -> str:
    """PyTorch's name of one of our parameters."""
    for ending in (".kernel", ".scale", ".embedding"):
        name = name.replace(ending, ".weight")
    return name


@dataclass(frozen=True)
class Contest:
    """Both sides of one size, ready to train: each takes a number of steps and returns when they are done."""

    parameters: int
    tokens_per_step: int
    losses: tuple[float, float]
    ours: Callable[[int], None]
    theirs: Callable[[int], None]


def configure(dynamics: DynamicsConfig, batch_size: int) -> Config:
    return Config(dynamics=dynamics, training=TrainingConfig(batch_size=batch_size))


def random_batch(models: Models) -> dict[str, np.ndarray]:
    """Codes and labels of one batch of noise."""
    config, codec = models.config, models.codec
    B, F = config.training.batch_size, config.training.crop_frames
    rng = np.random.default_rng(0)
    codes = rng.integers(0, codec.codebook_size, (B, F, codec.num_codebooks))
    blocks = F // config.latent_actions.action_stride
    actions = rng.integers(0, models.num_codes, (B, blocks - 1))
    return {"codes": codes.astype(np.uint16), "actions": actions.astype(np.uint16)}


def prepare(dynamics: DynamicsConfig, batch_size: int) -> Contest:
    models = Models(configure(dynamics, batch_size), CODEC)
    batch = random_batch(models)
    codes, actions = (jnp.asarray(batch[name], jnp.int32) for name in ("codes", "actions"))
    params = models.init_dynamics(stream(jax.random.key_data(jax.random.key(0)), "dynamics"))
    model = Dynamics(models)
    model.take_over(params)
    logits = jax.jit(lambda p: models.dynamics(p)(codes, actions))(params)
    our_loss = optax.softmax_cross_entropy_with_integer_labels(logits, codes).mean()
    return Contest(
        count_parameters(params),
        codes.size,
        (float(our_loss), cross_entropy(model, *tensors(batch)).item()),
        OurStep(models, batch, params),
        their_steps(model, models, *tensors(batch)),
    )


def tensors(batch: dict[str, np.ndarray], device: str = "cpu") -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and actions as int64."""
    codes, actions = (torch.tensor(batch[name].astype(np.int64), device=device) for name in ("codes", "actions"))
    return codes, actions


def cross_entropy(model: nn.Module, codes: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(model(codes, actions).flatten(0, 2), codes.flatten())


class OurStep:
    """The compiled training step of a model on labels, its state and one batch; takes a number of steps when called."""

    def __init__(self, models: Models, batch: dict[str, np.ndarray], params: Any = None):
        state: State = {
            "step": jnp.int32(0),
            "rng": jax.random.key_data(jax.random.key(0)),
            "first_bad_step": jnp.int32(-1),
        }
        mesh = jax.sharding.get_mesh()
        self._state = commit(with_dynamics(models, state | ({"dynamics": params} if params else {}), 0))
        self.parameters = count_parameters(self._state["dynamics"])
        self._batch = place_batches([batch], mesh, host_share(mesh))
        self._step = make_train_step(models, Phase.FROZEN).lower(self._state, self._batch).compile()

    @property
    def gibibytes(self) -> float:
        """What XLA plans for the step, its arguments among it."""
        memory = self._step.memory_analysis()
        return (memory.argument_size_in_bytes + memory.temp_size_in_bytes) / 2**30

    def __call__(self, count: int) -> None:
        for _ in range(count):
            self._state, _ = self._step(self._state, self._batch)
        jax.block_until_ready(self._state)


def their_steps(model: nn.Module, models: Models, codes: torch.Tensor, actions: torch.Tensor) -> Callable[[int], None]:
    config = models.config.dynamics_optimizer
    kernels = [parameter for parameter in model.parameters() if parameter.ndim == 2]
    others = [parameter for parameter in model.parameters() if parameter.ndim != 2]
    groups = [{"params": kernels, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, config.b2), fused=True)

    def steps(count: int) -> None:
        for _ in range(count):
            with torch.autocast(codes.device.type, torch.bfloat16, enabled=model.dtype == torch.bfloat16):
                loss = cross_entropy(model, codes, actions)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
            optimizer.step()

    return steps


def seconds(steps: Callable[[int], None], count: int) -> float:
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    steps(1)  # so that threads of the other side have come to rest
    began = clock()
    steps(count)
    return clock() - began


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", choices=sorted(SIZES), default=list(SIZES))
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--steps", type=int, default=5, help="steps of each side in a turn")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--devices", type=int, default=1, help="of our side's mesh")
    arguments = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-arguments.threads :])
    torch.set_num_threads(arguments.threads)
    tune_process("")
    jax.config.update("jax_num_cpu_devices", arguments.devices)
    print(
        f"{arguments.threads} threads, {arguments.devices} device(s), load {os.getloadavg()[0]:.1f}, "
        f"torch {torch.__version__}, jax {jax.__version__}"
    )
    print("| parameters | ours, tokens/s | PyTorch, tokens/s | ratio, median [worst] | first losses |")
    print("|---" * 5 + "|")
    for size in arguments.sizes:
        with jax.set_mesh(open_mesh(configure(SIZES[size], arguments.batch_size))):
            contest = prepare(SIZES[size], arguments.batch_size)
            tokens = arguments.steps * contest.tokens_per_step
            turns = [
                (tokens / seconds(contest.ours, arguments.steps), tokens / seconds(contest.theirs, arguments.steps))
                for _ in range(arguments.repeats)
            ]
        ours, theirs = (statistics.median(column) for column in zip(*turns, strict=True))
        ratios = [a / b for a, b in turns]
        losses = ", ".join(f"{loss:.5f}" for loss in contest.losses)
        print(
            f"| {contest.parameters / 1e6:.2f}M | {ours:.0f} | {theirs:.0f} | {statistics.median(ratios):.2f} "
            f"[{min(ratios):.2f}] | {losses} |",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
