//! A minimal HTTP client for the tests and the load test: one connection, kept open.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

/// A connection to a server.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<TcpStream>,
}

/// What came back.
#[derive(Debug)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    /// Body.
    pub body: String,
}

impl Client {
    /// Connects; reads wait for 30 s at most.
    ///
    /// # Errors
    /// If nobody listens.
    pub fn connect(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        Ok(Client {
            stream: BufReader::new(stream),
        })
    }

    /// Sends a request and reads its answer. `headers` are whole lines, each with its line end.
    ///
    /// # Errors
    /// If the connection breaks or the answer is not HTTP with a `Content-Length`.
    pub fn send(&mut self, method: &str, path: &str, headers: &str, body: &str) -> Result<Answer> {
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: test\r\nContent-Length: {length}\r\n{headers}\r\n{body}"
        );
        self.stream.get_mut().write_all(request.as_bytes())?;
        self.read()
    }

    /// Asks for recommendations.
    ///
    /// # Errors
    /// As [`Client::send`].
    pub fn recommend(&mut self, body: &str) -> Result<Answer> {
        self.send("POST", "/v1/recommend", "", body)
    }

    /// Gets a page.
    ///
    /// # Errors
    /// As [`Client::send`].
    pub fn get(&mut self, path: &str) -> Result<Answer> {
        self.send("GET", path, "", "")
    }

    /// The connection itself.
    pub fn stream(&mut self) -> &mut TcpStream {
        self.stream.get_mut()
    }

    /// Reads an answer.
    ///
    /// # Errors
    /// As [`Client::send`].
    pub fn read(&mut self) -> Result<Answer> {
        let mut line = String::new();
        let mut next = || -> Result<String> {
            line.clear();
            let n = self.stream.read_line(&mut line)?;
            ensure!(n > 0, "the server closed the connection");
            Ok(line.trim_end().to_string())
        };
        let head = next()?;
        let status = head.split(' ').nth(1).and_then(|s| s.parse().ok());
        let status = status.with_context(|| format!("not a status line: {head:?}"))?;
        let mut headers = Vec::new();
        loop {
            let line = next()?;
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(':').context("not a header")?;
            headers.push((name.to_ascii_lowercase(), value.trim().to_string()));
        }
        let length = headers.iter().find(|(name, _)| name == "content-length");
        let length = length.and_then(|(_, value)| value.parse().ok());
        let mut body = vec![0; length.context("an answer without a length")?];
        self.stream.read_exact(&mut body)?;
        Ok(Answer {
            status,
            headers,
            body: String::from_utf8(body)?,
        })
    }
}
