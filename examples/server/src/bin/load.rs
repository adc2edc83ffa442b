//! A bounded load test: `cargo run --release -p tercet-server --bin tercet-load -- --items 1000000`.
//!
//! Starts the server in this process with a synthetic bundle and asks over real connections, each
//! of which sends its next request when the last is answered. So clients and server share the
//! machine, and the time of a request includes both.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use tercet_server::client::Client;
use tercet_server::release::Source;
use tercet_server::synthetic::write_bundle;
use tercet_server::{Options, Server};

/// Measures throughput and latency of the example server.
#[derive(Parser)]
struct Args {
    /// Items in the synthetic bundle
    #[arg(long, default_value_t = 100_000)]
    items: usize,
    /// Values per vector
    #[arg(long, default_value_t = 64)]
    dim: usize,
    /// Connections, each with one request at a time; several numbers for several measures
    #[arg(long, value_delimiter = ',', default_values_t = [1, 8, 32])]
    connections: Vec<usize>,
    /// Requests for each measure
    #[arg(long, default_value_t = 5_000)]
    requests: usize,
    /// Recommended items
    #[arg(short, default_value_t = 100)]
    k: usize,
    /// Ranking threads of the server
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Bundles to switch to while as many connections as in the last measure ask
    #[arg(long, default_value_t = 100)]
    swaps: usize,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let folder = tempfile::tempdir()?;
    let releases = [1, 2].map(|version| folder.path().join(format!("v{version}")));
    for (path, version) in releases.iter().zip(1..) {
        write_bundle(path, args.items, args.dim, version)?;
    }
    let current = folder.path().join("current");
    point(&current, &releases[0])?;
    let options = Options {
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        threads: args.threads,
        ..Options::default()
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let server = runtime.block_on(Server::start(Source::Folder(current.clone()), options))?;
    println!(
        "{} items x {}, top {}, histories of 10, {} ranking threads, kernel {}, load {}",
        args.items,
        args.dim,
        args.k,
        args.threads,
        tercet::kernel::active().name(),
        load(),
    );
    println!("connections requests errors   per s    p50 ms    p99 ms    max ms  CPU ms each");
    let load = Load {
        address: server.address(),
        items: args.items,
        k: args.k,
    };
    // Maps the table's pages and warms up.
    load.run(2, &Until::Requests(50))?;
    for &connections in &args.connections {
        load.run(connections, &Until::Requests(args.requests))?
            .print(connections);
    }
    if args.swaps > 0 {
        let connections = args.connections.last().copied().unwrap_or(8);
        let (stop, version) = (AtomicBool::new(false), AtomicUsize::new(0));
        let (swaps, took) = std::thread::scope(|scope| -> Result<_> {
            let asking = scope.spawn(|| load.run(connections, &Until::Stopped(&stop)));
            let swap = |i: usize| -> Result<Duration> {
                let start = Instant::now();
                point(&current, &releases[i % 2])?;
                version.store(server.reload()? as usize, Ordering::Relaxed);
                Ok(start.elapsed())
            };
            let took: Result<Vec<Duration>> = (1..=args.swaps).map(swap).collect();
            stop.store(true, Ordering::Relaxed);
            let asking = asking.join().ok().context("a client panicked")?;
            Ok((asking?, took?))
        })?;
        swaps.print(connections);
        println!(
            "  during {} switches of bundles, the slowest {:.0} ms; errors {}",
            args.swaps,
            took.iter().max().map_or(0.0, Duration::as_secs_f64) * 1e3,
            swaps.errors
        );
        ensure!(swaps.errors == 0, "switching bundles must not show");
    }
    runtime.block_on(server.shutdown())
}

/// Makes `link` lead to `target`, at once.
fn point(link: &Path, target: &Path) -> Result<()> {
    let next = link.with_extension("next");
    #[cfg(unix)]
    std::os::unix::fs::symlink(target, &next)?;
    #[cfg(not(unix))]
    anyhow::bail!("the load test needs symbolic links");
    Ok(std::fs::rename(&next, link)?)
}

enum Until<'a> {
    Requests(usize),
    Stopped(&'a AtomicBool),
}

struct Load {
    address: SocketAddr,
    items: usize,
    k: usize,
}

struct Outcome {
    /// Seconds, ascending.
    times: Vec<f64>,
    errors: usize,
    seconds: f64,
    cpu: f64,
}

impl Load {
    fn run(&self, connections: usize, until: &Until<'_>) -> Result<Outcome> {
        let sent = AtomicUsize::new(0);
        let (start, cpu) = (Instant::now(), cpu_seconds());
        let client = || -> Result<(Vec<f64>, usize)> {
            let mut client = Client::connect(self.address)?;
            let (mut times, mut errors) = (Vec::new(), 0);
            loop {
                let request = sent.fetch_add(1, Ordering::Relaxed);
                match until {
                    Until::Requests(n) if request >= *n => break,
                    Until::Stopped(stop) if stop.load(Ordering::Relaxed) => break,
                    _ => {}
                }
                let body = self.body(request);
                let start = Instant::now();
                match client.recommend(&body) {
                    Ok(answer) if answer.status == 200 => {
                        times.push(start.elapsed().as_secs_f64());
                        // Each has its score and its id, which says that the list is full.
                        let items = answer.body.matches("\"score\"").count();
                        ensure!(items == self.k.min(self.items - 10), "{items} items");
                    }
                    Ok(_) => errors += 1,
                    Err(_) => {
                        errors += 1;
                        client = Client::connect(self.address)?;
                    }
                }
            }
            Ok((times, errors))
        };
        let parts = std::thread::scope(|scope| {
            let clients: Vec<_> = (0..connections).map(|_| scope.spawn(client)).collect();
            let join = |c: std::thread::ScopedJoinHandle<'_, _>| c.join();
            clients.into_iter().map(join).collect::<Vec<_>>()
        });
        let seconds = start.elapsed().as_secs_f64();
        let (mut times, mut errors) = (Vec::new(), 0);
        for part in parts {
            let (part, failed) = part.ok().context("a client panicked")??;
            times.extend(part);
            errors += failed;
        }
        times.sort_unstable_by(f64::total_cmp);
        Ok(Outcome {
            times,
            errors,
            seconds,
            cpu: cpu_seconds() - cpu,
        })
    }

