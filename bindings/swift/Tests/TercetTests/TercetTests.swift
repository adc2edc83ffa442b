import Foundation
import Testing

@testable import Tercet

/// Folder written by `tercet-fixtures`.
private let fixtures = ProcessInfo.processInfo.environment["TERCET_FIXTURES"] ?? "fixtures"

private func caseName(_ error: any Error) -> String {
    guard let error = error as? TercetError else { return "\(error)" }
    #expect(!error.reason.isEmpty)
    #expect(error.recoverySuggestion?.isEmpty == false)
    switch error {
    case .Closed: return "Closed"
    case .InvalidArgument: return "InvalidArgument"
    case .UnknownItem: return "UnknownItem"
    case .NotFound: return "NotFound"
    case .IncompatibleBundle: return "IncompatibleBundle"
    case .CorruptBundle: return "CorruptBundle"
    case .CorruptSnapshot: return "CorruptSnapshot"
    case .Unsupported: return "Unsupported"
    case .Listener: return "Listener"
    case .Io: return "Io"
    case .Internal: return "Internal"
    case .Busy: return "Busy"
    }
}

private func bits(_ x: Float) -> String {
    let text = String(x.bitPattern, radix: 16)
    return String(repeating: "0", count: 8 - text.count) + text
}

private func lines(_ best: [Recommendation]) -> [String] {
    best.map { r in
        let because = r.because.flatMap { [$0.item, bits($0.share), bits($0.contribution)] }
        let modalities = r.modalities.flatMap { ["~\($0.name)", bits($0.share)] }
        return ([r.item, bits(r.score)] + because + modalities).joined(separator: "\t")
    }
}

private final class Counter: HistoryListener, @unchecked Sendable {
    private let lock = NSLock()
    private var value = 0

    var heard: Int {
        lock.lock()
        defer { lock.unlock() }
        return value
    }

    func historyChanged(revision: Int64) throws {
        lock.lock()
        value += 1
        lock.unlock()
    }
}

private final class Broken: HistoryListener {
    struct NoDatabase: Error {}

    func historyChanged(revision: Int64) throws {
        throw NoDatabase()
    }
}

/// Runs the steps of scenario.tsv.
private final class Host {
    let scratch: String
    var recommender: Recommender?
    var counter = Counter()

    init(scratch: String) {
        self.scratch = scratch
    }

    func path(_ name: String) -> String {
        name.hasPrefix("$") ? "\(scratch)/\(name.dropFirst())" : "\(fixtures)/\(name)"
    }

    func given(_ word: String) -> String? {
        word == "-" ? nil : word
    }

