//! The storm as a user meets it: the program, its flags, its output, its exit status.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener},
    process::{Command, Output, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use resilience_tests::redis::{RedisServer, free_port};
use serde_json::Value;

fn storm(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_storm"))
        .args(args)
        .output()
        .expect("the program starts")
}

fn json(output: &Output) -> Value {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    serde_json::from_slice(&output.stdout).expect("nothing but JSON on stdout")
}

fn number(json: &Value, path: &str) -> f64 {
    json.pointer(path)
        .and_then(Value::as_f64)
        .unwrap_or_else(|| panic!("{path} in {json:#}"))
}

/// A web server that says "fine" to everything; counts what it was asked.
fn fine_server() -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, served) = (
        listener.local_addr().unwrap(),
        Arc::new(AtomicUsize::new(0)),
    );
    let count = Arc::clone(&served);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut lines = BufReader::new(&stream).lines();
            while lines
                .next()
                .is_some_and(|line| line.is_ok_and(|line| !line.is_empty()))
            {}
            count.fetch_add(1, Ordering::SeqCst);
            let _ = (&stream).write_all(
                b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\nconnection: close\r\n\r\nfine",
            );
        }
    });
    (address, served)
}

const CLIENTS: [&str; 3] = ["plain", "guarded", "shared"];

/// What the upstream of `client` got while it was hanging and down.
fn in_outage(json: &Value, client: &str) -> f64 {
    let phases = ["hanging", "down"];
    let of = |phase| number(json, &format!("/{client}/upstream_requests/{phase}"));
    phases.into_iter().map(of).sum()
}

/// Limits of their own admit a greedy tenant once for each of the three instances; one that is shared, once in all.
fn assert_a_greedy_tenant_is_held_to_its_quota(json: &Value) {
    let of = |side: &str, key: &str| number(json, &format!("/{side}/tenants/{key}"));
    let (admitted, allowed) = (
        of("shared", "greedy_admitted"),
        of("shared", "greedy_allowed"),
    );
    assert!(admitted <= allowed, "{admitted} of {allowed}: {json:#}");
    assert!(
        admitted >= 0.8 * allowed,
        "{admitted} of {allowed}: {json:#}"
    );
    assert!(
        of("guarded", "greedy_admitted") > 2.0 * of("guarded", "greedy_allowed"),
        "{json:#}"
    );
    for side in ["guarded", "shared"] {
        assert_eq!(of(side, "modest_refused"), 0.0, "{json:#}");
    }
}

/// Trying again makes payments twice; an idempotency key on both sides makes them once.
fn assert_payments_take_effect_once_where_they_have_a_key(json: &Value) {
    let of = |side: &str, key: &str| number(json, &format!("/{side}/payments/{key}"));
    assert!(of("plain", "took_effect_repeatedly") > 0.0, "{json:#}");
    assert!(of("plain", "most_effects") > 1.0, "{json:#}");
    for side in ["guarded", "shared"] {
        assert_eq!(of(side, "took_effect_repeatedly"), 0.0, "{json:#}");
        assert_eq!(of(side, "told_made_but_not"), 0.0, "{json:#}");
        assert!(
            of(side, "took_effect_once") >= of(side, "told_made"),
            "{json:#}"
        );
        assert!(of(side, "told_made") > 0.3 * of(side, "asked"), "{json:#}");
    }
}

/// A cache asks the database less than a map does, and one of the fleet least; it answers in an outage, and only that of the
/// fleet hears of every change.
fn assert_a_cache_of_the_fleet_loads_least_and_is_never_out_of_date(json: &Value) {
    let of = |side: &str, key: &str| number(json, &format!("/{side}/readers/{key}"));
    let loads = CLIENTS.map(|side| of(side, "loads"));
    assert!(loads[0] > 2.0 * loads[1], "{json:#}");
    assert!(loads[1] > loads[2], "{json:#}");
    assert_eq!(of("shared", "outdated"), 0.0, "{json:#}");
    assert!(of("shared", "changes") > 0.0, "{json:#}");
    let answered = |side| of(side, "answered_in_outage") / of(side, "in_outage");
    assert!(answered("plain") < 0.5, "{json:#}");
    assert!(answered("shared") > 0.5, "{json:#}");
}

