"""Trained models measured after their runs: policies on samples, and judges of answers on comparisons.

Leaves out the statistics (evaluate/), and tables and figures of them.
"""

import dataclasses
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import numpy as np

from rlax_ft.data.codec import Codec
from rlax_ft.data.records import plain_text, read_pairs, read_prompts, write_records
from rlax_ft.data.rows import fitting, preference_rows, share_prompts
from rlax_ft.errors import InputError
from rlax_ft.evaluate.diversity import distinct_n, distinct_share
from rlax_ft.evaluate.intervals import mean_interval, with_interval
from rlax_ft.evaluate.length_control import length_controlled_win_rate
from rlax_ft.evaluate.pairwise import BothOrders, outcome_shares
from rlax_ft.evaluate.pass_at_k import pass_at_k
from rlax_ft.evaluate.preference_bench import ALL, calibration, length_bias, subset_accuracies
from rlax_ft.harness.evaluator import Evaluator, task_measures
from rlax_ft.harness.grid import parse_numbers, slug
from rlax_ft.harness.loading import find_function
from rlax_ft.harness.rewards import check_vocabulary, make_reward
from rlax_ft.harness.run import Run, write_json
from rlax_ft.harness.settings import LanguageSettings
from rlax_ft.harness.starting_model import checkpoint_params, make_codec, model_folder, task_of
from rlax_ft.hf.folder import load_pretrained, read_config
from rlax_ft.models.config import ModelConfig
from rlax_ft.models.scoring import candidate_logps
from rlax_ft.models.transformer import Transformer
from rlax_ft.rewards.ensemble import split_reduction
from rlax_ft.rewards.learned import load_reward_model
from rlax_ft.rewards.rules import as_reward, reward_scores
from rlax_ft.sampling.text import map_rows
from rlax_ft.types import Params


@dataclasses.dataclass(frozen=True)
class Model:
    """A model to be measured.

    Attributes:
      name: in tables and figures.
      path: run folder, model folder or hub id.
      config, params: of it.
      codec: how text becomes its tokens.
      reduction: of an ensemble of reward models: mean, min or lcb=K; empty: their mean.
    """

    name: str
    path: str
    config: ModelConfig
    params: Params
    codec: Codec
    reduction: str = ''

    @property
    def is_reward_model(self) -> bool:
        """Whether it scores texts, and writes none."""
        return 'backbone' in self.params


def model_names(text: str) -> dict[str, str]:
    """Paths by the names of `[NAME=]PATH`, several with commas between; a path's name is its end that tells it apart.

    Behind a path may stand the reduction of an ensemble, `:min` or `:lcb=K`.

    Raises:
      InputError: a name stands there twice.
    """
    parts = [_named_path(part.strip()) for part in text.split(',') if part.strip()]
    ends, found = [Path(path).name for _, path in parts], {}
    for name, path in parts:
        name = name or (Path(path).name if ends.count(Path(path).name) == 1 else path)
        if name in found:
            raise InputError(f'--models={text}: {name!r} stands there twice; give NAME=PATH')
        found[name] = path
    return found


def _named_path(part):
    name, equals, path = part.partition('=')
    # What has a colon is no name: runs/rm:lcb=1.
    return (name, path) if equals and ':' not in name else ('', part)


def load_model(settings, run: Run, name: str, path: str, flag: str = 'models') -> Model:
    """A model with the codec that --task or --data asks for.

    Args:
      settings: of the script.
      run: of the script.
      name: of the model.
      path: run folder, its checkpoints/STEP, model folder or hub id.
      flag: that named it, for messages.

    Raises:
      InputError: there is no such model, or it is of another vocabulary than the task's.
    """
    path, reduction = split_reduction(path)
    config, params, source, is_hub = load_weights(settings, path, flag)
    if reduction and 'backbone' not in params:
        raise InputError(f'--{flag}={path}:{reduction}: no ensemble of reward models; leave :{reduction} out')
    same = ('task', 'data', 'max_prompt_tokens', 'max_new_tokens', 'truncate', 'chat_template')
    given = {key: getattr(settings, key) for key in same}
    given['model' if is_hub else 'init_from'] = path
    codec = make_codec(LanguageSettings(**given), run, list)
    return Model(name, source, config, params, codec, reduction)


