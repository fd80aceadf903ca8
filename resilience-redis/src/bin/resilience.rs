//! `resilience`: looks at the shared circuit breakers of a Redis, and gives them orders.

use std::{fmt, process::ExitCode, time::Duration};

use clap::{Args, Parser, Subcommand};
use comfy_table::{ContentArrangement, Table, presets};
use resilience_core::breaker::fleet::{
    BreakerStore, FleetOrder, FleetState, OrderKind, StoreFailure, View,
};
use resilience_redis::{Redis, RedisBreakers, Status};
use serde_json::{Value, json};

/// Looks at the shared circuit breakers of a Redis, and gives them orders.
///
/// Exit codes: 0 done; 1 Redis gave no answer; 2 wrong usage; 3 no such breaker.
#[derive(Debug, Parser)]
#[command(name = "resilience", version)]
struct Cli {
    /// Where Redis is: redis://, rediss://, unix://, redis-sentinel://, redis-cluster://.
    #[arg(
        long,
        env = "REDIS_URL",
        global = true,
        default_value = "redis://127.0.0.1:6379"
    )]
    redis: String,
    /// What the keys start with.
    #[arg(long, global = true, default_value = "resilience")]
    prefix: String,
    /// Prints JSON instead of tables: one value, or one per line when watching.
    #[arg(long, global = true)]
    json: bool,
    /// How long to wait for Redis.
    #[arg(long, global = true, default_value = "2s", value_parser = humantime::parse_duration)]
    timeout: Duration,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Every breaker that reported within the last day.
    List,
    /// One breaker.
    Show {
        /// The breaker's name.
        name: String,
    },
    /// The list again and again, until interrupted.
    Watch {
        /// How often.
        #[arg(long, default_value = "1s", value_parser = humantime::parse_duration)]
        every: Duration,
        /// Ends by itself after so many looks.
        #[arg(long)]
        count: Option<u32>,
    },
    /// Every instance rejects every call.
    ForceOpen(OrderArgs),
    /// Every instance lets every call through, and goes on counting.
    ForceClosed(OrderArgs),
    /// Every instance lets every call through and counts nothing.
    Disable(OrderArgs),
    /// Every instance decides as usual and rejects nothing.
    MetricsOnly(OrderArgs),
    /// Lifts the order in force.
    Clear {
        /// The breaker's name.
        name: String,
        #[command(flatten)]
        who: Who,
    },
    /// Closes every instance, with empty windows and no order.
    Reset {
        /// The breaker's name.
        name: String,
        /// Why; every instance logs it.
        #[arg(long)]
        reason: String,
        #[command(flatten)]
        who: Who,
    },
}

#[derive(Debug, Args)]
struct OrderArgs {
    /// The breaker's name.
    name: String,
    /// Why; every instance logs it.
    #[arg(long)]
    reason: String,
    /// Ends the order by itself after so long (90s, 10m, 2h). Without it, it stands until it is cleared.
    #[arg(long, value_parser = humantime::parse_duration)]
    expires: Option<Duration>,
    #[command(flatten)]
    who: Who,
}

#[derive(Debug, Args)]
struct Who {
    /// Who gives the order.
    #[arg(long, env = "USER", default_value = "operator")]
    by: String,
}

