//! A real PgBouncer for a test, in transaction mode, in front of a PostgreSQL of the tests.
//!
//! It never skips: where the program is missing, [`PgBouncer::start`] panics with the command that installs it.

use std::{
    fs,
    net::TcpStream,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    child_process::ChildProcess,
    postgres::{Owner, Postgres, command, free_ports, give_to},
};

/// A PgBouncer of our own. Dropping it ends it and removes its files.
#[derive(Debug)]
pub struct PgBouncer {
    port: u16,
    process: Option<ChildProcess>,
}

const PATIENCE: Duration = Duration::from_secs(10);

impl PgBouncer {
    /// Starts one that keeps `connections` connections to the server, and gives them to another client after each
    /// transaction. It knows nothing of prepared statements, as before version 1.21.
    ///
    /// # Panics
    ///
    /// If PgBouncer is not installed (says how to install it), or does not start.
    #[must_use]
    pub fn start(server: &Postgres, connections: u32) -> Self {
        let program = program();
        let owner = Owner::if_we_are_root();
        for port in free_ports().take(5) {
            let directory = directory(owner);
            let settings = settings(
                server,
                port,
                connections,
                knows_prepared_statements(&program),
            );
            fs::write(directory.join("ini"), settings).expect("its settings");
            let args = [directory.join("ini").display().to_string()];
            let shell = command("/bin/sh", owner);
            let process = ChildProcess::start(shell, &directory, "TERM", &program, &args);
            if listens(port) {
                let process = Some(process);
                return Self { port, process };
            }
            let log = fs::read_to_string(directory.join("log")).unwrap_or_default();
            process.end();
            eprintln!("PgBouncer did not start on port {port}:\n{log}");
        }
        panic!("{} does not start", program.display());
    }

    /// For a client: `postgres://postgres@127.0.0.1:PORT/postgres`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("postgres://postgres@127.0.0.1:{}/postgres", self.port)
    }
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        if let Some(process) = self.process.take() {
            process.end();
        }
    }
}

fn program() -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders =
        std::env::split_paths(&path).chain(["/usr/sbin".into(), "/usr/local/sbin".into()]);
    let mut programs = folders.map(|folder| folder.join("pgbouncer"));
    programs.find(|program| program.is_file()).unwrap_or_else(|| {
        panic!("this test needs PgBouncer; install it with `tests/setup.sh`, or by hand: apt-get install pgbouncer")
    })
}

/// Since version 1.21.
fn knows_prepared_statements(program: &Path) -> bool {
    let output = Command::new(program)
        .arg("--version")
        .output()
        .expect("it runs");
    let output = String::from_utf8_lossy(&output.stdout);
    let version = output.lines().next().unwrap_or_default();
    let mut numbers = version
        .split([' ', '.'])
        .filter_map(|word| word.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(1), Some(21))
}

fn directory(owner: Option<Owner>) -> PathBuf {
    let directory = tempfile::Builder::new()
        .prefix("resilience-pgbouncer-")
        .tempdir();
    let directory = directory.expect("a temporary directory").keep();
    give_to(owner, &directory);
    directory
}

fn settings(server: &Postgres, port: u16, connections: u32, prepared: bool) -> String {
    let upstream = server.address();
    let prepared = if prepared {
        "max_prepared_statements = 0\n"
    } else {
        ""
    };
    format!(
        "[databases]\n\
         postgres = host={} port={} dbname=postgres user=postgres\n\
         [pgbouncer]\n\
         listen_addr = 127.0.0.1\n\
         listen_port = {port}\n\
         unix_socket_dir =\n\
         auth_type = any\n\
         pool_mode = transaction\n\
         default_pool_size = {connections}\n\
         ignore_startup_parameters = extra_float_digits,options\n\
         {prepared}",
        upstream.ip(),
        upstream.port(),
    )
}

fn listens(port: u16) -> bool {
    let until = Instant::now() + PATIENCE;
    while Instant::now() < until {
        if TcpStream::connect(("127.0.0.1", port)).is_ok() {
            return true;
        }
        thread::sleep(Duration::from_millis(5));
    }
    false
}
