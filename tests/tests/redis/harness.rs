//! Servers of the tests end with the test's process, even when that is killed.

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use resilience_tests::until::eventually;
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
