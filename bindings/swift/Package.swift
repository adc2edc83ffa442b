// swift-tools-version: 6.0
import Foundation
import PackageDescription

// On Apple systems the library comes as an XCFramework, made by `build-xcframework` (or fetched:
// replace `path` by `url` and `checksum`). Elsewhere it is a shared library in TERCET_LIB_DIR, or
// in `lib` beside this file; see `make-check-folder`.
#if os(Linux)
let library = Context.environment["TERCET_LIB_DIR"] ?? "\(Context.packageDirectory)/lib"
let native: Target = .systemLibrary(name: "TercetFFI", path: "Sources/TercetFFI")
let linker: [LinkerSetting] = [
    .unsafeFlags(["-L\(library)", "-ltercet_ffi", "-Xlinker", "-rpath", "-Xlinker", library])
]
#else
let native: Target = .binaryTarget(name: "TercetFFI", path: "TercetFFI.xcframework")
let linker: [LinkerSetting] = []
#endif

let package = Package(
    name: "Tercet",
    platforms: [.iOS(.v15), .macOS(.v12)],
    products: [.library(name: "Tercet", targets: ["Tercet"])],
    targets: [
        native,
        .target(
            name: "Tercet",
            dependencies: ["TercetFFI"],
            resources: [.copy("PrivacyInfo.xcprivacy")],
            linkerSettings: linker
        ),
        .executableTarget(name: "tercet-example", dependencies: ["Tercet"], path: "Example"),
        .testTarget(name: "TercetTests", dependencies: ["Tercet"]),
    ],
    swiftLanguageModes: [.v6]
)
