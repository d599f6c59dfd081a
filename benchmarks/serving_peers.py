"""The peers of the serving benchmark: the same classifier behind other servers.

    python -m benchmarks.serving_peers KIND BUNDLE PORT

Each answers `POST /ask` with the five best templates. None has keys, a schema, limits or metrics.
All compute with one thread of torch in one process, as `heliostat serve` does by default.

(Annotations are no strings here: FastAPI would look them up where functions of functions are not.)
"""

import asyncio
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from heliostat.runs.bundle import load_bundle
from jobs.support_templates.data.rows import Message
from jobs.support_templates.suggest import Conversation, Scores, SuggestionModel

BATCH = 16
WAIT_S = 0.005


def opened(bundle: str) -> SuggestionModel:
    """The classifier, warmed up."""
    torch.set_num_threads(1)
    model = SuggestionModel(load_bundle(bundle), None)
    model.predict([model.example()])
    return model


def read(model: SuggestionModel, body: dict[str, Any]) -> Conversation:
    """The request as the model's item."""
    messages = [
        Message(index, message["role"], message["text"])
        for index, message in enumerate(body["messages"])
    ]
    found = model.read(messages)
    assert found is not None
    return found


def answer(model: SuggestionModel, scores: Scores) -> dict[str, Any]:
    """The five best templates."""
    ranking = model.rank(scores)
    best = zip(ranking.template_ids[:5], ranking.probabilities, strict=False)
    return {"suggestions": [{"template_id": name, "probability": p} for name, p in best]}


def with_fastapi(bundle: str, port: int) -> None:
    """FastAPI and uvicorn; one request at a time in a thread."""
    import uvicorn
    from fastapi import FastAPI, Request

    model, app, thread = opened(bundle), FastAPI(), ThreadPoolExecutor(1)

    def work(body: dict[str, Any]) -> dict[str, Any]:
        return answer(model, model.predict([read(model, body)])[0])

    @app.post("/ask")
    async def ask(request: Request) -> dict[str, Any]:
        body = await request.json()
        return await asyncio.get_running_loop().run_in_executor(thread, work, body)

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="error")


def with_litserve(bundle: str, port: int) -> None:
    """LitServe with its batching."""
    import litserve

    from benchmarks.serving_litserve import Api

    api = Api(bundle, max_batch_size=BATCH, batch_timeout=WAIT_S, api_path="/ask")
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1)
    server.run(port=port, host="127.0.0.1", log_level="error", generate_client_file=False)


def with_serve(bundle: str, port: int) -> None:
    """A deployment of Ray Serve with its batching."""
    import threading

    from fastapi import FastAPI, Request
    from ray import serve

    from heliostat.cluster.ray_cluster import connect

    app = FastAPI()

    @serve.deployment(max_ongoing_requests=400, ray_actor_options={"num_cpus": 1})
    @serve.ingress(app)
    class Bare:
        def __init__(self) -> None:
            self.model = opened(bundle)

        @serve.batch(max_batch_size=BATCH, batch_wait_timeout_s=WAIT_S)
        async def predict(self, items: list[Conversation]) -> list[Any]:
            return self.model.predict(items)

        @app.post("/ask")
        async def ask(self, request: Request) -> dict[str, Any]:
            body = await request.json()
            return answer(self.model, await self.predict(read(self.model, body)))

    connect("local", dashboard=True)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(Bare.bind(), route_prefix="/")
    threading.Event().wait()


KINDS = {"fastapi": with_fastapi, "litserve": with_litserve, "serve": with_serve}

if __name__ == "__main__":
    KINDS[sys.argv[1]](sys.argv[2], int(sys.argv[3]))
