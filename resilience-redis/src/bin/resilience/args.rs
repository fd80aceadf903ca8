//! The grammar: `resilience NOUN VERB`.

use std::{path::PathBuf, time::Duration};

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use resilience_core::stream::Position;

/// Inspect and control what services share over Redis.
#[derive(Debug, Parser)]
#[command(
    name = "resilience",
    version,
    arg_required_else_help = true,
    subcommand_value_name = "COMMAND",
    after_help = "\
Examples:
  resilience breaker list
  resilience breaker force-open payments --reason \"provider maintenance\" --expires 30m
  resilience --json breaker get payments
  resilience breaker log payments
  resilience stream peek orders --dead billing
  resilience stream redrive orders billing --all

Exit status:
  0  success
  1  no answer from Redis, or a refusal
  2  wrong usage
  3  no such breaker, stream, group or dead letter"
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) noun: Noun,
}

/// Options of every command.
#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// Redis to connect to: redis://, rediss://, unix://, redis-sentinel:// or redis-cluster://
    #[arg(
        long,
        env = "REDIS_URL",
        // It may hold a password.
        hide_env_values = true,
        global = true,
        value_name = "URL",
        default_value = "redis://127.0.0.1:6379"
    )]
    pub(crate) redis: String,
    /// Certificates of authorities to trust instead of the system's, in PEM (rediss://)
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) cacert: Option<PathBuf>,
    /// Certificate of this client, in PEM (rediss://)
    #[arg(long, global = true, value_name = "FILE", requires = "client_key")]
    pub(crate) cert: Option<PathBuf>,
    /// Private key of this client, in PEM (rediss://)
    #[arg(long = "key", global = true, value_name = "FILE", requires = "cert")]
    pub(crate) client_key: Option<PathBuf>,
    /// Prefix of the keys; with `RedisBuilder::service(NAME)` it is resilience/NAME
    #[arg(long, global = true, default_value = "resilience")]
    pub(crate) prefix: String,
    /// Print JSON: one value, or one per line when watching
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Maximum time to wait for Redis
    #[arg(
        long,
        global = true,
        value_name = "DURATION",
        default_value = "2s",
        value_parser = humantime::parse_duration
    )]
    pub(crate) timeout: Duration,
}