    /// Ten different items, others for each request.
    fn body(&self, request: usize) -> String {
        let item = |i: usize| format!("\"item-{}\"", (request * 7919 + i * 104_729) % self.items);
        let history: Vec<String> = (0..10).map(item).collect();
        format!(
            "{{\"history\": [{}], \"k\": {}}}",
            history.join(","),
            self.k
        )
    }
}

impl Outcome {
    fn print(&self, connections: usize) {
        let n = self.times.len();
        let at = |share: f64| {
            let i = (n as f64 * share) as usize;
            self.times
                .get(i.min(n.saturating_sub(1)))
                .map_or(f64::NAN, |s| s * 1e3)
        };
        println!(
            "{connections:11} {n:8} {:6} {:7.0} {:9.2} {:9.2} {:9.2} {:12.2}",
            self.errors,
            n as f64 / self.seconds,
            at(0.5),
            at(0.99),
            at(1.0),
            self.cpu / n as f64 * 1e3,
        );
    }
}

/// CPU time of this process in seconds, where Linux tells; clients included.
fn cpu_seconds() -> f64 {
    let text = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // Behind the name, which may hold blanks, follow the third field and the others.
    let fields = text.rsplit(')').next().unwrap_or_default();
    let ticks = fields.split_whitespace().skip(11).take(2);
    ticks.map(|t| t.parse().unwrap_or(0.0)).sum::<f64>() / 100.0
}

fn load() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or("unknown").to_string()
}
