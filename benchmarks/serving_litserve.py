"""The classifier behind LitServe, which pickles it, so it is at the top of a module.

(Annotations are no strings here: LitServe takes the type of a request from them.)
"""

from collections.abc import Sequence
from typing import Any

import litserve

from benchmarks.serving_peers import answer, opened, read
from jobs.support_templates.suggest import Conversation


class Api(litserve.LitAPI):  # type: ignore[misc]
    """The five best templates, in batches."""

    def __init__(self, bundle: str, **options: Any) -> None:
        super().__init__(**options)
        self.bundle = bundle

    def setup(self, device: str) -> None:
        """Load the model."""
        self.model = opened(self.bundle)

    def decode_request(self, request: dict[str, Any]) -> Conversation:
        """The request as the model's item."""
        return read(self.model, request)

    def batch(self, inputs: Sequence[Conversation]) -> Sequence[Conversation]:
        """Items are not tensors."""
        return inputs

    def predict(self, inputs: Sequence[Conversation]) -> Any:
        """The scores of a batch."""
        return self.model.predict(inputs)

    def unbatch(self, output: Any) -> Any:
        """One score an item."""
        return output

    def encode_response(self, output: Any) -> dict[str, Any]:
        """The answer."""
        return answer(self.model, output)
