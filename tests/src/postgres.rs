//! A real PostgreSQL for a test: started on a free port of 127.0.0.1 with a fresh data directory, frozen, thawed,
//! killed and started again at will, and gone when the test is over, however it ends.
//!
//! It never skips: where the server's programs are missing, [`Postgres::start`] panics with the command that
//! installs them.
//!
//! Its processes end for sure: see `child_process.rs`.

mod programs;
mod running;

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

pub(crate) use programs::{Owner, command, give_to};
use programs::{find_programs, how_to_install, init};
use running::Running;
pub(crate) use running::free_ports;

/// A PostgreSQL server of our own. Dropping it ends the server and removes its data.
#[derive(Debug)]
pub struct Postgres {
    programs: PathBuf,
    directory: PathBuf,
    owner: Option<Owner>,
    port: u16,
    running: Mutex<Option<Running>>,
}

impl Postgres {
    /// Makes a data directory and starts a server on it: a second or so. The user is `postgres`, no password, and
    /// the database is `postgres`.
    ///
    /// # Panics
    ///
    /// If PostgreSQL's server programs are not installed (says how to install them), or do not start (says what they
    /// wrote).
    #[must_use]
    pub fn start() -> Self {
        let programs = find_programs().unwrap_or_else(|tried| panic!("{}", how_to_install(&tried)));
        let owner = Owner::if_we_are_root();
        let directory = tempfile::Builder::new()
            .prefix("resilience-pg-")
            .tempdir()
            .expect("a temporary directory");
        give_to(owner, directory.path());
        init(&programs, directory.path(), owner);
        // From here on the shell removes it.
        let directory = directory.keep();
        let mut failures = Vec::new();
        for port in free_ports().take(5) {
            match Running::start(&programs, &directory, owner, port) {
                Ok(running) => {
                    let running = Mutex::new(Some(running));
                    return Self {
                        programs,
                        directory,
                        owner,
                        port,
                        running,
                    };
                }
                // Another process took the port first: try the next.
                Err(log) => failures.push(log),
            }
        }
        let _ = fs::remove_dir_all(&directory);
        panic!(
            "PostgreSQL of {} did not start:\n{}",
            programs.display(),
            failures.join("\n---\n")
        );
    }

    /// For a client: `postgres://postgres@127.0.0.1:PORT/postgres`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("postgres://postgres@127.0.0.1:{}/postgres", self.port)
    }

    /// `127.0.0.1:PORT`
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// Stops every process of the server (`kill -STOP`): connections stay open, new ones are accepted by the kernel,
    /// no server answers.
    pub fn freeze(&self) {
        if let Some(running) = &*self.running() {
            running.freeze();
        }
    }

    /// Lets a frozen server go on.
    pub fn thaw(&self) {
        if let Some(running) = &*self.running() {
            running.thaw();
        }
    }

    /// Kills every process of the server (`kill -9`): connections are reset, new ones refused, until
    /// [`start_again`](Self::start_again).
    pub fn kill(&self) {
        if let Some(running) = self.running().take() {
            running.kill();
        }
    }

    /// Starts a killed server again on the same port and data; it recovers as after a crash.
    ///
    /// # Panics
    ///
    /// If it does not start.
    pub fn start_again(&self) {
        let mut running = self.running();
        if running.is_none() {
            let started = Running::start(&self.programs, &self.directory, self.owner, self.port);
            *running =
                Some(started.unwrap_or_else(|log| panic!("PostgreSQL did not come back:\n{log}")));
        }
    }

    /// Where the server has its data.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The ids of the server's processes; empty after [`kill`](Self::kill).
    #[must_use]
    pub fn processes(&self) -> Vec<i32> {
        self.running().as_ref().map_or_else(Vec::new, |running| {
            running
                .processes()
                .map(|pid| pid.as_raw_nonzero().get())
                .collect()
        })
    }

    fn running(&self) -> MutexGuard<'_, Option<Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if let Some(running) = self.running().take() {
            running.end();
        }
        // The shell has done it already, unless the server was down.
        let _ = fs::remove_dir_all(&self.directory);
    }
}
