"""Losses on preference pairs: `f(pair: PairLogps, *, hyperparameters) -> float32[B]`, one formula each.

Throughout, h_w = log pi(y_w|x) - log pi_ref(y_w|x), h_l the same for y_l, Delta = h_w - h_l, s = sigmoid, all in nats.
Leaves out extra terms and weights (WPO's weight, RPO's SFT term), which are added or multiplied outside. Every loss
here raises AssertionError where a field of `pair` has a wrong rank, shape or dtype, and ValueError where a field that
the loss needs is None; the messages name the field.

`label_smoothing` is a float, or float[B] for soft labels: with probability p that `chosen` wins, it is 1 - p.
"""

import jax
import jax.numpy as jnp

from rlax_ft.losses._pairs import log_ratios, per_token, policy_logps, ref_logps, smoothed_sigmoid
from rlax_ft.ops.arrays import as_per_example, safe_exp
from rlax_ft.ops.reduce import gather_rows, own_rows
from rlax_ft.types import PairLogps

DIVERGENCES = ('reverse_kl', 'forward_kl', 'js', 'alpha')


def implicit_rewards(pair: PairLogps, beta: float) -> tuple[jax.Array, jax.Array]:
    """(beta h_w, beta h_l), the rewards of which the policy is the optimum (arXiv 2305.18290); each float32[B]."""
    h_w, h_l = log_ratios(pair)
    return beta * h_w, beta * h_l


def dpo_loss(pair: PairLogps, *, beta: float = 0.1, label_smoothing: jax.Array | float = 0.0) -> jax.Array:
    """DPO, -log s(beta Delta) (arXiv 2305.18290); cDPO when smoothed (Mitchell, 2023, DPO with noisy preferences).

    -(1 - eps) log s(beta Delta) - eps log s(-beta Delta).

    Args:
      pair: PairLogps [B] with reference.
      beta: strength of the KL constraint.
      label_smoothing: eps, probability that the label is wrong, float or float[B]. In TRL 1.16 sigmoid has none.

    Returns:
      float32[B].
    """
    h_w, h_l = log_ratios(pair)
    return smoothed_sigmoid(beta * (h_w - h_l), label_smoothing)


def ipo_loss(pair: PairLogps, *, beta: float = 0.1, per_token: bool = True) -> jax.Array:
    """IPO, (Delta - 1 / (2 beta))^2 (arXiv 2310.12036, equation 17, where beta is tau).

    Args:
      pair: PairLogps [B] with reference, and with lengths when `per_token`.
      beta: regularisation.
      per_token: True divides h_w and h_l by their lengths, as TRL does and as the paper's authors ran it; False takes
        the paper's sums.

    Returns:
      float32[B].
    """
    h_w, h_l = log_ratios(pair)
    if per_token:
        h_w, h_l = _per_token(pair, h_w, h_l)
    return jnp.square(h_w - h_l - 1.0 / (2.0 * beta))


_per_token = per_token  # `ipo_loss` has an argument of that name.


def hinge_loss(pair: PairLogps, *, beta: float = 0.1) -> jax.Array:
    """The hinge of SLiC on DPO's margin, max(0, 1 - beta Delta) (arXiv 2305.10425, in the form of 2309.06657).

    Args:
      pair: PairLogps [B] with reference.
      beta: 1 / margin, in nats.

    Returns:
      float32[B].
    """
    h_w, h_l = log_ratios(pair)
    return jax.nn.relu(1.0 - beta * (h_w - h_l))


def robust_dpo_loss(pair: PairLogps, *, beta: float = 0.1, label_smoothing: jax.Array | float = 0.0) -> jax.Array:
    """Robust DPO, unbiased under labels flipped with probability eps (arXiv 2403.00409).

    [-(1 - eps) log s(beta Delta) + eps log s(-beta Delta)] / (1 - 2 eps).

    Args:
      pair: PairLogps [B] with reference.
      beta: strength of the KL constraint.
      label_smoothing: eps in [0, 1/2), float or float[B].

    Returns:
      float32[B]; may be below 0.

    Raises:
      ValueError: label_smoothing is a number outside [0, 1/2).
    """
    if isinstance(label_smoothing, int | float) and not 0 <= label_smoothing < 0.5:
        raise ValueError(f'robust_dpo_loss needs label_smoothing in [0, 0.5), got {label_smoothing}')
    h_w, h_l = log_ratios(pair)
    z, eps = beta * (h_w - h_l), as_per_example(h_w, label_smoothing=label_smoothing)
    return (-(1.0 - eps) * jax.nn.log_sigmoid(z) + eps * jax.nn.log_sigmoid(-z)) / (1.0 - 2.0 * eps)