impl Global {
    /// What is printed in place of an empty list.
    pub(crate) fn nothing(&self, what: &str) -> String {
        format!(
            "no {what} has reported within the last day under the prefix `{}` (--prefix)",
            self.prefix
        )
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Noun {
    /// List, watch and override circuit breakers that a fleet shares
    #[command(subcommand, arg_required_else_help = true)]
    Breaker(Breaker),
    /// List bulkheads that a fleet shares
    #[command(subcommand, arg_required_else_help = true)]
    Bulkhead(List),
    /// List rate limits that a fleet shares
    #[command(subcommand, arg_required_else_help = true)]
    Limit(List),
    /// List handles of idempotency keys
    #[command(subcommand, arg_required_else_help = true)]
    Idempotency(List),
    /// List, inspect and invalidate caches that a fleet shares
    #[command(subcommand, arg_required_else_help = true)]
    Cache(CacheCommand),
    /// List, inspect, pause and repair streams of events
    #[command(subcommand, arg_required_else_help = true)]
    Stream(StreamCommand),
    /// The spelling without a noun, accepted until 1.0; hidden by [`parse`].
    #[command(flatten)]
    Bare(Breaker),
}

#[derive(Clone, Copy, Debug, Subcommand)]
pub(crate) enum List {
    /// List the names that were in use within the last day
    List,
}

#[derive(Debug, Subcommand)]
pub(crate) enum CacheCommand {
    /// List the names that were in use within the last day
    List,
    /// Show what each instance says: requests by what answered them, loads, values held, whether it is told of changes
    Stats {
        /// Name of the cache
        name: String,
    },
    /// Show the most requested keys, by the estimates of the instances
    Hot {
        /// Name of the cache
        name: String,
    },
    /// Show what the store holds under a key: size, age, times and tags; not the value
    Get {
        /// Name of the cache
        name: String,
        /// Key, as the application displays it
        key: String,
    },
    /// Drop the value of a key, on every instance
    Invalidate {
        /// Name of the cache
        name: String,
        /// Key, as the application displays it
        key: String,
    },
    /// Drop all values that have a tag, on every instance
    InvalidateTag {
        /// Name of the cache
        name: String,
        /// Tag
        tag: String,
    },
    /// Drop all values, on every instance
    Clear {
        /// Name of the cache
        name: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum StreamCommand {
    /// List the streams that were published to within the last day: length, and what their groups have not done yet
    List,
    /// Show the groups of a stream, with their consumers
    Groups {
        /// Name of the stream
        stream: String,
    },
    /// Show messages of a stream, or dead letters of a group with reason and failures; changes nothing
    Peek {
        /// Name of the stream
        stream: String,
        /// Show the dead letters of this group instead
        #[arg(long, value_name = "GROUP")]
        dead: Option<String>,
        /// Print payloads too: they may be confidential
        #[arg(long)]
        body: bool,
        #[command(flatten)]
        page: Page,
    },
    /// Show the messages that a group was given and has not settled: held by a consumer, or waiting for another delivery
    Pending {
        #[command(flatten)]
        group: GroupArgs,
        #[command(flatten)]
        page: Page,
    },
    /// Deliver dead letters to their group again, as if for the first time
    Redrive(DeadArgs),
    /// Remove dead letters, for good
    Drop(DeadArgs),
    /// Deliver no messages to a group, on every instance; handlers that run go on
    Pause {
        #[command(flatten)]
        group: GroupArgs,
        /// Reason, for operators
        #[arg(long)]
        reason: String,
        /// Resume after this time (90s, 10m, 2h) [default: paused until resumed]
        #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
        expires: Option<Duration>,
        #[command(flatten)]
        author: Author,
    },
    /// Deliver messages to a group again
    Resume(GroupArgs),
}

#[derive(Debug, Args)]
pub(crate) struct GroupArgs {
    /// Name of the stream
    pub(crate) stream: String,
    /// Name of the group
    pub(crate) group: String,
}

#[derive(Debug, Args)]
pub(crate) struct Page {
    /// Begin at this position
    #[arg(long, value_name = "POSITION", default_value_t = Position::START)]
    pub(crate) from: Position,
    /// Maximum number of rows
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub(crate) count: u16,
}

#[derive(Debug, Args)]
pub(crate) struct DeadArgs {
    #[command(flatten)]
    pub(crate) group: GroupArgs,
    /// Positions of dead letters, as `peek --dead` shows them
    #[arg(value_name = "POSITION", required_unless_present = "all")]
    pub(crate) positions: Vec<Position>,
    /// All that are there now
    #[arg(long, conflicts_with = "positions")]
    pub(crate) all: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Breaker {
    /// List the breakers that have reported within the last day
    List,
    /// Show one breaker, with its instances by name
    #[command(alias = "show")]
    Get {
        /// Name of the breaker
        name: String,
    },
    /// Show the last changes and overrides of one breaker, with author and reason, the newest first
    Log {
        /// Name of the breaker
        name: String,
        /// Maximum number of changes
        #[arg(long, value_name = "N", default_value_t = 20)]
        count: usize,
    },
    /// List the breakers repeatedly, until interrupted
    Watch {
        /// Time between two lists
        #[arg(
            long,
            value_name = "DURATION",
            default_value = "1s",
            value_parser = humantime::parse_duration
        )]
        every: Duration,
        /// Exit after this many lists
        #[arg(long, value_name = "N")]
        count: Option<u32>,
    },
    /// Reject every call, on every instance
    ForceOpen(OverrideArgs),
    /// Let every call through and keep counting, on every instance
    ForceClosed(OverrideArgs),
    /// Let every call through and count nothing, on every instance
    Disable(OverrideArgs),
    /// Decide as usual and reject nothing, on every instance
    MetricsOnly(OverrideArgs),
    /// End the override in force
    Clear {
        /// Name of the breaker
        name: String,
        #[command(flatten)]
        author: Author,
    },
    /// Close every instance, with empty windows and without an override
    Reset {
        /// Name of the breaker
        name: String,
        /// Reason, for the log of every instance
        #[arg(long)]
        reason: String,
        #[command(flatten)]
        author: Author,
    },
}

#[derive(Debug, Args)]
pub(crate) struct OverrideArgs {
    /// Name of the breaker
    pub(crate) name: String,
    /// Reason, for the log of every instance
    #[arg(long)]
    pub(crate) reason: String,
    /// End the override after this time (90s, 10m, 2h) [default: in force until cleared]
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub(crate) expires: Option<Duration>,
    #[command(flatten)]
    pub(crate) author: Author,
}

#[derive(Debug, Args)]
pub(crate) struct Author {
    /// Author of the command, for the log of every instance
    #[arg(long, env = "USER", value_name = "WHO", default_value = "operator")]
    pub(crate) by: String,
}

/// Parses the command line, or prints help or an error and exits.
pub(crate) fn parse() -> Cli {
    let names: Vec<_> = Breaker::augment_subcommands(clap::Command::new(""))
        .get_subcommands()
        .map(|verb| verb.get_name().to_owned())
        .collect();
    let hide =
        |command: clap::Command, name: String| command.mut_subcommand(name, |verb| verb.hide(true));
    let command = names.into_iter().fold(Cli::command(), hide);
    Cli::from_arg_matches(&command.get_matches()).unwrap_or_else(|error| error.exit())
}
