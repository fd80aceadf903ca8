//! The result: one table for people, the same as JSON for machines.

use std::{collections::BTreeMap, time::Duration};

use comfy_table::{Cell, CellAlignment, Table, presets};
use serde::{Serialize, Serializer};

use crate::{
    script::{Phase, Script},
    stats::{Counts, Latency, Summary},
};

/// The result of a run.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) run: Run,
    /// Whether the run was cut short by ctrl-c.
    pub(crate) interrupted: bool,
    /// None with the user's own upstream.
    pub(crate) plain: Option<Side>,
    pub(crate) guarded: Side,
}

/// What was run.
#[derive(Debug)]
pub(crate) enum Run {
    Storm {
        script: Script,
        rate: u32,
        seed: u64,
        workers: usize,
    },
    Url {
        url: String,
        rate: u32,
    },
}

/// One client's result.
#[derive(Debug)]
pub(crate) struct Side {
    /// How it was set up, in words.
    pub(crate) settings: String,
    pub(crate) summary: Summary,
    pub(crate) retries: u64,
    /// Requests that its upstream had to serve or refuse, by phase. None where we cannot see that.
    pub(crate) upstream: Option<[u64; Phase::ALL.len()]>,
}

impl Report {
    /// The document that `--json` prints.
    pub(crate) fn json(&self) -> serde_json::Result<String> {
        serde_json::to_string_pretty(&Document::of(self))
    }

    /// The table, with what is needed to read it.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        if self.interrupted {
            text += "\nInterrupted: the figures cover what was run.\n";
        }
        match &self.run {
            Run::Storm {
                script,
                rate,
                seed,
                workers,
            } => {
                text += &format!(
                    "\nThe storm: {:.0} s, {rate} calls a second from each client to an upstream of its own with \
                     {workers} workers, seed {seed}.\n",
                    script.total().as_secs_f64(),
                );
                for phase in Phase::ALL {
                    let (name, lasts) = (phase.name(), script.length(phase).as_secs_f64());
                    text += &format!("  {name:<8} {lasts:.1} s  the upstream {}\n", phase.story());
                }
            }
            Run::Url { url, rate } => text += &format!("\nGET {url}, {rate} calls a second.\n"),
        }
        text += &format!("\n{}\n\n", self.table());
        if let Some(plain) = &self.plain {
            text += &wrapped(&format!("plain: {}", plain.settings));
        }
        text += &wrapped(&format!("guarded: {}", self.guarded.settings));
        if self.plain.is_some() {
            text += NOTES;
        }
        text
    }

    fn table(&self) -> Table {
        let mut table = Table::new();
        table.load_style(presets::UTF8_FULL_CONDENSED);
        let sides: Vec<&Side> = self.plain.iter().chain([&self.guarded]).collect();
        let mut header = vec!["", "guarded"];
        if self.plain.is_some() {
            header.insert(1, "plain");
        }
        table.set_header(header);
        let mut row = |name: &str, value: &dyn Fn(&Side) -> String| {
            let mut cells = vec![Cell::new(name)];
            cells.extend(
                sides
                    .iter()
                    .map(|side| Cell::new(value(side)).set_alignment(CellAlignment::Right)),
            );
            table.add_row(cells);
        };
        totals(&mut row);
        if self.plain.is_some() {
            by_phase(&mut row);
            row("time to notice the outage", &|side| {
                moment(side.summary.notice)
            });
            row("time to recover", &|side| moment(side.summary.recovery));
        }
        table
    }
}

type Row<'a> = dyn FnMut(&str, &dyn Fn(&Side) -> String) + 'a;

fn totals(row: &mut Row<'_>) {
    row("calls", &|side| side.summary.calls.total().to_string());
    row("success rate", &|side| {
        percent(side.summary.calls.success_rate())
    });
    row("failed", &|side| {
        listed(side.summary.calls.failed, &side.summary.failures)
    });
    row("rejected", &|side| {
        listed(side.summary.calls.rejected, &side.summary.rejections)
    });
    row("retries", &|side| side.retries.to_string());
    row("latency p50 / p99 / max: all calls", &|side| {
        latency(side.summary.all)
    });
    row("  of the successes", &|side| latency(side.summary.ok));
    row("  of the others, until they knew", &|side| {
        latency(side.summary.not_ok)
    });
    row("waited in vain, all callers together", &|side| {
        format!("{:.0} s", side.summary.in_vain.as_secs_f64())
    });
}

