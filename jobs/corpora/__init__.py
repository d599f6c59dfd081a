"""Text that several jobs train on, prepared once: no job of its own."""
