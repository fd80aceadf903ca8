//! The storm: the same load through a plain HTTP client and through guarded ones, while the upstream misbehaves.
//!
//! `cargo run` runs it, `cargo run -- --help` explains the flags. The pieces: `script` (what happens when),
//! `upstream` (misbehaves accordingly), `load` (who calls when), `clients` (those that are compared), `payments`
//! (which are to take effect once), `tenants` (a greedy one at the door of a service), `readers` (a crowd at rows that are cached), `events` (orders between services
//! that are killed), `stats` and `timeline` (what is counted), `view` (while it runs), `report` (at the
//! end), and `run`, which puts them together.

mod clients;
mod events;
mod flags;
mod load;
mod payments;
mod readers;
mod report;
mod run;
mod script;
mod stats;
mod tenants;
mod timeline;
mod upstream;
mod view;

use std::{
    error::Error,
    io::{self, Write},
    process::ExitCode,
};

use crate::{clients::Target, flags::Flags, report::Report};

/// The status of a run that was cut short by ctrl-c, as shells have it.
const INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    let flags = Flags::read();
    match run_and_print(&flags) {
        Ok(report) if report.interrupted => INTERRUPTED.into(),
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run_and_print(flags: &Flags) -> Result<Report, Box<dyn Error>> {
    // Hanging calls hold two sockets each, both ends being here. What the system does not grant is done without.
    let _ = rlimit::increase_nofile_limit(8192);
    let runtime = tokio::runtime::Runtime::new()?;
    let report = runtime.block_on(async {
        match &flags.url {
            Some(url) => run::call_url(flags, Target::Url(url.clone())).await,
            None => run::storm(flags).await,
        }
    })?;
    // What a detached worker of an upstream still does is of no interest.
    runtime.shutdown_background();
    let text = if flags.json {
        report.json()? + "\n"
    } else {
        report.text()
    };
    match io::stdout().write_all(text.as_bytes()) {
        // The reader has closed the pipe.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
        written => written?,
    }
    Ok(report)
}
