"""A loss put on a model, as `loss_fn(params, batch, key) -> (loss, metrics)`."""
