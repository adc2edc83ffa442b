//! The server as its clients meet it, over real connections.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tercet::{Bundle, Event, Query, Session, SessionOptions};
use tercet_server::client::{Answer, Client};
use tercet_server::release::Source;
use tercet_server::synthetic::write_bundle;
use tercet_server::{Options, Server};
use tokio::runtime::Runtime;

const ITEMS: usize = 500;
const DIM: usize = 16;

struct Fixture {
    runtime: Runtime,
    server: Option<Server>,
    folder: tempfile::TempDir,
    address: SocketAddr,
}

impl Fixture {
    fn new(change: impl FnOnce(&mut Options)) -> Self {
        Self::of(ITEMS, change)
    }

    /// A server for a bundle of `items` items, at a free port.
    fn of(items: usize, change: impl FnOnce(&mut Options)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bundle");
        write_bundle(&path, items, DIM, 1).unwrap();
        let mut options = Options {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            threads: 2,
            admin_token: Some("secret".into()),
            ..Options::default()
        };
        change(&mut options);
        let runtime = Runtime::new().unwrap();
        let server = runtime.block_on(Server::start(Source::Folder(path), options));
        let server = server.unwrap();
        let address = server.address();
        Fixture {
            runtime,
            server: Some(server),
            folder,
            address,
        }
    }

    fn client(&self) -> Client {
        Client::connect(self.address).unwrap()
    }

