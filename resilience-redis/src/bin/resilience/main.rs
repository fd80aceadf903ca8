//! `resilience`: inspects and controls what services share over Redis.

mod args;
mod breaker;
mod cache;
mod list;
mod log;
mod members;
mod output;

use std::{fmt, process::ExitCode};

use resilience_core::fleet::StoreError;
use resilience_redis::{CommandError, Redis, Status};

use args::{Cli, List, Noun};

/// An error that ends the program, each with its exit status.
#[derive(Debug)]
pub(crate) enum Failure {
    Usage(String),
    NoAnswer(String),
    NoSuchBreaker { name: String, known: Vec<String> },
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage(error) => write!(f, "{error}"),
            Self::NoAnswer(error) => write!(f, "no answer from Redis: {error}"),
            Self::NoSuchBreaker { name, known } if known.is_empty() => {
                write!(
                    f,
                    "no breaker `{name}`: no breaker has reported within the last day"
                )
            }
            Self::NoSuchBreaker { name, known } => {
                write!(f, "no breaker `{name}`; there are: {}", known.join(", "))
            }
        }
    }
}

impl From<StoreError> for Failure {
    fn from(failure: StoreError) -> Self {
        Self::NoAnswer(failure.to_string())
    }
}

impl From<CommandError> for Failure {
    fn from(failure: CommandError) -> Self {
        Self::NoAnswer(failure.to_string())
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run(&args::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("resilience: {failure}");
            ExitCode::from(match failure {
                Failure::NoAnswer(_) => 1,
                Failure::Usage(_) => 2,
                Failure::NoSuchBreaker { .. } => 3,
            })
        }
    }
}

async fn run(cli: &Cli) -> Result<(), Failure> {
    let global = &cli.global;
    let redis = Redis::builder(&global.redis)
        .prefix(&global.prefix)
        .budget(global.timeout)
        .connect_timeout(global.timeout)
        .connect()
        .map_err(|error| Failure::Usage(error.to_string()))?;
    redis
        .ready(global.timeout)
        .await
        .map_err(|status| Failure::NoAnswer(explain(&status)))?;
    match &cli.noun {
        Noun::Breaker(command) | Noun::Bare(command) => {
            breaker::run(&redis.breakers(), command, global.json).await
        }
        Noun::Bulkhead(List::List) => list::bulkheads(&redis.bulkheads(), global.json).await,
        Noun::Limit(List::List) => {
            let names = redis.limits().names().await;
            list::names("limit", &names?, global.json)
        }
        Noun::Idempotency(List::List) => {
            let names = redis.idempotency().names().await;
            list::names("idempotency", &names?, global.json)
        }
        Noun::Cache(command) => cache::run(&redis.cache(), command, global.json).await,
    }
}

fn explain(status: &Status) -> String {
    match status {
        Status::Down(reason) => reason.clone(),
        _ => "not connected in time".to_owned(),
    }
}
