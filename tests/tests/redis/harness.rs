//! What the tests of this program stand on: servers that end, return and go by the clock they are given, and a proxy that injects
//! faults.

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use resilience_tests::{
    redis::{RedisServer, free_port},
    redis_clock::Clock,
    until::eventually,
};
use rustix::process::{Pid, test_kill_process};

#[tokio::test]
async fn kill_9_of_the_test_ends_its_servers() {
    let mut harness = Command::new(env!("CARGO_BIN_EXE_redis_server"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut line = String::new();
    let output = harness.stdout.take().expect("its output");
    BufReader::new(output).read_line(&mut line).expect("a line");
    let (process, directory) = line.trim().split_once(' ').expect("two words");
    let process = Pid::from_raw(process.parse().expect("a number")).expect("a process id");
    assert!(test_kill_process(process).is_ok() && Path::new(directory).exists());
    harness.kill().expect("it is killed");
    harness.wait().expect("it has ended");
    eventually(
        "the server and its directory are gone",
        Duration::from_secs(20),
        || async { test_kill_process(process).is_err() && !Path::new(directory).exists() },
    )
    .await;
}

fn is_there(process: i32) -> bool {
    Pid::from_raw(process).is_some_and(|pid| test_kill_process(pid).is_ok())
}

#[test]
fn no_process_and_no_file_outlives_the_server_even_if_it_was_paused() {
    let server = RedisServer::start();
    assert_eq!(server.command("PING"), "PONG");
    let (process, dir) = (server.process().expect("it runs"), server.dir().to_owned());
    assert!(is_there(process) && dir.exists());
    server.pause();
    drop(server);
    assert!(!is_there(process) && !dir.exists());
}

#[test]
fn a_killed_server_comes_back_on_its_port_empty() {
    let mut server = RedisServer::start();
    assert_eq!(server.command("SET a b"), "OK");
    let process = server.process();
    server.kill();
    assert!(server.try_command("PING").is_err());
    server.restart();
    assert_eq!(server.command("GET a"), "");
    assert_ne!(server.process(), process);
}

#[test]
fn a_port_that_another_process_has_costs_one_attempt() {
    let first = RedisServer::start();
    let second = RedisServer::start_on_one_of([first.port(), free_port()]);
    assert_ne!(second.port(), first.port());
    assert_eq!(second.command("PING"), "PONG");
}

const HOUR: Duration = Duration::from_secs(3600);

#[test]
fn a_server_goes_by_the_clock_that_is_set() {
    let clock = Clock::new();
    let server = clock.start(&[]);
    let shown = || {
        let time = server.command("TIME");
        let seconds: u64 = time
            .lines()
            .next()
            .unwrap_or_default()
            .parse()
            .expect("a time");
        Duration::from_secs(seconds)
    };
    let start = shown();
    clock.set_back(HOUR);
    assert!(shown() + HOUR / 2 < start);
    clock.set_ahead(HOUR);
    assert!(shown() > start + HOUR / 2);
}
