//! `resilience`: inspects and controls what services share over Redis.

mod args;
mod breaker;
mod cache;
mod list;
mod log;
mod members;
mod output;
mod stream;

use std::{fmt, path::Path, process::ExitCode};

use resilience_core::fleet::StoreError;
use resilience_redis::{CommandError, Redis, Status};

use args::{Cli, Global, List, Noun};

/// An error that ends the program, each with its exit status.
#[derive(Debug)]
pub(crate) enum Failure {
    Usage(String),
    /// Redis does not answer, or refuses.
    Redis(String),
    NoSuch {
        /// What has no such name: `breaker`, `stream`.
        what: &'static str,
        name: String,
        known: Vec<String>,
        /// What is said when there is none at all.
        nothing: String,
    },
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage(error) | Self::Redis(error) => f.write_str(error),
            Self::NoSuch {
                what,
                name,
                known,
                nothing,
            } if known.is_empty() => write!(f, "no {what} `{name}`: {nothing}"),
            Self::NoSuch {
                what, name, known, ..
            } => write!(f, "no {what} `{name}`; there are: {}", known.join(", ")),
        }
    }
}

impl From<StoreError> for Failure {
    fn from(failure: StoreError) -> Self {
        Self::Redis(failure.to_string())
    }
}

impl From<CommandError> for Failure {
    fn from(failure: CommandError) -> Self {
        Self::Redis(failure.to_string())
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run(&args::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("resilience: {failure}");
            ExitCode::from(match failure {
                Failure::Redis(_) => 1,
                Failure::Usage(_) => 2,
                Failure::NoSuch { .. } => 3,
            })
        }
    }
}

async fn run(cli: &Cli) -> Result<(), Failure> {
    let global = &cli.global;
    let redis = connect(global).await?;
    match &cli.noun {
        Noun::Breaker(command) | Noun::Bare(command) => {
            breaker::run(&redis.breakers(), command, global).await
        }
        Noun::Bulkhead(List::List) => list::bulkheads(&redis.bulkheads(), global).await,
        Noun::Limit(List::List) => {
            let names = redis.limits().names().await;
            list::names("limit", &names?, global)
        }
        Noun::Idempotency(List::List) => {
            let names = redis.idempotency().names().await;
            list::names("idempotency", &names?, global)
        }
        Noun::Cache(command) => cache::run(&redis.cache(), command, global).await,
        Noun::Stream(command) => stream::run(&redis.streams(), command, global).await,
    }
}

async fn connect(global: &Global) -> Result<Redis, Failure> {
    let mut builder = Redis::builder(&global.redis)
        .prefix(&global.prefix)
        .budget(global.timeout)
        .connect_timeout(global.timeout);
    if let Some(roots) = &global.cacert {
        builder = builder.root_certificates(read(roots)?);
    }
    if let (Some(certificate), Some(key)) = (&global.cert, &global.client_key) {
        builder = builder.client_certificate(read(certificate)?, read(key)?);
    }
    // Fails if there is one already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let redis = builder
        .connect()
        .map_err(|error| Failure::Usage(error.to_string()))?;
    let ready = redis.ready(global.timeout).await;
    ready.map_err(|status| Failure::Redis(explain(&status)))?;
    Ok(redis)
}

fn read(file: &Path) -> Result<Vec<u8>, Failure> {
    std::fs::read(file).map_err(|error| Failure::Usage(format!("{}: {error}", file.display())))
}

fn explain(status: &Status) -> String {
    match status {
        Status::Down(reason) => format!("cannot connect to Redis: {reason}"),
        _ => "no connection to Redis in time (--timeout)".to_owned(),
    }
}