/// Of orders between services that are killed, a consumer by hand charges some twice or loses some; one with a record neither.
fn assert_events_take_effect_once_where_they_have_a_record(json: &Value) {
    let of = |at: &str, key: &str| number(json, &format!("/{at}/{key}"));
    let (after, before, ours) = ("plain/events/0", "plain/events/1", "shared/events/0");
    for at in [after, before, ours] {
        assert!(of(at, "published") > 100.0, "{at}: {json:#}");
        assert_eq!(of(at, "unfinished"), 0.0, "{at}: {json:#}");
        assert!(of(at, "processes_killed") > 5.0, "{at}: {json:#}");
    }
    assert!(of(after, "took_effect_repeatedly") > 0.0, "{json:#}");
    assert!(of(before, "lost") > 0.0, "{json:#}");
    assert_eq!(of(ours, "took_effect_repeatedly"), 0.0, "{json:#}");
    assert_eq!(of(ours, "lost"), 0.0, "{json:#}");
    assert_eq!(
        of(ours, "took_effect_once"),
        of(ours, "published"),
        "{json:#}"
    );
}

/// Shared breakers must not send more into an outage than local ones, but for what chance and a busy machine do.
fn assert_sharing_spares_the_upstream(json: &Value) {
    let (local, shared) = (in_outage(json, "guarded"), in_outage(json, "shared"));
    assert!(
        shared <= local * 1.1 + 3.0,
        "{shared} against {local}: {json:#}"
    );
}

#[test]
fn a_storm_shows_what_the_guarded_clients_spare_caller_and_upstream() {
    let json = json(&storm(&["--json"]));
    assert_eq!(number(&json, "/instances"), 3.0);
    for side in CLIENTS {
        let at = |key: &str| number(&json, &format!("/{side}/{key}"));
        assert!((0.2..1.0).contains(&at("success_rate")), "{json:#}");
        assert!(0.0 < at("p50_ms") && at("p50_ms") <= at("p99_ms") && at("p99_ms") <= at("max_ms"));
        assert!(at("recovery_ms") > 0.0);
        assert!(at("phases/healthy/success_rate") > 0.95, "{json:#}");
        for phase in ["healthy", "slow", "failing", "hanging", "down", "back"] {
            assert!(
                at(&format!("upstream_requests/{phase}")) > 0.0,
                "{side} {phase}: {json:#}"
            );
        }
        assert_eq!(
            at("requests"),
            number(&json, "/plain/requests"),
            "the same load"
        );
    }
    assert!(
        json["plain"]["notice_ms"].is_null() && json["plain"].get("all_open_ms").is_none(),
        "there is nothing in it to notice: {json:#}"
    );
    for side in ["guarded", "shared"] {
        let both = |key: &str| {
            (
                number(&json, &format!("/plain/{key}")),
                number(&json, &format!("/{side}/{key}")),
            )
        };
        let (plain, guarded) = (in_outage(&json, "plain"), in_outage(&json, side));
        assert!(
            guarded < plain * 0.6,
            "{side}: {guarded} is not much below {plain}: {json:#}"
        );
        let (plain, guarded) = both("phases/failing/success_rate");
        assert!(
            guarded > plain + 0.1,
            "retries of {side}: {guarded} is not above {plain}"
        );
        let (plain, guarded) = both("phases/down/p50_ms");
        assert!(
            guarded < plain + 50.0,
            "failing fast, {side}: {guarded} ms against {plain} ms"
        );
        assert!(
            number(&json, &format!("/{side}/notice_ms")) < number(&json, "/script_ms/hanging"),
            "{json:#}"
        );
        let probes = number(&json, &format!("/{side}/recovery_probes"));
        assert!(probes >= 2.0, "{side}: {json:#}");
    }
    assert_sharing_spares_the_upstream(&json);
    let all_open = |side: &str| json[side]["all_open_ms"].as_f64().unwrap_or(f64::INFINITY);
    assert!(
        all_open("shared") <= all_open("guarded") + 100.0,
        "{json:#}"
    );
    assert!(all_open("shared") < number(&json, "/script_ms/hanging"));
    assert_a_greedy_tenant_is_held_to_its_quota(&json);
    assert_payments_take_effect_once_where_they_have_a_key(&json);
    assert_a_cache_of_the_fleet_loads_least_and_is_never_out_of_date(&json);
    assert_events_take_effect_once_where_they_have_a_record(&json);
    let probes = |side: &str| number(&json, &format!("/{side}/recovery_probes"));
    assert!(probes("shared") < probes("guarded"), "{json:#}");
    assert_eq!(json["shared"]["store"]["degraded"], false, "{json:#}");
    assert!(json["guarded"].get("store").is_none(), "{json:#}");
}

