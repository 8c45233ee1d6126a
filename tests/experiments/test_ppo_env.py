"""PPO for environments: probes whose answer is known, truncation, resume, devices, mistakes."""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlax_ft.errors import InputError
from rlax_ft.harness.env_setup import EnvSettings, agent_for, make_envs
from rlax_ft.harness.loading import load_script
from rlax_ft.training.checkpoint import Checkpoints

SCRIPTS = Path(__file__).parents[2] / 'experiments'
ppo_env = load_script(SCRIPTS / 'ppo_env.py')

sys.path.insert(0, str(Path(__file__).parents[1] / 'envs'))

PROBE = dict(
    num_envs=8, num_steps=16, total_steps=128 * 60, learning_rate=5e-3, layers='32', eval_episodes=16, value_clip=0.0
)
CARTPOLE = dict(num_envs=8, num_steps=16, total_steps=128 * 8, log_every=2, save_every=4, eval_episodes=4)


def trained(folder, **settings):
    """(settings, agent, parameters of the first run, summary) after a run."""
    settings = EnvSettings(out=str(folder), **settings)
    summary = ppo_env.train(settings)
    checkpoints = Checkpoints(folder / 'checkpoints')
    state = checkpoints.read(checkpoints.latest_step())
    checkpoints.close()
    agent = agent_for(settings, make_envs(settings))
    return settings, agent, jax.tree.map(lambda x: jnp.asarray(x[0]), state['train']['params']), summary


def values(agent, params, *observations):
    return np.asarray(agent.value(params, (), jnp.asarray(observations, jnp.float32)[:, None]))


def test_probe_constant_reward(tmp_path):
    _, agent, params, _ = trained(tmp_path, env='probes:constant_reward', **PROBE)
    np.testing.assert_allclose(values(agent, params, 0.0), 1.0, atol=0.05)


def test_probe_observed_reward(tmp_path):
    _, agent, params, _ = trained(tmp_path, env='probes:observed_reward', **PROBE)
    np.testing.assert_allclose(values(agent, params, -1.0, 1.0), [-1.0, 1.0], atol=0.1)


def test_probe_delayed_reward(tmp_path):
    _, agent, params, _ = trained(tmp_path, env='probes:delayed_reward', gamma=0.5, **PROBE)
    np.testing.assert_allclose(values(agent, params, 0.0, 1.0), [0.5, 1.0], atol=0.1)


def test_probe_acted_reward(tmp_path):
    _, agent, params, summary = trained(tmp_path, env='probes:acted_reward', **PROBE)
    assert summary['eval_return_mean'] == [1.0]
    assert values(agent, params, 0.0)[0] > 0.7


def test_probe_both(tmp_path):
    summary = trained(tmp_path, env='probes:both_reward', **PROBE)[-1]
    assert summary['eval_return_mean'] == [1.0]


@pytest.mark.parametrize('sequence', [0, 8])
def test_probe_of_memory_needs_the_gru(tmp_path, sequence):
    memory = dict(PROBE, gru=16, layers='16', sequence=sequence, total_steps=128 * 80)
    assert trained(tmp_path / 'with', env='probes:remembered', **memory)[-1]['eval_return_mean'] == [1.0]
    if not sequence:
        without = trained(tmp_path / 'without', env='probes:remembered', **PROBE, eval_mode='sample')[-1]
        assert without['eval_return_mean'][0] < 0.9


def test_probe_of_several_choices(tmp_path):
    assert trained(tmp_path, env='probes:several', **PROBE)[-1]['eval_return_mean'] == [1.0]


@pytest.mark.parametrize('policy', ['normal', 'tanh_normal'])
def test_probe_of_numbers(tmp_path, policy):
    summary = trained(tmp_path, env='probes:aimed', policy=policy, entropy_coef=0.0, **PROBE)[-1]
    assert summary['eval_return_mean'][0] > -0.05


@pytest.mark.parametrize('estimator', ['gae', 'vtrace'])
@pytest.mark.parametrize('truncation', ['bootstrap', 'terminate'])
def test_a_time_limit_is_no_end(tmp_path, truncation, estimator):
    """Reward 1 for ever is worth 1 / (1 - gamma) = 5, however often it is cut; taken for an end it looks like less."""
    settings = dict(PROBE, gamma=0.8, total_steps=128 * 150, learning_rate=1e-2)
    _, agent, params, _ = trained(
        tmp_path, env='probes:endless', truncation=truncation, estimator=estimator, **settings
    )
    if truncation == 'bootstrap':
        np.testing.assert_allclose(values(agent, params, 0.0), 5.0, rtol=0.03)
    else:
        assert values(agent, params, 0.0)[0] < 4.0


def records(folder):
    lines = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
    return {r['step']: {k: v for k, v in r.items()} for r in lines}


