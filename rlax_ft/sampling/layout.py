"""Parameters as decoding reads them, whatever stands beside a model's own: an adapter, or a second policy.

Leaves out the layout itself (`models.transformer.for_decoding`).
"""

from rlax_ft.models.lora import Adapted
from rlax_ft.models.transformer import for_decoding, layers_apart
from rlax_ft.parallel.constrain import active_mesh


def decoding_layout(params):
    """The same parameters, layers apart, wide matrices joined where that fits.

    Args:
      params: of a `Transformer`; `Adapted`; or several of these by name, `policy` among them, that are sampled as one.
    """
    if isinstance(params, Adapted):
        # An adapter beside its base fits no joined matrices.
        return params.replace(base=layers_apart(params.base), lora=params.lora and layers_apart(params.lora))
    if 'policy' in params:
        return {name: decoding_layout(part) for name, part in params.items()}
    # A joined matrix would be split over `tensor` across its parts.
    mesh = active_mesh()
    return for_decoding(params) if mesh is None or mesh.shape.get('tensor', 1) == 1 else layers_apart(params)