def exo_loss(pair: PairLogps, *, beta: float = 0.1, label_smoothing: jax.Array | float = 1e-3) -> jax.Array:
    """EXO on pairs, KL(policy's choice || smoothed label) (arXiv 2402.00856, equation 16).

    s(z) [log s(z) - log(1 - eps)] + s(-z) [log s(-z) - log eps] with z = beta Delta.

    Args:
      pair: PairLogps [B] with reference.
      beta: strength of the KL constraint.
      label_smoothing: eps in (0, 1), float or float[B]; TRL too refuses 0, at which the loss is infinite.

    Returns:
      float32[B], at least 0.

    Raises:
      ValueError: label_smoothing is a number outside (0, 1).
    """
    if isinstance(label_smoothing, int | float) and not 0 < label_smoothing < 1:
        raise ValueError(f'exo_loss needs label_smoothing in (0, 1), got {label_smoothing}')
    h_w, h_l = log_ratios(pair)
    z, eps = beta * (h_w - h_l), as_per_example(h_w, label_smoothing=label_smoothing)
    wins = jax.nn.sigmoid(z) * (jax.nn.log_sigmoid(z) - jnp.log1p(-eps))
    return wins + jax.nn.sigmoid(-z) * (jax.nn.log_sigmoid(-z) - jnp.log(eps))


def nca_loss(pair: PairLogps, *, beta: float = 0.1) -> jax.Array:
    """NCA on pairs, -log s(beta h_w) - 1/2 log s(-beta h_w) - 1/2 log s(-beta h_l) (arXiv 2402.05369).

    Args:
      pair: PairLogps [B] with reference.
      beta: reward scale.

    Returns:
      float32[B].
    """
    r_w, r_l = implicit_rewards(pair, beta)
    unlikely = jax.nn.log_sigmoid(-r_w) + jax.nn.log_sigmoid(-r_l)
    return -jax.nn.log_sigmoid(r_w) - 0.5 * unlikely


def bco_pair_loss(pair: PairLogps, *, beta: float = 0.1) -> jax.Array:
    """BCO on pairs without its reward shift, -log s(beta h_w) - log s(-beta h_l) (arXiv 2404.04656).

    Args:
      pair: PairLogps [B] with reference.
      beta: reward scale.

    Returns:
      float32[B].
    """
    r_w, r_l = implicit_rewards(pair, beta)
    return -jax.nn.log_sigmoid(r_w) - jax.nn.log_sigmoid(-r_l)


def sppo_loss(pair: PairLogps, *, beta: float = 0.1) -> jax.Array:
    """SPPO with hard labels, (h_w - 1 / (2 beta))^2 + (h_l + 1 / (2 beta))^2 (arXiv 2405.00675, equation 4.7).

    Args:
      pair: PairLogps [B] with reference.
      beta: 1 / eta of the paper.

    Returns:
      float32[B].
    """
    h_w, h_l = log_ratios(pair)
    return jnp.square(h_w - 0.5 / beta) + jnp.square(h_l + 0.5 / beta)


def aot_loss(
    pair: PairLogps, *, beta: float = 0.1, label_smoothing: jax.Array | float = 0.0, axis_name: str | None = None
) -> jax.Array:
    """AOT on pairs: DPO on sorted margins, so that the policy's stochastically dominate (arXiv 2406.05882).

    With u = sort(log pi(y_w) - log pi(y_l)) and v the same of the reference, each over the whole batch:
    -(1 - eps) log s(beta (u - v)) - eps log s(-beta (u - v)).

    Args:
      pair: PairLogps [B] with reference.
      beta: strength of the KL constraint.
      label_smoothing: eps, float (the entries are in sorted order, so no per-pair labels).
      axis_name: mapped axis (pmap, shard_map) over which the batch is split; the sort is then over all devices.

    Returns:
      float32[B] in sorted order: only the batch mean is meaningful, and the batch cannot be split into micro-batches.
    """
    chosen, rejected = policy_logps(pair)
    ref_chosen, ref_rejected = ref_logps(pair)
    u, v = (jnp.sort(gather_rows(x, axis_name)) for x in (chosen - rejected, ref_chosen - ref_rejected))
    return own_rows(smoothed_sigmoid(beta * (u - v), label_smoothing), axis_name)


