"""What only Python has: arrays, evaluation, exceptions with causes, threads."""

from __future__ import annotations

import csv
import gc
import gzip
import math
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tercet


def test_arrays(shop: str) -> None:
    bundle = tercet.open(shop)
    assert len(bundle) == 60 and len(bundle.keys()) == 60
    rows = bundle.rows(["item-1", "nowhere", "thé-vert"])
    assert rows.dtype == np.int64 and rows.tolist() == [1, -1, 7]
    vectors = bundle.vectors()
    assert vectors.shape == (60, 16) and vectors.dtype == np.float32
    assert np.array_equal(bundle.vectors([7, 1]), vectors[[7, 1]])
    assert bundle.vectors([]).shape == (0, 16)
    popularity = bundle.popularity()
    assert popularity is not None and popularity[1] == np.float32(37 / 64)
    assert bundle.attribute("tags")[:3] == [[], ["new"], ["new", "sale"]]

    users = bundle.encode([["item-3", "item-11"], [], ["nowhere"]])
    assert users.shape == (3, 16) and users.dtype == np.float32
    # A history of unknown items is an empty one.
    assert np.array_equal(users[1], users[2]) and not np.array_equal(users[0], users[1])
    rows, scores = bundle.search(users, 5, exclude=[["item-3", "item-11"], [], []])
    assert rows.shape == scores.shape == (3, 5)
    with bundle.session() as session:
        session.record("item-3")
        session.record("item-11")
        best = session.recommend(5)
        assert [bundle.keys()[r] for r in rows[0]] == [r.item for r in best]
        assert scores[0].tolist() == [r.score for r in best]
        assert np.array_equal(session.user_vector(), users[0])
    # Not contiguous, another type, one user alone.
    assert np.array_equal(bundle.search(np.asfortranarray(users), 5)[0], bundle.search(users, 5)[0])
    assert np.array_equal(bundle.search(users.astype(np.float64)[0], 5)[0], bundle.search(users[:1], 5)[0])
    few, low = bundle.search(users, 9, filter="category = adult and price > 10")
    assert (few[:, -1] == -1).all() and np.isneginf(low[:, -1]).all()
    assert bundle.search(users, 10**9)[0].shape == (3, 60)


def test_behaviors_count(shop: str) -> None:
    bundle = tercet.open(shop)
    plain, bought = bundle.encode([["item-3"]]), bundle.encode([["item-3"]], [["buy"]])
    assert not np.array_equal(plain, bought)
    mistakes: list[list[list[str]]] = [[["nope"]], [[]], []]
    for wrong in mistakes:
        with pytest.raises(tercet.InvalidArgumentError):
            bundle.encode([["item-3"]], wrong)


def test_evaluate_by_hand(shop: str) -> None:
    bundle = tercet.open(shop)
    keys = bundle.keys()
    histories = [["item-3"], ["item-4"], ["item-5"]]
    rows, _ = bundle.search(bundle.encode(histories), 4, exclude=histories)
    # The first user wants numbers 1 and 3 of the list and one unknown item, the second nothing,
    # the third only what is not in the list.
    far = keys[bundle.search(bundle.encode(histories[2:]), 59)[0][0, -1]]
    targets = [[keys[rows[0, 0]], keys[rows[0, 2]], "nowhere"], [], [far]]
    m = tercet.evaluate(bundle, histories, targets, k=(2, 4))
    assert m["recall@2"] == pytest.approx((1 / 3) / 2)
    assert m["recall@4"] == pytest.approx((2 / 3) / 2)
    assert m["precision@4"] == pytest.approx((2 / 4) / 2)
    assert m["hit@2"] == m["hit@4"] == 0.5
    assert m["mrr@4"] == 0.5
    ideal = 1 + 1 / math.log2(3) + 1 / math.log2(4)
    assert m["ndcg@4"] == pytest.approx((1 + 1 / math.log2(4)) / ideal / 2)
    shown = {*rows[0].tolist(), *rows[2].tolist()}
    assert m["coverage@4"] == pytest.approx(len(shown) / 60)
    with pytest.raises(ValueError):
        tercet.evaluate(bundle, histories, targets[:2])
    with pytest.raises(ValueError):
        tercet.evaluate(bundle, histories, [[], [], []])


@pytest.mark.parametrize("zipped", [False, True])
def test_read_split(tmp_path: Path, zipped: bool) -> None:
    lines = [
        ["user_id", "item_id", "split", "timestamp", "behavior"],
        ["u", "b", "train", "2", "buy"],
        ["u", "a", "train", "1", ""],
        ["u", "c", "valid", "0", "view"],
        ["u", "d", "test", "9", "view"],
        ["v", "a", "train", "1", "view"],
    ]
    name = "interactions.csv" + (".gz" if zipped else "")
    with (gzip.open if zipped else open)(tmp_path / name, "wt", newline="") as file:
        csv.writer(file).writerows(lines)
    test = tercet.read_split(tmp_path)
    assert test.users == ["u"] and test.targets == [["d"]]
    assert test.histories == [["a", "b", "c"]] and test.behaviors == [["any", "buy", "view"]]
    valid = tercet.read_split(tmp_path, "valid")
    assert valid.histories == [["a", "b"]] and valid.targets == [["c"]]
    with pytest.raises(ValueError):
        tercet.read_split(tmp_path, "train")


