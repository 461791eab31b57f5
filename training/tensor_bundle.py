"""Reads the variables of a TensorFlow checkpoint (a "tensor bundle", format V2) without TensorFlow.

The index is a table of LevelDB's format: blocks of sorted keys that share prefixes, a block that lists the blocks, and
a footer that says where that is. Its values are protocol buffers of the message `BundleEntryProto`; the tensors
themselves lie raw in the data file. Only what a checkpoint in one piece needs is read: no partitioned variables, no
compressed blocks, little-endian float32.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

MAGIC = bytes.fromhex("57fb808b247547db")  # the last eight bytes of every table
FOOTER_BYTES, BLOCK_TRAILER_BYTES = 48, 5
FLOAT32 = 1  # DT_FLOAT


def read_bundle(index: bytes, data: bytes) -> dict[str, NDArray[np.float32]]:
    """All float32 variables by name.

    Args:
        index: the file `*.index`.
        data: the file `*.data-00000-of-00001`.

    Raises:
        ValueError: if the files are not such a checkpoint, or do not belong together.
    """
    variables = {}
    for key, value in _entries(index):
        if not key:  # the header of the bundle
            continue
        entry = dict(_fields(value))
        if entry.get(1) != FLOAT32:
            continue
        if entry.get(3, 0):
            raise ValueError(f"variable {key.decode()} is in another file of the checkpoint, which has several")
        shape = [int(dict(_fields(size)).get(1, 0)) for number, size in _fields(entry.get(2, b"")) if number == 2]
        start, size = int(entry.get(4, 0)), int(entry.get(5, 0))
        if size != 4 * int(np.prod(shape)) or start + size > len(data):
            raise ValueError(f"variable {key.decode()} does not fit into the data file: the checkpoint is damaged")
        variables[key.decode()] = np.frombuffer(data, "<f4", size // 4, start).reshape(shape)
    return variables


def _entries(table: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of a table, in order."""
    if len(table) < FOOTER_BYTES or table[-8:] != MAGIC:
        raise ValueError("this is not the index of a TensorFlow checkpoint")
    footer = table[-FOOTER_BYTES:]
    _, position = _varint(footer, 0)  # of the meta-index, which is empty: its offset and size
    _, position = _varint(footer, position)
    for _, handle in _block(table, *_handle(footer, position)):
        yield from _block(table, *_handle(handle, 0))


def _handle(content: bytes, position: int) -> tuple[int, int]:
    offset, position = _varint(content, position)
    size, _ = _varint(content, position)
    return offset, size


def _block(table: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    if offset + size + BLOCK_TRAILER_BYTES > len(table):
        raise ValueError("the index of the checkpoint is cut off")
    if table[offset + size]:
        raise ValueError("the index of the checkpoint is compressed, which TensorFlow does not do")
    block = table[offset : offset + size]
    restarts = int.from_bytes(block[-4:], "little")
    end, position, key = len(block) - 4 * (restarts + 1), 0, b""
    while position < end:
        shared, position = _varint(block, position)
        own, position = _varint(block, position)
        length, position = _varint(block, position)
        key = key[:shared] + block[position : position + own]
        yield key, block[position + own : position + own + length]
        position += own + length


def _fields(message: bytes | int) -> Iterator[tuple[int, int | bytes]]:
    """Field numbers and values of a protocol buffer: integers, and bytes for what has a length."""
    if isinstance(message, int):
        raise ValueError("the index of the checkpoint is damaged: a number where a message should be")
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        kind = tag & 7
        if kind == 0:
            value, position = _varint(message, position)
            yield tag >> 3, value
        elif kind == 2:
            length, position = _varint(message, position)
            yield tag >> 3, message[position : position + length]
            position += length
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
            yield tag >> 3, message[position : position + length]
            position += length
        else:
            raise ValueError(f"the index of the checkpoint is damaged: a field of kind {kind}")


def _varint(content: bytes, position: int) -> tuple[int, int]:
    """An integer in groups of seven bits, the lowest first, and where it ends."""
    value = shift = 0
    while position < len(content):
        byte = content[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return value, position
    raise ValueError("the index of the checkpoint is cut off")