@pytest.mark.slow
@pytest.mark.parametrize('more', [{}, {'num_seeds': 2, 'normalize_observations': True, 'scale_rewards': True}])
def test_a_resumed_run_is_the_same_to_the_bit(tmp_path, more):
    settings = CARTPOLE | more
    whole = trained(tmp_path / 'whole', **settings)[2]
    part = dict(settings, total_steps=128 * 4)
    # The schedule must be that of the whole run: the part is cut by removing what came after its checkpoint.
    trained(tmp_path / 'cut', schedule='constant', **part)
    trained(tmp_path / 'cut', schedule='constant', **settings)
    straight = trained(tmp_path / 'straight', schedule='constant', **settings)[2]
    cut = Checkpoints(tmp_path / 'cut/checkpoints')
    again = jax.tree.map(lambda x: jnp.asarray(x[0]), cut.read(8)['train']['params'])
    cut.close()
    jax.tree.map(np.testing.assert_array_equal, again, straight)
    assert records(tmp_path / 'cut') == records(tmp_path / 'straight')
    assert jax.tree.structure(whole) == jax.tree.structure(straight)


def test_seeds_together_are_the_seeds_alone(tmp_path):
    together = trained(tmp_path / 'two', num_seeds=2, **CARTPOLE)[2]
    alone = trained(tmp_path / 'one', num_seeds=1, **CARTPOLE)[2]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), together, alone)


def test_a_mesh_changes_no_number(tmp_path):
    plain = trained(tmp_path / 'plain', **CARTPOLE)[2]
    mesh = trained(tmp_path / 'mesh', mesh='data=8', **CARTPOLE)[2]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), plain, mesh)


def test_pmap_learns(tmp_path):
    settings = dict(PROBE, num_envs=16)
    summary = trained(tmp_path, env='probes:both_reward', backend='pmap', normalize_observations=True, **settings)[-1]
    assert summary['eval_return_mean'] == [1.0]