/// What ends the program early.
#[derive(Debug)]
enum Failure {
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

impl From<StoreFailure> for Failure {
    fn from(failure: StoreFailure) -> Self {
        Self::NoAnswer(failure.to_string())
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(&cli).await {
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
    let redis = Redis::builder(&cli.redis)
        .prefix(&cli.prefix)
        .budget(cli.timeout)
        .connect_timeout(cli.timeout)
        .connect()
        .map_err(|error| Failure::Usage(error.to_string()))?;
    redis
        .ready(cli.timeout)
        .await
        .map_err(|status| Failure::NoAnswer(explain(&status)))?;
    let breakers = redis.breakers();
    match &cli.command {
        Command::List => list(cli, &breakers).await,
        Command::Show { name } => {
            known(&breakers, name).await?;
            let view = breakers.view(name).await?;
            print_one(cli, name, &view);
            Ok(())
        }
        Command::Watch { every, count } => watch(cli, &breakers, *every, *count).await,
        Command::ForceOpen(args) => order(cli, &breakers, OrderKind::ForceOpen, args).await,
        Command::ForceClosed(args) => order(cli, &breakers, OrderKind::ForceClosed, args).await,
        Command::Disable(args) => order(cli, &breakers, OrderKind::Disable, args).await,
        Command::MetricsOnly(args) => order(cli, &breakers, OrderKind::MetricsOnly, args).await,
        Command::Clear { name, who } => {
            known(&breakers, name).await?;
            let view = breakers.order(name, None, &who.by).await?;
            print_one(cli, name, &view);
            Ok(())
        }
        Command::Reset { name, reason, who } => {
            known(&breakers, name).await?;
            let view = breakers.reset(name, &who.by, reason).await?;
            print_one(cli, name, &view);
            Ok(())
        }
    }
}

fn explain(status: &Status) -> String {
    match status {
        Status::Down(reason) => reason.clone(),
        _ => "not connected in time".to_owned(),
    }
}

/// A typing error must not make a record that nobody reads.
async fn known(breakers: &RedisBreakers, name: &str) -> Result<(), Failure> {
    let known = names(breakers).await?;
    if known.iter().any(|known| known == name) {
        return Ok(());
    }
    Err(Failure::NoSuchBreaker {
        name: name.to_owned(),
        known,
    })
}

async fn names(breakers: &RedisBreakers) -> Result<Vec<String>, Failure> {
    breakers
        .names()
        .await
        .map_err(|error| Failure::NoAnswer(error.to_string()))
}

async fn order(
    cli: &Cli,
    breakers: &RedisBreakers,
    kind: OrderKind,
    args: &OrderArgs,
) -> Result<(), Failure> {
    known(breakers, &args.name).await?;
    let expires_ms = args
        .expires
        .map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
    if expires_ms == Some(0) {
        return Err(Failure::Usage(
            "`--expires` is 0: must be at least 1 ms".to_owned(),
        ));
    }
    let (reason, by) = (args.reason.clone(), args.who.by.clone());
    let order = FleetOrder {
        kind,
        reason,
        by,
        expires_ms,
    };
    let view = breakers
        .order(&args.name, Some(order), &args.who.by)
        .await?;
    print_one(cli, &args.name, &view);
    Ok(())
}

async fn list(cli: &Cli, breakers: &RedisBreakers) -> Result<(), Failure> {
    let mut views = Vec::new();
    for name in names(breakers).await? {
        let view = breakers.view(&name).await?;
        views.push((name, view));
    }
    if cli.json {
        let all: Vec<Value> = views
            .iter()
            .map(|(name, view)| as_json(name, view))
            .collect();
        println!("{}", Value::Array(all));
    } else if views.is_empty() {
        println!("no breaker has reported within the last day");
    } else {
        println!("{}", table(&views));
    }
    Ok(())
}

async fn watch(
    cli: &Cli,
    breakers: &RedisBreakers,
    every: Duration,
    count: Option<u32>,
) -> Result<(), Failure> {
    let mut looks = 0;
    loop {
        list(cli, breakers).await?;
        looks += 1;
        if count.is_some_and(|count| looks >= count) {
            return Ok(());
        }
        tokio::select! {
            _ = tokio::signal::ctrl_c() => return Ok(()),
            () = tokio::time::sleep(every) => {}
        }
    }
}

fn print_one(cli: &Cli, name: &str, view: &View) {
    if cli.json {
        println!("{}", as_json(name, view));
    } else {
        println!("{}", table(&[(name.to_owned(), view.clone())]));
    }
}

fn table(views: &[(String, View)]) -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::UTF8_HORIZONTAL_ONLY)
        .set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header([
        "breaker",
        "state",
        "for",
        "left",
        "failed",
        "instances",
        "probes",
        "order",
        "by",
        "why",
        "epoch",
    ]);
    for (name, view) in views {
        let window = &view.window;
        table.add_row([
            name.clone(),
            state(view.state),
            time(view.age_ms),
            if view.remaining_ms == 0 {
                "-".into()
            } else {
                time(view.remaining_ms)
            },
            format!("{} of {}", window.failure, window.total()),
            format!("{} of {} failing", view.failing, view.live),
            format!(
                "{} out, {} of {} failed",
                view.leased,
                view.probes.failure,
                view.probes.total()
            ),
            view.order
                .as_ref()
                .map_or_else(|| "-".into(), order_in_words),
            view.by.clone(),
            view.cause.clone(),
            view.epoch.to_string(),
        ]);
    }
    table
}

fn order_in_words(order: &FleetOrder) -> String {
    let ends = order
        .expires_ms
        .map_or_else(String::new, |left| format!(", {} left", time(left)));
    format!(
        "{} by {}: {}{ends}",
        kind(order.kind),
        order.by,
        order.reason
    )
}

fn time(ms: u64) -> String {
    let coarse = if ms >= 10_000 { ms / 1_000 * 1_000 } else { ms };
    humantime::format_duration(Duration::from_millis(coarse)).to_string()
}

fn state(state: FleetState) -> String {
    match state {
        FleetState::Closed => "closed".to_owned(),
        FleetState::Open => "open".to_owned(),
        FleetState::HalfOpen => "half_open".to_owned(),
        FleetState::RampUp(stage) => format!("ramp_up {stage}"),
    }
}

const fn kind(kind: OrderKind) -> &'static str {
    match kind {
        OrderKind::ForceOpen => "force_open",
        OrderKind::ForceClosed => "force_closed",
        OrderKind::Disable => "disable",
        OrderKind::MetricsOnly => "metrics_only",
    }
}

fn as_json(name: &str, view: &View) -> Value {
    let order = view.order.as_ref().map(|order| {
        json!({
            "kind": kind(order.kind),
            "reason": order.reason,
            "by": order.by,
            "expires_in_ms": order.expires_ms,
        })
    });
    let total = view.window.total();
    json!({
        "name": name,
        "state": match view.state { FleetState::RampUp(_) => "ramp_up".to_owned(), other => state(other) },
        "stage": match view.state { FleetState::RampUp(stage) => Some(stage), _ => None },
        "epoch": view.epoch,
        "since_ms": view.age_ms,
        "left_ms": view.remaining_ms,
        "trips": view.trips,
        "calls": total,
        "failures": view.window.failure,
        "slow": view.window.slow,
        "failure_rate": (total > 0).then(|| view.window.failure as f64 / total as f64),
        "live": view.live,
        "failing": view.failing,
        "probes_out": view.leased,
        "probes_succeeded": view.probes.success,
        "probes_failed": view.probes.failure,
        "order": order,
        "by": view.by,
        "cause": view.cause,
    })
}
