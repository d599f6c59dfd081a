"""One generation engine for every causal language model that is served.

- `contract`: what a job gives: a model that computes steps, and a codec for its text.
- `request`: what a client asks for, and what it is told.
- `pages`: who owns which page of the cache, and which beginnings can be used again.
- `sampling`: the next token of one request, from its own random numbers.
- `detokenise`: tokens to text that never breaks a character, and stop strings.
- `sequence`, `scheduler`: the requests under way, and what is computed next.
- `core`: one step after another, plain and blocking; `engine`: the same for many clients at once.
"""
