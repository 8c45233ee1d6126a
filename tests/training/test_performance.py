"""Speed as runs report it: FLOPs by hand, tokens by shape, n/a where there is no peak, and a trace on request."""

import json

import jax
import jax.numpy as jnp
import pytest

from rlax_ft.models.config import embedded_config
from rlax_ft.models.transformer import init_params
from rlax_ft.training.metrics import MetricsWriter, read_records
from rlax_ft.training.performance import Performance, batch_tokens, forward_flops, peak_flops
from rlax_ft.types import BranchBatch, TokenBatch

CONFIG = embedded_config('tiny', vocab_size=50, max_length=32)


def rows(*shape):
    zeros = jnp.zeros(shape, jnp.int32)
    return TokenBatch(zeros, zeros, zeros, zeros)


def test_flops_are_two_per_matrix_parameter_and_token_and_attention():
    params = init_params(CONFIG, jax.random.key(0))
    matrices = sum(leaf.size for leaf in jax.tree.leaves(params) if leaf.ndim > 1 and leaf.shape[-1] > 1)
    norms = params['layers']['attention_norm']['scale'].size + params['layers']['mlp_norm']['scale'].size
    # Of 6 tokens each sees 3 on average: 4 heads of 8 for scores and for values, in 2 layers.
    attention = 6 * 2 * (2 * 3 * 4 * 8 * 2)
    assert forward_flops(CONFIG, 6, 6) == 6 * 2 * (matrices - norms) + attention


def test_tokens_are_counted_by_shape():
    assert batch_tokens((rows(3, 8), 1.0)) == (24, 8)
    assert batch_tokens({'a': BranchBatch(rows(2, 5), rows(2, 3, 4))}) == (10 + 24, 9)


def test_a_run_writes_its_speed_and_a_trace(tmp_path):
    assert peak_flops() is None  # a CPU
    performance = Performance(CONFIG)
    with MetricsWriter(tmp_path, start=0, total=3, title='x', performance=performance, profile=(2, 2)) as writer:
        for step in (1, 2, 3):
            writer.write(step, {'loss': jnp.float32(step)}, (rows(2, 8), 2.0))
    record = read_records(tmp_path / 'metrics.jsonl')[-1]
    assert record['perf/model_flops'] == 3 * forward_flops(CONFIG, 16, 8)
    assert record['perf/tokens_per_second'] == pytest.approx(16 / record['perf/step_seconds'])
    assert record['perf/mfu'] == 'n/a' and record['perf/peak_memory_gb'] > 0 and record['perf/compile_seconds'] >= 0
    assert list((tmp_path / 'profile').rglob('*.xplane.pb'))
    json.dumps(record, allow_nan=False)