#[test]
fn one_instance_alone_is_a_fleet_as_well() {
    let json = json(&storm(&["--json", "--instances", "1", "--duration", "9"]));
    assert_eq!(number(&json, "/instances"), 1.0);
    for side in CLIENTS {
        let healthy = number(&json, &format!("/{side}/phases/healthy/success_rate"));
        assert!(healthy > 0.95, "{side}: {json:#}");
    }
    for side in ["guarded", "shared"] {
        assert!(number(&json, &format!("/{side}/notice_ms")) > 0.0);
        let settings = json[side]["settings"].as_str().unwrap();
        assert!(
            settings.contains("one resilience_http::Client") || settings.contains("as guarded"),
            "{settings}"
        );
    }
    // A fleet of one has no quorum, and goes by its own window.
    assert_sharing_spares_the_upstream(&json);
}

#[test]
fn breakers_are_shared_through_a_real_redis_and_nobody_reads_its_password() {
    let server = RedisServer::start_with(&["--requirepass", "secret"]);
    let url = format!("redis://:secret@{}/3", server.addr());
    let output = storm(&["--json", "--redis", &url, "--duration", "16"]);
    let log = String::from_utf8_lossy(&output.stderr);
    let json = json(&output);
    assert!(!log.contains("secret") && !json.to_string().contains("secret"));
    let store = &json["shared"]["store"];
    let name = store["name"].as_str().unwrap();
    assert!(name.contains(&server.addr()), "{json:#}");
    assert_eq!(store["degraded"], false, "{json:#}");
    assert!(number(&json, "/shared/all_open_ms") >= 0.0, "{json:#}");
    assert_sharing_spares_the_upstream(&json);
    assert_a_greedy_tenant_is_held_to_its_quota(&json);
    assert_payments_take_effect_once_where_they_have_a_key(&json);
    assert_a_cache_of_the_fleet_loads_least_and_is_never_out_of_date(&json);
    assert!(
        log.contains("calls of the fleet failed") || log.contains("probes failed"),
        "{log}"
    );
}