def test_a_grid_is_trained_in_one_program(tmp_path):
    summary = trained(
        tmp_path,
        env='probes:acted_reward',
        num_seeds=2,
        grid_learning_rate='0,0.005',
        grid_entropy_coef='0.0,0.01',
        **PROBE,
        eval_mode='sample',
    )[-1]
    assert summary['learning_rate'] == [0.0] * 4 + [0.005] * 4
    assert summary['entropy_coef'] == [0.0, 0.0, 0.01, 0.01] * 2
    assert summary['seed'] == [0, 1] * 4
    means = np.asarray(summary['eval_return_mean'])
    assert (means[4:] > 0.9).all() and (means[:4] < 0.9).all()
    # Nothing is averaged over learning rates: a record for each point of the grid, over its own seeds.
    assert 'return_mean' not in summary and len(summary['grid']) == 4
    for i, point in enumerate(summary['grid']):
        of = means[2 * i : 2 * i + 2]
        assert (point['learning_rate'], point['entropy_coef']) == ((0.0, 0.005)[i // 2], (0.0, 0.01)[i % 2])
        np.testing.assert_allclose([point['return_mean'], point['return_lowest_run']], [of.mean(), of.min()], rtol=1e-6)
    last = list(records(tmp_path).values())[-1]
    assert 'episode_return' not in last and 'episode_return/7' in last


def test_what_a_run_leaves(tmp_path):
    summary = trained(tmp_path, num_seeds=2, render=True, **CARTPOLE)[-1]
    for name in ('eval_return_mean', 'eval_return_std', 'env_steps_per_second', 'compile_seconds'):
        assert len(summary[name]) == 2 and all(np.isfinite(summary[name]))
    assert json.loads((tmp_path / 'summary.json').read_text()) == summary
    assert (tmp_path / 'learning_curve.png').stat().st_size > 10_000
    assert (tmp_path / 'episode.gif').read_bytes()[:3] == b'GIF'
    last = records(tmp_path)[128 * 8]
    wanted = {'loss/policy_avg', 'loss/value_avg', 'policy/approxkl_avg', 'policy/entropy_avg', 'episode_return/1'}
    assert wanted < last.keys()
    assert ppo_env.train(EnvSettings(out=str(tmp_path), num_seeds=2, render=True, **CARTPOLE)) == summary


def test_an_evaluation_that_does_not_end_is_bounded_and_counted(tmp_path):
    settings = CARTPOLE | {'total_steps': 256, 'eval_every': 1, 'gamma': 0.9}
    summary = trained(tmp_path, env='my_gymnasium:Endless', eval_steps=7, time_limit=50, **settings)[-1]
    assert summary['eval_return_mean'] == [7.0] and summary['eval_unfinished'] == [4]
    assert all(r['eval/unfinished'] == 4 and r['eval/return'] == 7.0 for r in records(tmp_path).values())


def test_ones_own_environment_of_several_parts_is_learned(tmp_path):
    settings = PROBE | {'total_steps': 128 * 25}
    assert trained(tmp_path, env='my_gymnasium:Parts', **settings)[-1]['eval_return_mean'] == [1.0]


def test_seeds_on_the_host_together_are_the_seeds_alone(tmp_path):
    settings = CARTPOLE | {'env': 'gymnasium:CartPole-v1', 'total_steps': 128 * 2}
    trained(tmp_path / 'two', num_seeds=2, **settings)
    alone = trained(tmp_path / 'one', seed=1, **settings)[2]
    checkpoints = Checkpoints(tmp_path / 'two/checkpoints')
    both = checkpoints.read(2)['train']['params']
    checkpoints.close()
    np.testing.assert_allclose(both[1], alone, rtol=1e-3, atol=1e-4)
    assert np.abs(both[0] - both[1]).max() > 0.01


def test_a_penalty_never_vanishes(tmp_path):
    """A policy that cannot move has KL 0: the coefficient shrinks, and stops at a thousandth of --beta."""
    settings = CARTPOLE | {'total_steps': 128 * 40, 'log_every': 40, 'save_every': 40}
    trained(tmp_path, beta=0.5, target_kl=0.01, learning_rate=0.0, **settings)
    checkpoints = Checkpoints(tmp_path / 'checkpoints')
    np.testing.assert_allclose(checkpoints.read(40)['kl_coef'], [5e-4], rtol=1e-5)
    checkpoints.close()


@pytest.mark.parametrize('seeds', [1, 2])
def test_environments_of_gymnasium_are_learned_on_the_host(tmp_path, seeds):
    settings = CARTPOLE | {'total_steps': 128 * 60, 'learning_rate': 2e-3, 'update_epochs': 8, 'eval_episodes': 20}
    summary = trained(tmp_path, env='gymnasium:CartPole-v1', num_seeds=seeds, render=True, **settings)[-1]
    assert len(summary['eval_return_mean']) == seeds
    # A random policy's episodes last 22 steps.
    assert min(summary['eval_return_mean']) > 60
    assert (tmp_path / 'episode.gif').read_bytes()[:3] == b'GIF'


@pytest.mark.slow
def test_kl_penalty_holds_its_target(tmp_path):
    free = {'loss_args': 'clip_low=1,clip_high=Infinity', 'entropy_coef': 0.0, 'learning_rate': 3e-3}
    settings = CARTPOLE | free | {'total_steps': 128 * 40, 'schedule': 'constant', 'update_epochs': 8}
    trained(tmp_path / 'none', beta=1e-9, **settings)
    trained(tmp_path / 'held', beta=1.0, target_kl=0.002, **settings)
    kl = {name: np.mean([r['objective/kl'] for r in records(tmp_path / name).values()]) for name in ('none', 'held')}
    assert kl['held'] < 0.5 * kl['none']


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(env='CartPole-v2'), 'no such environment; near: CartPole-v1'),
        (dict(env='breakout'), 'Breakout-MinAtar'),
        (dict(minibatches=7), '--minibatches=7: does not divide the 512 rows of an update.*nearest that does: 8'),
        (dict(policy='normal'), 'the actions are discrete, 1 of 2; give categorical'),
        (dict(env='Pendulum-v1', policy='categorical'), 'the actions are continuous.*give normal or tanh_normal'),
        (dict(network='cnn'), r'--network=cnn: observations have shape \(4,\)'),
        (dict(activation='gelu'), '--activation=gelu: one of tanh, relu, silu'),
        (dict(layers='64;64'), '--layers=64;64: .*give numbers with commas'),
        (dict(total_steps=100), '--total_steps=100: less than one update'),
        (dict(observe='0,9'), 'no components'),
        (dict(gru=8, sequence=50), '--sequence=50: does not divide --num_steps=128'),
        (dict(gamma=1.5), '--gamma=1.5: must be at most 1'),
        (dict(env='nowhere:nothing'), 'give MODULE:FUNCTION'),
        (dict(mesh='data=8'), '--num_envs=4: does not divide over 8 devices'),
        (dict(env='probes:broken', total_steps=2048), 'a reward that is not finite'),
        (dict(env='my_gymnasium:Unpaid', total_steps=1024), 'a reward that is not finite'),
        (dict(target_kl=0.01), '--target_kl=0.01: multiplies --beta, which is 0.*give a --beta to start from'),
        (dict(beta=float('nan')), '--beta=nan: must be a finite number'),
        (dict(time_limit=-1), '--time_limit=-1: must be at least 0'),
        (dict(env='gymnasium:CartPole-v1', mesh='data=8', num_envs=8), 'steps on the host, where --mesh=data=8 has no'),
        (dict(env='gymnasium:CartPole-v1', backend='pmap', num_envs=8), 'where --backend=pmap has no use'),
        (dict(grid_learning_rate='fast'), '--grid_learning_rate=fast'),
        (dict(env='probes:constant_reward', render=True), '--render: probes:constant_reward cannot be drawn'),
    ],
)
def test_mistakes_are_one_line(tmp_path, settings, message):
    with pytest.raises(InputError, match=message) as caught:
        ppo_env.train(EnvSettings(out=str(tmp_path / 'run'), **settings))
    assert '\n' not in str(caught.value)
