"""Records, tokenizers, batches and masks, the resumable loader, and the embedded tasks."""