fn by_phase(row: &mut Row<'_>) {
    row("success rate by phase", &|_| String::new());
    for (index, phase) in Phase::ALL.into_iter().enumerate() {
        row(&format!("  {}", phase.name()), &|side| {
            side.summary
                .phases
                .get(index)
                .map_or_else(String::new, |phase| shares(phase.calls))
        });
    }
    row("requests that the upstream got, by phase", &|_| {
        String::new()
    });
    for (index, phase) in Phase::ALL.into_iter().enumerate() {
        let refused = if phase == Phase::Down {
            " (refused connections)"
        } else {
            ""
        };
        row(&format!("  {}{refused}", phase.name()), &|side| {
            side.upstream
                .map_or_else(String::new, |served| served[index].to_string())
        });
    }
    row("  in all", &|side| {
        side.upstream
            .map_or_else(String::new, |served| served.iter().sum::<u64>().to_string())
    });
}

const NOTES: &str = "
Both clients send the same calls at the same moments, and call 17 meets the same fate at both upstreams.
Latency counts from the moment a call was due, so a stalled client cannot hide what it did not send.
Noticed: from the start of `hanging` to the first call that the breaker turned away; a client without one never does.
Recovered: from the start of `back` to the first success after which at most 1 call in 20 came to nothing. A client
that never stopped asking is back at once; a breaker waits for its next probe. That is what sparing the upstream costs.
";

fn percent(share: Option<f64>) -> String {
    share.map_or_else(|| "-".to_owned(), |share| format!("{:.1} %", share * 100.0))
}

fn shares(calls: Counts) -> String {
    match calls.rejected {
        0 => percent(calls.success_rate()),
        many => format!("{} ({many} rejected)", percent(calls.success_rate())),
    }
}

fn listed(total: u64, kinds: &BTreeMap<String, u64>) -> String {
    let mut text = total.to_string();
    for (kind, count) in kinds {
        // The pattern goes without saying: only breakers are open, only bulkheads are full.
        let kind = kind.rsplit('.').next().unwrap_or(kind);
        text += &format!("\n{kind} {count}");
    }
    text
}

fn latency(latency: Option<Latency>) -> String {
    latency.map_or_else(
        || "-".to_owned(),
        |Latency { p50, p99, max }| format!("{} / {} / {} ms", ms(p50), ms(p99), ms(max)),
    )
}

/// Breaks a paragraph into lines.
fn wrapped(paragraph: &str) -> String {
    const WIDTH: usize = 100;
    let (mut text, mut length) = (String::new(), 0);
    for word in paragraph.split_whitespace() {
        if length + word.len() >= WIDTH {
            text += "\n   ";
            length = 3;
        }
        if length > 0 {
            text.push(' ');
        }
        text += word;
        length += word.len() + 1;
    }
    text + "\n"
}

/// Two figures below ten milliseconds, none behind the point above a hundred.
fn ms(duration: Duration) -> String {
    let ms = duration.as_secs_f64() * 1000.0;
    match ms {
        ms if ms < 10.0 => format!("{ms:.2}"),
        ms if ms < 100.0 => format!("{ms:.1}"),
        ms => format!("{ms:.0}"),
    }
}

fn moment(after: Option<Duration>) -> String {
    after.map_or_else(|| "never".to_owned(), |after| format!("{} ms", ms(after)))
}

/// The JSON document. What does not apply is `null`; rates are shares of 1, durations milliseconds.
#[derive(Debug, Serialize)]
struct Document<'a> {
    interrupted: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    url: Option<&'a str>,
    rate: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    seed: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    script_ms: Option<ByPhase<f64>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    plain: Option<SideDocument<'a>>,
    guarded: SideDocument<'a>,
}

#[derive(Debug, Serialize)]
struct SideDocument<'a> {
    settings: &'a str,
    requests: u64,
    succeeded: u64,
    failed: u64,
    rejected: u64,
    failures: &'a BTreeMap<String, u64>,
    rejections: &'a BTreeMap<String, u64>,
    success_rate: Option<f64>,
    /// Over all calls, whatever came of them.
    #[serde(flatten)]
    all: Millis,
    succeeded_latency: Millis,
    not_succeeded_latency: Millis,
    waited_in_vain_ms: f64,
    retries: u64,
    upstream_requests: Option<ByPhase<u64>>,
    upstream_requests_total: Option<u64>,
    phases: Option<ByPhase<PhaseDocument>>,
    notice_ms: Option<f64>,
    recovery_ms: Option<f64>,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct PhaseDocument {
    requests: u64,
    success_rate: Option<f64>,
    failed: u64,
    rejected: u64,
    #[serde(flatten)]
    latency: Millis,
}

#[derive(Clone, Copy, Debug, Default, Serialize)]
struct Millis {
    p50_ms: Option<f64>,
    p99_ms: Option<f64>,
    max_ms: Option<f64>,
}

impl From<Option<Latency>> for Millis {
    fn from(latency: Option<Latency>) -> Self {
        Self {
            p50_ms: latency.map(|latency| millis(latency.p50)),
            p99_ms: latency.map(|latency| millis(latency.p99)),
            max_ms: latency.map(|latency| millis(latency.max)),
        }
    }
}

/// Microseconds are as exact as it gets.
fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

