//! The program of the demo's machine: an HTTP server that counts its requests in a file.
//!
//! It is a hidden role of this binary (`smartnode counter-server`), so that the demo needs nothing of its host but the
//! binary itself. Every answer is on the disk before it is given: what a client has seen is never counted again.
#![expect(clippy::disallowed_methods, reason = "a tenant's program inside a machine, no part of a node")]

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

/// A client sends its request within this time; others wait meanwhile.
const REQUEST_TIMEOUT: Duration = Duration::from_millis(200);
/// Bytes of a request's head.
const HEAD_BYTES_MAX: usize = 4096;
/// Bytes of the count in its file: every number has as many, so that a write replaces the one before.
const DIGITS: usize = 20;

/// Serves until it is killed.
///
/// # Errors
/// When the port or the file cannot be used.
pub fn serve(port: u16, file: &Path) -> io::Result<()> {
    let (file, mut count) = open(file)?;
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))?;
    let host = nix::unistd::gethostname()?.to_string_lossy().into_owned();
    for stream in listener.incoming() {
        // A client that broke off is no reason to end; a disk that refuses is.
        let Ok(mut stream) = stream else { continue };
        if request(&mut stream).is_err() {
            continue;
        }
        count += 1;
        file.write_all_at(format!("{count:0DIGITS$}").as_bytes(), 0)?;
        file.sync_data()?;
        let _ = answer(&mut stream, &format!("{count} {host}\n"));
    }
    Ok(())
}

fn open(path: &Path) -> io::Result<(File, u64)> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
    let mut text = String::new();
    (&file).take(DIGITS as u64).read_to_string(&mut text)?;
    let count = match text.as_str() {
        "" => 0,
        text => text.parse().map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?,
    };
    Ok((file, count))
}

/// Reads to the end of a request's head.
fn request(stream: &mut TcpStream) -> io::Result<()> {
    stream.set_read_timeout(Some(REQUEST_TIMEOUT))?;
    stream.set_write_timeout(Some(REQUEST_TIMEOUT))?;
    let (mut head, mut buffer) = (Vec::new(), [0; 512]);
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        let count = stream.read(&mut buffer)?;
        if count == 0 || head.len() + count > HEAD_BYTES_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
        head.extend_from_slice(&buffer[..count]);
    }
    if head.starts_with(b"GET ") { Ok(()) } else { Err(io::ErrorKind::Unsupported.into()) }
}

fn answer(stream: &mut TcpStream, body: &str) -> io::Result<()> {
    let head = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nConnection: close\r\nContent-Length: ";
    stream.write_all(format!("{head}{}\r\n\r\n{body}", body.len()).as_bytes())
}
