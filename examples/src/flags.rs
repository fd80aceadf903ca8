//! The command line: every flag, its bounds, and what is wrong with a value that does not fit.

use std::time::Duration;

use clap::{CommandFactory, Parser, error::ErrorKind};
use reqwest::Url;
use resilience_redis::{ConnectError, Redis};

/// Calls a second to each built-in upstream, unless told otherwise.
const STORM_RATE: u32 = 36;
/// Calls a second to a user's own address, by default: a first try floods no server.
const URL_RATE: u32 = 10;
/// The most calls a second to a user's own address.
const URL_MAX_RATE: u32 = 100;
/// The most time a run against a user's own address may take.
const URL_MAX_SECONDS: u32 = 600;

/// Sends the same load through a plain HTTP client and guarded ones, while the upstream misbehaves.
///
/// Real HTTP over loopback: three identical upstreams follow the same script (healthy, slow, failing, hanging, down,
/// back). One is called by a plain reqwest client, one by several instances of a guarded client with breakers of their
/// own, one by several instances that share what their breakers know. Each client also makes payments, and the table tells how
/// often each took effect. Beside that, a greedy tenant calls a service of as
/// many instances, with rate limits of their own and with one that they share; and a crowd of readers asks for rows of a
/// database, kept in maps, in caches of the instances and in one of the fleet; and orders go from one service to another as
/// events, while processes of both are killed. At the end one table compares them. Nothing
/// outside of this machine is contacted (but for the Redis of --redis), and it ends by itself in under 30 seconds. With
/// --url, one guarded client alone calls an address of yours.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "storm",
    version,
    after_help = "Exit status: 0 after a run, 2 for flags that cannot work, \
    130 after ctrl-c (the table so far is printed), 1 if something else went wrong."
)]
pub(crate) struct Flags {
    /// Call this address with the guarded client instead of running the storm [http, or https if built with
    /// `--features rustls`].
    #[arg(long, value_parser = parse_url)]
    pub(crate) url: Option<Url>,

    /// How many GET requests to send to --url.
    #[arg(long, value_name = "COUNT", default_value_t = 100, requires = "url",
        allow_negative_numbers = true, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) requests: u32,

    /// Calls a second that each client is given, all its instances together, whether or not earlier ones have ended
    /// [default: 36, or 10 with --url; at most 100 with --url].
    #[arg(long, value_name = "PER_SECOND", allow_negative_numbers = true, value_parser = clap::value_parser!(u32).range(1..=300))]
    rate: Option<u32>,

    /// How many seconds the script of the storm takes; each phase keeps its share.
    #[arg(long, value_name = "SECONDS", default_value_t = 19, conflicts_with = "url",
        allow_negative_numbers = true, value_parser = clap::value_parser!(u32).range(6..=25))]
    duration: u32,

    /// Where chance starts: the same number gives the same arrivals, the same service times and the same failures
    /// (timing on a real network is never quite the same).
    #[arg(long, default_value_t = 7, allow_negative_numbers = true)]
    pub(crate) seed: u64,

    /// Let the plain client try again up to N times, at once and after any failure, as a loop around the
    /// call would.
    #[arg(long, value_name = "COUNT", default_value_t = 0, conflicts_with = "url",
        allow_negative_numbers = true, value_parser = clap::value_parser!(u32).range(0..=5))]
    pub(crate) plain_retries: u32,

    /// How many instances of the guarded client there are; they deal the calls out among themselves.
    #[arg(long, value_name = "COUNT", default_value_t = 3, conflicts_with = "url",
        allow_negative_numbers = true, value_parser = clap::value_parser!(u32).range(1..=20))]
    instances: u32,

    /// Share the breakers through this Redis, each instance over a connection of its own, instead of through a store in
    /// this process (redis://user:password@host:6379/0, or unix, redis-sentinel, redis-cluster).
    #[arg(long, value_name = "URL", conflicts_with = "url")]
    pub(crate) redis: Option<String>,

    /// Print the result as one JSON document on stdout, and nothing else there; the log goes to stderr.
    #[arg(long)]
    pub(crate) json: bool,

    /// Log one line a second instead of drawing a live view (as it is when stdout is no terminal).
    #[arg(long)]
    pub(crate) plain: bool,
}

impl Flags {
    /// Reads the command line; ends the process with status 2 and a message if it makes no sense.
    pub(crate) fn read() -> Self {
        Self::parse().checked().unwrap_or_else(|error| error.exit())
    }

    /// Calls a second for each client.
    pub(crate) fn rate(&self) -> u32 {
        let usual = if self.url.is_some() {
            URL_RATE
        } else {
            STORM_RATE
        };
        self.rate.unwrap_or(usual)
    }

    /// How many instances of the guarded client there are.
    pub(crate) fn instances(&self) -> usize {
        usize::try_from(self.instances).unwrap_or(usize::MAX)
    }

    /// How long the script takes.
    pub(crate) fn duration(&self) -> Duration {
        Duration::from_secs(self.duration.into())
    }