/// A value for each phase, written as an object in the order of the script.
#[derive(Clone, Debug)]
struct ByPhase<T>(Vec<T>);

impl<T: Serialize> Serialize for ByPhase<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(Phase::ALL.map(Phase::name).into_iter().zip(&self.0))
    }
}

impl<'a> Document<'a> {
    fn of(report: &'a Report) -> Self {
        let (url, rate, seed, script) = match &report.run {
            Run::Storm {
                script, rate, seed, ..
            } => (None, *rate, Some(*seed), Some(*script)),
            Run::Url { url, rate } => (Some(url.as_str()), *rate, None, None),
        };
        let lengths = |script: Script| Phase::ALL.map(|phase| millis(script.length(phase)));
        Self {
            interrupted: report.interrupted,
            url,
            rate,
            seed,
            script_ms: script.map(|script| ByPhase(lengths(script).into())),
            plain: report.plain.as_ref().map(SideDocument::of),
            guarded: SideDocument::of(&report.guarded),
        }
    }
}

impl<'a> SideDocument<'a> {
    fn of(side: &'a Side) -> Self {
        let summary = &side.summary;
        let phases: Vec<_> = summary
            .phases
            .iter()
            .map(|phase| PhaseDocument {
                requests: phase.calls.total(),
                success_rate: phase.calls.success_rate(),
                failed: phase.calls.failed,
                rejected: phase.calls.rejected,
                latency: phase.latency.into(),
            })
            .collect();
        Self {
            settings: &side.settings,
            requests: summary.calls.total(),
            succeeded: summary.calls.ok,
            failed: summary.calls.failed,
            rejected: summary.calls.rejected,
            failures: &summary.failures,
            rejections: &summary.rejections,
            success_rate: summary.calls.success_rate(),
            all: summary.all.into(),
            succeeded_latency: summary.ok.into(),
            not_succeeded_latency: summary.not_ok.into(),
            waited_in_vain_ms: millis(summary.in_vain),
            retries: side.retries,
            upstream_requests: side.upstream.map(|served| ByPhase(served.into())),
            upstream_requests_total: side.upstream.map(|served| served.iter().sum()),
            phases: (!phases.is_empty()).then_some(ByPhase(phases)),
            notice_ms: summary.notice.map(millis),
            recovery_ms: summary.recovery.map(millis),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;
    use crate::stats::{Outcome, Recorder};

    fn side(upstream: Option<[u64; 6]>, script: Option<Script>) -> Side {
        let recorder = Recorder::start(Instant::now(), script);
        recorder.end(Duration::ZERO, Duration::from_millis(12), Outcome::Ok);
        Side {
            settings: "as it comes".to_owned(),
            summary: recorder.summary(),
            retries: 3,
            upstream,
        }
    }

    fn storm() -> Report {
        let script = Script::lasting(Duration::from_secs(19));
        let side = || side(Some([1, 2, 3, 4, 5, 6]), Some(script));
        Report {
            run: Run::Storm {
                script,
                rate: 150,
                seed: 7,
                workers: 16,
            },
            interrupted: false,
            plain: Some(side()),
            guarded: side(),
        }
    }

    #[tokio::test]
    async fn the_json_has_the_promised_keys_for_both_clients() {
        let json: serde_json::Value = serde_json::from_str(&storm().json().unwrap()).unwrap();
        for side in ["plain", "guarded"] {
            assert_eq!(json[side]["success_rate"], 1.0);
            assert_eq!(json[side]["upstream_requests"]["hanging"], 4);
            assert_eq!(json[side]["phases"]["healthy"]["requests"], 1);
            for key in ["p50_ms", "p99_ms", "max_ms"] {
                let value = json[side][key].as_f64().unwrap();
                assert!((11.9..=12.1).contains(&value), "{key}: {value}");
            }
            assert!(
                json[side]
                    .get("recovery_ms")
                    .is_some_and(serde_json::Value::is_null)
            );
        }
    }

    #[tokio::test]
    async fn the_phases_stand_in_the_order_of_the_script() {
        let json = storm().json().unwrap();
        let at = Phase::ALL.map(|phase| json.find(&format!("\"{}\"", phase.name())).unwrap());
        assert!(at.is_sorted(), "{json}");
    }

    #[tokio::test]
    async fn the_table_has_a_column_for_each_client_that_ran() {
        let table = storm().table().to_string();
        assert!(
            table.contains("plain")
                && table.contains("guarded")
                && table.contains("time to recover")
        );
        let run = Run::Url {
            url: "http://localhost/".to_owned(),
            rate: 10,
        };
        let alone = Report {
            run,
            interrupted: true,
            plain: None,
            guarded: side(None, None),
        };
        let text = alone.text();
        assert!(
            !text.contains("plain") && text.contains("Interrupted"),
            "{text}"
        );
    }
}