    func run(_ words: [String]) async throws -> [String] {
        if words[0] == "open" {
            var copy = false
            var verify = false
            var adapt = false
            var maxHistory: Int32 = 0
            for flag in words.dropFirst(2) {
                switch flag {
                case "copy": copy = true
                case "verify": verify = true
                case "adapt": adapt = true
                default: maxHistory = Int32(flag.split(separator: "=")[1])!
                }
            }
            recommender = try await Recommender(
                path: path(words[1]),
                options: Options(copy: copy, verify: verify, maxHistory: maxHistory, adapt: adapt))
            return []
        }
        let recommender = try #require(self.recommender)
        switch words[0] {
        case "close":
            recommender.close()
        case "info":
            let i = try await recommender.info()
            return [
                "\(i.bundleId)\t\(i.bundleVersion)\t\(i.items)\t\(i.dim)\t\(i.window)",
                i.behaviors.joined(separator: "\t"),
                i.attributes.joined(separator: "\t"),
            ]
        case "record":
            let time = given(words[3]).map { Date(timeIntervalSince1970: Double($0)!) }
            let known = try await recommender.record(words[1], behavior: given(words[2]), at: time)
            return ["\(known ? "known" : "unknown")\theard\t\(counter.heard)"]
        case "history":
            return try await recommender.history().map(\.item)
        case "add":
            var item = NewItem(item: words[1], features: [])
            for part in words.dropFirst(2) {
                let pair = part.split(separator: "=").map(String.init)
                let values = pair[1].split(separator: ",").map(String.init)
                if pair[0].hasPrefix("@") {
                    let attribute = String(pair[0].dropFirst())
                    item.attributes.append(AttributeValues(attribute: attribute, values: values))
                } else {
                    let numbers = values.map { Float($0)! }
                    item.features.append(Feature(modality: pair[0], values: numbers))
                }
            }
            let outcome: String
            switch try await recommender.add(item) {
            case .ranked: outcome = "ranked"
            case .replaced: outcome = "replaced"
            case .inBundle: outcome = "in the bundle"
            }
            return ["\(outcome)\theard\t\(counter.heard)"]
        case "feedback":
            if words[1] == "forget" {
                try await recommender.forgetFeedback()
                return ["forgotten\theard\t\(counter.heard)"]
            }
            let feedback: Feedback =
                switch words[2] {
                case "positive": .positive
                case "skipped": .skipped
                default: .disliked
                }
            let known = try await recommender.feedback(words[1], feedback)
            return ["\(known ? "known" : "unknown")\theard\t\(counter.heard)"]
        case "remove":
            let there = try await recommender.remove(words[1])
            return ["\(there ? "removed" : "not there")\theard\t\(counter.heard)"]
        case "added":
            return try await recommender.addedItems().map {
                "\($0.item)\t\($0.ranked ? "ranked" : "kept")"
            }
        case "recommend":
            return lines(try await recommender.recommend(query(words.dropFirst())))
        case "rank":
            let ranking = try await recommender.rank(Array(words.dropFirst()))
            return lines(ranking.ranked) + ranking.unknown.map { "unknown\t\($0)" }
        case "similar":
            return lines(try await recommender.similar(to: words[1], Int(words[2])!))
        case "vector":
            return [try await recommender.userVector().map(bits).joined(separator: "\t")]
        case "probe":
            guard let probe = try await recommender.probe() else { return ["none"] }
            return ["\(probe.found)\t\(probe.expected)\t\(probe.passed ? "passed" : "failed")"]
        case "verify":
            try await recommender.verify()
            return ["fine"]
        case "save":
            try await recommender.save(to: path(words[1]))
        case "restore":
            try await recommender.restore(from: path(words[1]))
        case "keep":
            let key: Data? =
                switch words[2] {
                case "-": nil
                case "short": Data("short".utf8)
                default: Data(repeating: UInt8(words[2]) ?? 0, count: 32)
                }
            try await recommender.keep(in: path(words[1]), key: key)
            let items = try await recommender.history().map(\.item)
            return items.isEmpty ? ["empty"] : items
        case "export":
            let text = try await recommender.exportUserData()
            let data = try JSONSerialization.jsonObject(with: Data(text.utf8)) as? [String: Any]
            let events = data?["events"] as? [[String: Any]] ?? []
            let first = events.first ?? [:]
            return ["\(events.count)\t\(first["item"] ?? "")\t\(first["behavior"] ?? "")"]
        case "erase":
            let file = given(words[1]).map(path)
            try await recommender.erase(file: file)
            let there = file.map { FileManager.default.fileExists(atPath: $0) } ?? false
            return ["\(there ? "there" : "gone")\theard\t\(counter.heard)"]
        case "listener":
            counter = Counter()
            switch words[1] {
            case "count": recommender.setListener(counter)
            case "fail": recommender.setListener(Broken())
            default: recommender.setListener(nil)
            }
        default:
            Issue.record("unknown step \(words[0])")
        }
        return []
    }

