"""What a script trains: all parameters of its model, or an adapter beside a frozen base (--lora_rank).

A loop reads the same either way: it asks the learner for apply functions and starting parameters, and for what to
write at the end. Leaves out where models come from (starting_model.py).
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp

from rlax_ft.data.codec import Codec
from rlax_ft.errors import InputError
from rlax_ft.harness.run import Run
from rlax_ft.harness.settings import Settings
from rlax_ft.harness.starting_model import model_source
from rlax_ft.hf.folder import save_pretrained
from rlax_ft.hf.peft import save_adapter
from rlax_ft.models.config import LoRAConfig, ModelConfig
from rlax_ft.models.ensemble import beside_first, member
from rlax_ft.models.fp8 import lacks_fp8
from rlax_ft.models.heads import ScalarModel, reward_head, reward_params, value_params
from rlax_ft.models.lora import Adapted, Adapter, adapted, attach, init_adapter, merge
from rlax_ft.models.transformer import Transformer
from rlax_ft.parallel.hosts import on_first
from rlax_ft.parallel.placement import on_host, to_device_memory, to_host_memory
from rlax_ft.rewards.ensemble import RewardEnsemble
from rlax_ft.types import Params


@dataclasses.dataclass(frozen=True)
class Learner:
    """A model to be trained.

    Attributes:
      config: of the model, with `lora` where an adapter is trained.
      model: parameters of the `Transformer` that training starts from; no step donates or changes them.
      source: folder or hub id of the base, for the adapter's folder.
      seed: of fresh adapters and heads.
      offload: the model is in the host's memory, as a reference that a script brings to the devices for its passes.
    """

    config: ModelConfig
    model: Params
    source: str = ''
    seed: int = 0
    offload: bool = False

    @property
    def base(self) -> Params | None:
        """What each step reads and none changes; None where everything is trained."""
        return self.model if self.config.lora else None

    @property
    def reference(self) -> Params:
        """The starting model as parameters for `apply`, to be made `ready` for each pass."""
        return Adapted(self.model) if self.config.lora else self.model

    @property
    def apply(self):
        """The policy's `apply`, for parameters that `whole` gave."""
        return self._adapted(Transformer(self.config).apply)

    @property
    def scalar_apply(self):
        """The same for a value function or a reward model."""
        return self._adapted(ScalarModel(self.config).apply)

    def rest(self, reference: Params) -> Params:
        """A reference that moves, where references are kept between their passes."""
        return to_host_memory(reference) if self.offload else reference

    def ready(self, reference: Params) -> Params:
        """A reference on the devices for a pass, after which nobody should hold it."""
        return to_device_memory(reference)

    def whole(self, params: Params) -> Params:
        """Trained parameters as the apply functions take them."""
        return attach(params, self.base)

    def start(self, *, copy: bool = True) -> Params:
        """Fresh trainable parameters of a policy: a copy of the model, or an adapter that changes nothing.

        Without a copy the model itself is trained, and nobody may read it afterwards.
        """
        if not self.config.lora:
            model = to_device_memory(self.model)
            return jax.tree.map(jnp.copy, model) if copy and not self.offload else model
        return Adapter(self._adapter(0))

    def start_value(self) -> Params:
        """The same for a value function, with a head of 0."""
        return self._scalar(value_params, 1)

    def start_reward(self) -> Params:
        """The same for a reward model, with a random head."""
        return self._scalar(lambda model: reward_params(model, jax.random.key(self.seed)), 2)

    def start_ensemble(self, count: int) -> Params:
        """The same for `count` reward models on one base: heads on one backbone, or an adapter and a head each."""
        keys = jax.random.split(jax.random.fold_in(jax.random.key(self.seed), 3), count)
        head = jax.vmap(lambda key: reward_head(self.model, key))(keys)
        if not self.config.lora:
            return self.start_reward() | {'head': head}
        adapters = jax.vmap(lambda key: init_adapter(self.model, self.config.lora, jax.random.fold_in(key, 1)))(keys)
        return Adapter(adapters, head)

    def ensemble(self, params: Params) -> RewardEnsemble:
        """Trained parameters of `start_ensemble`'s form as an ensemble that is whole without the base."""
        head = params.head if self.config.lora else params['head']
        count = head['kernel'].shape[0]
        plain = partial(RewardEnsemble, means=jnp.zeros(count), scales=jnp.ones(count))
        if not self.config.lora:
            return plain(self.config, params['backbone'], {'head': head})
        adapters, lora = beside_first(params.lora, self.config.lora)
        backbone = self.merged(member(params, 0))['backbone']
        members = {'head': head, 'lora': adapters}
        return plain(dataclasses.replace(self.config, lora=lora), backbone, members)

    def merged(self, params: Params) -> Params:
        """Trained parameters as those of a plain `Transformer` or `ScalarModel`."""
        if not self.config.lora:
            return params
        model = merge(self.model, params.lora, self.config.lora)
        if params.head is None:
            return model
        return {'backbone': {k: v for k, v in model.items() if k != 'head'}, 'head': params.head}

    def export(self, run: Run, params: Params, codec: Codec) -> None:
        """Writes the run's model/ as a folder that transformers opens, and adapter/ as one that PEFT opens."""
        merged = on_host(self.merged(params))
        on_first(lambda: save_pretrained(run.folder / 'model', self.config, merged, codec.tokenizer), 'model')
        self.export_adapter(run, params)

    def export_adapter(self, run: Run, params: Params) -> None:
        """Writes the run's adapter/, where one was trained."""
        if self.config.lora:
            adapter = on_host(params.lora)
            on_first(lambda: save_adapter(run.folder / 'adapter', self.config, adapter, base=self.source), 'adapter')

    def _adapted(self, apply):
        return adapted(apply) if self.config.lora else apply

    def _adapter(self, salt):
        key = jax.random.fold_in(jax.random.key(self.seed), salt)
        return init_adapter(self.model, self.config.lora, key)

    def _scalar(self, make, salt):
        if not self.config.lora:
            return make(to_device_memory(self.model))
        return Adapter(self._adapter(salt), make(self.model)['head'])


def make_learner(settings: Settings, config: ModelConfig, model: Params) -> Learner:
    """The learner that the flags ask for, on the model to start from.

    Raises:
      InputError: --matmul_dtype=fp8 on a chip without it.
    """
    check_matmul(settings, jax.devices()[0])
    lora = lora_config(settings)
    config = dataclasses.replace(config, lora=lora, remat=settings.remat, matmul=settings.matmul_dtype)
    offload = getattr(settings, 'offload_reference', False)
    return Learner(config, to_host_memory(model) if offload else model, model_source(settings), settings.seed, offload)


def check_matmul(settings: Settings, device: jax.Device) -> None:
    """Refuses --matmul_dtype=fp8 where the device would widen the numbers again; a CPU is there to try things out.

    Raises:
      InputError: as said.
    """
    if settings.matmul_dtype == 'fp8' and (name := lacks_fp8(device)):
        raise InputError(f'--matmul_dtype=fp8: a {name} does not multiply in 8-bit floating point; leave it out')


def lora_config(settings: Settings) -> LoRAConfig | None:
    """The adapter that the flags describe; None where there is none."""
    if not settings.lora_rank:
        return None
    return LoRAConfig(
        settings.lora_rank, settings.lora_alpha, settings.lora_dropout, settings.lora_targets, settings.rslora
    )
