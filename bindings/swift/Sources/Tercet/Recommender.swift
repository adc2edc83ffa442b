import Foundation

/// Recommendations for one user, from a bundle on this device.
///
/// ```swift
/// let recommender = try await Recommender(path: bundle.path)
/// try await recommender.record("sku-17", behavior: "view")
/// let best = try await recommender.recommend(Query(k: 10, filter: "category not in (adult)"))
/// ```
///
/// Every method may be called from any task or thread and throws ``TercetError``. The methods
/// are asynchronous because they leave the caller's executor: the main actor stays free.
public final class Recommender: Sendable {
    private let engine: TercetEngine
    private let changes = Changes()

    /// Opens the bundle in a folder. Nothing is read but its manifest and a header.
    public convenience init(path: String, options: Options = Options()) async throws {
        let engine = try await away { try TercetEngine.open(path: path, options: options) }
        self.init(engine: engine)
    }

    private init(engine: TercetEngine) {
        self.engine = engine
    }

    deinit {
        changes.finish()
        engine.shutDown()
    }

    /// Adds an event. Returns whether the bundle knows the item; it is kept in both cases.
    @discardableResult
    public func record(
        _ item: String, behavior: String? = nil, at time: Date? = nil
    ) async throws -> Bool {
        let seconds = time.map { Int64($0.timeIntervalSince1970) }
        return try await changing { engine in
            try engine.record(event: Event(item: item, behavior: behavior, timestamp: seconds))
        }
    }

    /// Learns what the user thinks of an item, if opened with `Options(adapt: true)`: rankings
    /// follow. Returns whether the bundle knows the item. What the user did is recorded besides.
    @discardableResult
    public func feedback(
        _ item: String, _ feedback: Feedback, at time: Date? = nil
    ) async throws -> Bool {
        let seconds = time.map { Int64($0.timeIntervalSince1970) }
        return try await changing {
            try $0.feedback(item: item, feedback: feedback, timestamp: seconds)
        }
    }

    /// Forgets all feedback: rankings are again those of the bundle and the history.
    public func forgetFeedback() async throws {
        try await changing { try $0.forgetFeedback() }
    }

    /// Adds an item that the bundle does not hold: the bundle's fusion tower makes its vector, and
    /// it is ranked with the others from then on. ``save(to:)`` keeps it.
    @discardableResult
    public func add(_ item: NewItem) async throws -> Added {
        try await changing { try $0.addItem(item: item) }
    }

    /// Takes an added item away. Returns whether there was one.
    @discardableResult
    public func remove(_ item: String) async throws -> Bool {
        try await changing { try $0.removeItem(item: item) }
    }

    /// The added items, in the order in which they came.
    public func addedItems() async throws -> [AddedItem] {
        try await with { try $0.addedItems() }
    }

    /// The best items for this user.
    public func recommend(_ query: Query) async throws -> [Recommendation] {
        try await with { try $0.recommend(query: query) }
    }

    /// The best `k` items for this user.
    public func recommend(_ k: Int) async throws -> [Recommendation] {
        try await recommend(Query(k: Int32(clamping: k)))
    }

    /// Scores given candidates for this user, best first.
    public func rank(_ candidates: [String]) async throws -> Ranking {
        try await with { try $0.rank(candidates: candidates) }
    }

    /// The `k` items most like `item`. Does not depend on the user.
    public func similar(to item: String, _ k: Int) async throws -> [Recommendation] {
        try await with { try $0.similar(item: item, k: Int32(clamping: k)) }
    }

    /// The user vector of the present history.
    public func userVector() async throws -> [Float] {
        let data = try await with { try $0.userVector() }
        return stride(from: 0, to: data.count, by: MemoryLayout<UInt32>.size).map { offset in
            let bits = data[data.startIndex + offset..<data.startIndex + offset + 4]
                .reversed().reduce(UInt32(0)) { $0 << 8 | UInt32($1) }
            return Float(bitPattern: bits)
        }
    }

    /// What the bundle is.
    public func info() async throws -> Info {
        try await with { try $0.info() }
    }

    /// The events, oldest first.
    public func history() async throws -> [Event] {
        try await with { try $0.history() }
    }

    /// Hashes every file and checks every row: once after a download.
    public func verify() async throws {
        try await with { try $0.verify() }
    }

    /// Runs the bundle's own health check; nil if it has none.
    public func probe() async throws -> Probe? {
        try await with { try $0.probe() }
    }

    /// Writes history and added items to a file, which is replaced at once or not at all.
    public func save(to path: String) async throws {
        try await with { try $0.save(path: path) }
    }

