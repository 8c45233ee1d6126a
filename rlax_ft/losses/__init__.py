"""Losses as pure functions of arrays: no reduction over the batch, no model, no flag, no random key."""
