//! What the tests are written in: sidecars as processes, scripted apps, and raw callers; every wait has a clock.

pub(crate) mod http2;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

/// Nothing here takes longer than this unless something is broken.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A port that nobody listens on at this moment.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A folder of its own for each test, removed with it.
pub(crate) struct Folder(pub(crate) PathBuf);

impl Folder {
    /// Makes one.
    pub(crate) fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("outrigger-it-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    /// Writes a file in it, whole or not at all, and gives its path.
    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        let (path, new) = (self.0.join(name), self.0.join(format!("{name}.new")));
        std::fs::write(&new, text).unwrap();
        std::fs::rename(&new, &path).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Polls until `done` gives something; fails with `what` when it never does.
pub(crate) fn until<T>(what: &str, mut done: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = done() {
            return found;
        }
        assert!(start.elapsed() < PATIENCE, "never came: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// A running sidecar.
pub(crate) struct Sidecar {
    pub(crate) child: Child,
    pub(crate) folder: Folder,
    pub(crate) inbound: SocketAddr,
    pub(crate) outbound: SocketAddr,
    pub(crate) admin: SocketAddr,
    log: Arc<Mutex<String>>,
}

/// Ports for a sidecar's file: `{in}`, `{out}` and `{admin}` in its text stand for them.
pub(crate) struct Ports {
    inbound: u16,
    outbound: u16,
    admin: u16,
}

impl Ports {
    /// Below the ports that the kernel gives to those who ask for any (from 32768 on unless configured), so that nobody
    /// gets one of them before the sidecar binds it; and counted from a place of this process's own, because tests run
    /// in many.
    pub(crate) fn free() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let first = std::process::id() as usize * 7;
        let next = || {
            until("a free port", || {
                let n = first + NEXT.fetch_add(1, Ordering::Relaxed);
                let port = u16::try_from(10_000 + n % 22_000).unwrap();
                TcpListener::bind(("127.0.0.1", port)).ok().map(|_| port)
            })
        };
        Self { inbound: next(), outbound: next(), admin: next() }
    }

    pub(crate) fn fill(&self, text: &str) -> String {
        text.replace("{in}", &format!("127.0.0.1:{}", self.inbound))
            .replace("{out}", &format!("127.0.0.1:{}", self.outbound))
            .replace("{admin}", &format!("127.0.0.1:{}", self.admin))
    }
}

impl Sidecar {
    /// Starts one with this file and waits until it is ready.
    pub(crate) fn start(text: &str) -> Self {
        Self::start_with(text, &[])
    }

    /// Starts one with this file, and the app `command` under it where there is one.
    pub(crate) fn start_with(text: &str, command: &[&str]) -> Self {
        Self::launch(text, command).ready()
    }

    /// Starts one that logs all it can.
    pub(crate) fn start_telling_all(text: &str) -> Self {
        Self::launch_in(text, &[], &[("OUTRIGGER_LOG", "trace")]).ready()
    }

    fn ready(self) -> Self {
        let sidecar = self;
        until("the sidecar is ready", || {
            let answer = try_get(sidecar.admin, "/ready")?;
            answer.starts_with("HTTP/1.1 200").then_some(())
        });
        sidecar
    }

    /// Starts one without waiting.
    pub(crate) fn launch(text: &str, command: &[&str]) -> Self {
        Self::launch_in(text, command, &[])
    }

    fn launch_in(text: &str, command: &[&str], variables: &[(&str, &str)]) -> Self {
        let (ports, folder) = (Ports::free(), Folder::new());
        let file = folder.write("outrigger.yaml", &ports.fill(text));
        let mut run = Command::new(env!("CARGO_BIN_EXE_outrigger"));
        run.arg("run").arg("-c").arg(&file).envs(variables.iter().copied());
        if !command.is_empty() {
            run.arg("--").args(command);
        }
        let mut child = run.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        gather(child.stdout.take().unwrap(), log.clone());
        gather(child.stderr.take().unwrap(), log.clone());
        let addr = |port| SocketAddr::from(([127, 0, 0, 1], port));
        Self {
            child,
            folder,
            inbound: addr(ports.inbound),
            outbound: addr(ports.outbound),
            admin: addr(ports.admin),
            log,
        }
    }

    /// Everything it has said so far, access lines included.
    pub(crate) fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Waits for a line of its log that holds all of `words`.
    pub(crate) fn says(&self, words: &[&str]) -> String {
        until(&format!("a line with {words:?}"), || {
            self.log().lines().find(|line| words.iter().all(|word| line.contains(word))).map(str::to_owned)
        })
    }

    /// The body of an admin page.
    pub(crate) fn page(&self, path: &str) -> String {
        let answer = get(self.admin, path);
        answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default()
    }

    /// The value of a metric, the first whose line holds all of `words`; 0 where there is none.
    pub(crate) fn metric(&self, words: &[&str]) -> f64 {
        let page = self.page("/metrics");
        let line = page.lines().find(|line| !line.starts_with('#') && words.iter().all(|word| line.contains(word)));
        line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0.0)
    }

    /// Sends a signal to it.
    pub(crate) fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([&format!("-{name}"), &pid]).status().unwrap().success());
    }

