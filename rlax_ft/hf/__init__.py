"""Hugging Face folders: read as a configuration, parameters and a tokenizer, and written as transformers opens them."""

from rlax_ft.hf.folder import load_pretrained, save_pretrained

__all__ = ['load_pretrained', 'save_pretrained']
