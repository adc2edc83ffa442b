"""Shards of item vectors, as `tercet export --shards` reads them.

A shard has its name only once it is whole: it is written under a hidden name, synced and renamed.
Its bytes follow from its rows alone, so a task that runs twice writes the same file twice.
"""

import json
import os
import struct
import tempfile

import numpy as np


def name(part, parts):
    return f"part-{part:05}-of-{parts:05}.safetensors"


def facts(part, parts, first, items, model):
    """The metadata of a shard: texts."""
    return {
        "tercet.shard": "1",
        "part": str(part),
        "parts": str(parts),
        "first": str(first),
        "items": str(items),
        "model": model,
    }


def write(folder, metadata, keys, vectors):
    """Writes keys (a list of str) and vectors [n, D] as one shard; its path."""
    encoded = [key.encode() for key in keys]
    offsets = np.zeros(len(keys) + 1, "<u8")
    np.cumsum([len(key) for key in encoded], out=offsets[1:])
    tensors = [
        ("vectors", "F32", np.ascontiguousarray(vectors, "<f4")),
        ("ids.offsets", "U64", offsets),
        ("ids.bytes", "U8", np.frombuffer(b"".join(encoded), "u1")),
    ]
    header, at = {"__metadata__": metadata}, 0
    for tensor, dtype, values in tensors:
        header[tensor] = {
            "dtype": dtype,
            "shape": list(values.shape),
            "data_offsets": [at, at + values.nbytes],
        }
        at += values.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    target = os.path.join(folder, name(int(metadata["part"]), int(metadata["parts"])))
    handle, temporary = tempfile.mkstemp(prefix=".shard-", dir=folder)
    try:
        with os.fdopen(handle, "wb") as out:
            out.write(struct.pack("<Q", len(text)))
            out.write(text)
            for _, _, values in tensors:
                out.write(values.data)
            out.flush()
            os.fsync(out.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise
    return target


def read_metadata(path):
    """The metadata of a shard."""
    with open(path, "rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        if size > 1 << 16:
            raise ValueError(f"{path} is not a shard")
        return json.loads(file.read(size))["__metadata__"]