    /// Waits for its end and gives its exit code.
    pub(crate) fn exit(&mut self) -> i32 {
        until("the sidecar ends", || self.child.try_wait().unwrap()).code().unwrap_or(-1)
    }

    /// Writes its file anew.
    pub(crate) fn rewrite(&self, text: &str) {
        let ports = Ports { inbound: self.inbound.port(), outbound: self.outbound.port(), admin: self.admin.port() };
        self.folder.write("outrigger.yaml", &ports.fill(text));
    }
}

/// A sidecar in front of `app`; `more` follows in its `inbound` section.
pub(crate) fn inbound(app: SocketAddr, more: &str) -> Sidecar {
    Sidecar::start(&inbound_file(app, more))
}

/// The file of [`inbound`].
pub(crate) fn inbound_file(app: SocketAddr, more: &str) -> String {
    format!(
        "service: server\nadmin: '{{admin}}'\ninbound: {{ listen: '{{in}}', app: '{app}'{more} }}\noutbound: {{ listen: '{{out}}' }}\ntelemetry: {{ access-log: {{ log: all }} }}\n"
    )
}

/// A sidecar whose outbound door leads to `app` as the peer `server`, spoken to in `protocol`.
pub(crate) fn outbound(app: SocketAddr, protocol: &str) -> Sidecar {
    Sidecar::start(&format!(
        "service: client\nadmin: '{{admin}}'\noutbound: {{ listen: '{{out}}' }}\npeers:\n  server: {{ static: ['{app}'], protocol: {protocol} }}\ntelemetry: {{ access-log: {{ log: all }} }}\n"
    ))
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("--- the sidecar said ---\n{}", self.log());
        }
    }
}

fn gather(from: impl Read + Send + 'static, into: Arc<Mutex<String>>) {
    thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            let mut text = into.lock().unwrap();
            text.push_str(&line);
            text.push('\n');
        }
    });
}

/// A caller's connection, raw.
pub(crate) struct Caller(pub(crate) TcpStream);

