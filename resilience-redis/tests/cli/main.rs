//! The program `resilience`, run as an operator runs it, against a real server and two instances.

mod streams;

use std::{
    process::{Command, Output},
    time::Duration,
};

use resilience_core::{
    Cache, Verdict,
    breaker::{CircuitBreaker, State},
    bulkhead::fleet::FleetBulkhead,
    cache::{CacheStore, Loaded},
    completion::Guard,
    fleet::FleetOptions,
    idempotency::Idempotency,
    limit::{Quota, fleet::FleetRateLimit},
};
use resilience_redis::Redis;
use resilience_tests::{authority::Authority, redis::RedisServer, until::eventually};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(10);

struct Operator {
    url: String,
    noun: &'static [&'static str],
}

impl Operator {
    fn of(url: String) -> Self {
        let noun = &["breaker"];
        Self { url, noun }
    }

    fn run(&self, args: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_resilience"))
            .args(["--redis", &self.url, "--timeout", "2s"])
            .args(self.noun)
            .args(args)
            .env_remove("REDIS_URL")
            .env("USER", "ann")
            .output()
            .expect("the program starts")
    }

    fn text(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?}: {output:?}");
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    fn json(&self, args: &[&str]) -> Value {
        let output = self.run(&[args, &["--json"]].concat());
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{args:?}: {output:?}");
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }
}

async fn fleet(url: &str) -> Vec<CircuitBreaker> {
    let mut fleet = Vec::new();
    for _ in 0..2 {
        let redis = Redis::connect(url).expect("a good URL");
        redis.ready(SOON).await.expect("connects");
        let breaker = CircuitBreaker::builder("payments")
            .store(redis.breakers())
            .build();
        fleet.push(breaker.expect("good settings"));
    }
    fleet
}

