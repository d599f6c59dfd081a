"""Models in plain torch, for jobs and for notebooks: no files, no Ray, no config framework.

- `decoder_config`: the shape of a decoder, GPT-NeoX, Llama or DeepSeek, as a dataclass, with the
  sections `latent_config`, `expert_config` and `yarn`.
- `decoder`: `Decoder` and `DecoderLM`; built from `attention`, `latent_attention` (with its two
  paths, `latent_paths`), `attention_mask`, `rotary`, `feed_forward`, `mixture` and `initialise`.
- `mixture`: experts in place of a feed-forward layer; built from `routing`, `experts`, `balance`
  and `dropping`, shared out by `expert_parallel`. `partial_attention`: attention in parts that are
  merged; `short_attention`: over short rows on a CPU.
- `cache`: what attention keeps when it generates; `contiguous_cache` and `paged_cache` store it,
  `ragged` is the geometry of a step of several sequences.
- `classifier`: a decoder with a linear head; `encoder`: the BERT baseline of both kinds.
- `losses`: cross entropies as a sum and a count; `linear_cross_entropy` does the work.
- `hf_config`, `hf_layout`: to and from the Hugging Face formats; `hf_deepseek` and `fp8` for
  theirs.
- `counting`: parameters and FLOPs; `metrics`: ranking and calibration.
"""
