"""The peer of `first_step`: a script around Hugging Face's Trainer, as its documentation has it.

    torchrun --nproc-per-node WORKERS -m benchmarks.trainer_script FOLDER WORKERS deepspeed|plain

It loads a checkpoint in Hugging Face layout and packed rows that `datasets` saved, and trains.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from heliostat.train.task import Batch
    from jobs.corpora.tokenizer import TextCodec


def save_checkpoint(folder: Path, codec: TextCodec) -> None:
    """A GPT-NeoX of size `laptop` with random weights, and its tokenizer."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    from heliostat.storage import Location
    from jobs.corpora.tokenizer import write_codec

    config = GPTNeoXConfig(
        vocab_size=codec.vocab_size,
        hidden_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=384,
        max_position_embeddings=512,
    )
    GPTNeoXForCausalLM(config).save_pretrained(folder)
    write_codec(codec, Location.of(folder))


def save_rows(folder: Path, rows: Batch) -> None:
    """Packed rows as a data set."""
    import datasets

    names = ("input_ids", "labels")
    datasets.Dataset.from_dict({name: rows[name].tolist() for name in names}).save_to_disk(folder)


def main() -> None:
    """Train."""
    folder, workers, kind = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    if kind == "deepspeed":
        from heliostat.train.engine import prepare_deepspeed

        prepare_deepspeed()
    from datasets import load_from_disk
    from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

    accumulation = 2 // workers
    configuration = {
        "train_micro_batch_size_per_gpu": 8,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": 1.0,
        "zero_optimization": {"stage": 0},
    }
    with tempfile.TemporaryDirectory(prefix="heliostat-benchmark-") as output:
        arguments = TrainingArguments(
            output_dir=output,
            per_device_train_batch_size=8,
            gradient_accumulation_steps=accumulation,
            max_steps=100_000,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            deepspeed=configuration if kind == "deepspeed" else None,
        )
        Trainer(
            model=AutoModelForCausalLM.from_pretrained(folder / "model"),
            args=arguments,
            train_dataset=load_from_disk(folder / "rows"),
            processing_class=AutoTokenizer.from_pretrained(folder / "model"),
        ).train()


if __name__ == "__main__":
    main()
