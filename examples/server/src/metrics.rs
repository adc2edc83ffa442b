//! What `/metrics` tells, in Prometheus's text format 0.0.4.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use tercet::Bundle;

/// Upper ends of the histogram's buckets, in seconds.
const BUCKETS: [f64; 12] = [
    0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0,
];

/// Counters of a server. Each stands alone, so none needs more than relaxed order.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    answers: Mutex<BTreeMap<u16, u64>>,
    buckets: [AtomicU64; BUCKETS.len()],
    count: AtomicU64,
    micros: AtomicU64,
    in_flight: AtomicU64,
    cancelled: AtomicU64,
    rejected: AtomicU64,
    batches: AtomicU64,
    users: AtomicU64,
    reloads: AtomicU64,
    failed_reloads: AtomicU64,
}

impl Metrics {
    /// A request for recommendations has begun.
    pub(crate) fn begin(&self) -> InFlight<'_> {
        self.in_flight.fetch_add(1, Relaxed);
        InFlight {
            metrics: self,
            start: Instant::now(),
            answered: false,
        }
    }

    pub(crate) fn rejected(&self) {
        self.rejected.fetch_add(1, Relaxed);
    }

    pub(crate) fn ranked(&self, users: usize) {
        self.batches.fetch_add(1, Relaxed);
        self.users.fetch_add(users as u64, Relaxed);
    }

    pub(crate) fn reloaded(&self) {
        self.reloads.fetch_add(1, Relaxed);
    }

    pub(crate) fn reload_failed(&self) {
        self.failed_reloads.fetch_add(1, Relaxed);
    }

    fn observe(&self, status: u16, time: Duration) {
        *self
            .answers
            .lock()
            .unwrap_or_else(|e| e.into_inner())
            .entry(status)
            .or_insert(0) += 1;
        let seconds = time.as_secs_f64();
        if let Some(i) = BUCKETS.iter().position(|&end| seconds <= end) {
            self.buckets[i].fetch_add(1, Relaxed);
        }
        self.count.fetch_add(1, Relaxed);
        self.micros.fetch_add(time.as_micros() as u64, Relaxed);
    }

    /// The page: what was counted, and what is so now.
    pub(crate) fn text(&self, bundle: &Bundle, waiting: usize) -> String {
        let mut text = String::new();
        let head = |text: &mut String, name: &str, kind: &str, help: &str| {
            // Writing to a string does not fail.
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        };
        let name = "tercet_requests_total";
        head(
            &mut text,
            name,
            "counter",
            "Answered requests for recommendations by status.",
        );
        for (status, n) in &*self.answers.lock().unwrap_or_else(|e| e.into_inner()) {
            let _ = writeln!(text, "{name}{{code=\"{status}\"}} {n}");
        }
        let name = "tercet_request_seconds";
        head(
            &mut text,
            name,
            "histogram",
            "From the head of a request to its answer.",
        );
        let mut total = 0;
        for (end, n) in BUCKETS.iter().zip(&self.buckets) {
            total += n.load(Relaxed);
            let _ = writeln!(text, "{name}_bucket{{le=\"{end}\"}} {total}");
        }
        let count = self.count.load(Relaxed);
        let sum = self.micros.load(Relaxed) as f64 / 1e6;
        let _ = writeln!(
            text,
            "{name}_bucket{{le=\"+Inf\"}} {count}\n{name}_sum {sum}\n{name}_count {count}"
        );
        let load = |n: &AtomicU64| n.load(Relaxed);
        let waiting = waiting as u64;
        let items = bundle.manifest().items as u64;
        let version = bundle.manifest().bundle_version;
        for (name, kind, value, help) in [
            (
                "tercet_in_flight",
                "gauge",
                load(&self.in_flight),
                "Requests being answered.",
            ),
            (
                "tercet_waiting_users",
                "gauge",
                waiting,
                "Users in the queue.",
            ),
            (
                "tercet_rejected_total",
                "counter",
                load(&self.rejected),
                "Requests that found the queue full.",
            ),
            (
                "tercet_cancelled_total",
                "counter",
                load(&self.cancelled),
                "Clients that left before the answer.",
            ),
            (
                "tercet_batches_total",
                "counter",
                load(&self.batches),
                "Passes over the table.",
            ),
            (
                "tercet_ranked_users_total",
                "counter",
                load(&self.users),
                "Users ranked in them.",
            ),
            (
                "tercet_reloads_total",
                "counter",
                load(&self.reloads),
                "Bundles switched to.",
            ),
            (
                "tercet_failed_reloads_total",
                "counter",
                load(&self.failed_reloads),
                "Bundles refused.",
            ),
            (
                "tercet_bundle_version",
                "gauge",
                version,
                "Version of the bundle in use.",
            ),
            (
                "tercet_bundle_items",
                "gauge",
                items,
                "Items of the bundle in use.",
            ),
        ] {
            head(&mut text, name, kind, help);
            let _ = writeln!(text, "{name} {value}");
        }
        text
    }
}

/// A request that is being answered. Dropped without an answer, it counts as cancelled: its
/// client has gone.
pub(crate) struct InFlight<'a> {
    metrics: &'a Metrics,
    start: Instant,
    answered: bool,
}

impl InFlight<'_> {
    pub(crate) fn answered(mut self, status: u16) {
        self.answered = true;
        self.metrics.observe(status, self.start.elapsed());
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.metrics.in_flight.fetch_sub(1, Relaxed);
        if !self.answered {
            self.metrics.cancelled.fetch_add(1, Relaxed);
        }
    }
}
