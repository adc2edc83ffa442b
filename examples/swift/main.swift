// A shop in a terminal; runs on Linux and macOS.
//
//     swift run tercet-example BUNDLE [ITEM...]
import Foundation
import Tercet

let arguments = CommandLine.arguments.dropFirst()
guard let path = arguments.first else {
    FileHandle.standardError.write(Data("usage: tercet-example BUNDLE [ITEM...]\n".utf8))
    exit(2)
}

func show(_ best: [Recommendation]) {
    for r in best {
        let why = r.because.first.map { " because of \($0.item)" } ?? ""
        print("  \(r.item)  \(r.score)\(why)")
    }
}

do {
    let recommender = try await Recommender(path: path)
    let info = try await recommender.info()
    print("\(info.bundleId) version \(info.bundleVersion): \(info.items) items")
    let query = Query(k: 3, diversity: 0.2, explain: true)
    show(try await recommender.recommend(query))
    var items = Array(arguments.dropFirst())
    if items.isEmpty { items = try await recommender.recommend(2).map(\.item) }
    for item in items {
        let known = try await recommender.record(item, at: Date())
        print("visited \(item)\(known ? "" : ", which this bundle does not have")")
        show(try await recommender.recommend(query))
    }
    try await recommender.erase()
    print("forgotten")
} catch let error as TercetError {
    let advice = error.recoverySuggestion ?? ""
    FileHandle.standardError.write(Data("\(error.reason)\n\(advice)\n".utf8))
    exit(1)
}