    /// What one flag alone cannot tell.
    fn checked(self) -> Result<Self, clap::Error> {
        let rate = self.rate();
        if self.url.is_some() && rate > URL_MAX_RATE {
            return Err(invalid(format!(
                "invalid value '{rate}' for '--rate <PER_SECOND>': at most {URL_MAX_RATE} a second go to an address \
                 given with --url",
            )));
        }
        if self.url.is_some() && self.requests / rate > URL_MAX_SECONDS {
            return Err(invalid(format!(
                "invalid value '{}' for '--requests <COUNT>': at --rate {rate} it would take longer than \
                 {URL_MAX_SECONDS} seconds",
                self.requests,
            )));
        }
        if let Some(Err(error)) = self.redis.as_deref().map(check_redis) {
            // In its own words, which show no password.
            return Err(invalid(format!(
                "invalid value for '--redis <URL>': {error}"
            )));
        }
        Ok(self)
    }
}

/// Whether Redis could be at this URL. Nothing is connected to: what would do it is dropped before it runs.
fn check_redis(url: &str) -> Result<(), ConnectError> {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    let runtime = runtime.expect("a runtime without drivers needs nothing that could be missing");
    let _entered = runtime.enter();
    Redis::connect(url).map(drop)
}

fn invalid(message: String) -> clap::Error {
    Flags::command().error(ErrorKind::ValueValidation, message)
}

fn parse_url(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).map_err(|error| match error.to_string().as_str() {
        "relative URL without a base" => "it does not start with http://".to_owned(),
        other => other.to_owned(),
    })?;
    match url.scheme() {
        "http" => Ok(url),
        "https" if cfg!(feature = "rustls") => Ok(url),
        "https" => Err("https needs a TLS library: build with `--features rustls`".to_owned()),
        other => Err(format!("the scheme is `{other}`, not http")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Flags, clap::Error> {
        let words = std::iter::once("storm").chain(line.split_whitespace());
        Flags::try_parse_from(words)?.checked()
    }

    #[test]
    fn the_definition_is_sound() {
        Flags::command().debug_assert();
    }

    #[test]
    fn the_defaults_stay_under_thirty_seconds_and_are_gentle_with_strangers() {
        let storm = parse("").unwrap();
        assert_eq!((storm.rate(), storm.duration().as_secs()), (36, 19));
        assert_eq!((storm.instances(), storm.redis), (3, None));
        let url = parse("--url http://127.0.0.1:8080/health").unwrap();
        assert_eq!((url.rate(), url.requests), (10, 100));
    }

    #[test]
    fn what_cannot_work_is_refused_with_status_2_naming_flag_and_value() {
        for (line, flag, value) in [
            ("--rate 0", "--rate", "'0'"),
            ("--rate fast", "--rate", "'fast'"),
            ("--rate 301", "--rate", "'301'"),
            ("--rate 101 --url http://localhost", "--rate", "'101'"),
            ("--duration 5", "--duration", "'5'"),
            ("--duration 26", "--duration", "'26'"),
            ("--requests 0 --url http://localhost", "--requests", "'0'"),
            (
                "--requests 10001 --url http://localhost",
                "--requests",
                "'10001'",
            ),
            (
                "--requests 10000 --rate 1 --url http://localhost",
                "--requests",
                "'10000'",
            ),
            ("--requests 5", "--url", ""),
            ("--duration 9 --url http://localhost", "--duration", ""),
            ("--seed -1", "--seed", "'-1'"),
            ("--rate -5", "--rate", "'-5'"),
            ("--url localhost:8080", "--url", "localhost:8080"),
            ("--url nonsense", "--url", "'nonsense'"),
            ("--url ftp://localhost", "--url", "ftp"),
            ("--url http://", "--url", "'http://'"),
            ("--url http://localhost:99999", "--url", "99999"),
            ("--instances 0", "--instances", "'0'"),
            ("--instances 21", "--instances", "'21'"),
            ("--instances 2 --url http://localhost", "--instances", ""),
            (
                "--redis redis://localhost --url http://localhost",
                "--redis",
                "",
            ),
            ("--redis nonsense", "--redis", "nonsense"),
            // The rest of a URL that cannot be read may be a password.
            ("--redis http://localhost", "--redis", "`http***`"),
            (
                "--redis redis://localhost:99999",
                "--redis",
                "`redis://localhost***`",
            ),
            ("--redis redis://a,b", "--redis", "redis-cluster"),
            ("--storm", "--storm", ""),
        ] {
            let error = parse(line).expect_err(line);
            let message = error.to_string();
            assert_eq!(error.exit_code(), 2, "{line}");
            assert!(
                message.contains(flag) && message.contains(value),
                "{line}: {message}"
            );
        }
    }

    #[test]
    fn a_redis_url_that_cannot_work_is_refused_without_its_password() {
        let message = parse("--redis redis://me:secret@host:port").unwrap_err();
        assert_eq!(message.exit_code(), 2);
        let message = message.to_string();
        assert!(
            message.contains("--redis") && !message.contains("secret"),
            "{message}"
        );
    }

    #[test]
    fn a_redis_url_is_not_called_while_it_is_checked() {
        for url in [
            "redis://127.0.0.1:1",
            "redis-sentinel://nowhere/main",
            "unix:///nowhere",
        ] {
            let flags = parse(&format!("--redis {url}")).unwrap();
            assert_eq!(flags.redis.as_deref(), Some(url));
        }
    }

    #[test]
    #[cfg(not(feature = "rustls"))]
    fn https_without_tls_says_how_to_get_it() {
        let message = parse("--url https://localhost").unwrap_err().to_string();
        assert!(message.contains("--features rustls"), "{message}");
    }
}