    /// Replaces history and added items by those of a file; on an error they stay as they were.
    public func restore(from path: String) async throws {
        try await changing { try $0.restore(path: path) }
    }

    /// From now on keeps history and added items in a file, as they come; what the file holds
    /// takes the place of what is there now. Once a call that changes something has returned, the
    /// change survives the end of the process and, if wished, a loss of power. A `key` of 32 bytes,
    /// from the keychain say, encrypts the file.
    public func keep(
        in path: String, key: Data? = nil, survivePowerLoss: Bool = true
    ) async throws {
        try await changing {
            try $0.keepIn(path: path, key: key, survivePowerLoss: survivePowerLoss)
        }
    }

    /// Everything that is kept of the user, as a JSON document: what users may ask for.
    public func exportUserData() async throws -> String {
        try await with { try $0.exportUserData() }
    }

    /// Forgets everything about the user, and deletes the file, if given.
    public func erase(file path: String? = nil) async throws {
        try await changing { try $0.erase(path: path) }
    }

    /// The recommendations now, and again whenever the history has changed. Changes that come
    /// faster than they can be answered are answered once. Ends when this is closed.
    public func recommendations(_ query: Query) -> AsyncThrowingStream<[Recommendation], any Error> {
        let revisions = changes.stream()
        return AsyncThrowingStream { continuation in
            let task = Task { [weak self] in
                do {
                    for await _ in revisions {
                        // Not held between changes: the last reference elsewhere closes.
                        guard let best = try await self?.recommend(query) else { break }
                        continuation.yield(best)
                    }
                    continuation.finish()
                } catch TercetError.Closed {
                    continuation.finish()
                } catch {
                    continuation.finish(throwing: error)
                }
            }
            continuation.onTermination = { _ in task.cancel() }
        }
    }

    /// Sets or removes what is told after every change of the history, on the thread of the
    /// call that made it. If it throws, that call throws `TercetError.Listener`; the change
    /// stands.
    public func setListener(_ listener: HistoryListener?) {
        engine.setListener(listener: listener)
    }

    /// Another user over the same bundle, which is not opened again.
    public func newSession() throws -> Recommender {
        Recommender(engine: try engine.newSession())
    }

    /// Gives the memory back now instead of with the last reference. Later calls throw
    /// `TercetError.Closed`; closing twice is fine.
    public func close() {
        changes.finish()
        engine.shutDown()
    }

    private func with<T: Sendable>(
        _ call: @escaping @Sendable (TercetEngine) throws -> T
    ) async throws -> T {
        let engine = self.engine
        return try await away { try call(engine) }
    }

    private func changing<T: Sendable>(
        _ call: @escaping @Sendable (TercetEngine) throws -> T
    ) async throws -> T {
        do {
            let value = try await with(call)
            changes.announce()
            return value
        } catch let error as TercetError {
            if case .Listener = error { changes.announce() }
            throw error
        }
    }
}

/// Runs blocking work off the cooperative threads, which must not wait for a lock or a disk.
private func away<T: Sendable>(_ work: @escaping @Sendable () throws -> T) async throws -> T {
    try await withCheckedThrowingContinuation { continuation in
        DispatchQueue.global(qos: .userInitiated).async {
            continuation.resume(with: Result { try work() })
        }
    }
}

/// Tells every stream that the history has changed. A lock and not an actor, so that changes
/// are announced before the call that made them returns.
private final class Changes: @unchecked Sendable {
    private let lock = NSLock()
    private var continuations: [Int: AsyncStream<Void>.Continuation] = [:]
    private var next = 0
    private var finished = false

    /// Begins with one element, for the value before any change.
    func stream() -> AsyncStream<Void> {
        let (stream, continuation) = AsyncStream.makeStream(
            of: Void.self, bufferingPolicy: .bufferingNewest(1))
        lock.lock()
        let ended = finished
        let id = next
        next += 1
        if !ended { continuations[id] = continuation }
        lock.unlock()
        if ended {
            continuation.finish()
        } else {
            continuation.onTermination = { [weak self] _ in self?.forget(id) }
            continuation.yield(())
        }
        return stream
    }

    func announce() {
        lock.lock()
        let all = Array(continuations.values)
        lock.unlock()
        for continuation in all { continuation.yield(()) }
    }

    func finish() {
        lock.lock()
        finished = true
        let all = Array(continuations.values)
        continuations = [:]
        lock.unlock()
        for continuation in all { continuation.finish() }
    }

    private func forget(_ id: Int) {
        lock.lock()
        continuations[id] = nil
        lock.unlock()
    }
}
