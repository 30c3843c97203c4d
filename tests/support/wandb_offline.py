"""Read the file of an offline W&B run: a log in LevelDB's format of the package's own protobufs."""

import json
import struct

_BLOCK = 32 * 1024
_HEAD = 7  # bytes: of the file (":W&B", a magic number, a version), and of each chunk


def records(path):
    """Give the records of a run in order; checksums are left to W&B's own uploader."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, parts = path.read_bytes(), _HEAD, []
    while place + _HEAD <= len(data):
        if _BLOCK - place % _BLOCK < _HEAD:  # the rest of a block is padding
            place += _BLOCK - place % _BLOCK
        _, length, kind = struct.unpack_from("<IHB", data, place)
        place += _HEAD
        parts.append(data[place : place + length])
        place += length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield Record.FromString(b"".join(parts))
            parts = []


def config_of(path):
    """Give what is in the run's config, by key."""
    return {
        update.key or "/".join(update.nested_key): json.loads(update.value_json)
        for record in records(path)
        for update in [*record.config.update, *record.run.config.update]
    }


def history_of(path):
    """Give what was logged, a dict for each row."""
    return [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in row}
        for record in records(path)
        if (row := record.history.item)
    ]