async fn all(fleet: &[CircuitBreaker], state: State) {
    eventually("every instance obeys", SOON, || async {
        fleet.iter().all(|breaker| breaker.state() == state)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_sees_the_fleet_and_is_obeyed_by_it() {
    the_fleet_obeys(&["breaker"], "get").await;
}

/// Scripts of operators go on working until 1.0.
#[tokio::test(flavor = "multi_thread")]
async fn the_spelling_without_a_noun_is_still_understood() {
    the_fleet_obeys(&[], "show").await;
}

async fn the_fleet_obeys(noun: &'static [&'static str], show: &str) {
    let server = RedisServer::start();
    let operator = Operator {
        noun,
        ..Operator::of(server.url())
    };
    let fleet = fleet(&server.url()).await;
    for breaker in &fleet {
        breaker.acquire().expect("closed").settle(Verdict::Success);
    }
    eventually("both instances are listed", SOON, || async {
        let list = operator.json(&["list"]);
        list[0]["name"] == "payments" && list[0]["live"] == 2 && list[0]["calls"] == 2
    })
    .await;
    let before = operator.json(&[show, "payments"]);
    assert_eq!(
        (&before["state"], &before["failures"]),
        (&"closed".into(), &0.into())
    );

    let shown = operator.json(&[
        "force-open",
        "payments",
        "--reason",
        "drill",
        "--expires",
        "10m",
    ]);
    assert_eq!(shown["override"]["kind"], "force_open");
    assert_eq!(
        (&shown["override"]["by"], &shown["override"]["reason"]),
        (&"ann".into(), &"drill".into())
    );
    assert!(shown["override"]["expires_ms"].as_u64() <= Some(600_000));
    assert!(shown["epoch"].as_u64() > before["epoch"].as_u64());
    all(&fleet, State::ForcedOpen).await;
    assert!(operator.text(&["list"]).contains("forced_open (closed)"));

    for (command, state) in [
        ("force-closed", State::ForcedClosed),
        ("disable", State::Disabled),
    ] {
        operator.json(&[command, "payments", "--reason", "drill", "--by", "bo"]);
        all(&fleet, state).await;
    }
    operator.json(&["metrics-only", "payments", "--reason", "drill"]);
    eventually("metrics only", SOON, || async {
        fleet.iter().all(|b| {
            b.snapshot()
                .active_override
                .is_some_and(|active_override| active_override.kind == "metrics_only")
        })
    })
    .await;
    operator.json(&["clear", "payments"]);
    all(&fleet, State::Closed).await;
    let reset = operator.json(&["reset", "payments", "--reason", "all is well"]);
    assert_eq!(
        (&reset["cause"], &reset["by"]),
        (&"all is well".into(), &"ann".into())
    );

    let table = operator.run(&["watch", "--every", "10ms", "--count", "2"]);
    assert_eq!(
        String::from_utf8_lossy(&table.stdout)
            .matches("payments")
            .count(),
        2
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_sees_the_instances_by_name_and_who_changed_what_and_why() {
    let server = RedisServer::start();
    let operator = Operator::of(server.url());
    let mut breakers = Vec::new();
    for name in ["checkout-1", "checkout-2"] {
        let redis = Redis::connect(&server.url()).expect("a good URL");
        redis.ready(SOON).await.expect("connects");
        let breaker = CircuitBreaker::builder("payments")
            .minimum_calls(10)
            .store(redis.breakers())
            .fleet(FleetOptions::new().instance(name))
            .build();
        breakers.push(breaker.expect("good settings"));
    }
    eventually("both are named, and closed", SOON, || async {
        let listed = operator.json(&["list"])[0]["name"] == "payments";
        listed && {
            let members = &operator.json(&["get", "payments"])["members"];
            [0, 1].map(|n| &members[n]["state"]) == ["closed", "closed"]
        }
    })
    .await;
    // One opens alone.
    for _ in 0..10 {
        if let Ok(mut call) = breakers[1].acquire() {
            call.settle(Verdict::transient());
        }
    }
    eventually("it is seen by name", SOON, || async {
        let shown = operator.json(&["get", "payments"]);
        let states = [0, 1].map(|n| &shown["members"][n]["state"]);
        let failing = [0, 1].map(|n| &shown["members"][n]["failing"]);
        shown["state"] == "closed"
            && states == ["closed", "open"]
            && failing == [false, true]
            && shown["failing_names"] == serde_json::json!(["checkout-2"])
    })
    .await;
    let shown = operator.json(&["get", "payments"]);
    for member in shown["members"].as_array().expect("a list") {
        assert!(
            member["instance"]
                .as_str()
                .is_some_and(|name| name.starts_with("checkout-"))
        );
        assert!(member["reported_ms"].as_u64() < Some(60_000), "{member}");
        assert!(member["live_ms"].as_u64() > Some(0), "{member}");
    }
    let table = operator.text(&["get", "payments"]);
    for part in ["checkout-1-", "open", "last report", "failing: checkout-2"] {
        assert!(table.contains(part), "{table}");
    }

    assert_eq!(operator.json(&["log", "payments"]), serde_json::json!([]));
    assert!(
        operator
            .text(&["log", "payments"])
            .contains("no change of `payments`")
    );
    operator.json(&[
        "disable",
        "payments",
        "--reason",
        "dri\u{1b}[31mll",
        "--expires",
        "10m",
    ]);
    operator.json(&["clear", "payments", "--by", "bo"]);
    operator.json(&["reset", "payments", "--reason", "all is well"]);
    let log = operator.json(&["log", "payments"]);
    let said = |n: usize| ["action", "by", "why", "from", "to"].map(|field| log[n][field].clone());
    assert_eq!(said(0), ["reset", "ann", "all is well", "closed", "closed"]);
    assert_eq!(said(1), ["cleared", "bo", "", "closed", "closed"]);
    assert_eq!(said(2)[..2], ["disable", "ann"]);
    assert_eq!(log[2]["lasting_ms"], 600_000);
    assert!(log[0]["epoch"].as_u64() > log[1]["epoch"].as_u64());
    assert!(log[0]["age_ms"].as_u64() < Some(60_000));
    let one = operator.json(&["log", "payments", "--count", "1"]);
    assert_eq!(one.as_array().map(Vec::len), Some(1));
    let table = operator.text(&["log", "payments"]);
    for part in ["all is well", "cleared", "10m", "bo"] {
        assert!(table.contains(part), "{table}");
    }
    assert!(
        !table.contains('\u{1b}'),
        "a reason cannot drive the terminal"
    );
    assert_eq!(operator.run(&["log", "paymets"]).status.code(), Some(3));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_lists_what_else_the_fleet_shares() {
    let server = RedisServer::start();
    let all = |noun: &'static [&'static str]| {
        let url = server.url();
        Operator { url, noun }
    };
    let (bulkhead, limit, idempotency) =
        (all(&["bulkhead"]), all(&["limit"]), all(&["idempotency"]));
    let (cache, stream) = (all(&["cache"]), all(&["stream"]));
    for one in [&bulkhead, &limit, &idempotency, &cache, &stream] {
        assert_eq!(one.json(&["list"]), serde_json::json!([]));
        let empty = one.text(&["list"]);
        assert!(empty.contains("under the prefix `resilience`"), "{empty}");
    }
    let redis = Redis::connect(&server.url()).expect("a good URL");
    redis.ready(SOON).await.expect("connects");
    let reports = FleetBulkhead::builder("reports").store(redis.bulkheads());
    let reports = reports.max_concurrent(4).build().expect("good settings");
    let second = Quota::per(10, Duration::from_secs(1)).expect("a quota");
    let api = FleetRateLimit::builder("api")
        .store(redis.limits())
        .limit("per-second", second);
    let _api = api.build().expect("good settings");
    let orders = Idempotency::builder("orders").store(redis.idempotency());
    let _orders = orders.build().expect("good settings");
    let products = redis.cache();
    let entered = products.announce("products").expect("a list");
    entered.await.expect("an answer");
    let _permit = reports.acquire(3).await.expect("there is room");
    eventually(
        "all are listed, though none but one was called",
        SOON,
        || async {
            let named = |one: &Operator, name| one.json(&["list"])[0]["name"] == name;
            named(&bulkhead, "reports")
                && named(&limit, "api")
                && named(&idempotency, "orders")
                && named(&cache, "products")
        },
    )
    .await;
    let list = bulkhead.json(&["list"]);
    let numbers = ["in_flight", "leases", "waiting", "live"].map(|field| list[0][field].clone());
    assert_eq!(numbers, [3, 1, 0, 1]);
    for (one, name) in [
        (&bulkhead, "reports"),
        (&limit, "api"),
        (&idempotency, "orders"),
        (&cache, "products"),
    ] {
        let table = one.text(&["list"]);
        assert!(table.contains(name), "{table}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_wrong_has_its_own_exit_code_and_says_so_on_stderr() {
    let server = RedisServer::start();
    let operator = Operator::of(server.url());
    let unreachable = Operator::of("redis://127.0.0.1:1".into());
    let guarded = RedisServer::start_with(&["--requirepass", "right"]);
    let stranger = Operator::of(guarded.url().replace("://", "://:wrong@"));
    let typo = Operator::of("rediss//localhost".into());
    let cases = [
        (operator.run(&["list"]), 0, ""),
        (
            operator.run(&["show", "paymets"]),
            3,
            "no breaker `paymets`",
        ),
        (operator.run(&["force-open", "payments"]), 2, "--reason"),
        (
            operator.run(&["force-open", "p", "--reason", "r", "--expires", "soon"]),
            2,
            "--expires",
        ),
        (operator.run(&["dance"]), 2, "dance"),
        (unreachable.run(&["list"]), 1, "cannot connect to Redis"),
        (stranger.run(&["list"]), 1, "WRONGPASS"),
        (typo.run(&["list"]), 2, "has no scheme"),
    ];
    for (output, code, says) in cases {
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{error}");
        assert!(error.contains(says), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_wants_tls_and_a_certificate_is_reached_with_both() {
    let authority = Authority::new();
    let server = authority.mutual_server(&["127.0.0.1"]);
    let operator = Operator::of(server.tls_url());
    let files = tempfile::tempdir().expect("a folder");
    let file = |name: &str, text: &str| {
        let path = files.path().join(name);
        std::fs::write(&path, text).expect("a file");
        path.display().to_string()
    };
    let (certificate, key) = authority.certificate(&["operator"]);
    let (root, cert, key) = (
        file("ca.pem", &authority.pem()),
        file("cert.pem", &certificate),
        file("key.pem", &key),
    );
    let known = ["list", "--cacert", &root, "--cert", &cert, "--key", &key];
    assert_eq!(operator.json(&known), serde_json::json!([]));
    for (args, code, says) in [
        (&known[..1], 1, "cannot connect to Redis"),
        (&known[..3], 1, "cannot connect to Redis"),
        (&known[..5], 2, "--key"),
        (&["list", "--cacert", "/no/such/file"], 2, "/no/such/file"),
    ] {
        let output = operator.run(args);
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {error}");
        assert!(error.contains(says), "{args:?}: {error}");
    }
}

#[test]
fn help_lists_the_nouns_and_hides_the_old_spellings() {
    let help = |noun: &'static [&'static str]| {
        let operator = Operator {
            noun,
            ..Operator::of("redis://127.0.0.1:1".into())
        };
        let output = operator.run(&["--help"]);
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    let top = help(&[]);
    for noun in [
        "breaker",
        "bulkhead",
        "limit",
        "idempotency",
        "cache",
        "stream",
    ] {
        assert!(top.contains(&format!("\n  {noun} ")), "{top}");
    }
    let verbs = ["list", "log", "watch", "force-open", "reset"];
    let of_breaker = help(&["breaker"]);
    for verb in verbs {
        assert!(of_breaker.contains(&format!("\n  {verb} ")), "{of_breaker}");
        assert!(!top.contains(&format!("\n  {verb} ")), "{top}");
    }
    for part in [
        "Usage: resilience",
        "Examples:",
        "Exit status:",
        "--redis <URL>",
    ] {
        assert!(top.contains(part), "{top}");
    }
}

#[test]
fn the_password_of_the_url_is_never_printed() {
    for url in [
        "redis://ann:hunter@127.0.0.1:1",
        "redis://ann:hun/hunter@127.0.0.1:1",
        "redis://:hunter",
        "redis-sentinel://127.0.0.1:1/main?sentinel_password=hunter",
        "unix:///nowhere.sock?pass=hunter",
        "ann:hunter@127.0.0.1",
    ] {
        for args in [
            &["--help"][..],
            &["breaker", "--help"],
            &["breaker", "list"],
        ] {
            let mut program = Command::new(env!("CARGO_BIN_EXE_resilience"));
            let program = program.args(args).env("REDIS_URL", url);
            let output = program.args(["--timeout", "20ms"]).output();
            let output = output.expect("the program starts");
            for text in [output.stdout, output.stderr] {
                let text = String::from_utf8_lossy(&text);
                assert!(!text.contains("hunter"), "{url}: {text}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_sees_what_caches_hold_and_drops_it_on_every_instance() {
    let server = RedisServer::start();
    let operator = Operator {
        noun: &["cache"],
        ..Operator::of(server.url())
    };
    let redis = Redis::connect(&server.url()).expect("a good URL");
    redis.ready(SOON).await.expect("connects");
    let cache = Cache::<String, String>::builder("products")
        .fleet(FleetOptions::new().instance("pod-7"))
        .store(redis.cache())
        .build()
        .expect("good settings");
    eventually("changes are told", SOON, || async {
        cache.snapshot().coherent
    })
    .await;
    let value = Loaded::new("red".to_owned()).tag("fruit");
    let fill = || cache.put("apple", value.clone());
    fill().await.expect("stored");
    let held = || async { cache.get("apple").await.is_some() };
    assert!(held().await);

    let shown = operator.json(&["get", "products", "apple"]);
    assert_eq!(
        (&shown["exists"], &shown["tags"][0]),
        (&true.into(), &"fruit".into())
    );
    assert!(shown["fresh_ms"].as_u64() > Some(50_000));
    assert!(
        operator
            .text(&["get", "products", "apple"])
            .contains("fruit")
    );
    assert_eq!(operator.json(&["get", "products", "none"]), Value::Null);

    for command in [
        &["invalidate", "products", "apple"][..],
        &["invalidate-tag", "products", "fruit"],
        &["clear", "products"],
    ] {
        operator.json(command);
        eventually("it is gone", SOON, || async { !held().await }).await;
        eventually("it is stored again", SOON, || async {
            fill().await.is_ok() && held().await
        })
        .await;
    }

    eventually("the instance reports", SOON, || async {
        let stats = operator.json(&["stats", "products"]);
        stats[0]["instance"]
            .as_str()
            .is_some_and(|it| it.starts_with("pod-7"))
    })
    .await;
    assert!(operator.text(&["stats", "products"]).contains("pod-7"));
    assert!(operator.text(&["hot", "none"]).contains("no instance"));
    eventually("it is listed", SOON, || async {
        operator.json(&["list"])[0]["name"] == "products"
    })
    .await;
}
