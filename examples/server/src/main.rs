//! `tercet-server --bundle shop.tercet`; see the library's page.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use tercet::{BundleStore, StoreOptions};
use tercet_server::release::Source;
use tercet_server::{Options, Server};

/// Recommendations over HTTP from a bundle or a store of bundles.
///
/// SIGHUP, or POST /admin/reload with the token in TERCET_ADMIN_TOKEN, switches to the newest
/// bundle; SIGTERM and Ctrl-C stop once the requests that run are answered.
#[derive(Parser)]
struct Args {
    /// Folder of a bundle; replace it by renaming another one into its place
    #[arg(long, required_unless_present = "store")]
    bundle: Option<PathBuf>,
    /// Folder of signed bundles, as `tercet store install` fills it
    #[arg(long, conflicts_with = "bundle", requires_all = ["id", "key"])]
    store: Option<PathBuf>,
    /// The store's bundle id
    #[arg(long)]
    id: Option<String>,
    /// Public key that the store trusts; up to two
    #[arg(long)]
    key: Vec<String>,
    /// Address and port; port 0 takes a free one
    #[arg(long, default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// Threads that rank; default: all of the machine's
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// Most users that wait for a thread
    #[arg(long, default_value_t = 512)]
    queue: usize,
    /// Most open connections
    #[arg(long, default_value_t = 1024)]
    connections: u16,
    /// Most bytes of a request
    #[arg(long, default_value_t = 1 << 20)]
    body: usize,
    /// Seconds that a request may take
    #[arg(long, default_value_t = 5)]
    timeout: u32,
    /// Seconds that a connection may be idle
    #[arg(long, default_value_t = 30)]
    idle: u32,
    /// Seconds that running requests get to end when the server is stopped
    #[arg(long, default_value_t = 10)]
    drain: u32,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let source = match (args.bundle, args.store) {
        (Some(path), _) => Source::Folder(path),
        (None, folder) => {
            let mut options = StoreOptions::new(args.id.unwrap_or_default());
            for key in &args.key {
                options = options.trust(key)?;
            }
            let folder = folder.context("--bundle or --store is needed")?;
            Source::Store(Box::new(BundleStore::open(folder, options)?))
        }
    };
    let mut options = Options {
        listen: args.listen,
        queue: args.queue,
        connections: args.connections.into(),
        body: args.body,
        timeout: Duration::from_secs(args.timeout.into()),
        idle: Duration::from_secs(args.idle.into()),
        drain: Duration::from_secs(args.drain.into()),
        admin_token: std::env::var("TERCET_ADMIN_TOKEN").ok(),
        ..Options::default()
    };
    if let Some(threads) = args.threads {
        options.threads = threads.into();
    }
    // Two threads read and write; ranking has its own.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let server = Server::start(source, options).await?;
        println!("listening at http://{}", server.address());
        serve(&server).await?;
        eprintln!("stopping");
        server.shutdown().await
    })
}

/// Returns when the process is told to stop.
#[cfg(unix)]
async fn serve(server: &Server) -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    loop {
        tokio::select! {
            stop = tokio::signal::ctrl_c() => return Ok(stop?),
            _ = terminate.recv() => return Ok(()),
            _ = hangup.recv() => match tokio::task::block_in_place(|| server.reload()) {
                Ok(version) => eprintln!("serving version {version}"),
                Err(e) => eprintln!("the old bundle stays: {e:#}"),
            },
        }
    }
}

/// Returns when the process is told to stop.
#[cfg(not(unix))]
async fn serve(_server: &Server) -> Result<()> {
    Ok(tokio::signal::ctrl_c().await?)
}
