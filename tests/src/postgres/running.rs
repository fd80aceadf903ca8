//! The processes of a server that runs.

use std::{fs, net::TcpListener, path::Path, process::Command, thread, time::Duration};

use rustix::process::{Pid, Signal};
use tokio::time::Instant;

use super::programs::{Owner, command};
use crate::child_process::{ChildProcess, signal};

/// How long a server may take to start, after a crash as well.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub(super) struct Running {
    keeper: ChildProcess,
}

impl Running {
    /// Starts the server and waits until it takes connections. The error is what it wrote instead.
    pub(super) fn start(
        programs: &Path,
        directory: &Path,
        owner: Option<Owner>,
        port: u16,
    ) -> Result<Self, String> {
        let data = directory.join("data").display().to_string();
        let port = port.to_string();
        let args = ["-D", &data, "-F", "-h", "127.0.0.1", "-p", &port];
        let settings = SETTINGS.iter().flat_map(|setting| ["-c", setting]);
        let args: Vec<_> = args
            .into_iter()
            .chain(settings)
            .map(ToString::to_string)
            .collect();
        // That of a server that was killed says nothing of this one.
        let _ = fs::remove_file(directory.join("log"));
        let (shell, program) = (command("/bin/sh", owner), programs.join("postgres"));
        let keeper = ChildProcess::start(shell, directory, "QUIT", &program, &args);
        let running = Self { keeper };
        if running.becomes_ready(directory) {
            return Ok(running);
        }
        let log = fs::read_to_string(directory.join("log")).unwrap_or_default();
        running.keeper.end_but_keep_the_data();
        Err(log)
    }

    /// All processes of the server, the main one first.
    pub(super) fn processes(&self) -> impl Iterator<Item = Pid> {
        [self.server()].into_iter().chain(children(self.server()))
    }

    /// The main process first, so that it starts no further ones.
    pub(super) fn freeze(&self) {
        signal(self.server(), Signal::STOP);
        for child in children(self.server()) {
            signal(child, Signal::STOP);
        }
    }

    /// The main process last, for the same reason.
    pub(super) fn thaw(&self) {
        for child in children(self.server()) {
            signal(child, Signal::CONT);
        }
        signal(self.server(), Signal::CONT);
    }

    const fn server(&self) -> Pid {
        self.keeper.server()
    }

    pub(super) fn kill(self) {
        // Stopped first, so that none is missed.
        self.freeze();
        for process in self.processes().collect::<Vec<_>>() {
            signal(process, Signal::KILL);
        }
        self.keeper.end_but_keep_the_data();
    }

    /// Ends the server and removes its directory.
    pub(super) fn end(self) {
        self.thaw();
        self.keeper.end();
    }

    /// The server writes its state in the eighth line of a file, which it removes when it gives up.
    fn becomes_ready(&self, directory: &Path) -> bool {
        let state =
            || fs::read_to_string(directory.join("data/postmaster.pid")).unwrap_or_default();
        let is_ours =
            |state: &str| state.lines().next() == Some(&self.server().as_raw_nonzero().to_string());
        let is_ready = |state: &str| {
            state
                .lines()
                .nth(7)
                .is_some_and(|word| word.trim() == "ready")
        };
        let gave_up = || {
            let log = fs::read_to_string(directory.join("log")).unwrap_or_default();
            log.contains("FATAL") && !is_ours(&state())
        };
        let until = Instant::now() + PATIENCE;
        while Instant::now() < until && !gave_up() {
            let state = state();
            if is_ours(&state) && is_ready(&state) {
                return true;
            }
            thread::sleep(Duration::from_millis(5));
        }
        false
    }
}

/// Small, quick to start, and no socket but the one port. Commits do reach the log file: `kill` must not lose them.
const SETTINGS: [&str; 6] = [
    "unix_socket_directories=",
    "max_connections=50",
    "shared_buffers=16MB",
    "full_page_writes=off",
    "autovacuum=off",
    "deadlock_timeout=50ms",
];

/// Ports that are free at this moment, below those that systems hand out for outgoing connections: a server that is
/// down for a while must find its port again.
pub(crate) fn free_ports() -> impl Iterator<Item = u16> {
    std::iter::repeat_with(|| fastrand::u16(12_000..32_000))
        .filter(|&port| TcpListener::bind(("127.0.0.1", port)).is_ok())
}

/// The processes that `parent` started. Each connection has one.
fn children(parent: Pid) -> Vec<Pid> {
    let all = from_proc().unwrap_or_else(from_ps);
    let parent = parent.as_raw_nonzero().get();
    all.into_iter()
        .filter(|&(_, its_parent)| its_parent == parent)
        .filter_map(|(process, _)| Pid::from_raw(process))
        .collect()
}

/// Every process and its parent, as Linux tells.
fn from_proc() -> Option<Vec<(i32, i32)>> {
    fs::metadata("/proc/self/stat").ok()?;
    let processes = fs::read_dir("/proc").ok()?.flatten().filter_map(|entry| {
        let process = entry.file_name().to_str()?.parse().ok()?;
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        // `pid (name) state parent ..`; the name may hold anything, brackets too.
        let parent = stat
            .rsplit_once(')')?
            .1
            .split_whitespace()
            .nth(1)?
            .parse()
            .ok()?;
        Some((process, parent))
    });
    Some(processes.collect())
}

/// The same where there is no /proc.
fn from_ps() -> Vec<(i32, i32)> {
    let output = Command::new("ps")
        .args(["-A", "-o", "pid=,ppid="])
        .output()
        .expect("ps runs");
    let text = String::from_utf8_lossy(&output.stdout);
    let pair = |line: &str| {
        let mut fields = line.split_whitespace().map(str::parse);
        Some((fields.next()?.ok()?, fields.next()?.ok()?))
    };
    text.lines().filter_map(pair).collect()
}