#[test]
fn a_redis_that_is_away_costs_the_sharing_and_nothing_else() {
    let url = format!("redis://127.0.0.1:{}", free_port());
    let output = storm(&["--plain", "--redis", &url, "--duration", "6"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(
        text.contains("DEGRADED: for") && text.contains(&url),
        "{text}"
    );
}

#[test]
fn a_redis_that_dies_in_the_storm_leaves_the_instances_to_themselves() {
    let mut server = RedisServer::start();
    let mut run = Command::new(env!("CARGO_BIN_EXE_storm"))
        .args(["--json", "--redis", &server.url(), "--duration", "9"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut log = BufReader::new(run.stderr.take().unwrap()).lines();
    let _ = (log.next(), log.next());
    server.kill();
    log.for_each(drop);
    let json = json(&run.wait_with_output().unwrap());
    let away = number(&json, "/shared/store/away_ms");
    assert!(json["shared"]["store"]["degraded"] == true, "{json:#}");
    assert!((1000.0..9000.0).contains(&away), "{json:#}");
    assert!(json["shared"]["store"]["reason"].is_string(), "{json:#}");
    assert!(number(&json, "/shared/notice_ms") > 0.0, "{json:#}");
}

#[test]
fn an_address_of_the_users_gets_the_requests_asked_for_and_no_more() {
    let (address, served) = fine_server();
    let url = format!("http://{address}/health");
    let json = json(&storm(&[
        "--url",
        &url,
        "--requests",
        "30",
        "--rate",
        "60",
        "--json",
    ]));
    assert_eq!(number(&json, "/guarded/requests"), 30.0);
    assert_eq!(number(&json, "/guarded/success_rate"), 1.0);
    assert_eq!(served.load(Ordering::SeqCst), 30);
    assert!(json.get("plain").is_none(), "{json:#}");
}

#[test]
fn without_json_there_is_a_log_and_a_table() {
    let (address, _) = fine_server();
    let output = storm(&[
        "--url",
        &format!("http://{address}"),
        "--requests",
        "5",
        "--rate",
        "50",
    ]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{text}");
    for part in [
        "breaker closed",
        "success rate",
        "100.0 %",
        "p50 / p99 / max",
    ] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
    assert!(
        !text.contains('\u{1b}'),
        "no escape codes where there is no terminal"
    );
}

#[test]
fn an_address_where_nobody_listens_is_a_result_and_no_crash() {
    let address = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let url = format!("http://{address}");
    let json = json(&storm(&[
        "--url",
        &url,
        // Too few for the breaker, with all of their attempts: each call ends with its own failure.
        "--requests",
        "6",
        "--rate",
        "50",
        "--json",
    ]));
    assert_eq!(number(&json, "/guarded/success_rate"), 0.0);
    assert_eq!(number(&json, "/guarded/failures/connect"), 6.0, "{json:#}");
}

#[test]
fn bad_input_is_refused_on_stderr_with_status_2() {
    for (args, named) in [
        (&["--rate", "0"][..], &["--rate", "'0'"][..]),
        (&["--duration", "600"], &["--duration", "'600'"]),
        (&["--url", "ftp://example.com"], &["--url", "ftp"]),
        (&["--url", "not a url"], &["--url", "'not a url'"]),
        (
            &["--url", "http://localhost", "--requests", "0"],
            &["--requests", "'0'"],
        ),
        (&["--requests", "10"], &["--url"]),
        (&["--instances", "0"], &["--instances", "'0'"]),
        (&["--redis", "nonsense"], &["--redis", "nonsense"]),
        (&["--redis", "http://localhost"], &["--redis", "scheme"]),
        (
            &["--redis", "redis://localhost", "--url", "http://localhost"],
            &["--redis", "--url"],
        ),
        (&["--tempest"], &["--tempest"]),
    ] {
        let output = storm(args);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {stderr}");
        assert!(output.stdout.is_empty(), "{args:?}");
        assert!(
            named.iter().all(|part| stderr.contains(part)),
            "{args:?}: {stderr}"
        );
    }
}

#[test]
fn help_explains_every_flag() {
    let output = storm(&["--help"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0));
    for flag in [
        "--url",
        "--requests",
        "--rate",
        "--duration",
        "--seed",
        "--plain-retries",
        "--instances",
        "--redis",
        "--json",
        "--plain",
        "Exit status",
    ] {
        assert!(text.contains(flag), "{flag} is not in\n{text}");
    }
}

#[test]
#[cfg(unix)]
fn ctrl_c_ends_the_run_with_the_table_so_far() {
    let mut run = Command::new(env!("CARGO_BIN_EXE_storm"))
        .args(["--json", "--duration", "25"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut log = BufReader::new(run.stderr.take().unwrap()).lines();
    // The second line is logged after a second under load.
    let _ = (log.next(), log.next());
    let interrupt = Command::new("kill")
        .args(["-INT", &run.id().to_string()])
        .status()
        .unwrap();
    assert!(interrupt.success());
    let mut stdout = String::new();
    run.stdout
        .take()
        .unwrap()
        .read_to_string(&mut stdout)
        .unwrap();
    assert_eq!(run.wait().unwrap().code(), Some(130));
    let json: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(json["interrupted"], true);
    assert!(number(&json, "/guarded/succeeded") > 0.0, "{json:#}");
}
