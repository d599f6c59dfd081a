"""Endpoints: a small framework on Ray Serve that every job's endpoint uses.

One deployment serves an application. Each of its replicas holds every version of the model that
takes traffic at the moment, so that a swap, a canary and a shadow are one change of configuration,
made in place, and need neither another replica nor another hop. A request passes, in this order:
the gate (`gate.py`: request id, key, rate, size, time), the job's route (by way of FastAPI where
more than its body decides), the batcher (`batcher.py`) and the model, in a thread of its own or,
where its batches are short, on the event loop.
"""
