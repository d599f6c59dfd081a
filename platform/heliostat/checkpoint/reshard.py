"""Convert a ZeRO checkpoint to DeepSpeed's universal format, to load it on another world size.

Run as `python -m heliostat.checkpoint.reshard SOURCE TARGET`: a process of its own, because the
converter loads whole optimiser files and its memory must be given back before training starts. It
wraps DeepSpeed's converter with safe loading.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path


def convert(source: Path, target: Path) -> None:
    """Write the universal form of the checkpoint folder `source` to `target`."""
    from deepspeed.checkpoint import ds_to_universal

    from heliostat.checkpoint.safe_load import allow_deepspeed_types, pickle_enums_by_value

    arguments = Namespace(
        input_folder=str(source),
        output_folder=str(target),
        # One process: more would each start a new interpreter without the safe-loading list.
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        # Our client state carries no record of parameter patterns; plain layouts need none.
        inject_missing_state=True,
    )
    pickle_enums_by_value()
    with allow_deepspeed_types():
        ds_to_universal.main(arguments)


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