def test_bad_input(shop: str) -> None:
    bundle = tercet.open(shop)
    session = bundle.session()
    assert len(session.recommend(2**31 - 1)) == 60
    mistakes: list[dict[str, Any]] = [{"k": 0}, {"k": -1}, {"k": 3, "diversity": math.nan}]
    for wrong in [*mistakes, {"k": 3, "filter": "x ="}]:
        with pytest.raises(tercet.InvalidArgumentError):
            session.recommend(**wrong)
    with pytest.raises(OverflowError):
        session.recommend(2**40)
    with pytest.raises(UnicodeEncodeError):
        session.record("item-\ud800")
    with pytest.raises(TypeError):
        session.record(None)  # type: ignore[arg-type]
    with pytest.raises(tercet.InvalidArgumentError, match="columns"):
        bundle.search(np.zeros((2, 15), np.float32), 3)
    with pytest.raises(tercet.InvalidArgumentError, match="exclude"):
        bundle.search(np.zeros((2, 16), np.float32), 3, exclude=[[]])
    with pytest.raises(tercet.InvalidArgumentError):
        bundle.search(np.full((1, 16), np.nan, np.float32), 3)
    for row in (-1, 60, 2**40):
        with pytest.raises(tercet.InvalidArgumentError):
            bundle.vectors([row])
    with pytest.raises(tercet.InvalidArgumentError, match="no attribute"):
        bundle.attribute("nope")
    with pytest.raises(tercet.NotFoundError, match="/no/such/folder"):
        tercet.open("/no/such/folder")


def test_a_listener_that_raises_is_the_cause(shop: str) -> None:
    session = tercet.open(shop).session()
    broken = ZeroDivisionError("no database")

    def listener(revision: int) -> None:
        raise broken

    session.set_listener(listener)
    with pytest.raises(tercet.ListenerError, match="no database") as caught:
        session.record("item-1")
    assert caught.value.__cause__ is broken
    assert [item for item, _, _ in session.history()] == ["item-1"]
    # One that calls back.
    sizes: list[int] = []
    session.set_listener(lambda revision: sizes.append(len(session.recommend(3))))
    session.record("item-2")
    session.set_listener(None)
    session.record("item-3")
    assert sizes == [3]


def test_closed(shop: str) -> None:
    with tercet.open(shop) as bundle:
        session = bundle.session()
    with pytest.raises(tercet.ClosedError):
        bundle.keys()
    with pytest.raises(tercet.ClosedError):
        len(bundle)
    assert "closed" in repr(bundle)
    bundle.close()
    # A session keeps what it needs.
    assert len(session.recommend(3)) == 3
    session.close()
    session.close()
    for call in (session.history, session.user_vector, lambda: session.set_listener(None)):
        with pytest.raises(tercet.ClosedError, match="open the bundle again"):
            call()


def test_four_threads(shop: str) -> None:
    bundle = tercet.open(shop)
    shared = bundle.session()
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            own = bundle.session()
            for i in range(100):
                own.record(f"item-{(7 * i + number) % 60}")
                shared.record(f"item-{(3 * i + number) % 60}", "buy")
                own.recommend(5)
                shared.recommend(5)
        except BaseException as e:
            errors.append(e)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and len(shared.history()) == 400


def test_replaced_while_open(shop: str, tmp_path: Path) -> None:
    live = tmp_path / "live.tercet"
    shutil.copytree(shop, live)
    mapped, copied = tercet.open(live).session(), tercet.open(live, copy=True).session()
    before = mapped.recommend(5)
    assert copied.recommend(5) == before
    live.rename(tmp_path / "old.tercet")
    assert mapped.recommend(5) == before
    mapped.close()
    items = tmp_path / "old.tercet" / "items.safetensors"
    items.write_bytes(items.read_bytes()[:1000])
    assert copied.recommend(5) == before
    with pytest.raises(tercet.CorruptBundleError, match="fetch the bundle again"):
        tercet.open(tmp_path / "old.tercet")


def resident_kilobytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    pytest.skip("no /proc here")


def test_ten_thousand_cycles_do_not_grow(shop: str) -> None:
    before = 0
    for i in range(10_000):
        with tercet.open(shop) as bundle, bundle.session() as session:
            session.record("item-1")
            session.recommend(5)
        if i == 1000:
            gc.collect()
            before = resident_kilobytes()
    gc.collect()
    assert resident_kilobytes() - before < 2048


def test_reprs_say_something(shop: str) -> None:
    session = tercet.open(shop).session()
    session.record("item-3")
    text = repr(session.recommend(1, explain=True)[0])
    assert text.startswith('Recommendation(item="') and "item-3" in text
    assert "shop version 3: 60 items" in repr(tercet.open(shop))
