"""Record forms, tokenizers, chat templates, batches and masks, packing, the resumable loader, and embedded tasks."""