def load_weights(settings, path: str, flag: str = 'models') -> tuple[ModelConfig, Params, str, bool]:
    """(configuration, parameters, where config.json is, whether that is on the hub) of a model that a flag names."""
    is_hub = not Path(path).exists() and path.count('/') == 1 and not path.startswith('.')
    source = path if is_hub else str(model_folder(path, flag))
    if Path(path).parent.name == 'checkpoints':
        config, params = read_config(source), checkpoint_params(path)
    else:
        config, params, _ = load_pretrained(source, dtype=settings.dtype)
    return dataclasses.replace(config, dtype=settings.dtype, kernel=settings.attention), params, source, is_hub


class Sampled:
    """Policies on the same prompts: samples of each, and what they are worth."""

    def __init__(self, settings, run: Run, reference: Model | None):
        """Takes what all policies share.

        Args:
          settings: of the script.
          run: whose folder keeps samples and results.
          reference: to which KL is measured, or None.
        """
        self._settings, self._run, self._reference = settings, run, reference
        task, count = task_of(settings), settings.prompts
        if settings.data:
            records = read_prompts(settings.data)
            self.records = records[:count] if count else records
        else:
            self.records = [{'prompt': prompt} for prompt in task.sample_prompts(count or 512, settings.seed + 1000)]
        self._judge = find_function(settings.judge, 'judge') if settings.judge else None

    def measure(self, name: str, load: Callable[[], Model], baseline: list[dict] | None) -> tuple[dict, list[dict]]:
        """(record of a policy's numbers, its samples), kept in the run folder: measured once.

        Args:
          name: of the policy.
          load: gives it.
          baseline: samples of the policy that it is to win against; None for that policy itself.
        """
        folder = self._run.folder / 'models' / slug(name)
        if (folder / 'measured.json').exists():
            samples = [json.loads(line) for line in (folder / 'samples.jsonl').read_text().split('\n') if line]
            return json.loads((folder / 'measured.json').read_text()), samples
        samples = self._samples(load())
        found = {'name': name, 'prompts': len(self.records), 'samples': len(samples), **self._numbers(samples)}
        if baseline is not None:
            found |= self._against(samples, baseline)
        folder.mkdir(parents=True, exist_ok=True)
        write_records(folder / 'samples.jsonl', samples)
        write_json(folder / 'measured.json', found)
        return found, samples

    def _samples(self, model):
        s, task = self._settings, task_of(self._settings)
        if model.is_reward_model:
            raise InputError(f'--models: {model.name} is a reward model, which writes nothing; give --on=pairs for it')
        reward = s.reward or ('gold' if task else '')
        measures = dict(task_measures(task)) if task else {}
        measures['ended'] = lambda records, texts, ended, rows: np.asarray(ended, np.float32)
        if reward and reward != 'gold':
            measures['reward'] = self._reward(make_reward(reward, task, model.codec))
        reference = self._reference
        if reference is not None and s.temperature > 0:
            check_vocabulary(f'--reference={s.reference}', reference.codec.tokenizer, model.codec)
        known = reference if s.temperature > 0 else None
        repeated = [record for record in self.records for _ in range(s.samples)]
        evaluator = Evaluator(
            model.codec,
            Transformer(model.config).apply,
            known and known.params,
            repeated,
            measures,
            batch_size=s.batch_size,
            reference_apply=known and Transformer(known.config).apply,
            temperature=s.temperature,
        )
        return evaluator.rollout(model.params, repeated, jax.random.key(s.seed))[0].to_records(0)

    def _reward(self, score):
        def measure(records, completions, ended, rows):
            parts = []
            for start in range(0, len(records), self._settings.batch_size):
                part = slice(start, start + self._settings.batch_size)
                tokens = jax.tree.map(lambda leaf, part=part: leaf[part], rows)
                texts = partial(lambda part: completions[part], part)
                parts.append(np.asarray(score(tokens, records[part], texts)[0]))
            return np.concatenate(parts)

        return measure

    def _numbers(self, samples):
        """Means with intervals, diversity, and what several attempts are worth."""
        s, found = self._settings, {}
        groups = lambda values: np.asarray(values).reshape(-1, s.samples)  # noqa: E731
        for name in ('ended', 'ungrammatical'):
            if name in samples[0]:
                found[name] = float(np.mean([x[name] for x in samples]))
        for name in ('gold', 'reward', 'kl', 'length'):
            if name in samples[0]:
                # Samples of one prompt are alike: it is prompts that are drawn again.
                found |= with_interval(
                    name, mean_interval(groups([x[name] for x in samples]).mean(axis=1), seed=s.seed)
                )
        texts = [x['completion'] for x in samples]
        found |= {'distinct_1': distinct_n(texts, 1), 'distinct_2': distinct_n(texts, 2)}
        found['distinct_texts'] = distinct_share(texts)
        for k in parse_numbers(s.pass_at, 'pass_at', above=0, whole=True) if s.pass_at else ():
            right = groups([x[score_name(samples)] >= s.right for x in samples])
            found |= with_interval(f'pass@{k}', mean_interval(pass_at_k(right, k), seed=s.seed))
        return found

    def _against(self, samples, baseline):
        """Win rate by the judge in both orders, or by the reward, and the same at equal lengths."""
        seed, found = self._settings.seed, {}
        if self._judge is not None:
            name = f'--judge={self._settings.judge}'
            both = both_orders(
                self._judge, name, samples, *([x['completion'] for x in side] for side in (samples, baseline))
            )
            wins = both.wins()
            found = {'position_bias': both.position_bias(), 'consistency': both.consistency()}
        elif score_name(samples):
            ours, theirs = (np.asarray([x[score_name(samples)] for x in side]) for side in (samples, baseline))
            wins = (1.0 + np.sign(ours - theirs)) / 2.0
        else:
            return {}
        lengths = [[x['length'] for x in side] for side in (samples, baseline)]
        found |= with_interval('win_rate', mean_interval(wins, seed=seed))
        found |= dict(zip(('won', 'tied', 'lost'), outcome_shares(wins)))
        return found | with_interval('lc_win_rate', length_controlled_win_rate(wins, *lengths, seed=seed))


