//! The table of traps names tests that exist, and some rules that are held by reading the sources.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use resilience_core::conformance::layer::CONTRACTS;

const TABLE: &str = include_str!("../../TRAPS.md");

#[test]
fn every_test_that_the_table_of_traps_names_exists() {
    let mut known = tests_in(&workspace());
    known.extend(CONTRACTS.iter().map(|contract| contract.name.to_owned()));
    // A suite may be a file or a folder.
    let suites = sources(&workspace().join("resilience-core/src/conformance"));
    let suites: Vec<String> = suites
        .iter()
        .map(|file| fs::read_to_string(file).unwrap())
        .collect();
    known.extend(checks_in(&suites.concat()));
    let mut rows = 0;
    for row in rows_of(TABLE) {
        rows += 1;
        let [trap, rule, guards] = row[..] else {
            panic!("a row has three cells: {row:?}");
        };
        assert!(!trap.is_empty() && !rule.is_empty(), "{row:?}");
        let names: Vec<&str> = guards
            .split(", ")
            .map(|name| name.trim_matches('`'))
            .collect();
        for name in names {
            assert!(
                known.contains(name),
                "`{name}` guards \"{trap}\", but there is no such test"
            );
        }
    }
    assert!(rows > 30, "only {rows} rows were read");
}

/// The check above can fail.
#[test]
fn what_is_no_test_is_not_taken_for_one() {
    let source =
        "fn helper_of_tests() {}\n\n#[tokio::test(start_paused = true)]\nasync fn a_test() {}\n";
    assert_eq!(names_in(source), ["a_test"]);
    let suite = "async fn all(store: &dyn AStore) {\n    a_check(store).await;\n}\nasync fn a_check(store: &dyn AStore) {}\n\
         async fn forgotten(store: &dyn AStore) {}\n";
    assert_eq!(checks_in(suite), ["a_check"]);
    let folder = "async fn all(store: &Arc<dyn AStore>) {\n    steps::a_check(it).await;\n}\n\
                  pub(super) async fn a_check(\n    store: &dyn AStore,\n) {\n}\n\
                  pub(super) async fn forgotten(store: &dyn AStore) {}\n";
    assert_eq!(checks_in(folder), ["a_check"]);
    let macros =
        "#[test]\n#[should_panic(expected = \"no\")]\nfn another() {}\n fn no_test(a: u8) {}\n";
    assert_eq!(names_in(macros), ["another"]);
    let table = "| trap | rule | guarded by |\n|---|---|---|\n| a | b | `c`, `d` |\n";
    assert_eq!(rows_of(table).collect::<Vec<_>>(), [["a", "b", "`c`, `d`"]]);
}

/// Wall clocks step back, and differ between machines. Two things are read: the date of a `Retry-After`, and by a producer of events
/// the time that it stamps them with, or is to publish them at.
#[test]
fn no_machine_reads_the_wall_clock() {
    let mut read = 0;
    for crate_ in ["resilience-core", "resilience-http"] {
        for file in sources(&workspace().join(crate_).join("src")) {
            let source = fs::read_to_string(&file).unwrap();
            read += 1;
            let allowed = file.ends_with("headers.rs")
                || file.ends_with("stream/producer/wall_clock.rs")
                || file.ends_with("stream/tests/producer.rs")
                || file.components().any(|part| part.as_os_str() == "headers");
            let names = source
                .lines()
                .find(|line| line.contains("SystemTime") && !line.trim_start().starts_with("//"));
            assert!(
                allowed || names.is_none(),
                "{} reads the wall clock: {names:?}",
                file.display()
            );
        }
    }
    assert!(read > 40, "only {read} sources were read");
}

fn rows_of(table: &str) -> impl Iterator<Item = Vec<&str>> {
    let rows = table
        .lines()
        .filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |"));
    let cells = rows.map(|row| row.split(" | ").collect::<Vec<_>>());
    cells.filter(|cells| cells.first() != Some(&"trap"))
}

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .to_owned()
}

fn tests_in(directory: &Path) -> BTreeSet<String> {
    let names = |file: PathBuf| names_in(&fs::read_to_string(file).unwrap());
    sources(directory).into_iter().flat_map(names).collect()
}

/// The names of the functions that have a test attribute.
fn names_in(source: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut is_test = false;
    for line in source.lines().map(str::trim) {
        if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
            is_test = true;
        } else if let Some(name) = function(line) {
            if is_test {
                names.push(name.to_owned());
            }
            is_test = false;
        }
    }
    names
}

/// The checks of a suite that every store passes: functions of a store that the suite itself calls.
fn checks_in(source: &str) -> Vec<String> {
    let mut checks = Vec::new();
    for (at, line) in source.lines().enumerate() {
        let Some(name) = function(line) else { continue };
        let head: String = source.lines().skip(at).take(3).collect();
        let of_a_store = head.split_once(name).is_some_and(|(_, takes)| {
            takes
                .split_once(')')
                .is_some_and(|(takes, _)| takes.contains("Store") || takes.contains("Broker"))
        });
        let called = [
            format!("    {name}(store"),
            format!("::{name}(it"),
            format!("::{name}(store"),
        ];
        if of_a_store && called.iter().any(|call| source.contains(call)) {
            checks.push(name.to_owned());
        }
    }
    checks
}

fn function(line: &str) -> Option<&str> {
    let line = line.strip_prefix("pub(super) ").unwrap_or(line);
    let line = line.strip_prefix("async ").unwrap_or(line);
    let name = line.strip_prefix("fn ")?;
    Some(&name[..name.find(['(', '<'])?])
}

fn sources(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}
