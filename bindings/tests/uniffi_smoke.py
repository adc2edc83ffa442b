"""What uniffi makes of the surface for Python, called once: a check of the surface that Kotlin and
Swift share, in a language that needs no compiler. Apps and notebooks use the package in `python/`.

usage: uniffi_smoke.py FOLDER FIXTURES     (tercet_ffi.py and the library; the bundles)
"""

import sys

folder, fixtures = sys.argv[1:]
sys.path.insert(0, folder)
import tercet_ffi as t  # noqa: E402


class Counter(t.HistoryListener):
    heard = 0

    def history_changed(self, revision):
        self.heard += 1


engine = t.TercetEngine.open(fixtures + "/shop.tercet", t.Options())
counter = Counter()
engine.set_listener(counter)
assert engine.info().items == 60
assert engine.record(t.Event(item="item-3", behavior="view"))
assert not engine.record(t.Event(item="nowhere"))
new = t.NewItem(
    item="fresh",
    features=[t.Feature(modality="text", values=[0.5] * 8)],
    attributes=[t.AttributeValues(attribute="category", values=["food"])],
)
assert engine.add_item(new) == t.Added.RANKED
assert [i.item for i in engine.added_items()] == ["fresh"]
query = t.Query(k=5, caps=[t.Cap(attribute="category", items=2)], explain=True)
best = engine.recommend(query)
assert len(best) == 5 and best[0].because[0].item == "item-3", best
assert engine.remove_item("fresh") and counter.heard == 4
assert len(engine.user_vector()) == 4 * engine.info().dim
try:
    engine.recommend(t.Query(k=0))
    raise SystemExit("k = 0 was accepted")
except t.TercetError.InvalidArgument as e:
    assert "k is 0" in e.reason, e.reason
engine.set_listener(None)
engine.shut_down()
try:
    engine.info()
    raise SystemExit("a closed engine answered")
except t.TercetError.Closed:
    pass
print("uniffi's Python: fine")
