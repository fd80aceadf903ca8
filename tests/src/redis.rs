//! Real Redis servers for tests: one process each, on a free port of 127.0.0.1, in a directory of its own.
//!
//! A server is killed, by pid, when its value is dropped. Nothing here skips: without `redis-server` the test fails
//! and says what to install (`make test` installs it).

use std::{
    fs,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use tokio::time::Instant;

/// A running `redis-server` (or `redis-sentinel`), with the configuration that it can be restarted with.
#[derive(Debug)]
pub struct RedisServer {
    process: Option<Child>,
    port: u16,
    args: Vec<String>,
    dir: tempfile::TempDir,
}

impl RedisServer {
    /// A plain server without persistence.
    #[must_use]
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// A server with further arguments (`--requirepass`, `secret`, ..).
    #[must_use]
    pub fn start_with(args: &[&str]) -> Self {
        Self::launch(free_port(), args)
    }

    /// A server on a port that was chosen before.
    #[must_use]
    pub fn launch(port: u16, args: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("a directory for the server");
        let args = args.iter().map(ToString::to_string).collect();
        let mut server = Self {
            process: None,
            port,
            args,
            dir,
        };
        server.run();
        server
    }

    /// `redis://127.0.0.1:port`
    #[must_use]
    pub fn url(&self) -> String {
        format!("redis://{}", self.addr())
    }

    /// `127.0.0.1:port`
    #[must_use]
    pub fn addr(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The port.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// The server's directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    /// Starts it again, on the same port and with the same arguments, empty.
    pub fn restart(&mut self) {
        self.kill();
        self.run();
    }

    /// `kill -STOP`: the sockets stay open, nothing answers.
    pub fn pause(&self) {
        self.signal("-STOP");
    }

    /// `kill -CONT`.
    pub fn unpause(&self) {
        self.signal("-CONT");
    }

    /// Sends one command of words without spaces and returns the raw RESP2 answer.
    ///
    /// # Panics
    ///
    /// When there is no answer.
    #[must_use]
    pub fn command(&self, words: &str) -> String {
        ask(&self.addr(), words).unwrap_or_else(|error| panic!("{words}: {error}"))
    }

    fn run(&mut self) {
        let log = fs::File::create(self.dir.path().join("log")).expect("a log file");
        let process = Command::new("redis-server")
            .args([
                "--port",
                &self.port.to_string(),
                "--bind",
                "127.0.0.1",
                "--save",
                "",
            ])
            .args(["--appendonly", "no", "--dir"])
            .arg(self.dir.path())
            .args(&self.args)
            .stdin(Stdio::null())
            .stdout(log)
            .spawn()
            .expect("redis-server is needed: install it, or run `make test`, which does");
        self.process = Some(process);
        self.wait_until_it_answers();
    }

    fn wait_until_it_answers(&self) {
        let start = Instant::now();
        while ask(&self.addr(), "PING").is_err() {
            assert!(
                start.elapsed() < Duration::from_secs(10),
                "redis-server did not come up: {}",
                self.log()
            );
            std::thread::yield_now();
        }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    fn signal(&self, signal: &str) {
        let pid = self
            .process
            .as_ref()
            .expect("the server runs")
            .id()
            .to_string();
        let done = Command::new("kill")
            .args([signal, &pid])
            .status()
            .expect("kill runs");
        assert!(done.success(), "kill {signal} {pid}");
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A port of 127.0.0.1 that was free a moment ago, low enough for a Cluster's bus port above it.
#[must_use]
pub fn free_port() -> u16 {
    loop {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        if port < 55_000 {
            return port;
        }
    }
}

fn ask(addr: &str, words: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(addr)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(format!("{words}\r\n").as_bytes())?;
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let read = stream.read(&mut buffer)?;
        answer.extend_from_slice(&buffer[..read]);
        if read < buffer.len() {
            return Ok(String::from_utf8_lossy(&answer).into_owned());
        }
    }
}
