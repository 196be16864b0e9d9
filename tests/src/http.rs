//! Bytes to an admin socket as no well-behaved client would send them.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

/// What the admin port answered.
#[derive(Debug)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Header lines.
    pub head: String,
    /// The body.
    pub body: String,
}

impl Answer {
    /// The body as JSON.
    ///
    /// # Panics
    /// When it is none.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error} in {self:?}"))
    }

    /// Reads an answer to the end of the connection.
    ///
    /// # Panics
    /// When nothing that is HTTP comes within half a minute.
    pub fn read(stream: &mut UnixStream) -> Answer {
        Answer::try_read(stream).unwrap_or_else(|error| panic!("no answer: {error}"))
    }

    fn try_read(stream: &mut UnixStream) -> io::Result<Answer> {
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        let mut bytes = Vec::new();
        // A port that refuses a body may reset the connection after its answer.
        let end = stream.read_to_end(&mut bytes);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            return Err(end.err().unwrap_or_else(|| io::Error::other(format!("no head in {text:?}"))));
        };
        let status = head.split(' ').nth(1).and_then(|word| word.parse().ok());
        Ok(Answer { status: status.unwrap_or_default(), head: head.to_owned(), body: body.to_owned() })
    }
}

/// A connection on which `head` has been said.
///
/// # Panics
/// When nobody listens.
pub fn open(socket: &Path, head: &str) -> UnixStream {
    let mut stream = UnixStream::connect(socket).unwrap_or_else(|error| panic!("{}: {error}", socket.display()));
    stream.write_all(head.as_bytes()).expect("the port reads");
    stream
}

/// One request with a JSON body; `headers` are whole lines.
///
/// # Panics
/// When nobody listens, or answers.
pub fn ask(socket: &Path, method: &str, path: &str, headers: &[&str], body: &str) -> Answer {
    try_ask(socket, method, path, headers, body).unwrap_or_else(|error| panic!("{}: {error}", socket.display()))
}

/// The same of a daemon that may be dying.
///
/// # Errors
/// When nobody listens, or the connection ends without an answer.
pub fn try_ask(socket: &Path, method: &str, path: &str, headers: &[&str], body: &str) -> io::Result<Answer> {
    let lines: String = headers.iter().map(|line| format!("{line}\r\n")).collect();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n{lines}\r\n{body}",
        body.len()
    );
    let mut stream = UnixStream::connect(socket)?;
    stream.write_all(head.as_bytes())?;
    Answer::try_read(&mut stream)
}

/// What a `GET` answers with status 200, if anybody answers.
pub fn get(socket: &Path, path: &str) -> Option<String> {
    let mut stream = UnixStream::connect(socket).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(30))).ok()?;
    let head = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    head.starts_with("HTTP/1.1 200 ").then(|| body.to_owned())
}
