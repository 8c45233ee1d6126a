"""The decoder-only transformer, its sizes, heads, and how text is scored under it."""
