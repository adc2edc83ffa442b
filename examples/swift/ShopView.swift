// A screen in SwiftUI. Copy it into an app that depends on the package `Tercet`; it is not part of
// the package's own targets, since SwiftUI exists on Apple systems only.
#if canImport(SwiftUI)
import SwiftUI
import Tercet

/// What the screen shows, and what the user does with it.
@MainActor
final class ShopModel: ObservableObject {
    @Published private(set) var items: [Recommendation] = []
    @Published private(set) var problem: String?

    private var recommender: Recommender?
    private let bundle: URL
    private let snapshot: URL

    /// `bundle` is a folder in the app or downloaded to Application Support.
    init(bundle: URL, snapshot: URL) {
        self.bundle = bundle
        self.snapshot = snapshot
    }

    /// Runs as long as the view's task does.
    func run() async {
        do {
            let recommender = try await Recommender(path: bundle.path)
            self.recommender = recommender
            do {
                try await recommender.restore(from: snapshot.path)
            } catch TercetError.NotFound {
                // The first start.
            } catch TercetError.CorruptSnapshot {
                try? FileManager.default.removeItem(at: snapshot)
            }
            let query = Query(k: 20, diversity: 0.2, explain: true)
            for try await best in recommender.recommendations(query) {
                items = best
            }
        } catch let error as TercetError {
            problem = error.recoverySuggestion
        } catch {
            problem = error.localizedDescription
        }
    }

    func viewed(_ item: Recommendation) async {
        _ = try? await recommender?.record(item.id, behavior: "view", at: Date())
    }

    /// When the app leaves the foreground.
    func pause() async {
        try? await recommender?.save(to: snapshot.path)
    }

    func forgetMe() async {
        try? await recommender?.erase(file: snapshot.path)
    }
}

struct ShopView: View {
    @StateObject var model: ShopModel
    @Environment(\.scenePhase) private var phase

    var body: some View {
        List(model.items) { item in
            Button {
                Task { await model.viewed(item) }
            } label: {
                VStack(alignment: .leading) {
                    Text(item.item)
                    if let because = item.because.first {
                        Text("because of \(because.item)").font(.caption)
                    }
                }
            }
        }
        .overlay { if let problem = model.problem { Text(problem) } }
        .toolbar { Button("Forget me") { Task { await model.forgetMe() } } }
        .task { await model.run() }
        .onChange(of: phase) { new in
            if new == .background { Task { await model.pause() } }
        }
    }
}
#endif