def score_name(samples: list[dict]) -> str:
    """What samples are judged by: their reward, or the task's gold reward; '' where there is neither."""
    return next((name for name in ('reward', 'gold') if name in samples[0]), '')


def both_orders(judge: Callable, name: str, records: list[dict], ours: list[str], theirs: list[str]) -> BothOrders:
    """What a judge `f(records, first, second) -> P(first is better)` says in both orders.

    Raises:
      InputError: it raised something, or gave something else than a number from 0 to 1 for each.
    """
    verdicts = []
    for first, second in ((ours, theirs), (theirs, ours)):
        given = reward_scores(
            lambda records, completions, other=second, **_: judge(records, completions, other),
            records,
            first,
            name=name,
        )
        if given.min() < 0 or given.max() > 1:
            raise InputError(
                f'{name}: gave {given.min():g} to {given.max():g}; P(first is better), 0 to 1, was expected'
            )
        verdicts.append(given)
    return BothOrders(*verdicts)


class Compared:
    """Judges of answers on the same comparisons: reward models, policies by their implicit reward, functions."""

    def __init__(self, settings, run: Run, reference: Model | None):
        """Takes what all judges share.

        Args:
          settings: of the script.
          run: whose folder keeps results.
          reference: of the implicit reward of policies, or None.
        """
        self._settings, self._run, self._reference = settings, run, reference
        self.pairs = read_pairs(settings.data)

    def model(self, model: Model) -> dict:
        """A reward model, or a policy as one: log pi(y | x) - log pi_ref(y | x), times --beta."""
        pairs = fitting(model.codec, self.pairs)
        candidates = share_prompts(preference_rows(model.codec, pairs)).candidates
        if model.is_reward_model:
            reward, _ = load_reward_model(model.path, dtype=self._settings.dtype, reduction=model.reduction)
            scores = self._mapped(lambda reward, rows: reward.candidates(rows), reward, candidates)
            # Differences of the model's own logits are what Bradley-Terry trained: a scale for PPO's sake is undone.
            return self._record(model.name, 'reward model', pairs, reward.scale * (scores[:, 0] - scores[:, 1]))
        scores, kind = self._logps(model, candidates), 'log-probability'
        if self._reference is not None:
            check_vocabulary(f'--reference={self._settings.reference}', self._reference.codec.tokenizer, model.codec)
            scores, kind = self._settings.beta * (scores - self._logps(self._reference, candidates)), 'implicit reward'
        return self._record(model.name, kind, pairs, scores[:, 0] - scores[:, 1])

    def rule(self, name: str) -> dict:
        """A function of records and completions, or of a prompt and a completion."""
        reward = as_reward(find_function(name, 'reward'))
        scores = [
            reward_scores(reward, self.pairs, [plain_text(p[side]) for p in self.pairs], name=f'--reward={name}')
            for side in ('chosen', 'rejected')
        ]
        # A rule's numbers stand for no probability.
        return self._record(Path(name).name, 'function', self.pairs, scores[0] - scores[1], calibrated=False)

    def judge(self, name: str) -> dict:
        """A judge of two texts, in both orders."""
        texts = ([plain_text(pair[side]) for pair in self.pairs] for side in ('chosen', 'rejected'))
        both = both_orders(find_function(name, 'judge'), f'--judge={name}', self.pairs, *texts)
        wins = both.wins()
        # As a margin, so that sigma(margin) is the verdict; one of 0 or 1 is never quite sure.
        margins = np.log(np.clip(wins, 1e-4, 1 - 1e-4) / np.clip(1 - wins, 1e-4, 1 - 1e-4))
        soft = bool((np.abs(2 * wins - 1) % 1 > 0).any())
        found = self._record(Path(name).name, 'judge', self.pairs, margins, calibrated=soft)
        return found | {'position_bias': both.position_bias(), 'consistency': both.consistency()}

    def _logps(self, model, candidates):
        apply = Transformer(model.config).apply
        score = lambda params, rows: candidate_logps(apply, {'params': params}, rows)  # noqa: E731
        return self._mapped(score, model.params, candidates)

    def _mapped(self, function, model, candidates):
        size = min(self._settings.batch_size, len(self.pairs))
        return np.asarray(map_rows(partial(jax.jit(function), model), candidates, batch_size=size), np.float64)

    def _record(self, name, kind, pairs, margins, *, calibrated=True):
        subsets = [str(pair.get('subset', ALL)) for pair in pairs]
        lengths = [[len(plain_text(pair[side]).split()) for pair in pairs] for side in ('chosen', 'rejected')]
        rows = subset_accuracies(margins, subsets)
        whole = next((row for row in rows if row['subset'] == ALL), rows[0])
        found = {'name': name, 'kind': kind, 'pairs': len(pairs)}
        found |= with_interval('accuracy', (whole['accuracy'], whole['low'], whole['high']))
        found |= length_bias(margins, *lengths)
        if calibrated:
            found |= calibration(margins, seed=self._settings.seed)
        return found | {'subsets': rows, 'margins': [round(float(margin), 5) for margin in margins]}
