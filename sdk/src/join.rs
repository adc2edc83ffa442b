//! Two things at once.

/// Results of `other`, on a thread of its own, and of `here`; one after the other where the system
/// has no thread to give.
pub(crate) fn join<A: Send, B>(other: impl Fn() -> A + Sync, here: impl FnOnce() -> B) -> (A, B) {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().spawn_scoped(scope, &other);
        let here = here();
        let other = match thread {
            Ok(thread) => match thread.join() {
                Ok(other) => other,
                Err(panic) => std::panic::resume_unwind(panic),
            },
            Err(_) => other(),
        };
        (other, here)
    })
}