    private func query(_ settings: ArraySlice<String>) -> Query {
        var query = Query(k: 0)
        for setting in settings {
            let pair = setting.split(separator: "=", maxSplits: 1).map(String.init)
            let value = pair.count > 1 ? pair[1] : ""
            let parts = value.split(separator: ":").map(String.init)
            switch pair[0] {
            case "k": query.k = Int32(value)!
            case "filter": query.filter = value
            case "diversity": query.diversity = Float(value)!
            case "dpp": query.method = .dpp
            case "pool": query.pool = Int32(value)!
            case "exclude": query.exclude = value.split(separator: ",").map(String.init)
            case "cap": query.caps.append(Cap(attribute: parts[0], items: Int32(parts[1])!))
            case "calibrate":
                let slack = Float(parts[1])!
                query.calibrations.append(Calibration(attribute: parts[0], slack: slack))
            case "popularity": query.popularity = Float(value)!
            case "freshness":
                let (now, halfLife) = (Double(parts[1])!, Double(parts[2])!)
                let weight = Float(parts[3])!
                query.freshness.append(
                    Freshness(attribute: parts[0], now: now, halfLife: halfLife, weight: weight))
            case "explore": query.explore = Float(value)!
            case "seed": query.seed = Int64(value)!
            case "probes": query.probes = Int32(value)!
            case "include_seen": query.includeSeen = true
            case "explain": query.explain = true
            default: Issue.record("unknown setting \(setting)")
            }
        }
        return query
    }
}

private func scratchFolder() throws -> String {
    let folder = FileManager.default.temporaryDirectory.appendingPathComponent(UUID().uuidString)
    try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
    return folder.path
}

@Test func scenario() async throws {
    let file = URL(fileURLWithPath: "\(fixtures)/scenario.tsv")
    var steps: [(line: Int, words: [String], expected: [String])] = []
    let text = try String(contentsOf: file, encoding: .utf8)
    for (number, line) in text.split(separator: "\n", omittingEmptySubsequences: false).enumerated() {
        if line.hasPrefix("=") {
            steps[steps.count - 1].expected.append(String(line))
        } else if !line.isEmpty && !line.hasPrefix("#") {
            let words = line.split(separator: "\t", omittingEmptySubsequences: false)
            steps.append((number + 1, words.map(String.init), []))
        }
    }
    #expect(steps.count > 50)
    let host = Host(scratch: try scratchFolder())
    for step in steps {
        var got: [String]
        do {
            got = try await host.run(step.words).map { "=\t\($0)" }
        } catch {
            got = ["=!\t\(caseName(error))"]
        }
        #expect(got == step.expected, "line \(step.line): \(step.words)")
    }
}

@Test func closedIsClosed() async throws {
    let recommender = try await Recommender(path: "\(fixtures)/shop.tercet")
    let other = try recommender.newSession()
    recommender.close()
    recommender.close()
    await #expect(throws: TercetError.self) { try await recommender.recommend(3) }
    #expect(try await other.recommend(3).count == 3)
}

@Test func theListenersErrorIsTyped() async throws {
    let recommender = try await Recommender(path: "\(fixtures)/shop.tercet")
    recommender.setListener(Broken())
    do {
        try await recommender.record("item-1")
        Issue.record("nothing was thrown")
    } catch {
        #expect(caseName(error) == "Listener")
    }
    #expect(try await recommender.history().map(\.item) == ["item-1"])
}

@Test func hugeAndNegativeNumbers() async throws {
    let recommender = try await Recommender(path: "\(fixtures)/shop.tercet")
    #expect(try await recommender.recommend(Int.max).count == 60)
    do {
        _ = try await recommender.recommend(-1)
        Issue.record("nothing was thrown")
    } catch {
        #expect(caseName(error) == "InvalidArgument")
    }
}

@Test func aStreamFollowsTheHistory() async throws {
    let recommender = try await Recommender(path: "\(fixtures)/shop.tercet")
    var values = recommender.recommendations(Query(k: 3)).makeAsyncIterator()
    let before = try await values.next()
    try await recommender.record("item-3", behavior: "view")
    let after = try await values.next()
    #expect(before != nil && after != nil && before != after)
    recommender.close()
    #expect(try await values.next() == nil)
}

@Test func fourTasks() async throws {
    let shared = try await Recommender(path: "\(fixtures)/shop.tercet")
    try await withThrowingTaskGroup(of: Void.self) { group in
        for number in 0..<4 {
            group.addTask {
                let own = try shared.newSession()
                for i in 0..<50 {
                    try await own.record("item-\((7 * i + number) % 60)")
                    try await shared.record("item-\((3 * i + number) % 60)", behavior: "buy")
                    _ = try await own.recommend(5)
                }
            }
        }
        try await group.waitForAll()
    }
    #expect(try await shared.history().count == 200)
}
