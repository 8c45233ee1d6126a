"""A peer in control.py, `torch_ppo.py STEPS`: PPO on CartPole with Gymnasium and PyTorch, stepped on the host.

Written for this comparison with the settings and the work of CleanRL's `ppo.py`: a synchronous vector of 4
environments, tensors on the CPU, 128 steps, 4 epochs of 4 minibatches, two towers of 64 x 64 tanh; the entropy with
each action, the KL and the clipped share with each minibatch, written nowhere.
"""

import sys

import gymnasium
import numpy as np
import torch
from torch import nn

from rlax_ft.harness.race import serve


def _tower(outputs, gain):
    layers = []
    for a, b, g in ((4, 64, 2**0.5), (64, 64, 2**0.5), (64, outputs, gain)):
        layers += [nn.Linear(a, b), nn.Tanh()]
        nn.init.orthogonal_(layers[-2].weight, g)
        nn.init.zeros_(layers[-2].bias)
    return nn.Sequential(*layers[:-1])


def train(steps: int, envs: int = 4, length: int = 128, epochs: int = 4, parts: int = 4) -> None:
    """Trains for so many environment steps."""
    vector = gymnasium.vector.SyncVectorEnv(
        [lambda: gymnasium.wrappers.RecordEpisodeStatistics(gymnasium.make('CartPole-v1')) for _ in range(envs)]
    )
    actor, critic = _tower(2, 0.01), _tower(1, 1.0)
    weights = [*actor.parameters(), *critic.parameters()]
    adam = torch.optim.Adam(weights, lr=2.5e-4, eps=1e-5)
    obs = torch.tensor(vector.reset(seed=0)[0])
    done = torch.zeros(envs)
    updates = max(steps // (envs * length), 1)
    for update in range(updates):
        adam.param_groups[0]['lr'] = 2.5e-4 * (1 - update / updates)
        frames = []
        for _ in range(length):
            with torch.no_grad():
                pi, value = torch.distributions.Categorical(logits=actor(obs)), critic(obs)[:, 0]
                action = pi.sample()
                logp, _ = pi.log_prob(action), pi.entropy()
            following, reward, ended, cut, _ = vector.step(action.numpy())
            frames.append((obs, action, logp, value, torch.tensor(reward, dtype=torch.float32), done))
            obs, done = torch.tensor(following), torch.tensor(np.logical_or(ended, cut), dtype=torch.float32)
        o, a, logp, value, reward, start = (torch.stack(x) for x in zip(*frames))
        with torch.no_grad():
            after_value, after_start, running = critic(obs)[:, 0], done, torch.zeros(envs)
            advantage = torch.zeros_like(reward)
            for t in reversed(range(length)):
                delta = reward[t] + 0.99 * after_value * (1 - after_start) - value[t]
                running = delta + 0.99 * 0.95 * (1 - after_start) * running
                advantage[t], after_value, after_start = running, value[t], start[t]
        data = [x.reshape(envs * length, *x.shape[2:]) for x in (o, a, logp, value, advantage, advantage + value)]
        for _ in range(epochs):
            for rows in torch.randperm(envs * length).chunk(parts):
                o_, a_, logp_, value_, advantage_, target_ = (x[rows] for x in data)
                pi, new = torch.distributions.Categorical(logits=actor(o_)), critic(o_)[:, 0]
                log_ratio = pi.log_prob(a_) - logp_
                ratio = log_ratio.exp()
                with torch.no_grad():
                    _ = (-log_ratio).mean(), (ratio - 1 - log_ratio).mean()
                    _ = ((ratio - 1).abs() > 0.2).float().mean().item()
                advantage_ = (advantage_ - advantage_.mean()) / (advantage_.std() + 1e-8)
                policy_loss = torch.max(-advantage_ * ratio, -advantage_ * ratio.clamp(0.8, 1.2)).mean()
                bounded = value_ + (new - value_).clamp(-0.2, 0.2)
                value_loss = 0.5 * torch.max((new - target_) ** 2, (bounded - target_) ** 2).mean()
                adam.zero_grad()
                (policy_loss + 0.5 * value_loss - 0.01 * pi.entropy().mean()).backward()
                nn.utils.clip_grad_norm_(weights, 0.5)
                adam.step()


if __name__ == '__main__':
    serve(lambda: train(int(sys.argv[1])))
