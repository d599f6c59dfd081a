"""Checkpoints: everything needed to go on training exactly, and nothing that is half written.

A checkpoint is a folder `checkpoints/step-00000123/` in the run's storage. Every rank writes its
own files; when all have arrived, rank 0 writes `manifest.json`, with the SHA-256 of each. A folder
without a manifest does not exist for anybody who reads, and is collected as an orphan.
"""
