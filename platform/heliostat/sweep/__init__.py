"""Searches over any keys of a job's config; the only place that knows Ray Tune and Optuna."""
