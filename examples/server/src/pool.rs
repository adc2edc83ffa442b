//! Threads that rank, and the bounded queue before them.
//!
//! A thread takes what waits at the head of the queue and asks the same (the same bundle, `k`,
//! filter, …) together, up to its share of what waits: the table is then read once for all of
//! them. Nobody waits for a batch to fill, so a lone request is as fast as it can be, and the more
//! requests there are, the less each costs.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use tercet::{Recommendation, recommend_batch};
use tokio::sync::oneshot;

use crate::api::{History, Settings};
use crate::metrics::Metrics;
use crate::release::Release;

/// Most users that are ranked together: enough for the arithmetic to outweigh the reading of the
/// table, few enough for the first of them not to wait long.
const BATCH: usize = 32;

/// A list for each user of a request.
pub(crate) type Lists = Vec<Vec<Recommendation>>;

/// Why there are no lists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The queue has no room for so many users.
    Full,
    /// The client asked for something that this bundle does not have.
    Refused(String),
    /// It is our fault.
    Failed(String),
}

struct Job {
    release: Arc<Release>,
    settings: Settings,
    histories: Vec<History>,
    reply: oneshot::Sender<Result<Lists, Failure>>,
}

impl Job {
    fn goes_with(&self, first: &Job) -> bool {
        Arc::ptr_eq(&self.release, &first.release) && self.settings == first.settings
    }
}

#[derive(Default)]
struct Waiting {
    jobs: VecDeque<Job>,
    users: usize,
    closed: bool,
}

impl Waiting {
    fn pop(&mut self) -> Option<Job> {
        let job = self.jobs.pop_front()?;
        self.users -= job.histories.len();
        Some(job)
    }
}

struct Shared {
    waiting: Mutex<Waiting>,
    wake: Condvar,
    capacity: usize,
    threads: usize,
    metrics: Arc<Metrics>,
}

/// The threads and their queue.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Pool {
    /// Starts `threads` threads before which at most `capacity` users wait.
    pub(crate) fn start(threads: usize, capacity: usize, metrics: Arc<Metrics>) -> Result<Self> {
        let shared = Arc::new(Shared {
            waiting: Mutex::default(),
            wake: Condvar::new(),
            capacity,
            threads: threads.max(1),
            metrics,
        });
        let spawn = |i| {
            let shared = shared.clone();
            std::thread::Builder::new()
                .name(format!("rank-{i}"))
                .spawn(move || shared.work())
                .context("cannot start a thread")
        };
        let threads = (0..shared.threads).map(spawn).collect::<Result<_>>()?;
        Ok(Pool {
            shared,
            threads: Mutex::new(threads),
        })
    }

    /// Puts a request into the queue. If the receiver is dropped before its turn, nobody computes
    /// it. A request of more users than the queue holds is accepted when the queue is empty.
    pub(crate) fn submit(
        &self,
        release: Arc<Release>,
        settings: Settings,
        histories: Vec<History>,
    ) -> Result<oneshot::Receiver<Result<Lists, Failure>>, Failure> {
        let (reply, receiver) = oneshot::channel();
        let mut waiting = self.shared.lock();
        // Those who went away keep no place from others.
        if waiting.users + histories.len() > self.shared.capacity {
            waiting.jobs.retain(|job| !job.reply.is_closed());
            waiting.users = waiting.jobs.iter().map(|job| job.histories.len()).sum();
        }
        let crowded = waiting.users + histories.len() > self.shared.capacity;
        if waiting.closed || (crowded && waiting.users > 0) {
            return Err(Failure::Full);
        }
        waiting.users += histories.len();
        waiting.jobs.push_back(Job {
            release,
            settings,
            histories,
            reply,
        });
        drop(waiting);
        self.shared.wake.notify_one();
        Ok(receiver)
    }

    /// Users that wait.
    pub(crate) fn waiting(&self) -> usize {
        self.shared.lock().users
    }

    /// Ranks what waits and ends the threads.
    pub(crate) fn close(&self) {
        self.shared.lock().closed = true;
        self.shared.wake.notify_all();
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(|e| e.into_inner()));
        for thread in threads {
            // It has ended either way.
            let _ = thread.join();
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.close();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // Nothing panics between two changes that belong together.
        self.waiting.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn work(&self) {
        while let Some(jobs) = self.next() {
            self.metrics
                .ranked(jobs.iter().map(|j| j.histories.len()).sum());
            let ranked = catch_unwind(AssertUnwindSafe(|| rank(&jobs)))
                .unwrap_or_else(|_| Err(Failure::Failed("ranking panicked".into())));
            match ranked {
                Ok(mut lists) => {
                    for job in jobs {
                        let rest = lists.split_off(job.histories.len());
                        // The client may have gone.
                        let _ = job.reply.send(Ok(lists));
                        lists = rest;
                    }
                }
                Err(failure) => {
                    for job in jobs {
                        let _ = job.reply.send(Err(failure.clone()));
                    }
                }
            }
        }
    }

    /// Waits for jobs that can be ranked together; none once the pool is closed and empty.
    fn next(&self) -> Option<Vec<Job>> {
        let mut waiting = self.lock();
        let first = loop {
            match waiting.pop() {
                Some(job) if job.reply.is_closed() => {}
                Some(job) => break job,
                None if waiting.closed => return None,
                None => waiting = self.wake.wait(waiting).unwrap_or_else(|e| e.into_inner()),
            }
        };
        let mut users = first.histories.len();
        let share = (users + waiting.users).div_ceil(self.threads).min(BATCH);
        let mut jobs = vec![first];
        while let Some(next) = waiting.jobs.front()
            && users + next.histories.len() <= share
            && next.goes_with(&jobs[0])
            && let Some(next) = waiting.pop()
        {
            if !next.reply.is_closed() {
                users += next.histories.len();
                jobs.push(next);
            }
        }
        Some(jobs)
    }
}

fn rank(jobs: &[Job]) -> Result<Lists, Failure> {
    let release = &jobs[0].release;
    let query = jobs[0].settings.query();
    let histories: Vec<&History> = jobs.iter().flat_map(|job| &job.histories).collect();
    let lists =
        release.with_tower(|tower| recommend_batch(release.bundle(), tower, &histories, &query, 1));
    lists.map_err(|e| match e {
        tercet::Error::InvalidArgument { .. } | tercet::Error::UnknownAttribute { .. } => {
            Failure::Refused(e.to_string())
        }
        e => Failure::Failed(e.to_string()),
    })
}
