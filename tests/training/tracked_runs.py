"""Reads back what trackers wrote to disk, as others would: values by step and name."""

import json
import struct
import time
from pathlib import Path

BLOCK = 2**15
HEADER = 7
WHOLE, FIRST, LAST = 1, 2, 4


def wandb_records(folder: Path) -> list:
    """The messages of a finished offline run, whose file another process may still be writing."""
    (path,) = folder.glob("*.wandb")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        records = _protobufs(path.read_bytes())
        if any(record.HasField("exit") for record in records):
            return records
        time.sleep(0.1)
    raise AssertionError(f"{path} has no end")


def _protobufs(data: bytes) -> list:
    """wandb's messages in the format of a LevelDB log, as far as they are there."""
    from wandb.proto.wandb_internal_pb2 import Record

    assert data[:4] in (b":W&B", b"")
    place, message, records = HEADER, b"", []
    while place + HEADER <= len(data):
        if BLOCK - place % BLOCK < HEADER:  # no room for a header: zeros up to the next block
            place += BLOCK - place % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + HEADER])
        if place + HEADER + length > len(data):
            break
        part = data[place + HEADER : place + HEADER + length]
        place += HEADER + length
        message = part if kind in (WHOLE, FIRST) else message + part
        if kind in (WHOLE, LAST):
            records.append(Record.FromString(message))
    return records


def wandb_history(folder: Path) -> dict[int, dict]:
    """Values given to `wandb.log`, by step; wandb's own names start with an underscore."""
    steps = {}
    for record in wandb_records(folder):
        if record.WhichOneof("record_type") == "history":
            items = _items(record.history.item)
            step = items.get("_step", record.history.step.num)
            values = {name: value for name, value in items.items() if not name.startswith("_")}
            steps.setdefault(step, {}).update(values)
    return {step: values for step, values in steps.items() if values}


def wandb_config(folder: Path) -> dict:
    """The run's configuration, later changes over earlier ones."""
    config = {}
    for record in wandb_records(folder):
        kind = record.WhichOneof("record_type")
        updates = {"run": record.run.config, "config": record.config}
        if kind in updates:
            config |= _items(updates[kind].update)
    return config


def _items(items) -> dict:
    """Names and values; media come as one item for each of their properties."""
    values = {}
    for item in items:
        *outer, name = item.nested_key or [item.key]
        place = values
        for key in outer:
            place = place.setdefault(key, {})
        place[name] = json.loads(item.value_json)
    return values


def events(folder: Path):
    """TensorBoard's own reader over the event files in a folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0})
    return accumulator.Reload()


def tensorboard_scalars(folder: Path) -> dict[int, dict[str, float]]:
    """Values by step and name; a name that has a step twice is an error."""
    accumulator, steps = events(folder), {}
    for name in accumulator.Tags()["scalars"]:
        for event in accumulator.Scalars(name):
            assert name not in steps.setdefault(event.step, {}), f"{name} twice at {event.step}"
            steps[event.step][name] = event.value
    return steps


def log_by_step(lines: list[dict]) -> dict[int, dict]:
    """Lines of log.jsonl of one step together; a name that it has twice is an error."""
    steps = {}
    for line in lines:
        values = dict(line)
        step = steps.setdefault(values.pop("step"), {})
        assert not step.keys() & values.keys()
        step.update(values)
    return steps
