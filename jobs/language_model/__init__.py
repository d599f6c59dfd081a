"""Serve a causal language model in Hugging Face format: GPT-NeoX, Llama, DeepSeek."""
