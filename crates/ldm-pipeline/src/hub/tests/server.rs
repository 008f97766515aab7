//! A server on the loopback interface that plays a hub with one repository.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex, MutexGuard},
    thread::{self, JoinHandle},
};

use sha2::{Digest, Sha256};

pub(super) const ID: &str = "owner/name";
pub(super) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

pub(super) fn sha256(contents: &[u8]) -> String {
    (Sha256::digest(contents).iter())
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// In which ways the server isn't the ideal one.
pub(super) struct Behaviour {
    /// Whether it answers requests for ranges with them.
    pub(super) ranges: bool,
    /// The connection breaks after so many bytes of a body.
    pub(super) cut: Option<usize>,
    /// The only token that it accepts.
    pub(super) token: Option<String>,
    /// Whether it tells the commit.
    pub(super) commit: bool,
    /// Whether every answer is 503.
    pub(super) failing: bool,
}

struct State {
    files: BTreeMap<String, Vec<u8>>,
    behaviour: Behaviour,
    /// Paths and ranges asked for.
    requests: Vec<(String, String)>,
    /// Bytes of all bodies.
    sent: usize,
    stopped: bool,
}

pub(super) struct Server {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub(super) fn start<'a, C: AsRef<[u8]> + ?Sized + 'a>(
        files: impl IntoIterator<Item = (&'a str, &'a C)>,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State {
            files: (files.into_iter())
                .map(|(name, contents)| (name.to_owned(), contents.as_ref().to_vec()))
                .collect(),
            behaviour: Behaviour {
                ranges: true,
                cut: None,
                token: None,
                commit: true,
                failing: false,
            },
            requests: Vec::new(),
            sent: 0,
            stopped: false,
        }));
        let shared = Arc::clone(&state);
        let thread = thread::spawn(move || {
            for stream in listener.incoming() {
                let mut state = shared.lock().unwrap();
                if state.stopped {
                    break;
                }
                // A client may hang up before the end; that is its affair.
                let _ = state.answer(stream.unwrap(), address);
            }
        });
        Self {
            address,
            state,
            thread: Some(thread),
        }
    }

    pub(super) fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(super) fn set(&mut self, change: impl FnOnce(&mut Behaviour)) {
        change(&mut self.state().behaviour);
    }

    /// Paths asked for.
    pub(super) fn requests(&self) -> Vec<String> {
        let state = self.state();
        (state.requests.iter())
            .map(|(path, _)| path.clone())
            .collect()
    }

    /// Ranges that were asked for of contents, not of what leads there.
    pub(super) fn ranges(&self) -> Vec<String> {
        let state = self.state();
        let is_first = |path: &str| path.contains("/resolve/");
        let metadata =
            (state.requests.iter()).filter(|(path, range)| is_first(path) && range == "bytes=0-0");
        let contents = (state.requests.iter()).filter(|(path, _)| !is_first(path));
        (metadata.chain(contents))
            .map(|(_, range)| range.clone())
            .collect()
    }

    pub(super) fn sent(&self) -> usize {
        self.state().sent
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.state().stopped = true;
        // Wakes the thread.
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl State {
    fn answer(&mut self, mut stream: TcpStream, address: SocketAddr) -> std::io::Result<()> {
        let mut lines = BufReader::new(&stream).lines();
        let request = lines.next().transpose()?.unwrap_or_default();
        let mut headers = BTreeMap::new();
        for line in lines {
            let line = line?;
            let Some((name, value)) = line.split_once(':') else {
                break;
            };
            headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
        }
        let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
        let range = headers.get("range").cloned().unwrap_or_default();
        self.requests.push((path.clone(), range.clone()));

        let authorization = headers.get("authorization").map(String::as_str);
        let (head, body) = self.respond(&path, &range, authorization, address);
        let length = body.len();
        write!(
            stream,
            "HTTP/1.1 {head}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n"
        )?;
        let end = self.behaviour.cut.map_or(length, |cut| cut.min(length));
        self.sent += end;
        stream.write_all(&body[..end])
    }

    /// Status and headers, and the body.
    fn respond(
        &self,
        path: &str,
        range: &str,
        authorization: Option<&str>,
        address: SocketAddr,
    ) -> (String, Vec<u8>) {
        let error = |status: &str, code: &str| {
            let head = format!("{status}\r\nx-error-code: {code}");
            (head, b"an explanation".to_vec())
        };
        if self.behaviour.failing {
            return error("503 Service Unavailable", "");
        }
        if let Some(name) = path.strip_prefix("/store/") {
            return self.contents(name, range, "");
        }
        let Some(rest) = path.strip_prefix(&format!("/{ID}/resolve/")) else {
            return error("401 Unauthorized", "RepoNotFound");
        };
        if let Some(token) = &self.behaviour.token {
            match authorization {
                None => return error("401 Unauthorized", "GatedRepo"),
                Some(sent) if sent != format!("Bearer {token}") => {
                    return error("403 Forbidden", "GatedRepo");
                }
                Some(_) => {}
            }
        }
        let (revision, name) = rest.split_once('/').unwrap();
        if !["main", COMMIT].contains(&revision) {
            return error("404 Not Found", "RevisionNotFound");
        }
        let Some(contents) = self.files.get(name) else {
            return error("404 Not Found", "EntryNotFound");
        };
        let commit = match self.behaviour.commit {
            true => format!("\r\nx-repo-commit: {COMMIT}"),
            false => String::new(),
        };
        if name.ends_with(".safetensors") || name.ends_with(".bin") {
            // Large files lie in a store of their own.
            let head = format!(
                "302 Found{commit}\r\nlocation: http://{address}/store/{name}\r\nx-linked-size: {}\r\nx-linked-etag: \"{}\"\r\netag: \"of-the-pointer\"",
                contents.len(),
                sha256(contents)
            );
            return (head, Vec::new());
        }
        let etag: String = name.replace('/', "-");
        self.contents(name, range, &format!("{commit}\r\netag: W/\"{etag}\""))
    }

    fn contents(&self, name: &str, range: &str, headers: &str) -> (String, Vec<u8>) {
        let contents = &self.files[name];
        let bounds = range
            .strip_prefix("bytes=")
            .and_then(|range| range.split_once('-'))
            .filter(|_| self.behaviour.ranges);
        let Some((start, last)) = bounds else {
            return (format!("200 OK{headers}"), contents.clone());
        };
        let start: usize = start.parse().unwrap();
        let last = last.parse().unwrap_or(contents.len() - 1);
        let head = format!(
            "206 Partial Content{headers}\r\ncontent-range: bytes {start}-{last}/{}",
            contents.len()
        );
        (head, contents[start..=last].to_vec())
    }
}
