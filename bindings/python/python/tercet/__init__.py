"""On-device recommendations: open, query and evaluate Tercet bundles.

>>> bundle = tercet.open("shop.tercet")
>>> user = bundle.session()
>>> user.record("sku-17", "view")
>>> user.recommend(10, filter="price <= 20")

Errors derive from :class:`TercetError`; each class is something a program can act on.
"""

from ._bundle import Bundle, Info, open
from ._evaluate import Split, evaluate, read_split
from ._native import (
    Because,
    BusyError,
    ClosedError,
    CorruptBundleError,
    CorruptSnapshotError,
    IncompatibleBundleError,
    InternalError,
    InvalidArgumentError,
    IoError,
    ListenerError,
    NotFoundError,
    Recommendation,
    Session,
    TercetError,
    UnknownItemError,
    UnsupportedError,
    __version__,
)

__all__ = [
    "Because",
    "Bundle",
    "BusyError",
    "ClosedError",
    "CorruptBundleError",
    "CorruptSnapshotError",
    "IncompatibleBundleError",
    "Info",
    "InternalError",
    "InvalidArgumentError",
    "IoError",
    "ListenerError",
    "NotFoundError",
    "Recommendation",
    "Session",
    "Split",
    "TercetError",
    "UnknownItemError",
    "UnsupportedError",
    "__version__",
    "evaluate",
    "open",
    "read_split",
]
