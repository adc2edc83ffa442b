"""Bundles: the native object, with what reads better in Python."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Sequence

import numpy as np
import numpy.typing as npt

from . import _native


@dataclass(frozen=True)
class Info:
    """What a bundle is."""

    bundle_id: str
    bundle_version: int
    created: str
    expires: str | None
    items: int
    dim: int
    window: int
    behaviors: tuple[str, ...]
    attributes: tuple[str, ...]
    modalities: dict[str, int]
    """Names and widths of the features that an added item may have."""
    card: Any


class Bundle:
    """An open bundle; see :func:`open`. Closes itself at the end of a ``with`` block."""

    def __init__(
        self, path: str | os.PathLike[str], *, copy: bool = False, verify: bool = False
    ) -> None:
        self._native = _native.Bundle(os.fspath(path), copy=copy, verify=verify)

    @property
    def info(self) -> Info:
        """What the bundle is."""
        fields = json.loads(self._native.describe())
        fields["behaviors"] = tuple(fields["behaviors"])
        fields["attributes"] = tuple(fields["attributes"])
        fields["modalities"] = {m["name"]: m["dim"] for m in fields["modalities"]}
        return Info(**fields)

    def session(self, *, max_history: int = 512, adapt: bool = False) -> _native.Session:
        """A user's session, independent of every other."""
        return self._native.session(max_history=max_history, adapt=adapt)

    def verify(self) -> None:
        """Hashes every file and checks every row: once after a download."""
        self._native.verify()

    def probe(self) -> tuple[int, int, bool] | None:
        """Runs the bundle's own health check: items found, items expected, passed."""
        return self._native.probe()

    def keys(self) -> list[str]:
        """Keys of all items, in the order of rows."""
        return self._native.keys()

    def rows(self, keys: Sequence[str]) -> npt.NDArray[np.int64]:
        """Rows of item keys; -1 for those that the bundle does not have."""
        return self._native.rows(list(keys))

    def vectors(self, rows: npt.ArrayLike | None = None) -> npt.NDArray[np.float32]:
        """Item vectors ``[n, D]`` of rows, or of all items."""
        if rows is None:
            return self._native.vectors()
        return self._native.vectors(np.atleast_1d(np.asarray(rows, dtype=np.int64)))

    def popularity(self) -> npt.NDArray[np.float32] | None:
        """Popularity of all items, if the bundle has it."""
        return self._native.popularity()

    def attribute(self, name: str) -> list[list[str]]:
        """Values of an attribute column: a list per item, empty for none."""
        return self._native.attribute(name)

    def encode(
        self,
        histories: Sequence[Sequence[str]],
        behaviors: Sequence[Sequence[str]] | None = None,
    ) -> npt.NDArray[np.float32]:
        """User vectors ``[B, D]`` of histories: item keys, oldest first.

        Items that the bundle does not have are left out. ``behaviors`` names one per event.
        """
        return self._native.encode(
            [list(h) for h in histories],
            None if behaviors is None else [list(b) for b in behaviors],
        )

    def search(
        self,
        users: npt.ArrayLike,
        k: int,
        *,
        exclude: Sequence[Sequence[str]] | None = None,
        filter: str | None = None,
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """The best ``k`` items for each of ``users`` ``[B, D]``: rows and scores, ``[B, k]``.

        Where fewer than ``k`` qualify, rows are filled up with -1 and scores with -inf.
        """
        return self._native.search(
            np.atleast_2d(np.asarray(users, dtype=np.float32)),
            k,
            exclude=None if exclude is None else [list(e) for e in exclude],
            filter=filter,
        )

    def close(self) -> None:
        """Gives the memory back. Sessions go on. Closing twice is fine."""
        self._native.close()

    def __len__(self) -> int:
        return len(self._native)

    def __repr__(self) -> str:
        return repr(self._native)

    def __enter__(self) -> Bundle:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def open(
    path: str | os.PathLike[str], *, copy: bool = False, verify: bool = False
) -> Bundle:
    """Opens the bundle in a folder.

    ``copy`` reads the item table to memory instead of mapping it; ``verify`` hashes every file
    and checks every row first.
    """
    return Bundle(path, copy=copy, verify=verify)