def aot_unpaired_loss(
    pair: PairLogps, *, beta: float = 0.1, label_smoothing: jax.Array | float = 0.0, axis_name: str | None = None
) -> jax.Array:
    """AOT on unpaired data: `aot_loss` with u = sort(h_w) and v = sort(h_l) (arXiv 2406.05882).

    Args:
      pair: PairLogps [B] with reference; which y_l stands beside which y_w does not matter.
      beta, label_smoothing, axis_name: as `aot_loss`.

    Returns:
      float32[B] in sorted order, as `aot_loss`.
    """
    u, v = (jnp.sort(gather_rows(x, axis_name)) for x in log_ratios(pair))
    return own_rows(smoothed_sigmoid(beta * (u - v), label_smoothing), axis_name)


def apo_zero_loss(pair: PairLogps, *, beta: float = 0.1) -> jax.Array:
    """APO-zero, 1 - s(beta h_w) + s(beta h_l), where y_w beats the model's own answers (arXiv 2408.06266, eq. 7).

    Args:
      pair: PairLogps [B] with reference.
      beta: reward scale.

    Returns:
      float32[B], in [0, 2].
    """
    r_w, r_l = implicit_rewards(pair, beta)
    return jax.nn.sigmoid(-r_w) + jax.nn.sigmoid(r_l)


def apo_down_loss(pair: PairLogps, *, beta: float = 0.1) -> jax.Array:
    """APO-down, s(beta h_w) + 1 - s(beta Delta), where y_w is below the model's own answers (arXiv 2408.06266, eq. 8).

    Args:
      pair: PairLogps [B] with reference.
      beta: reward scale.

    Returns:
      float32[B], in [0, 2].
    """
    h_w, h_l = log_ratios(pair)
    return jax.nn.sigmoid(beta * h_w) + jax.nn.sigmoid(-beta * (h_w - h_l))


def discopop_loss(pair: PairLogps, *, beta: float = 0.1, temperature: float = 0.05) -> jax.Array:
    """DiscoPOP's log-ratio modulated loss, (1 - m) (-log s(z)) + m exp(-z), m = s(z / temperature) (arXiv 2406.08414).

    Args:
      pair: PairLogps [B] with reference.
      beta: strength of the KL constraint; z = beta Delta, clipped to +-20 in the exponential.
      temperature: tau of the paper, width of the blend.

    Returns:
      float32[B].
    """
    h_w, h_l = log_ratios(pair)
    z = beta * (h_w - h_l)
    return -jax.nn.sigmoid(-z / temperature) * jax.nn.log_sigmoid(z) + jax.nn.sigmoid(z / temperature) * safe_exp(-z)


def dpo_norm_loss(pair: PairLogps, *, beta: float = 0.1, label_smoothing: jax.Array | float = 0.0) -> jax.Array:
    """Length-normalised DPO, -log s(beta (h_w / |y_w| - h_l / |y_l|)) (TRL's sigmoid_norm; arXiv 2411.15124).

    Args:
      pair: PairLogps [B] with reference and lengths.
      beta: strength of the KL constraint, per token; values of 2 to 10 are usual.
      label_smoothing: probability that the label is wrong, float or float[B].

    Returns:
      float32[B].
    """
    h_w, h_l = per_token(pair, *log_ratios(pair))
    return smoothed_sigmoid(beta * (h_w - h_l), label_smoothing)


def f_dpo_loss(
    pair: PairLogps,
    *,
    beta: float = 0.1,
    divergence: str = 'reverse_kl',
    alpha: float = 1.0,
    label_smoothing: jax.Array | float = 0.0,
) -> jax.Array:
    """f-DPO, -log s(beta (f'(t_w) - f'(t_l))) with t = pi / pi_ref = exp(h) (arXiv 2309.16240).

    f'(t) is log t for reverse_kl (that is DPO), 1 - 1/t for forward_kl, log(2t / (1 + t)) for js, and
    (t^(alpha - 1) - 1) / (alpha - 1) for alpha, whose limit at alpha = 1 is reverse_kl. This is TRL's alpha; the
    paper's is 1 minus it.

    Args:
      pair: PairLogps [B] with reference.
      beta: strength of the constraint.
      divergence: one of `DIVERGENCES`.
      alpha: read by the divergence alpha.
      label_smoothing: probability that the label is wrong, float or float[B].

    Returns:
      float32[B]; exponentials take at most +-20.

    Raises:
      ValueError: an unknown divergence.
    """
    slopes = {
        'reverse_kl': lambda h: h,
        'forward_kl': lambda h: 1.0 - safe_exp(-h),
        'js': lambda h: jnp.log(2.0) + jax.nn.log_sigmoid(h),
        'alpha': lambda h: h if alpha == 1 else jnp.expm1(jnp.clip((alpha - 1.0) * h, -20.0, 20.0)) / (alpha - 1.0),
    }
    if divergence not in slopes:
        raise ValueError(f'unknown divergence {divergence!r}: one of {", ".join(DIVERGENCES)}')
    h_w, h_l = log_ratios(pair)
    return smoothed_sigmoid(beta * (slopes[divergence](h_w) - slopes[divergence](h_l)), label_smoothing)