impl Caller {
    pub(crate) fn connect(to: SocketAddr) -> Self {
        let stream = TcpStream::connect(to).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self(stream)
    }

    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        self.0.write_all(bytes.as_ref()).unwrap();
        self
    }

    /// Reads one answer: head, then as many bytes as its content-length says, or all chunks.
    pub(crate) fn answer(&mut self) -> String {
        let head = self.until(b"\r\n\r\n");
        let lower = head.to_ascii_lowercase();
        let mut text = head.clone();
        if let Some(length) = lower.split("content-length: ").nth(1) {
            let length: usize = length.split("\r\n").next().unwrap().parse().unwrap();
            let mut body = vec![0; length];
            self.0.read_exact(&mut body).unwrap();
            text.push_str(&String::from_utf8_lossy(&body));
        } else if lower.contains("transfer-encoding: chunked") {
            while !text.ends_with("\r\n0\r\n\r\n") && !text.ends_with("\r\n\r\n0\r\n\r\n") {
                text.push_str(&self.until(b"\r\n"));
                if text.contains("\r\n0\r\n") && text.ends_with("\r\n\r\n") {
                    break;
                }
            }
        }
        text
    }

    /// Reads until these bytes have come.
    pub(crate) fn until(&mut self, end: &[u8]) -> String {
        let mut seen = Vec::new();
        let mut byte = [0];
        while !seen.ends_with(end) {
            match self.0.read(&mut byte) {
                Ok(1) => seen.push(byte[0]),
                other => panic!("{other:?} after {:?}", String::from_utf8_lossy(&seen)),
            }
        }
        String::from_utf8_lossy(&seen).into_owned()
    }

    /// Reads to the end of the stream.
    pub(crate) fn rest(&mut self) -> String {
        let mut all = Vec::new();
        if let Err(error) = self.0.read_to_end(&mut all) {
            assert!(error.kind() == std::io::ErrorKind::ConnectionReset, "{error}");
        }
        String::from_utf8_lossy(&all).into_owned()
    }
}

/// One request with the authority as Host, if it gets an answer.
pub(crate) fn try_get(from: SocketAddr, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(from).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: {from}\r\nconnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

/// One request with the authority as Host.
pub(crate) fn get(from: SocketAddr, path: &str) -> String {
    try_get(from, path).expect("an answer")
}

/// An app that runs `serve` for each connection in a thread of its own.
pub(crate) struct App {
    pub(crate) addr: SocketAddr,
    /// Everything that its connections have reported.
    pub(crate) seen: mpsc::Receiver<String>,
}

impl App {
    pub(crate) fn start(serve: impl Fn(TcpStream, mpsc::Sender<String>) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let (report, seen) = mpsc::channel();
        let serve = Arc::new(serve);
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (serve, report) = (serve.clone(), report.clone());
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                thread::spawn(move || serve(stream, report));
            }
        });
        Self { addr, seen }
    }

    /// An HTTP/1 app that reports each request and answers every one with `answer`, keeping connections alive.
    pub(crate) fn http(answer: &'static str) -> Self {
        Self::script([answer])
    }

    /// An HTTP/1 app that reports each request and gives the next of these answers, the last one over and over; an
    /// empty one closes the connection.
    pub(crate) fn script(answers: impl Into<Vec<&'static str>>) -> Self {
        let (answers, next) = (answers.into(), AtomicUsize::new(0));
        Self::start(move |stream, report| {
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let mut writer = stream;
            while let Some(head) = read_head(&mut reader) {
                let length = field(&head, "content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
                let mut body = vec![0; length];
                if reader.read_exact(&mut body).is_err() {
                    return;
                }
                let _ = report.send(head + &String::from_utf8_lossy(&body));
                let answer = answers[next.fetch_add(1, Ordering::Relaxed).min(answers.len() - 1)];
                if answer.is_empty() || writer.write_all(answer.as_bytes()).is_err() {
                    return;
                }
            }
        })
    }

    /// The next thing that a connection reports.
    pub(crate) fn next(&self) -> String {
        self.seen.recv_timeout(PATIENCE).expect("the app was called")
    }

    /// Fails if the app was called.
    pub(crate) fn unseen(&self) {
        assert_eq!(self.seen.try_recv().ok(), None);
    }
}

/// Reads one head; `None` at the end of the stream.
pub(crate) fn read_head(reader: &mut impl BufRead) -> Option<String> {
    let mut head = String::new();
    loop {
        let before = head.len();
        reader.read_line(&mut head).ok().filter(|n| *n > 0)?;
        if &head[before..] == "\r\n" {
            return Some(head);
        }
    }
}

/// A field of a head, by its name in lower case.
pub(crate) fn field(head: &str, name: &str) -> Option<String> {
    head.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
    })
}
