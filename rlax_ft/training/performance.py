"""How fast a run is: step time, tokens a second, model FLOPs and their share of the peak, compile time, memory.

All from the host's clock and from shapes: nothing here waits for the device. Leaves out where the numbers go
(metrics.py).
"""

import resource
import time

import jax
import numpy as np

from rlax_ft.models.config import ModelConfig
from rlax_ft.types import BranchBatch, Rollout, TokenBatch

# Dense bfloat16 FLOP/s of one chip, from the vendors' data sheets; matched by the start of the device's kind.
_PEAK = {
    'NVIDIA H200': 989e12,
    'NVIDIA H100': 989e12,
    'NVIDIA A100': 312e12,
    'TPU v6': 918e12,
    'TPU v5p': 459e12,
    'TPU v5 lite': 197e12,
    'TPU v5': 459e12,
    'TPU v4': 275e12,
}

_compiling = {'seconds': 0.0}


@jax.monitoring.register_event_duration_secs_listener
def _count_compilation(event: str, duration_secs: float, **_) -> None:
    if event.endswith('backend_compile_duration'):
        _compiling['seconds'] += duration_secs


def peak_flops() -> float | None:
    """FLOP/s of all devices together in bfloat16; None where the kind of device is not known, as on a CPU."""
    kind = jax.devices()[0].device_kind
    one = next((peak for start, peak in _PEAK.items() if kind.startswith(start)), None)
    return one and one * jax.device_count()


def forward_flops(config: ModelConfig, tokens: int, length: int) -> float:
    """Model FLOPs of one forward pass: 2 per matrix parameter and token, and causal attention (arXiv 2204.02311, B).

    Args:
      config: of the model; of a mixture of experts the ones that a token goes to count.
      tokens: positions that are read.
      length: of a row; on average a token sees half of it.
    """
    c = config
    attention = c.width * c.head_dim * (2 * c.heads + 2 * c.kv_heads)
    mlp = (3 if c.gated else 2) * c.width * c.mlp_width * max(c.experts_per_token, 1)
    matrices = c.layers * (attention + mlp) + c.width * c.vocab_size
    return tokens * (2.0 * matrices + 2.0 * c.layers * c.heads * c.head_dim * length)


def batch_tokens(batch) -> tuple[int, int]:
    """(positions, length of the longest row) of all token rows in a batch, padding included."""
    is_rows = lambda x: isinstance(x, TokenBatch | BranchBatch | Rollout)  # noqa: E731
    count, length = 0, 0
    for rows in filter(is_rows, jax.tree.leaves(batch, is_leaf=is_rows)):
        if isinstance(rows, Rollout):
            parts = [rows.prompts, rows.tokens]
        else:
            parts = [rows.prompt.tokens, rows.responses.tokens] if isinstance(rows, BranchBatch) else [rows.tokens]
        count += sum(int(np.prod(part.shape)) for part in parts)
        length = max(length, sum(part.shape[-1] for part in parts))
    return count, length


class Performance:
    """The clock of a training loop."""

    def __init__(self, config: ModelConfig, *, passes: float = 3.0):
        """Starts the clock.

        Args:
          config: of the model.
          passes: what a step costs in forward passes over its batch; a backward pass is two.
        """
        self._config, self._passes = config, passes
        self._peak, self._last = peak_flops(), time.perf_counter()

    def lap(self, tokens: int, length: int) -> dict[str, float]:
        """The metrics of the step that has just ended, called when its numbers have arrived.

        Args:
          tokens, length: of its batch, as `batch_tokens` counts them.
        """
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        flops = self._passes * forward_flops(self._config, tokens, length)
        metrics = {
            'perf/step_seconds': seconds,
            'perf/tokens_per_second': tokens / seconds,
            'perf/model_flops': flops,
            'perf/compile_seconds': _compiling['seconds'],
            'perf/peak_memory_gb': peak_memory() / 1e9,
        }
        # NaN is written as n/a: there is no share of a peak that nobody has told us.
        return metrics | {'perf/mfu': flops / seconds / self._peak if self._peak else float('nan')}


def peak_memory() -> int:
    """The most bytes that were in use: on the fullest device, or by this process where the device does not say."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    known = max((s.get('peak_bytes_in_use', 0) for s in stats), default=0)
    return known or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