def odpo_loss(pair: PairLogps, *, beta: float = 0.1, offset: jax.Array | float = 0.0) -> jax.Array:
    """DPO with an offset, -log s(beta Delta - offset) (arXiv 2402.10571).

    Args:
      pair: PairLogps [B] with reference.
      beta: strength of the KL constraint.
      offset: by how much y_w is better, in reward units, float or float[B].

    Returns:
      float32[B].
    """
    h_w, h_l = log_ratios(pair)
    return -jax.nn.log_sigmoid(beta * (h_w - h_l) - as_per_example(h_w, offset=offset))


def cpo_loss(pair: PairLogps, *, beta: float = 0.1, label_smoothing: jax.Array | float = 0.0) -> jax.Array:
    """CPO's preference term, -log s(beta (log pi(y_w) - log pi(y_l))), DPO with a uniform reference (arXiv 2401.08417).

    Args:
      pair: PairLogps [B]; no reference. The paper's behaviour-cloning term is `nll_loss` added outside.
      beta: strength.
      label_smoothing: probability that the label is wrong, float or float[B].

    Returns:
      float32[B].
    """
    chosen, rejected = policy_logps(pair)
    return smoothed_sigmoid(beta * (chosen - rejected), label_smoothing)


def simpo_loss(
    pair: PairLogps, *, beta: float = 0.1, gamma: float = 0.5, label_smoothing: jax.Array | float = 0.0
) -> jax.Array:
    """SimPO, -log s(beta (log pi(y_w) / |y_w| - log pi(y_l) / |y_l|) - gamma) (arXiv 2405.14734).

    Args:
      pair: PairLogps [B] with lengths; no reference.
      beta: reward scale; the paper runs 2 to 10, the default is TRL's.
      gamma: the target margin itself, in reward units. The authors' code takes gamma / beta.
      label_smoothing: probability that the label is wrong, float or float[B].

    Returns:
      float32[B].
    """
    chosen, rejected = per_token(pair, *policy_logps(pair))
    return smoothed_sigmoid(beta * (chosen - rejected) - gamma, label_smoothing)


def orpo_odds_loss(pair: PairLogps, *, beta: float = 0.1) -> jax.Array:
    """ORPO's odds-ratio term, -beta log s(log odds(y_w) - log odds(y_l)) (arXiv 2403.07691).

    odds = p / (1 - p) with p = exp(log pi(y) / |y|), of length-averaged log-probabilities; p is at most 1 - 1e-10.

    Args:
      pair: PairLogps [B] with lengths; no reference. The paper's NLL term is `nll_loss` added outside.
      beta: weight of the term, lambda in the paper.

    Returns:
      float32[B].
    """
    chosen, rejected = per_token(pair, *policy_logps(pair))
    return -beta * jax.nn.log_sigmoid(_log_odds(chosen) - _log_odds(rejected))


def _log_odds(logp: jax.Array) -> jax.Array:
    """log p - log(1 - p) without cancellation at either end."""
    logp = jnp.minimum(logp, -1e-10)
    near_one = logp > -0.7  # each branch is given an input that the other side cannot make infinite
    log_complement = jnp.where(
        near_one,
        jnp.log(-jnp.expm1(jnp.where(near_one, logp, -1.0))),
        jnp.log1p(-jnp.exp(jnp.where(near_one, -1.0, logp))),
    )
    return logp - log_complement


# Both papers train on this loss plus the NLL of y_w, of weight 1 against it: who puts them on a model reads it here.
cpo_loss.nll_coef = 1.0  # type: ignore[attr-defined]
orpo_odds_loss.nll_coef = 1.0  # type: ignore[attr-defined]
