//! An example of a server: recommendations over HTTP from one mapped bundle, which a newer one
//! replaces while requests run.
//!
//! | request | answer |
//! |---|---|
//! | `POST /v1/recommend` | the best items for one history or for many, see [`api`] |
//! | `GET /healthz` | 200 as long as the process answers |
//! | `GET /readyz` | 200 while it takes requests, 503 once it shuts down |
//! | `GET /metrics` | counters in Prometheus's text format |
//! | `POST /admin/reload` | opens the newest bundle; wants `Authorization: Bearer <admin token>` |
//!
//! Everything a client could fill is bounded: connections, the bytes of a request, users and
//! events in it, the time it may take, and the users that wait for a ranking thread. Who finds
//! that queue full gets 503 and `Retry-After`. Ranking runs on threads of its own, so that health
//! checks are answered however busy they are; see [`pool`].
//!
//! There is no TLS and no access control but for the administrator's token: a proxy in front of
//! it has both.

pub mod api;
pub mod client;
pub mod metrics;
pub mod pool;
pub mod release;
mod routes;
pub mod synthetic;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, RwLock, TryLockError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::{JoinHandle, JoinSet};

use metrics::Metrics;
use pool::Pool;
use release::{Release, Source};

/// What a server is told. Durations are those after which a client is given up.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Threads that rank.
    pub threads: usize,
    /// Most users that wait for a thread.
    pub queue: usize,
    /// Most open connections; others wait in the system's backlog.
    pub connections: usize,
    /// Most bytes of a request's body.
    pub body: usize,
    /// From the first byte of a request's body to its answer.
    pub timeout: Duration,
    /// For the head of a request, and between two requests of a connection.
    pub idle: Duration,
    /// For the requests that run when the server is told to stop.
    pub drain: Duration,
    /// What `POST /admin/reload` wants to see; without it that is refused.
    pub admin_token: Option<String>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            queue: 512,
            connections: 1024,
            body: 1 << 20,
            timeout: Duration::from_secs(5),
            idle: Duration::from_secs(30),
            drain: Duration::from_secs(10),
            admin_token: None,
        }
    }
}

/// What all requests share.
struct App {
    options: Options,
    source: Source,
    current: RwLock<Arc<Release>>,
    reloading: Mutex<()>,
    stopping: AtomicBool,
    pool: Pool,
    metrics: Arc<Metrics>,
}

impl App {
    fn current(&self) -> Arc<Release> {
        // Only an `Arc` is put in its place, so a panic cannot leave it half done.
        let current = self.current.read().unwrap_or_else(|e| e.into_inner());
        current.clone()
    }

    /// Opens the newest bundle, tries it, and answers new requests from it. Requests that have
    /// begun end with the bundle that they began with; the last of them lets go of it.
    fn reload(&self) -> Result<Arc<Release>> {
        let _one_at_a_time = match self.reloading.try_lock() {
            Ok(guard) => guard,
            Err(TryLockError::Poisoned(e)) => e.into_inner(),
            Err(TryLockError::WouldBlock) => bail!("another reload is running"),
        };
        let loaded = Release::load(&self.source, self.options.threads);
        let release = Arc::new(loaded.inspect_err(|_| self.metrics.reload_failed())?);
        *self.current.write().unwrap_or_else(|e| e.into_inner()) = release.clone();
        self.metrics.reloaded();
        Ok(release)
    }
}

/// A running server.
pub struct Server {
    address: SocketAddr,
    app: Arc<App>,
    stop: oneshot::Sender<()>,
    accepting: JoinHandle<()>,
}

impl Server {
    /// Loads the bundle and begins to listen.
    ///
    /// # Errors
    /// If the bundle cannot be used or the address is taken.
    pub async fn start(source: Source, options: Options) -> Result<Self> {
        let threads = options.threads;
        let (source, first) = tokio::task::spawn_blocking(move || {
            Release::load(&source, threads).map(|first| (source, first))
        })
        .await??;
        let listener = TcpListener::bind(options.listen)
            .await
            .with_context(|| format!("cannot listen at {}", options.listen))?;
        let address = listener.local_addr()?;
        let metrics = Arc::new(Metrics::default());
        let app = Arc::new(App {
            pool: Pool::start(options.threads, options.queue, metrics.clone())?,
            current: RwLock::new(Arc::new(first)),
            reloading: Mutex::new(()),
            stopping: AtomicBool::new(false),
            options,
            source,
            metrics,
        });
        let (stop, stopped) = oneshot::channel();
        let accepting = tokio::spawn(accept(listener, app.clone(), stopped));
        Ok(Server {
            address,
            app,
            stop,
            accepting,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Switches to the newest bundle; its version. Not for an asynchronous task: it blocks while
    /// the bundle is read.
    ///
    /// # Errors
    /// If the bundle cannot be used, or another call is running: the old one stays.
    pub fn reload(&self) -> Result<u64> {
        Ok(self.app.reload()?.version())
    }

    /// Takes no more connections, lets the requests that run come to their end, at most for
    /// [`Options::drain`], and stops.
    ///
    /// # Errors
    /// If the task that accepts connections has failed.
    pub async fn shutdown(self) -> Result<()> {
        self.app.stopping.store(true, Ordering::Relaxed);
        // It has failed already if nobody listens; then the next line says so.
        let _ = self.stop.send(());
        self.accepting.await?;
        let app = self.app;
        tokio::task::spawn_blocking(move || app.pool.close()).await?;
        Ok(())
    }
}

async fn accept(listener: TcpListener, app: Arc<App>, mut stopped: oneshot::Receiver<()>) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(app.options.idle)
        .max_buf_size(64 << 10);
    let service = TowerToHyperService::new(routes::router(app.clone()));
    let places = Arc::new(Semaphore::new(app.options.connections));
    let graceful = GracefulShutdown::new();
    let mut connections = JoinSet::new();
    loop {
        // A client is accepted once there is a place for it.
        let next = async {
            let place = places.clone().acquire_owned().await;
            (place, listener.accept().await)
        };
        let (place, stream) = tokio::select! {
            _ = &mut stopped => break,
            // Forgets those that ended.
            Some(_) = connections.join_next() => continue,
            next = next => match next {
                (place, Ok((stream, _))) => (place, stream),
                // Out of files, or a client that is gone already: the next one may do better.
                (_, Err(_)) => {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    continue;
                }
            },
        };
        // Small answers go out at once; without it they only may be a little late.
        let _ = stream.set_nodelay(true);
        let connection = http.serve_connection(TokioIo::new(stream), service.clone());
        let connection = graceful.watch(connection);
        connections.spawn(async move {
            // What goes wrong with a connection is the client's concern.
            let _ = connection.await;
            drop(place);
        });
    }
    drop(listener);
    let _ = tokio::time::timeout(app.options.drain, graceful.shutdown()).await;
    connections.shutdown().await;
}
