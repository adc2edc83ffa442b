import Foundation

extension Recommendation: Identifiable {
    /// The app's own key.
    public var id: String { item }
}

extension Because: Identifiable {
    /// The app's own key.
    public var id: String { item }
}

extension TercetError {
    /// For the developer, not for the user.
    public var reason: String {
        switch self {
        case .Closed(let reason), .InvalidArgument(let reason), .UnknownItem(let reason),
            .NotFound(let reason), .IncompatibleBundle(let reason), .CorruptBundle(let reason),
            .CorruptSnapshot(let reason), .Unsupported(let reason), .Listener(let reason),
            .Io(let reason), .Internal(let reason), .Busy(let reason):
            return reason
        }
    }

    /// What an app can do about it.
    public var recoverySuggestion: String? {
        switch self {
        case .Closed: return "Open the bundle again."
        case .InvalidArgument: return "Correct the call; the reason says which argument."
        case .UnknownItem: return "Leave the item out: this bundle does not have it."
        case .NotFound: return "Fetch the bundle, or start without a saved history."
        case .IncompatibleBundle: return "Update the app, or fetch an older bundle."
        case .CorruptBundle: return "Delete the bundle and fetch it again."
        case .CorruptSnapshot: return "Delete the saved history and start without."
        case .Unsupported: return "Use a bundle or a build of the library that has this."
        case .Listener: return "The change stands; repair the listener."
        case .Io: return "Free space, check permissions, and try again."
        case .Internal: return "Close this, open the bundle again, and report the reason."
        case .Busy: return "Close what uses the file, then try again."
        }
    }

    /// As `reason`.
    public var failureReason: String? { reason }
}