    /// Puts version `version` in the bundle's place.
    fn replace(&self, version: u64) {
        let (next, old) = (self.path("next"), self.path("old"));
        write_bundle(&next, ITEMS, DIM, version).unwrap();
        std::fs::rename(self.path("bundle"), &old).unwrap();
        std::fs::rename(&next, self.path("bundle")).unwrap();
        std::fs::remove_dir_all(&old).unwrap();
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    fn metric(&self, name: &str) -> f64 {
        let page = self.client().get("/metrics").unwrap().body;
        let line = page.lines().find_map(|l| l.strip_prefix(name));
        line.map_or(0.0, |value| value.trim().parse().unwrap())
    }

    /// Waits until `name` is `value`.
    fn wait_for(&self, name: &str, value: f64) {
        let start = Instant::now();
        while self.metric(name) != value {
            assert!(start.elapsed() < Duration::from_secs(20), "{name}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn shutdown(&mut self) {
        let server = self.server.take().unwrap();
        self.runtime.block_on(server.shutdown()).unwrap();
    }
}

fn parse(answer: &Answer) -> Value {
    serde_json::from_str(&answer.body).unwrap()
}

fn reload(client: &mut Client) -> Answer {
    let token = "Authorization: Bearer secret\r\n";
    client.send("POST", "/admin/reload", token, "").unwrap()
}

/// What a session on a device would be told.
fn expected(path: &Path, history: &[&str], k: usize) -> Vec<(String, f32)> {
    let bundle = Bundle::open(path).unwrap();
    let mut session = Session::new(&bundle, SessionOptions::default()).unwrap();
    for item in history {
        session.record(Event::new(*item)).unwrap();
    }
    let list = session.recommend(&Query::top(k)).unwrap();
    list.into_iter().map(|r| (r.item, r.score)).collect()
}

fn check(result: &Value, expected: &[(String, f32)]) {
    let items = result["items"].as_array().unwrap();
    assert_eq!(items.len(), expected.len());
    for (got, (id, score)) in items.iter().zip(expected) {
        assert_eq!(got["id"], id.as_str());
        let difference = got["score"].as_f64().unwrap() - f64::from(*score);
        assert!(difference.abs() < 1e-4, "{got} {score}");
    }
}

#[test]
fn answers_are_those_of_a_session() {
    let server = Fixture::new(|_| {});
    let mut client = server.client();
    assert_eq!(client.get("/healthz").unwrap().body, "ok\n");
    assert_eq!(client.get("/readyz").unwrap().status, 200);

    let answer = client.recommend(r#"{"history": ["item-3", "item-44", "nobody"], "k": 7}"#);
    let answer = parse(&answer.unwrap());
    assert_eq!(answer["bundle"], json!({"id": "synthetic", "version": 1}));
    assert_eq!(answer["results"][0]["unknown"], 1);
    let one = expected(&server.path("bundle"), &["item-3", "item-44"], 7);
    check(&answer["results"][0], &one);

    let body = r#"{"users": [{"history": []}, {"history": ["item-3", "item-44"]}], "k": 7}"#;
    let answer = parse(&client.recommend(body).unwrap());
    check(
        &answer["results"][0],
        &expected(&server.path("bundle"), &[], 7),
    );
    check(&answer["results"][1], &one);

    let body = r#"{"history": [{"item": "item-3", "behavior": "buy"}], "k": 500,
        "filter": "parity = odd", "exclude": ["item-1"], "include_seen": true}"#;
    let answer = parse(&client.recommend(body).unwrap());
    let items = answer["results"][0]["items"].as_array().unwrap();
    assert_eq!(items.len(), ITEMS / 2 - 1);
    assert!(items.iter().any(|i| i["id"] == "item-3"));
    assert_eq!(server.metric("tercet_requests_total{code=\"200\"}"), 3.0);
    assert_eq!(server.metric("tercet_request_seconds_count"), 3.0);
    assert_eq!(server.metric("tercet_ranked_users_total"), 4.0);
    assert_eq!(server.metric("tercet_in_flight"), 0.0);
}

#[test]
fn bad_requests_are_told_what_is_wrong() {
    let server = Fixture::new(|o| o.body = 10_000);
    let mut client = server.client();
    let many = format!(
        r#"{{"users": [{}]}}"#,
        vec![r#"{"history":[]}"#; 257].join(",")
    );
    for (body, word) in [
        ("", "EOF"),
        ("{\"history\": [", "EOF"),
        ("[]", "cannot read"),
        ("{}", "either"),
        (r#"{"history": [], "users": []}"#, "either"),
        (r#"{"users": []}"#, "0 users"),
        (many.as_str(), "257 users"),
        (r#"{"history": [], "k": 0}"#, "k is 0"),
        (r#"{"history": [], "k": 1001}"#, "k is 1001"),
        (r#"{"history": [], "k": -1}"#, "-1"),
        (r#"{"history": [], "top": 3}"#, "unknown field `top`"),
        (r#"{"history": [17]}"#, "cannot read"),
        (
            r#"{"history": [{"item": "item-1", "behavior": "sell"}]}"#,
            "buy",
        ),
        (r#"{"history": [], "filter": "parity ="}"#, "filter"),
        (r#"{"history": [], "filter": "color = red"}"#, "parity"),
        (r#"{"history": [], "diversity": 7}"#, "invalid argument"),
        (r#"{"history": [], "diversity": 0.1, "k": 101}"#, "k is 101"),
    ] {
        let answer = client.recommend(body).unwrap();
        assert_eq!(answer.status, 400, "{body}: {}", answer.body);
        let error = parse(&answer)["error"].as_str().unwrap().to_string();
        assert!(error.contains(word), "{body}: {error}");
    }
    assert_eq!(client.get("/v1/recommend").unwrap().status, 405);
    assert_eq!(client.get("/nothing").unwrap().status, 404);
    let large = format!(
        r#"{{"history": [], "exclude": ["{}"]}}"#,
        "x".repeat(10_000)
    );
    assert_eq!(client.recommend(&large).unwrap().status, 413);

    let mut nonsense = server.client();
    nonsense
        .stream()
        .write_all(b"\x16\x03\x01 what\r\n\r\n")
        .unwrap();
    assert_eq!(nonsense.read().unwrap().status, 400);

    let mut client = server.client();
    assert_eq!(
        client.send("POST", "/admin/reload", "", "").unwrap().status,
        401
    );
    let wrong = "Authorization: Bearer secreT\r\n";
    let answer = client.send("POST", "/admin/reload", wrong, "").unwrap();
    assert_eq!(answer.status, 401);
    let closed = Fixture::new(|o| o.admin_token = None);
    assert_eq!(reload(&mut closed.client()).status, 403);
}

#[test]
fn a_new_bundle_takes_over_under_load_without_an_error() {
    let server = Fixture::new(|_| {});
    let done = Arc::new(AtomicBool::new(false));
    let ask = |seed: usize| {
        let (done, address) = (done.clone(), server.address);
        std::thread::spawn(move || {
            let mut client = Client::connect(address).unwrap();
            let (mut answers, mut last) = (0, 0);
            while !done.load(Ordering::Relaxed) {
                let item = (seed + answers) % ITEMS;
                let body = format!(r#"{{"history": ["item-{item}"], "k": 3}}"#);
                let answer = client.recommend(&body).unwrap();
                assert_eq!(answer.status, 200, "{}", answer.body);
                let version = parse(&answer)["bundle"]["version"].as_u64().unwrap();
                assert!(version >= last, "version {version} after {last}");
                (answers, last) = (answers + 1, version);
            }
            answers
        })
    };
    let clients: Vec<_> = (0..4).map(|i| ask(i * 100)).collect();
    let mut admin = server.client();
    for version in 2..=12 {
        server.replace(version);
        let answer = reload(&mut admin);
        assert_eq!(answer.status, 200, "{}", answer.body);
        assert_eq!(parse(&answer)["version"], version);
        let answer = parse(&admin.recommend(r#"{"history": ["item-9"]}"#).unwrap());
        assert_eq!(answer["bundle"]["version"], version);
        let want = expected(&server.path("bundle"), &["item-9"], 10);
        check(&answer["results"][0], &want);
    }
    // A damaged one is refused, and the last good one stays.
    let table = server.path("bundle").join("items.safetensors");
    let mut bytes = std::fs::read(&table).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::rename(&table, server.path("kept")).unwrap();
    std::fs::write(&table, bytes).unwrap();
    let answer = reload(&mut admin);
    assert_eq!(answer.status, 409);
    assert!(
        answer.body.contains("the old bundle stays"),
        "{}",
        answer.body
    );
    assert_eq!(server.metric("tercet_bundle_version"), 12.0);
    assert_eq!(server.metric("tercet_reloads_total"), 11.0);
    assert_eq!(server.metric("tercet_failed_reloads_total"), 1.0);
    done.store(true, Ordering::Relaxed);
    let answers: Vec<usize> = clients.into_iter().map(|c| c.join().unwrap()).collect();
    assert!(answers.iter().all(|&n| n > 0), "{answers:?}");
}

/// A request that keeps a thread busy for a few tenths of a second: diversity ranks one by one.
fn slow() -> String {
    let users = vec![r#"{"history": ["item-1"]}"#; 128].join(",");
    format!(r#"{{"users": [{users}], "k": 100, "diversity": 0.5}}"#)
}

#[test]
fn a_flood_is_turned_away_and_the_rest_is_served() {
    let server = Fixture::of(20_000, |o| (o.threads, o.queue) = (1, 8));
    let mut busy = server.client();
    let body = slow();
    let head = format!(
        "POST /v1/recommend HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    busy.stream().write_all((head + &body).as_bytes()).unwrap();
    server.wait_for("tercet_batches_total", 1.0);

    let address = server.address;
    let ask = move |_| {
        std::thread::spawn(move || {
            let answer = Client::connect(address).unwrap();
            let answer = { answer }.recommend(r#"{"history": ["item-1"]}"#).unwrap();
            let retry = answer.headers.iter().any(|(name, _)| name == "retry-after");
            assert_eq!(retry, answer.status == 503);
            answer.status
        })
    };
    let asked: Vec<_> = (0..64).map(ask).collect();
    let mut health = server.client();
    assert_eq!(health.get("/healthz").unwrap().status, 200);
    let statuses: Vec<u16> = asked.into_iter().map(|t| t.join().unwrap()).collect();
    assert!(
        statuses.iter().all(|s| [200, 503].contains(s)),
        "{statuses:?}"
    );
    let served = statuses.iter().filter(|&&s| s == 200).count();
    assert!((8..64).contains(&served), "{served}");
    assert_eq!(server.metric("tercet_rejected_total"), (64 - served) as f64);
    assert_eq!(busy.read().unwrap().status, 200);
    let after = health.recommend(r#"{"history": ["item-1"]}"#).unwrap();
    assert_eq!(after.status, 200);
}

#[test]
fn who_leaves_costs_nothing() {
    let server = Fixture::of(20_000, |o| (o.threads, o.queue) = (1, 600));
    let body = slow();
    let head = format!(
        "POST /v1/recommend HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    let mut busy = server.client();
    busy.stream()
        .write_all((head.clone() + &body).as_bytes())
        .unwrap();
    server.wait_for("tercet_batches_total", 1.0);
    // One in the middle of its body, one while it waits.
    let mut half = server.client();
    half.stream()
        .write_all((head.clone() + &body[..100]).as_bytes())
        .unwrap();
    let mut waits = server.client();
    waits.stream().write_all((head + &body).as_bytes()).unwrap();
    server.wait_for("tercet_waiting_users", 128.0);
    half.stream().shutdown(Shutdown::Both).unwrap();
    waits.stream().shutdown(Shutdown::Both).unwrap();
    server.wait_for("tercet_in_flight", 1.0);
    assert_eq!(server.metric("tercet_cancelled_total"), 1.0);
    assert_eq!(busy.read().unwrap().status, 200);
    let answer = server
        .client()
        .recommend(r#"{"history": ["item-1"]}"#)
        .unwrap();
    assert_eq!(answer.status, 200);
    assert_eq!(server.metric("tercet_ranked_users_total"), 129.0);
}

#[test]
fn slow_clients_are_given_up() {
    let server = Fixture::new(|o| {
        (o.timeout, o.idle) = (Duration::from_millis(300), Duration::from_millis(300));
        o.connections = 2;
    });
    let mut body = server.client();
    let head = b"POST /v1/recommend HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{";
    body.stream().write_all(head).unwrap();
    let mut idle = server.client();
    idle.stream()
        .write_all(b"GET /healthz HTTP/1.1\r\nHo")
        .unwrap();
    // There are two places only: this one gets its turn when one of the others is given up.
    assert_eq!(server.client().get("/healthz").unwrap().status, 200);
    assert_eq!(body.read().unwrap().status, 408);
    let mut rest = Vec::new();
    // Closed, with or without a word.
    let _ = idle.stream().read_to_end(&mut rest);
    assert!(rest.is_empty() || rest.starts_with(b"HTTP/1.1 408"));

    let server = Fixture::of(20_000, |o| {
        (o.threads, o.timeout) = (1, Duration::from_millis(20));
    });
    assert_eq!(server.client().recommend(&slow()).unwrap().status, 504);
}

#[test]
fn a_stop_lets_running_requests_end() {
    let mut server = Fixture::of(20_000, |o| o.threads = 1);
    let address = server.address;
    let mut idle = server.client();
    assert_eq!(idle.get("/healthz").unwrap().status, 200);
    let running = std::thread::spawn(move || {
        Client::connect(address)
            .unwrap()
            .recommend(&slow())
            .unwrap()
    });
    server.wait_for("tercet_batches_total", 1.0);
    server.shutdown();
    assert_eq!(running.join().unwrap().status, 200);
    assert!(idle.get("/healthz").is_err());
    assert!(Client::connect(address).is_err());
}

#[test]
fn a_start_that_cannot_work_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let runtime = Runtime::new().unwrap();
    let start = |source, options| runtime.block_on(Server::start(source, options)).err();
    let options = || Options {
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        ..Options::default()
    };
    let missing = Source::Folder(folder.path().join("nowhere"));
    let error = start(missing, options()).unwrap().to_string();
    assert!(error.contains("nowhere"), "{error}");
    let running = Fixture::new(|_| {});
    let taken = Options {
        listen: running.address,
        ..options()
    };
    let error = start(Source::Folder(running.path("bundle")), taken).unwrap();
    assert!(error.to_string().contains("cannot listen"), "{error}");
}
