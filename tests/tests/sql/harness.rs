//! The server of the tests ends with its value, whatever happens.

use resilience_tests::postgres::Postgres;
use rustix::process::{Pid, test_kill_process};

fn is_there(process: i32) -> bool {
    Pid::from_raw(process).is_some_and(|pid| test_kill_process(pid).is_ok())
}

#[test]
fn no_process_and_no_file_outlives_the_server_even_if_it_was_frozen() {
    let postgres = Postgres::start();
    let (processes, directory) = (postgres.processes(), postgres.directory().to_owned());
    assert!(processes.len() > 1 && processes.iter().all(|&process| is_there(process)));
    postgres.freeze();
    drop(postgres);
    let left: Vec<_> = processes
        .into_iter()
        .filter(|&process| is_there(process))
        .collect();
    assert!(left.is_empty(), "{left:?}");
    assert!(!directory.exists());
}

#[test]
fn a_test_that_panics_ends_its_server() {
    let (tell, told) = std::sync::mpsc::channel();
    let failed = std::thread::spawn(move || {
        let postgres = Postgres::start();
        tell.send(postgres.processes()).expect("the receiver lives");
        panic!("as a failing test does");
    })
    .join();
    assert!(failed.is_err());
    let left: Vec<_> = told
        .recv()
        .unwrap()
        .into_iter()
        .filter(|&process| is_there(process))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}
