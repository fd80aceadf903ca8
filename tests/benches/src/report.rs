//! Rows put together, and printed for people.

use std::{
    fmt::{self, Write as _},
    process::Command,
};

use serde_json::Value;

use crate::{
    figures,
    measure::{Cost, Effort, Scaling, one_core, two_cores},
    subject::{BARE, Subject},
};

/// All that is known of one subject.
#[derive(Clone, Debug)]
pub struct Row {
    /// The subject's name.
    pub name: &'static str,
    /// What it adds to a call of the bare service, in nanoseconds (for the bare service: what it takes).
    pub ns: f64,
    /// Half of the rounds lie within this range around it.
    pub spread: f64,
    /// The share of rounds in which no other thread waited for the processor.
    pub undisturbed: f64,
    /// Allocations per call.
    pub allocations: f64,
    /// Bytes allocated per call.
    pub bytes: f64,
    /// What a second core brings, where it was measured.
    pub two_cores: Option<Scaling>,
}

/// Measures `subjects`, the first of which is the bare service.
#[must_use]
pub fn rows(subjects: &[Subject], effort: Effort, allocations: &[Allocations]) -> Vec<Row> {
    let costs = one_core(subjects, effort);
    let scaling = two_cores(subjects, effort);
    let bare = costs[0].median;
    let row = |((subject, cost), two_cores): ((&Subject, &Cost), &Option<Scaling>)| {
        let counted = allocations.iter().find(|row| row.name == subject.name);
        Row {
            name: subject.name,
            ns: if subject.name == BARE {
                bare
            } else {
                cost.median - bare
            },
            spread: cost.spread,
            undisturbed: cost.undisturbed,
            allocations: counted.map_or(f64::NAN, |row| row.allocations),
            bytes: counted.map_or(f64::NAN, |row| row.bytes),
            two_cores: *two_cores,
        }
    };
    let costs = subjects.iter().zip(&costs);
    costs.zip(&scaling).map(row).collect()
}

/// What one call of a subject allocates.
#[derive(Clone, Debug)]
pub struct Allocations {
    /// The subject's name.
    pub name: String,
    /// Allocations per call.
    pub allocations: f64,
    /// Bytes allocated per call.
    pub bytes: f64,
}

/// Runs the program that counts allocations.
///
/// # Panics
///
/// If it fails, or prints what it should not.
#[must_use]
pub fn count_allocations(program: &str) -> Vec<Allocations> {
    let output = Command::new(program).output().expect("the program starts");
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).expect("text");
    text.lines()
        .map(|line| {
            let row: Value = serde_json::from_str(line).expect("a JSON line");
            Allocations {
                name: row["subject"].as_str().expect("a name").to_owned(),
                allocations: row["allocations"].as_f64().expect("a number"),
                bytes: row["bytes"].as_f64().expect("a number"),
            }
        })
        .collect()
}

/// The table of rows.
#[must_use]
pub fn table(rows: &[Row]) -> String {
    let mut text = format!(
        "{:<54}{:>9}{:>7}{:>9}{:>9}{:>11}\n",
        "subject", "ns", "+-", "allocs", "bytes", "two cores"
    );
    for row in rows {
        let _ = writeln!(
            text,
            "{:<54}{:>9.1}{:>7.1}{:>9}{:>9}{:>11}",
            row.name,
            row.ns,
            row.spread,
            Short(row.allocations),
            Short(row.bytes),
            row.two_cores.map_or_else(String::new, |two| {
                let doubt = if two.sound { "" } else { "?" };
                format!("{:.2}{doubt}", two.ratio)
            }),
        );
    }
    text.push_str("ns: over the bare service, whose own row is absolute; median of the rounds, half of them within +-\n");
    text.push_str("two cores: throughput over that of one; with a question mark: the machine was too busy to tell\n");
    let undisturbed = rows.iter().map(|row| row.undisturbed).sum::<f64>() / rows.len() as f64;
    let _ = writeln!(
        text,
        "rounds that had the processor to themselves: {:.0} %",
        100.0 * undisturbed
    );
    text
}

/// How our rows compare to the peers', and which targets are met.
#[must_use]
pub fn comparison(rows: &[Row], allocations: &[Allocations]) -> String {
    let mut text = String::new();
    for figure in figures::from(rows, allocations) {
        let _ = write!(
            text,
            "{:<44}{:>9.2} {:<22}",
            figure.name, figure.value, figure.unit
        );
        if let Some((peer, value)) = &figure.peer {
            let _ = write!(text, " {value:>9.2}  {peer}");
        }
        if let Some(target) = figure.target {
            let word = if target.is_met_by(figure.value) {
                "met"
            } else {
                "MISSED"
            };
            let _ = write!(text, "  [target {target}: {word}]");
        }
        text.push('\n');
    }
    text
}

/// Whole numbers without decimals.
struct Short(f64);

impl fmt::Display for Short {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.round() - self.0 {
            0.0 => f.pad(&format!("{}", self.0)),
            _ => f.pad(&format!("{:.2}", self.0)),
        }
    }
}
