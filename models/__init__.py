"""Models in plain torch, for jobs and for notebooks: no files, no Ray, no config framework.

- `decoder_config`: the shape of a decoder, GPT-NeoX or Llama, as a dataclass.
- `decoder`: `Decoder` and `DecoderLM`; built from `attention`, `attention_mask`, `rotary`,
  `feed_forward` and `initialise`.
- `cache`: what attention keeps when it generates; `contiguous_cache` and `paged_cache` store it,
  `ragged` is the geometry of a step of several sequences.
- `classifier`: a decoder with a linear head; `encoder`: the BERT baseline of both kinds.
- `losses`: cross entropies as a sum and a count; `linear_cross_entropy` does the work.
- `hf_config`, `hf_layout`: to and from the Hugging Face formats.
- `counting`: parameters and FLOPs; `metrics`: ranking and calibration.
"""
