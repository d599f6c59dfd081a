"""Checkpoints in Hugging Face layout, read and converted for several jobs: no job of its own."""
