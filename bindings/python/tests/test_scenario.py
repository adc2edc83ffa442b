"""Runs bindings/scenario.tsv and compares every line."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import tercet

SCENARIO = Path(__file__).parents[2] / "scenario.tsv"


def bits(x: float) -> str:
    # A Python float holds every f32 exactly, so this gives back the very bits.
    return struct.pack(">f", x).hex()


def lines(best: list[tercet.Recommendation]) -> list[str]:
    out = []
    for r in best:
        words = [r.item, bits(r.score)]
        for b in r.because:
            words += [b.item, bits(b.share), bits(b.contribution)]
        for name, share in r.modalities:
            words += [f"~{name}", bits(share)]
        out.append("\t".join(words))
    return out


class Host:
    def __init__(self, fixtures: Path, scratch: Path) -> None:
        self.fixtures, self.scratch = fixtures, scratch
        self.heard = 0

    def path(self, name: str) -> str:
        return str(self.scratch / name[1:] if name.startswith("$") else self.fixtures / name)

    def count(self, revision: int) -> None:
        assert revision > 0
        self.heard += 1

    @staticmethod
    def fail(revision: int) -> None:
        raise RuntimeError("no database")

    def run(self, words: list[str]) -> list[str]:
        def given(word: str) -> str | None:
            return None if word == "-" else word

        verb, arguments = words[0], words[1:]
        if verb == "open":
            history = 512
            flags = {"copy": False, "verify": False}
            adapt = "adapt" in arguments
            arguments = [word for word in arguments if word != "adapt"]
            for flag in arguments[1:]:
                if flag in flags:
                    flags[flag] = True
                else:
                    history = int(flag.partition("=")[2])
            bundle = tercet.open(self.path(arguments[0]), **flags)
            session = bundle.session(max_history=history, adapt=adapt)
            self.bundle, self.session = bundle, session
        elif verb == "close":
            self.session.close()
            self.bundle.close()
        elif verb == "info":
            i = self.bundle.info
            first = [i.bundle_id, i.bundle_version, i.items, i.dim, i.window]
            return ["\t".join(map(str, first)), "\t".join(i.behaviors), "\t".join(i.attributes)]
        elif verb == "record":
            time = given(arguments[2])
            known = self.session.record(
                arguments[0], given(arguments[1]), None if time is None else int(time)
            )
            return [f"{'known' if known else 'unknown'}\theard\t{self.heard}"]
        elif verb == "history":
            return [item for item, _, _ in self.session.history()]
        elif verb == "add":
            features: dict[str, list[float]] = {}
            attributes: dict[str, list[str]] = {}
            for part in arguments[1:]:
                name, _, values = part.partition("=")
                if name.startswith("@"):
                    attributes[name[1:]] = values.split(",")
                else:
                    features[name] = [float(x) for x in values.split(",")]
            outcome = self.session.add_item(arguments[0], features, attributes)
            return [f"{outcome}\theard\t{self.heard}"]
        elif verb == "feedback":
            if arguments[0] == "forget":
                self.session.forget_feedback()
                return [f"forgotten\theard\t{self.heard}"]
            known = self.session.feedback(arguments[0], arguments[1])
            return [f"{'known' if known else 'unknown'}\theard\t{self.heard}"]
        elif verb == "remove":
            there = self.session.remove_item(arguments[0])
            return [f"{'removed' if there else 'not there'}\theard\t{self.heard}"]
        elif verb == "added":
            items = self.session.added_items()
            return [f"{item}\t{'ranked' if ranked else 'kept'}" for item, ranked in items]
        elif verb == "recommend":
            settings: dict[str, object] = {}
            read = {"k": int, "filter": str, "diversity": float, "pool": int}
            read |= {"popularity": float, "explore": float, "seed": int, "probes": int}
            for setting in arguments:
                name, _, value = setting.partition("=")
                parts = value.split(":")
                if name == "exclude":
                    settings[name] = value.split(",")
                elif name == "dpp":
                    settings["method"] = "dpp"
                elif name == "cap":
                    settings["caps"] = {parts[0]: int(parts[1])}
                elif name == "calibrate":
                    settings[name] = {parts[0]: float(parts[1])}
                elif name == "freshness":
                    settings[name] = [(parts[0], *map(float, parts[1:]))]
                elif name in read:
                    settings[name] = read[name](value)
                else:
                    settings[name] = True
            return lines(self.session.recommend(**settings))  # type: ignore[arg-type]
        elif verb == "rank":
            ranked, unknown = self.session.rank(arguments)
            return lines(ranked) + [f"unknown\t{item}" for item in unknown]
        elif verb == "similar":
            return lines(self.session.similar(arguments[0], int(arguments[1])))
        elif verb == "vector":
            return ["\t".join(bits(float(x)) for x in self.session.user_vector())]
        elif verb == "probe":
            report = self.bundle.probe()
            if report is None:
                return ["none"]
            return [f"{report[0]}\t{report[1]}\t{'passed' if report[2] else 'failed'}"]
        elif verb == "verify":
            self.bundle.verify()
            return ["fine"]
        elif verb == "save":
            self.session.save(self.path(arguments[0]))
        elif verb == "restore":
            self.session.restore(self.path(arguments[0]))
        elif verb == "keep":
            key = {"-": None, "short": b"short"}.get(arguments[1])
            if arguments[1].isdigit():
                key = bytes([int(arguments[1])] * 32)
            self.session.keep_in(self.path(arguments[0]), key)
            return [item for item, _, _ in self.session.history()] or ["empty"]
        elif verb == "export":
            data = json.loads(self.session.export_user_data())
            first = data["events"][0]
            return [f"{len(data['events'])}\t{first['item']}\t{first['behavior']}"]
        elif verb == "erase":
            snapshot = given(arguments[0])
            file = None if snapshot is None else self.path(snapshot)
            self.session.erase(file)
            there = file is not None and Path(file).exists()
            return [f"{'there' if there else 'gone'}\theard\t{self.heard}"]
        elif verb == "listener":
            self.heard = 0
            listener = {"count": self.count, "fail": self.fail}.get(arguments[0])
            self.session.set_listener(listener)
        else:
            raise AssertionError(verb)
        return []


def play(text: str, fixtures: Path, scratch: Path) -> None:
    steps: list[tuple[int, list[str], list[str]]] = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("="):
            steps[-1][2].append(line)
        elif line and not line.startswith("#"):
            steps.append((number, line.split("\t"), []))
    host = Host(fixtures, scratch)
    for number, words, expected in steps:
        try:
            got = [f"=\t{out}" for out in host.run(words)]
        except tercet.TercetError as e:
            assert e.reason and str(e) == e.reason
            got = [f"=!\t{type(e).__name__.removesuffix('Error')}"]
        assert got == expected, f"line {number}: {words}"
    assert len(steps) > 50


def test_the_scenario(fixtures: Path, tmp_path: Path) -> None:
    play(SCENARIO.read_text(encoding="utf-8"), fixtures, tmp_path)
